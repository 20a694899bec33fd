"""The canary: what an engine answered before it slept is what it must answer afterwards."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest

from rolecall.backends.base import Launch
from rolecall.runtime.canary import PROMPT, Canary, Kind, Said, cosine, judge, read
from rolecall.runtime.engine_calls import CallFailed, EngineCalls

COUNTING = " four, five, six, seven, eight, nine, ten."
Answer = httpx.Response | Exception


def chat(content: str | None, **message: Any) -> httpx.Response:
    """Return a chat completion."""
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": "length"}
    return httpx.Response(200, json={"choices": [choice]})


def text(content: str) -> httpx.Response:
    """Return a completion."""
    return httpx.Response(200, json={"choices": [{"text": content, "finish_reason": "stop"}]})


def embedding(*numbers: float) -> httpx.Response:
    """Return an embedding."""
    return httpx.Response(200, content=json.dumps({"data": [{"embedding": numbers}]}))


class Engine:
    """Answers one request after the other, the last answer for ever."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        given = list(answers)
        self._answers = itertools.chain(given, itertools.repeat(given[-1]))
        self.requests: list[tuple[str, dict[str, Any]]] = []

    def canary(self, kind: Kind = "chat", served_id: str = "m") -> Canary:
        """Return a canary for this engine."""
        http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        calls = EngineCalls(http, Launch(("engine",), "http://127.0.0.1:9/v1"))
        return Canary(calls, served_id, kind, within_s=5)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((request.url.path, json.loads(request.content)))
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content)  # a response can be sent only once


async def outcome(*answers: Answer, kind: Kind = "chat") -> str | None:
    """Record with the first two answers and return what is wrong with the third."""
    canary = Engine(answers).canary(kind)
    await canary.record()
    return await canary.check()


# -- engines that give the same answer twice


@pytest.mark.parametrize(
    ("kind", "answer"), [("chat", chat(COUNTING)), ("completion", text(COUNTING)), ("embedding", embedding(0.1, -0.7))]
)
async def test_the_same_answer(kind: Kind, answer: httpx.Response) -> None:
    """An engine that answers as before is the same as before."""
    assert await outcome(answer, kind=kind) is None


@pytest.mark.parametrize("said", ["!!!!!!!!!!!!!!!!", "", COUNTING.upper(), COUNTING + " "])
async def test_another_answer(said: str) -> None:
    """One that answered the same twice must do so to the letter; the report shows both."""
    problem = await outcome(chat(COUNTING), chat(COUNTING), chat(said))
    assert problem == f"{said!r} instead of {COUNTING!r}"


async def test_a_model_that_thinks() -> None:
    """Reasoning is compared as well: in so few tokens there is often nothing else."""
    thinks = chat(None, reasoning_content="The user wants me to count.")
    assert await outcome(thinks) is None
    problem = await outcome(thinks, thinks, chat(None, reasoning_content="!!!!"))
    assert problem == "'!!!!' instead of 'The user wants me to count.'"
    assert await outcome(chat(None, reasoning="Counting"), chat(None, reasoning="Counting"), chat(None))


async def test_an_answer_that_was_broken_off() -> None:
    """The same text does not help an answer that the engine aborted."""
    said = {"choices": [{"message": {"content": COUNTING}, "finish_reason": "abort"}]}
    assert await outcome(chat(COUNTING), chat(COUNTING), httpx.Response(200, json=said)) == "it ended with 'abort'"


# -- engines that do not


@pytest.mark.parametrize("said", [" four, five, six, seven, ate", " four, five, six, seven", " four, 5, six, seven"])
async def test_an_engine_that_varies(said: str) -> None:
    """One that gave two answers may give a third that is about as like them."""
    assert await outcome(chat(" four, five, six, seven"), chat(" four, five, six, 7, "), chat(said)) is None


@pytest.mark.parametrize(
    "said",
    [
        "",
        "  \n",
        "!!!!!!!!!!!!",
        " four four four four four",
        "\\_-data   \\_-data   \\_-data   \\_-d",
        " fo\ufffdr, fi\ufffde, six, seven",
        " L/captionty:T-data caption",
    ],
)
async def test_nonsense_of_an_engine_that_varies(said: str) -> None:
    """Silence, repetition, garbled characters and other texts count against it."""
    assert await outcome(chat(" four, five, six, seven"), chat(" four, five, six, 7, "), chat(said))


def test_a_model_that_always_repeats_itself() -> None:
    """What was there before sleep is no sign of damage."""
    recorded = [Said("la la la la", finish_reason="length"), Said("la la la la la", finish_reason="length")]
    assert judge(recorded, Said("la la la la l", finish_reason="length")) is None


