"""What a repository offers to this machine: each of its models with what it needs and where that fits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolecall.backends.llama_server import DEFAULT_PARALLEL
from rolecall.core.hub_fit import Fit, Knowledge, best, fit
from rolecall.core.hub_listing import NoSuchChoice, choices, wanted
from rolecall.core.profiles import ActiveProfile
from rolecall.discovery.rules_file import load_rules
from rolecall.hub.failures import HubError
from rolecall.hub.remote_header import Tell, knowledge
from rolecall.runtime.driver_probe import DriverProbe
from rolecall.runtime.gpu import GpuReport
from rolecall.runtime.roster import active_profile, load_profiles
from rolecall.settings import Settings

if TYPE_CHECKING:
    from rolecall.hub.client import Hub, Repository

HEADERS_WITHIN_S = 30.0
"""All headers of a repository together: over a line of 2 Mbit/s that is 7 MB, and most have less."""
_MOST_HEADERS = 3
"""Of so many models of one repository headers are read; of further ones the sizes of the files must do."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is planned for: the profile in force, and the names of the cards by index."""

    active: ActiveProfile
    names: Mapping[int, str]
    most_context: int

    @classmethod
    def of(cls, settings: Settings) -> Machine:
        """Look at this machine; raises ``ConfigurationError``."""
        report: GpuReport = DriverProbe().report()
        active = active_profile(settings, load_profiles(settings.config_dir), report)
        most = load_rules(settings.config_dir).context_length_at_most
        return cls(active, {gpu.index: gpu.name for gpu in report.gpus}, most)


@dataclass(frozen=True, slots=True)
class Offer:
    """The models of a repository, the smallest first, and the one that suits the machine best."""

    repository: Repository
    fits: tuple[Fit, ...]
    best: Fit | None

    def chosen(self, name: str | None) -> Fit:
        """Return the model of that name, or the best; raises `HubError` that says what there is."""
        if not self.fits:
            raise HubError(
                f"{self.repository.id} has no models that are run here: GGUF files, or config.json with safetensors"
            )
        if name is None:
            if self.best is None:
                least = self.fits[0]
                raise HubError(
                    f"nothing of {self.repository.id} fits this machine: the smallest, {least.choice.label}, needs "
                    f"{least.need_mb} MB; name one to pull it nevertheless: {self.repository.id}:{least.choice.label}"
                )
            return self.best
        try:
            choice = wanted([each.choice for each in self.fits], name)
        except NoSuchChoice as error:
            raise HubError(f"{self.repository.id}: {error}") from None
        return next(each for each in self.fits if each.choice is choice)


def offer(
    hub: Hub,
    repository: Repository,
    machine: Machine,
    *,
    headers_within_s: float = HEADERS_WITHIN_S,
    tell: Tell = lambda _what: None,
) -> Offer:
    """Return what a repository offers.

    Headers are read, some megabytes; where they do not come within ``headers_within_s`` (0: they are not asked for),
    the sizes of the files must do. ``tell`` is called with what is read.
    """
    found = choices(repository.files)
    known: dict[str, Knowledge | None] = {}
    until = time.monotonic() + headers_within_s
    for bare in dict.fromkeys(choice.bare for choice in found if choice.format == "gguf"):
        if headers_within_s and len(known) < _MOST_HEADERS:
            named = [each for each in found if each.bare == bare]
            known[bare] = knowledge(hub, repository, named, machine.most_context, until=until, tell=tell)
    fits = tuple(fit(each, machine.active, known.get(each.bare), DEFAULT_PARALLEL) for each in found)
    return Offer(repository, fits, best(fits, machine.active.profile))
