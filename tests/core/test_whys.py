"""Why models go and come: told with each effect, for those who count them; no decision rests on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builders import configured, spec
from rolecall.core.decisions import describe
from rolecall.core.events import (
    Arrived,
    BecameReady,
    Cancelled,
    Event,
    Exited,
    FellAsleep,
    Freed,
    Released,
    Sleep,
    SleepCost,
    Spec,
    Start,
    Stop,
    Tick,
    UnloadRequested,
    Wake,
)
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Demand

SLEEPS = (SleepCost(level=1, residual_mb=10, host_mb=100, wake_s=1),)


def told(scheduler: Scheduler, *events: Event, at: float = 0.0) -> list[tuple[Any, ...]]:
    """Hand in events and return which models go and why, and which come and whether others went for it."""
    found: list[tuple[Any, ...]] = []
    for event in events:
        for effect in scheduler.handle(event, at):
            if isinstance(effect, Stop | Sleep):
                found.append((type(effect).__name__, effect.model, effect.why))
            elif isinstance(effect, Start | Wake):
                found.append((type(effect).__name__, effect.model, effect.is_swap))
    return found


def wants(waiter: int, model: str) -> Arrived:
    return Arrived(waiter, Demand(), (model,))


def loaded(*specs: Spec, model: str = "a", **more: Any) -> Scheduler:
    """Return a scheduler with one of these models loaded and idle."""
    scheduler = Scheduler(linger_share=0)
    scheduler.handle(configured(*specs, **more), 0)
    assert told(scheduler, wants(0, model), BecameReady(model, 5.0), Released(model)) == [("Start", model, False)]
    return scheduler


def test_a_model_goes_for_the_room_of_another() -> None:
    """The one that goes, goes for room; the one that then comes is a swap, and its next start into free room is not."""
    scheduler = loaded(spec("a"), spec("b"))
    assert told(scheduler, wants(1, "b")) == [("Stop", "a", "room")]
    assert told(scheduler, Exited("a"), Freed("a")) == [("Start", "b", True)]
    assert told(scheduler, BecameReady("b"), Released("b"), UnloadRequested("b")) == [("Stop", "b", "unload")]
    assert told(scheduler, Exited("b"), Freed("b"), wants(2, "b")) == [("Start", "b", False)]


def test_a_model_sleeps_for_room_and_wakes_by_a_swap() -> None:
    """A model that sleeps for another's sake, and is woken by sending that away, counts twice."""
    scheduler = loaded(spec("a", load_s=50, sleep=SLEEPS), spec("b", 990), sleep_mb=1000)
    assert told(scheduler, wants(1, "b")) == [("Sleep", "a", "room")]
    assert told(scheduler, FellAsleep("a")) == [("Start", "b", True)]
    assert told(scheduler, BecameReady("b"), Released("b"), wants(2, "a")) == [("Stop", "b", "room")]
    assert told(scheduler, Exited("b"), Freed("b")) == [("Wake", "a", True)]


def test_a_model_goes_because_nobody_wants_it() -> None:
    """After ``idle_unload_s`` the reason is idleness, whether it is stopped or sleeps."""
    assert told(loaded(spec("a", idle_unload_s=9)), Tick(), at=9) == [("Stop", "a", "idle")]
    sleepy = loaded(spec("a", idle_unload_s=9, load_s=50, sleep=SLEEPS), sleep_mb=1000)
    assert told(sleepy, Tick(), at=9) == [("Sleep", "a", "idle")]


def test_the_reason_survives_a_drain() -> None:
    """A model that has to finish an answer first is stopped for what it was told to go for."""
    scheduler = loaded(spec("a"))
    assert told(scheduler, wants(1, "a"), UnloadRequested("a")) == []
    assert told(scheduler, Released("a")) == [("Stop", "a", "unload")]


def test_a_model_goes_because_its_entry_is_another() -> None:
    """So it does if it goes at once, and if it goes when it is idle."""
    changed = configured(spec("a", served_model_id="other"))
    assert told(loaded(spec("a")), changed) == [("Stop", "a", "changed")]
    later = replace(changed, at_idle=True)
    assert told(loaded(spec("a")), later) == [("Stop", "a", "changed")]


def test_a_load_that_nobody_waits_for_gives_way() -> None:
    """A load is broken off for another one when its clients have left."""
    scheduler = Scheduler(linger_share=0)
    scheduler.handle(configured(spec("a"), spec("b")), 0)
    ticket = wants(1, "a")
    assert told(scheduler, ticket) == [("Start", "a", False)]
    assert told(scheduler, Cancelled(1), wants(2, "b")) == [("Stop", "a", "unwanted")]


def test_reasons_are_no_part_of_a_decision() -> None:
    """Effects that differ in their reason alone are equal, and described alike: older decision logs can be replayed."""
    assert Stop("a", "idle") == Stop("a", "room")
    assert describe(Stop("a", "idle")) == {"type": "Stop", "model": "a"}
    assert describe(Wake("a", is_swap=True)) == {"type": "Wake", "model": "a"}
