"""A sign of life on a terminal while something takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rolecall.cli.table import console_for, printable


def spinning(what: str) -> AbstractContextManager[Any]:
    """Show ``what`` with the time that passes on stderr, if that is a terminal, and take it away at the end."""
    console = console_for(error=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return nullcontext()
    columns = (SpinnerColumn(), TextColumn(what, markup=False), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    progress.add_task("")
    return progress


@contextmanager
def counting(what: str) -> Iterator[Callable[[str, int], None]]:
    """Show ``what``, how many there are so far, and where the look is, as `spinning` does; yields how to tell that."""
    console = console_for(error=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda _where, _count: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what)
        room = max(20, console.width - len(what) - 25)
        yield lambda where, count: progress.update(task, description=f"{what}: {count}, {printable(where)[-room:]}")
