"""``rolecall models scan``: the models on this machine, registered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from rolecall.cli.common import AsJson, ConfigDir, StateDir, print_json
from rolecall.cli.folders import Folders, Only, named_folders
from rolecall.cli.spinner import counting
from rolecall.cli.table import NOTHING, Column, Row, labelled, show, table
from rolecall.core.footprint import whole_mb
from rolecall.core.wording import counted
from rolecall.discovery.discover import Discovery, discover
from rolecall.discovery.entries import Named
from rolecall.discovery.found import shown
from rolecall.settings import load_settings, prepare_config_dir

_STYLES = {"new": "green", "changed": "yellow", "vanished": "red"}
_COLUMNS = (
    Column("model"),
    Column("backend"),
    Column("MB", right=True),
    Column("context", right=True, below="context {}"),
    Column("roles", below="roles {}"),
    Column("capabilities", below="can {}"),
    Column("state", style=lambda text: _STYLES.get(text, "dim")),
)


def command(  # noqa: PLR0913 - options
    folders: Folders = None,
    *,
    only: Only = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say for each model why it is registered so.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Take out models whose files are gone.")] = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Find the models on this machine and register them.

    Looks at the caches of Hugging Face and llama.cpp, at LM Studio's and Ollama's folders, and asks Ollama. Headers are
    read, weights never; nothing is moved. The result is model_registry.discovered.json, which a curated entry of the
    same name goes before, field by field.
    """
    given = named_folders(folders, only=only)
    settings = load_settings({"config_dir": config_dir, "state_dir": state_dir})
    if not dry_run:
        prepare_config_dir(settings)
    with counting("looking for models") as progress:
        found = discover(settings, os.environ, Path.home(), given, known=not only, forget=forget, progress=progress)
    written = not dry_run and found.write()
    if as_json:
        print_json(_report(found, written=written, dry_run=dry_run))
    else:
        show(lambda width: _lines(found, width, explain=explain))
        show(lambda _width: _summary(found, written=written, dry_run=dry_run))
        show(lambda width: labelled(_notes(found), width), error=True)


# --- for people


def _lines(found: Discovery, width: int | None, *, explain: bool) -> Iterator[Text]:
    named = {each.name: each for each in found.naming.named}
    rows = [_row(entry, state, named.get(name), explain=explain) for name, entry, state in _scanned(found)]
    if rows:
        yield from table(_COLUMNS, rows, width, notes="why")


def _scanned(found: Discovery) -> Iterator[tuple[str, dict[str, Any], str]]:
    for entry in found.next.entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name in found.next.states:
            yield name, entry, found.next.states[name]


def _row(entry: dict[str, Any], state: str, named: Named | None, *, explain: bool) -> Row:
    facts = entry["metadata"]["discovered"]
    size = facts.get("size_bytes")
    roles = entry.get("role_priority", {})
    cells = (
        str(entry["name"]),
        str(entry.get("backend")),
        str(whole_mb(size)) if isinstance(size, int) else NOTHING,
        str(entry.get("context_length") or NOTHING),
        ", ".join(f"{role}:{priority:g}" for role, priority in roles.items()) or NOTHING,
        ", ".join(entry.get("capabilities", [])) or NOTHING,
        state,
    )
    return Row(cells, "\n".join(_reasons(entry, named)) if explain else "")


def _reasons(entry: dict[str, Any], named: Named | None) -> Iterator[str]:
    yield str(entry.get("backend_config", {}).get("model_path") or f"Ollama's {entry.get('served_model_id')}")
    if named is None:
        yield "not seen by this scan"
        return
    yield from named.model.notes
    for applied in named.verdict.applied:
        yield f"{applied.rule}: {applied.why} → {applied.effect}"


def _summary(found: Discovery, *, written: bool, dry_run: bool) -> Iterator[Text]:
    states = list(found.next.states.values())
    counts = [f"{states.count(state)} {state}" for state in ("new", "changed", "known", "kept", "vanished")]
    yield Text(
        f"{counted(len(states), 'model')}: {', '.join(each for each in counts if not each.startswith('0 ')) or 'none'}"
    )
    path = found.earlier.path
    yield Text(f"{path}: {'not written (--dry-run)' if dry_run else 'written' if written else 'unchanged'}")


def _notes(found: Discovery) -> Iterator[tuple[str, str]]:
    """What deserves a look: it goes to stderr, so that a table in a pipe stays one."""
    for place, count in found.findings.per_place:
        yield place.provider, f"{shown(place.path)}: {counted(count, 'model')}"
    if found.findings.daemon:
        yield "ollama", found.findings.daemon
    for each in found.left_out:
        yield "left out", f"{each.path}: {each.reason}"
    for conflict in found.naming.conflicts:
        models = "; ".join(f"{each['name']} is {each['path']}" for each in conflict["models"])
        yield "one name", f"{len(conflict['models'])} models would be called {conflict['name']}: {models}"
    for name in found.next.dropped:
        yield "taken out", name
    if found.replaced:
        yield "replaced", found.replaced


# --- for programs


def _report(found: Discovery, *, written: bool, dry_run: bool) -> dict[str, Any]:
    named = {each.name: each for each in found.naming.named}
    return {
        "file": shown(found.earlier.path),
        "written": written,
        "dry_run": dry_run,
        "places": [
            {"provider": place.provider, "path": shown(place.path), "models": count}
            for place, count in found.findings.per_place
        ],
        "ollama": found.findings.daemon,
        "models": [
            {"name": name, "state": state, "entry": entry, "why": list(_reasons(entry, named.get(name)))}
            for name, entry, state in _scanned(found)
        ],
        "left_out": [{"path": each.path, "reason": each.reason} for each in found.left_out],
        "same_name": found.naming.conflicts,
        "taken_out": found.next.dropped,
        "problem": found.earlier.problem,
        "backup": found.backup and str(found.backup),
    }
