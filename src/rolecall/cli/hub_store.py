"""``rolecall models verify``, ``remove`` and ``prune``, and ``models list --disk``: the models that were pulled."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from rolecall.cli.client import NoRolecall, Url, connect
from rolecall.cli.common import AsJson, CommandError, ConfigDir, StateDir, Yes, confirmed, fail, print_json
from rolecall.cli.hub_words import Meter, explained, megabytes, settings_for
from rolecall.cli.table import NOTHING, Column, Row, labelled, printable, show, table
from rolecall.core.models import ModelEntry
from rolecall.core.wording import amount, counted
from rolecall.hub.keeping import Removal, leftovers, outdated, problems, removal, remove, sweep
from rolecall.hub.registering import entries_by_path, forget
from rolecall.runtime.leftovers import engines_seen
from rolecall.runtime.model_store import ModelStore, Pulled, PulledModel
from rolecall.settings import Settings

_COLUMNS = (
    Column("model"),
    Column("label"),
    Column("MB", right=True),
    Column("revision"),
    Column("pulled", below="pulled {}"),
    Column("license", below="license {}"),
    Column("registered as", below="registered as {}"),
)
_IDLE = ("stopped", "failed")


@dataclass(frozen=True, slots=True)
class _Here:
    """A model on the disk, and the names by which the registry knows it."""

    pulled: Pulled
    model: PulledModel
    entries: tuple[ModelEntry, ...]

    @property
    def id(self) -> str:
        return f"{self.pulled.repository}:{self.model.label}"

    def is_called(self, name: str) -> bool:
        """Whether a name of the registry, a repository, or one of its models is meant."""
        ids = {id_ for entry in self.entries for id_ in entry.ids}
        return name in ids or name.casefold() in (self.id.casefold(), self.pulled.repository.casefold())


def _here(settings: Settings) -> list[_Here]:
    store, known = ModelStore(settings.models_folder), entries_by_path(settings)
    return [
        _Here(pulled, model, tuple(known.get(pulled.path(model), ())))
        for pulled in store.pulled()
        for model in pulled.models
    ]


def _called(settings: Settings, name: str) -> list[_Here]:
    """Return what was pulled under a name; raises ``CommandError`` where nothing was."""
    here = _here(settings)
    if found := [each for each in here if each.is_called(name)]:
        return found
    registered = next(
        (path for path, entries in entries_by_path(settings).items() if any(name in each.ids for each in entries)), None
    )
    if registered is not None:
        raise CommandError(f"{name} was not pulled by rolecall: {registered} is left to whoever put it there")
    raise CommandError(f"no model {name} was pulled; `rolecall models list --disk` shows those that were")


# --- list --disk


def list_disk(settings: Settings, *, as_json: bool) -> None:
    """Print the models that were pulled, and what broken pulls have left."""
    here, left = _here(settings), leftovers(ModelStore(settings.models_folder))
    if as_json:
        print_json([_json(each) for each in here])
        return
    if here:
        show(lambda width: table(_COLUMNS, list(map(_row, here)), width))
    total = sum(each.model.size_bytes for each in here)
    rest = f"; {amount(sum(each.freed_bytes for each in left))} of broken pulls" if left else ""
    show(
        lambda _: [Text(f"{settings.models_folder}: {counted(len(here), 'model')}, {amount(total)}{rest}", "dim")],
        error=True,
    )


def _row(each: _Here) -> Row:
    return Row(
        (
            each.pulled.repository,
            each.model.label,
            megabytes(each.model.size_bytes),
            each.pulled.revision[:12],
            time.strftime("%Y-%m-%d", time.localtime(each.pulled.at)),
            each.pulled.license or NOTHING,
            ", ".join(entry.name for entry in each.entries) or NOTHING,
        )
    )


def _json(each: _Here) -> dict[str, Any]:
    return {
        "repository": each.pulled.repository,
        "label": each.model.label,
        "revision": each.pulled.revision,
        "size_bytes": each.model.size_bytes,
        "license": each.pulled.license,
        "pulled_at": each.pulled.at,
        "path": str(each.pulled.path(each.model)),
        "names": [entry.name for entry in each.entries],
    }


# --- verify


def verify(
    name: Annotated[
        str | None, typer.Argument(help="A model's name, or its repository; all if it is left out.")
    ] = None,
    *,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Read pulled models and compare them with the hashes of their repository.

    Ends with 1 if one is not what it should be.
    """
    settings = settings_for(config_dir, state_dir)
    here = _called(settings, name) if name else _here(settings)
    meter = Meter(quiet=as_json)
    with meter.running():
        found = [(each, list(problems(each.pulled, each.model, meter.report))) for each in here]
    if as_json:
        print_json([{**_json(each), "ok": not wrong, "problems": wrong} for each, wrong in found])
    else:
        show(lambda width: labelled(_verdicts(found), width))
    if any(wrong for _, wrong in found):
        raise typer.Exit(1)


