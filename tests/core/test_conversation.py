"""A chat in its parts: who belongs to which turn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.conversation import Turn, dispensable_images, image_positions, is_image, role, split

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def chat(*roles: str) -> list[dict[str, Any]]:
    """Return one message a word; ``call:1`` is an assistant's tool call of that id, ``tool:1`` its result."""
    return [_message(word) for word in roles]


def _message(word: str) -> dict[str, Any]:
    who, _, name = word.partition(":")
    if who == "call":
        return {"role": "assistant", "content": None, "tool_calls": [{"id": name, "type": "function"}]}
    return {"role": who, "content": "x"} | ({"tool_call_id": name} if name else {})


@pytest.mark.parametrize(
    ("words", "system", "past", "current"),
    [
        ("", [], [], []),
        ("user", [], [], [0]),
        ("system user", [0], [], [1]),
        ("system developer user assistant user assistant", [0, 1], [[2, 3]], [4, 5]),
        ("assistant assistant user", [], [[0, 1]], [2]),
        ("system assistant user assistant user", [0], [[1], [2, 3]], [4]),
        ("user system assistant user", [1], [[0, 2]], [3]),
        ("user user user", [], [[0], [1]], [2]),
        ("system assistant assistant", [0], [], [1, 2]),
        ("assistant system assistant", [], [], [0, 1, 2]),
        ("system system", [0, 1], [], []),
        ("user call:1 tool:1 assistant user", [], [[0, 1, 2, 3]], [4]),
        ("user call:1 tool:1 user call:1 tool:1", [], [[0, 1, 2]], [3, 4, 5]),
        ("user call:1 user tool:1 user", [], [[0, 1, 2, 3]], [4]),
        ("user call:1 user user tool:1", [], [], [0, 1, 2, 3, 4]),
        ("call:1 user tool:1 user", [], [[0, 1, 2]], [3]),
        ("user tool:1 user", [], [[0, 1]], [2]),
        ("user wizard user", [], [[0, 1]], [2]),
        ("user assistant user system", [], [[0, 1]], [2, 3]),
    ],
)
def test_turns(words: str, system: list[int], past: list[list[int]], current: list[int]) -> None:
    """A user begins a turn, unless between a tool call and its result; system messages belong to no past turn."""
    found = split(chat(*words.split()))
    assert list(found.system) == system
    assert [list(turn.indices) for turn in found.past] == past
    assert found.current == Turn(tuple(current))


def test_pictures_are_found_wherever_they_are() -> None:
    """Each type of picture part counts, in messages of users and of tools; the newest one is the last of all."""
    content = [{"type": "text", "text": "two"}, PICTURE, {"image_url": "x"}, "image", {"type": ["image"]}, None]
    messages = [
        {"role": "user", "content": content},
        *chat("call:1"),
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "image"}]},
    ]
    found = split([*messages, *chat("user")])
    assert image_positions(messages[0]) == (1, 2)
    assert (found.images(found.past[0]), found.images(found.current)) == (3, 0)
    assert found.newest_image() == (2, 0)
    assert split(messages[:1]).newest_image() == (0, 1)
    assert split(chat("user")).newest_image() is None


HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 1)
    | st.sampled_from(["1", "image", "image_url", "text", "<think>", "assistant", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "tool_call_id", "id", "reasoning"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
HOSTILE_MESSAGES = st.lists(
    HOSTILE
    | st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system", "x"])},
        optional={"content": HOSTILE, "tool_calls": HOSTILE, "tool_call_id": HOSTILE, "reasoning_content": HOSTILE},
    ),
    max_size=8,
)
"""Messages of any shape, made of the words that are looked for."""


@given(HOSTILE_MESSAGES)
def test_every_message_is_in_one_part(messages: list[Any]) -> None:
    """Whatever messages are made of, nothing raises, and each is system, in one past turn or in the current one."""
    found = split(messages)
    parts = [*found.system, *(i for turn in found.past for i in turn.indices), *found.current.indices]
    assert sorted(parts) == list(range(len(messages)))
    assert all(turn.indices for turn in found.past)
    assert bool(found.newest_image()) == any(
        is_image(p)
        for m in messages
        if isinstance(m, dict) and isinstance(m.get("content"), list)
        for p in m["content"]
    )
    assert all(isinstance(role(message), str) for message in messages)


def test_pictures_that_a_conversation_can_do_without() -> None:
    """Those of past turns; of a question in words the newest picture is not one of them."""
    text, picture = {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}
    shown: dict[str, Any] = {"role": "user", "content": [text, picture, picture]}
    asked = {"role": "user", "content": "and now?"}
    assert dispensable_images([shown, shown, asked]) == {(0, 1), (0, 2), (1, 1)}
    assert dispensable_images([shown, shown]) == {(0, 1), (0, 2)}
    assert dispensable_images([asked]) == dispensable_images([]) == frozenset()