# -- embeddings


@pytest.mark.parametrize(
    ("before", "after", "is_good"),
    [
        ([(1, 2, 3), (1, 2, 3)], (1.001, 2, 3), True),
        ([(1, 2, 3), (1, 2, 3)], (3, 2, 1), False),
        ([(1, 2, 3), (1, 2, 3)], (-1, -2, -3), False),
        ([(1, 2, 3), (1, 2, 3)], (0, 0, 0), False),
        ([(1, 2, 3), (1, 2, 3)], (1, 2), False),
        ([(1, 2, 3), (1, 2, 3)], (float("nan"), 2, 3), False),
        ([(1, 2, 3), (1, 2, 3)], (float("inf"), 2, 3), False),
        ([(1, 2, 3), (1, 2, 4)], (1, 2, 4), True),
        ([(1, 2, 3), (1, 2, 4)], (1, 4, 1), False),
    ],
)
async def test_embeddings(before: list[tuple[float, ...]], after: tuple[float, ...], is_good: bool) -> None:  # noqa: FBT001
    """They are compared by direction, as closely as the engine itself repeats them."""
    problem = await outcome(*(embedding(*each) for each in (*before, after)), kind="embedding")
    assert (problem is None) is is_good
    assert is_good or "an embedding whose cosine to the one before is " in (problem or "")


def test_cosine() -> None:
    """Direction counts, length does not."""
    assert cosine((1, 0), (0, 1)) == 0
    assert cosine((2, 2), (5, 5)) == pytest.approx(1)


# -- what is asked


async def test_what_a_chat_model_is_asked() -> None:
    """Little, greedily and with a seed, twice before the first sleep and not again before the next."""
    engine = Engine([chat(COUNTING)])
    canary = engine.canary(served_id="org/m")
    await canary.record()
    await canary.record()
    said = {"messages": [{"role": "user", "content": PROMPT}]}
    body = {"model": "org/m", **said, "temperature": 0, "seed": 1, "max_tokens": 16}
    assert engine.requests == [("/v1/chat/completions", body)] * 2


async def test_what_others_are_asked() -> None:
    """A model without a name of its own is not named."""
    engine = Engine([embedding(1)])
    await engine.canary("embedding", served_id="").record()
    assert engine.requests[0] == ("/v1/embeddings", {"input": PROMPT, "encoding_format": "float"})
    engine = Engine([text("x")])
    await engine.canary("completion").record()
    assert engine.requests[0][0] == "/v1/completions"
    assert engine.requests[0][1]["prompt"] == PROMPT


async def test_a_chat_model_without_a_template() -> None:
    """An engine that refuses to chat is asked to complete, from then on."""
    refusal = httpx.Response(400, json={"error": {"message": "no chat template"}})
    engine = Engine([refusal, text(COUNTING)])
    canary = engine.canary()
    await canary.record()
    assert await canary.check() is None
    paths = [path for path, _ in engine.requests]
    assert paths == ["/v1/chat/completions", "/v1/completions", "/v1/completions", "/v1/completions"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(500, text="weights are gone"), "HTTP 500: weights are gone"),
        (httpx.Response(200, text="<html>"), "an answer that is no JSON: '<html>'"),
        (httpx.Response(200, json={"choices": []}), "an answer of no known shape: {'choices': []}"),
        (httpx.ConnectError("x"), "connection refused"),
        (httpx.RemoteProtocolError("peer closed"), "it broke off: peer closed"),
    ],
)
async def test_no_answer(answer: Answer, words: str) -> None:
    """It is told in words what came instead."""
    canary = Engine([chat(COUNTING), chat(COUNTING), answer]).canary()
    await canary.record()
    with pytest.raises(CallFailed) as caught:
        await canary.check()
    assert str(caught.value) == words


@pytest.mark.parametrize("answer", [None, 7, "data", [], {"data": [{}]}, {"choices": [{"message": None}]}])
def test_answers_of_no_known_shape(answer: object) -> None:
    """Whatever JSON comes, nothing but ``CallFailed`` is raised."""
    with pytest.raises(CallFailed, match="no known shape"):
        read(answer)


def test_the_type_of_an_answer() -> None:
    """Reading takes all three shapes."""
    readers: list[tuple[httpx.Response, Callable[[Said], object], object]] = [
        (chat("a"), lambda said: said.text, "a"),
        (text("b"), lambda said: said.text, "b"),
        (embedding(1, 2), lambda said: said.vector, (1.0, 2.0)),
    ]
    for response, look, expected in readers:
        assert look(read(response.json())) == expected
