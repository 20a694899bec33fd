"""What the commands for models of a hub share: sizes in words, failures, progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from rolecall.cli.common import CommandError
from rolecall.cli.table import console_for, printable
from rolecall.core.footprint import whole_mb
from rolecall.core.hub_fit import Fit
from rolecall.core.wording import amount
from rolecall.hub.failures import HubError
from rolecall.hub.plan import Machine
from rolecall.settings import Settings, load_settings

Profile = Annotated[
    str | None,
    typer.Option("--profile", help="Judge what fits by another profile.", show_default=False, metavar="NAME"),
]


@contextmanager
def explained() -> Iterator[None]:
    """Let what goes wrong with a hub end the command with its reason."""
    try:
        yield
    except HubError as error:
        raise CommandError(str(error)) from None


def settings_for(config_dir: Path | None, state_dir: Path | None, profile: str | None = None) -> Settings:
    """Return the settings, with another profile if one is named."""
    return load_settings({"config_dir": config_dir, "state_dir": state_dir, "deployment_profile": profile})


def megabytes(size: int) -> str:
    """Return bytes as MB, rounded up: what is there has at least one."""
    return str(whole_mb(size))


def cards(fit: Fit, machine: Machine) -> str:
    """Return where a model fits: ``GPU 0``, ``GPU 0, 1`` (each), ``GPU 0 + 1`` (together), ``RAM``."""
    if not fit.cards:
        return "no"
    if not machine.names and len(fit.cards) == 1:
        where = "RAM"
    else:
        where = "GPU " + (" + " if fit.verdict == "fits together" else ", ").join(map(str, fit.cards))
    return f"{where}, context {fit.context_tokens}" if fit.verdict == "shorter context" else where


class Meter:
    """Shows how far files are: bars on a terminal, else a line a file; both on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        console = console_for(error=True)
        self._bars = None if quiet or not console.is_terminal or console.is_dumb_terminal else _bars()
        self._quiet = quiet
        self._tasks: dict[tuple[str, str], int] = {}

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Show it meanwhile."""
        if self._bars is None:
            yield self
        else:
            with self._bars:
                yield self

    def report(self, what: str, path: str, done: int, total: int) -> None:
        """Take in how far something is."""
        key = (what, path)
        if key not in self._tasks:
            self._tasks[key] = self._begin(what, path, done, total)
        if self._bars is not None:
            self._bars.update(self._tasks[key], completed=done)  # type: ignore[arg-type] # rich's own type of ids

    def _begin(self, what: str, path: str, done: int, total: int) -> int:
        if self._bars is not None:
            return self._bars.add_task(printable(f"{what} {path}"), total=total, completed=done)
        if not self._quiet and what == "fetching":
            rest = f", {amount(done)} are here" if done else ""
            typer.echo(f"{what} {printable(path)} ({amount(total)}{rest})", err=True)
        return 0

    def wait(self, seconds: float, why: str) -> None:
        """Wait, and say so."""
        if not self._quiet:
            typer.echo(f"{printable(why)}; going on in {seconds:g} s", err=True)
        time.sleep(seconds)


def _bars() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console_for(error=True), transient=True)
