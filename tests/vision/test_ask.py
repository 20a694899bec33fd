"""Questions over HTTP: what is sent, what comes back, what is waited for, and which errors come out."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import pytest

from fakes import chat_client
from rolecall.vision.ask import Asker, AskError, Question, Unreachable, confidence, logprobs_of

QUESTION = Question(
    model="role:caption",
    messages=[{"role": "user", "content": "hi"}],
    parameters={"temperature": 0.2},
    prompt_id="caption",
    prompt_version="1",
)


def error(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"error": {"message": "as the test says", "type": "t", "param": None, "code": code}}
    return httpx.Response(status, json=body, headers=headers)


def rubbish(content: bytes | str, status: int = 200) -> httpx.Response:
    return httpx.Response(status, content=content)


async def refusal(answer: httpx.Response, **options: Any) -> AskError:
    async with chat_client(lambda _: answer) as client:
        with pytest.raises(AskError) as caught:
            await Asker(client, **options).ask(QUESTION)
    return caught.value


async def test_what_is_sent() -> None:
    """The body is an ordinary chat; the prompt's id and version are headers, which no engine gets."""
    seen: list[httpx.Request] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return error(400, "x")

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://rolecall") as client:
        with pytest.raises(AskError):
            await Asker(client).ask(QUESTION)
    (request,) = seen
    assert request.url == "http://rolecall/v1/chat/completions"
    assert request.headers["x-prompt-id"] == "caption"
    assert request.headers["x-prompt-version"] == "1"
    assert request.content == (
        b'{"temperature":0.2,"model":"role:caption","messages":[{"role":"user","content":"hi"}],"stream":false}'
    )


async def test_a_reply() -> None:
    """Text, model, usage and request id of an answer are there, and what the engine did not tell is None."""
    async with chat_client(lambda _: "A dog.") as client:
        reply = await Asker(client).ask(QUESTION)
    assert (reply.text, reply.model, reply.usage["total_tokens"]) == ("A dog.", "the model", 12)
    assert (reply.request_id, reply.logprobs, reply.confidence, reply.cached_tokens) == ("req_1", None, None, None)
    assert not reply.is_cut


async def test_names_of_models_are_decoded() -> None:
    """A name outside ASCII is percent-encoded in the header."""
    choice = {"message": {"content": None}, "finish_reason": "length"}
    answer = httpx.Response(200, json={"choices": [choice]}, headers={"x-rolecall-model": "caf%C3%A9"})
    async with chat_client(lambda _: answer) as client:
        reply = await Asker(client).ask(QUESTION)
    assert (reply.model, reply.text, reply.is_cut, dict(reply.usage)) == ("café", "", True, {})


@pytest.mark.parametrize(
    ("status", "code"), [(400, "unsupported_input"), (401, "invalid_api_key"), (404, "model_not_found")]
)
async def test_an_error_is_typed(status: int, code: str) -> None:
    """What the server says comes out with status, code and message, at once."""
    caught = await refusal(error(status, code))
    assert (caught.status, caught.code, caught.message) == (status, code, "as the test says")
    assert str(caught) == caught.message
    assert caught.is_ours


@pytest.mark.parametrize(
    ("status", "code"), [(502, "engine_error"), (503, "model_start_failed"), (400, "invalid_image")]
)
async def test_errors_of_one_picture(status: int, code: str) -> None:
    """Other errors may be of this picture or this moment alone: the next one is worth a try."""
    assert not (await refusal(error(status, code))).is_ours


@pytest.mark.parametrize(
    "answer",
    [
        rubbish(b""),
        rubbish("<html>"),
        rubbish("[]"),
        rubbish("{}"),
        rubbish('{"choices": []}'),
        rubbish('{"choices": [{"message": "x"}]}'),
        rubbish('{"error": {"message": "cut"}}'),
        rubbish("Bad Gateway", 502),
        rubbish('{"error": "words"}', 500),
    ],
)
async def test_rubbish_is_an_error(answer: httpx.Response) -> None:
    """What is no chat completion is an error with words of its own, whatever it is."""
    caught = await refusal(answer)
    assert caught.status == answer.status_code
    assert caught.message


