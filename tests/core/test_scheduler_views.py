"""What the scheduler says of itself, and paths of core/ that property tests reach only by luck."""

from __future__ import annotations

import json
from typing import Any

from builders import Bench, ask, configured, spec
from rolecall.core.decisions import encode
from rolecall.core.events import (
    Adopted,
    Arrived,
    BecameReady,
    Exited,
    Freed,
    Grant,
    Released,
    SleepCost,
    Tick,
    UnloadRequested,
)
from rolecall.core.selection import Demand, Rules


def test_who_waits_is_told_for_what_and_behind_how_many() -> None:
    """A waiter's model, its place in that model's queue, and how long the start takes; nothing once it is served."""
    bench = Bench(spec("a", load_s=20), spec("b", load_s=7))
    bench.post(ask(1, "a"), ask(2, "a"), ask(3, "b"))
    assert [bench.scheduler.waits_for(waiter) for waiter in (1, 2, 3)] == [("a", 0), ("a", 1), ("b", 0)]
    assert (bench.scheduler.load_s("a"), bench.scheduler.load_s("b")) == (20, 7)
    bench.post(BecameReady("a"))
    assert bench.scheduler.waits_for(1) is None
    assert bench.scheduler.waits_for(2) == ("a", 0)


def test_a_load_is_expected_after_those_before_it() -> None:
    """What loads now, and then one after the other in the order of loads: most waiters per second of load first."""
    bench = Bench(*(spec(name, 100, load_s=load_s) for name, load_s in (("a", 20), ("b", 9), ("c", 4), ("d", 3))))
    bench.post(ask(1, "a"), ask(2, "b"), ask(3, "c"))
    assert bench.scheduler.etas({"a": 6.5}) == {"c": 10.5, "b": 19.5}
    assert bench.scheduler.etas({}) == {"c": 24, "b": 33}
    assert bench.scheduler.ledger.promised == []
    bench.post(BecameReady("a"))
    assert bench.scheduler.etas({"c": 1}) == {"b": 10}


def test_an_overdue_load_is_expected_first() -> None:
    """Who was overtaken for too long comes before those with a quicker load."""
    bench = Bench(spec("a", 100, load_s=60), spec("b", 100, load_s=9), spec("c", 100, load_s=4))
    bench.post(ask(1, "a"), ask(2, "b"))
    bench.post(ask(3, "c"), at=25)
    assert bench.scheduler.etas({"a": 5}) == {"b": 14, "c": 18}


def test_each_device_loads_on_its_own() -> None:
    """A model is expected on the device that can load it first."""
    bench = Bench(*(spec(name, 100, load_s=10) for name in "abc"), gpus_mb=(1000, 1000))
    bench.post(ask(1, "a"), ask(2, "b"), ask(3, "c"))
    assert bench.scheduler.etas({"a": 8, "b": 2}) == {"c": 12}


def test_nobody_knows_when_room_is_made() -> None:
    """Whoever holds it, and also where those that come before will take it."""
    bench = Bench(spec("a", 600), spec("b", 600, load_s=4))
    bench.post(ask(1, "a"), BecameReady("a"))
    assert bench.post(ask(2, "b")) == []
    assert bench.scheduler.etas({}) == {"b": None}
    bench = Bench(*(spec(name, 300, load_s=4) for name in "abcd"), gpus_mb=(1000,))
    bench.post(ask(1, "a"), BecameReady("a"), ask(2, "b"), ask(3, "c"), ask(4, "d"))
    assert bench.scheduler.etas({"b": 1}) == {"c": 5, "d": None}


def test_behind_one_that_needs_room_nothing_is_known() -> None:
    """It is loaded before them as soon as it has its room, whenever that is."""
    bench = Bench(spec("a", 500), spec("b", 100, load_s=9), spec("c", 700, load_s=2), spec("d", 100, load_s=8))
    bench.post(ask(1, "a"), BecameReady("a"), ask(2, "b"), ask(3, "c"), ask(4, "d"))
    assert bench.scheduler.etas({"b": 3}) == {"c": None, "d": None}


def test_how_long_the_oldest_has_waited() -> None:
    """It is counted from the arrival of the oldest that still waits; in an empty queue nobody waits."""
    bench = Bench(spec("a"))
    assert bench.scheduler.waited_s(5) == 0
    bench.post(ask(1, "a"), at=10)
    bench.post(ask(2, "a"), at=12)
    assert bench.scheduler.waited_s(15) == 5
    bench.post(BecameReady("a"), at=15)
    assert bench.scheduler.waited_s(15) == 3


def test_a_sleeping_model_keeps_its_residual() -> None:
    """What it leaves on each device is that of its level, and nothing while it is awake."""
    light = SleepCost(level=1, residual_mb=50, host_mb=400, wake_s=1)
    bench = Bench(spec("a", 400, sleep=(light,), idle_unload_s=10, load_s=20), gpus_mb=(1000,), sleep_mb=1000)
    bench.post(ask(1, "a"), BecameReady("a"), Released("a"))
    assert bench.scheduler.residual_mb("a") == 0
    assert bench.post(Tick(), at=10) == ["sleep a 1"]
    assert bench.scheduler.residual_mb("a") == 50


