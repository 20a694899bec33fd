"""Phrases at the beginning of an answer: what is looked at, how it is compared, and what the file may say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rolecall.core.answer import Answer
from rolecall.core.markers import Markers, Opening
from rolecall.core.markers_file import read_markers
from rolecall.core.sse import StreamWatch
from rolecall.errors import ConfigurationError

MARKERS = read_markers(
    {
        "chars": 40,
        "markers": {
            "refusal": {"phrases": ["I can't help with", "我无法协助"]},
            "about-itself": {"phrases": ["As an AI"]},
        },
    }
)


def opening(*pieces: str, chars: int = 40) -> Opening:
    taken = Opening(chars)
    for piece in pieces:
        taken.take(piece)
    return taken


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A red bridge.", []),
        ("I can't help with that.", ["refusal"]),
        ("I CAN\u2019T\n  help\u00a0with that.", ["refusal"]),
        ("as an ai, I can't help with that", ["refusal", "about-itself"]),
        ("很抱歉，我无法协助您", ["refusal"]),
        ("x" * 24 + "I can't help with that", []),
        ("x" * 23 + "I can't help with that", ["refusal"]),
    ],
)
def test_groups_are_found_at_the_beginning(text: str, found: list[str]) -> None:
    """Case, apostrophes and white space do not count; what stands behind the beginning is not seen."""
    assert MARKERS.found(opening(text)) == found
    assert MARKERS.found(opening(*text)) == found


def test_no_text_is_no_answer_without_markers() -> None:
    """Of an answer without any text nothing is said; calls of tools are none, whatever an engine writes beside them."""
    assert MARKERS.found(opening()) is None
    for content in ("", None):
        answer = Answer(opening=Opening(40))
        answer.read(said(content=content, tool_calls=[{"function": {"name": "get_weather", "arguments": "{}"}}]))
        assert answer.opening is not None
        assert MARKERS.found(answer.opening) is None


def test_no_more_is_kept_than_is_looked_at() -> None:
    """A long answer costs as much memory as its beginning."""
    taken = opening("abc", "d" * 1_000_000, "e", chars=10)
    assert "".join(taken.parts) == "abc" + "d" * 7


def event(**said: Any) -> bytes:
    choice = {"index": 0, "delta": said, "finish_reason": None}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


def test_a_stream_is_looked_at_until_it_has_begun() -> None:
    """Its thoughts are no text, its beginning is whole however it is cut, and from then on it passes quickly."""
    answer = Answer(opening=Opening(20))
    watch = StreamWatch(answer, hide_usage=False)
    events = [event(reasoning_content="I can't help with it"), *(event(content=f"{n:02} ") for n in range(50))]
    stream = b"".join(events)
    passed = b"".join(watch.feed(stream[at : at + 100]) for at in range(0, len(stream), 100)) + watch.close()
    assert passed == stream
    assert answer.opening is not None
    assert "".join(answer.opening.parts) == "00 01 02 03 04 05 06"
    assert not answer.wants_text
    assert answer.seen == (51, 20 + 150)
    assert answer.text == []


def test_a_whole_answer_is_looked_at_like_a_stream() -> None:
    """The same beginning is taken of an answer that comes at once."""
    answer = Answer(opening=Opening(5))
    answer.read({"choices": [{"message": {"content": "Sure, here"}, "finish_reason": "stop"}]})
    assert answer.opening == Opening(-5, ["Sure,"])


def test_without_an_opening_nothing_is_kept() -> None:
    """By default nobody looks at the text."""
    answer = Answer()
    assert not answer.wants_text
    answer.read({"choices": [{"delta": {"content": ["no text"]}}]})
    answer.read({"choices": [{"delta": {"content": "x"}}]})
    assert (answer.opening, answer.text) == (None, [])


def test_the_file_may_be_empty() -> None:
    """Then there are no groups, and 400 characters would be looked at."""
    assert read_markers({}) == Markers(400, {})


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"chars": 0}, "chars"),
        ({"chars": 10_001}, "chars"),
        ({"marker": {}}, "marker: Extra inputs"),
        ({"markers": {"Über": {"phrases": ["x"]}}}, "markers.Über"),
        ({"markers": {"a": {"phrases": []}}}, "markers.a.phrases"),
        ({"markers": {"a": {"phrases": ["  "]}}}, "markers.a.phrases.0"),
        ({"markers": {"a": {"phrases": "x"}}}, "markers.a.phrases"),
        ({"markers": {f"a{n}": {"phrases": ["x"]} for n in range(21)}}, "markers"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(data: dict[str, Any], named: str) -> None:
    """Each problem says where it is."""
    with pytest.raises(ConfigurationError, match=named):
        read_markers(data)


def test_of_several_choices_the_first_is_looked_at() -> None:
    """Pieces of several choices come mixed in a stream; the first choice's are not torn apart by the others'."""
    answer = Answer(opening=Opening(40))
    for index, piece in [(0, "I can"), (1, "Sure"), (0, "not"), (1, "ly")]:
        answer.read({"choices": [{"index": index, "delta": {"content": piece}, "finish_reason": None}]})
    assert answer.opening is not None
    assert "".join(answer.opening.parts) == "I cannot"


def said(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([said(content=None, refusal="No.")], ["refusal"]),
        ([said(content="Well", refusal=None)], []),
        ([said(content="", refusal="As an AI, no.")], ["refusal", "about-itself"]),
        ([{"choices": [{"index": 1, "delta": {"refusal": "No."}}]}], None),
        ([{"choices": [{"index": 0, "delta": {"refusal": piece}}]} for piece in ("N", "o.")], ["refusal"]),
        ([{"type": "response.refusal.delta", "delta": "No."}], ["refusal"]),
        ([{"object": "response", "output": [{"content": [{"type": "refusal", "refusal": "No."}]}]}], ["refusal"]),
        ([{"type": "message", "content": [], "stop_reason": "refusal"}], ["refusal"]),
        ([{"type": "message_delta", "delta": {"stop_reason": "refusal"}}], ["refusal"]),
        ([{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}], None),
    ],
)
def test_an_answer_that_is_told_to_be_a_refusal_is_one(messages: list[dict[str, Any]], found: list[str] | None) -> None:
    """By a field of its own it is known without a phrase, streamed or whole; its words are looked at like others."""
    answer = Answer(opening=Opening(40))
    unwatched = Answer()
    for message in messages:
        answer.read(message)
        unwatched.read(message)
    assert answer.opening is not None
    assert MARKERS.found(answer.opening) == found
    assert (answer.seen, answer.has_output) == (unwatched.seen, unwatched.has_output)


def test_a_refusal_needs_no_list() -> None:
    """A file without that group finds those that are told."""
    assert Markers(9, {}).found(Opening(9, refuses=True)) == ["refusal"]
