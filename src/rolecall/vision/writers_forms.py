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

    def check_rest(self, rest: bytes, whole: int) -> None:
        """Raise ``ValueError`` unless what comes after so many whole bytes is the beginning of one of our records."""

    def line(self, record: Record) -> bytes:
        """Return a record's bytes."""

    def record(self, line: bytes) -> Record:
        """Return the record of some bytes; raises ``ValueError``."""

    def numbered(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each record's bytes, counted from 1; raises ``ValueError`` for another program's file."""


_JSON_BEGINS = f'{{"{COLUMNS[0]}":"'.encode()


class JsonLines:
    """One JSON object a line."""

    head = b""

    def whole(self, data: bytes) -> int:
        """Return how many bytes are whole records."""
        return data.rfind(b"\n") + 1

    def check_rest(self, rest: bytes, whole: int) -> None:
        """Raise ``ValueError`` unless what comes last begins like one of our records."""
        del whole
        if not (rest.startswith(_JSON_BEGINS) or _JSON_BEGINS.startswith(rest)):
            raise ValueError("its last line has no end and does not begin like a record")

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
    # The writer puts only those line ends between quotes that it ends a line with itself: so it ends it with both.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n").encode() + b"\n"


def _rows(data: bytes) -> Iterator[bytes]:
    """Yield the rows that are complete; a line end between quotes belongs to its cell."""
    start = end = quotes = 0
    for line in io.BytesIO(data):
        end += len(line)
        quotes += line.count(b'"')
        if quotes % 2 == 0 and line.endswith(b"\n"):
            yield data[start:end]
            start = end


class Csv:
    """The same as a table with a head, whose cells are those of ``cells.to_cells``."""

    head = _csv_line(COLUMNS)

    def line(self, record: Record) -> bytes:
        """Return a record's bytes."""
        return _csv_line(to_cells(record))

    def record(self, line: bytes) -> Record:
        """Return the record of some bytes; raises ``ValueError``."""
        try:
            rows = list(csv.reader(io.StringIO(line.decode(), newline="")))
        except csv.Error as error:
            raise ValueError(str(error)) from None
        if len(rows) != 1:
            raise ValueError("it has a quote or a line end that belongs to no cell")
        return from_cells(rows[0])

    def numbered(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each record's bytes, counted from 1."""
        rows = _rows(data)
        if next(rows, self.head) != self.head:
            raise ValueError("its first line is not that of rolecall's records")
        yield from enumerate(rows, 1)

    def whole(self, data: bytes) -> int:
        """Return how many bytes are whole records."""
        return sum(map(len, _rows(data)))

    def check_rest(self, rest: bytes, whole: int) -> None:
        """Raise ``ValueError`` for another program's file, and where a stray quote hides records that are whole."""
        if not whole and not self.head.startswith(rest):
            raise ValueError("its first line is not that of rolecall's records")
        lines = rest.decode(errors="replace").splitlines(keepends=True)
        if any(_begins_record(lines, at) for at in range(len(lines))):
            raise ValueError(
                "behind its last record that can be read a quote is open, and further records come after it"
            )


def _begins_record(lines: Sequence[str], at: int) -> bool:
    """Whether a whole row that is a record begins with one of the lines."""
    reader = csv.reader(lines[number] for number in range(at, len(lines)))
    try:
        from_cells(next(reader))
    except (ValueError, csv.Error, StopIteration):
        return False
    return lines[at + reader.line_num - 1].endswith("\n")
