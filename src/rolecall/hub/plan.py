"""What a repository offers to this machine: each of its models with what it needs and where that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolecall.backends.llama_server import DEFAULT_PARALLEL
from rolecall.core.hub_fit import Fit, Knowledge, best, fit
from rolecall.core.hub_listing import Choice, NoSuchChoice, choices, wanted
from rolecall.core.profiles import ActiveProfile
from rolecall.discovery.rules_file import load_rules
from rolecall.hub.failures import HubError
from rolecall.hub.remote_header import knowledge
from rolecall.runtime.driver_probe import DriverProbe
from rolecall.runtime.gpu import GpuReport
from rolecall.runtime.roster import active_profile, load_profiles
from rolecall.settings import Settings

if TYPE_CHECKING:
    from rolecall.hub.client import Hub, Repository

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


def offer(hub: Hub, repository: Repository, machine: Machine, *, look_inside: bool = True) -> Offer:
    """Return what a repository offers; ``look_inside`` reads headers, some megabytes, without it sizes must do."""
    found = choices(repository.files)
    known = _known(hub, repository, found, machine.most_context) if look_inside else {}
    fits = tuple(fit(each, machine.active, known.get(each.bare), DEFAULT_PARALLEL) for each in found)
    return Offer(repository, fits, best(fits, machine.active.profile))


def _known(
    hub: Hub, repository: Repository, found: tuple[Choice, ...], most_context: int
) -> dict[str, Knowledge | None]:
    bases = list(dict.fromkeys(choice.bare for choice in found if choice.format == "gguf"))[:_MOST_HEADERS]
    return {
        bare: knowledge(hub, repository, [each for each in found if each.bare == bare], most_context) for bare in bases
    }
