"""Starting a model smaller after it ran out of memory: the steps, and the scheduler that takes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import builders
from builders import ask, configured, spec, words
from rolecall.core.decisions import describe
from rolecall.core.events import (
    Arrived,
    BecameReady,
    Cancelled,
    Exited,
    Freed,
    Grant,
    Measured,
    Reject,
    Released,
    Spec,
    Start,
    UnloadRequested,
)
from rolecall.core.lifecycle import State
from rolecall.core.reductions import FLOOR_TOKENS, Reduction, next_context, smaller_contexts, told
from rolecall.core.selection import Demand
from rolecall.core.slot import REDUCED_S
from rolecall.errors import StartFailed

CPU = Reduction(on_cpu=True)


# -- the steps


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        (None, ()),
        (2048, ()),
        (2049, (2048,)),
        (4096, (2048,)),
        (12192, (5888, 2048)),
        (32768, (16384, 4096, 2048)),
        (131072, (65536, 16384, 2048)),
    ],
)
def test_contexts_that_are_tried(full: int | None, expected: tuple[int, ...]) -> None:
    """A half, an eighth and the floor; of an unknown context, or one that is at the floor, nothing."""
    assert smaller_contexts(full) == expected


@given(st.integers(1, 2**40))
def test_contexts_become_smaller_and_end_at_the_floor(full: int) -> None:
    """Whatever the context: each step is smaller, the last is the floor, and there are three at most."""
    contexts = smaller_contexts(full)
    assert list(contexts) == sorted(set(contexts), reverse=True)
    assert len(contexts) <= 3
    assert all(FLOOR_TOKENS <= tokens < full and tokens % 256 == 0 for tokens in contexts)
    assert bool(contexts) is (full > FLOOR_TOKENS)
    assert not contexts or contexts[-1] == FLOOR_TOKENS


@given(st.integers(1, 2**40))
def test_every_step_is_taken_once(full: int) -> None:
    """From one step to the next all contexts are tried, each once, and then there is none."""
    contexts, taken = smaller_contexts(full), []
    step = next_context(contexts, None)
    while step is not None:
        taken.append(step.context_tokens)
        step = next_context(contexts, step)
    assert taken == list(contexts)


def test_after_the_cpu_there_is_nothing_smaller() -> None:
    """A model on the CPU is not started with less context on a GPU again."""
    assert next_context((4096, 2048), CPU) is None


def test_what_is_told() -> None:
    """Who was passed over comes first, then what was made smaller; nothing where nothing was."""
    assert told(None) is None
    assert told(Reduction(4096)) == "context=4096"
    assert told(CPU, ["big", "huge"]) == "instead-of=big, instead-of=huge, cpu"


def test_what_a_decision_log_says_of_it() -> None:
    """A start that is smaller is told as its answers tell it; any other as before."""
    assert describe(Start("a", (), Reduction(4096))) == {
        "type": "Start",
        "model": "a",
        "placement": [],
        "reduction": "context=4096",
    }
    assert "reduction" not in describe(Start("a"))


# -- the scheduler


class Bench(builders.Bench):
    """One with host RAM for engines on the CPU; ``oom`` ends a model's engine for want of memory, and frees that."""

    def __init__(self, *specs: Spec, **fields: Any) -> None:
        super().__init__(*specs, **{"host_mb": 1000, **fields})

    def oom(self, name: str) -> list[str]:
        return self.post(Exited(name, "out of memory", out_of_memory=True), Freed(name))

    def grant(self) -> Grant:
        return next(effect for effect in self.effects if isinstance(effect, Grant))


def ask_role(waiter: int, *models: str) -> Arrived:
    return Arrived(waiter, Demand(role="r"), models)


def big(**fields: Any) -> Spec:
    return spec("big", 300, smaller=(4096, 2048), role_priority={"r": 90}, **fields)


def test_it_is_started_with_less_context_until_it_runs() -> None:
    """Alone, then with each smaller context; nobody is refused meanwhile, and the one that runs serves."""
    bench = Bench(big())
    assert bench.post(ask(1, "big")) == ["start big"]
    assert bench.oom("big") == ["start big"]
    assert bench.oom("big") == ["start big context=4096"]
    assert bench.scheduler.ledger.held_mb("big") == 1000
    assert bench.oom("big") == ["start big context=2048"]
    assert bench.post(Measured("big", {"host": 200}), BecameReady("big")) == ["grant 1 big"]
    assert bench.scheduler.ledger.held_mb("big") == 200


