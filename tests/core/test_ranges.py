"""Numbers that no engine can make sense of are refused, by name and with the range; all others pass."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.endpoints import CHAT, COMPLETIONS, DETOKENIZE, EMBEDDINGS, MESSAGES, RERANK
from rolecall.core.ranges import Range, check_counts, check_ranges
from rolecall.errors import BadRequest

INT32 = 2**31 - 1
OVER = float(2**64)
"""What a whole number beyond 64 bits is read as."""


def refusal(body: dict[str, Any], endpoint: str = CHAT) -> BadRequest:
    """Return the error that a body meets."""
    with pytest.raises(BadRequest) as caught:
        check_ranges(body, endpoint)
    return caught.value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n_discard", -1, "a whole number from 0 to 1048576, not -1"),
        ("n_discard", INT32, "a whole number from 0 to 1048576"),
        ("repeat_last_n", INT32, "a whole number from -1 to 1048576"),
        ("dry_penalty_last_n", 2**20 + 1, "a whole number from -1 to 1048576"),
        ("max_tokens", -2, "a whole number from -1 to 2147483647"),
        ("max_tokens", 2**31, "to 2147483647, not 2147483648"),
        ("max_tokens", OVER, "not 1.8446744073709552e+19"),
        ("max_tokens", "100", 'not "100"'),
        ("max_tokens", True, "not true"),
        ("max_tokens", 0.5, "not 0.5"),
        ("max_completion_tokens", 1e300, "to 2147483647"),
        ("n_predict", [1], "not [1]"),
        ("n_predict", "x" * 1000, 'not "xxxxx'),
        ("n", 0, "a whole number from 1 to 16384"),
        ("n", 10**6, "a whole number from 1 to 16384"),
        ("min_keep", -1, "from 0"),
        ("top_k", -2, "from -1"),
        ("top_logprobs", -2, "from -1"),
        ("id_slot", -2, "from -1"),
        ("mirostat", 3, "a whole number from 0 to 2"),
        ("seed", OVER, "from -9223372036854775808 to 18446744073709551615"),
        ("seed", 0.5, "a whole number"),
        ("top_p", 1.1, "a number from 0 to 1, not 1.1"),
        ("temperature", -0.1, "a number from 0 to 3.4e+38"),
        ("temperature", 1e39, "a number from 0 to 3.4e+38"),
        ("presence_penalty", -1e300, "a number from -3.4e+38"),
        ("logprobs", -2, "from -1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(name: str, value: Any, words: str) -> None:
    """The error names the field, its range and what came, and is no longer than a line or two."""
    error = refusal({"model": "m", name: value})
    assert (error.status, error.param) == (400, name)
    assert error.message.startswith(f"The field {name!r} must be a ")
    assert words in error.message
    assert len(error.message) < 250
    assert error.summary(discreetly=True) == f"{error.code}: {error.message.partition(', not ')[0]}."


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"max_tokens": None, "n_discard": None, "thinking": None},
        {"max_tokens": -1, "max_completion_tokens": 0, "n_predict": INT32, "max_output_tokens": 5.0},
        {"n": 1, "n_keep": -1, "n_discard": 0, "top_k": -1, "repeat_last_n": -1, "dry_penalty_last_n": 2**20},
        {"seed": -(2**63), "temperature": 0, "top_p": 1, "min_p": 0.0},
        {"seed": 2**64 - 1, "temperature": 1000.5, "presence_penalty": -2},
        {"logprobs": True, "top_logprobs": 20},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"thinking": {"type": "disabled"}},
        {"thinking": "yes"},
        {"unknown_count": -5, "top_n": -1, "dimensions": -1, "tokens": [-1]},
    ],
)
def test_what_an_engine_may_take_passes(body: dict[str, Any]) -> None:
    """Ends of the ranges, null, and fields that no engine counts with at this endpoint."""
    check_ranges(body, CHAT)


def test_log_probabilities_are_a_number_of_completions() -> None:
    """Only chats take true and false for them."""
    check_ranges({"logprobs": 5}, COMPLETIONS)
    assert refusal({"logprobs": True}, COMPLETIONS).param == "logprobs"


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (RERANK, {"top_n": -1}, "top_n"),
        (EMBEDDINGS, {"dimensions": 0}, "dimensions"),
        (DETOKENIZE, {"tokens": [1, 2, -1]}, "tokens[2]"),
        (DETOKENIZE, {"tokens": ["x"]}, "tokens[0]"),
        (MESSAGES, {"thinking": {"budget_tokens": -2}}, "thinking.budget_tokens"),
    ],
)
def test_fields_of_one_endpoint(endpoint: str, body: dict[str, Any], param: str) -> None:
    """What only one endpoint knows is checked there; a place in a list is named."""
    assert refusal(body, endpoint).param == param


@pytest.mark.parametrize("tokens", [[], [0, INT32], "text", None])
def test_tokens_that_pass(tokens: Any) -> None:
    """Tokens are whole numbers from 0; what is no list is the engine's to refuse."""
    check_ranges({"tokens": tokens}, DETOKENIZE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(["n_discard", "n", "seed", "top_p", "logprobs", "tokens", "thinking", "top_n", "x"])


@given(st.dictionaries(FIELDS, JSON), st.sampled_from([CHAT, COMPLETIONS, RERANK, DETOKENIZE, EMBEDDINGS]))
def test_any_value_is_refused_or_passes(body: dict[str, Any], endpoint: str) -> None:
    """Whatever kind of value a field has, nothing but a clear refusal comes of it."""
    with contextlib.suppress(BadRequest):
        check_ranges(body, endpoint)
    check_counts(body, 10)


@given(st.integers() | st.floats(allow_nan=True, allow_infinity=True))
def test_a_range_holds_what_is_between_its_ends(value: float) -> None:
    """Nothing outside, no part of a number, nothing that is no number."""
    assert Range(-1, 10).takes(value) == (value in range(-1, 11))
    assert Range(0, 1, whole=False).takes(value) == (0 <= value <= 1)


@pytest.mark.parametrize("name", ["messages", "input", "prompt", "documents"])
def test_too_many_entries_are_refused(name: str) -> None:
    """The error names the list, its length, the limit and the setting; a list at the limit passes."""
    check_counts({name: ["x"] * 10}, 10)
    with pytest.raises(BadRequest) as caught:
        check_counts({name: [{}] * 11}, 10)
    assert caught.value.message == f"The field {name!r} has 11 entries; the limit is 10 (setting max_messages)."
    assert caught.value.param == name


def test_a_list_that_begins_with_a_token_is_no_list_of_tokens() -> None:
    """Every entry decides; true is no token."""
    for entries in ([1, *["x"] * 10], [True] * 11):
        with pytest.raises(BadRequest, match="11 entries"):
            check_counts({"input": entries}, 10)


@pytest.mark.parametrize("body", [{}, {"input": "x" * 100}, {"prompt": list(range(100))}, {"messages": None}])
def test_text_and_tokens_are_no_entries(body: dict[str, Any]) -> None:
    """A text is one, and so is a list of tokens."""
    check_counts(body, 10)
