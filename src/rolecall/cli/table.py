"""Tables and labelled lines for people: fitted to a terminal; in a pipe plain, uncut, one line a row."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

NOTHING = "-"
_GAP = "  "
_MIN_FIRST = 12


def _plain(_text: str) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column. With ``below`` it makes room in a narrow terminal: its cells move under their rows, in those words."""

    title: str
    right: bool = False
    below: str | None = None
    style: Callable[[str], str] = _plain


@dataclass(frozen=True, slots=True)
class Row:
    """A cell for each column, and a note: under the row on a terminal, a further column in a pipe."""

    cells: Sequence[str]
    note: str = ""


def show(make: Callable[[int | None], Iterable[Text]], *, error: bool = False) -> None:
    """Print what ``make`` returns for the terminal's width; None: there is no terminal, nothing may be cut."""
    console = console_for(error=error)
    # Rich decides on colours, but does not write: it would hide that a pipe was closed.
    with console.capture() as captured:
        for line in make(console.width if console.is_terminal else None):
            console.print(line, soft_wrap=True)
    typer.echo(captured.get(), nl=False, color=True, err=error)


def say(*lines: str) -> None:
    """Print remarks on stderr."""
    show(lambda _width: [Text(printable(line), "dim") for line in lines], error=True)


def console_for(*, error: bool = False) -> Console:
    """Return the console of stdout or stderr; one that is not UTF-8 gets question marks instead of a traceback."""
    stream = sys.stderr if error else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Console(stderr=error, highlight=False, markup=False, emoji=False)


def table(columns: Sequence[Column], rows: Sequence[Row], width: int | None, *, notes: str = "") -> Iterator[Text]:
    """Yield the lines of a table, the head first; ``notes`` is the title that notes have in a pipe."""
    if width is None and any(row.note for row in rows):
        columns = (*columns, Column(notes))
        rows = [Row((*row.cells, _one_line(row.note) or NOTHING)) for row in rows]
    columns = [replace(column, title=_in_one_line(column.title)) for column in columns]
    rows = [Row([*map(_in_one_line, row.cells)], row.note) for row in rows]  # before widths: what is replaced has one
    widths = [max(map(cell_len, (column.title, *(row.cells[at] for row in rows)))) for at, column in enumerate(columns)]
    beside = _beside(columns, widths, width)
    if width is not None:
        widths[0] = max(min(widths[0], _MIN_FIRST), widths[0] - max(0, _total(widths, beside) - width))
    yield _line((columns[at], columns[at].title, widths[at], "bold") for at in beside)
    for row in rows:
        yield _line((columns[at], row.cells[at], widths[at], columns[at].style(row.cells[at])) for at in beside)
        if width is not None:
            moved = [at for at in range(len(columns)) if at not in beside and row.cells[at] != NOTHING]
            yield from _under("; ".join((columns[at].below or "{}").format(row.cells[at]) for at in moved), width)
            yield from _under(row.note, width)


def _beside(columns: Sequence[Column], widths: Sequence[int], width: int | None) -> list[int]:
    """Return the columns that stay beside each other; as few as possible are moved, the last first."""
    beside = list(range(len(columns)))
    for at in reversed(range(len(columns))):
        if width is not None and _total(widths, beside) > width and columns[at].below is not None:
            beside.remove(at)
    return beside


def _total(widths: Sequence[int], beside: Sequence[int]) -> int:
    return sum(widths[at] for at in beside) + len(_GAP) * (len(beside) - 1)


def _line(cells: Iterable[tuple[Column, str, int, str]]) -> Text:
    line = Text(_GAP).join(
        Text(_fitted(text, width, right=column.right), style) for column, text, width, style in cells
    )
    line.rstrip()
    return line


def _fitted(text: str, width: int, *, right: bool) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding


def _under(text: str, width: int) -> Iterator[Text]:
    for line in printable(text).splitlines():
        for part in textwrap.wrap(line, max(20, width - 4), break_long_words=False, break_on_hyphens=False):
            yield Text("    " + part, "dim")


def labelled(pairs: Iterable[tuple[str, str]], width: int | None) -> Iterator[Text]:
    """Yield a line for each label and text; longer texts go on under themselves."""
    pairs = list(pairs)
    indent = max((cell_len(label) for label, _ in pairs), default=0) + len(_GAP)
    for label, text in pairs:
        for number, line in enumerate(folded(text, width, indent)):
            yield Text.assemble((("" if number else label).ljust(indent), "bold"), line)


def or_nothing(value: object) -> str:
    """Return a value as a cell has it, `NOTHING` for None."""
    return NOTHING if value is None else str(value)


def folded(text: str, width: int | None, indent: int) -> list[str]:
    """Return the lines of ``text`` at most ``width - indent`` wide; words and paths are never broken."""
    lines = printable(text).splitlines() or [""]
    if width is None:
        return lines
    fold = textwrap.TextWrapper(max(20, width - indent), break_long_words=False, break_on_hyphens=False)
    return [part for line in lines for part in (fold.wrap(line) or [""])]


def _one_line(text: str) -> str:
    return " | ".join(line.strip() for line in printable(text).splitlines())


def _in_one_line(text: str) -> str:
    return printable(text).replace("\n", " ")


def printable(text: str) -> str:
    """Replace control characters but line ends: what an engine or a registry says must not drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