def test_what_nobody_measured_is_thought_to_need_what_was_not_enough() -> None:
    """Without a driver's figures a smaller start keeps a fifth more than the last one that was too little."""
    bench = Bench(big())
    bench.post(ask(1, "big"))
    bench.oom("big")
    bench.oom("big")
    bench.post(BecameReady("big"))
    assert bench.scheduler.ledger.held_mb("big") == 360


def test_smaller_starts_need_not_wait_for_more_memory_than_was_not_enough() -> None:
    """While others hold memory, a smaller start takes what is there; one of full size would wait for more."""
    bench = Bench(big(), gpus_mb=(1000,))
    bench.post(ask(1, "big"))
    bench.oom("big")
    bench.post(Measured("big", {"g0": 10}))
    assert bench.oom("big") == ["start big g0 context=4096"]


def test_the_next_model_of_the_role_comes_after_the_smallest_context() -> None:
    """A role's request goes to the next model once the best has failed at its smallest, and its answer says why."""
    bench = Bench(big(), spec("small", 100, role_priority={"r": 50}))
    assert bench.post(ask_role(1, "big", "small")) == ["start big"]
    for expected in ("start big", "start big context=4096", "start big context=2048", "start small"):
        assert bench.oom("big") == [expected]
    assert bench.post(BecameReady("small")) == ["grant 1 small"]
    assert bench.grant().selection.out_of_memory == ("big",)
    assert "big cannot start now" in bench.grant().selection.reason


def test_the_cpu_comes_last() -> None:
    """A named model that may run on the CPU is started there when no context is small enough, beside the GPUs."""
    bench = Bench(big(cpu_mb=600), gpus_mb=(1000,))
    bench.post(ask(1, "big"))
    for expected in ("start big g0", "start big g0 context=4096", "start big g0 context=2048", "start big cpu"):
        assert bench.oom("big") == [expected]
    assert bench.scheduler.ledger.used_mb == 0
    assert bench.post(BecameReady("big")) == ["grant 1 big"]
    assert bench.post(Released("big"), ask(2, "big")) == ["grant 2 big"]


def test_a_role_takes_its_next_model_before_the_cpu() -> None:
    """Only when the last model of the role has run out of memory as well is the best one started on the CPU."""
    bench = Bench(big(cpu_mb=600), spec("small", 100, role_priority={"r": 50}, cpu_mb=100))
    bench.post(ask_role(1, "big", "small"))
    for _ in range(4):
        bench.oom("big")
    assert bench.oom("small") == ["start small"]
    assert bench.oom("small") == ["start big cpu"]
    assert bench.post(BecameReady("big")) == ["grant 1 big"]
    assert bench.grant().selection.out_of_memory == ()


def test_without_leave_the_cpu_is_not_used() -> None:
    """Where nothing is left to be made smaller, the request is refused with the engine's reason."""
    bench = Bench(big())
    bench.post(ask(1, "big"))
    for _ in range(3):
        bench.oom("big")
    assert bench.oom("big") == ["reject 1 model_start_failed"]
    assert bench.post(ask(2, "big")) == ["reject 2 model_start_failed"]


def test_a_failure_on_the_cpu_is_the_last_one() -> None:
    """What fails on the CPU, for whatever reason, is refused with back-off and not started elsewhere."""
    bench = Bench(spec("big", 300, cpu_mb=600), gpus_mb=(1000,))
    bench.post(ask(1, "big"))
    bench.oom("big")
    assert bench.oom("big") == ["start big cpu"]
    assert bench.oom("big") == ["reject 1 model_start_failed"]
    assert bench.post(ask(2, "big")) == ["reject 2 model_start_failed"]
    bench.now += 2
    assert bench.post(ask(3, "big")) == ["start big cpu"]


def test_host_memory_that_is_too_small_is_not_used() -> None:
    """A model that does not fit into host RAM is refused rather than started where the whole machine would suffer."""
    bench = Bench(spec("big", 300, cpu_mb=1001), gpus_mb=(1000,))
    bench.post(ask(1, "big"))
    bench.oom("big")
    assert bench.oom("big") == ["reject 1 model_start_failed"]


def on_cpu(bench: Bench, waiter: int, name: str) -> None:
    """Have a model start on the CPU and serve."""
    bench.post(ask(waiter, name))
    bench.oom(name)
    assert bench.oom(name)[-1] == f"start {name} cpu"
    bench.post(BecameReady(name))


