"""What the commands that change files share: the change itself, what is told of it, and the difference."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from rolecall.cli.common import CommandError, print_json
from rolecall.cli.table import printable, say, show
from rolecall.core.registry import RegistryError, read_registry, rows_of
from rolecall.core.wording import meant
from rolecall.runtime.registry_edit import FileEdit, RegistryEdit, RegistryText, edit_registry
from rolecall.settings import load_settings, prepare_config_dir

FOLLOWS = "a running server follows within a second"
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")]


def prepared(config_dir: Path | None, *, dry_run: bool = False) -> Path:
    """Return the config folder, made with the shipped files if it is the user's own and not there yet."""
    settings = load_settings({"config_dir": config_dir})
    if not dry_run:
        prepare_config_dir(settings)
    return settings.config_dir


def change_registry(
    config_dir: Path,
    change: Callable[[RegistryText], str],
    *,
    file: Path | None = None,
    dry_run: bool = False,
    backup: bool = False,
) -> RegistryEdit:
    """Change the curated registry, or ``file``; what cannot be done ends the command with the reason."""
    try:
        return edit_registry(config_dir, change, file=file, dry_run=dry_run, backup=backup)
    except RegistryError as error:
        raise CommandError(str(error)) from None


def with_entry(found: RegistryText, id_: str) -> tuple[RegistryText, int]:
    """Return the text and the position of the entry that a name or an alias stands for.

    A model that was discovered gets an entry of its own, which is laid over what was found of it.
    """
    at = found.find(id_)
    if at is not None:
        return found, at
    rows = discovered_rows(found)
    elsewhere = RegistryText("", rows, ())
    place = elsewhere.find(id_)
    if place is None:
        raise CommandError(_unknown(id_, [*found.rows, *rows]))
    name, backend = elsewhere.rows[place]["name"], elsewhere.rows[place].get("backend")
    at = found.find(name)
    if at is not None:  # the alias stands in what was discovered alone
        return found, at
    return found.append({"name": name, "backend": backend}), len(found.rows)


def discovered_rows(found: RegistryText) -> tuple[Any, ...]:
    """Return the entries that a scan or a pull has written."""
    return tuple(rows_of(found.discovered))


def _unknown(id_: str, rows: Iterable[Any]) -> str:
    names = [str(row["name"]) for row in rows if isinstance(row, dict) and "name" in row]
    known = meant(id_, names) or "`rolecall models list --all` shows all"
    return f"the registry has no model {id_!r}; {known}"


def warnings_of(edit: FileEdit) -> list[str]:
    """Return what the registry is warned about that it was not before the change; nothing for another file."""
    if not isinstance(edit, RegistryEdit):
        return []
    try:
        before = read_registry(json.loads(edit.before or "[]"), edit.discovered).warnings
    except RegistryError:
        before = ()
    return [warning for warning in edit.registry.warnings if warning not in before]


def tell(  # noqa: PLR0913 - what was done, and how it is told
    edit: FileEdit,
    done: str,
    report: dict[str, Any],
    *,
    as_json: bool,
    dry_run: bool,
    follows: str = FOLLOWS,
) -> None:
    """Print what was done, or with ``dry_run`` what would be, and what the registry is warned about since.

    ``follows`` says when a running server takes it up.
    """
    if as_json:
        print_json(report | changes(edit, edit.before, edit.after, dry_run=dry_run))
        return
    if dry_run:
        show_difference(edit.path, edit.before, edit.after)
    elif edit.changed:
        typer.echo(printable(done))
    say(*warned(edit), state(edit, dry_run=dry_run, follows=follows))


def changes(edit: FileEdit, before: str, after: str, *, dry_run: bool) -> dict[str, Any]:
    """Return what every command that changes a file reports; ``before`` and ``after`` as they may be shown."""
    report = {"file": str(edit.path), "changed": edit.changed, "written": edit.written, "warnings": warnings_of(edit)}
    return report | ({"diff": "\n".join(difference(edit.path, before, after))} if dry_run else {})


def warned(edit: FileEdit) -> list[str]:
    """Return the warnings as they are told."""
    return [f"warning: {warning}" for warning in warnings_of(edit)]


def state(edit: FileEdit, *, dry_run: bool, follows: str = FOLLOWS) -> str:
    """Return what became of the file."""
    if not edit.changed:
        return f"{edit.path} says so already; nothing was changed"
    if dry_run:
        return "nothing was written"
    return f"written to {edit.path}{follows and '; '}{follows}"


def difference(path: Path, before: str, after: str) -> list[str]:
    """Return a change of a file as the lines of a unified diff."""
    lines = before.splitlines(), after.splitlines()
    return list(difflib.unified_diff(*lines, str(path), f"{path} (changed)", lineterm=""))


def show_difference(path: Path, before: str, after: str) -> None:
    """Print a change of a file as a unified diff."""
    colours = {"+": "green", "-": "red", "@": "cyan"}
    lines = [Text(printable(line), colours.get(line[:1], "")) for line in difference(path, before, after)]
    show(lambda _width: lines)
