"""The simulated world: time, memory, clients that come back, and a policy that is caught when it cheats."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.core.events import (
    Arrived,
    BecameReady,
    Configured,
    Effect,
    Event,
    Grant,
    SleepCost,
    Start,
    Stop,
    Tick,
    Wake,
)
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Selection
from rolecall.core.vram import Share
from rolecall.simulation.measures import Measures
from rolecall.simulation.policies import make_policy
from rolecall.simulation.workload import Chain, Machine, Model, Step, Workload
from rolecall.simulation.world import Policy, SimulationError, World


def workload(
    *chains: Chain, models: tuple[Model, ...] = (), gpus_mb: tuple[int, ...] = (100,), **more: Any
) -> Workload:
    return Workload(models or (Model("a", 60, 10), Model("b", 60, 10)), Machine(gpus_mb), chains, **more)


def one(wanted: str, start_s: float = 0, answer_s: float = 1) -> Chain:
    return Chain(start_s, (Step(wanted, answer_s),))


def run(work: Workload, policy: str | Policy = "rolecall") -> Measures:
    return World(work, make_policy(policy, work) if isinstance(policy, str) else policy).run()


def test_a_client_sends_its_next_request_after_its_answer() -> None:
    """Load 10 s, three answers of 2 s, two pauses of 5 s: the last answer ends at 26 s."""
    measures = run(workload(Chain(0, (Step("a", 2, 5),) * 3)))
    assert (measures.served, measures.errors, measures.loads) == (3, 0, 1)
    assert measures.total_s == 26
    assert (measures.wait.p50_s, measures.wait.max_s) == (0, 10)
    assert measures.wait.mean_s == pytest.approx(10 / 3)


def test_idle_memory_is_counted_while_a_model_answers_nothing() -> None:
    """60 of 100 MB are idle in the two pauses of 5 s, 26 s in all; a load is not idle."""
    measures = run(workload(Chain(0, (Step("a", 2, 5),) * 3)))
    assert measures.idle_vram_share == pytest.approx(60 * 10 / (100 * 26))


def test_a_swap_is_an_engine_sent_away_while_somebody_waits() -> None:
    """The second model takes the first one's place: two loads, one swap; nobody is overtaken by who came first."""
    measures = run(workload(one("a"), one("b", 20)))
    assert (measures.loads, measures.swaps, measures.vain_loads) == (2, 1, 0)
    assert measures.longest_overtaken_s == 0


def test_overtaking_by_a_model_in_the_way_is_measured() -> None:
    """Whoever waits for b sees requests for a, which came later, served for as long as the bound allows."""
    measures = run(workload(Chain(0, (Step("a", 1),) * 60), one("b", 12.5), max_overtake_s=20))
    assert measures.longest_overtaken_s == pytest.approx(19)  # from 13 s to 32 s
    assert measures.wait.max_s == pytest.approx(20 + 0.5 + 10, abs=1e-3)


def test_a_model_that_fits_beside_overtakes_nobody() -> None:
    """Requests for a small model beside the one that is waited for are no overtaking."""
    models = (Model("a", 60, 10), Model("b", 60, 10), Model("tiny", 5, 1))
    chains = (one("a", 0, 30), one("b", 12), Chain(5, (Step("tiny", 1),) * 40))
    assert run(workload(*chains, models=models)).longest_overtaken_s == 0


def test_an_unanswerable_request_is_an_error_and_its_client_goes_on() -> None:
    """A model that never fits rejects its request; the next one of the same client is served."""
    measures = run(workload(Chain(0, (Step("a", 1), Step("b", 1))), models=(Model("a", 500, 1), Model("b", 5, 1))))
    assert (measures.served, measures.errors) == (1, 1)


def test_a_sleeping_model_wakes_instead_of_loading() -> None:
    """With room in host RAM the models sleep and wake: two loads, further changes are wakes of 1 s."""
    sleep = (SleepCost(1, 5, 100, 1.0),)
    models = tuple(Model(name, 60, 10, sleep=sleep) for name in "ab")
    work = Workload(models, Machine((100,), sleep_mb=1000), (Chain(0, (Step("a", 1, 5), Step("b", 1, 5)) * 3),))
    measures = run(work)
    assert (measures.loads, measures.wakes, measures.sleeps) == (2, 4, 5)
    assert measures.wait.p50_s < 10


