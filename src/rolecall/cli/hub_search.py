"""``rolecall models search``: what a hub has, and which of it fits here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from rolecall.cli.common import AsJson, ConfigDir, StateDir, print_json
from rolecall.cli.hub_words import Meter, Profile, cards, explained, megabytes, settings_for
from rolecall.cli.spinner import spinning, telling
from rolecall.cli.table import NOTHING, Column, Row, labelled, show, table
from rolecall.core.hub_fit import Fit
from rolecall.core.hub_listing import spec
from rolecall.hub.failures import HubError
from rolecall.hub.opening import open_hub
from rolecall.hub.plan import Machine, Offer, offer

if TYPE_CHECKING:
    from rolecall.hub.client import Hub, Listed

_AT_ONCE = 4
_FOUND = (
    Column("repository"),
    Column("best here", below="best here {}"),
    Column("MB", right=True),
    Column("fits", below="fits {}"),
    Column("size", right=True, below="{} parameters"),
    Column("license", below="license {}"),
    Column("access", below="{}"),
    Column("downloads", right=True, below="{} downloads"),
)
_MODELS = (
    Column("model"),
    Column("MB", right=True),
    Column("needs MB", right=True, below="needs {} MB"),
    Column("fits", below="fits {}"),
    Column("parts", right=True, below="parts {}"),
    Column("projector", below="projector {}"),
)


def command(  # noqa: PLR0913 - options
    query: Annotated[str, typer.Argument(help="Words, or ORGANISATION/NAME for the models of one repository.")],
    *,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Repositories at the most.")] = 10,
    every: Annotated[bool, typer.Option("--all", help="Repositories without GGUF files as well.")] = False,
    profile: Profile = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Search a hub for models, and say which of their quantizations fit this machine.

    Nothing is downloaded but the listings of files and, for one repository, the beginning of a model. HF_ENDPOINT names
    another hub than Hugging Face's, HF_TOKEN is the token for what is not public.
    """
    settings = settings_for(config_dir, state_dir, profile)
    machine = Machine.of(settings)
    with explained():
        hub = open_hub(Meter(quiet=as_json).wait)
        if re.fullmatch(r"[\w.-]+/[\w.-]+", query.strip()) or "://" in query:
            repository = spec(query)[0]
            with telling(quiet=as_json) as tell:
                tell(f"looking at {repository}")
                found = offer(hub, hub.repository(repository), machine, tell=tell)
            _one(found, machine, as_json=as_json)
            return
        with spinning(f"asking {hub.endpoint}"):
            listed = hub.search(query, limit, gguf=not every)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                offers = list(pool.map(lambda each: _offered(hub, each, machine), listed))
    _many(list(zip(listed, offers, strict=True)), machine, query, as_json=as_json)


def _offered(hub: Hub, listed: Listed, machine: Machine) -> Offer | None:
    try:
        return offer(hub, hub.repository(listed.id), machine, headers_within_s=0)
    except HubError:
        return None


def _many(rows: list[tuple[Listed, Offer | None]], machine: Machine, query: str, *, as_json: bool) -> None:
    if as_json:
        print_json(
            [{**asdict(listed), "best": offered and _fit_json(offered.best, machine)} for listed, offered in rows]
        )
        return
    if not rows:
        typer.echo(f"nothing was found for {query!r}; --all looks for other formats than GGUF as well", err=True)
        return
    show(lambda width: table(_FOUND, [_found_row(listed, offered, machine) for listed, offered in rows], width))
    show(
        lambda _width: [_hint(machine, "by the sizes of files; `rolecall models search REPOSITORY` looks closer")],
        error=True,
    )


def _hint(machine: Machine, rest: str) -> Text:
    active = machine.active
    return Text(f"profile {active.profile.name}, {active.budget_mb} MB for models; {rest}", "dim")


def _found_row(listed: Listed, offered: Offer | None, machine: Machine) -> Row:
    best = offered.best if offered else None
    fits = cards(best, machine) if best else "?" if offered is None else "no"
    return Row(
        (
            listed.id,
            best.choice.label if best else NOTHING,
            megabytes(best.choice.size_bytes) if best else NOTHING,
            fits,
            f"{listed.parameters / 1e9:.1f}B" if listed.parameters else NOTHING,
            listed.license or NOTHING,
            "gated" if listed.is_gated else "open",
            str(listed.downloads),
        )
    )


def _one(found: Offer, machine: Machine, *, as_json: bool) -> None:
    if as_json:
        print_json(offer_json(found, machine))
        return
    show(lambda width: offer_lines(found, machine, width))
    pull = f"`rolecall models pull {found.repository.id}`"
    taken = f"{pull} takes {found.best.choice.label}" if found.best else "none fits"
    show(lambda _width: [_hint(machine, taken)], error=True)


def offer_json(found: Offer, machine: Machine) -> dict[str, Any]:
    """Return what a repository offers, for programs; sizes in bytes, needs in MB."""
    repository = found.repository
    return {
        "repository": repository.id,
        "revision": repository.commit,
        "license": repository.license,
        "gated": repository.is_gated,
        "url": repository.url,
        "best": found.best.choice.label if found.best else None,
        "models": [_fit_json(each, machine) for each in found.fits],
    }


def _fit_json(each: Fit | None, machine: Machine) -> dict[str, Any] | None:
    if each is None:
        return None
    return {
        "label": each.choice.label,
        "format": each.choice.format,
        "files": [file.path for file in each.choice.all_files],
        "projector": each.choice.projector.path if each.choice.projector else None,
        "size_bytes": each.choice.size_bytes,
        "need_mb": each.need_mb,
        "fits": each.verdict,
        "where": cards(each, machine) if each.cards else None,
        "context_tokens": each.context_tokens,
        "guessed": each.is_guessed,
    }


def offer_lines(found: Offer, machine: Machine, width: int | None) -> Iterator[Text]:
    """Yield what a repository offers, for people."""
    repository = found.repository
    access = "gated: its terms are to be accepted first" if repository.is_gated else "open"
    pairs = [("repository", repository.id), ("revision", repository.commit[:12])]
    pairs += [("license", repository.license or "not stated"), ("access", access)]
    yield from labelled(pairs, width)
    yield Text()
    yield from table(_MODELS, [_model_row(each, found, machine) for each in found.fits], width)


def _model_row(each: Fit, found: Offer, machine: Machine) -> Row:
    choice = each.choice
    return Row(
        (
            f"{choice.label} *" if found.best is each else choice.label,
            megabytes(choice.size_bytes),
            f"{'about ' if each.is_guessed else ''}{each.need_mb}",
            cards(each, machine),
            str(len(choice.files)),
            choice.projector.path if choice.projector else NOTHING,
        )
    )
