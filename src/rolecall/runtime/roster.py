"""What could run here: the registry, the profile in force, the GPUs, and which entries can be served."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from rolecall.backends.base import Backend, Places, Reducible, RemoteLoad
from rolecall.core.api_config import ApiConfig
from rolecall.core.catalog import ROLE_PREFIX, Catalog, Target
from rolecall.core.events import Configured, Group, SleepCost, Spec
from rolecall.core.groups import AllocationError, ModelGroup, Need, allocate, resolve
from rolecall.core.learning import Footprint
from rolecall.core.models import ModelEntry
from rolecall.core.profiles import RESERVE_MB, ActiveProfile, Profile, activate, parse_profiles
from rolecall.core.reductions import smaller_contexts
from rolecall.core.registry import Registry, RegistryError
from rolecall.core.selection import Candidate, Demand, Rules, Selection, select
from rolecall.core.traits import NOTHING_KNOWN, Traits
from rolecall.core.vram import HOST
from rolecall.errors import ConfigurationError, ModelNotFound
from rolecall.runtime.api_config import API_CONFIG, ApiConfigFile
from rolecall.runtime.daemons import Daemons
from rolecall.runtime.driver_probe import DriverProbe
from rolecall.runtime.drivers import backends
from rolecall.runtime.effective import Effective
from rolecall.runtime.footprints import Footprints, asked_share, cards
from rolecall.runtime.gpu import GpuProbe, GpuReport
from rolecall.runtime.learnt import LearntStore
from rolecall.runtime.registry import CURATED, files_mb, load_registry, missing, registry_state, why_unavailable
from rolecall.runtime.settings_reload import Reread, reread
from rolecall.runtime.traits import TraitsReader
from rolecall.settings import Settings, shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROFILES = "profiles.toml"
LEARNT = "learnt.json"

_ASLEEP_MB = 1024
"""What a sleeping engine keeps on each GPU: the CUDA context and the graphs."""

_DEEP_SLEEP_HOST_MB = 64
_WAKE_MB_PER_S, _DEEP_WAKE_MB_PER_S = 8000, 1500
"""How fast weights come back from host RAM, and from the page cache or the disk, until that was seen."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was found on the disk for one state of the registry."""

    registry: Registry
    config: ApiConfig
    catalog: Catalog
    specs: tuple[Spec, ...]
    traits: Mapping[str, Traits] = field(default_factory=dict)


