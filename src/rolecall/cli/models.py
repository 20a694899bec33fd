"""``rolecall models``: the registry as it stands on this machine, listed, shown and checked; no server is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from rolecall.cli.common import AsJson, CommandError, ConfigDir, StateDir, print_json
from rolecall.cli.hub_pull import command as pull_model
from rolecall.cli.hub_search import command as search_models
from rolecall.cli.hub_store import list_disk, prune, remove_model, verify
from rolecall.cli.model_card import card, card_lines
from rolecall.cli.model_edits import disable, enable, set_fields
from rolecall.cli.models_fit import command as fit
from rolecall.cli.offline import open_roster
from rolecall.cli.scan import command as scan_models
from rolecall.cli.table import NOTHING, Column, Row, labelled, or_nothing, show, table
from rolecall.core.registry import Registry, RegistryError, read_registry
from rolecall.core.selection import Candidate
from rolecall.core.wording import counted
from rolecall.runtime.registry import CURATED, load_registry, missing, read_list, write_schema
from rolecall.runtime.roster import Roster, choose
from rolecall.settings import load_settings, prepare_config_dir

app = typer.Typer(no_args_is_help=True, help="Find, fetch, list, show, check and change models.")

app.command("scan")(scan_models)
app.command("search")(search_models)
app.command("pull")(pull_model)
app.command("verify")(verify)
app.command("remove")(remove_model)
app.command("prune")(prune)
app.command("fit")(fit)
app.command("set")(set_fields)
app.command()(enable)
app.command()(disable)

_COLUMNS = (
    Column("model"),
    Column("backend"),
    Column("MB", right=True),
    Column("quantization", below="{}"),
    Column("context", right=True, below="context {}"),
    Column("roles", below="roles {}"),
    Column("capabilities", below="can {}"),
    Column("state", style=lambda text: "green" if text == "installed" else "dim"),
)


@app.command("list")
def list_models(  # noqa: PLR0913 - options
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Those that are not installed as well, with the reason.")
    ] = False,
    role: Annotated[str | None, typer.Option(help="Only models that play this role, the best first.")] = None,
    disk: Annotated[
        bool, typer.Option("--disk", help="Those that were pulled, with what they take of the disk.")
    ] = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """List the models that are installed."""
    if disk:
        list_disk(load_settings({"config_dir": config_dir, "state_dir": state_dir}), as_json=as_json)
        return
    roster = open_roster(config_dir, state_dir)
    found = list(_candidates(roster, role))
    shown = [candidate for candidate in found if every or candidate.unavailable is None]
    if as_json:
        print_json([_summary(candidate) for candidate in shown])
        return
    if shown:
        show(lambda width: table(_COLUMNS, [_row(candidate) for candidate in shown], width, notes="why"))
    hidden = len(found) - len(shown)
    if hidden:
        _hint(f"{hidden} of {len(found)} are not installed; --all shows them and why")
    elif not shown:
        _hint(f"the registry in {roster.settings.config_dir} has no models")


def _hint(text: str) -> None:
    show(lambda _width: [Text(text, "dim")], error=True)


def _candidates(roster: Roster, role: str | None) -> Iterable[Candidate]:
    if role is None:
        return roster.candidates()
    target = roster.catalog.role(role.removeprefix("role:"))
    playing = [candidate for candidate in roster.candidates() if candidate.entry in target.entries]
    return sorted(playing, key=lambda candidate: -candidate.priority(target.role))


def _summary(candidate: Candidate) -> dict[str, Any]:
    entry = candidate.entry
    return {
        "name": entry.name,
        "aliases": list(entry.model_aliases),
        "backend": entry.backend,
        "roles": _by_priority(entry.priorities),
        "capabilities": sorted(entry.all_capabilities),
        "vram_estimate_mb": candidate.footprint_mb,
        "quantization": entry.quantization,
        "context_length": entry.context_tokens,
        "installed": candidate.unavailable is None,
        "reason": candidate.unavailable,
    }


def _by_priority(priorities: dict[str, float]) -> dict[str, float]:
    return dict(sorted(priorities.items(), key=lambda item: (-item[1], item[0])))


def _row(candidate: Candidate) -> Row:
    entry = candidate.entry
    roles = ", ".join(f"{role}:{priority:g}" for role, priority in _by_priority(entry.priorities).items())
    cells = (
        entry.name,
        entry.backend,
        or_nothing(candidate.footprint_mb),
        or_nothing(entry.quantization),
        or_nothing(entry.context_tokens),
        roles or NOTHING,
        ", ".join(sorted(entry.all_capabilities)),
        _state(candidate),
    )
    return Row(cells, (candidate.unavailable or "").removeprefix("not installed: "))


def _state(candidate: Candidate) -> str:
    if candidate.unavailable is None:
        return "installed"
    return "not installed" if candidate.entry.enabled else "disabled"


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="Name, alias or role:x; a role shows the model that would be chosen.")],
    *,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Show all that is known of a model.

    That includes its files, what it holds, and the command line that would start its engine.
    """
    roster = open_roster(config_dir, state_dir)
    target = roster.catalog.resolve(name)
    entry = target.entries[0] if target.role is None else choose(roster, roster.candidates(), target.role).best().entry
    known = card(roster, entry)
    if as_json:
        print_json(known)
    else:
        show(lambda width: card_lines(known, width))


@app.command()
def validate(
    file: Annotated[Path | None, typer.Argument(help="A registry file; else those of the config folder.")] = None,
    *,
    as_json: AsJson = False,
    schema: Annotated[
        bool, typer.Option("--write-schema", help="Write the registry's JSON Schema into the config folder as well.")
    ] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Check a registry, naming each wrong entry and field."""
    settings = load_settings({"config_dir": config_dir})
    if file is None:
        prepare_config_dir(settings)
    registry, errors = _read(file, settings.config_dir)
    place = str(file or settings.config_dir / CURATED)
    written = write_schema(settings.config_dir) if schema else None
    if as_json:
        report = {"valid": not errors, "registry": place, "entries": len(registry.entries), "errors": errors}
        print_json(report | {"warnings": list(registry.warnings), "schema": written and str(written)})
    else:
        show(lambda width: _verdict(place, registry, errors, width))
        if written:
            typer.echo(f"schema written to {written}")
    if errors:
        raise typer.Exit(1)


def _read(file: Path | None, config_dir: Path) -> tuple[Registry, list[str]]:
    if file is None and (problem := missing(config_dir)) is not None:
        raise CommandError(f"{problem}: name the right folder (--config-dir), or write a list of entries there")
    try:
        return (load_registry(config_dir) if file is None else read_registry(_parse(file))), []
    except RegistryError as error:
        return Registry(), list(error.problems)


def _parse(path: Path) -> Any:
    if not path.exists():
        raise CommandError(f"{path} cannot be read: it does not exist")
    return read_list(path)


def _verdict(place: str, registry: Registry, errors: list[str], width: int | None) -> Iterator[Text]:
    yield from labelled([("error", problem) for problem in errors], width)
    yield from labelled([("warning", warning) for warning in registry.warnings], width)
    if errors:
        yield Text(f"{place}: {counted(len(errors), 'error')}; such a registry is refused")
    else:
        counts = f"{counted(len(registry.entries), 'entry', 'entries')}, {counted(len(registry.warnings), 'warning')}"
        yield Text(f"{place}: valid, {counts}")
