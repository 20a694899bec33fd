"""Why models go and come: told with each effect, for those who count them; no decision rests on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builders import Bench, ask, configured, spec
from rolecall.core.decisions import describe
from rolecall.core.events import (
    BecameReady,
    Cancelled,
    Effect,
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

SLEEPS = (SleepCost(level=1, residual_mb=10, host_mb=100, wake_s=1),)


class Whys(Bench):
    """Tells which models go and why, and which come and whether others went for it."""

    def told(self, effects: list[Effect]) -> list[str]:
        return [said(effect) for effect in effects if isinstance(effect, Start | Stop | Sleep | Wake)]


def said(effect: Start | Stop | Sleep | Wake) -> str:
    why = effect.why if isinstance(effect, Stop | Sleep) else "swap" if effect.is_swap else "free room"
    return f"{type(effect).__name__.lower()} {effect.model}: {why}"


def loaded(*specs: Spec, **fields: Any) -> Whys:
    """Return a bench with model ``a`` loaded and idle."""
    bench = Whys(*specs, **fields)
    assert bench.post(ask(0, "a")) == ["start a: free room"]
    bench.post(BecameReady("a", 5.0), Released("a"))
    return bench


def test_a_model_goes_for_the_room_of_another() -> None:
    """The one that goes, goes for room; the one that then comes is a swap, and its next start into free room is not."""
    bench = loaded(spec("a"), spec("b"))
    assert bench.post(ask(1, "b")) == ["stop a: room"]
    assert bench.post(Exited("a"), Freed("a")) == ["start b: swap"]
    assert bench.post(BecameReady("b"), Released("b"), UnloadRequested("b")) == ["stop b: unload"]
    assert bench.post(Exited("b"), Freed("b"), ask(2, "b")) == ["start b: free room"]


def test_a_model_sleeps_for_room_and_wakes_by_a_swap() -> None:
    """A model that sleeps for another's sake, and is woken by sending that away, counts twice."""
    bench = loaded(spec("a", load_s=50, sleep=SLEEPS), spec("b", 990), sleep_mb=1000)
    assert bench.post(ask(1, "b")) == ["sleep a: room"]
    assert bench.post(FellAsleep("a")) == ["start b: swap"]
    assert bench.post(BecameReady("b"), Released("b"), ask(2, "a")) == ["stop b: room"]
    assert bench.post(Exited("b"), Freed("b")) == ["wake a: swap"]


def test_a_model_goes_because_nobody_wants_it() -> None:
    """After ``idle_unload_s`` the reason is idleness, whether it is stopped or sleeps."""
    assert loaded(spec("a", idle_unload_s=9)).post(Tick(), at=9) == ["stop a: idle"]
    sleepy = loaded(spec("a", idle_unload_s=9, load_s=50, sleep=SLEEPS), sleep_mb=1000)
    assert sleepy.post(Tick(), at=9) == ["sleep a: idle"]


def test_the_reason_survives_a_drain() -> None:
    """A model that has to finish an answer first is stopped for what it was told to go for."""
    bench = loaded(spec("a"))
    assert bench.post(ask(1, "a"), UnloadRequested("a")) == []
    assert bench.post(Released("a")) == ["stop a: unload"]


def test_a_model_goes_because_its_entry_is_another() -> None:
    """So it does if it goes at once, and if it goes when it is idle."""
    changed = configured(spec("a", served_model_id="other"))
    assert loaded(spec("a")).post(changed) == ["stop a: changed"]
    later = replace(changed, at_idle=True)
    assert loaded(spec("a")).post(later) == ["stop a: changed"]


def test_a_load_that_nobody_waits_for_gives_way() -> None:
    """A load is broken off for another one when its clients have left."""
    bench = Whys(spec("a"), spec("b"))
    assert bench.post(ask(1, "a")) == ["start a: free room"]
    assert bench.post(Cancelled(1), ask(2, "b")) == ["stop a: unwanted"]


def test_reasons_are_no_part_of_a_decision() -> None:
    """Effects that differ in their reason alone are equal, and described alike: older decision logs can be replayed."""
    assert Stop("a", "idle") == Stop("a", "room")
    assert describe(Stop("a", "idle")) == {"type": "Stop", "model": "a"}
    assert describe(Wake("a", is_swap=True)) == {"type": "Wake", "model": "a"}