def test_an_adopted_engine_without_a_placement_takes_no_memory() -> None:
    """It serves at once, and the books stay as they were."""
    bench = Bench(spec("a"))
    assert bench.post(Adopted("a", ()), ask(1, "a")) == ["grant 1 a"]
    assert bench.scheduler.ledger.used_mb == 0


def test_a_drain_is_due_at_its_limit() -> None:
    """An unload of a model that answers is looked at again when ``drain_limit_s`` is over."""
    bench = Bench(spec("a"), drain_limit_s=30)
    bench.post(ask(1, "a"), BecameReady("a"))
    assert bench.post(UnloadRequested("a"), at=100) == []
    assert bench.scheduler.wake_at() == 130


def test_an_idle_end_is_known_while_a_model_serves_one_after_the_other() -> None:
    """What is told of the moment may be too early, never too late, and a look at it puts it right."""
    bench = Bench(spec("a", idle_unload_s=10))
    bench.post(ask(1, "a"), BecameReady("a"), Released("a"), ask(2, "a"))
    assert bench.scheduler.wake_at() is None
    bench.post(Released("a"), at=4)
    assert bench.scheduler.wake_at() == 14
    assert bench.post(ask(3, "a"), at=5) == ["grant 3 a"]
    bench.post(Released("a"), at=6)
    assert bench.scheduler.wake_at() == 14
    assert bench.post(Tick(), at=14) == []
    assert bench.scheduler.wake_at() == 16
    assert bench.post(Tick(), at=16) == ["stop a"]


def test_a_choice_for_want_of_a_better_one_is_not_kept() -> None:
    """Once the better model may start again it is started, though the other has a place free."""
    rules = Rules(limit_mb=1000, policy="priority")
    bench = Bench(spec("a", 100, role_priority={"r": 50}), spec("b", 100, role_priority={"r": 90}), rules=rules)
    bench.post(ask(1, "a"), BecameReady("a"), Released("a"))
    bench.post(ask(2, "b"), Exited("b", "broken"), Freed("b"), at=1)
    assert bench.post(ask(3, "a", "b", role="r"), Released("a"), at=1.5) == ["grant 3 a"]
    assert "start b" in bench.post(ask(4, "a", "b", role="r"), at=10)


def test_a_start_that_was_timed_counts_half() -> None:
    """The expected time moves half-way to what the last start took."""
    bench = Bench(spec("a", load_s=20))
    bench.post(ask(1, "a"), BecameReady("a", 10.0), Released("a"), UnloadRequested("a"), Exited("a"), Freed("a"))
    assert bench.scheduler.load_s("a") == 15


def test_a_reason_names_only_models_that_are_better() -> None:
    """A worse model that cannot start now is no news."""
    bench = Bench(spec("a", role_priority={"chat": 90}), spec("b", role_priority={"chat": 80}), budget_mb=2000)
    bench.post(ask(1, "b"), Exited("b", error="it crashed"))
    assert bench.post(ask(2, "a", "b", role="chat"), BecameReady("a")) == ["start a", "grant 2 a"]
    grant = bench.effects[-1]
    assert isinstance(grant, Grant)
    assert "cannot start now" not in grant.selection.reason


def test_all_who_ask_the_same_go_over_to_the_same_model() -> None:
    """When their model goes, waiters with one demand wait for one other model, in their order."""
    bench = Bench(spec("a"), spec("b"))
    bench.post(*(ask(waiter, "a", "b") for waiter in (1, 2, 3)))
    assert bench.scheduler.waits_for(3) == ("a", 2)
    bench.post(configured(spec("a", unavailable="gone"), spec("b")))
    assert [bench.scheduler.waits_for(waiter) for waiter in (1, 2, 3)] == [("b", 0), ("b", 1), ("b", 2)]


def test_a_set_beside_a_large_integer_is_written() -> None:
    """Sets are sorted by the slow writer as by the fast one."""
    for waiter in (1, 2**70):
        event = Arrived(waiter, Demand(needs=frozenset({"vision", "tools"})), ("a",))
        line = json.loads(encode(event, 1.0, ()))
        assert line["event"]["demand"]["needs"] == ["tools", "vision"]


def test_a_role_is_chosen_by_the_rules_of_the_profile_that_was_asked_for() -> None:
    """Quantizations go by the demand's profile, the most that a model may hold by the machine as well."""
    rules = Rules(limit_mb=500, preferred_quantizations=("q4",))
    other = Rules(limit_mb=9000, preferred_quantizations=("bf16", "q4"))
    fields: Any = {"role_priority": {"chat": 50}}
    small, large = spec("small", 400, quantization="q4", **fields), spec("large", 450, quantization="bf16", **fields)
    huge = spec("huge", 600, quantization="bf16", **fields)
    bench = Bench(small, large, huge, budget_mb=1000, rules=rules, profiles={"other": other})
    names = ("small", "large", "huge")
    bench.post(Arrived(1, Demand("chat"), names), Arrived(2, Demand("chat", profile="other"), names))
    assert [bench.scheduler.waits_for(waiter) for waiter in (1, 2)] == [("small", 0), ("large", 0)]
