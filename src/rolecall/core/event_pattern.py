"""What events of a stream have in common: most are like the one before but for a piece of text.

Such an event is known by its bytes, and needs no parsing, which costs ten times as much.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rolecall.core.answer import Answer

_PLAIN = rb'[^"\\\x00-\x1f]{1,65536}'
"""The inside of a JSON string whose bytes are the text."""
_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|text|thinking)": ?"(%b)"' % _PLAIN)
_is_plain = re.compile(_PLAIN).fullmatch


@dataclass(frozen=True, slots=True)
class EventPattern:
    """An event around its text: how it came, ``head`` and ``tail``, and how it went on, None if that was the same."""

    head: bytes
    tail: bytes
    went: tuple[bytes, bytes] | None

    @classmethod
    def of(cls, came: bytes, went: bytes, message: dict[str, Any]) -> EventPattern | None:
        """Return the pattern of an event and its message; None if that says anything but a text, or one not plain."""
        text = _only_text(came)
        same = text if went is came else _only_text(went)
        if text is None or same is None or text[1] != same[1] or not _is_all(text[1], message):
            return None
        around = (went[: same.start(1)], went[same.end(1) :])
        return cls(came[: text.start(1)], came[text.end(1) :], None if went is came else around)

    def size_of(self, event: bytes) -> int:
        """Return how many bytes of text has an event that is like this one but for it; 0 for any other event."""
        start, end = len(self.head), len(event) - len(self.tail)
        is_like = event.startswith(self.head) and event.endswith(self.tail) and _is_plain(event, start, end)
        return end - start if is_like else 0

    def pass_on(self, event: bytes) -> bytes:
        """Return what goes on in place of an event like this one."""
        return event if self.went is None else event[len(self.head) : -len(self.tail)].join(self.went)


def _is_all(text: bytes, message: dict[str, Any]) -> bool:
    """Whether the text is all that is to be read in a message: no usage, no finish reason, no error."""
    answer = Answer()
    answer.read(message)
    return answer == Answer(has_output=True) and answer.seen == (1, len(text))


def _only_text(event: bytes) -> re.Match[bytes] | None:
    found = list(_TEXT.finditer(event))
    return found[0] if len(found) == 1 else None