class Roster:
    """The registry and the machine, brought together; ``load`` it before use, ``reload`` it when a file changed.

    After a reload that failed the last good registry stays in force and ``problem`` says what is wrong.
    """

    def __init__(self, settings: Settings, backend_for: Callable[[str], Backend], probe: GpuProbe) -> None:
        self.settings = settings
        self.problem: str | None = None
        self.registry = Registry()
        self.catalog = Catalog()
        self._specs: tuple[Spec, ...] = ()
        self._had_curated = False
        self._backend_for = backend_for
        self.probe = probe
        self._daemons = Daemons()
        self._reader = TraitsReader()
        self.api_config = ApiConfigFile(settings.state_dir / API_CONFIG)
        places = Places(settings.config_dir, settings.state_dir)
        self._effective = Effective(places, self._own_context)
        self._traits: Mapping[str, Traits] = {}

    def load(self, registry: Registry | None = None) -> None:
        """Read everything, or take this ``registry`` in the place of that in the files.

        Raises ``ConfigurationError`` for a broken registry or profile.
        """
        self.gpus: GpuReport = self.probe.report()
        self.profiles = load_profiles(self.settings.config_dir)
        self.active = active_profile(self.settings, self.profiles, self.gpus)
        found = cards(self.active.devices, {gpu.uuid: gpu.name for gpu in self.gpus.gpus})
        store = LearntStore(self.settings.state_dir / LEARNT)
        self.footprints = Footprints(store, self.backend, found)
        self._seen = registry_state(self.settings.config_dir)
        if registry is None and (problem := missing(self.settings.config_dir)) is not None:
            log.warning("registry: %s, so there are no models; it is read as soon as it is there", problem)
        self._adopt(registry or load_registry(self.settings.config_dir), ask=True)

    def reload(self) -> None:
        """Read the registry again; a broken one changes nothing but ``problem``.

        No daemon is asked, so that the event loop need not wait for one: what it has goes by its last answer, and a
        model of a daemon that has given none counts as not installed until the next look.
        """
        self._seen = registry_state(self.settings.config_dir)
        try:
            self._adopt(self._read_again(), ask=False)
        except RegistryError as error:
            self.problem = str(error)
            log.error("the registry is broken, the last good one stays in force:\n%s", error)  # noqa: TRY400 - no traceback

    def read_ahead(self) -> None:
        """Read the files of the models that a `reload` would find, which then waits for none of them.

        Hundreds of new models take seconds: call it off the event loop. It changes nothing.
        """
        with suppress(RegistryError):
            self._look(self._read_again(), ask=False)

    def reread(self) -> Reread:
        """Read the settings again, and what `read_ahead` reads; it changes nothing, call it off the event loop.

        Profiles count as a setting that needs a restart. Raises ``ConfigurationError``.
        """
        found = reread(self.settings)
        if load_profiles(self.settings.config_dir) != self.profiles:
            found = replace(found, pending=(*found.pending, PROFILES))
        self.read_ahead()
        return found

    def as_configured(self, config: ApiConfig) -> tuple[ModelEntry, ...]:
        """Return the entries as they would be in force with another configuration."""
        return self._effective.of(self.registry.entries, config)

    def reconfigure(self, config: ApiConfig) -> None:
        """Put what was set at `/api/config` in force, and keep it; raises ``OSError`` where it cannot be written."""
        self.api_config.save(config)
        self.accept(self._look(self.registry, ask=False))

    def _read_again(self) -> Registry:
        curated = self.settings.config_dir / CURATED
        if self._had_curated and not curated.exists():  # while it is being saved, or moved away by mistake
            raise RegistryError([f"{curated} is gone; an empty list in it would say that no model is wanted"])
        return load_registry(self.settings.config_dir)

    def is_outdated(self) -> bool:
        """Whether a registry file is no longer the one that was read last."""
        return registry_state(self.settings.config_dir) != self._seen

    def refresh(self) -> bool:
        """Look again at which files are there and how large they are; whether that changed anything."""
        return self.accept(self.look_at_files())

    def look_at_files(self) -> Sighting:
        """Return what is there now; it waits for the disk and for daemons, call it off the event loop."""
        return self._look(self.registry, ask=True)

    def _look(self, registry: Registry, *, ask: bool) -> Sighting:
        config = self.api_config.config
        entries = self._effective.of(registry.entries, config)
        reasons = {entry.name: self._why_unavailable(entry, ask=ask) for entry in entries}
        catalog = Catalog(entries, {name: reason for name, reason in reasons.items() if reason is not None})
        installed = [entry for entry in entries if entry.name not in catalog.unavailable]
        traits = {entry.name: self._reader.of(entry, self.backend(entry)) for entry in installed}
        return Sighting(registry, config, catalog, self._sighted(registry, catalog), traits)

    def _why_unavailable(self, entry: ModelEntry, *, ask: bool) -> str | None:
        backend = self.backend(entry)
        reason = why_unavailable(entry, backend) or self._daemons.why_missing(entry, backend, ask=ask)
        if reason is None and backend.has_port and not self.gpus.gpus and self._allows_cpu(entry) is False:
            return "it may not run on the CPU (allow_cpu is false), and there is no GPU"
        return reason

    def accept(self, seen: Sighting) -> bool:
        """Act on what was seen, unless more has changed meanwhile; whether that changed anything."""
        if seen.registry is not self.registry or seen.config is not self.api_config.config:
            return False
        self._traits = seen.traits
        if seen.specs == self._specs:
            return False
        self.catalog, self._specs = seen.catalog, seen.specs
        return True

    def look_at_gpus(self) -> GpuReport:
        """Ask the driver for the memory that is free now; takes milliseconds, call it off the event loop."""
        return self.probe.report()

    def resolve(self, name: str) -> Target:
        """Return what a name in a request stands for; raises ``ModelNotFound``, for an unknown profile as well."""
        target = self.catalog.resolve(name)
        if target.profile is not None and target.profile not in self.profiles:
            near = difflib.get_close_matches(target.profile[:200], self.profiles, n=1)
            raise ModelNotFound(
                f"There is no profile {target.profile[:200]!r}. Known profiles: {', '.join(self.profiles)}.",
                nearest=[f"{ROLE_PREFIX}{target.role}@{profile}" for profile in near],
            )
        return target

    def fallbacks(self, target: Target) -> list[Target]:
        """Return what a role falls back to, in order, as its table in the settings says; what is unknown is left out.

        That was warned about when the registry was read.
        """
        table = self.settings.roles.get(target.role or "", {})
        found = []
        for name in table.get("fallback", ()):
            with suppress(ModelNotFound):
                found.append(self.resolve(name))
        return found

    def backend(self, entry: ModelEntry) -> Backend:
        """Return what drives the entry's engine."""
        return self._backend_for(entry.backend)

    def traits(self, entry: ModelEntry) -> Traits:
        """Return how its model wants to be spoken to, as its files said at the last look; it waits for nothing."""
        return self._traits.get(entry.name, NOTHING_KNOWN)

    def configured(self, *, at_idle: bool = False) -> Configured:
        """Return all of it as the scheduler takes it in; ``at_idle`` lets answers go on by what held before."""
        groups, _ = self._groups(self.registry)
        return Configured(
            self._specs,
            self.rules(),
            self.active.devices,
            self.active.budget_mb,
            self.active.profile.max_concurrent_models,
            tuple(Group(group.name, group.models, group.startup) for group in groups),
            self._sleep_mb(),
            {name: self.rules(name) for name in self.profiles},
            self._host_mb(),
            at_idle,
        )

    def rules(self, profile: str | None = None) -> Rules:
        """Return what selection needs of the profile in force, or of another one; raises ``ConfigurationError``."""
        active = self.active
        if profile not in (None, active.profile.name):
            active = activate(self.profiles, (), 0, forced=profile, ceiling_mb=self.settings.max_vram_mb)
        return Rules(
            limit_mb=active.budget_mb,
            preferred_quantizations=active.profile.preferred_quantizations,
            bias=active.profile.bias,
            tolerance=self.settings.quality_tolerance,
            policy=self.settings.role_policy,
            roles=self.settings.role_policies(),
        )

    def footprint(self, entry: ModelEntry) -> Footprint:
        """Return what the model is given, and how that is known; it looks at its files."""
        return self.footprints.of(entry)

    def candidates(self) -> list[Candidate]:
        """Return all entries as they stand while nothing is loaded."""
        return [Candidate(s.entry, s.footprint_mb, s.unavailable) for s in self._specs]

    def _adopt(self, registry: Registry, *, ask: bool) -> None:
        self.registry = registry
        self.accept(self._look(registry, ask=ask))
        self._had_curated = (self.settings.config_dir / CURATED).exists()
        self.problem = None
        for warning in (*registry.warnings, *self._groups(registry)[1]):
            log.warning("registry: %s", warning)
        for role, table in self.settings.roles.items():
            for name in table.get("fallback", ()):
                try:
                    self.resolve(name)
                except ModelNotFound as error:
                    log.warning("roles.%s.fallback: %s", role, error.message)
        for entry in registry.entries:
            key = entry.backend_config.api_key_env
            if key and not os.environ.get(key):
                log.warning("registry: %r: the variable %s is not set; requests go without a key", entry.name, key)

    def _groups(self, registry: Registry) -> tuple[tuple[ModelGroup, ...], tuple[str, ...]]:
        """Return the profile's groups by the names of the registry, and what is wrong with them."""
        return resolve(self.active.groups, {id_: entry.name for entry in registry.entries for id_ in entry.ids})

    def _sleep_mb(self) -> int:
        if not self.settings.sleep_enabled:
            return 0
        quarter_mb = psutil.virtual_memory().total >> 22
        return quarter_mb if self.settings.sleep_ram_mb is None else self.settings.sleep_ram_mb

    def _host_mb(self) -> int:
        """Return the RAM for models on the CPU beside GPUs: none of the system's, and none of the sleeping ones'."""
        return max(0, (psutil.virtual_memory().total >> 20) - RESERVE_MB - self._sleep_mb())

    def _sighted(self, registry: Registry, catalog: Catalog) -> tuple[Spec, ...]:
        specs = {entry.name: self._spec(entry, catalog) for entry in catalog.entries}
        for group in self._groups(registry)[0]:
            specs.update((name, replace(specs[name], footprint_mb=mb)) for name, mb in self._shares(group, specs))
        return tuple(specs.values())

    def _shares(self, group: ModelGroup, specs: Mapping[str, Spec]) -> list[tuple[str, int]]:
        """Return the memory of the group's models that take as much as they are given; nothing if it does not fit."""
        members = {name: specs[name] for name in group.models if specs[name].managed}
        members = {name: spec for name, spec in members.items() if spec.footprint_mb and spec.unavailable is None}
        if not any(self.backend(spec.entry).takes_share for spec in members.values()):
            return []
        needs = {name: self._need(spec) for name, spec in members.items()}
        try:
            given = allocate(group, needs, self.active.budget_mb)
        except AllocationError as error:
            log.warning("%s; its models are given what they need one by one", error)
            return []
        return [(name, mb) for name, mb in given.items() if needs[name].takes_share]

    def _need(self, spec: Spec) -> Need:
        if not self.backend(spec.entry).takes_share:
            return Need(spec.footprint_mb or 0, takes_share=False)
        computed = self.footprints.computed(spec.entry)
        least_mb = computed.least_mb if computed else min(spec.footprint_mb or 0, spec.entry.vram_estimate_mb or 0)
        share = asked_share(spec.entry)
        largest_mb = max(device.total_mb for device in self.active.devices)
        return Need(least_mb, None if share is None else max(least_mb, int(share * largest_mb)))

    def _spec(self, entry: ModelEntry, catalog: Catalog) -> Spec:
        backend = self.backend(entry)
        profile = self.active.profile
        unavailable = catalog.unavailable.get(entry.name)
        is_installed = unavailable is None
        footprint = self.footprints.of(entry).mb if is_installed or not backend.managed else entry.vram_estimate_mb
        return Spec(
            entry=entry,
            footprint_mb=footprint,
            unavailable=unavailable,
            managed=backend.managed,
            max_parallel=backend.parallel(entry),
            idle_unload_s=profile.idle_unload_s if entry.idle_unload_s is None else entry.idle_unload_s,
            load_s=self.footprints.load_s(entry) if is_installed else 0,
            devices=tuple(map(self.device, entry.gpus)),
            spread=self._spread(entry, backend),
            sleep=self._sleep(entry, backend) if is_installed and backend.managed else (),
            smaller=self._smaller(entry, backend) if is_installed else (),
            cpu_mb=self._cpu_mb(entry, backend) if is_installed else None,
        )

    def _own_context(self, entry: ModelEntry) -> int | None:
        return self.footprints.context_tokens(entry)

    def _smaller(self, entry: ModelEntry, backend: Backend) -> tuple[int, ...]:
        if not _reducible(entry, backend).context:
            return ()
        return smaller_contexts(entry.context_tokens or self._own_context(entry))

    def _cpu_mb(self, entry: ModelEntry, backend: Backend) -> int | None:
        """Return what the model takes of host RAM if it may run there although there are GPUs."""
        may = self.gpus.gpus and _reducible(entry, backend).cpu and self._allows_cpu(entry)
        return self.footprints.in_host_mb(entry) if may else None

    def _allows_cpu(self, entry: ModelEntry) -> bool | None:
        return self.active.profile.allow_cpu if entry.allow_cpu is None else entry.allow_cpu

    def device(self, gpu: int | str) -> str:
        """Return the device that an entry's ``gpus`` means: NVML's index or UUID."""
        by_index = {str(device.index): device.id for device in self.active.devices if device.id != HOST}
        return by_index.get(str(gpu), str(gpu))

    def _spread(self, entry: ModelEntry, backend: Backend) -> tuple[int, ...]:
        return backend.spread(entry).over(len(self.active.devices))

    def _sleep(self, entry: ModelEntry, backend: Backend) -> tuple[SleepCost, ...]:
        """Return the ways of sleeping that the entry's engine is started with."""
        if not self.settings.sleep_enabled or not backend.has_port:
            return ()
        try:
            launch = backend.launch(entry, 0)
        except (OSError, ValueError):
            return ()
        if isinstance(launch, RemoteLoad):
            return ()
        weights_mb = files_mb(entry, backend) or entry.vram_estimate_mb or 0
        return tuple(self._sleep_cost(entry, sleep.level, weights_mb) for sleep in launch.sleeps)

    def _sleep_cost(self, entry: ModelEntry, level: int, weights_mb: int) -> SleepCost:
        if level == 1:
            wake_s = self.footprints.wake_s(entry, 1 + weights_mb / _WAKE_MB_PER_S)
            return SleepCost(1, _ASLEEP_MB, weights_mb, wake_s)
        wake_s = 2 + weights_mb / _DEEP_WAKE_MB_PER_S
        return SleepCost(level, _ASLEEP_MB, _DEEP_SLEEP_HOST_MB, wake_s)


