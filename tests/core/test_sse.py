"""Reading a stream as it passes, wherever it is split."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rolecall.core.sse import MAX_EVENT_BYTES, Answer, StreamWatch

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}}


def event(message: Any, end: str = "\n\n") -> bytes:
    return b"data: " + json.dumps(message, ensure_ascii=False).encode() + end.encode()


def delta(**said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": None}]}


FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE_ONLY = {"choices": [], "usage": USAGE}
STORY = [delta(role="assistant", content=""), delta(content="Grüße, "), delta(content="世界 🌍"), FINISH, USAGE_ONLY]


def watched(*pieces: bytes, hide_usage: bool = False) -> tuple[Answer, bytes]:
    """Return what was read from a stream that came in ``pieces``, and what went on to the client."""
    answer = Answer(keeps_text=True)
    watch = StreamWatch(answer, hide_usage=hide_usage)
    passed = b"".join([*map(watch.feed, pieces), watch.close()])
    return answer, passed


def split(stream: bytes, at: list[int]) -> list[bytes]:
    """Cut a stream at the given places."""
    places = sorted({0, len(stream), *(place % (len(stream) + 1) for place in at)})
    return [stream[start:end] for start, end in pairwise(places)]


cuts = st.lists(st.integers(min_value=0), max_size=20)
ends = st.sampled_from(["\n\n", "\r\n\r\n", "\r\n\n", "\n\r\n", "\r\r"])
chunks = st.sampled_from([*STORY, {"error": {"message": "out of memory"}}, {"choices": [], "usage": None}, [], 5])
noise = st.sampled_from(
    [": ping\n\n", ":\n\n", "event: x\nid: 1\n\n", "data:\n\n", "\n\n", "data: {broken\n\n", "\xff\n\n", "\x00"]
)
events = st.builds(event, chunks, ends) | noise.map(lambda text: text.encode("latin-1")) | st.just(DONE)
streams = st.lists(events, max_size=10).map(b"".join)


# -- splits


@given(stream=streams, at=cuts, hide_usage=st.booleans())
def test_splits_change_nothing(stream: bytes, at: list[int], *, hide_usage: bool) -> None:
    """However a stream is cut, the same is read from it and the same bytes go on."""
    assert watched(*split(stream, at), hide_usage=hide_usage) == watched(stream, hide_usage=hide_usage)


@given(stream=st.binary(max_size=200) | streams, at=cuts, hide_usage=st.booleans())
def test_all_else_passes(stream: bytes, at: list[int], *, hide_usage: bool) -> None:
    """What holds nothing that is kept from clients passes unchanged: events, and what is no event stream at all."""
    assume(not any(line.split(b":")[0] in {b"id", b"retry", b""} and line.strip() for line in stream.splitlines()))
    assume(not hide_usage or b'"usage": {' not in stream)
    assume(not re.search(rb"data:\s*null", stream))
    assume(b'"error"' not in stream or b"[DONE]" not in stream)
    assert watched(*split(stream, at), hide_usage=hide_usage)[1] == stream


@pytest.mark.parametrize(
    ("came", "passes"),
    [
        (":\n\n", ": ping\n\n"),
        (": \r\n\r\n", ": ping\r\n\r\n"),
        (":\r\r", ": ping\r\r"),
        (":", ": ping"),
        (": hm\n:\ndata: 5\n\n", ": hm\n: ping\ndata: 5\n\n"),
        ("id: 5\n\n", ""),
        ("id\n\n", ""),
        ("id", ""),
        ("retry: 3000\r\n\r\n", ""),
        ("data: null\n\n", ""),
        ("data:null\r\n\r\ndata: 5\n\n", "data: 5\n\n"),
        ('data: "null"\n\n', 'data: "null"\n\n'),
        ("event: x\r\nid:5\r\nretry: 3\r\ndata: 5\r\n\r\n", "event: x\r\ndata: 5\r\n\r\n"),
        ('data: {"id": "id: 5", "text": ":"}\n\n', 'data: {"id": "id: 5", "text": ":"}\n\n'),
        ("idle: 5\nretrying\n id: 5\n::\n\n", "idle: 5\nretrying\n id: 5\n::\n\n"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 99])
def test_what_clients_stumble_over_does_not_reach_them(came: str, passes: str, pieces: int) -> None:
    """``id``, ``retry`` and null are left out, empty comments get a word, whatever the line ends; all else stays."""
    size = -(-len(came) // pieces)
    cut = [came[at : at + size].encode() for at in range(0, len(came), size)]
    assert watched(*cut)[1] == passes.encode()


@given(messages=st.lists(chunks | st.just(USAGE_ONLY), max_size=8), end=ends.filter(lambda end: end != "\r\r"), at=cuts)
def test_only_the_usage_event_is_hidden(messages: list[Any], end: str, at: list[int]) -> None:
    """With ``hide_usage`` the events that hold nothing but the usage are missing, and nothing else."""
    stream = b"".join(event(message, end) for message in messages)
    answer, passed = watched(*split(stream, at), hide_usage=True)
    assert passed == b"".join(event(message, end) for message in messages if message != USAGE_ONLY)
    assert (answer.prompt_tokens == 7) == (USAGE_ONLY in messages)


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\n\n", "\n\r\n", "\r\r"])
def test_line_ends(end: str) -> None:
    """Events may end with any of the line ends that the standard knows, byte by byte."""
    stream = b"".join(event(message, end) for message in STORY) + b"data: [DONE]" + end.encode()
    answer, passed = watched(*(bytes([byte]) for byte in stream), hide_usage=True)
    assert "".join(answer.text) == "Grüße, 世界 🌍"
    assert answer.prompt_tokens == 7
    assert passed == stream.replace(event(USAGE_ONLY, end), b"")


def test_an_event_goes_on_as_soon_as_it_is_whole() -> None:
    """Where usage is hidden an event is held back only until its last byte is there."""
    watch = StreamWatch(Answer(), hide_usage=True)
    whole = event(delta(content="x"))
    assert watch.feed(whole[:-1]) == b""
    assert watch.feed(whole[-1:] + whole[:5]) == whole
    assert watch.close() == whole[:5]
    assert watch.close() == b""


@pytest.mark.parametrize("hide_usage", [False, True])
def test_last_event_needs_no_blank_line(*, hide_usage: bool) -> None:
    """What the end of the stream cuts off just before its blank line is read; hidden if it is the usage."""
    assert watched(b"data: [DONE]\n", hide_usage=hide_usage)[0].is_complete
    answer, passed = watched(event(FINISH), event(USAGE_ONLY, ""), hide_usage=hide_usage)
    assert answer.completion_tokens == 3
    assert passed == event(FINISH) + (b"" if hide_usage else event(USAGE_ONLY, ""))


def test_stream_that_breaks_off_is_not_complete() -> None:
    """Half an event is no end."""
    answer, passed = watched(event(delta(content="x")), event(FINISH, "")[:-3], hide_usage=True)
    assert not answer.is_complete
    assert passed.endswith(event(FINISH, "")[:-3])


@pytest.mark.parametrize("hide_usage", [False, True])
@pytest.mark.parametrize("piece", [2**16, 2**26])
def test_huge_event_passes_unread_and_the_rest_is_read(piece: int, *, hide_usage: bool) -> None:
    """An event beyond the limit passes without being kept or read, whole or in part; what comes after it is read."""
    huge = b"data: " + b"x" * (MAX_EVENT_BYTES * 3 // 2) + b'\ndata: {"error": "not to be read"}\n\n'
    stream = event(delta(content="before")) + huge + event(FINISH) + event(USAGE_ONLY) + DONE
    pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)]
    answer, passed = watched(*pieces, hide_usage=hide_usage)
    assert answer.text == ["before"]
    assert (answer.finish_reason, answer.prompt_tokens, answer.error) == ("stop", 7, None)
    assert passed == (stream.replace(event(USAGE_ONLY), b"") if hide_usage else stream)


@pytest.mark.parametrize(("more", "is_read"), [(0, True), (1, False)])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_limit_of_an_event_is_the_same_however_it_is_split(more: int, pieces: int, *, is_read: bool) -> None:
    """An event of just the limit is read, one byte more is not, wherever it is cut."""
    frame = event(delta(content=""))
    whole = event(delta(content="x" * (MAX_EVENT_BYTES - len(frame) + more)))
    cut = len(whole) - pieces + 1
    answer, _ = watched(whole[:cut], *(bytes([byte]) for byte in whole[cut:]), hide_usage=True)
    assert answer.has_output is is_read


def test_huge_event_is_not_kept_in_memory() -> None:
    """Of an event that never ends no more than the limit is held back."""
    watch = StreamWatch(Answer(), hide_usage=True)
    sent = passed = 0
    for _ in range(12):
        sent += 2**20
        passed += len(watch.feed(b"x" * 2**20))
        assert sent - passed <= MAX_EVENT_BYTES
    assert watch.close() != b""


# -- rewriting


class Shout:
    """Says what chunks say in capitals, holds back what ends in ``…``, and leaves all else alone."""

    def __init__(self) -> None:
        self.held: list[str] = []

    def rewrite(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk in capitals."""
        text = message.get("text")
        if not isinstance(text, str) or text.isupper():
            return message
        if text.endswith("…"):
            self.held.append(text)
        return {**message, "text": text.upper()}

    @property
    def is_steady(self) -> bool:
        """All messages are treated alike, if they hold nothing back."""
        return not self.held

    def flush(self) -> dict[str, Any] | None:
        """Return what was held back, once."""
        held, self.held = self.held, []
        return {"choices": [{"text": "".join(held)}]} if held else None