@pytest.mark.parametrize("status", [429, 503])
async def test_what_may_be_asked_again_is_waited_for(status: int) -> None:
    """While the server says when to come back, the question is asked again."""
    answers: list[Any] = [error(status, "busy", **{"retry-after": "0"})] * 3
    async with chat_client(lambda _: answers.pop() if answers else "A dog.") as client:
        reply = await Asker(client).ask(QUESTION)
    assert reply.text == "A dog."
    assert answers == []


@pytest.mark.parametrize("header", [{}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after": "inf"}])
async def test_without_a_time_nothing_is_waited_for(header: dict[str, str]) -> None:
    """A 503 that does not say when to come back, in seconds, is an error at once."""
    caught = await refusal(error(503, "model_not_loaded", **header))
    assert caught.retry_after_s is None


async def test_patience_ends() -> None:
    """A wait beyond the limit is not begun; the error tells how long it would have been."""
    caught = await refusal(error(503, "model_loading", **{"retry-after": "31"}), patience_s=30)
    assert (caught.code, caught.retry_after_s) == ("model_loading", 31)


async def test_without_patience_nothing_is_waited_for() -> None:
    """Also where a server says to come back at once, which it could say for ever."""
    answers: list[Any] = ["A dog.", error(503, "busy", **{"retry-after": "0"})]
    async with chat_client(lambda _: answers.pop()) as client:
        with pytest.raises(AskError):
            await Asker(client, patience_s=0).ask(QUESTION)
    assert answers == ["A dog."]


async def test_waits_add_up() -> None:
    """The limit is for all waits of a question together."""
    asked = []

    def answer(body: dict[str, Any]) -> httpx.Response:
        asked.append(body)
        return error(503, "model_loading", **{"retry-after": "0.01"})

    async with chat_client(answer) as client:
        with pytest.raises(AskError, match="as the test says"):
            await Asker(client, patience_s=0.035).ask(QUESTION)
    assert len(asked) == 4


async def test_nobody_listens() -> None:
    """That there is no server is told with its address."""
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9", trust_env=False) as client:
        with pytest.raises(Unreachable, match=r"no rolecall at http://127\.0\.0\.1:9"):
            await Asker(client).ask(QUESTION)


async def test_a_connection_that_breaks() -> None:
    """An answer that breaks off is no answer, and says so."""

    def breaks(_: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("peer closed connection")

    async with httpx.AsyncClient(transport=httpx.MockTransport(breaks), base_url="http://rolecall") as client:
        with pytest.raises(Unreachable, match="the connection to http://rolecall broke: peer closed") as caught:
            await Asker(client).ask(QUESTION)
    assert (caught.value.status, caught.value.code) == (0, "broken")


async def test_a_wait_can_be_cancelled() -> None:
    """Whoever is told to wait can leave meanwhile."""
    async with chat_client(lambda _: error(503, "busy", **{"retry-after": "100"})) as client:
        task = asyncio.create_task(Asker(client).ask(QUESTION))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


LLAMA_CPP = {"content": [{"id": 3, "token": "A", "bytes": [65], "logprob": -0.5, "top_logprobs": []}] * 2}
VLLM = {"content": [{"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": []}] * 2}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (LLAMA_CPP, (-0.5, -0.5)),
        (VLLM, (-0.5, -0.5)),
        ({"content": [{"token": "x", "logprob": -9999.0}]}, (-9999.0,)),
        ({"content": [{"token": "x", "logprob": None}, "x", {"logprob": -1}]}, (-1.0,)),
        ({"content": []}, None),
        ({"content": None}, None),
        ({"content": [{"logprob": math.nan}]}, None),
        ([], None),
        (None, None),
    ],
)
def test_log_probabilities(given: Any, found: tuple[float, ...] | None) -> None:
    """Both engines' form is read; what an engine leaves out is None, not nought."""
    assert logprobs_of({"logprobs": given}) == found


@pytest.mark.parametrize(
    ("logprobs", "value"),
    [
        ((math.log(0.5), math.log(0.125)), 0.25),
        ((0.0,), 1.0),
        ((1e-9,), 1.0),
        ((-9999.0,), 0.0),
        ((), None),
        (None, None),
    ],
)
def test_confidence(logprobs: tuple[float, ...] | None, value: float | None) -> None:
    """It is exp of the mean log-probability: between 0 and 1, and None where there is none."""
    found = confidence(logprobs)
    assert found == (value if value is None else pytest.approx(value))
