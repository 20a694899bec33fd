"""What the simulations of docs/scheduling.md found out about the scheduler, as small as it gets."""

from __future__ import annotations

from builders import Bench, ask, configured, spec
from rolecall.core.events import BecameReady, Exited, Freed, Released


def test_no_load_is_in_vain_because_an_older_waiter_becomes_overdue_meanwhile() -> None:
    """Two who wait for c are more per second of load; but b's waiter is older, and overdue before c were ready."""
    bench = Bench(*(spec(name, load_s=10) for name in "abc"))
    bench.post(ask(1, "a"), BecameReady("a"), at=0)
    bench.post(ask(2, "b"), at=1)
    bench.post(ask(3, "c"), ask(4, "c"), at=2)
    assert bench.post(Released("a"), Exited("a"), Freed("a"), at=18) == ["stop a", "start b"]


def test_while_nobody_is_nearly_overdue_most_waiting_comes_first() -> None:
    """The same a few seconds earlier: c is ready before b's waiter is overdue, and goes first."""
    bench = Bench(*(spec(name, load_s=10) for name in "abc"))
    bench.post(ask(1, "a"), BecameReady("a"), at=0)
    bench.post(ask(2, "b"), at=1)
    bench.post(ask(3, "c"), ask(4, "c"), at=2)
    assert bench.post(Released("a"), Exited("a"), Freed("a"), at=9) == ["stop a", "start c"]


def test_a_younger_waiter_that_is_soon_overdue_changes_nothing() -> None:
    """Only older waiters would take the place away from those of c before they are served."""
    bench = Bench(*(spec(name, load_s=10) for name in "abc"))
    bench.post(ask(1, "a"), BecameReady("a"), at=0)
    bench.post(ask(3, "c"), ask(4, "c"), at=1)
    bench.post(ask(2, "b"), at=2)
    assert bench.post(Released("a"), Exited("a"), Freed("a"), at=18) == ["stop a", "start c"]


def test_what_is_out_of_reach_on_one_gpu_goes_to_the_other() -> None:
    """A busy model keeps one GPU; the idle one on the other makes room."""
    bench = Bench(spec("busy", 900), spec("idle", 500), spec("next", 600), gpus_mb=(1000, 1000))
    bench.post(ask(1, "busy"), ask(2, "idle"), BecameReady("busy"), BecameReady("idle"), Released("idle"), at=0)
    assert bench.post(ask(3, "next"), at=1) == ["stop idle"]
    assert bench.post(Exited("idle"), Freed("idle"), at=2) == ["start next g1"]


def test_memory_on_a_gpu_that_is_gone_is_no_obstacle() -> None:
    """A model that runs on a GPU which the configuration no longer has keeps nobody from another GPU."""
    specs = (spec("old", 500, max_parallel=1), spec("new", 500))
    bench = Bench(*specs, gpus_mb=(1000, 500), max_models=2)
    bench.post(ask(1, "old"), BecameReady("old"), at=0)
    assert bench.post(configured(*specs, gpus_mb=(1000,)), at=1) == []
    assert bench.post(ask(2, "new"), at=2) == ["start new g0"]
