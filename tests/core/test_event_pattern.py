"""Events that are like the one before: what is known of them unparsed is what parsing would have told."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rolecall.core.answer import Answer
from rolecall.core.answer_shape import AnswerShape
from rolecall.core.endpoints import CHAT
from rolecall.core.engine_errors import Asked
from rolecall.core.event_pattern import EventPattern
from rolecall.core.models import ReasoningField
from rolecall.core.sse import StreamWatch, encode

FORMS: list[ReasoningField] = ["as_is", "reasoning_content", "reasoning", "think", "drop"]
HEAD, TAIL = b'data: {"choices":[{"index":0,"delta":{"content":"', b'"}}]}\n\n'


def chunk(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    """Return a chunk of a chat."""
    return {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


texts = st.text(max_size=6) | st.sampled_from(
    ["a", "b", "<think>", "</think>", "</thi", "\n", '"', "\\", "世界", '","']
)
said = st.sampled_from(["content", "reasoning_content", "reasoning", "refusal"])
chunks = st.builds(lambda name, text: chunk(**{name: text}), said, texts)
odd = st.sampled_from(
    [
        chunk("stop", content="x"),
        chunk("length"),
        chunk(index=1, content="y"),
        chunk(role="assistant", content=""),
        chunk(content="a", reasoning="b"),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": "{"}}]),
        {**chunk(content="z"), "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}},
        {"choices": [{"text": "legacy"}]},
        {"choices": [{"delta": {"content": "both"}}, {"index": 1, "delta": {"content": "both"}}]},
        {"choices": [{"delta": {"content": "l"}, "logprobs": {"content": [{"token": "l"}]}}]},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "m"}},
        {"error": {"message": "out of memory"}},
        {"content": "no choice", "choices": [{"delta": {"content": "x"}}]},
    ]
)
runs = st.lists(st.lists(chunks, max_size=1) | st.lists(odd, max_size=2) | st.lists(chunks, min_size=2, max_size=5))


def event(message: dict[str, Any], *, ascii_only: bool = False, spaces: bool = False) -> bytes:
    """Return an event as some engine writes it."""
    separators = (", ", ": ") if spaces else (",", ":")
    return b"data: %b\n\n" % json.dumps(message, ensure_ascii=ascii_only, separators=separators).encode()


def shape(form: ReasoningField, *, in_thought: bool) -> AnswerShape:
    """Return what shapes a chat's answer."""
    return AnswerShape(Asked(CHAT, "m"), form, starts_in_thought=in_thought)


def parsed(events: list[bytes], shape: AnswerShape) -> tuple[Answer, tuple[int, int], bytes]:
    """Return what is read, and what goes on, if each event is parsed."""
    answer, went = Answer(), b""
    for each in events:
        message = json.loads(each[6:])
        shaped = shape.rewrite(message)
        answer.read(shaped)
        went += each if shaped is message else encode(shaped)
    held = shape.flush()
    if held is not None:
        answer.read(held)
        went += encode(held)
    return answer, answer.seen, went


PLAIN = {"ascii_only": False, "spaces": False}


@given(
    runs=runs,
    style=st.fixed_dictionaries({"ascii_only": st.booleans(), "spaces": st.booleans()}),
    form=st.sampled_from(FORMS),
    in_thought=st.booleans(),
    at=st.lists(st.integers(min_value=0), max_size=10),
)
@example(runs=[[chunk(reasoning=each) for each in "abc"]], style=PLAIN, form="think", in_thought=False, at=[])
@example(
    runs=[[chunk(reasoning="a"), chunk(reasoning="a"), chunk(content="b"), chunk(reasoning="c")]],
    style=PLAIN,
    form="think",
    in_thought=False,
    at=[],
)
@example(runs=[[chunk(reasoning=each) for each in "abc"]], style=PLAIN, form="drop", in_thought=False, at=[])
@example(
    runs=[[chunk(content=each) for each in ("<think>", "a", "a", "</think>", "b")]],
    style=PLAIN,
    form="reasoning",
    in_thought=False,
    at=[],
)
def test_it_is_as_if_each_were_parsed(
    runs: list[list[dict[str, Any]]], style: dict[str, bool], form: ReasoningField, at: list[int], *, in_thought: bool
) -> None:
    """Facts and bytes are the same, whatever the events say, in whatever form, and wherever the stream is cut."""
    events = [event(each, **style) for run in runs for each in run]
    stream = b"".join(events)
    places = sorted({0, len(stream), *(place % (len(stream) + 1) for place in at)})
    pieces = [stream[start:end] for start, end in pairwise(places)]
    for cut in (pieces, events):
        watch = StreamWatch(Answer(), hide_usage=False, rewriter=shape(form, in_thought=in_thought))
        went = b"".join([*map(watch.feed, cut), watch.close()])
        assert (watch.answer, watch.answer.seen, went) == parsed(events, shape(form, in_thought=in_thought))


def pattern_of(came: bytes, went: bytes | None = None) -> EventPattern | None:
    """Return the pattern of an event that went on as another, or as the same."""
    went = came if went is None else went
    return EventPattern.of(came, went, json.loads(went.partition(b"data: ")[2] or b"{}"))


def test_a_pattern_is_used() -> None:
    """An event is known by its bytes around the text, if that is plain; what is not like it is not of the pattern."""
    pattern = pattern_of(HEAD + b"Hi" + TAIL)
    assert pattern == EventPattern(HEAD, TAIL, None)
    like = HEAD + "世界 ".encode() + TAIL
    assert pattern.size_of(like) == 7
    assert pattern.pass_on(like) is like
    for text in (b"", b'a"b', b"a\\n", b"a\nb", b"x" * 70_000):
        assert pattern.size_of(HEAD + text + TAIL) == 0
    for other in (HEAD + b"Hi", b"Hi" + TAIL, HEAD[:-1] + TAIL, like + like, like + b"\n"):
        assert pattern.size_of(other) == 0


def test_a_pattern_of_what_is_rewritten() -> None:
    """The text goes on in the other form."""
    came = HEAD.replace(b"content", b"reasoning") + b"Hi" + TAIL
    pattern = pattern_of(came, HEAD + b"Hi" + TAIL)
    assert pattern is not None
    assert pattern.size_of(came) == 2
    assert pattern.pass_on(came) == HEAD + b"Hi" + TAIL


@pytest.mark.parametrize(
    ("came", "went"),
    [
        (HEAD + b"Hi" + TAIL, HEAD + b"HI" + TAIL),
        (HEAD + b"Hi" + TAIL, b""),
        (HEAD + b"a\\n" + TAIL, None),
        (HEAD + b'Hi","text":"Hi' + TAIL, None),
        (HEAD + b'","refusal":"No' + TAIL, None),
        (HEAD + b'Hi","refusal":"No' + TAIL, None),
        (HEAD + b'Hi"},"finish_reason":"stop","x":{"y":"z' + TAIL, None),
        (HEAD.replace(b'"choices"', b'"usage":{"prompt_tokens":1},"choices"') + b"Hi" + TAIL, None),
        (b'data: {"content":"Hi"}\n\n', None),
    ],
)
def test_what_makes_no_pattern(came: bytes, went: bytes | None) -> None:
    """Events that say more than a text, or whose text is not certain, or is changed."""
    assert pattern_of(came, went) is None
