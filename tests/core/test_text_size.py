"""What is measured of a text: every kind is counted, parts add up, images are never looked at, and it is fast."""

from __future__ import annotations

import sys
import time
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.text_size import (
    MOST_CHARACTERS,
    NOTHING,
    TextSize,
    measure,
    measure_message,
    measure_text,
    measure_tools,
    total,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def characters(size: TextSize) -> int:
    """All characters that were counted."""
    ascii_ones = size.lower + size.upper + size.digits + size.spaces + size.layout + size.marks
    return ascii_ones + size.two_bytes + size.three_bytes + size.four_bytes


def test_every_kind_is_counted() -> None:
    """Letters, digits, spaces, line ends, marks, and other characters by their length; and the runs of them."""
    size = measure_text("Hello, extraordinary World 42!\n\n  naïve 你好 👍")
    assert size == TextSize(
        lower=25,
        upper=2,
        digits=2,
        spaces=7,
        layout=2,
        marks=2,
        two_bytes=1,
        three_bytes=2,
        four_bytes=1,
        words=5,
        long_words=1,
        mark_runs=2,
        chunks=7,
        layout_runs=1,
        wide_runs=3,
    )
    assert size.text_bytes == len("Hello, extraordinary World 42!\n\n  naïve 你好 👍".encode())


def test_nothing_has_no_size() -> None:
    """An empty text, and a body in which nothing is to be read."""
    assert measure_text("") == measure({}) == measure({"messages": 3, "tools": 4, "prompt": [1, 2]}) == NOTHING


@given(st.text(max_size=200))
def test_each_character_is_counted_once(text: str) -> None:
    """Except for the vertical tab, which separates texts that are measured together."""
    assert characters(measure_text(text)) == len(text.replace("\v", ""))


def test_lone_surrogates_are_counted() -> None:
    """JSON can hold half of a character, which UTF-8 cannot."""
    assert measure_text("\ud800").three_bytes == 1


def test_a_message_has_all_that_a_template_writes() -> None:
    """Role, name, text and tool calls; past reasoning is kept apart."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    size = measure_message({"role": "assistant", "name": "al", "content": "yes", "tool_calls": [call]})
    plain = measure_message({"role": "assistant", "name": "al", "content": "yes"})
    assert plain.lower == len("assistantalyes")
    assert size.mark_runs > plain.mark_runs
    thought = measure_message({"role": "assistant", "content": "yes", "reasoning_content": "hm ü", "reasoning": "hm ü"})
    assert (thought.reasoning, thought.lower) == (5, len("assistantyes"))
    assert thought.messages == 1


def test_parts_are_read_and_images_counted() -> None:
    """Texts of parts count as text, images as images, in results of tools, too."""
    result = {"type": "tool_result", "content": [{"type": "text", "text": "sun"}, {"type": "image", "source": {}}]}
    parts = [{"type": "text", "text": "abc"}, PICTURE, result, "de", 7, {"type": "tool_use", "input": {"city": "Rome"}}]
    size = measure_message({"role": "user", "content": parts})
    assert size.images == 2
    assert size.lower == len("userabcsundecityome")
    assert size.upper == 1


class Untouched(dict[str, str]):
    """Fails whoever reads it."""

    def _fail(self, *_: object) -> NoReturn:
        raise AssertionError("the picture was read")

    __getitem__ = __iter__ = __len__ = __contains__ = get = items = keys = values = _fail


def test_images_are_never_looked_at() -> None:
    """A picture may have 30 MB: that there is one is all that is read of it."""
    picture = {"type": "image_url", "image_url": Untouched()}
    body = {"messages": [{"role": "user", "content": [picture]}]}
    assert measure(body) == TextSize(lower=4, words=1, chunks=1, messages=1, images=1)


def test_tools_count_as_the_json_that_templates_write() -> None:
    """Each tool is counted, and its text."""
    size = measure_tools({"tools": [TOOL, TOOL], "functions": [{"name": "f"}]})
    assert size.tools == 3
    assert size.mark_runs > 20
    assert measure({"tools": [TOOL]}) == measure_tools({"tools": [TOOL]})
    assert measure_tools({}) == NOTHING


def test_tools_that_are_no_json_count_as_nothing() -> None:
    """What cannot be written as JSON is left to the engine."""
    assert measure_tools({"tools": [{"x": {1}}]}) == TextSize(tools=1)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "one two"},
        {"prompt": ["one", " two"]},
        {"input": "one two"},
        {"input": ["one", " two"]},
        {"instructions": "one two"},
        {"system": [{"type": "text", "text": "one two"}]},
        {"messages": [{"content": "one two"}]},
        {"input": [{"type": "message", "content": [{"type": "input_text", "text": "one two"}]}]},
        {"input": [{"type": "function_call_output", "output": "one two"}]},
    ],
)
def test_other_endpoints_have_their_text_elsewhere(body: dict[str, Any]) -> None:
    """The text of each endpoint's body is found."""
    size = measure(body)
    assert (size.lower, size.words) == (6, 2)


def test_parts_add_up() -> None:
    """Messages that are measured one by one have, together, the size of the conversation."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What\nis it?"}, PICTURE]},
        {"role": "assistant", "content": "A cat, 你好 👍"},
    ]
    parts = [measure_message(message) for message in messages]
    assert total(parts) == parts[0] + parts[1] + parts[2] == measure({"messages": messages})
    assert total([]) == NOTHING


@pytest.mark.parametrize(
    "text", ["the quick brown fox, 42 times.\n", "今天天气很好,我们去公园。", "if (x) {\n\treturn 你;\n}\n"]
)
def test_a_long_text_is_measured_by_slices(text: str) -> None:
    """Beyond a limit all counts are near those of the whole, and it takes a few milliseconds."""
    repeats = 8 * MOST_CHARACTERS // len(text)
    whole, one = measure_text(text * repeats), measure_text(text * 50)
    for name in TextSize.__slots__:
        expected = getattr(one, name) / 50 * repeats
        assert getattr(whole, name) == pytest.approx(expected, rel=0.05, abs=len(text) * repeats / 200), name
    start = time.process_time()  # of this process alone, however busy the machine is
    measure_text(text * repeats)
    assert time.process_time() - start < 0.05


@given(st.text(max_size=100), st.text(max_size=100))
def test_more_text_is_never_less(text: str, more: str) -> None:
    """No count falls when text is added at its end."""
    before, after = measure_text(text), measure_text(text + more)
    assert all(getattr(after, name) >= getattr(before, name) for name in TextSize.__slots__)


@given(st.dictionaries(st.sampled_from(["messages", "tools", "input", "prompt", "system", "functions"]), JSON))
def test_any_body_can_be_measured(body: dict[str, Any]) -> None:
    """Whatever is where messages should be, it is measured or passed over."""
    assert measure(body).text_bytes >= 0


def test_deep_json_in_a_tool_is_passed_over() -> None:
    """Nesting that JSON's writer cannot follow counts as nothing."""
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit() * 100):
        deep = [deep]
    assert measure_tools({"tools": [deep]}).tools == 1
