"""What the commands share: where the configuration is, how results are printed, how failures end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from rolecall.core.json_text import escaped

ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir",
        help="Folder of rolecall.toml, profiles.toml and the registry.",
        show_default=False,
        metavar="PATH",
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Folder of engine logs and the demo models.", show_default=False, metavar="PATH"),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class CommandError(Exception):
    """The command cannot do what was asked for; the message says why and what to do. Ends with exit code 1."""


def fail(message: str, code: int = 1) -> NoReturn:
    """Print a reason on stderr and end with ``code``."""
    for line in message.splitlines():
        sys.stderr.write(f"rolecall: {line}\n")
    raise typer.Exit(code)


def confirmed(question: str, *, default: bool = False) -> bool:
    """Ask on stderr; raises ``CommandError`` that names ``--yes`` where nobody answers, or Ctrl-C does."""
    try:
        return typer.confirm(question, default=default, err=True)
    except typer.Abort:
        raise CommandError("nobody answered, so nothing was changed; --yes does not ask") from None


def one_at_most(**given: bool) -> None:
    """Fail as wrong usage where several of the options, by their names, are given that exclude each other."""
    first, *more = [f"--{name}" for name, is_given in given.items() if is_given] or [""]
    if more:
        fail(f"{first} and {more[0]} exclude each other", 2)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    typer.echo(escaped(json.dumps(value, ensure_ascii=False, separators=(",", ":"))))
