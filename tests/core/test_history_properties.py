"""Whatever is cut from a conversation, what is left is a conversation: checked on generated ones."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.test_conversation import HOSTILE_MESSAGES
from rolecall.core.conversation import image_positions, parts, split
from rolecall.core.fit import ANSWER_NOTE, IMAGE_NOTE, Costs, costs_of, fit, is_fitted
from rolecall.core.history import Cut, HistoryPolicy, truncate, without_reasoning


def test_what_spares_words_leaves_them_alone_whole() -> None:
    """Policies that are said to spare conversations in words drop nothing of any, and cut none to a context."""
    words = ["a", "<think>hm</think>b", None, {"image_url": "x"}, [{"type": "text", "text": "a"}]]
    for vision, reasoning, way in itertools.product((True, False), (True, False), ("off", "vision", "all")):
        policy = HistoryPolicy(vision_truncate=vision, reasoning_truncate=reasoning, fit=way, vision_keep_system=False)  # type: ignore[arg-type]
        for said in itertools.product(words, repeat=3):
            roles = ("user", "assistant", "user")
            messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
            if policy.spares_words:
                assert truncate(messages, policy) == Cut(messages)
                assert not is_fitted(messages, policy)
        assert policy.spares_words == (not reasoning and way != "all")


NOTE = {"type": "text", "text": IMAGE_NOTE}
ANSWER = {"role": "assistant", "content": ANSWER_NOTE}
PICTURE_TOKENS = st.sampled_from([1, 20, 64, 300])

texts = st.sampled_from(["", "a", "b" * 12, "c" * 60])


contents = st.lists(texts | PICTURE_TOKENS, max_size=4) | texts
"""A text, or parts: a text part for each text, a picture for each number, of so many tokens."""
turns = st.tuples(contents, st.lists(st.tuples(st.sampled_from("12"), contents), max_size=2), st.none() | texts)
"""What the user says, the tool calls by their ids with their results, and the answer if there is one."""


def conversation_of(system: list[str], greeting: bool, spoken: list[Any], thinks: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - drawn
    """Return a conversation; every message has a name of its own, by which it is known again."""
    messages: list[dict[str, Any]] = [{"role": role, "content": "Be brief."} for role in system]
    messages += [{"role": "assistant", "content": "Hello."}] * greeting
    thought = {"reasoning_content": "hm"} if thinks else {}
    for said, calls, answer in spoken:
        messages.append({"role": "user", "content": _content(said)})
        for name, result in calls:
            messages.append({"role": "assistant", "content": None, "tool_calls": [{"id": name}], **thought})
            messages.append({"role": "tool", "tool_call_id": name, "content": _content(result)})
        if answer is not None:
            messages.append({"role": "assistant", "content": ("<think>hm</think>" if thinks else "") + answer})
        if answer == "a":
            messages.append({"role": "system", "content": "Be polite."})
    return [{**message, "name": str(number)} for number, message in enumerate(messages)]


def _content(drawn: Any) -> Any:
    return drawn if isinstance(drawn, str) else [_part(each) for each in drawn]


def _part(drawn: str | int) -> dict[str, Any]:
    if isinstance(drawn, str):
        return {"type": "text", "text": drawn}
    return {"type": "image_url", "image_url": {"url": f"data:,{drawn}"}}


conversations = st.builds(
    conversation_of,
    st.lists(st.sampled_from(["system", "developer"]), max_size=2),
    st.booleans(),
    st.lists(turns, max_size=5),
    st.booleans(),
)
policies = st.builds(
    HistoryPolicy,
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from(["off", "vision", "all"]),
)


def text_tokens(message: Any) -> float:
    """Return a price that is the sum of its parts' prices: four a message, one a character of text."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return 4 + len(content)
    return 4 + sum(len(part["text"]) for part in parts(message) if "text" in part)


def price(messages: Sequence[Any]) -> Costs:
    """Return the costs of generated messages."""
    images = [
        [int(parts(m)[p]["image_url"]["url"].removeprefix("data:,")) for p in image_positions(m)] for m in messages
    ]
    return costs_of(messages, text_tokens, images, overhead=7)


def rest_of(messages: Sequence[Any], left: Sequence[Any]) -> list[int]:
    """Return which messages are left, by number; fails unless they come in order, each itself or with notes."""
    numbers, at = [], 0
    for message in left:
        if message == ANSWER:
            continue
        while not _is_same(messages[at], message):
            at += 1
        numbers.append(at)
        at += 1
    return numbers


def _is_same(before: Any, after: Any) -> bool:
    if before is after or without_reasoning(before) == after:
        return True
    if {**before, "content": None} != {**after, "content": None} or len(parts(before)) != len(parts(after)):
        return False
    pairs = zip(parts(before), parts(after), strict=True)
    return bool(parts(before)) and all(b is a or (a == NOTE and b["type"] == "image_url") for b, a in pairs)


def assert_conversation(messages: Sequence[Any], cut: Cut, *, shortened: bool = False) -> None:
    """Check all that holds of every cut: order, whole turns, results with their calls, the current turn, the counts."""
    conversation = split(messages)
    left = rest_of(messages, cut.messages)
    assert len(left) + cut.dropped_messages == len(messages)
    assert _count(messages) - _count(cut.messages) == cut.dropped_images
    for number, turn in enumerate(conversation.past):
        there = [index for index in turn.indices if index in left]
        is_short = (
            shortened
            and there == [turn.indices[0]]
            and not any(set(t.indices) & set(left) for t in conversation.past[number + 1 :])
        )
        assert there in ([], list(turn.indices)) or is_short
    now = conversation.current.indices
    assert all(
        a is b for a, b in zip(cut.messages[len(cut.messages) - len(now) :], [messages[i] for i in now], strict=True)
    )
    assert _orphans(cut.messages) <= _orphans(messages)


