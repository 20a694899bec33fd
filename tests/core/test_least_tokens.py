"""What no tokenizer could make short enough for a context is known by its characters alone."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.core.history import HistoryPolicy
from rolecall.core.least_tokens import CHARACTERS_PER_TOKEN, characters, check_can_fit, lasting
from rolecall.errors import ContextLengthExceeded

CONTEXT = 1000
MOST = CONTEXT * CHARACTERS_PER_TOKEN
PICTURE = {"type": "image_url", "image_url": {"url": "x" * 2 * MOST}, "text": "x" * 2 * MOST}


def said(content: Any, role: str = "user") -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "messages",
    [
        [said("x" * (MOST + 1))],
        [said("é " * (MOST + 1))],
        [said("x" * MOST), said("x", "tool")],
        [said([{"type": "text", "text": "x" * MOST}, PICTURE, {"type": "text", "text": "x"}], "system")],
    ],
    ids=["one text", "spaced", "two messages", "two parts"],
)
def test_one_character_too_many_is_refused(messages: list[Any]) -> None:
    """The error has the context, and no number of tokens: that would be a guess."""
    assert characters(messages) > MOST
    with pytest.raises(ContextLengthExceeded, match=f"more than {MOST} characters") as caught:
        check_can_fit(messages, CONTEXT)
    assert (caught.value.needed_tokens, caught.value.context_tokens) == (None, CONTEXT)


@pytest.mark.parametrize(
    "messages",
    [
        [said("x" * MOST)],
        [said("x" * MOST + " \n\t\u3000" * MOST)],
        [said("x" * MOST), said("x" * MOST, "assistant"), said(None), said([PICTURE, 7, {"text": 7}]), 7],
    ],
    ids=["at the limit", "white space", "what may not count"],
)
def test_what_could_fit_passes(messages: list[Any]) -> None:
    """White space may be merged, past reasoning be left out; pictures are no text, and odd things nothing at all."""
    check_can_fit(messages, CONTEXT)


def test_what_a_policy_may_leave_out_does_not_count() -> None:
    """Where a conversation is cut to its context, the current turn is what stays."""
    messages = [said("a", "system"), said("b"), said("c", "assistant"), said("d"), said("e", "tool")]
    assert lasting(messages, HistoryPolicy(fit="all")) == messages[3:]
    assert lasting(messages, HistoryPolicy(fit="vision")) == messages
    assert lasting([*messages, said([PICTURE])], HistoryPolicy(fit="vision")) == [said([PICTURE])]