SAYINGS = [{"text": "ja"}, {"text": "JA"}, {"text": "ja…"}, {"type": "ping", "text": "x"}, {"type": "a b", "text": "y"}]


def rewritten(*pieces: bytes) -> bytes:
    watch = StreamWatch(Answer(), hide_usage=False, rewriter=Shout())
    return b"".join([*map(watch.feed, pieces), watch.close()])


@given(messages=st.lists(st.sampled_from(SAYINGS) | chunks, max_size=8), end=ends, at=cuts, done=st.booleans())
def test_rewriting_does_not_depend_on_splits(messages: list[Any], end: str, at: list[int], *, done: bool) -> None:
    """Events are rewritten one by one, wherever the stream is cut."""
    stream = b"".join(event(message, end) for message in messages) + (DONE if done else b"")
    assert rewritten(*split(stream, at)) == rewritten(stream)


def test_only_what_changes_is_written_anew() -> None:
    """A message that stays what it is passes byte for byte, its event's other lines too; events have their names."""
    same = b': hm\nevent: x\ndata: {"text":   "JA"}\r\n\r\n'
    assert rewritten(same) == same
    assert rewritten(b"id: 7\n" + same) == same
    assert rewritten(event({"text": "ja"})) == b'data: {"text":"JA"}\n\n'
    assert rewritten(event({"type": "ping", "text": "x"})) == b'event: ping\ndata: {"type":"ping","text":"X"}\n\n'
    assert rewritten(event({"type": "a\nb", "text": "x"})) == b'data: {"type":"a\\nb","text":"X"}\n\n'
    assert rewritten(event([5])) == event([5])


