"""A text of a body that stays in the pieces in which it came: the base64 of a picture of megabytes is not copied."""

from __future__ import annotations

from collections.abc import Sequence


class LongText:
    """Stands in a parsed body where a string would, only where media stand; ASCII, of which JSON escapes nothing.

    It is a data URI, or else has no colon, so that nobody takes it for an address. What is needed of it is cut out as
    of a string, ``str`` makes one of the whole.
    """

    __slots__ = ("_length", "pieces")

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self.pieces = pieces
        self._length = sum(map(len, pieces))

    def __len__(self) -> int:
        """Return the number of characters, and of bytes."""
        return self._length

    def __getitem__(self, places: slice) -> str:
        """Return a part; no more is read of the pieces than there is in it."""
        start, stop, _ = places.indices(self._length)
        found = []
        for piece in self.pieces:
            if stop <= 0:
                break
            if start < len(piece):
                found.append(str(piece[max(start, 0) : stop], "ascii"))
            start, stop = start - len(piece), stop - len(piece)
        return "".join(found)

    def __str__(self) -> str:
        """Return the whole."""
        return self[:]


TEXTS = (str, LongText)
"""The types of texts in a parsed body."""
