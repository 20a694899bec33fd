"""Why models come and go, in words; and models that are pinned by hand."""

from __future__ import annotations

from typing import Any

from builders import Bench, ask, configured, entry, spec, words
from rolecall.core.events import (
    Arrived,
    BecameReady,
    Cancelled,
    Effect,
    Exited,
    FellAsleep,
    Group,
    Measured,
    Pinned,
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
from rolecall.core.selection import Demand

ASLEEP = SleepCost(1, 10, 20, 1)


class Telling(Bench):
    """Tells the causes of what is decided; what an engine that exited had is free at once."""

    def __init__(self, *specs: Spec, **fields: Any) -> None:
        super().__init__(*specs, frees=True, **fields)

    def told(self, effects: list[Effect]) -> list[str]:
        return [said(effect) for effect in effects if isinstance(effect, Start | Stop | Sleep | Wake)]


def said(effect: Start | Stop | Sleep | Wake) -> str:
    why = f", {effect.why}" if isinstance(effect, Stop | Sleep) else ""
    return f"{type(effect).__name__.lower()} {effect.model}{why}: {effect.words}"


def test_a_start_says_who_asked_for_it() -> None:
    """A model that was named, and one of a role with the reason of its choice."""
    bench = Telling(spec("a", 400), spec("b", 400, role_priority={"r": 80}))
    assert bench.post(ask(1, "a")) == ["start a: 1 request"]
    bench.post(BecameReady("a"))
    assert bench.post(ask(2, "b", role="r")) == ["start b: 1 request for the role r: highest priority that fits"]


def test_a_load_without_a_request_says_what_it_is() -> None:
    """By hand, also of a role, or at the start of the server; requests that wait as well are what counts."""
    bench = Telling(spec("a", 400), spec("b", 400, role_priority={"r": 80}), spec("c", 100), budget_mb=2000)
    assert bench.post(Arrived(1, Demand(), ("a",), "hand")) == ["start a: loaded by hand"]
    assert bench.post(Arrived(2, Demand(), ("c",), "preload")) == []
    assert bench.post(BecameReady("a")) == ["start c: loaded at the start"]
    bench.post(BecameReady("c"))
    assert bench.post(Arrived(3, Demand("r"), ("b",), "hand")) == [
        "start b: loaded by hand for the role r: highest priority that fits"
    ]
    bench.post(UnloadRequested("b"), Arrived(4, Demand(), ("b",), "hand"), ask(5, "b", role="r"), ask(6, "b", role="r"))
    assert bench.post(Exited("b")) == ["start b: 2 requests for the role r: highest priority that fits"]


def test_an_eviction_says_for_whom() -> None:
    """What is idle makes room for what is asked for, and says so."""
    bench = Telling(spec("a"), spec("b"))
    bench.ready("a")
    assert bench.post(ask(1, "b")) == ["stop a, room: made room for b"]


def test_an_eviction_for_who_waited_too_long_says_since_when() -> None:
    """A model that drains for an overdue request is stopped with that as its cause."""
    bench = Telling(spec("a", load_s=1), spec("b"))
    bench.post(ask(1, "a"), BecameReady("a"), ask(2, "b"))
    bench.post(Tick(), at=25)
    assert bench.post(Released("a")) == ["stop a, room: made room for b, for which a request has waited 25 s"]


def test_an_idle_model_says_for_how_long() -> None:
    """What nobody uses goes to sleep, and is stopped when it has slept long."""
    bench = Telling(spec("a", idle_unload_s=600, sleep=(ASLEEP,), load_s=10), sleep_mb=100)
    bench.ready("a")
    assert bench.post(Tick(), at=601) == ["sleep a, idle: idle for 10 min"]
    bench.post(FellAsleep("a"))
    assert bench.post(Tick(), at=3700) == ["stop a, idle: idle for 62 min, asleep"]


def test_a_waking_says_who_asked_for_it() -> None:
    """As a start does."""
    bench = Telling(spec("a", idle_unload_s=10, sleep=(ASLEEP,), load_s=10), sleep_mb=100)
    bench.ready("a")
    bench.post(Tick(), at=11)
    bench.post(FellAsleep("a"))
    assert bench.post(ask(1, "a")) == ["wake a: 1 request"]


def test_unloads_by_hand_and_at_the_end_are_told_apart() -> None:
    """The same event means the one before the shutdown and the other after it."""
    bench = Telling(spec("a", 400), spec("b", 400))
    bench.ready("a", "b")
    assert bench.post(UnloadRequested("a")) == ["stop a, unload: unloaded by hand"]
    bench.post(ShutdownRequested())
    assert bench.post(UnloadRequested("b")) == ["stop b, unload: rolecall is shutting down"]


def test_a_model_that_drains_keeps_its_cause() -> None:
    """What was asked for while it answered is told when it is stopped."""
    bench = Telling(spec("a"))
    bench.post(ask(1, "a"), BecameReady("a"))
    assert bench.post(UnloadRequested("a")) == []
    assert bench.post(Released("a")) == ["stop a, unload: unloaded by hand"]


def test_the_registry_is_a_cause() -> None:
    """An entry that changed, and one that is gone."""
    bench = Telling(spec("a", 400), spec("b", 400))
    bench.ready("a", "b")
    assert bench.post(configured(spec("a", 400, served_model_id="new"))) == [
        "stop a, changed: its entry, or the GPUs, have changed",
        "stop b, changed: it was removed from the registry",
    ]


def test_a_model_that_is_started_otherwise_says_so_twice() -> None:
    """When it goes and when it comes back."""
    bench = Telling(spec("a"))
    bench.ready("a")
    changed = configured(spec("a", served_model_id="new"), at_idle=True)
    assert bench.post(changed) == ["stop a, changed: it is started anew with what was changed"]
    assert bench.post(Exited("a")) == ["start a: it was stopped to be started with what was changed"]


def test_a_load_that_nobody_waits_for_is_broken_off_with_its_cause() -> None:
    """It makes way for a model that somebody waits for."""
    bench = Telling(spec("a"), spec("b"))
    bench.post(ask(1, "a"))
    bench.post(Cancelled(1))
    assert bench.post(ask(2, "b")) == ["stop a, unwanted: nobody waits for it, and b needs its place"]


def test_groups_are_causes() -> None:
    """What follows its group says so, and so does what makes room for that."""
    bench = Telling(spec("a", 400), spec("b", 600), spec("c", 600), groups=(Group("photo", ("a", "b")),))
    bench.ready("c")
    bench.post(ask(1, "a"), at=100)
    assert bench.post(BecameReady("a")) == ["stop c, room: made room for b of the group photo in use"]
    assert bench.post(Exited("c")) == ["start b: the group photo is in use"]


def test_a_sleeping_model_that_turned_out_too_large_says_so() -> None:
    """It cannot wake where it lies, and starts anew."""
    small = spec("a", 900, idle_unload_s=10, sleep=(ASLEEP,), load_s=10)
    bench = Telling(small, sleep_mb=100)
    bench.ready("a")
    bench.post(Measured("a", {"cpu": 900}, 900))
    bench.post(Tick(), at=11)
    bench.post(FellAsleep("a"))
    bench.post(configured(small, budget_mb=800, sleep_mb=100))
    assert "stop" in " ".join(words(bench.effects))


# -- pinned by hand


def test_a_model_that_was_pinned_makes_no_room() -> None:
    """Neither for another model nor when idle, until it is unpinned."""
    bench = Telling(spec("a", idle_unload_s=10), spec("b"))
    bench.ready("a")
    bench.post(Pinned("a", pinned=True))
    assert bench.post(Tick(), at=100) == []
    bench.post(ask(1, "b"))
    assert words(bench.effects) == ["reject 1 unavailable"]
    (row, _) = bench.scheduler.status(bench.now)
    assert row.pinned
    bench.post(Pinned("a", pinned=False))
    assert bench.post(ask(2, "b")) == ["stop a, room: made room for b"]


def test_a_model_pinned_by_its_entry_can_be_unpinned() -> None:
    """And what the registry says is taken up again once it says something else."""
    bench = Telling(spec("a", pinned=True), spec("b"))
    bench.ready("a")
    bench.post(Pinned("a", pinned=False))
    bench.post(configured(spec("a", pinned=True), spec("b")))
    assert not bench.scheduler.status(0)[0].pinned, "a reload alone changes nothing"
    bench.post(configured(spec("a"), spec("b")))
    bench.post(configured(spec("a", pinned=True), spec("b")))
    assert bench.scheduler.status(0)[0].pinned


def test_who_was_to_go_and_is_pinned_stays() -> None:
    """A model that drains for an overdue one is spared if it is pinned meanwhile."""
    bench = Telling(spec("a", load_s=1), spec("b"))
    bench.post(ask(1, "a"), BecameReady("a"), ask(2, "b"))
    bench.post(Tick(), at=25)
    bench.post(Pinned("a", pinned=True))
    assert bench.post(Released("a")) == []
    assert bench.scheduler.state("a").value == "ready"


def test_the_queue_can_be_looked_at() -> None:
    """Who waits for what, what for, since when, and the place in that queue; the oldest first."""
    bench = Telling(spec("a"), spec("b", role_priority={"r": 1}))
    bench.post(ask(1, "a"))
    bench.post(ask(2, "a"), at=1)
    bench.post(ask(3, "b", role="r"), Arrived(4, Demand(), ("b",), "preload"), at=2)
    seen = [(w.waiter, w.model, w.role, w.purpose, w.since, w.place) for w in bench.scheduler.queue()]
    assert seen == [
        (1, "a", None, "request", 0, 1),
        (2, "a", None, "request", 1, 2),
        (3, "b", "r", "request", 2, 1),
        (4, "b", None, "preload", 2, 2),
    ]


def test_a_pinned_model_may_be_unloaded_by_hand() -> None:
    """Pinning keeps others from its place, not its owner."""
    bench = Telling(spec("a"))
    bench.ready("a")
    bench.post(Pinned("a", pinned=True))
    assert bench.post(UnloadRequested("a")) == ["stop a, unload: unloaded by hand"]
    assert entry("a").pinned is False