@pytest.mark.parametrize("last", [DONE, b""])
def test_what_was_held_back_comes_before_the_end(last: bytes) -> None:
    """Before the last mark, or where the stream breaks off, what was held back is let go, once, and read."""
    watch = StreamWatch(Answer(keeps_text=True), hide_usage=False, rewriter=Shout())
    held = event({"text": "ja…"})
    passed = watch.feed(held + last) + watch.close() + watch.close()
    assert passed == b'data: {"text":"JA\xe2\x80\xa6"}\n\ndata: {"choices":[{"text":"ja\xe2\x80\xa6"}]}\n\n' + last
    assert watch.answer.text == ["ja…"]


def test_usage_is_hidden_from_rewritten_streams_too() -> None:
    """Both can be asked for."""
    watch = StreamWatch(Answer(), hide_usage=True, rewriter=Shout())
    assert watch.feed(event(USAGE_ONLY) + event({"text": "ja"}) + DONE) == b'data: {"text":"JA"}\n\n' + DONE
    assert watch.answer.prompt_tokens == 7


# -- what is read


def test_story() -> None:
    """Text, finish reason, usage and completion are read from an ordinary stream."""
    answer, _ = watched(*map(event, STORY), DONE)
    assert answer == Answer(
        keeps_text=True,
        prompt_tokens=7,
        completion_tokens=3,
        reasoning_tokens=2,
        finish_reason="stop",
        has_output=True,
        is_complete=True,
        is_over=True,
        text=["Grüße, ", "世界 🌍"],
    )


def test_finish_reason_completes_an_answer() -> None:
    """An answer is whole once it has a finish reason, with or without a ``[DONE]``; and with that alone, too."""
    assert watched(event(FINISH))[0].is_complete
    assert watched(DONE)[0].is_complete
    assert not watched(event(delta(content="x")), event(USAGE_ONLY))[0].is_complete


