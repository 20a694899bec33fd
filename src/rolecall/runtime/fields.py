"""Numbers that a model's files claim, checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 2**40
"""No number that counts here is larger."""
MOST_HEADER_BYTES = 64 * 2**20
"""A vocabulary of 262,144 tokens with its merges takes 12 MB."""
MOST_LAYERS = 4096


class Fields:
    """Metadata whose keys begin with ``prefix``; a number that makes no sense is a ``ValueError``."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str = "") -> None:
        self._metadata, self._prefix = metadata, prefix

    def raw(self, key: str) -> Any:
        """Return the value unchecked, None for none."""
        return self._metadata.get(self._prefix + key)

    def number(self, key: str, default: int = 0) -> int:
        """Return a whole number from 0 to `MOST`."""
        return checked(key, value) if (value := self.raw(key)) is not None else default

    def first(self, *keys: str) -> int:
        """Return the first number that is there and is not 0: formats have had several names for the same."""
        return next((number for key in keys if (number := self.number(key))), 0)

    def layer_count(self, *keys: str) -> int:
        """Return the first number, which is one of layers: lists of that length will be made."""
        if (count := self.first(*keys)) > MOST_LAYERS:
            raise ValueError(f"it claims {count} layers")
        return count


def checked(key: str, value: object) -> int:
    """Return a value that is a whole number from 0 to `MOST`, or raise ``ValueError`` with its key."""
    if not isinstance(value, int) or not 0 <= value <= MOST:
        raise ValueError(f"{key} is {value!r:.80}")
    return int(value)


def ratio(total: int, parts: int) -> int:
    """Return the whole quotient, 0 where there are no parts."""
    return total // parts if parts else 0
