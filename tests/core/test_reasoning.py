"""Thoughts in the form that was chosen, from whatever form an engine gives them, whole or streamed."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.models import ReasoningField
from rolecall.core.reasoning import ReasoningStream, shape_answer

FORMS = get_args(ReasoningField)[1:]
TEXT = "<think>\nHm, so.\n</think>\n\nHello <b>you</b>"
CALL = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]


def delta(index: int = 0, finish: str | None = None, **said: Any) -> dict[str, Any]:
    return {"id": "i", "model": "m", "choices": [{"index": index, "delta": said, "finish_reason": finish}]}


def stream(form: Any, *chunks: Any, starts_in_thought: bool = False) -> list[dict[str, Any]]:
    shape = ReasoningStream(form, starts_in_thought=starts_in_thought)
    passed = [shape.rewrite(chunk) for chunk in chunks]
    rest = shape.flush()
    return passed + ([rest] if rest else [])


def joined(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, str]:
    """Return what a client that adds up the deltas of a choice has in the end."""
    message: dict[str, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for name, value in choice["delta"].items() if choice["index"] == index else ():
                if isinstance(value, str) and value:
                    message[name] = message.get(name, "") + value
    return message


def whole(form: Any, finish: str = "stop", *, starts_in_thought: bool = False, **message: Any) -> dict[str, Any]:
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": {}}
    shaped = shape_answer(answer, form, starts_in_thought=starts_in_thought)["choices"][0]["message"]
    assert isinstance(shaped, dict)
    return shaped


def cut(text: str, at: list[int]) -> list[str]:
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in at)})
    return [text[start:end] for start, end in pairwise(places)]


THOUGHT, ANSWER = "Hm, so.", "Hello <b>you</b>"
EXPECTED = {
    "reasoning_content": {"reasoning_content": THOUGHT, "content": ANSWER},
    "reasoning": {"reasoning": THOUGHT, "content": ANSWER},
    "think": {"content": TEXT},
    "drop": {"content": ANSWER},
}
SOURCES: dict[str, list[dict[str, Any]]] = {
    "reasoning_content": [{"reasoning_content": "Hm, "}, {"reasoning_content": "so."}, {"content": ANSWER}],
    "reasoning": [{"reasoning": "Hm, "}, {"reasoning": "so."}, {"content": ANSWER}],
    "both": [{"reasoning": THOUGHT, "reasoning_content": THOUGHT}, {"content": ANSWER}],
    "at once": [{"reasoning": THOUGHT, "content": ANSWER}],
    "tags": [{"content": "<thi"}, {"content": "nk>\nHm, so.\n<"}, {"content": "/think>\n\nHello <b>you</b>"}],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", SOURCES)
def test_each_form_from_each_source(source: str, form: str) -> None:
    """Whichever way an engine gives a thought, the client gets it in the one chosen."""
    first, last = delta(role="assistant", content=None), delta(finish="stop")
    assert joined(stream(form, first, *(delta(**said) for said in SOURCES[source]), last)) == {
        "role": "assistant",
        **EXPECTED[form],
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "said",
    [{"reasoning_content": THOUGHT, "content": ANSWER}, {"reasoning": THOUGHT, "content": ANSWER}, {"content": TEXT}],
)
def test_each_form_of_whole_answers(said: dict[str, Any], form: str) -> None:
    """The same holds for an answer that is not streamed."""
    assert whole(form, role="assistant", **said) == {"role": "assistant", **EXPECTED[form]}


words = st.sampled_from(["<think>", "</think>", "<thi", " ", "\n", "ja", "<", "ö"])
texts = st.lists(words, max_size=12).map("".join)
cuts = st.lists(st.integers(min_value=0), max_size=12)


@given(text=texts, at=cuts, form=st.sampled_from(FORMS), starts_in_thought=st.booleans())
def test_splits_change_nothing(text: str, at: list[int], form: str, *, starts_in_thought: bool) -> None:
    """However the content is cut into chunks, the client has the same in the end."""
    parts, last = [delta(content=piece) for piece in cut(text, at)], delta(finish="stop")
    at_once = stream(form, delta(content=text), last, starts_in_thought=starts_in_thought)
    assert joined(stream(form, *parts, last, starts_in_thought=starts_in_thought)) == joined(at_once)


@given(text=texts, at=cuts, form=st.sampled_from(FORMS), finish=st.sampled_from(["stop", "length"]))
def test_streamed_and_whole_are_the_same(text: str, at: list[int], form: str, finish: str) -> None:
    """A client gets the same text whether it asks for a stream or not."""
    text = "<think>" + text
    parts = [delta(content=piece) for piece in cut(text, at)]
    assert joined(stream(form, *parts, delta(finish=finish))) == {
        name: value for name, value in whole(form, finish, content=text).items() if value
    }


@given(text=texts, at=cuts, starts_in_thought=st.booleans())
def test_nothing_is_lost_or_invented(text: str, at: list[int], *, starts_in_thought: bool) -> None:
    """Thought and answer are what came, without tags and white space."""
    got = joined(
        stream("reasoning", *(delta(content=piece) for piece in cut(text, at)), starts_in_thought=starts_in_thought)
    )
    told = "".join((got.get("reasoning", "") + got.get("content", "")).split())
    rest = iter("".join(text.split()))
    assert all(letter in rest for letter in told)
    bare = text.replace("<think>", "").replace("</think>", "")
    assert len(told) >= len("".join(bare.split()))


@given(text=texts.filter(lambda text: not text.lstrip().startswith("<thi")), at=cuts, form=st.sampled_from(FORMS))
def test_answers_without_a_thought_are_left_alone(text: str, at: list[int], form: str) -> None:
    """An answer with no thought is the same to the letter."""
    chunks = [delta(content=piece) for piece in cut(text, at)]
    assert joined(stream(form, *chunks, delta(finish="stop"))).get("content", "") == text


@pytest.mark.parametrize(
    "chunk",
    [
        delta(role="assistant", content=""),
        delta(reasoning_content="x"),
        delta(content="x"),
        delta(tool_calls=CALL),
        delta(finish="stop"),
        {"choices": [], "usage": {"prompt_tokens": 1}},
        {"choices": [{"index": 0, "delta": "odd"}, 5, {"text": "x"}]},
        {"choices": [{"index": [], "delta": None}]},
        {"choices": None},
        {"odd": 1},
        delta(content=[{"type": "text", "text": "<think>x</think>"}]),
    ],
)
def test_what_has_the_form_already_is_the_same_object(chunk: dict[str, Any]) -> None:
    """So its bytes can pass as they came."""
    before = copy.deepcopy(chunk)
    assert ReasoningStream("reasoning_content").rewrite(chunk) is chunk
    assert chunk == before


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"message": {"content": "x", "reasoning_content": ""}}]},
        {"choices": [{"message": {"content": "x", "reasoning_content": "y"}}]},
        {"choices": [{"message": {"content": None, "tool_calls": CALL}}, "odd", {"text": "x"}]},
        {"data": []},
    ],
)
def test_whole_answers_that_have_the_form_are_the_same_object(answer: dict[str, Any]) -> None:
    """The same holds for whole ones."""
    before = copy.deepcopy(answer)
    assert shape_answer(answer, "reasoning_content") is answer
    assert answer == before


def test_no_chunk_is_swallowed_and_only_possible_tags_are_late() -> None:
    """Each chunk makes a chunk; text is held back for only as long as it may be a tag."""
    passed = stream(
        "reasoning_content", *(delta(content=piece) for piece in ["<", "think>", "a", " b", "<", "b", "</think>", "c"])
    )
    assert [chunk["choices"][0]["delta"] for chunk in passed] == [
        {},
        {},
        {"reasoning_content": "a"},
        {"reasoning_content": " b"},
        {},
        {"reasoning_content": "<b"},
        {},
        {"content": "c"},
    ]


@pytest.mark.parametrize("form", FORMS)
def test_choices_are_told_apart(form: str) -> None:
    """Each choice of several is within a thought or not for itself."""
    chunks = [
        delta(0, content="<think>a"),
        delta(1, content="b"),
        delta(0, content="c</think>d"),
        delta(1, content="<think>e"),
        delta(0, finish="stop"),
        delta(1, finish="length"),
    ]
    passed = stream(form, *chunks)
    assert joined(passed, 1) == {"content": "b<think>e"}
    assert joined(passed, 0)["content"].endswith("d")
    assert [chunk["choices"][0]["finish_reason"] for chunk in passed] == [None] * 4 + ["stop", "length"]


def test_what_was_held_back_goes_with_the_finish() -> None:
    """The chunk that ends a choice brings what was still held back; nothing comes after it."""
    passed = stream("reasoning", delta(content="<think>a </th"), delta(finish="length"))
    assert passed[-1] == delta(finish="length", reasoning=" </th")
    assert len(passed) == 2


def test_a_stream_that_never_finishes_loses_nothing() -> None:
    """What was held back comes as a chunk of its own, like those before it; only once."""
    shape = ReasoningStream("reasoning")
    shape.rewrite({**delta(1, content="<th"), "usage": None})
    assert shape.flush() == {
        "id": "i",
        "model": "m",
        "choices": [{"index": 1, "delta": {"content": "<th"}, "finish_reason": None}],
    }
    assert shape.flush() is None
    assert ReasoningStream("reasoning").flush() is None


@pytest.mark.parametrize("form", FORMS)
def test_a_thought_before_tool_calls(form: str) -> None:
    """The thought is there, the calls are untouched, and with tags in the content the thought is closed before them."""
    calls, last = delta(tool_calls=CALL), delta(finish="tool_calls")
    passed = stream(form, delta(content="<think>a</think>\n"), copy.deepcopy(calls), last)
    assert passed[1]["choices"][0]["delta"]["tool_calls"] == CALL
    expected = {"think": {"content": "<think>\na\n</think>\n\n"}, "drop": {}}.get(form, {form: "a"})
    assert joined(passed) == expected
    message = whole(form, "tool_calls", content="<think>a</think>\n", tool_calls=CALL)
    assert message == {"content": None, "tool_calls": CALL, **expected}


def test_a_thought_alone_leaves_an_empty_content() -> None:
    """A whole message keeps its content, if an empty one; one that was cut within its thought is not closed."""
    assert whole("reasoning", "length", content="<think>a") == {"content": "", "reasoning": "a"}
    assert whole("think", "length", content=None, reasoning="a") == {"content": "<think>\na"}
    assert whole("drop", "length", content="<think>a") == {"content": ""}
    assert whole("drop", reasoning="a") == {}


def test_templates_that_open_the_thought() -> None:
    """An answer that begins within a thought is told apart by the closing tag; one without any is an answer."""
    said: dict[str, Any] = {"content": "Hm.</think>Hello"}
    expected = {"reasoning_content": "Hm.", "content": "Hello"}
    assert joined(stream("reasoning_content", delta(**said), starts_in_thought=True)) == expected
    assert whole("reasoning_content", starts_in_thought=True, **said) == expected
    assert whole("reasoning_content", content="Hm.\n</think>\n\nHello") == expected
    assert whole("reasoning_content", starts_in_thought=True, content="Hello") == {"content": "Hello"}
    itself = stream("reasoning_content", delta(reasoning="Hm."), delta(content="Hello"), starts_in_thought=True)
    assert joined(itself) == expected


def test_log_probabilities() -> None:
    """They stay with the chunk they came with; those of a thought that is dropped are dropped with it."""

    def with_logprobs(text: str) -> dict[str, Any]:
        chunk = delta(content=text)
        chunk["choices"][0]["logprobs"] = {"content": [{"token": text}]}
        return chunk

    chunks = [with_logprobs("<think>a</think>"), with_logprobs("b")]
    kept = stream("reasoning", *chunks)
    assert [chunk["choices"][0]["logprobs"]["content"][0]["token"] for chunk in kept] == ["<think>a</think>", "b"]
    first, second = stream("drop", *chunks)
    assert first["choices"][0]["logprobs"] is None
    assert second == chunks[1]
    answer = {"choices": [{"message": {"content": TEXT}, "logprobs": {"content": [1]}, "finish_reason": "stop"}]}
    assert shape_answer(answer, "drop")["choices"][0]["logprobs"] is None
    assert shape_answer(answer, "reasoning")["choices"][0]["logprobs"] == {"content": [1]}


def test_the_rest_of_a_chunk_stays() -> None:
    """Everything beside the thought and the content is what it was: names, usage, timings, details of other makers."""
    chunk = {**delta(reasoning="x", reasoning_details=[1]), "usage": {"prompt_tokens": 3}, "timings": {"a": 1}}
    shaped = stream("reasoning_content", chunk)[0]
    assert json.dumps(shaped, sort_keys=True) == json.dumps(chunk, sort_keys=True).replace(
        '"reasoning":', '"reasoning_content":'
    )
