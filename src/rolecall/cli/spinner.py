"""A sign of life on a terminal while something takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rolecall.cli.table import console_for, printable

_BESIDE = 25
"""Columns of a terminal that the spinner, a count and the time take."""


@contextmanager
def telling(*, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield how to tell what goes on, on stderr.

    On a terminal the last that was told is shown with the time that passes, and taken away at the end; elsewhere each
    is a line, or nothing with ``quiet``.
    """
    console = console_for(error=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda what: None if quiet else typer.echo(printable(what), err=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        yield lambda what: progress.update(task, description=printable(what))


@contextmanager
def spinning(what: str) -> Iterator[None]:
    """Show ``what`` if stderr is a terminal."""
    with telling(quiet=True) as tell:
        tell(what)
        yield


@contextmanager
def counting(what: str) -> Iterator[Callable[[str, int], None]]:
    """Show ``what``, how many there are so far, and where the look is, as `spinning` does; yields how to tell that."""
    room = max(20, console_for(error=True).width - len(what) - _BESIDE)
    with telling(quiet=True) as tell:
        tell(what)
        yield lambda where, count: tell(f"{what}: {count}, {where[-room:]}")
