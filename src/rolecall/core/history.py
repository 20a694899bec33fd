"""Which of a conversation's history goes to the engine, by policy.

Two policies drop whole past turns, and never anything of the current one:

- Pictures (on by default): when the current turn holds a picture, the earlier turns go, for they are most often other
  pictures' captions. When it is in words it is most often about an earlier picture, and all stays.
- Reasoning (off by default): when a past turn holds an assistant's reasoning, older turns go, and the reasoning of
  those that stay is taken out. Clients that do not send reasoning back have nothing to save, and keep all.

What does not fit the model's context all the same is ``core.fit``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from rolecall.core.conversation import Conversation, image_positions, parts, role, split
from rolecall.core.models import HistoryRules
from rolecall.errors import BadRequest

HEADER = "x-rolecall-history"
"""The request's header that overrides the policy: ``keep``, ``truncate`` or ``fit``."""

ANSWER_HEADER = "x-rolecall-truncated"
"""The answer's header that tells what was left out, as ``Cut.summary`` puts it."""

Fit: TypeAlias = Literal["off", "vision", "all"]

_ASKED = ("keep", "truncate", "fit")
_NAMES = {
    "vision_truncate_history": "vision_truncate",
    "vision_keep_system": "vision_keep_system",
    "vision_keep_last_n_turns": "vision_keep_last_n_turns",
    "reasoning_truncate_history": "reasoning_truncate",
    "reasoning_keep_system": "reasoning_keep_system",
    "reasoning_keep_last_n_turns": "reasoning_keep_last_n_turns",
    "history_fit": "fit",
}
"""What settings and registry entries call the fields of a policy."""

_REASONING_FIELDS = ("reasoning_content", "reasoning")
_REASONING_PARTS = ("reasoning", "thinking")
_THINK, _THOUGHT = "<think>", "</think>"


def wish_of(values: Iterable[str]) -> str | None:
    """Return what the header's lines ask for; None without one. Lines that differ are put together, which is no wish.

    That is how HTTP reads a header that is sent twice (RFC 9110, 5.3).
    """
    words = dict.fromkeys(value.strip().lower() for value in values)
    return ", ".join(filter(None, words)) or None


@dataclass(frozen=True, slots=True)
class HistoryPolicy:
    """What may be dropped. ``..._keep_last_n_turns`` counts turns before the current one.

    ``fit`` says which conversations are cut to the model's context: none, those with pictures, all.
    """

    vision_truncate: bool = True
    vision_keep_system: bool = True
    vision_keep_last_n_turns: int = 0
    reasoning_truncate: bool = False
    reasoning_keep_system: bool = True
    reasoning_keep_last_n_turns: int = 1
    fit: Fit = "vision"

    @classmethod
    def of_settings(cls, values: Mapping[str, Any]) -> HistoryPolicy:
        """Return the policy of the settings with their names; others are not looked at."""
        return cls(**{ours: values[name] for name, ours in _NAMES.items() if name in values})

    @property
    def spares_words(self) -> bool:
        """Whether a conversation without pictures stays as it is, but for what the engine itself refuses."""
        return not self.reasoning_truncate and self.fit != "all"

    def for_model(self, rules: HistoryRules) -> HistoryPolicy:
        """Return the policy with what a registry entry says itself."""
        if not rules.given:
            return self
        return replace(self, **{_NAMES[name]: value for name, value in rules.given.items()})

    def as_asked(self, wish: str | None) -> HistoryPolicy:
        """Return the policy that a request's header asks for; raises ``BadRequest`` for a word it does not know.

        ``keep``: nothing is dropped. ``truncate``: both policies drop turns, as many as configured. ``fit``: they drop
        none, and whatever is too long for the context is cut to it. Absent or empty: as configured.
        """
        if not wish:
            return self
        match wish.strip().lower():
            case "":
                return self
            case "keep":
                return replace(self, vision_truncate=False, reasoning_truncate=False, fit="off")
            case "truncate":
                return replace(self, vision_truncate=True, reasoning_truncate=True)
            case "fit":
                return replace(self, vision_truncate=False, reasoning_truncate=False, fit="all")
            case other:
                raise BadRequest(
                    f"The header X-Rolecall-History is {other[:40]!r}; it takes one of {', '.join(_ASKED)}.",
                    param="X-Rolecall-History",
                )


