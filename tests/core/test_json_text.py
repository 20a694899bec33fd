"""How a client's value is shown to it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rolecall.core.json_text import MOST_SHOWN, as_json, as_text, escaped, is_text, no_text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "true"),
        (None, "null"),
        ("a", '"a"'),
        ("é\n", '"é\\n"'),
        ([1, {"b": False}], '[1, {"b": false}]'),
        (1e300, "1e+300"),
    ],
)
def test_a_value_is_shown_as_json(value: Any, shown: str) -> None:
    """A client sees what it wrote, not what it is in Python."""
    assert as_json(value) == shown


@pytest.mark.parametrize("value", ["x" * 10**6, ["x" * 10**6], list(range(1000)), {"x" * 1000: 1}])
def test_a_long_value_is_cut(value: Any) -> None:
    """The end of what is not shown is marked."""
    assert len(as_json(value)) == MOST_SHOWN
    assert as_json(value).endswith("…")


def test_a_deep_value_is_cut() -> None:
    """Depth beyond what Python goes into is never reached."""
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert as_json(value).startswith("[[[[")


@pytest.mark.parametrize(("text", "shown"), [("a", "a"), ("é😀", "é😀"), ("é\ud800", "é�")])
def test_half_a_character_is_no_text(text: str, shown: str) -> None:
    """It is told, can be shown, and is written as JSON's own escape; what is whole stays as it is."""
    assert (is_text(text), as_text(text)) == (text == shown, shown)
    written = escaped(json.dumps(text, ensure_ascii=False))
    assert is_text(written)
    assert json.loads(written) == text


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": ["b", {"c": "d"}], "e": 1, "f": None}, None),
        ({"a": ["b", {"c": "\ud800"}]}, "a.1.c"),
        ({"a": {"\ud800": 1}}, "a.�"),
        ("\udfff", ""),
    ],
)
def test_where_half_a_character_is(value: Any, where: str | None) -> None:
    """Names count as texts; the way to it can be shown."""
    assert no_text(value) == where