def test_text_is_kept_only_on_request() -> None:
    """Prompts and answers stay out of memory unless they are to be logged."""
    answer = Answer()
    answer.read(delta(content="secret"))
    assert answer == Answer(has_output=True)


@pytest.mark.parametrize(
    ("choice", "has_output"),
    [
        ({"delta": {"role": "assistant", "content": ""}}, False),
        ({"delta": {"content": "x"}}, True),
        ({"delta": {"reasoning_content": "hm"}}, True),
        ({"delta": {"reasoning": "hm"}}, True),
        ({"delta": {"tool_calls": [{"index": 0}]}}, True),
        ({"delta": {"refusal": "no"}}, True),
        ({"text": "x"}, True),
        ({"text": ""}, False),
        ({"message": {"content": "x"}}, True),
        ({"delta": "x"}, False),
        ({}, False),
    ],
)
def test_first_output(choice: dict[str, Any], *, has_output: bool) -> None:
    """The first token is the first of anything that the model says, of whatever kind; a role is not said."""
    answer = Answer()
    answer.read({"choices": [choice]})
    assert answer.has_output is has_output


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (USAGE, (7, 3, 2)),
        ({"input_tokens": 5, "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 1}}, (5, 4, 1)),
        ({"prompt_tokens": 5, "completion_tokens": "4", "completion_tokens_details": [1]}, (5, None, None)),
        ({}, (None, None, None)),
        ([7, 3], (None, None, None)),
    ],
)
def test_usage(usage: Any, counts: tuple[int | None, ...]) -> None:
    """Tokens are read under either family of names; what is no number is not counted."""
    answer = Answer()
    answer.read({"usage": usage})
    assert (answer.prompt_tokens, answer.completion_tokens, answer.reasoning_tokens) == counts


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ({"message": "out of memory", "code": 500}, "out of memory"),
        ({"code": 500}, "{'code': 500}"),
        ("plain", "plain"),
        ({"message": "x" * 1000}, "x" * 500),
    ],
)
def test_error_in_the_stream_ends_it(error: Any, text: str) -> None:
    """An error event completes the answer, and its message is kept, shortened."""
    answer, _ = watched(event({"error": error}))
    assert answer.error == text
    assert answer.is_complete


def test_comments_and_fields_without_data_say_nothing() -> None:
    """Comments, event names and empty data pass unread."""
    stream = b": ping\n\nevent: x\n\ndata:\n\n\n\n"
    answer, passed = watched(stream, hide_usage=True)
    assert answer == Answer(keeps_text=True)
    assert passed == stream


def test_data_over_several_lines_is_one_message() -> None:
    """The lines of an event's data belong together, comments between them or not."""
    answer, _ = watched(b'event: x\ndata: {"choices":\n: ping\ndata:[{"text": "x"}]}\n\n')
    assert answer.text == ["x"]


def test_whole_answer() -> None:
    """A whole answer is read like a chunk."""
    answer = Answer(keeps_text=True)
    answer.read({"choices": [{"message": {"content": "hi"}, "finish_reason": "length"}, "odd"], "usage": USAGE})
    assert (answer.text, answer.finish_reason, answer.prompt_tokens) == (["hi"], "length", 7)


@pytest.mark.parametrize("message", [[], {"choices": 5}, {"choices": {}}, "text", None])
def test_answer_that_is_none(message: Any) -> None:
    """What is no answer leaves everything unknown."""
    answer = Answer()
    answer.read(message)
    assert answer == Answer()


def test_last_mark_is_noticed() -> None:
    """``[DONE]`` is the end, whatever the engine does with its connection after it."""
    watch = StreamWatch(Answer(), hide_usage=False)
    watch.feed(b'data: {"choices": [{"finish_reason": "stop"}]}\n\n')
    assert not watch.answer.is_over
    watch.feed(b"data: [DONE]\n\n")
    assert watch.answer.is_over


def test_no_last_mark_follows_an_error() -> None:
    """An engine that ends a broken answer as if it were whole is not believed."""
    watch = StreamWatch(Answer(), hide_usage=False)
    assert watch.feed(b'data: {"error":{"message":"m"}}\n\ndata: [DONE]\n\n') == b'data: {"error":{"message":"m"}}\n\n'
    assert watch.answer.is_over
