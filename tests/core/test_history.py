"""What the policies drop of a history, and how they are configured."""

from __future__ import annotations

from typing import Any

import pytest

from builders import entry
from rolecall.core.history import Cut, HistoryPolicy, truncate, wish_of, without_reasoning
from rolecall.core.models import HistoryRules
from rolecall.errors import BadRequest

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
REASONING = HistoryPolicy(reasoning_truncate=True)


def say(role: str, content: Any = "x", **fields: Any) -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": content, **fields}


def show(text: str = "what is it?") -> dict[str, Any]:
    """Return a user's message with a picture."""
    return say("user", [{"type": "text", "text": text}, PICTURE])


SYSTEM = say("system", "Be brief.")
ALBUM = [SYSTEM, show("1"), say("assistant", "a"), show("2"), say("assistant", "b"), show("3")]


# -- pictures


def test_a_new_picture_makes_the_earlier_turns_go() -> None:
    """With a picture in the current turn, the system message and this turn stay; what went is counted."""
    cut = truncate(ALBUM, HistoryPolicy())
    assert cut.messages == [SYSTEM, ALBUM[5]]
    assert cut.summary() == "messages=4 images=2"


def test_a_question_in_words_keeps_all() -> None:
    """Without a picture in the current turn nothing goes: the question may be about an earlier one."""
    messages = [*ALBUM, say("assistant", "c"), say("user", "And what colour was it?")]
    cut = truncate(messages, HistoryPolicy())
    assert cut.messages is messages
    assert (cut.is_cut, cut.summary()) == (False, None)


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        (HistoryPolicy(vision_keep_last_n_turns=1), [0, 3, 4, 5]),
        (HistoryPolicy(vision_keep_last_n_turns=9), [0, 1, 2, 3, 4, 5]),
        (HistoryPolicy(vision_keep_system=False), [5]),
        (HistoryPolicy(vision_truncate=False), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_how_much_stays_with_a_new_picture(policy: HistoryPolicy, left: list[int]) -> None:
    """So many turns before the current one stay, and the system messages unless told otherwise."""
    assert truncate(ALBUM, policy).messages == [ALBUM[index] for index in left]


def test_a_picture_in_a_tools_result_counts() -> None:
    """A tool that shows a picture in the current turn makes the earlier turns go, and its call stays with it."""
    call = say("assistant", None, tool_calls=[{"id": "1", "type": "function"}])
    now = [say("user", "Look at the screen."), call, say("tool", [PICTURE], tool_call_id="1")]
    assert truncate([*ALBUM[:3], *now], HistoryPolicy()).messages == [SYSTEM, *now]


# -- reasoning


def test_reasoning_makes_older_turns_go_and_goes_itself() -> None:
    """The last turn stays without its reasoning, older ones go; the current turn keeps its own."""
    old = [say("user", "1"), say("assistant", "a", reasoning_content="hm")]
    last = [say("user", "2"), say("assistant", "b", reasoning="hm", refusal=None)]
    now = [say("user", "3"), say("assistant", "<think>so</think>c", reasoning_content="hm"), say("tool", "d")]
    messages = [SYSTEM, *old, *last, *now]
    assert truncate(messages, HistoryPolicy()).messages is messages
    cut = truncate(messages, REASONING)
    assert cut.messages == [SYSTEM, last[0], say("assistant", "b", refusal=None), *now]
    assert cut.messages[4] is now[1]
    assert cut.summary() == "messages=2 images=0 reasoning=1"
    assert "reasoning" in last[1]


def test_a_conversation_without_reasoning_keeps_all() -> None:
    """Clients that do not send reasoning back lose nothing."""
    messages = [say("user"), say("assistant"), say("user", "<think>"), say("assistant", reasoning=None), say("user")]
    assert truncate(messages, REASONING).messages is messages


def test_both_policies_together() -> None:
    """Where both drop, fewer turns stay, and system messages only if both keep them."""
    messages = [*ALBUM[:2], say("assistant", "<think>x</think>a"), *ALBUM[3:]]
    both = HistoryPolicy(vision_keep_last_n_turns=2, reasoning_truncate=True, reasoning_keep_system=False)
    assert truncate(messages, both).messages == ALBUM[3:]


@pytest.mark.parametrize(
    ("content", "plain"),
    [
        ("<think>a\nb</think>\n\nc", "c"),
        ("a</think>c", "c"),
        ("<think>a</think>b</think> c ", "c "),
        ("<think>cut off", ""),
        ("a</think> <think>b", ""),
        ("c", "c"),
        ("say <think> to think", "say <think> to think"),
        (None, None),
        (7, 7),
        ([{"type": "text", "text": "<think>a</think>c"}], [{"type": "text", "text": "c"}]),
        ([{"type": "reasoning", "text": "a"}, {"type": "text", "text": "c"}], [{"type": "text", "text": "c"}]),
        (["x", {"type": ["text"]}, None], ["x", {"type": ["text"]}, None]),
    ],
)
def test_thoughts_in_a_content(content: Any, plain: Any) -> None:
    """What follows the thoughts is left; a message without any is returned itself, and so is a user's."""
    message = say("assistant", content)
    assert without_reasoning(message) == say("assistant", plain)
    assert (without_reasoning(message) is message) == (content == plain)
    assert without_reasoning(say("user", content)) == say("user", content)


# -- configuration


def test_a_policy_comes_from_settings_registry_and_header() -> None:
    """Settings first, then what the entry says itself, then what the request asks for."""
    settings = {"vision_truncate_history": False, "vision_keep_last_n_turns": 3, "history_fit": "all", "port": 8100}
    policy = HistoryPolicy.of_settings(settings)
    assert policy == HistoryPolicy(vision_truncate=False, vision_keep_last_n_turns=3, fit="all")
    rules = entry(
        history={"vision_keep_last_n_turns": 0, "history_fit": None, "reasoning_truncate_history": True}
    ).history
    own = policy.for_model(rules)
    assert own == HistoryPolicy(vision_truncate=False, fit="all", reasoning_truncate=True)
    assert policy.for_model(HistoryRules()) == policy
    assert own.as_asked(None) is own.as_asked("  ") is own


def test_what_a_request_may_ask_for() -> None:
    """``keep`` loses nothing, ``truncate`` turns both policies on, ``fit`` cuts only to the context."""
    policy = HistoryPolicy(vision_keep_last_n_turns=2)
    assert policy.as_asked("keep") == HistoryPolicy(vision_truncate=False, vision_keep_last_n_turns=2, fit="off")
    assert policy.as_asked(" Truncate ") == HistoryPolicy(vision_keep_last_n_turns=2, reasoning_truncate=True)
    assert policy.as_asked("fit") == HistoryPolicy(vision_truncate=False, vision_keep_last_n_turns=2, fit="all")
    with pytest.raises(BadRequest, match=r"'all'; it takes one of keep, truncate, fit"):
        policy.as_asked("all")


@pytest.mark.parametrize(
    ("lines", "wish"),
    [([], None), ([" "], None), ([" Keep "], "keep"), (["keep", "KEEP"], "keep"), (["fit", "keep", ""], "fit, keep")],
)
def test_a_header_that_is_sent_twice_says_one_thing(lines: list[str], wish: str | None) -> None:
    """Lines that differ are no wish that is known, so they are refused."""
    assert wish_of(lines) == wish
    if wish == "fit, keep":
        with pytest.raises(BadRequest, match="'fit, keep'; it takes one of"):
            HistoryPolicy().as_asked(wish)


def test_two_cuts_are_one() -> None:
    """What was dropped first and what was dropped then are counted together."""
    both = Cut(["b"], 1, 2, 3).after(Cut(["a", "b"], 10, 20, 30))
    assert both == Cut(["b"], 11, 22, 33)
    assert Cut([], 0, 0, 2).summary() == "messages=0 images=0 reasoning=2"


def test_the_counts_of_a_cut_hold_no_messages() -> None:
    """They are kept for longer than the request, whose pictures are large."""
    cut = Cut([{"role": "user", "content": "hi"}], 3, 2, 1)
    assert cut.counted() == Cut((), 3, 2, 1)
    assert cut.counted().summary() == cut.summary()
