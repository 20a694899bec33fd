"""What messages have in common: counts with their noun, the first of many, bytes in a unit, what may be meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LONGEST_WORD = 200
"""Characters of a word that others are compared with; difflib takes the square of it."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return ``1 model`` or ``2 models``; ``many`` is for nouns that take no s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def some(words: Sequence[str], most: int) -> str:
    """Return words with commas between them; of more than ``most`` the first ones, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def amount(size: int) -> str:
    """Return bytes in a unit that can be read: GB of 2**30, MB of 2**20."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{size} bytes"


def meant(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``did you mean 'x'?``, or nothing where no known word is near; ``cutoff`` is difflib's."""
    near = get_close_matches(word[:LONGEST_WORD], list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else ""


def spoken(seconds: float) -> str:
    """Return a span of time as people say it: ``0.4 s``, ``14 s``, ``10 min``, ``2.5 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 119.5 * 60 else f"{seconds / 3600:.1f} h"
