"""The policies that rolecall is compared with do what they are said to do."""

from __future__ import annotations

import pytest

from rolecall.errors import ConfigurationError
from rolecall.simulation.comparison import compare
from rolecall.simulation.measures import Measures, percentile
from rolecall.simulation.policies import POLICIES, fitting_count, make_policy
from rolecall.simulation.workload import Chain, Machine, Model, Step, Workload
from rolecall.simulation.world import World

MODELS = tuple(Model(name, 60, 10, max_parallel=2) for name in "abc")


def work(*wanted: tuple[float, str], gpus_mb: tuple[int, ...] = (100,), models: tuple[Model, ...] = MODELS) -> Workload:
    return Workload(models, Machine(gpus_mb), tuple(Chain(at, (Step(name, 1),)) for at, name in wanted))


def run(workload: Workload, policy: str, models_max: int | None = None) -> Measures:
    return World(workload, make_policy(policy, workload, models_max)).run()


def test_fifo_swap_serves_strictly_in_order() -> None:
    """A b a b costs four loads; whoever is behind waits, even if its model is loaded."""
    measures = run(work((0, "a"), (1, "b"), (2, "a"), (3, "b")), "fifo-swap")
    assert (measures.loads, measures.swaps) == (4, 3)
    assert measures.wait.max_s == 4 * 10 + 3 - 3
    assert measures.longest_overtaken_s == 0


def test_fifo_swap_serves_the_head_beside_those_in_flight() -> None:
    """Two requests for the loaded model at the head are served at once, a third waits for a place."""
    measures = run(work((0, "a"), (0, "a"), (0, "a")), "fifo-swap")
    assert (measures.total_s, measures.loads) == (12, 1)


def test_lru_count_serves_the_loaded_model_first() -> None:
    """A b a b costs two loads: requests for the loaded model do not wait behind others."""
    assert run(work((0, "a"), (1, "b"), (2, "a"), (3, "b")), "lru-count").loads == 2


def test_lru_count_stops_the_least_recently_used() -> None:
    """With two at most, c takes the place of a, which was used before b."""
    wanted = ((0, "a"), (20, "b"), (40, "c"), (60, "b"), (80, "a"))
    measures = run(work(*wanted, gpus_mb=(1000,)), "lru-count", 2)
    assert (measures.loads, measures.swaps) == (4, 2)


def test_lru_count_waits_while_all_are_busy() -> None:
    """A busy model is not stopped for another one, however long that waits."""
    chains = (Chain(0, (Step("a", 5),) * 20), Chain(12.5, (Step("a", 5),) * 20), Chain(11, (Step("b", 1),)))
    measures = run(Workload(MODELS, Machine((100,)), chains), "lru-count")
    assert measures.longest_overtaken_s > 80


@pytest.mark.parametrize("policy", ["fifo-swap", "lru-count"])
def test_the_others_unload_after_the_same_idle_time(policy: str) -> None:
    """An idle model is unloaded for them as it is for rolecall."""
    idle = (Model("a", 60, 10, idle_unload_s=20),)
    assert run(work((0, "a"), (100, "a"), models=idle), policy).loads == 2


@pytest.mark.parametrize("policy", ["fifo-swap", "lru-count"])
def test_the_others_never_stop_a_pinned_model(policy: str) -> None:
    """A pinned model stays, the model beside it goes."""
    models = (Model("a", 40, 10, pinned=True), *MODELS[1:])
    assert run(work((0, "a"), (20, "b"), (40, "c"), (60, "a"), models=models), policy).loads == 3


def test_priority_swaps_where_adaptive_does_not() -> None:
    """Under the policy priority each role gets its best model, whatever the tolerance."""
    models = (
        Model("a", 60, 10, roles=(("caption", 90), ("keywords", 80))),
        Model("b", 60, 10, roles=(("keywords", 90),)),
    )
    chain = Chain(0, (Step("role:caption", 1), Step("role:keywords", 1)) * 5)
    workload = Workload(models, Machine((100,)), (chain,), tolerance=15)
    assert {name: run(workload, name).loads for name in POLICIES} == {
        "rolecall": 1,
        "priority": 10,
        "fifo-swap": 10,
        "lru-count": 10,
    }


@pytest.mark.parametrize(
    ("sizes", "gpus_mb", "count"),
    [((60, 60, 60), (100,), 1), ((60, 40, 10), (100,), 2), ((60, 60, 60), (100, 100), 2), ((500,), (100,), 1)],
)
def test_the_count_that_always_fits(sizes: tuple[int, ...], gpus_mb: tuple[int, ...], count: int) -> None:
    """N of lru-count is what fits whichever models are asked for."""
    models = tuple(Model(f"m{number}", mb, 1) for number, mb in enumerate(sizes))
    assert fitting_count(work((0, "m0"), gpus_mb=gpus_mb, models=models)) == count


def test_an_unknown_policy_is_an_error() -> None:
    """A misspelt policy is answered with the names that there are."""
    with pytest.raises(ConfigurationError, match="'fifo' is none; allowed are rolecall, priority, "):
        compare(work((0, "a")), ["fifo"])


@pytest.mark.parametrize(
    ("values", "p50", "p95", "most"), [([], 0, 0, 0), ([3], 3, 3, 3), (range(1, 101), 50, 95, 100)]
)
def test_percentiles(values: list[float], p50: float, p95: float, most: float) -> None:
    """A percentile is a value that occurred."""
    assert [percentile(values, percent) for percent in (50, 95, 100)] == [p50, p95, most]
