"""One request's line, looked for in all of the log, the newest first.

To be called in a thread, which lets others have their turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rolecall.insight.log_reader import Fields, Part, lines_backwards, oldest_first, parse_entry

_BLOCK = 2**20
_MOST_PACKED_BYTES = 2**28
"""How much of compressed files is looked through: some seconds. What is older is not known any more."""


def find_line(
    parts: Iterable[Part], request_id: str, is_wanted: Callable[[Fields], bool] = lambda _: True
) -> Fields | None:
    """Return the newest line of a request that is wanted, None if there is none; ``parts`` are the newest first."""
    needle = b'"' + request_id.encode() + b'"'
    left = _MOST_PACKED_BYTES
    for part in parts:
        if part.compression == "none":
            lines = _lines_with(needle, part)
        elif (left := left - part.end) >= 0:
            lines = (raw for raw in oldest_first([part]) if needle in raw)
        else:
            return None
        for raw in lines:
            entry = parse_entry(raw)
            if entry is not None and entry.fields["request_id"] == request_id and is_wanted(entry.fields):
                return entry.fields
    return None


def _lines_with(needle: bytes, part: Part) -> Iterator[bytes]:
    """Yield the whole lines that hold some bytes, last first.

    It looks for them a block at a time: a hundred megabytes take a tenth of a second, and other threads get their turn.
    """
    end = part.end
    while end > 0:
        start = max(0, end - _BLOCK)
        part.file.seek(start)
        block = part.file.read(end - start + len(needle))
        found = block.rfind(needle)
        while found >= 0:
            yield from _line_at(part, start + found)
            found = block.rfind(needle, 0, found)  # that was something else of the line
        end = start


def _line_at(part: Part, position: int) -> Iterator[bytes]:
    """Yield the line around a position if it is a whole one."""
    part.file.seek(position)
    end = position
    while block := part.file.read(_BLOCK):
        if (newline := block.find(b"\n")) >= 0:
            yield next(lines_backwards(part.file, end + newline))
            return
        end += len(block)