def test_an_idle_model_on_the_cpu_makes_room_in_host_memory() -> None:
    """Two that do not fit into host RAM together take turns."""
    models = [spec("a", 300, cpu_mb=600), spec("b", 300, cpu_mb=600), spec("c", 10, cpu_mb=300), spec("d", 10)]
    bench = Bench(*models, gpus_mb=(1000,))
    on_cpu(bench, 1, "a")
    bench.post(Released("a"))
    on_cpu(bench, 2, "c")
    bench.post(ask(3, "b"))
    bench.oom("b")
    assert bench.oom("b") == ["stop a"]
    assert bench.post(Released("c"), ask(4, "c")) == ["grant 4 c"]
    assert bench.post(ask(5, "d"), BecameReady("d")) == ["start d g0", "grant 5 d"]  # b waits for nobody on a GPU
    assert bench.post(Exited("a"), Freed("a")) == ["start b cpu"]


def test_a_busy_model_on_the_cpu_keeps_its_memory() -> None:
    """While it answers, another one that needs its place in host RAM is refused and may come again."""
    bench = Bench(spec("a", 300, cpu_mb=600), spec("b", 300, cpu_mb=600), gpus_mb=(1000,))
    on_cpu(bench, 1, "a")
    bench.post(Released("a"))
    bench.post(ask(2, "b"))
    bench.oom("b")
    assert bench.oom("b") == ["stop a"]
    bench.post(Exited("a"), Freed("a"), BecameReady("b"))
    assert bench.post(ask(3, "a")) == ["reject 3 unavailable"]
    error = next(effect.error for effect in bench.effects if isinstance(effect, Reject))
    assert "needs 600 MB of host RAM" in error.message
    assert bench.post(Released("b"), ask(4, "a")) == ["stop b"]
    assert bench.post(Exited("b"), Freed("b")) == ["start a cpu"]


def on_cpu_then_changed(*a: Spec) -> Bench:
    """Have a model answer on the CPU while its entry is changed, and another one need its place."""
    b = spec("b", 300, cpu_mb=600)
    bench = Bench(spec("a", 300, cpu_mb=600), b, gpus_mb=(1000,))
    on_cpu(bench, 1, "a")
    bench.post(configured(*a, b, host_mb=1000, gpus_mb=(1000,)), ask(2, "b"))
    bench.oom("b")
    return bench


def test_a_model_that_was_removed_keeps_its_host_memory_until_it_is_gone() -> None:
    """The next one waits for its end."""
    bench = on_cpu_then_changed()
    assert bench.oom("b") == []
    assert bench.post(Released("a")) == ["stop a"]
    assert bench.post(Exited("a"), Freed("a")) == ["start b cpu"]


@pytest.mark.parametrize("changed", [spec("a", 300), spec("a", 300, cpu_mb=100)])
def test_a_running_model_holds_the_host_memory_that_it_was_started_with(changed: Spec) -> None:
    """Whatever its entry says now."""
    assert on_cpu_then_changed(changed).oom("b") == ["reject 2 model_start_failed"]


@pytest.mark.parametrize("mb", [1001, 2500])
def test_a_model_that_no_gpu_could_hold_goes_to_the_cpu(mb: int) -> None:
    """It is started there at once: larger than each GPU, or than all of them; a role takes one that fits first."""
    huge = spec("big", mb, cpu_mb=600, role_priority={"r": 90})
    bench = Bench(huge, spec("small", 100, role_priority={"r": 50}), gpus_mb=(1000, 1000))
    assert bench.post(ask_role(1, "big", "small")) == ["start small g0"]
    assert bench.post(ask(2, "big")) == ["start big cpu"]
    bare = spec("big", mb, role_priority={"r": 90})
    assert Bench(bare, gpus_mb=(1000, 1000)).post(ask(1, "big"))[0].startswith("reject 1 model_")


def test_what_is_not_there_is_not_started_on_the_cpu() -> None:
    """A model that is not installed stays so."""
    bench = Bench(spec("big", 2000, cpu_mb=600, unavailable="not installed"), gpus_mb=(1000,))
    assert bench.post(ask(1, "big")) == ["reject 1 model_not_found"]


