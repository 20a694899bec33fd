"""Deadlocks and thrashing that users of other servers met, each a test by its number there; they must not be ours."""

from __future__ import annotations

from builders import Bench, ask, spec
from rolecall.core.events import (
    BecameReady,
    Exited,
    Freed,
    Measured,
    Released,
    SleepCost,
    Tick,
    UnloadRequested,
)
from rolecall.core.lifecycle import State
from rolecall.core.vram import HOST


def test_llama_cpp_21678_a_swap_kills_an_answer() -> None:
    """The engine of an answer that is being written is not stopped for another model, however long the other waits."""
    bench = Bench(spec("a"), spec("b"))
    bench.post(ask(1, "a"), BecameReady("a"), ask(2, "b"))
    for moment in range(1, 100_000, 1000):
        assert bench.post(Tick(), at=moment) == []
    assert bench.post(Released("a")) == ["stop a"]


def test_llama_swap_612_a_ready_model_overtakes_a_waiter_for_ever() -> None:
    """A stream of requests for the loaded model keeps a waiter out for ``max_overtake_s`` and no longer."""
    bench = Bench(spec("a", max_parallel=2), spec("b"), max_overtake_s=20)
    bench.post(ask(1, "a"), BecameReady("a"), ask(2, "b"))
    granted_at = []
    for second in range(1, 60):
        effects = bench.post(ask(100 + second, "a"), Released("a"), at=second)
        granted_at += [second for effect in effects if effect.startswith("grant")]
    assert max(granted_at) <= 20
    assert bench.scheduler.state("a") is State.STOPPING


def test_llama_cpp_28443_two_simultaneous_loads_one_waits_for_ever() -> None:
    """Two models are wanted in the same moment: one loads, then the other, and both answer."""
    bench = Bench(spec("a", 400), spec("b", 400))
    assert bench.post(ask(1, "a"), ask(2, "b")) == ["start a"]
    assert bench.post(BecameReady("a")) == ["grant 1 a", "start b"]
    assert bench.post(BecameReady("b")) == ["grant 2 b"]


def test_llama_cpp_28698_evicted_before_its_own_waiter_was_served() -> None:
    """A model that was just loaded serves who waited for it before it makes room."""
    bench = Bench(spec("a"), spec("b"), max_overtake_s=1)
    bench.post(ask(1, "a"), ask(2, "b"))
    assert bench.post(BecameReady("a"), at=60) == ["grant 1 a"]
    assert bench.post(Released("a"), at=61) == ["stop a"]


def test_llama_swap_946_a_request_during_an_idle_unload_wedges_the_slot() -> None:
    """A request that comes while its model is unloaded waits for the end of that, and starts it again."""
    bench = Bench(spec("a", idle_unload_s=10))
    bench.post(ask(1, "a"), BecameReady("a"), Released("a"))
    assert bench.post(Tick(), at=10) == ["stop a"]
    assert bench.post(ask(2, "a"), at=10.1) == []
    assert bench.post(Exited("a"), at=10.2) == []
    assert bench.post(Freed("a"), at=10.3) == ["start a"]
    assert bench.post(BecameReady("a")) == ["grant 2 a"]


def test_ollama_17408_an_eviction_target_is_resurrected() -> None:
    """A model that makes room is not brought back before the one that it makes room for is served."""
    bench = Bench(spec("a"), spec("b"), max_overtake_s=20)
    bench.post(ask(1, "a"), BecameReady("a"), ask(2, "b"))
    assert bench.post(Released("a"), at=1) == ["stop a"]
    assert bench.post(ask(3, "a"), at=2) == []
    assert bench.post(BecameReady("a"), at=2) == []  # a late word of the old engine
    bench.post(ask(4, "a"), ask(5, "a"))  # be they many
    assert bench.post(Exited("a"), Freed("a"), at=3) == ["start b"]
    assert bench.post(BecameReady("b"), at=4) == ["grant 2 b"]
    assert bench.post(Released("b"), at=5) == ["stop b"]
    assert bench.post(Exited("b"), Freed("b"), at=6) == ["start a"]
    assert bench.post(BecameReady("a"), at=7) == ["grant 3 a"]