def _count(messages: Sequence[Any]) -> int:
    return sum(len(image_positions(message)) for message in messages)


def _orphans(messages: Sequence[Any]) -> int:
    """Return how many tool results have no call before them."""
    called: set[str] = set()
    orphans = 0
    for message in messages:
        called |= {call["id"] for call in message.get("tool_calls", ())}
        orphans += message["role"] == "tool" and message["tool_call_id"] not in called
    return orphans


# -- truncation


@given(conversations, policies)
def test_what_truncation_leaves(messages: list[Any], policy: HistoryPolicy) -> None:
    """It is a conversation; done twice it is done once; the messages that came are not changed."""
    before = copy.deepcopy(messages)
    cut = truncate(messages, policy)
    assert_conversation(messages, cut)
    assert messages == before
    again = truncate(cut.messages, policy)
    assert again.messages is cut.messages
    assert not again.is_cut


@given(conversations, policies)
def test_what_truncation_never_drops(messages: list[Any], policy: HistoryPolicy) -> None:
    """Nothing goes without a policy that says so; and pictures stay when they are asked about in words."""
    kept = truncate(messages, policy.as_asked("keep"))
    assert kept.messages is messages
    conversation = split(messages)
    is_in_words = not conversation.images(conversation.current)
    if not policy.vision_truncate or is_in_words:
        without_vision = truncate(messages, policy.as_asked("fit"))
        assert without_vision.messages is messages
        cut = truncate(messages, HistoryPolicy(reasoning_truncate=False, vision_truncate=policy.vision_truncate))
        assert cut.messages is messages


@given(conversations, st.integers(0, 3))
def test_how_many_turns_truncation_leaves(messages: list[Any], turns_kept: int) -> None:
    """With a picture in the current turn, system messages, so many turns and the current one are all that is left."""
    conversation = split(messages)
    cut = truncate(messages, HistoryPolicy(vision_keep_last_n_turns=turns_kept))
    if conversation.images(conversation.current):
        kept = conversation.past[-turns_kept:] if turns_kept else ()
        expected = {*conversation.system, *conversation.current.indices, *(i for turn in kept for i in turn.indices)}
        assert rest_of(messages, cut.messages) == sorted(expected)


# -- fit


@given(conversations, policies, st.integers(0, 1500))
def test_what_fit_leaves(messages: list[Any], policy: HistoryPolicy, budget: int) -> None:
    """It is a conversation within the budget or as small as it gets, its costs are those of its messages.

    Done twice it is done once; the messages that came are not changed; nothing goes if it fits or the policy is off.
    """
    before = copy.deepcopy(messages)
    costs = price(messages)
    result = fit(messages, policy, costs, budget)
    assert_conversation(messages, result.cut, shortened=True)
    assert messages == before
    if costs.total <= budget or not is_fitted(messages, policy):
        assert result.cut.messages is messages
    assert price(result.cut.messages).total <= result.costs.total  # a note is priced as a whole message
    again = fit(result.cut.messages, policy, result.costs, budget)
    assert again.cut.messages == result.cut.messages
    assert not again.cut.is_cut


@given(conversations, st.integers(0, 1500))
def test_what_fit_never_drops(messages: list[Any], budget: int) -> None:
    """System messages stay; so does the newest picture when the current turn has none, and all pictures it has."""
    conversation = split(messages)
    result = fit(messages, HistoryPolicy(fit="all"), price(messages), budget)
    left = result.cut.messages
    assert set(conversation.system) <= set(rest_of(messages, left))
    if newest := conversation.newest_image():
        index, number = newest
        part = parts(messages[index])[image_positions(messages[index])[number]]
        assert any(each is part for message in left for each in parts(message))


@given(conversations, st.integers(0, 1500))
def test_fit_drops_no_more_than_it_must(messages: list[Any], budget: int) -> None:
    """A form that is too large is the smallest there is; one that fits would not with one more turn in words."""
    result = fit(messages, HistoryPolicy(fit="all"), price(messages), budget)
    smallest = fit(messages, HistoryPolicy(fit="all"), price(messages), 0)
    assert result.costs.total <= max(budget, smallest.costs.total)
    if result.costs.total > budget:
        assert result.cut.messages == smallest.cut.messages
    else:
        more = fit(messages, HistoryPolicy(fit="all"), price(messages), budget + 1)
        assert more.cut.dropped_messages <= result.cut.dropped_messages


@given(HOSTILE_MESSAGES, policies, st.integers(0, 40))
def test_no_shape_is_trouble(messages: list[Any], policy: HistoryPolicy, budget: int) -> None:
    """Messages of any shape are truncated and fitted without an exception, and the current turn stays."""
    images = [[5.0] * len(image_positions(message)) for message in messages]
    costs = costs_of(messages, lambda message: len(str(message)), images)
    now = [messages[index] for index in split(messages).current.indices]
    for cut in (truncate(messages, policy), fit(messages, policy, costs, budget).cut):
        assert all(a is b for a, b in zip(cut.messages[len(cut.messages) - len(now) :], now, strict=True))