def test_it_is_tried_at_full_size_after_a_while() -> None:
    """A model that was made smaller keeps that for ten minutes, however often it is stopped, and then grows back."""
    bench = Bench(big(idle_unload_s=0))
    bench.post(ask(1, "big"))
    bench.oom("big")
    bench.oom("big")
    bench.post(BecameReady("big"), Released("big"), Exited("big", "crashed"), Freed("big"))
    assert bench.post(ask(2, "big")) == ["start big context=4096"]
    bench.post(BecameReady("big"), Released("big"))
    bench.now = REDUCED_S
    assert bench.post(ask(3, "big"), Released("big")) == ["grant 3 big"]
    bench.post(Exited("big", "crashed"), Freed("big"))
    assert bench.post(ask(4, "big")) == ["start big"]


def test_unloading_by_hand_forgets_it() -> None:
    """After an unload the next start has its full size again."""
    bench = Bench(big())
    bench.post(ask(1, "big"))
    bench.oom("big")
    bench.oom("big")
    bench.post(BecameReady("big"), Released("big"), UnloadRequested("big"), Exited("big"), Freed("big"))
    assert bench.post(ask(2, "big")) == ["start big"]


def test_out_of_memory_while_it_answers() -> None:
    """A model that loads and runs out with each first answer is made smaller as well, and does not begin anew."""
    bench = Bench(big(cpu_mb=600), gpus_mb=(1000,))
    seen = bench.post(ask(1, "big"))
    for number in range(2, 6):
        bench.post(Measured("big", {"g0": 900}), BecameReady("big"))
        bench.now += 100
        bench.oom("big")
        bench.post(Released("big"))
        seen += bench.post(ask(number, "big"))
    assert seen == ["start big g0"] * 2 + ["start big g0 context=4096", "start big g0 context=2048", "start big cpu"]


def test_a_changed_entry_begins_at_its_full_size() -> None:
    """What was learnt of a model's want of memory says nothing of an entry that was changed."""
    bench = Bench(big())
    bench.post(ask(1, "big"))
    bench.oom("big")
    bench.oom("big")
    bench.post(Cancelled(1), BecameReady("big"), configured(big(served_model_id="other"), host_mb=1000))
    bench.post(Exited("big"), Freed("big"))
    assert bench.post(ask(2, "big")) == ["start big"]


def test_the_refusal_is_the_engines_reason() -> None:
    """Who is refused at the end is told what the engine said."""
    bench = Bench(spec("big", 300))
    bench.post(ask(1, "big"))
    bench.oom("big")
    bench.oom("big")
    error = next(effect.error for effect in bench.effects if isinstance(effect, Reject))
    assert isinstance(error, StartFailed)
    assert "out of memory" in error.message


@given(
    st.lists(
        st.builds(
            lambda steps, cpu, priority: (steps, cpu, priority),
            st.sampled_from([(), (2048,), (8192, 2048), (65536, 16384, 2048)]),
            st.sampled_from([None, 100, 600, 5000]),
            st.sampled_from([50, 70, 90]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 3),
    st.sampled_from([None, "r"]),
)
def test_retries_end(kinds: list[tuple[tuple[int, ...], int | None, int]], gpus: int, role: str | None) -> None:
    """If every start runs out of memory each way is tried once at the most, the request is refused, nothing is held."""
    specs = [
        spec(f"m{at}", 300, smaller=steps, cpu_mb=cpu, role_priority={"r": priority}, spread=(1, 2, 3))
        for at, (steps, cpu, priority) in enumerate(kinds)
    ]
    bench = Bench(*specs, gpus_mb=(1000,) * gpus)
    names = tuple(each.name for each in specs)
    bench.post(Arrived(1, Demand(role=role), names if role else names[:1]))
    started: list[tuple[str, str]] = []
    while starts := [effect for effect in bench.effects if isinstance(effect, Start)]:
        assert len(starts) == 1
        (start,) = starts
        started.append((start.model, f"{len(start.placement)} {start.reduction}"))
        assert len(started) <= len(specs) * (gpus + 6)
        bench.oom(start.model)
    assert words(bench.effects) == ["reject 1 model_start_failed"]
    smaller = [each for each in started if not each[1].endswith("None")]
    assert len(smaller) == len(set(smaller))
    assert bench.scheduler.ledger.used_mb == 0
    assert bench.scheduler.ledger.loaded == 0
    assert all(bench.scheduler.state(name) in {State.STOPPED, State.FAILED} for name in names)
