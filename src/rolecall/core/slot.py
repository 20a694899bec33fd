"""What the scheduler knows of one model's engine and of one waiting request."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from rolecall.core.events import Cause, Purpose, SleepCost, Spec
from rolecall.core.lifecycle import State
from rolecall.core.reductions import Reduction
from rolecall.core.selection import Demand, Selection
from rolecall.core.vram import Holding, Placement

BACKOFF_LIMIT_S = 60.0
SETTLED_S = 30.0
"""A model that has been ready for this long starts with a clean record after its next failure."""

HALF_LIFE_S = 600.0
"""After this time a use counts half for how likely a model is wanted again."""

REDUCED_S = 600.0
"""After this time a model that was made smaller, and has to start anyway, is tried at its full size again."""

NO_CAUSE = Cause("room", "")

_LINGER_LIMIT_S = 1.0
_RARELY = 0.25
_MEMORY = 0.8
"""How much of the old value a moving average keeps."""


@dataclass(slots=True)
class Waiter:
    """A request that waits, or a load that is waited for, bound to the model that was chosen for it."""

    id: int
    demand: Demand
    names: tuple[str, ...]
    arrived: float
    selection: Selection
    purpose: Purpose = "request"
    passed_since: float | None = None
    """When a newer request was first let through to a model that may be in its way."""

    @property
    def model(self) -> str:
        """The model that it waits for."""
        return self.selection.best().name


@dataclass(frozen=True, slots=True)
class Waiting:
    """A waiter for those who look: for which model it waits, what for, since when (s), and its place among those."""

    waiter: int
    model: str
    role: str | None
    purpose: Purpose
    since: float
    place: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Where a model will lie whose waiter was overtaken too long, or for which room is being made; who makes way."""

    placement: Placement
    victims: tuple[Holding, ...]


@dataclass(slots=True, eq=False)
class Slot:
    """One model's engine, the same as no other. Times are in s; ``load_s`` is learnt from each start."""

    spec: Spec
    load_s: float
    state: State = State.STOPPED
    in_flight: int = 0
    queue: dict[int, Waiter] = field(default_factory=dict)
    placement: Placement = ()
    claim: Claim | None = None
    asleep: SleepCost | None = None
    """How it sleeps, or slept until it was woken."""
    is_settled: bool = False
    """Whether it has fallen asleep, and given its memory back."""
    wake_s: float | None = None
    sleeps_badly: bool = False
    """It answered nonsense after waking: it is stopped instead from now on."""
    starts_alone: bool = False
    """It ran out of memory: until it has been measured it gets a device of its own."""
    is_alone: bool = False
    """Whether its present engine was started so."""
    ran_out_mb: int = 1
    """With what it ran out of memory last, over all its devices."""
    least_devices: int = 1
    """Over how many it is laid next, for that."""
    has_run_out: bool = False
    """Whether its last end was for want of memory, and it has not been ready at its full size since."""
    reduction: Reduction | None = None
    """How it is started smaller than its entry says."""
    reduced_at: float = 0
    host_mb: int = 0
    """What its present engine, or the last one, was given of host RAM to run on the CPU; its spec may be new since."""
    measured_mb: int | None = None
    ready_since: float = 0
    last_used: float = 0
    idle_since: float = 0
    returns: float = 1.0
    """How often a request came while it was kept for one: a moving average."""
    blocked_since: float | None = None
    failures: int = 0
    retry_at: float = 0
    error: str = ""
    has_crashed: bool = False
    removed: bool = False
    is_outdated: bool = False
    """It runs as an earlier spec said, and is to be started anew once it is idle."""
    comes_back: bool = False
    """It was stopped for that, and is started without being asked for if it has room."""
    started_as: Spec | None = None
    is_unwanted: bool = False
    """It was unloaded by hand: its group does not bring it back."""
    pinned: bool | None = None
    """Whether it is pinned by hand; None as its entry says."""
    stop_by: float | None = None
    """While draining: when the engine is stopped whatever is still in flight."""
    goes_for: Cause = NO_CAUSE
    """Why it was last told to go."""
    went_from: State = State.READY
    """What it did when it was decided that it stops."""
    _uses: float = 0
    _uses_at: float = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and answers nothing."""
        return self.state is State.READY and self.in_flight == 0

    @property
    def is_swap(self) -> bool:
        """Whether others were sent away for its next start."""
        return self.claim is not None and bool(self.claim.victims)

    @property
    def is_cold(self) -> bool:
        """Whether somebody would have to start or wake it."""
        return self.state in (State.STOPPED, State.FAILED, State.SLEEPING)

    @property
    def can_go(self) -> bool:
        """Whether it may be stopped for another model's sake."""
        return self.spec.managed and not self.is_pinned

    @property
    def is_pinned(self) -> bool:
        """Whether it makes room for nobody."""
        return self.spec.entry.pinned if self.pinned is None else self.pinned

    @property
    def is_on_cpu(self) -> bool:
        """Whether it runs, or is to run, without a GPU on a machine that has one."""
        return self.reduction is not None and self.reduction.on_cpu

    @property
    def takes_room(self) -> bool:
        """Whether it takes memory and a turn on devices: not one that others run, nor one on the CPU beside GPUs."""
        return self.spec.managed and not self.is_on_cpu

    @property
    def least_mb(self) -> int:
        """The least that it is given where its size is not known: what was not enough, unless it is smaller now."""
        return self.ran_out_mb if self.reduction is None else 1

    @property
    def need_mb(self) -> int | None:
        """What it needs over all its devices; None if that is unknown: it gets a device of its own."""
        if self.is_on_cpu:
            return 0
        if self.starts_alone:
            return None
        return self.spec.footprint_mb if self.measured_mb is None else self.measured_mb

    @property
    def comes_back_in_s(self) -> float:
        """How long it takes until it answers, once it has room."""
        if self.asleep is not None:  # it sleeps, or wakes
            return self.asleep.wake_s if self.wake_s is None else self.wake_s
        return self.load_s

    @property
    def oldest(self) -> Waiter | None:
        """Who has waited longest for it."""
        return next(iter(self.queue.values()), None)

    def is_backing_off(self, now: float) -> bool:
        """Whether it failed a moment ago."""
        return self.state is State.FAILED and now < self.retry_at

    def use(self, now: float) -> None:
        """Note that somebody wants it, or another model of its group."""
        self._uses = 1 + self._uses * 2 ** ((self._uses_at - now) / HALF_LIFE_S)
        self._uses_at = now

    def likelihood(self, now: float) -> float:
        """Return how likely it is wanted again, 0 to 1: by its uses, each of which counts half after HALF_LIFE_S."""
        return 1 - math.exp(-self._uses * 2 ** ((self._uses_at - now) / HALF_LIFE_S))

    def linger_s(self, share: float) -> float:
        """Return how long it is kept idle for its next request although another model is wanted.

        A client that sends one request after the other leaves it idle for a moment; a swap in that moment would cost
        two loads. Kept for ``share`` of its load time, unless such requests have rarely come.
        """
        return min(_LINGER_LIMIT_S, share * self.load_s) if self.returns >= _RARELY else 0.0

    def remember_return(self, *, came: bool) -> None:
        """Note whether a request came while it was kept for one."""
        self.returns = _MEMORY * self.returns + (1 - _MEMORY) * came

    def learn_time(self, seconds: float) -> None:
        """Note how long a start, or a wake, took."""
        if self.asleep is not None:
            self.wake_s = seconds if self.wake_s is None else (self.wake_s + seconds) / 2
        else:
            self.load_s = (self.load_s + seconds) / 2

    def holding(self, now: float, sleep: SleepCost | None = None) -> Holding:
        """Return it as one that could make room, by sleeping or (None) by being stopped."""
        back_s = self.load_s if sleep is None else sleep.wake_s
        return Holding(self.name, back_s * self.likelihood(now), 0 if sleep is None else sleep.residual_mb)

    def note_passed(self, arrived: float, now: float) -> None:
        """Note that a request which came at ``arrived`` passed all who wait for this model since before that."""
        for waiter in reversed(self.queue.values()):
            if waiter.passed_since is not None:  # and so were all before it
                return
            if waiter.arrived < arrived:
                waiter.passed_since = now

    def fail(self, error: str, now: float, *, crashed: bool) -> None:
        """Note a start that failed, or a crash, and when the next start may be."""
        if crashed and now - self.ready_since >= SETTLED_S:
            self.failures = 0
        self.failures += 1
        self.error, self.has_crashed = error, crashed
        self.retry_at = now + backoff_s(self.failures, crashed=crashed)

    def give_more(self) -> None:
        """Have it started on a device of its own, or on one more: what it was given was not enough."""
        self.ran_out_mb = sum(share.mb for share in self.placement)
        self.least_devices = len(self.placement) + self.is_alone
        self.starts_alone, self.measured_mb = True, None

    def reduce(self, reduction: Reduction, now: float) -> None:
        """Have it started smaller; what was learnt of its size says nothing of that."""
        self.reduction, self.reduced_at = reduction, now
        self.starts_alone, self.measured_mb = not reduction.on_cpu, None

    def grow_back(self) -> None:
        """Have it started at its full size, of which nothing is known but what its spec says."""
        self.reduction, self.starts_alone, self.measured_mb, self.has_run_out = None, False, None, False

    def failure(self) -> str:
        """Return why it is FAILED, as a sentence without its end."""
        what = "crashed" if self.has_crashed else "did not start"
        return f"The model {self.name!r} {what}: {self.error}"


