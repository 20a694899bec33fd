"""Results on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from bench.figures import Verdict
from bench.results import Results
from bench.rounds import Say
from bench.tables import Table, checks_table, figures_table, tables

_WIDTH = 160
"""Of tables that go to a file."""


def console(*, to_stderr: bool) -> Console:
    """Return where results are shown."""
    stream = sys.stderr if to_stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDTH, highlight=False)


@contextlib.contextmanager
def progress() -> Iterator[Say]:
    """Show what is being measured, and for how long, on stderr."""
    columns = (TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("building", total=None)
        yield lambda words: shown.update(task, description=words)


def show(out: Console, results: Results, found: Sequence[Verdict]) -> None:
    """Print all tables, the figures last, and what is missing."""
    for table in (*tables(results), checks_table(results), figures_table(found)):
        if table.rows:
            out.print(_rich(table))
            out.print()
    for line in (*results.missing, *results.failed):
        out.print(line, style="yellow", markup=False)


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=table.heading, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, name in enumerate(table.columns):
        shown.add_column(name, justify="right" if number and table.is_numeric else "left")
    for row in table.rows:
        shown.add_row(*row, style="red" if "NO" in row else None)
    return shown
