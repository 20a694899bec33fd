"""What is simulated: models, a machine, and clients that send one request after the other. Times in s, memory in MB."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from rolecall.core.events import Configured, Group, SleepCost, Spec
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Candidate, Demand, Policy, Rules, select
from rolecall.core.vram import Device


@dataclass(frozen=True, slots=True)
class Model:
    """A model, and how long its engine takes to start, to stop, to fall asleep and to wake.

    ``answer_factor`` multiplies the answer times of the workload. ``roles`` gives a priority (0-100) for each role.
    """

    name: str
    vram_mb: int
    load_s: float
    stop_s: float = 0
    max_parallel: int = 1
    roles: tuple[tuple[str, float], ...] = ()
    answer_factor: float = 1
    idle_unload_s: float = 0
    spread: tuple[int, ...] = (1,)
    sleep: tuple[SleepCost, ...] = ()
    pinned: bool = False

    def spec(self) -> Spec:
        """Return the model as the scheduler sees it."""
        entry = ModelEntry.model_validate(
            {"name": self.name, "backend": "simulated", "role_priority": dict(self.roles), "pinned": self.pinned}
        )
        return Spec(
            entry=entry,
            footprint_mb=self.vram_mb,
            max_parallel=self.max_parallel,
            idle_unload_s=self.idle_unload_s,
            load_s=self.load_s,
            spread=self.spread,
            sleep=self.sleep,
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs by their usable MB, and what is allowed on them; ``max_models`` 0 is no limit."""

    gpus_mb: tuple[int, ...]
    max_models: int = 0
    sleep_mb: int = 0
    groups: tuple[Group, ...] = ()

    @property
    def devices(self) -> tuple[Device, ...]:
        """The GPUs as the scheduler sees them: ``gpu0``, ``gpu1`` …"""
        return tuple(Device(f"gpu{index}", mb, mb, index) for index, mb in enumerate(self.gpus_mb))


@dataclass(frozen=True, slots=True)
class Step:
    """One request: ``wanted`` is a model's name or ``role:x``; the client's next one comes ``think_s`` after it."""

    wanted: str
    answer_s: float
    think_s: float = 0


@dataclass(frozen=True, slots=True)
class Chain:
    """A client: its first request comes at ``start_s``, each further one when the one before is answered."""

    start_s: float
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Workload:
    """All that a simulation needs; the same for every policy.

    ``max_overtake_s`` is the setting of that name. ``tolerance`` is how many priority points a loaded model may be
    worse by and still be taken.
    """

    models: tuple[Model, ...]
    machine: Machine
    chains: tuple[Chain, ...]
    max_overtake_s: float = 20
    tolerance: float = 0
    about: str = ""
    notes: tuple[str, ...] = field(default=())
    """What was left out when it was read."""

    @cached_property
    def specs(self) -> tuple[Spec, ...]:
        """The models as the scheduler sees them."""
        return tuple(model.spec() for model in self.models)

    @cached_property
    def by_name(self) -> dict[str, Model]:
        """The models by name."""
        return {model.name: model for model in self.models}

    @cached_property
    def requests(self) -> int:
        """Number of requests."""
        return sum(len(chain.steps) for chain in self.chains)

    def rules(self, policy: Policy = "adaptive") -> Rules:
        """Return the rules of selection."""
        return Rules(limit_mb=sum(self.machine.gpus_mb), tolerance=self.tolerance, policy=policy)

    def configured(self, policy: Policy = "adaptive") -> Configured:
        """Return the event that tells a scheduler all of it."""
        return Configured(
            specs=self.specs,
            rules=self.rules(policy),
            devices=self.machine.devices,
            budget_mb=sum(self.machine.gpus_mb),
            max_models=self.machine.max_models or len(self.models),
            groups=self.machine.groups,
            sleep_mb=self.machine.sleep_mb,
        )

    def demand(self, wanted: str) -> tuple[Demand, tuple[str, ...]]:
        """Return what a request asks for, and the names of the models that may answer it."""
        if not wanted.startswith("role:"):
            return Demand(), (wanted,)
        role = wanted.removeprefix("role:")
        return Demand(role), tuple(model.name for model in self.models if role in dict(model.roles))

    def options(self, wanted: str) -> tuple[str, ...]:
        """Return the models that may answer at all under the tolerance, the best first."""
        return self._options[wanted]

    @cached_property
    def _options(self) -> dict[str, tuple[str, ...]]:
        wanted = {step.wanted for chain in self.chains for step in chain.steps}
        return {each: self._find_options(each) for each in wanted}

    def _find_options(self, wanted: str) -> tuple[str, ...]:
        demand, names = self.demand(wanted)
        candidates = [Candidate(spec.entry, spec.footprint_mb) for spec in self.specs if spec.name in names]
        ranked = select(demand, candidates, self.rules("priority")).ranked
        if demand.role is None:
            return tuple(candidate.name for candidate in ranked)
        floor = ranked[0].priority(demand.role) - self.tolerance
        return tuple(c.name for c in ranked if c.priority(demand.role) >= floor)