def backoff_s(failures: int, *, crashed: bool) -> float:
    """Return the pause before the next start: 1, 2, 4 … 60 s; none after a first crash, which may be a single event."""
    exponent = failures - 2 if crashed else failures - 1
    return 0.0 if exponent < 0 else min(BACKOFF_LIMIT_S, 2.0**exponent)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model for ``status`` and ``/v1/models/health``; memory in MB, times in s.

    ``reduced`` is how it is started smaller for want of memory; ``retry_in_s`` counts down while FAILED; ``load_s`` is
    how long its start, or its waking, is expected to take.
    """

    name: str
    state: State
    in_flight: int = 0
    waiting: int = 0
    vram_mb: int = 0
    error: str | None = None
    retry_in_s: float | None = None
    failures: int = 0
    devices: tuple[str, ...] = ()
    load_s: float = 0
    sleep_level: int | None = None
    reduced: str | None = None
    pinned: bool = False


def status_rows(slots: Iterable[Slot], held_mb: dict[str, int], now: float) -> list[ModelStatus]:
    """Return one row per model that is in the registry or still runs, by name."""
    return [
        ModelStatus(
            name=slot.name,
            state=slot.state,
            in_flight=slot.in_flight,
            waiting=len(slot.queue),
            vram_mb=held_mb.get(slot.name, 0),
            error=slot.error or None,
            retry_in_s=max(0.0, slot.retry_at - now) if slot.state is State.FAILED else None,
            failures=slot.failures,
            devices=tuple(share.device for share in slot.placement),
            load_s=slot.comes_back_in_s,
            sleep_level=slot.asleep.level if slot.asleep and slot.state is State.SLEEPING else None,
            reduced=None if slot.reduction is None else str(slot.reduction),
            pinned=slot.is_pinned,
        )
        for slot in sorted(slots, key=lambda slot: slot.name)
        if not slot.removed or slot.state is not State.STOPPED
    ]
