"""``rolecall models fit``: what models need, how much context they may have, which fit together; without a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from rolecall.cli.common import AsJson, CommandError, ConfigDir, StateDir, print_json
from rolecall.cli.offline import open_roster
from rolecall.cli.table import Column, Row, folded, labelled, or_nothing, show, table
from rolecall.core.capacity import Cards, cards_of, fit_together
from rolecall.core.models import ModelEntry
from rolecall.core.profiles import activate
from rolecall.core.wording import some
from rolecall.discovery.rules_file import load_rules
from rolecall.discovery.unlisted import NoModel, unlisted
from rolecall.errors import ModelNotFound
from rolecall.runtime.fitting import Fit, Fitting, beside_each, imagined
from rolecall.runtime.roster import Roster

MOST_TOKENS = 2**30
MOST_SLOTS = 4096
MOST_TOGETHER = 100
"""Models that are tried beside each other, the best first: each with each, which is the square of it."""

MOST_SETS = 10
"""Of models that fit together, as people see them; `--json` has all."""

MOST_NAMED = 10
"""Models of a set, for people as well."""

_PARTS = ("weights_mb", "kv_cache_mb", "compute_mb", "projector_mb", "fixed_mb")
_COLUMNS = (
    Column("model"),
    Column("needs MB", right=True),
    Column("fits", style=lambda text: {"yes": "green", "no": "red"}.get(text, "")),
    Column("weights", right=True, below="weights {} MB"),
    Column("KV cache", right=True, below="KV cache {} MB"),
    Column("buffers", right=True, below="buffers {} MB"),
    Column("context", right=True, below="context {}"),
    Column("at once", right=True, below="{} at once"),
    Column("largest context", right=True, below="largest context {}"),
)


def command(  # noqa: PLR0913 - each is an option of its own
    name: Annotated[
        str | None, typer.Argument(help="Name, alias, role:x, or the path of a GGUF or a folder. Else all.")
    ] = None,
    *,
    context: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="With a context of so many tokens.")
    ] = None,
    parallel: Annotated[int | None, typer.Option(min=1, max=MOST_SLOTS, help="For so many requests at once.")] = None,
    profile: Annotated[str | None, typer.Option(help="On the cards of this profile.", show_default="in force")] = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Say what models need, how much context they may have, and which fit together.

    By the figures that the scheduler goes by. Ends with exit code 1 if the model that was named does not fit.
    """
    roster = open_roster(config_dir, state_dir)
    cards = _cards(roster, profile)
    fitting = _fitting(roster, cards, is_here=profile in (None, roster.active.profile.name))
    chosen = _chosen(roster, name)
    fits = [fitting.of(entry, context, parallel) for entry in chosen]
    if name is not None and len(fits) == 1 and fits[0].problem is not None:
        raise CommandError(f"what {name} needs is not known: {fits[0].problem}")
    named = {entry.name for entry in chosen}  # a file goes before the entry that has its name
    others = [fitting.of(e) for e in _installed(roster) if e.name not in named] if name is not None else []
    known = _report(roster, cards, profile, fits, others)
    if as_json:
        print_json(known)
    else:
        show(lambda width: _lines(known, width))
    if name is not None and not any(fit.fits for fit in fits):
        raise typer.Exit(1)


def _cards(roster: Roster, profile: str | None) -> Cards:
    """Return the cards that are here; for another profile than the one in force, those that it is made for."""
    active = roster.active
    if profile in (None, active.profile.name):
        return Cards(active.devices, active.budget_mb, active.profile.max_concurrent_models)
    named = activate(roster.profiles, (), 0, forced=profile, ceiling_mb=roster.settings.max_vram_mb)
    return replace(cards_of(named.profile), budget_mb=named.budget_mb)


def _fitting(roster: Roster, cards: Cards, *, is_here: bool) -> Fitting:
    if is_here:
        return Fitting(roster.footprints, roster.backend, cards, roster.device)
    return Fitting(imagined(roster.footprints, cards), roster.backend, cards)


def _chosen(roster: Roster, name: str | None) -> list[ModelEntry]:
    if name is None:
        return _installed(roster)
    try:
        return [entry for entry in roster.catalog.resolve(name).entries if roster.backend(entry).managed]
    except ModelNotFound as error:
        if not ("/" in name or name.lower().endswith(".gguf") or Path(name).exists()):
            raise CommandError(f"{error.message} A file or a folder is named by its path, as in ./{name}") from None
    try:
        return unlisted(Path(name), load_rules(roster.settings.config_dir))
    except NoModel as error:
        raise CommandError(str(error)) from None


def _installed(roster: Roster) -> list[ModelEntry]:
    """Return the models that rolecall loads, the best first."""
    listed = [entry for entry in roster.catalog.listed() if roster.backend(entry).managed]
    return sorted(listed, key=lambda entry: -max(entry.priorities.values(), default=0))


