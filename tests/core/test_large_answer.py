"""The usage of a large answer, read without parsing it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.answer import Answer
from rolecall.core.large_answer import is_object, usage_of

USAGE = {"prompt_tokens": 7, "total_tokens": 7}
DATA = [{"index": 0, "embedding": [0.25] * 5000}]


def pieces(text: str, size: int) -> list[bytes]:
    """Cut a text into parts."""
    data = text.encode()
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 4096, 5000, 10**9])
@pytest.mark.parametrize(
    "answer", [{"model": "m", "data": DATA, "usage": USAGE}, {"model": "m", "usage": USAGE, "data": DATA}]
)
@pytest.mark.parametrize("spaces", [None, 1])
def test_usage_before_and_behind_the_data(answer: Any, size: int, spaces: int | None) -> None:
    """It is found at either end, however the answer came."""
    parts = pieces(json.dumps(answer, indent=spaces), size)
    assert usage_of(parts) == USAGE
    assert is_object(parts)


@pytest.mark.parametrize(
    "answer",
    [
        {"data": DATA},
        {"text": json.dumps({"usage": USAGE})},
        {"data": DATA, "usage": USAGE, "more": DATA, "x": "usage"},
        {"list": ["usage"]},
    ],
)
def test_usage_that_is_none(answer: Any) -> None:
    """What only looks like one, or stands in the midst, is not taken for one."""
    parts = pieces(json.dumps(answer), 100)
    if "more" in answer:
        parts = [b" " * 5000, *parts]
    assert usage_of(parts) is None


@pytest.mark.parametrize("text", ['{"usage":', '{"usage":{"a"', '{"usage":' + "[" * 3000, '"usage"', '{"usage": nil}'])
def test_what_is_no_json(text: str) -> None:
    """An answer that is none costs nothing but the usage."""
    assert usage_of([text.encode()]) is None


@pytest.mark.parametrize("parts", [[], [b""], [b"hello}"], [b"{hello"], [b"[1]"]])
def test_what_is_no_object(parts: list[bytes]) -> None:
    """Something else is told by its ends."""
    assert not is_object(parts)


@given(parts=st.lists(st.binary(max_size=30) | st.sampled_from([b'"usage":', b"{", b"}", b"1"])))
def test_nothing_is_trouble(parts: list[bytes]) -> None:
    """Whatever comes is read without an error, and what is made of it is a number of tokens or nothing."""
    answer = Answer()
    answer.read({"usage": usage_of(parts)})
    assert isinstance(answer.prompt_tokens, int | None)
    assert isinstance(is_object(parts), bool)
