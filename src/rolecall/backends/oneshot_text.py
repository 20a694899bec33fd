"""From a program's standard output to the words of an answer, as they come."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

END_OF_TEXT = " [end of text]"
"""What ``llama-completion`` writes behind an answer that the model itself has ended."""
_LINES_AT_END = 3
"""Line breaks that ``llama-mtmd-cli`` writes behind such an answer; behind one that was cut there are two."""

_PROMPT = re.compile(r"prompt eval time\s*=.*?/\s*(\d+) tokens")
_ANSWER = re.compile(r"(?<!prompt )\beval time\s*=.*?/\s*(\d+) runs")
_LOST = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Cuts out the answer: line breaks around it, the end mark and stop words go, and characters are never split.

    ``feed`` returns what is certain to belong to the answer; what may be the beginning of an end is held back.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop word came up; nothing is returned after it."""
        self.ended = False
        """Whether the program said that the model ended its answer; known after ``close``."""
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.has_begun = False
        """Whether there was any text yet."""

    def feed(self, data: bytes) -> str:
        """Take in what came and return what goes on now."""
        self._take(self._decoder.decode(data))
        if self.stopped:
            return self._release(len(self._held))
        return self._release(len(self._held) - max(_tail(self._held), _begun(self._held, self._stop)))

    def close(self) -> str:
        """Return the rest, once the program has ended."""
        if not self.stopped:
            # Bytes of a character that max_tokens cut through are no text.
            self._take(self._decoder.decode(b"", final=True).rstrip(_LOST))
        if not self.stopped:
            body = self._held.rstrip("\n")
            lines = len(self._held) - len(body)
            self.ended = body.endswith(END_OF_TEXT) or lines >= _LINES_AT_END
            self._held = body.removesuffix(END_OF_TEXT)
        return self._release(len(self._held))

    def _take(self, text: str) -> None:
        if self.stopped:
            return
        self._held += text
        if not self.has_begun:
            self._held = self._held.lstrip("\n")
            self.has_begun = bool(self._held)
        found = [at for word in self._stop if (at := self._held.find(word)) >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]

    def _release(self, count: int) -> str:
        released, self._held = self._held[:count], self._held[count:]
        return released


def _tail(text: str) -> int:
    """Return how many of the last characters may belong to the end: line breaks, with the end mark before them."""
    body = text.rstrip("\n")
    mark = len(END_OF_TEXT) if body.endswith(END_OF_TEXT) else 0
    if not mark and body == text:
        mark = _begun(text, (END_OF_TEXT,))
    return len(text) - len(body) + mark


def _begun(text: str, words: Iterable[str]) -> int:
    """Return the length of the longest end of ``text`` with which one of the words begins."""
    return max(
        (size for word in words for size in range(1, min(len(word), len(text) + 1)) if text.endswith(word[:size])),
        default=0,
    )


def usage(lines: Iterable[str]) -> tuple[int | None, int | None]:
    """Return the tokens of the prompt and of the answer by a program's last lines; None for what they don't tell.

    The first token of an answer comes out of the prompt's evaluation: there is one more than evaluations ("runs").
    """
    prompt = answer = None
    for line in lines:
        if found := _PROMPT.search(line):
            prompt = int(found[1])
        elif found := _ANSWER.search(line):
            answer = int(found[1]) + 1
    return prompt, answer
