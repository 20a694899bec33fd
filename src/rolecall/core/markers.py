"""Phrases that tell something of an answer, such as a refusal, looked for in its beginning while it passes.

The beginning of streamed and whole answers is alike, so that their figures can be compared; and it is bounded, so that
an answer costs the same however long it is. It is kept while the answer passes, and nothing but the groups of the
phrases that were found is written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

REFUSAL = "refusal"
"""The group whose share is told as that of refusals."""

_SAME = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "})


@dataclass(slots=True)
class Opening:
    """The beginning of an answer's text, up to ``left`` more characters.

    ``refuses`` where the answer itself tells that it is a refusal, and it takes no phrase to know it: by the field
    ``refusal`` of OpenAI's forms, or the stop reason of Anthropic's.
    """

    left: int
    parts: list[str] = field(default_factory=list)
    refuses: bool = False

    def take(self, text: str) -> None:
        """Take in a piece of the text; an empty one, as a whole answer has beside calls of tools, is none."""
        if text and self.left > 0:
            self.parts.append(text[: self.left])
            self.left -= len(text)


@dataclass(frozen=True, slots=True)
class Markers:
    """The groups of phrases, as they are compared; ``chars`` is how much of an answer is looked at."""

    chars: int
    groups: Mapping[str, tuple[str, ...]]

    def found(self, opening: Opening) -> list[str] | None:
        """Return the groups that have a phrase in it, in their order; None if no text has come.

        An answer that is told to be a refusal is one, whatever its words: that comes first then.
        """
        if not (opening.parts or opening.refuses):
            return None
        text = compared("".join(opening.parts))
        found = [name for name, phrases in self.groups.items() if any(phrase in text for phrase in phrases)]
        return [REFUSAL, *found] if opening.refuses and REFUSAL not in found else found


def compared(text: str) -> str:
    """Return a text as it is compared: case, kinds of apostrophes and quotes, and kinds of white space do not count."""
    return " ".join(text.translate(_SAME).casefold().split())
