"""Chats that no tokenizer could make short enough for a context.

The bound is a wide one. The longest tokens of the vocabularies in use have 128 bytes (GPT-2's and its kin's); here each
may stand for 256 characters. White space counts for nothing, for a template may trim it and a tokenizer merge it. Nor
do assistants' messages: templates leave out their reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rolecall.core.conversation import is_image, parts, role, split
from rolecall.core.fit import is_fitted
from rolecall.core.history import HistoryPolicy
from rolecall.errors import ContextLengthExceeded

CHARACTERS_PER_TOKEN = 256
_STEP = 2**16
_WAY_OUT = (
    f"They have more than {{characters}} characters, of which no token stands for more than {CHARACTERS_PER_TOKEN}. "
    "Shorten them, or use a model with a larger context."
)


def lasting(messages: Sequence[Any], policy: HistoryPolicy) -> Sequence[Any]:
    """Return the messages that a policy sends whatever the context: where it cuts to it, those of the current turn."""
    if not is_fitted(messages, policy):
        return messages
    return [messages[index] for index in split(messages).current.indices]


def characters(messages: Sequence[Any]) -> int:
    """Return how many characters there are at most: white space, too."""
    return sum(map(len, _texts(messages)))


def check_can_fit(messages: Sequence[Any], context_tokens: int) -> None:
    """Raise ``ContextLengthExceeded`` if the messages have more characters than the tokens of a context can stand for.

    It looks at no more of them than it has to.
    """
    most = left = context_tokens * CHARACTERS_PER_TOKEN
    for text in _texts(messages):
        for at in range(0, len(text), _STEP):
            left -= sum(map(len, text[at : at + _STEP].split()))
            if left < 0:
                raise ContextLengthExceeded(None, context_tokens, _WAY_OUT.format(characters=most))


def _texts(messages: Sequence[Any]) -> Iterator[str]:
    for message in messages:
        if not isinstance(message, Mapping) or role(message) == "assistant":
            continue
        content = message.get("content")
        if isinstance(content, str):
            yield content
        for part in parts(message):
            text = part.get("text") if isinstance(part, Mapping) and not is_image(part) else None
            if isinstance(text, str):
                yield text
