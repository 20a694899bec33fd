"""``rolecall models set|enable|disable``: single fields of the hand-written registry changed in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rolecall.cli.common import AsJson, CommandError, ConfigDir
from rolecall.cli.edits import DryRun, change_registry, discovered_rows, prepared, tell, with_entry
from rolecall.core.assignments import Assignment, read_assignment
from rolecall.runtime.registry_edit import RegistryText

Name = Annotated[str, typer.Argument(help="Name or alias of a model.")]


def set_fields(
    name: Name,
    fields: Annotated[
        list[str],
        typer.Argument(
            help="Such as context_length=8192, role_priority.caption=80, backend_config.env.NAME=text; values may be "
            "JSON, and field= removes one.",
            metavar="FIELD=VALUE...",
        ),
    ],
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Change fields of a model's entry; the rest of the file stays as it is.

    A value that makes no sense is refused, and then nothing is written. A model that was discovered gets an entry in
    the hand-written registry, which goes before what was found.
    """
    _assign([name], [_assignment(field) for field in fields], dry_run, as_json, prepared(config_dir, dry_run=dry_run))


def enable(
    names: Annotated[list[str], typer.Argument(help="Names or aliases.", metavar="NAME...")],
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Let models be used again that `disable` took away."""
    _assign(names, [Assignment(("enabled",), removes=True)], dry_run, as_json, prepared(config_dir, dry_run=dry_run))


def disable(
    names: Annotated[list[str], typer.Argument(help="Names or aliases.", metavar="NAME...")],
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Take models out of use, as if they were not installed, and keep their entries.

    An engine that is loaded finishes its answers and is stopped.
    """
    _assign(names, [Assignment(("enabled",), value=False)], dry_run, as_json, prepared(config_dir, dry_run=dry_run))


def _assignment(text: str) -> Assignment:
    try:
        return read_assignment(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _assign(names: list[str], assignments: list[Assignment], dry_run: bool, as_json: bool, config_dir: Path) -> None:
    changes: list[dict[str, Any]] = []

    def change(found: RegistryText) -> str:
        for name in names:
            found, at = _entry(found, name, assignments)
            row = found.rows[at]
            for assignment in assignments:
                before = _now(row, assignment.path)
                path: tuple[str | int, ...] = (at, *assignment.path)
                found = found.drop(path) if assignment.removes else found.put(path, assignment.value)
                row = found.rows[at]
                change = {"model": row.get("name"), "field": assignment.field, "before": before}
                changes.append(change | {"after": assignment.value})
        return found.text

    edit = change_registry(config_dir, change, dry_run=dry_run)
    lines = [f"{c['model']}: {c['field']} {_shown(c['before'])} -> {_shown(c['after'])}" for c in changes]
    tell(edit, "\n".join(lines), {"changes": changes}, as_json=as_json, dry_run=dry_run)


def _entry(found: RegistryText, name: str, assignments: list[Assignment]) -> tuple[RegistryText, int]:
    """Return the entry of a model; refuses what an entry that is only laid over a discovered one cannot change."""
    laid, at = with_entry(found, name)
    row = laid.rows[at]
    fields = ("name", "backend") if _is_laid_over(laid, row) else ()
    for field in (each.path[0] for each in assignments if each.value != row.get(each.path[0])):
        if field in fields:
            raise CommandError(
                f"{row['name']} was discovered, so its {field} is what `rolecall models scan` gives it: an entry with "
                "another one would be laid over nothing. model_aliases=... gives it a further name, display_name=... "
                "one that is shown; nothing was written"
            )
    return laid, at


def _is_laid_over(found: RegistryText, row: Any) -> bool:
    """Whether what an entry runs was discovered, and it says only what differs."""
    config = _now(row, ("backend_config",))
    is_whole = isinstance(config, dict) and bool(config.keys() & {"model_path", "base_url", "command"})
    return not is_whole and any(_now(each, ("name",)) == row.get("name") for each in discovered_rows(found))


def _now(row: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        row = row.get(step) if isinstance(row, dict) else None
    return row


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)
