"""What must hold for the scheduler in any world: a state machine carries out its effects, with every mishap.

Hypothesis chooses what happens next, on one to four GPUs: requests come and leave, engines load, fail, run out of
memory, crash, hang in their stop, give their memory back late, sleep and wake; other programs take memory; people
unload, edit the registry and shut down. After every step the world checks what the scheduler promised; at the end time
passes until nobody waits, and nobody may wait for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from builders import entry, spec
from rolecall.core.events import (
    Arrived,
    BecameReady,
    Cancelled,
    Configured,
    Effect,
    Event,
    Exited,
    FellAsleep,
    Freed,
    Grant,
    Group,
    Measured,
    Observed,
    Pinned,
    Purpose,
    Reject,
    Released,
    ShutdownRequested,
    Sleep,
    SleepCost,
    Spec,
    Start,
    Stop,
    Tick,
    UnloadRequested,
    Wake,
)
from rolecall.core.lifecycle import State
from rolecall.core.policy import RESIDENCY
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Demand, Rules
from rolecall.core.vram import Device, Placement

MAX_OVERTAKE_S = 5
DRAIN_LIMIT_S = 8
MODELS = ("m0", "m1", "m2", "m3", "m4")
MAX_QUEUE = 12
HOST_MB = 80
ROUNDS = 3000
"""More rounds of all that can happen than any queue of this size can take; whoever waits longer waits for ever."""


@dataclass(eq=False)
class Engine:
    """An engine from Start to Exited; ``phase`` is loading, ready, dozing, asleep, waking or stopping."""

    spec: Spec
    placement: Placement
    phase: str = "loading"
    in_flight: list[int] = field(default_factory=list)
    may_go: bool = False
    """Somebody asked for its end, or its entry is no longer the one it was started with."""
    drains_since: float | None = None

    @property
    def devices(self) -> set[str]:
        return {share.device for share in self.placement}

    @property
    def is_loading(self) -> bool:
        return self.spec.managed and self.phase in {"loading", "waking"}

    @property
    def on_cpu(self) -> bool:
        return self.spec.managed and not self.placement


@dataclass(frozen=True)
class Visit:
    """A request that waits, or a load that is waited for."""

    arrived: float
    names: tuple[str, ...]
    purpose: Purpose


models = st.builds(
    lambda size, parallel, kind, priority, spread, sleeps, idle_s, load_s, smaller, cpu_mb: spec(
        "?",
        size if kind != "external" else 0,
        managed=kind != "external",
        max_parallel=parallel,
        idle_unload_s=idle_s,
        pinned=kind == "pinned",
        load_s=load_s,
        spread=spread,
        sleep=(SleepCost(1, 20, 50, 1), SleepCost(2, 20, 5, 2)) if sleeps else (),
        role_priority={"r": priority},
        smaller=smaller,
        cpu_mb=cpu_mb,
    ),
    st.none() | st.integers(10, 200),
    st.integers(1, 3),
    st.sampled_from(["managed", "managed", "managed", "pinned", "external"]),
    st.sampled_from([50, 60, 90]),
    st.sampled_from([(1,), (1, 2), (2,), (1, 2, 3, 4)]),
    st.booleans(),
    st.sampled_from([0, 3, 20]),
    st.sampled_from([1, 3, 10]),
    st.sampled_from([(), (4096, 2048)]),
    st.sampled_from([None, None, 40, 70]),
)


class Thorough(Scheduler):
    """Thinks everything through, also where a loaded model just serves."""

    def _serve_at_once(self, event: Arrived) -> Grant | None:
        del event
        return None

    def _release_at_once(self, event: Released) -> bool:
        del event
        return False


class SchedulerInAnyWorld(RuleBasedStateMachine):
    """Carries out the scheduler's effects and checks that it promises nothing it may not."""

    @initialize(
        gpus_mb=st.lists(st.sampled_from([100, 150, 200]), min_size=1, max_size=4),
        some=st.lists(models, min_size=2, max_size=len(MODELS)),
        max_models=st.integers(1, 5),
        tolerance=st.sampled_from([0, 15]),
        linger_share=st.sampled_from([0, 0.05]),
        startup=st.sampled_from([None, "serial", "parallel"]),
    )
    def begin(  # noqa: PLR0917
        self,
        gpus_mb: list[int],
        some: list[Spec],
        max_models: int,
        tolerance: float,
        linger_share: float,
        startup: str | None,
    ) -> None:
        limits = {"max_overtake_s": MAX_OVERTAKE_S, "drain_limit_s": DRAIN_LIMIT_S, "max_queue": MAX_QUEUE}
        self.scheduler = Scheduler(linger_share=linger_share, **limits)
        self.thorough = Thorough(linger_share=linger_share, **limits)
        self.now = 0.0
        self.devices = tuple(Device(f"g{i}", mb, mb + 10, i) for i, mb in enumerate(gpus_mb))
        self.budget_mb = sum(gpus_mb)
        self.max_models = max_models
        self.tolerance = tolerance
        self.specs = {
            name: replace(known, entry=entry(name, pinned=known.entry.pinned, role_priority=known.entry.role_priority))
            for name, known in zip(MODELS, some, strict=False)
        }
        self.groups = () if startup is None else (Group("g", tuple(self.specs)[:3], startup),)  # type: ignore[arg-type]
        self.all_specs = dict(self.specs)
        self.foreign: Mapping[str, int] = {}
        self.engines: dict[str, Engine] = {}
        self.lingering: set[str] = set()
        self.waiting: dict[int, Visit] = {}
        self.passed: dict[int, float] = {}
        self.ended: Counter[int] = Counter()
        self.cut: Counter[str] = Counter()
        """Answers whose engine is gone and that were not given back yet."""
        self.pinned: dict[str, bool] = {}
        """Models that were pinned or unpinned by hand."""
        self.coming_back: set[str] = set()
        """Models that were stopped to be started otherwise."""
        self.asked = 0
        self.is_over = False
        self.configure()

    # -- what happens

    @rule(
        number=st.integers(0, 4),
        by_role=st.booleans(),
        purpose=st.sampled_from(["request", "request", "hand", "preload"]),
    )
    def request(self, number: int, *, by_role: bool, purpose: Purpose) -> None:
        self.asked += 1
        self.now += 0.001  # no two arrive at the same moment
        names = tuple(self.all_specs) if by_role else (list(self.all_specs)[number % len(self.all_specs)],)
        self.waiting[self.asked] = Visit(self.now, names, purpose)
        self.post(Arrived(self.asked, Demand(role="r" if by_role else None), names, purpose))

    @rule(seconds=st.sampled_from([0.05, 0.5, 1, 3, 6]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.post(Tick())

    @precondition(lambda self: self.waiting)
    @rule(number=st.integers(0, 20))
    def client_leaves(self, number: int) -> None:
        waiter = list(self.waiting)[number % len(self.waiting)]
        self.end(waiter)
        self.post(Cancelled(waiter))

    @precondition(lambda self: self.some("ready", "stopping", busy=True))
    @rule(number=st.integers(0, 20))
    def answer_ends(self, number: int) -> None:
        busy = self.some("ready", "stopping", busy=True)
        engine = busy[number % len(busy)]
        engine.in_flight.pop()
        self.post(Released(engine.spec.name))

    @precondition(lambda self: self.some("loading", "waking"))
    @rule(number=st.integers(0, 20), told=st.booleans())
    def becomes_ready(self, number: int, *, told: bool) -> None:
        loading = self.some("loading", "waking")
        engine = loading[number % len(loading)]
        engine.phase = "ready"
        self.post(BecameReady(engine.spec.name, 2.0 if told else None))

    @precondition(lambda self: self.some("stopping"))
    @rule(number=st.integers(0, 20))
    def says_ready_too_late(self, number: int) -> None:
        stopping = self.some("stopping")
        self.post(BecameReady(stopping[number % len(stopping)].spec.name))

    @precondition(lambda self: self.some("loading"))
    @rule(number=st.integers(0, 20), out_of_memory=st.booleans())
    def does_not_start(self, number: int, *, out_of_memory: bool) -> None:
        loading = self.some("loading")
        self.exit(loading[number % len(loading)], by_itself=True, out_of_memory=out_of_memory)

    @precondition(lambda self: self.some("ready", "dozing", "asleep", "waking"))
    @rule(number=st.integers(0, 20), out_of_memory=st.booleans())
    def crashes(self, number: int, *, out_of_memory: bool) -> None:
        running = self.some("ready", "dozing", "asleep", "waking")
        self.exit(running[number % len(running)], by_itself=True, out_of_memory=out_of_memory)

    @precondition(lambda self: self.some("stopping"))
    @rule(number=st.integers(0, 20), by_itself=st.booleans(), out_of_memory=st.booleans())
    def has_stopped(self, number: int, *, by_itself: bool, out_of_memory: bool) -> None:
        stopping = self.some("stopping")
        self.exit(stopping[number % len(stopping)], by_itself=by_itself, out_of_memory=by_itself and out_of_memory)

    @precondition(lambda self: bool(self.lingering))
    @rule(number=st.integers(0, 20))
    def memory_is_free(self, number: int) -> None:
        name = sorted(self.lingering)[number % len(self.lingering)]
        self.lingering.remove(name)
        self.post(Freed(name))

    @precondition(lambda self: self.some("dozing"))
    @rule(number=st.integers(0, 20))
    def falls_asleep(self, number: int) -> None:
        dozing = self.some("dozing")
        engine = dozing[number % len(dozing)]
        engine.phase = "asleep"
        self.post(FellAsleep(engine.spec.name))

    @precondition(lambda self: any(e.placement for e in self.some("ready")))
    @rule(number=st.integers(0, 20), share=st.sampled_from([0, 0.5, 0.9, 1, 1.5]))
    def is_measured(self, number: int, share: float) -> None:
        ready = [engine for engine in self.some("ready") if engine.placement]
        engine = ready[number % len(ready)]
        held = self.scheduler.ledger.held_on(engine.spec.name)
        self.post(Measured(engine.spec.name, {device: int(mb * share) for device, mb in held.items()}))

    @rule(number=st.integers(0, 3), mb=st.sampled_from([0, 5, 60, 150]))
    def others_take_memory(self, number: int, mb: int) -> None:
        self.foreign = {**self.foreign, self.devices[number % len(self.devices)].id: mb}
        self.post(Observed(self.foreign))

    @rule(number=st.integers(0, 4))
    def somebody_unloads(self, number: int) -> None:
        name = list(self.all_specs)[number % len(self.all_specs)]
        if name in self.engines:
            self.engines[name].may_go = True
        called_off = {
            waiter
            for waiter, visit in self.waiting.items()
            if visit.purpose != "request" and self.scheduler.waits_for(waiter)[0] == name  # type: ignore[index]
        }
        self.post(UnloadRequested(name))
        assert called_off.isdisjoint(self.waiting), "a load goes on although its model was unloaded"

    @rule(number=st.integers(0, 4), pinned=st.booleans())
    def somebody_pins(self, number: int, *, pinned: bool) -> None:
        name = list(self.all_specs)[number % len(self.all_specs)]
        if name in self.specs:
            self.pinned[name] = pinned
        self.post(Pinned(name, pinned))

    def is_pinned(self, name: str) -> bool:
        """Whether a model is pinned: by the last word of somebody, else by its entry."""
        return self.pinned.get(name, self.all_specs[name].entry.pinned)

    @rule(number=st.integers(0, 4), what=st.sampled_from(["remove", "restore", "change", "resize", "budget"]))
    def somebody_edits(self, number: int, what: str) -> None:
        name = list(self.all_specs)[number % len(self.all_specs)]
        known = self.all_specs[name]
        if what == "remove":
            self.specs.pop(name, None)
            self.pinned.pop(name, None)
        elif what == "restore":
            self.specs[name] = known
        elif what in {"change", "resize"}:
            fields = {"pinned": known.entry.pinned, "role_priority": known.entry.role_priority}
            self.specs[name] = replace(known, entry=entry(name, served_model_id=str(self.now), **fields))
        else:
            self.budget_mb = 60 * (number + 1)
        self.configure(at_idle=what == "resize")

    @precondition(lambda self: not self.is_over and self.asked > 10)
    @rule(sure=st.integers(0, 30))
    def rolecall_ends(self, sure: int) -> None:
        if sure == 0:
            self.is_over = True
            self.post(ShutdownRequested())

    def teardown(self) -> None:
        """Let everything happen that can, and time pass; then nobody waits, and all is as at the beginning."""
        if not hasattr(self, "scheduler"):
            return
        self.foreign = {}
        self.post(Observed({}))
        for _ in range(ROUNDS):
            if not (self.waiting or self.lingering or self.some("loading", "waking", "stopping", "dozing", busy=None)):
                break
            self.settle()
        assert not self.waiting, f"{self.waiting} wait for ever: {self.scheduler!r}"
        assert self.ended == dict.fromkeys(range(1, self.asked + 1), 1)
        self.clear()

    def settle(self) -> None:
        for engine in list(self.engines.values()):
            for _ in list(engine.in_flight):
                engine.in_flight.pop()
                self.post(Released(engine.spec.name))
            self.go_on(engine)
        for name in sorted(self.lingering):
            self.lingering.remove(name)
            self.post(Freed(name))
        self.now = max(self.now + 0.5, min(self.scheduler.wake_at() or 0, self.now + 10))
        self.post(Tick())

    def go_on(self, engine: Engine) -> None:
        """Let happen what is next in an engine's life."""
        name = engine.spec.name
        if self.engines.get(name) is not engine:
            return
        if engine.phase in {"loading", "waking"}:
            engine.phase = "ready"
            self.post(BecameReady(name))
        elif engine.phase == "dozing":
            engine.phase = "asleep"
            self.post(FellAsleep(name))
        elif engine.phase == "stopping" and engine.drains_since is None:
            self.exit(engine)

    def clear(self) -> None:
        """Unload everything: no reservation may be left."""
        for engine in self.engines.values():
            engine.may_go = True
        self.post(ShutdownRequested())
        for name in list(self.engines):
            self.post(UnloadRequested(name))
        for _ in range(ROUNDS):
            if not self.engines and not self.lingering:
                break
            self.settle()
        assert not self.engines
        assert self.scheduler.ledger.used_mb == 0
        assert {row.state for row in self.scheduler.status(self.now)} <= {State.STOPPED, State.FAILED}

    # -- carrying out

    def some(self, *phases: str, busy: bool | None = None) -> list[Engine]:
        return [
            engine
            for engine in self.engines.values()
            if engine.phase in phases and (busy is None or bool(engine.in_flight) is busy)
        ]

    def configure(self, *, at_idle: bool = False) -> None:
        for name, engine in self.engines.items():
            new = self.specs.get(name)
            engine.may_go |= new is None or not new.starts_like(engine.spec)
        rules = Rules(limit_mb=self.budget_mb, tolerance=self.tolerance)
        specs = tuple(self.specs.values())
        self.post(
            Configured(
                specs,
                rules,
                self.devices,
                self.budget_mb,
                self.max_models,
                groups=self.groups,
                sleep_mb=60,
                host_mb=HOST_MB,
                at_idle=at_idle,
            )
        )

    def exit(self, engine: Engine, *, by_itself: bool = False, out_of_memory: bool = False) -> None:
        name = engine.spec.name
        del self.engines[name]
        self.cut[name] += len(engine.in_flight)
        if engine.placement:
            self.lingering.add(name)
        self.post(Exited(name, out_of_memory=out_of_memory, by_itself=by_itself))
        if engine.phase != "stopping" and not engine.may_go:
            assert self.scheduler.state(name) is not State.STOPPED, "a crash was taken for a stop"
        while self.cut[name]:  # their answers are over
            self.cut[name] -= 1
            self.post(Released(name))

    def post(self, event: Event) -> None:
        over = {device.id: self.scheduler.ledger.used_on(device.id) for device in self.devices}
        effects = self.scheduler.handle(event, self.now)
        assert repr(effects) == repr(self.thorough.handle(event, self.now)), "decided otherwise in haste"
        assert self.scheduler.status(self.now) == self.thorough.status(self.now)
        for effect in effects:
            self.carry_out(effect)
        if any(isinstance(effect, Start | Wake) for effect in effects):
            self.check_capacity(over)
        self.check(event)

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case Start(model, placement, reduction):
                self.start(model, placement, on_cpu=reduction is not None and reduction.on_cpu)
            case Stop(model):
                self.stop(self.engines[model])
            case Sleep(model, _):
                engine = self.engines[model]
                assert engine.phase == "ready", "put to sleep what is not ready"
                assert not engine.in_flight, "put to sleep while in flight"
                assert not self.is_pinned(engine.spec.name) or engine.may_go
                engine.phase = "dozing"
            case Wake(model):
                engine = self.engines[model]
                assert engine.phase == "asleep", "woke what does not sleep"
                engine.phase = "waking"
                self.check_loads(engine)
            case Grant(waiter, model, _):
                self.grant(waiter, self.engines[model])
            case Reject(waiter, error):
                is_load = self.waiting[waiter].purpose != "request"
                assert error.status in {400, 404, 429, 503} or (is_load and error.status == 409)
                self.end(waiter)

    def start(self, model: str, placement: Placement, *, on_cpu: bool) -> None:
        assert model not in self.engines, "started twice"
        assert model not in self.lingering, "started beside its own memory"
        known = self.specs[model]
        engine = self.engines[model] = Engine(known, placement)
        assert bool(placement) is (known.managed and not on_cpu)
        on_the_cpu = [each for each in self.engines.values() if each.on_cpu]
        assert sum(each.spec.cpu_mb or 0 for each in on_the_cpu) <= HOST_MB, "too much in host RAM"
        assert sum(share.mb for share in placement) >= 0
        self.check_loads(engine)
        is_member = any(model in group.models for group in self.groups)
        wanted = any(model in visit.names for visit in self.waiting.values())
        assert wanted or is_member or model in self.coming_back, "started for nobody"
        self.coming_back.discard(model)

    def check_loads(self, engine: Engine) -> None:
        others = [other for other in self.engines.values() if other.is_loading and other is not engine]
        assert not any(engine.devices & other.devices for other in others), "two loads at a time on one GPU"

    def stop(self, engine: Engine) -> None:
        assert engine.phase != "stopping" or engine.drains_since is not None, "stopped twice"
        drained = engine.drains_since is not None and self.now >= engine.drains_since + DRAIN_LIMIT_S
        assert not engine.in_flight or drained or engine.phase != "ready", "stopped while in flight"
        assert engine.may_go or not self.is_pinned(engine.spec.name), "a pinned model was stopped"
        engine.phase, engine.drains_since = "stopping", None
        if self.scheduler._slots[engine.spec.name].comes_back:
            self.coming_back.add(engine.spec.name)

    def grant(self, waiter: int, engine: Engine) -> None:
        visit, name = self.waiting[waiter], engine.spec.name
        assert name in visit.names
        assert engine.phase == "ready", f"granted while {engine.phase}"
        assert len(engine.in_flight) < self.specs[name].max_parallel
        assert not self.cut[name], "a new engine serves while answers of the old one are counted"
        self.check_overtaking(waiter, engine)
        engine.in_flight.append(waiter)
        self.end(waiter)

    def check_overtaking(self, newer: int, engine: Engine) -> None:
        """No newer request is granted on a model that an overdue one needs gone, whatever else goes.

        But in its first while, as long as the overdue one has not been passed for longer than the bound.
        """
        slot = self.scheduler._slots[engine.spec.name]
        is_fresh = self.now < slot.ready_since + RESIDENCY * slot.load_s
        for waiter, visit in self.waiting.items():
            if waiter < newer and len(visit.names) == 1 and len(self.devices) == 1:
                known = self.specs.get(visit.names[0])
                is_cold = known and self.scheduler.state(known.name) in {State.STOPPED, State.FAILED}
                if known and known.managed and is_cold and self.keeps_out(engine, known):
                    assert is_fresh or self.now - visit.arrived < MAX_OVERTAKE_S, f"{newer} overtook {waiter}, overdue"
                    since = self.passed.setdefault(waiter, self.now)
                    assert self.now - since < MAX_OVERTAKE_S, f"{newer} overtook {waiter} past the bound"

    def keeps_out(self, engine: Engine, wanted: Spec) -> bool:
        """Whether a model cannot be loaded on the only GPU for as long as the engine stays, though it may go."""
        held_mb = self.scheduler.ledger.held_mb(engine.spec.name)
        is_oldest = engine.spec.managed and not self.is_pinned(engine.spec.name) and held_mb > 0
        if wanted.footprint_mb is None or not is_oldest or wanted.spread[0] != 1:
            return False
        pinned = [e for e in self.engines.values() if self.is_pinned(e.spec.name)]
        fits_alone = wanted.footprint_mb <= min(self.devices[0].capacity_mb, self.budget_mb)
        # The scheduler may have learnt another size of the wanted model: then this says nothing.
        is_known = not any(row.failures for row in self.scheduler.status(self.now) if row.name == wanted.name)
        beside_mb = self.devices[0].capacity_mb - held_mb
        cannot_share = wanted.footprint_mb > beside_mb and wanted.name not in self.measured()
        return fits_alone and cannot_share and not pinned and is_known and not any(self.foreign.values())

    def measured(self) -> set[str]:
        return {name for name, slot in self.scheduler._slots.items() if slot.measured_mb or slot.starts_alone}

    def end(self, waiter: int) -> None:
        """Note that a waiter was granted, rejected or cancelled; raises ``KeyError`` if it was already."""
        del self.waiting[waiter]
        self.ended[waiter] += 1

    # -- what holds after each event

    def check_capacity(self, before: Mapping[str, int]) -> None:
        """A start or a waking never takes more of a device than models may hold of it."""
        ledger = self.scheduler.ledger
        for device in self.devices:
            used = ledger.used_on(device.id)
            assert used <= max(ledger.open_mb(device.id), before[device.id]), f"too much on {device.id}"
        assert ledger.used_mb <= max(self.budget_mb, sum(before.values()))

    def check(self, event: Event) -> None:
        assert self.scheduler.waiting() == len(self.waiting) <= MAX_QUEUE
        names = {name for name in self.all_specs if self.scheduler.ledger.held_mb(name) or name in self.lingering}
        assert names <= self.engines.keys() | self.lingering, f"memory is held for nobody after {event}"
        for row in self.scheduler.status(self.now):
            engine = self.engines.get(row.name)
            assert row.in_flight == self.cut[row.name] + len(engine.in_flight if engine else ()), row
            self.check_state(row.state, engine)

    def check_state(self, state: State, engine: Engine | None) -> None:
        if engine is None:
            assert state in {State.STOPPED, State.FAILED}
            return
        phases = {
            State.STARTING: {"loading", "waking"},
            State.READY: {"ready"},
            State.SLEEPING: {"dozing", "asleep"},
            State.STOPPING: {"stopping", "ready"},
        }
        assert engine.phase in phases[state], f"{engine.spec.name} is {engine.phase}, not {state.value}"
        if state is State.STOPPING and engine.phase == "ready" and engine.drains_since is None:
            engine.drains_since = self.now


TestSchedulerInAnyWorld = SchedulerInAnyWorld.TestCase
TestSchedulerInAnyWorld.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