def _report(
    roster: Roster, cards: Cards, profile: str | None, fits: Sequence[Fit], others: Sequence[Fit]
) -> dict[str, Any]:
    beside = beside_each(cards, [*fits, *others][:MOST_TOGETHER]) if others else {}
    tenants = [fit.tenant for fit in fits if fit.tenant is not None and fit.fits]
    needs = {fit.entry.name: fit.needs.mb or 0 for fit in fits}
    sets = fit_together(cards, tenants[:MOST_TOGETHER]) if not others else []
    return {
        "profile": profile or roster.active.profile.name,
        "on": "gpu" if cards.are_gpus else "host",
        "cards": [{"id": device.id, "mb": device.capacity_mb} for device in cards.devices],
        "budget_mb": cards.budget_mb,
        "max_concurrent_models": cards.max_models,
        "models": [_model(fit) | ({"beside": beside.get(fit.entry.name, [])} if others else {}) for fit in fits],
        "together": [{"models": list(names), "mb": sum(needs[name] for name in names)} for names in sets],
    }


def _model(fit: Fit) -> dict[str, Any]:
    parts = fit.parts
    return {
        "name": fit.entry.name,
        "path": fit.entry.backend_config.model_path,
        "backend": fit.backend,
        "needs_mb": fit.needs.mb,
        "source": fit.needs.source,
        "detail": fit.needs.detail,
        "room_mb": fit.room_mb,
        "fits": fit.fits,
        "computed": parts and {name: getattr(parts, name) for name in ("mb", *_PARTS, "least_mb", "why")},
        "caveat": (parts and parts.caveat) or None,
        "parallel": fit.slots,
        "context_tokens": (parts and parts.context_tokens) or None,
        "request_tokens": (parts and parts.request_tokens) or None,
        "own_context_tokens": fit.own_tokens,
        "largest_context_tokens": fit.largest_tokens,
        "problem": fit.problem,
    }


def _lines(known: Mapping[str, Any], width: int | None) -> Iterator[Text]:
    yield from labelled([("profile", known["profile"]), ("memory", _memory(known))], width)
    models = known["models"]
    yield Text()
    if not models:
        yield Text("no model is installed that rolecall loads; name the path of a GGUF, or add entries to the registry")
        return
    yield from table(_COLUMNS, [_row(model) for model in models], width, notes="notes")
    yield from _beside(models, width)
    if known["together"]:
        yield Text()
        yield Text("together", "bold")
        yield from _listed(f"(the profile lets at most {known['max_concurrent_models']} be loaded at once)", width)
        for group in known["together"][:MOST_SETS]:
            yield from _listed(f"{some(group['models'], MOST_NAMED)}: {group['mb']} of {known['budget_mb']} MB", width)
        if more := known["together"][MOST_SETS:]:
            yield from _listed(f"and {len(more)} other sets, which --json has", width)


def _memory(known: Mapping[str, Any]) -> str:
    if known["on"] == "host":
        return f"no GPU: {known['budget_mb']} MB of host RAM for models"
    cards = ", ".join(f"{card['mb']} MB on {card['id']}" for card in known["cards"])
    return f"{known['budget_mb']} MB for models: {cards}"


def _beside(models: Sequence[Mapping[str, Any]], width: int | None) -> Iterator[Text]:
    for model in models:
        if model.get("beside"):
            yield Text()
            yield Text(f"beside {model['name']} fits one of", "bold")
            yield from _listed(", ".join(model["beside"]), width)


def _listed(text: str, width: int | None) -> Iterator[Text]:
    return (Text(f"  {line}") for line in folded(text, width, 2))


def _row(model: Mapping[str, Any]) -> Row:
    parts = model["computed"] or {}
    buffers = sum(parts[name] for name in _PARTS[2:]) if parts else None
    cells = (
        model["name"],
        or_nothing(model["needs_mb"]),
        {True: "yes", False: "no", None: "?"}[model["fits"]],
        or_nothing(parts.get("weights_mb")),
        or_nothing(parts.get("kv_cache_mb")),
        or_nothing(buffers),
        or_nothing(model["context_tokens"]),
        or_nothing(model["parallel"]),
        or_nothing(model["largest_context_tokens"]),
    )
    return Row(cells, "\n".join(_notes(model)))


def _notes(model: Mapping[str, Any]) -> Iterator[str]:
    if model["fits"] is False:
        yield f"one model may take {model['room_mb']} MB here, {model['needs_mb'] - model['room_mb']} MB too little"
    if model["source"] != "computed":
        yield f"{model['source']}: {model['detail']}"
    asked, own = model["request_tokens"], model["own_context_tokens"]
    if asked and own and asked > own:
        yield f"it was trained for {own} tokens; a longer context needs arguments for it (--rope-scaling)"
    if asked and asked < model["context_tokens"]:
        yield f"{asked} tokens for each request"
    if model["caveat"]:
        yield model["caveat"]
    if model["problem"]:
        yield model["problem"]