def _reducible(entry: ModelEntry, backend: Backend) -> Reducible:
    """Return how its engine can be started smaller: the arguments of a command are its own."""
    return Reducible() if entry.backend_config.command else backend.reducible


def load_roster(settings: Settings, probe: GpuProbe | None = None) -> Roster:
    """Return the registry and the machine; raises ``ConfigurationError`` for anything that cannot work."""
    roster = Roster(settings, backends(settings), probe or DriverProbe())
    roster.load()
    return roster


def active_profile(settings: Settings, profiles: Mapping[str, Profile], gpus: GpuReport) -> ActiveProfile:
    """Return the profile in force; raises ``ConfigurationError`` for a name that is none, saying where it is from."""
    try:
        return activate(
            profiles,
            gpus.gpus,
            psutil.virtual_memory().total >> 20,
            forced=settings.deployment_profile,
            source="env" if settings.is_from_environment("deployment_profile") else "config",
            ceiling_mb=settings.max_vram_mb,
        )
    except ConfigurationError as error:
        if settings.deployment_profile is None:
            raise
        raise ConfigurationError(f"deployment_profile {settings.origin('deployment_profile')}: {error}") from None


def load_profiles(config_dir: Path) -> dict[str, Profile]:
    """Read ``profiles.toml``, the shipped one if the folder has none; raises ``ConfigurationError``."""
    path = config_dir / PROFILES
    if not path.exists():
        path = shipped(PROFILES)
    try:
        return parse_profiles(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, ConfigurationError) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def choose(  # noqa: PLR0913 - a query has independent parts
    roster: Roster,
    candidates: Iterable[Candidate],
    role: str,
    *,
    profile: str | None = None,
    exclude: Iterable[str] = (),
    include_non_installed: bool = False,
) -> Selection:
    """Return the selection for a role as ``select_by_role`` and ``rolecall select`` show it.

    Raises ``ModelNotFound`` for a role that nobody plays, ``ConfigurationError`` for an unknown profile.
    """
    target = roster.catalog.role(role)
    names = {entry.name for entry in target.entries}
    demand = Demand(
        role=target.role,
        exclude=frozenset(exclude),
        include_non_installed=include_non_installed or roster.settings.include_non_installed,
    )
    return select(demand, [c for c in candidates if c.name in names], roster.rules(profile))


def explain(selection: Selection, profile: str, *, full: bool) -> Mapping[str, Any]:
    """Return the answer of ``select_by_role``; with ``full`` all candidates and the reasons against the others.

    Raises ``NoModelForRole`` (404) if there is no choice and no explanation is asked for.
    """
    role = selection.demand.role
    answer = _choice(selection.best(), role) | {"profile": profile} if selection.ranked or not full else {"model": None}
    if full:
        answer |= {
            "reason": selection.reason,
            "candidates": [_choice(candidate, role) for candidate in selection.ranked],
            "rejected": [{"model": r.name, "why": r.why, "reason": r.reason} for r in selection.rejected],
        }
    return answer


def _choice(candidate: Candidate, role: str | None) -> dict[str, Any]:
    return {
        "model": candidate.name,
        "role": role,
        "priority": candidate.priority(role),
        "vram_estimate_mb": candidate.footprint_mb,
    }
