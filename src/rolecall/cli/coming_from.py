"""``rolecall import``: the models of llama-swap, LiteLLM and ImageWorks taken over into the registry."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from rolecall.cli.common import AsJson, CommandError, ConfigDir, print_json
from rolecall.cli.edits import (
    FOLLOWS,
    DryRun,
    change_registry,
    changes,
    discovered_rows,
    prepared,
    show_difference,
    state,
    warned,
)
from rolecall.cli.table import labelled, say, show
from rolecall.core.json_edit import append, exchange
from rolecall.elsewhere.merge import Conflict, Merge, merge
from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.recognise import read_configuration
from rolecall.elsewhere.secrets import is_secret
from rolecall.elsewhere.source import MOST_BYTES
from rolecall.elsewhere.tree import SourceError
from rolecall.runtime.registry_edit import RegistryEdit, RegistryText

_STDOUT = "-"
_KINDS = {"lost": "not carried over", "changed": "changed", "todo": "to do"}


def command(  # noqa: PLR0913 - each is an option of its own
    file: Annotated[
        str, typer.Argument(help="A config.yaml of llama-swap or LiteLLM, a registry of ImageWorks, or - for stdin.")
    ],
    *,
    dry_run: DryRun = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace entries of the same name; they are kept otherwise.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(help="Registry file to write to instead of the one in use; - prints the entries.", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Take models over from llama-swap, LiteLLM or ImageWorks, and say line by line what could not be.

    The kind of file is seen by its content. Models of a name that the registry has are left as they are there. What was
    in the registry's file before is kept beside it.
    """
    outcome = _read(file)
    if out == _STDOUT:
        merged = merge((), (), outcome, replace=False)
        typer.echo(json.dumps(merged.added, indent=2, ensure_ascii=False))
        _remarks(outcome, error=True)
        return
    merged, edit = _write(outcome, prepared(config_dir, dry_run=dry_run), out, replace=replace, dry_run=dry_run)
    if as_json:
        print_json(_report(file, outcome, merged, edit, dry_run=dry_run))
        return
    _summary(file, outcome, merged)
    _remarks(outcome)
    if dry_run:
        show_difference(edit.path, *_hidden(outcome, edit.before, edit.after))
    say(*_closing(merged, edit, dry_run=dry_run, in_use=out is None))


def _read(file: str) -> Outcome:
    try:
        if file == _STDOUT:
            data, folder = sys.stdin.buffer.read(MOST_BYTES + 1), Path.cwd()
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(MOST_BYTES + 1)
            folder = Path(file).resolve().parent
        outcome = read_configuration(data, str(folder), os.environ)
    except SourceError as error:
        raise CommandError("\n".join(f"{file}: {problem}" for problem in error.problems)) from None
    if not outcome.drafts:
        lines = [f"line {remark.line}: {remark.subject} {remark.text}" for remark in outcome.remarks]
        raise CommandError("\n".join([f"{file}: has no model that could be carried over", *lines]))
    return outcome


def _write(
    outcome: Outcome, config_dir: Path, out: str | None, *, replace: bool, dry_run: bool
) -> tuple[Merge, RegistryEdit]:
    found: list[Merge] = []

    def change(registry: RegistryText) -> str:
        found.append(merge(registry.rows, discovered_rows(registry), outcome, replace=replace))
        text = exchange(registry.text, registry.place, dict(found[0].replaced))
        return append(text, registry.place, *found[0].added)

    file = None if out is None else Path(out)
    makes_folder = file is not None and not file.parent.is_dir()
    edit = change_registry(config_dir, change, file=file, dry_run=dry_run, backup=True)
    if makes_folder:
        say(
            f"there {'is' if dry_run else 'was'} no folder {edit.path.parent}: it {'would be' if dry_run else 'is'} new"
        )
    return found[0], edit


def _report(file: str, outcome: Outcome, merged: Merge, edit: RegistryEdit, *, dry_run: bool) -> dict[str, Any]:
    hidden = _hidden(outcome, edit.before, edit.after)
    return {
        "source": file,
        "format": outcome.format,
        "backup": edit.backup and str(edit.backup),
        "added": [entry["name"] for entry in merged.added],
        "replaced": [entry["name"] for _, entry in merged.replaced],
        "unchanged": merged.unchanged,
        "conflicts": [asdict(conflict) for conflict in merged.conflicts],
        "remarks": [asdict(remark) for remark in outcome.remarks],
        "settings": outcome.settings,
        **changes(edit, *hidden, dry_run=dry_run),
    }


def _summary(file: str, outcome: Outcome, merged: Merge) -> None:
    def lines(width: int | None) -> Iterator[Text]:
        yield Text(f"{file} ({outcome.format})", "bold")
        pairs = [("new", _entry_line(entry)) for entry in merged.added]
        pairs += [("replaced", _entry_line(entry)) for _, entry in merged.replaced]
        pairs += [("unchanged", name) for name in merged.unchanged]
        pairs += [("kept", _conflict_line(conflict)) for conflict in merged.conflicts]
        yield from labelled(pairs, width)

    show(lines)


def _entry_line(entry: dict[str, Any]) -> str:
    aliases = entry.get("model_aliases", [])
    config = entry.get("backend_config", {})
    words = config.get("command")
    where = config.get("model_path") or config.get("base_url") or (words and f"command {words[0]}") or ""
    also = f" (also {', '.join(aliases)})" if aliases else ""
    return f"{entry['name']}{also}: {entry['backend']} {where}".rstrip()


def _conflict_line(conflict: Conflict) -> str:
    return f"{conflict.name}, as the registry has it; line {conflict.line} differs in {'; '.join(conflict.differs)}"


def _remarks(outcome: Outcome, *, error: bool = False) -> None:
    def lines(width: int | None) -> Iterator[Text]:
        pairs = [
            (f"line {remark.line}", f"{_KINDS[remark.kind]}: {remark.subject}: {remark.text}")
            for remark in outcome.remarks
        ]
        yield from labelled(pairs, width)
        if outcome.settings:
            yield Text("for rolecall.toml:", "bold")
            yield from (Text(f"    {line}") for table in outcome.settings for line in table.splitlines())

    show(lines, error=error)


def _closing(merged: Merge, edit: RegistryEdit, *, dry_run: bool, in_use: bool) -> list[str]:
    lines = warned(edit) if edit.changed else []
    if merged.conflicts:
        lines.append(f"{len(merged.conflicts)} kept as the registry has them; --replace takes those of the file")
    if edit.backup is not None:
        lines.append(f"what was there before is kept in {edit.backup}")
    if not edit.changed:
        return [*lines, f"{edit.path} was not changed"]
    return [*lines, state(edit, dry_run=dry_run, follows=FOLLOWS if in_use else "")]


def _hidden(outcome: Outcome, *texts: str) -> list[str]:
    """Return texts without the secrets that were copied into entries."""
    secrets = set()
    for draft in outcome.drafts:
        config = draft.entry.get("backend_config", {})
        secrets |= {value for name, value in config.get("env", {}).items() if is_secret(name)}
        for word in (*config.get("command", ()), *config.get("extra_args", ())):
            name, _, value = word.lstrip("-").partition("=")
            secrets |= {value} if is_secret(name) else set()
    hidden = []
    for text in texts:
        for secret in filter(None, secrets):
            text = text.replace(json.dumps(secret, ensure_ascii=False)[1:-1], "***")  # noqa: PLW2901
        hidden.append(text)
    return hidden
