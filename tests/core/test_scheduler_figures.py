"""What the simulations of docs/scheduling.md found out about the scheduler, as small as it gets."""

from __future__ import annotations

from typing import Any

from builders import configured, spec, words
from rolecall.core.events import Arrived, BecameReady, Event, Exited, Freed, Released, Spec
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Demand


def scheduler(*specs: Spec, **more: Any) -> Scheduler:
    made = Scheduler(max_overtake_s=20, linger_share=0)
    made.handle(configured(*specs, **more), 0)
    return made


def post(made: Scheduler, at: float, *events: Event) -> list[str]:
    return words([effect for event in events for effect in made.handle(event, at)])


def ask(waiter: int, model: str) -> Arrived:
    return Arrived(waiter, Demand(), (model,))


def test_no_load_is_in_vain_because_an_older_waiter_becomes_overdue_meanwhile() -> None:
    """Two who wait for c are more per second of load; but b's waiter is older, and overdue before c were ready."""
    made = scheduler(*(spec(name, load_s=10) for name in "abc"))
    post(made, 0, ask(1, "a"), BecameReady("a"))
    post(made, 1, ask(2, "b"))
    post(made, 2, ask(3, "c"), ask(4, "c"))
    assert post(made, 18, Released("a"), Exited("a"), Freed("a")) == ["stop a", "start b"]


def test_while_nobody_is_nearly_overdue_most_waiting_comes_first() -> None:
    """The same a few seconds earlier: c is ready before b's waiter is overdue, and goes first."""
    made = scheduler(*(spec(name, load_s=10) for name in "abc"))
    post(made, 0, ask(1, "a"), BecameReady("a"))
    post(made, 1, ask(2, "b"))
    post(made, 2, ask(3, "c"), ask(4, "c"))
    assert post(made, 9, Released("a"), Exited("a"), Freed("a")) == ["stop a", "start c"]


def test_a_younger_waiter_that_is_soon_overdue_changes_nothing() -> None:
    """Only older waiters would take the place away from those of c before they are served."""
    made = scheduler(*(spec(name, load_s=10) for name in "abc"))
    post(made, 0, ask(1, "a"), BecameReady("a"))
    post(made, 1, ask(3, "c"), ask(4, "c"))
    post(made, 2, ask(2, "b"))
    assert post(made, 18, Released("a"), Exited("a"), Freed("a")) == ["stop a", "start c"]


def test_what_is_out_of_reach_on_one_gpu_goes_to_the_other() -> None:
    """A busy model keeps one GPU; the idle one on the other makes room."""
    made = scheduler(spec("busy", 900), spec("idle", 500), spec("next", 600), gpus_mb=(1000, 1000))
    post(made, 0, ask(1, "busy"), ask(2, "idle"), BecameReady("busy"), BecameReady("idle"), Released("idle"))
    assert post(made, 1, ask(3, "next")) == ["stop idle"]
    assert post(made, 2, Exited("idle"), Freed("idle")) == ["start next g1"]


def test_memory_on_a_gpu_that_is_gone_is_no_obstacle() -> None:
    """A model that runs on a GPU which the configuration no longer has keeps nobody from another GPU."""
    specs = (spec("old", 500, max_parallel=1), spec("new", 500))
    made = scheduler(*specs, gpus_mb=(1000, 500), max_models=2)
    post(made, 0, ask(1, "old"), BecameReady("old"))
    assert post(made, 1, configured(*specs, gpus_mb=(1000,))) == []
    assert post(made, 2, ask(2, "new")) == ["start new g0"]