def test_an_idle_model_is_unloaded_when_its_time_is_over() -> None:
    """A pause beyond idle_unload_s costs a second load, and no swap."""
    measures = run(workload(Chain(0, (Step("a", 1, 50),) * 2), models=(Model("a", 60, 10, idle_unload_s=20),)))
    assert (measures.loads, measures.swaps) == (2, 0)


def test_two_gpus_load_side_by_side() -> None:
    """Each model has a GPU of its own, so both requests wait for one load only."""
    assert run(workload(one("a"), one("b"), gpus_mb=(100, 100))).wait.max_s == 10


@pytest.mark.parametrize("policy", ["rolecall", "fifo-swap", "lru-count"])
def test_a_model_over_two_gpus_takes_room_on_both(policy: str) -> None:
    """A model that is spread displaces a model on either GPU."""
    models = (Model("wide", 120, 10, spread=(2,)), Model("a", 60, 10), Model("b", 60, 10))
    measures = run(workload(one("a"), one("b", 20), one("wide", 40), models=models, gpus_mb=(100, 100)), policy)
    assert (measures.served, measures.loads, measures.swaps) == (3, 3, 2)


class Scripted:
    """A policy that answers each kind of event with what it was told to."""

    def __init__(self, **answers: list[Effect]) -> None:
        self.answers = answers

    def handle(self, event: Event, now: float) -> list[Effect]:
        del now
        return self.answers.get(type(event).__name__, [])

    def wake_at(self) -> float | None:
        return None


GRANT = Grant(1, "a", Selection(Arrived(1, *workload().demand("a")).demand, (), (), ""))


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({}, "1 requests wait at 0.0 s, and nothing is to happen"),
        ({"Arrived": [Start("a", (Share("gpu0", 101, 100),))]}, "more than its memory was given out on gpu0"),
        ({"Arrived": [Start("a", ()), Start("a", ())]}, "a was started twice"),
        ({"Arrived": [Start("a", ()), GRANT]}, "a request was given to a, which is not ready"),
        ({"Arrived": [Start("a", ())], "BecameReady": [GRANT, Stop("a")]}, "a was stopped while it answered"),
        ({"Arrived": [Start("a", ()), Stop("a"), Stop("a")]}, "a was stopped twice"),
        ({"Arrived": [Start("a", ()), Wake("a")]}, "a was woken awake"),
        (
            {"Arrived": [Start(name, (Share("gpu0", 1, 100),)) for name in "ab"]},
            "two models were loaded at a time on one GPU",
        ),
    ],
)
def test_a_policy_that_does_the_impossible_is_caught(answers: dict[str, list[Effect]], why: str) -> None:
    """No figure can come from a policy that cheats: the simulation ends with what it did."""
    with pytest.raises(SimulationError, match=why):
        World(workload(one("a")), Scripted(**answers)).run()


def test_too_many_requests_at_once_are_caught() -> None:
    """A policy that does not heed max_parallel is caught."""
    grants: list[Effect] = [Grant(number, "a", GRANT.selection) for number in (1, 2)]
    policy = Scripted(Arrived=[], Configured=[Start("a", ())], BecameReady=grants)
    with pytest.raises(SimulationError, match="too many requests"):
        World(workload(one("a"), one("a")), policy).run()


class Restless(Scripted):
    """A policy whose timer is always due."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks = 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.ticks += isinstance(event, Tick)
        return super().handle(event, now)

    def wake_at(self) -> float | None:
        return 0.0


def test_a_timer_that_is_always_due_ends_in_an_error() -> None:
    """A policy that only ever waits for its timer is given a week, in steps of a second, and then called stuck."""
    policy = Restless()
    with pytest.raises(SimulationError, match="1 requests wait since"):
        World(workload(one("a")), policy).run()
    assert policy.ticks == pytest.approx(7 * 24 * 3600, abs=2)


def test_the_production_scheduler_is_what_is_simulated() -> None:
    """The policy rolecall is core's scheduler itself, no copy."""
    assert type(make_policy("rolecall", workload())) is Scheduler
    assert isinstance(workload().configured(), Configured)
    assert BecameReady("a", 1.0).load_s == 1.0