@dataclass(frozen=True, slots=True)
class Cut:
    """The messages that are left, and counts of what is not: messages, pictures, and messages' reasoning.

    Pictures of dropped messages count too. ``messages`` is the very list that came where nothing was dropped.
    """

    messages: Sequence[Any]
    dropped_messages: int = 0
    dropped_images: int = 0
    dropped_reasoning: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether anything is missing."""
        return bool(self.dropped_messages or self.dropped_images or self.dropped_reasoning)

    def after(self, earlier: Cut) -> Cut:
        """Return the cut that this one and an earlier one, whose messages it was made of, are together."""
        return Cut(
            self.messages,
            self.dropped_messages + earlier.dropped_messages,
            self.dropped_images + earlier.dropped_images,
            self.dropped_reasoning + earlier.dropped_reasoning,
        )

    def counted(self) -> Cut:
        """Return the counts alone."""
        return replace(self, messages=())

    def summary(self) -> str | None:
        """Return ``messages=4 images=1`` for header and log, ``reasoning=2`` too if any; None if nothing is missing."""
        if not self.is_cut:
            return None
        reasoning = f" reasoning={self.dropped_reasoning}" if self.dropped_reasoning else ""
        return f"messages={self.dropped_messages} images={self.dropped_images}{reasoning}"


NOTHING_CUT = Cut(())
"""The counts of what is all there."""


@dataclass(slots=True)
class _Kept:
    """What the policies leave: so many of the last past turns, the system messages or not."""

    turns: int
    system: bool = True
    reasoning: bool = True

    def narrow(self, turns: int, *, system: bool) -> None:
        self.turns = min(self.turns, turns)
        self.system = self.system and system


def truncate(messages: Sequence[Any], policy: HistoryPolicy) -> Cut:
    """Return what the policies leave of a conversation.

    Turns stay or go whole; order and the current turn remain. Where both policies drop, the stricter one counts.
    """
    conversation = split(messages)
    kept = _Kept(turns=len(conversation.past))
    if policy.vision_truncate and conversation.images(conversation.current):
        kept.narrow(policy.vision_keep_last_n_turns, system=policy.vision_keep_system)
    if policy.reasoning_truncate and _has_reasoning(conversation):
        kept.narrow(policy.reasoning_keep_last_n_turns, system=policy.reasoning_keep_system)
        kept.reasoning = False
    return _cut(conversation, kept)


def _has_reasoning(conversation: Conversation) -> bool:
    past = (index for turn in conversation.past for index in turn.indices)
    return any(without_reasoning(message) is not message for message in map(conversation.messages.__getitem__, past))


def _cut(conversation: Conversation, kept: _Kept) -> Cut:
    past = conversation.past
    gone = {index for turn in past[: len(past) - kept.turns] for index in turn.indices}
    gone |= set() if kept.system else set(conversation.system)
    messages = conversation.messages
    now = len(messages) - len(conversation.current.indices)
    left, reasoning = [], 0
    for index, message in enumerate(messages):
        if index not in gone:
            plain = message if kept.reasoning or index >= now else without_reasoning(message)
            reasoning += plain is not message
            left.append(plain)
    if not gone and not reasoning:
        return Cut(messages)
    return Cut(left, len(gone), sum(len(image_positions(messages[index])) for index in gone), reasoning)


def without_reasoning(message: Any) -> Any:
    """Return an assistant's message without its reasoning; the very same one if it holds none.

    Of a content, what follows the last ``</think>`` stays, as the chat templates of Qwen3 and DeepSeek-R1 have it; of
    one that was cut within its thoughts, nothing.
    """
    if role(message) != "assistant":
        return message
    plain = {name: value for name, value in message.items() if name not in _REASONING_FIELDS or not value}
    content = message.get("content")
    if isinstance(content, str):
        plain["content"] = _without_thoughts(content)
    elif isinstance(content, list):
        plain["content"] = [_plain_part(part) for part in parts(message) if not _is_thought(part)]
    return message if plain == message else plain


def _without_thoughts(text: str) -> str:
    if _THOUGHT in text:
        text = text.rpartition(_THOUGHT)[2].lstrip()
    return "" if text.lstrip().startswith(_THINK) else text


def _is_thought(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and kind in _REASONING_PARTS


def _plain_part(part: Any) -> Any:
    text = part.get("text") if isinstance(part, Mapping) else None
    return {**part, "text": _without_thoughts(text)} if isinstance(text, str) else part
