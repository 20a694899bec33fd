"""A chat's messages as system messages and turns, in whatever shape they come.

A turn is a user message and everything up to the next one. What clients send is taken as it is: contents may be null,
texts or lists of anything, roles may be unknown; nothing here raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IMAGE_PARTS = frozenset({"image_url", "input_image", "image", "image_pil", "image_embeds"})
"""The types of content parts that hold a picture."""

_SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Turn:
    """Messages that stay or go together, by their indices."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in their parts; each message is in one of them.

    ``system`` holds the system and developer messages before the current turn, wherever they stand. ``past`` holds the
    finished turns, oldest first; the first one has no user message if the conversation does not begin with one.
    ``current`` goes from the last user message to the end, and is everything but the leading system messages where
    nobody is a user.
    """

    messages: Sequence[Any]
    system: tuple[int, ...]
    past: tuple[Turn, ...]
    current: Turn

    def images(self, turn: Turn) -> int:
        """Return how many pictures a turn holds."""
        return sum(len(image_positions(self.messages[index])) for index in turn.indices)

    def newest_image(self) -> tuple[int, int] | None:
        """Return the last picture by its message and its number among that one's pictures; None if there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if positions := image_positions(self.messages[index]):
                return index, len(positions) - 1
        return None


def dispensable_images(messages: Sequence[Any]) -> frozenset[tuple[int, int]]:
    """Return the pictures that a conversation can do without, by their message and their position in its content.

    Those are the ones of past turns, but for the newest picture if the current turn has none: it is asked about.
    """
    conversation = split(messages)
    past = (index for turn in conversation.past for index in turn.indices)
    found = {(index, position) for index in past for position in image_positions(messages[index])}
    return frozenset(found if conversation.images(conversation.current) else found - {max(found, default=(0, 0))})


def split(messages: Sequence[Any]) -> Conversation:
    """Return the parts of a conversation."""
    starts = _turn_starts(messages) or [_first_of_no_system(messages)]
    now = starts[-1]
    system = tuple(index for index in range(now) if role(messages[index]) in _SYSTEM)
    others = [
        tuple(index for index in range(start, end) if role(messages[index]) not in _SYSTEM)
        for start, end in zip([0, *starts[:-1]], starts, strict=True)
    ]
    past = tuple(Turn(indices) for indices in others if indices)
    return Conversation(messages, system, past, Turn(tuple(range(now, len(messages)))))


def _turn_starts(messages: Sequence[Any]) -> list[int]:
    """Return the indices of the user messages that begin a turn.

    One that comes between a tool call and its result does not: they must stay together. The newest call of an id is the
    one that is answered, for engines count their calls anew in each answer.
    """
    starts: list[int] = []
    calls: dict[str, int] = {}
    for index, message in enumerate(messages):
        if role(message) == "user":
            starts.append(index)
        calls.update(dict.fromkeys(_calls(message), index))
        called_at = calls.get(_answered(message), index)
        while starts and starts[-1] > called_at:
            starts.pop()
    return starts


def _first_of_no_system(messages: Sequence[Any]) -> int:
    numbers = (index for index, message in enumerate(messages) if role(message) not in _SYSTEM)
    return next(numbers, len(messages))


def role(message: Any) -> str:
    """Return who speaks; empty if nobody is named."""
    name = message.get("role") if isinstance(message, Mapping) else None
    return name if isinstance(name, str) else ""


def parts(message: Any) -> list[Any]:
    """Return the parts of a message's content; empty if it is no list."""
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list) else []


def is_image(part: Any) -> bool:
    """Whether a part of a content holds a picture; vLLM takes ``image_url`` in a part of any type."""
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    return (isinstance(kind, str) and kind in IMAGE_PARTS) or "image_url" in part


def image_positions(message: Any) -> tuple[int, ...]:
    """Return where in a message's content the pictures are; anybody may send one, tools too."""
    return tuple(position for position, part in enumerate(parts(message)) if is_image(part))


def _calls(message: Any) -> Iterator[str]:
    """Yield the ids of the tool calls that a message makes."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, Mapping) and isinstance(name := call.get("id"), str):
            yield name


def _answered(message: Any) -> str:
    """Return the id of the tool call that a message answers; empty if none."""
    name = message.get("tool_call_id") if role(message) == "tool" else None
    return name if isinstance(name, str) else ""
