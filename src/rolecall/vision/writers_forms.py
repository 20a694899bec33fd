"""Records as bytes of a file: JSON lines and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Protocol

from rolecall.vision.batch_record import COLUMNS, Record, from_json, to_json
from rolecall.vision.writers_cells import from_cells, to_cells


class Form(Protocol):
    """How records stand in a file, one after the other; ``head`` comes before them."""

    @property
    def head(self) -> bytes:
        """What the file begins with."""

    def whole(self, data: bytes) -> int:
        """Return how many bytes are whole records."""

    def line(self, record: Record) -> bytes:
        """Return a record's bytes."""

    def record(self, line: bytes) -> Record:
        """Return the record of some bytes; raises ``ValueError``."""

    def numbered(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each record's bytes, counted from 1; raises ``ValueError`` for another program's file."""


class JsonLines:
    """One JSON object a line."""

    head = b""

    def whole(self, data: bytes) -> int:
        """Return how many bytes are whole records."""
        return data.rfind(b"\n") + 1

    def line(self, record: Record) -> bytes:
        """Return a record's bytes."""
        return to_json(record).encode() + b"\n"

    def record(self, line: bytes) -> Record:
        """Return the record of some bytes; raises ``ValueError``."""
        return from_json(line)

    def numbered(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each record's bytes, counted from 1."""
        yield from ((number, line) for number, line in enumerate(io.BytesIO(data), 1) if line.strip())


def _csv_line(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _rows(data: bytes) -> Iterator[bytes]:
    """Yield the rows that are complete; a line end between quotes belongs to its cell."""
    row, quotes = b"", 0
    for line in io.BytesIO(data):
        row += line
        quotes += line.count(b'"')
        if quotes % 2 == 0 and line.endswith(b"\n"):
            yield row
            row = b""


class Csv:
    """The same as a table with a head, whose cells are those of ``cells.to_cells``."""

    head = _csv_line(COLUMNS)

    def line(self, record: Record) -> bytes:
        """Return a record's bytes."""
        return _csv_line(to_cells(record))

    def record(self, line: bytes) -> Record:
        """Return the record of some bytes; raises ``ValueError``."""
        return from_cells(next(csv.reader(io.StringIO(line.decode(), newline=""))))

    def numbered(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each record's bytes, counted from 1."""
        rows = _rows(data)
        if next(rows, self.head) != self.head:
            raise ValueError("its first line is not that of rolecall's records")
        yield from enumerate(rows, 1)

    def whole(self, data: bytes) -> int:
        """Return how many bytes are whole records."""
        return sum(map(len, _rows(data)))
