"""The command line: ``rolecall COMMAND``.

Exit codes: 0 done, 1 failed with a reason, 2 wrong usage or configuration. Results go to stdout, reasons for a failure
to stderr as lines that begin with ``rolecall:``. ``--json`` makes the result one line of JSON and changes nothing else:
a failed command has an empty stdout, unless the finding is the result (``models validate``, ``doctor``, ``init``,
``select --explain``), and its reason is on stderr in words.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import typer
from typer.core import TyperGroup

from rolecall import __version__
from rolecall.cli.common import CommandError, fail
from rolecall.errors import ConfigurationError, RolecallError

_COMMANDS = {
    "init": "init:command",
    "serve": "serve:command",
    "models": "models:app",
    "roles": "roles:app",
    "import": "coming_from:command",
    "select": "select:command",
    "tag": "vision:tag",
    "caption": "vision:caption",
    "keywords": "vision:keywords",
    "describe": "vision:describe",
    "ocr": "vision:ocr",
    "run": "vision:run_tasks",
    "tasks": "tasks:app",
    "status": "status:status",
    "load": "by_hand:load",
    "unload": "by_hand:unload",
    "pin": "by_hand:pin",
    "unpin": "by_hand:unpin",
    "cancel": "by_hand:cancel",
    "reload": "reload:command",
    "logs": "logs:app",
    "report": "report:app",
    "keys": "keys:app",
    "doctor": "doctor:command",
    "backup": "backup:backup",
    "restore": "backup:restore",
    "experiments": "experiments:app",
    "simulate": "simulate:command",
    "replay": "replay:command",
}
"""Each command's module and what it is in there: a Typer app, or a function."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Only a write has these, and files that we write are named in the error: so one without a name is about stdout."""


class _Commands(TyperGroup):
    """Imports a command with the modules behind it when it is asked for: `logs` need not wait for the gateway's."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        names: dict[str, Any] = dict.fromkeys(_COMMANDS)
        self.commands = names  # what the help lists, and a misspelt name is compared with

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, None if there is none."""
        del ctx
        return _imported(cmd_name) if cmd_name in self.commands else None

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what it raises ends it with a reason and an exit code."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            fail(str(error), 2)
        except (CommandError, RolecallError) as error:
            fail(str(error))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; a closed pipe is Typer's affair, any other failure of the system ends it in words."""
        try:
            return super().main(*args, **extra)
        except OSError as error:
            is_of_stdout = error.filename is None and error.errno in _FULL
            if is_of_stdout:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
            sys.stderr.write(f"rolecall: {'cannot write the output: ' if is_of_stdout else ''}{_told(error)}\n")
            sys.exit(1)


def _told(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    said = error.strerror or str(error) or type(error).__name__
    return f"{' -> '.join(names)}: {said}" if names else said


def _leave_out() -> None:
    """Keep out of the process what libraries import and nobody runs here: some 9 MB, and a tenth of a second."""
    # httpx's own command line, which httpx does without if it cannot be imported: rich and pygments.
    sys.modules["httpx._main"] = None  # type: ignore[assignment] # how an import is made to fail
    # httpcore takes trio along wherever it is installed, as it is with selenium.
    sys.modules.setdefault("trio", None)  # type: ignore[arg-type]
    # uvicorn's own command line: click, and multiprocessing for its reloader. The package passes three names on of it,
    # of which one is from elsewhere and is looked up there.
    stand_in = ModuleType("uvicorn.main")
    stand_in.main = stand_in.run = None  # type: ignore[attr-defined]
    stand_in.__getattr__ = _of_uvicorn  # type: ignore[method-assign]
    sys.modules.setdefault("uvicorn.main", stand_in)


def _of_uvicorn(name: str) -> Any:
    if name != "Server":
        raise AttributeError(name)
    return import_module("uvicorn.server").Server


def _imported(name: str) -> Any:
    module, _, attribute = _COMMANDS[name].partition(":")
    _leave_out()
    gc.disable()  # nothing of it is garbage, and to look for it again and again takes a sixth of the time
    command = getattr(import_module(f"rolecall.cli.{module}"), attribute)
    gc.enable()
    holder = typer.Typer(rich_markup_mode=None, add_completion=False)
    holder.callback()(lambda: None)  # makes it a group, whatever it holds
    if isinstance(command, typer.Typer):
        holder.add_typer(command, name=name)
    else:
        holder.command(name)(command)
    group = typer.main.get_command(holder)
    assert isinstance(group, TyperGroup)  # noqa: S101 - see above
    return group.commands[name]


app = typer.Typer(
    name="rolecall",
    cls=_Commands,
    help="One OpenAI address in front of every local model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rolecall {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """One OpenAI address in front of every local model."""
    del version


def main() -> None:
    """Run the command line."""
    # Where a command sets up no logging of its own, warnings are not printed: `models validate` and `doctor` tell them.
    logging.getLogger("rolecall").addHandler(logging.NullHandler())
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
