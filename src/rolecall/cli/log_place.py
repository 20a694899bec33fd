"""What the commands over the request log share: where it is, how options are read, how reading ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from rolecall.cli.common import fail

T = TypeVar("T")

ENVVAR = "CHAT_PROXY_LOG_PATH"
Memory = Annotated[int, typer.Option("--memory", min=256, help="Most memory for the database, in MB.", metavar="MB")]


def default_log_path(config_dir: Path | None) -> Path:
    """Return where the settings have the log; for when neither ``--file`` nor the environment names it."""
    from rolecall.settings import load_settings  # noqa: PLC0415 - pydantic takes a tenth of a second

    return load_settings({"config_dir": config_dir}).log_path


def log_path(ctx: typer.Context, file: Path | None, config_dir: Path | None) -> Path:
    """Return the log that a command below ``logs`` means; options that it was not given itself may stand before it."""
    given = ctx.parent.params if ctx.parent else {}
    return file or given.get("file") or default_log_path(config_dir or given.get("config_dir"))


@contextmanager
def ending_quietly(*, interruptible: bool = False) -> Iterator[None]:
    """End without a traceback when our output is closed (``| head``), on Ctrl-C, or with a reason on a read error."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        raise typer.Exit from None
    except KeyboardInterrupt:
        if not interruptible:
            raise
        raise typer.Exit from None
    except OSError as error:
        if error.filename is None:  # files that are read have names, stdout has none
            raise
        fail(f"cannot read the request log: {error.strerror}: {error.filename}")


def parsed(option: str, parse: Callable[[str], T], text: str | None) -> T | None:
    """Return what the text of an option means, None where it was not given; a wrong one is wrong usage."""
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def missing(path: Path) -> str:
    """Say that there is no log, and what to do."""
    return (
        f"no request log at {path.absolute()}; rolecall writes it while it serves. "
        f"--file or {ENVVAR} names another place"
    )
