"""What the scheduler is told and what it answers: plain values, past tense in, imperative out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rolecall.core.models import ModelEntry
from rolecall.core.reductions import Reduction
from rolecall.core.selection import Demand, Rules, Selection
from rolecall.core.vram import Device, Placement
from rolecall.errors import RolecallError


@dataclass(frozen=True, slots=True)
class SleepCost:
    """What it means for an engine to sleep instead of being stopped.

    ``residual_mb`` stays on the GPU, ``host_mb`` is taken in host RAM, ``wake_s`` is how long it takes to come back.
    """

    level: int
    residual_mb: int
    host_mb: int
    wake_s: float


@dataclass(frozen=True, slots=True)
class Spec:
    """A model as the scheduler sees it.

    ``footprint_mb`` is over all its GPUs; None is unknown: such a model is given a device of its own. ``managed`` False
    is an engine that somebody else runs: it takes no memory of ours and needs no load. ``idle_unload_s`` 0 keeps it
    loaded. ``load_s`` is how long a start takes, learnt or guessed. ``devices`` are the GPUs that it may use (all if
    empty), ``spread`` over how many of them it may lie, the preferred number first. ``sleep`` lists the ways of
    sleeping, None are possible if it is empty. ``smaller`` are the contexts (tokens) with which it may be started after
    it ran out of memory, the largest first; ``cpu_mb`` is what it takes of host RAM where it may then run without a
    GPU, None where it may not.
    """

    entry: ModelEntry
    footprint_mb: int | None = None
    unavailable: str | None = None
    managed: bool = True
    max_parallel: int = 1
    idle_unload_s: float = 0
    load_s: float = 5
    devices: tuple[str, ...] = ()
    spread: tuple[int, ...] = (1,)
    sleep: tuple[SleepCost, ...] = ()
    smaller: tuple[int, ...] = ()
    cpu_mb: int | None = None

    @property
    def name(self) -> str:
        """The entry's name."""
        return self.entry.name

    def starts_like(self, other: Spec) -> bool:
        """Whether an engine started for ``other`` is still right for this one."""
        fields = (
            "enabled",
            "backend",
            "backend_config",
            "download_location",
            "served_model_id",
            "started_for",
            "context_tokens",
            "sizes",
            "sleep_level",
            "max_parallel",
            "gpus",
        )
        return all(getattr(self.entry, name) == getattr(other.entry, name) for name in fields)


@dataclass(frozen=True, slots=True)
class Group:
    """Models that belong together: a use of one is a use of all, and when one is loaded the others follow.

    They follow only into room that is free or held by idle models that nobody wants; ``serial`` one after the other in
    the order of ``models``, ``parallel`` as many at a time as there are GPUs free to load.
    """

    name: str
    models: tuple[str, ...]
    startup: Literal["parallel", "serial"] = "serial"


Purpose = Literal["request", "hand", "preload"]
"""What is waited for: a model that answers a request, or that one is loaded, by hand or at the start of the server."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request that may be answered by any of the models ``names``, or a wish that one of them is loaded."""

    waiter: int
    demand: Demand
    names: tuple[str, ...]
    purpose: Purpose = "request"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client of a waiter left."""

    waiter: int


@dataclass(frozen=True, slots=True)
class Released:
    """A granted request is over."""

    model: str


@dataclass(frozen=True, slots=True)
class BecameReady:
    """An engine answers: it was started, or woken. ``load_s`` is how long that took, None if it is not known."""

    model: str
    load_s: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a loaded model really holds now, MB by device, and what its next start should be given over all of them."""

    model: str
    held_mb: Mapping[str, int]
    footprint_mb: int | None = None


@dataclass(frozen=True, slots=True)
class FellAsleep:
    """An engine sleeps and has given back all but ``SleepCost.residual_mb``."""

    model: str


@dataclass(frozen=True, slots=True)
class Exited:
    """An engine's processes are gone. ``error`` says why if nobody asked for it.

    ``by_itself``: it ended before it was told to, though it may have been decided by then that it stops. Its memory may
    be shown as taken for a while: it is free when ``Freed`` says so.
    """

    model: str
    error: str = "the engine exited"
    out_of_memory: bool = False
    by_itself: bool = False


@dataclass(frozen=True, slots=True)
class Freed:
    """The memory of an engine that exited is free on the devices."""

    model: str


@dataclass(frozen=True, slots=True)
class Observed:
    """How much of each device others hold (MB): a game, another program; devices that are not named: nothing."""

    foreign_mb: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Adopted:
    """An engine of an earlier run is ready; it holds ``placement``."""

    model: str
    placement: Placement


@dataclass(frozen=True, slots=True)
class UnloadRequested:
    """Somebody wants the model's memory back; requests in flight finish first.

    Loads of it that were asked for without a request are called off; requests that wait have it loaded again.
    """

    model: str


@dataclass(frozen=True, slots=True)
class Pinned:
    """Somebody has a model kept loaded whoever wants its place, or no longer; until its entry says something else."""

    model: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class Configured:
    """The registry or the profile is new.

    ``budget_mb`` and ``max_models`` hold over all devices together; ``sleep_mb`` is the host RAM that sleeping engines
    may take, ``host_mb`` that which engines on the CPU may take beside GPUs. ``profiles`` are the rules of the other
    profiles, for demands that name one. ``at_idle``: a model that answers and is started otherwise now goes on, and is
    started anew in its next idle moment; else it drains at once.
    """

    specs: tuple[Spec, ...]
    rules: Rules
    devices: tuple[Device, ...]
    budget_mb: int
    max_models: int
    groups: tuple[Group, ...] = ()
    sleep_mb: int = 0
    profiles: Mapping[str, Rules] = field(default_factory=dict)
    host_mb: int = 0
    at_idle: bool = False


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """No further request is admitted."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = (
    Arrived
    | Cancelled
    | Released
    | BecameReady
    | Measured
    | FellAsleep
    | Exited
    | Freed
    | Observed
    | Adopted
    | UnloadRequested
    | Pinned
    | Configured
    | ShutdownRequested
    | Tick
)


Why = Literal["room", "idle", "unload", "changed", "too_large", "unwanted"]
"""Why a model goes: another one needs its room; nobody wanted it for long enough; somebody asked for it; its entry or
the configuration is another now; it is larger than was thought, and starts anew elsewhere; nobody waits any more for
what it was still loading for."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a model goes, for programs and in words for people: ``made room for b``."""

    why: Why
    words: str


@dataclass(frozen=True, slots=True)
class Start:
    """Start the model's engine on these devices, smaller than its entry says if there is a ``reduction``.

    ``is_swap`` says that others were sent away for it, ``words`` for whom it is started; like every reason, they are
    told and change nothing.
    """

    model: str
    placement: Placement = ()
    reduction: Reduction | None = None
    is_swap: bool = field(default=False, compare=False)
    words: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the model's engine; nothing is in flight on it, or the limit for that is over."""

    model: str
    why: Why = field(default="room", compare=False)
    words: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Put the model's engine to sleep; nothing is in flight on it."""

    model: str
    level: int
    why: Why = field(default="room", compare=False)
    words: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake the model's engine; its memory is reserved."""

    model: str
    is_swap: bool = field(default=False, compare=False)
    words: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """Let the waiter's request go to the model."""

    waiter: int
    model: str
    selection: Selection = field(compare=False)


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer the waiter's request with an error."""

    waiter: int
    error: RolecallError


Effect = Start | Stop | Sleep | Wake | Grant | Reject
