"""A model's thought told from its answer where both come as one text: ``<think>…</think>`` and its kin.

A thought stands at the beginning of a text, or directly after another one; tags in the midst of an answer are part of
it, for an answer may be about such tags. The white space next to a tag goes with the tag, as in engines' own parsers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}
"""How a thought is opened and closed: by DeepSeek, Qwen and most others; some merges; Seed-OSS; Magistral."""

OPEN, CLOSE = "<think>", "</think>"
"""The tags that are written, and the ones of templates that open the thought themselves."""

_FENCE = "```"
_PIECE = 2**12
"""Characters of a whole text that are split at a time: a tag costs a copy of what is held."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of a text: what of it is thought, and what comes after as answer."""

    thought: str = ""
    answer: str = ""

    def __add__(self, other: Said) -> Said:
        return Said(self.thought + other.thought, self.answer + other.answer)


class _At(Enum):
    START = auto()
    """Nothing but white space so far, since the beginning or since a thought."""
    OPENED = auto()
    """Within a thought that something before this text opened; the model may open it once more."""
    THOUGHT = auto()
    ANSWER = auto()
    """Nothing ends it."""


class ThoughtSplitter:
    """Takes a text in pieces and says at once, as far as it can be known, what of it is thought and what answer.

    Held back is only what may turn out to be a tag, and the white space next to it. However the text is cut into
    pieces, the parts add up to the same.
    """

    def __init__(self, *, starts_in_thought: bool = False) -> None:
        self._at = _At.OPENED if starts_in_thought else _At.START
        self._close = CLOSE
        self._held = ""
        self._follows_tag = starts_in_thought

    @property
    def is_settled(self) -> bool:
        """Whether all that follows is answer, and nothing is held back."""
        return self._at is _At.ANSWER

    def feed(self, piece: str) -> Said:
        """Take in a piece of the text and return what is certain now."""
        self._held += piece
        said = Said()
        while (step := self._step()) is not None:
            said += step
        return said

    def end(self) -> Said:
        """Return what was held back, at the end of the text."""
        rest, self._held = self._held, ""
        rest = rest.lstrip() if self._follows_tag else rest
        return Said(thought=rest) if self._at in (_At.OPENED, _At.THOUGHT) else Said(answer=rest)

    def leave(self) -> Said:
        """Look for no more tags, because the engine tells thoughts by itself; return what was held back."""
        said = self.end()
        self._at = _At.ANSWER
        return said

    def _step(self) -> Said | None:
        """Take one part off what is held; None if what comes next has to be known first, or nothing is left."""
        if self._at in (_At.START, _At.OPENED):
            return self._begin()
        if not self._held:
            return None
        if self._at is _At.THOUGHT:
            return self._think()
        answer, self._held = self._held, ""
        return Said(answer=answer)

    def _begin(self) -> Said | None:
        """Look for an opening tag."""
        text = self._held.lstrip()
        opened = next((tag for tag in TAGS if text.startswith(tag)), None)
        if opened is not None:
            self._at, self._close = _At.THOUGHT, TAGS[opened]
            self._held, self._follows_tag = text[len(opened) :], True
            return Said()
        if any(tag.startswith(text) for tag in TAGS):  # so does an empty text
            return None
        self._at = _At.THOUGHT if self._at is _At.OPENED else _At.ANSWER
        self._held = text if self._follows_tag else self._held
        return Said()

    def _think(self) -> Said | None:
        """Take what is certainly thought: all but what may be the closing tag and the white space before it."""
        text = self._held.lstrip() if self._follows_tag else self._held
        thought, closed, rest = text.partition(self._close)
        if closed:
            self._at, self._held, self._follows_tag = _At.START, rest, True
            return Said(thought=thought.rstrip())
        maybe = next(size for size in range(len(self._close) - 1, -1, -1) if text.endswith(self._close[:size]))
        thought = text[: len(text) - maybe].rstrip()
        self._held = text[len(thought) :]
        if not thought:
            return None
        self._follows_tag = False
        return Said(thought=thought)


def split_whole(text: str, *, starts_in_thought: bool = False, was_cut: bool = False) -> Said:
    """Return the thought and the answer of a whole text.

    One that is known only by its closing tag, alone on its line, is found here, too: there is no need to have said
    anything before. Where a thought that the template is said to open never ends, the text is the answer, unless it
    ``was_cut``.
    """
    if starts_in_thought and not was_cut and CLOSE not in text and not _opens(text):
        return Said(answer=text)
    splitter = ThoughtSplitter(starts_in_thought=starts_in_thought or _closes_only(text))
    said, at = [], 0
    while at < len(text) and not splitter.is_settled:
        said.append(splitter.feed(text[at : at + _PIECE]))
        at += _PIECE
    said += [splitter.end(), Said(answer=text[at:])]
    return Said("".join(each.thought for each in said), "".join(each.answer for each in said))


def _closes_only(text: str) -> bool:
    """Whether the first closing tag, which nothing opened, ends a thought: an answer may be about such tags."""
    before, closed, after = text.partition(CLOSE)
    is_alone = not before.rpartition("\n")[2].strip() and not after.partition("\n")[0].strip()
    return bool(closed) and is_alone and before.count(_FENCE) % 2 == 0 and not _opens(text)


def _opens(text: str) -> bool:
    return text.lstrip().startswith(tuple(TAGS)) or OPEN in text.partition(CLOSE)[0]