def test_lm_studio_1751_four_requests_load_four_copies() -> None:
    """Four requests for a cold model are one start."""
    bench = Bench(spec("a", 100, max_parallel=4))
    assert bench.post(*(ask(number, "a") for number in range(4))) == ["start a"]
    assert bench.post(BecameReady("a")) == [f"grant {number} a" for number in range(4)]


def test_llama_cpp_23257_crash_and_unload_look_alike() -> None:
    """A model that crashed is FAILED with the reason, one that was unloaded is STOPPED without any."""
    bench = Bench(spec("a", 100), spec("b", 100))
    bench.post(ask(1, "a"), BecameReady("a"), Released("a"), ask(2, "b"), BecameReady("b"), Released("b"))
    bench.post(Exited("a", "killed by SIGSEGV"), UnloadRequested("b"), Exited("b", "it was stopped"))
    rows = {row.name: (row.state, row.error) for row in bench.scheduler.status(0)}
    assert rows == {"a": (State.FAILED, "killed by SIGSEGV"), "b": (State.STOPPED, None)}


def test_llama_swap_574_a_failed_start_stays_failed_for_ever() -> None:
    """After its pause a model that did not start is tried again, and works."""
    bench = Bench(spec("a"))
    bench.post(ask(1, "a"))
    assert bench.post(Exited("a", "no memory"), Freed("a")) == ["reject 1 model_start_failed"]
    assert bench.post(ask(2, "a"), at=0.5) == ["reject 2 model_start_failed"]
    assert bench.post(ask(3, "a"), at=1.1) == ["start a"]
    assert bench.post(BecameReady("a")) == ["grant 3 a"]


def test_localai_7958_a_stopped_child_still_holds_memory_when_the_next_starts() -> None:
    """The next model starts when the driver shows the memory as free, not when the process is gone."""
    bench = Bench(spec("a"), spec("b"))
    bench.post(ask(1, "a"), BecameReady("a"), Released("a"), ask(2, "b"))
    assert bench.post(Exited("a")) == []
    assert bench.post(Tick(), at=5) == []
    assert bench.post(Freed("a")) == ["start b"]


def test_vllm_14376_a_neighbour_loads_while_memory_is_profiled() -> None:
    """On one GPU nothing is loaded, and nothing woken, while a model loads."""
    sleeper = spec("s", 300, sleep=(SleepCost(1, 10, 10, 1),), idle_unload_s=5, load_s=20)
    bench = Bench(sleeper, spec("a", 300), spec("b", 300), sleep_mb=100, gpus_mb=(1000,))
    bench.post(ask(1, "s"), BecameReady("s"), Released("s"))
    assert bench.post(ask(2, "a"), ask(3, "b"), ask(4, "s"), at=1) == ["start a g0", "grant 4 s"]
    assert bench.post(BecameReady("a")) == ["grant 2 a", "start b g0"]


def test_vllm_28714_sleep_while_busy_crashes() -> None:
    """A model with an answer in flight is not put to sleep."""
    bench = Bench(spec("a", 600, sleep=(SleepCost(1, 10, 10, 1),), load_s=20), spec("b", 600), sleep_mb=100)
    bench.post(ask(1, "a"), BecameReady("a"))
    assert bench.post(ask(2, "b"), at=1) == []
    assert bench.post(Tick(), at=100) == []
    assert bench.post(Released("a")) == ["sleep a 1"]


def test_ollama_10359_an_estimate_that_is_too_high_evicts_for_nothing() -> None:
    """Twice the real size is believed once: from the first measurement on both models live side by side."""
    bench = Bench(spec("a", 1000), spec("b", 500))
    bench.post(ask(1, "a"), BecameReady("a"), Measured("a", {HOST: 500}), Released("a"))
    assert bench.post(ask(2, "b")) == ["start b"]


def test_ollama_17201_an_estimate_that_is_too_low_runs_out_of_memory() -> None:
    """Half the real size runs out of memory once: the second start has the device to itself, and no request is lost."""
    bench = Bench(spec("a", 500), spec("b", 400))
    bench.post(ask(1, "b"), BecameReady("b"), Released("b"))
    assert bench.post(ask(2, "a")) == ["start a"]
    assert bench.post(Exited("a", "CUDA error: out of memory", out_of_memory=True), Freed("a")) == ["stop b"]
    assert bench.post(Exited("b"), Freed("b")) == ["start a"]
    assert bench.post(BecameReady("a"), Measured("a", {HOST: 900})) == ["grant 2 a"]