def _verdicts(found: Iterable[tuple[_Here, list[str]]]) -> Iterator[tuple[str, str]]:
    for each, wrong in found:
        yield each.id, "as its repository has it" if not wrong else "damaged"
        for problem in wrong:
            yield "", problem
        if wrong:
            yield "", f"`rolecall models remove {each.id}` and `rolecall models pull {each.id}` bring it anew"


# --- remove


def remove_model(  # noqa: PLR0913 - options
    name: Annotated[str, typer.Argument(help="A model's name, or REPO[:QUANT].")],
    *,
    yes: Yes = False,
    url: Url = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Remove a pulled model from the disk and the registry.

    Asks first. A model that runs is not removed: a rolecall that is there is asked.
    """
    settings = settings_for(config_dir, state_dir)
    here = _called(settings, name)
    _refuse_running(here, settings, url, config_dir)
    gone = [removal(each.pulled, each.model) for each in here]
    if not yes and not confirmed(_question(gone)):
        fail("nothing was removed")
    store = ModelStore(settings.models_folder)
    with explained():
        freed = [(each, remove(store, each.pulled, each.model)) for each in here]
    names = forget(settings, [each.pulled.path(each.model) for each, size in freed if size is not None])
    if busy := [each.id for each, size in freed if size is None]:
        raise CommandError(
            f"{', '.join(busy)}: another process pulls or removes models of this repository, wait for it"
        )
    total = sum(size or 0 for _, size in freed)
    if as_json:
        print_json({"removed": [each.id for each in here], "names": names, "freed_bytes": total})
    else:
        typer.echo(f"removed {', '.join(each.id for each in here)}: {amount(total)} are free again")
        _tell_kept(here, names)


def _question(gone: Iterable[Removal]) -> str:
    listed = "\n".join(f"  {path}" for each in gone for path in each.paths)
    return f"{listed}\nremove these files, {amount(sum(each.freed_bytes for each in gone))}?"


def _tell_kept(here: Iterable[_Here], forgotten: Iterable[str]) -> None:
    kept = [entry.name for each in here for entry in each.entries if entry.name not in forgotten]
    if kept:
        typer.echo(f"{', '.join(kept)}: a person's entry, which stays and counts as not installed", err=True)


def _refuse_running(here: Iterable[_Here], settings: Settings, url: str | None, config_dir: Path | None) -> None:
    names = {entry.name for each in here for entry in each.entries}
    _refuse_listed(names, url, config_dir)
    for seen in engines_seen(settings.state_dir):  # of a rolecall that is elsewhere, too
        name = seen.record.model
        if name in names and (seen.is_owned or seen.record.can_be_adopted):
            raise CommandError(
                f"{name} is running (pid {seen.pid}): `rolecall unload '{name}'` first, with --url if its rolecall is "
                "not where the settings say"
            )


def _refuse_listed(names: Collection[str], url: str | None, config_dir: Path | None) -> None:
    try:
        with connect(url, config_dir) as client:
            client.health()
            rows = client.models()["data"]
    except NoRolecall:
        if url is not None:
            raise
        return  # no rolecall is running where the settings say
    running = sorted(row["model"] for row in rows if row["model"] in names and row["state"] not in _IDLE)
    if running:
        raise CommandError(f"{running[0]} is running: `rolecall unload '{running[0]}'` first")


# --- prune


def prune(
    *,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")] = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Remove old revisions of pulled models, and what broken pulls have left.

    Asks first. A revision that an entry of the registry names stays.
    """
    settings = settings_for(config_dir, state_dir)
    store = ModelStore(settings.models_folder)
    old = outdated(store, entries_by_path(settings).keys())
    left = leftovers(store)
    gone = [removal(pulled, model) for pulled, model in old] + left
    if not as_json:
        show(lambda width: labelled(_to_go(gone), width))
    freed: list[int | None] = []
    is_meant = bool(gone) and not dry_run
    if is_meant and not yes and not confirmed(f"remove this, {amount(sum(each.freed_bytes for each in gone))}?"):
        fail("nothing was removed")
    if is_meant:
        with explained():
            freed = [remove(store, pulled, model) for pulled, model in old] + [sweep(store, each) for each in left]
    total = sum(size or 0 for size in freed)
    busy = [each for each, size in zip(gone, freed, strict=False) if size is None]
    if as_json:
        rows = [{"what": each.what, "paths": list(map(str, each.paths))} for each in gone]
        kept = [each.what for each in busy]
        print_json({"found": rows, "removed": is_meant, "freed_bytes": total, "being_pulled": kept})
    elif is_meant:
        if total or not busy:
            typer.echo(f"{amount(total)} are free again")
        for each in busy:
            typer.echo(printable(f"{each.what}: {each.repository} is being pulled, so it stays"), err=True)


def _to_go(gone: Iterable[Removal]) -> Iterator[tuple[str, str]]:
    rows = [(amount(each.freed_bytes), f"{each.what}: {each.paths[0].parent if each.paths else ''}") for each in gone]
    yield from rows or [("nothing", "there are no old revisions, and no broken pulls")]
