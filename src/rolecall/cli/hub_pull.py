"""``rolecall models pull``: a model from a hub, verified and registered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rolecall.cli.common import AsJson, CommandError, ConfigDir, StateDir, print_json
from rolecall.cli.hub_search import offer_json
from rolecall.cli.hub_words import Meter, Profile, cards, explained, settings_for
from rolecall.cli.spinner import telling
from rolecall.cli.table import labelled, show
from rolecall.core.hub_fit import Fit
from rolecall.core.hub_listing import spec
from rolecall.core.wording import amount
from rolecall.hub.download import NoRoom
from rolecall.hub.failures import HubError, HubInterruption
from rolecall.hub.opening import open_hub
from rolecall.hub.plan import Machine, Offer, offer
from rolecall.hub.pull import free_bytes, missing_bytes, pull
from rolecall.hub.registering import Registered, register
from rolecall.runtime.model_store import ModelStore, Pulled, as_pulled
from rolecall.settings import Settings, prepare_config_dir

if TYPE_CHECKING:
    from rolecall.hub.client import Hub

_GO_ON = "the same command goes on from there, `rolecall models prune` takes it away"


def command(  # noqa: PLR0913 - options
    model: Annotated[
        str, typer.Argument(metavar="REPO[:QUANT|FILE]", help="What to pull; the best for here if only REPO.")
    ],
    *,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit instead of main.")] = None,
    profile: Profile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be pulled, and pull nothing.")] = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Download a model from a hub, verify it, and register it.

    Without QUANT or FILE it is the quantization that suits this machine's profile best. All parts and the projector
    come with it. What breaks off is gone on with by the same command; nothing is registered before all is there and has
    the right hash, and files that turn out to be no model end it with 1. HF_ENDPOINT names another hub than Hugging
    Face's, HF_TOKEN is the token for what is not public.
    """
    settings = settings_for(config_dir, state_dir, profile)
    meter = Meter(quiet=as_json)
    repository, name = spec(model)
    with explained():
        with telling(quiet=as_json) as tell:
            tell(f"looking at {repository}")
            machine = Machine.of(settings)
            hub = open_hub(meter.wait)
            found = offer(hub, hub.repository(repository, revision), machine, tell=tell)
        fit = found.chosen(name)
    store = ModelStore(settings.models_folder)
    plan = _plan(found, fit, store, machine)
    if not as_json:
        show(lambda width: labelled(plan.items(), width))
    registered = None
    if not dry_run:
        prepare_config_dir(settings)
        pulled = _pulled(hub, store, found, fit, meter)
        registered = register(settings, pulled.path(as_pulled(fit.choice)))
    if as_json:
        print_json(_report(found, machine, fit, store, registered))
    elif registered is not None:
        show(lambda width: labelled(_done(fit, registered, settings), width))
    if registered is not None and registered.entry is None:
        raise typer.Exit(1)


def _plan(found: Offer, fit: Fit, store: ModelStore, machine: Machine) -> Mapping[str, str]:
    repository, choice = found.repository, fit.choice
    missing = missing_bytes(store, repository, choice)
    here = choice.size_bytes - missing
    fits = cards(fit, machine)
    need = f"{'about ' if fit.is_guessed else ''}{fit.need_mb} MB"
    budget = f"profile {machine.active.profile.name}, {machine.active.budget_mb} MB"
    lines = {
        "model": f"{repository.id}:{choice.label}",
        "license": repository.license or "not stated; see " + repository.url,
        "files": f"{len(choice.all_files)}, {amount(choice.size_bytes)}"
        + (f", {amount(here)} are here" if here else ""),
        "needs": f"{need}: {'too much for' if fits == 'no' else 'fits ' + fits + ' of'} {budget}",
        "folder": str(store.revision_folder(repository.id, repository.commit)),
        "free": amount(free_bytes(store.folder)),
    }
    if unknown := [file.path for file in choice.all_files if not file.key]:
        lines["no hash"] = f"is listed of {', '.join(unknown)}: its length alone will be compared"
    if choice.projector:
        lines["projector"] = choice.projector.path
    return lines


def _pulled(hub: Hub, store: ModelStore, found: Offer, fit: Fit, meter: Meter) -> Pulled:
    """Pull; however it ends, what is kept of it is said."""
    try:
        with meter.running():
            return pull(hub, store, found.repository, fit.choice, meter.report)
    except KeyboardInterrupt:
        typer.echo(f"rolecall: interrupted: {_kept(store, found, fit)}", err=True)
        raise typer.Exit(130) from None
    except (NoRoom, HubInterruption) as error:
        raise CommandError(f"{error}\n{_kept(store, found, fit)}") from None
    except HubError as error:
        raise CommandError(str(error)) from None


def _kept(store: ModelStore, found: Offer, fit: Fit) -> str:
    kept = fit.choice.size_bytes - missing_bytes(store, found.repository, fit.choice)
    if not kept:
        return "nothing was registered, and nothing is kept"
    return f"nothing was registered; {amount(kept)} of {amount(fit.choice.size_bytes)} are kept: {_GO_ON}"


def _report(
    found: Offer, machine: Machine, fit: Fit, store: ModelStore, registered: Registered | None
) -> dict[str, Any]:
    offered = offer_json(found, machine)
    chosen = next(each for each in offered["models"] if each["label"] == fit.choice.label)
    return {
        **{key: offered[key] for key in ("repository", "revision", "license", "gated", "url")},
        "model": chosen,
        "folder": str(store.revision_folder(found.repository.id, found.repository.commit)),
        "missing_bytes": missing_bytes(store, found.repository, fit.choice),
        "pulled": registered is not None,
        "name": registered.entry["name"] if registered and registered.entry else None,
        "entry": registered.entry if registered else None,
        "reason": registered.reason if registered else None,
        "problem": registered.found.earlier.problem if registered else None,
        "backup": str(registered.found.backup) if registered and registered.found.backup else None,
    }


def _done(fit: Fit, registered: Registered, settings: Settings) -> Iterator[tuple[str, str]]:
    entry = registered.entry
    if registered.found.replaced:
        yield "replaced", registered.found.replaced
    if entry is None:
        yield "not registered", f"its files are here and verified, but {registered.reason}"
        return
    yield "registered", f"{entry['name']} in {settings.config_dir}"
    if roles := entry.get("role_priority"):
        yield "roles", ", ".join(f"{role} {priority:g}" for role, priority in roles.items())
    if fit.verdict == "shorter context":
        shorter = f"rolecall models set '{entry['name']}' context_length={fit.context_tokens}"
        yield "context", f"its {entry.get('context_length')} tokens do not fit here: `{shorter}` makes them fewer"
    if fit.verdict == "too large":
        yield "memory", "it does not fit this machine, and is not served until it does"
