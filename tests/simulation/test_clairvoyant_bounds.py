"""The lower bounds: right where the answer is known, and never above what a schedule achieves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.simulation import bounds
from rolecall.simulation.policies import POLICIES, make_policy
from rolecall.simulation.workload import Chain, Machine, Model, Step, Workload
from rolecall.simulation.world import World

RIVALS = (Model("a", 60, 12, max_parallel=4), Model("b", 60, 12, max_parallel=4))


def chain(wanted: str, times: int = 1, *, start_s: float = 0, answer_s: float = 1, think_s: float = 0) -> Chain:
    return Chain(start_s, tuple(Step(name, answer_s, think_s) for name in wanted.split()) * times)


def work(
    *chains: Chain, models: tuple[Model, ...] = RIVALS, gpus_mb: tuple[int, ...] = (100,), tolerance: float = 0
) -> Workload:
    return Workload(models, Machine(gpus_mb), chains, tolerance=tolerance)


SMALL = (Model("a", 60, 12), Model("b", 60, 5), Model("c", 30, 3), Model("d", 30, 3))


@pytest.mark.parametrize(
    ("chains", "models", "loads"),
    [
        ([chain("a", 25)] * 4 + [chain("b", 25)] * 4, RIVALS, 2),
        ([chain("a b", 12)], RIVALS, 24),
        ([chain("a b", 12), chain("b a", 12)], RIVALS, 25),
        ([chain("a b a"), chain("b")], RIVALS, 3),
        ([chain("a c d", 5)], SMALL, 9),
        ([chain("c d", 20)], SMALL, 2),
        ([chain("a b c d")], SMALL, 4),
    ],
)
def test_the_fewest_loads(chains: list[Chain], models: tuple[Model, ...], loads: int) -> None:
    """Known cases: one load each; alternating, in step and out of step; three of which two fit; all that fit."""
    bound = bounds.unlimited(work(*chains, models=models))
    assert (bound.loads, bound.is_exact) == (loads, True)


def test_within_the_tolerance_one_model_may_serve_all() -> None:
    """A role may be answered by any model within the tolerance of its best one."""
    models = (
        Model("a", 60, 10, roles=(("caption", 90), ("keywords", 80))),
        Model("b", 60, 10, roles=(("keywords", 90),)),
    )
    workload = work(chain("role:caption role:keywords", 10), models=models)
    assert bounds.unlimited(workload).loads == 20
    assert bounds.unlimited(replace(workload, tolerance=10)).loads == 1


def test_the_total_time_of_rivals() -> None:
    """Loads and answers of models that do not fit together cannot overlap: 2 × 12 s, and 200 answers, 4 at a time."""
    assert bounds.unlimited(work(*[chain("a", 25)] * 4, *[chain("b", 25)] * 4)).total_s == 74


def test_the_total_time_of_one_client() -> None:
    """One client's answers and pauses follow each other, after the first load or its coming."""
    workload = work(chain("a", 3, answer_s=2, think_s=5), models=RIVALS[:1])
    assert bounds.unlimited(workload).total_s == 12 + 3 * 2 + 2 * 5
    assert bounds.unlimited(work(chain("a", start_s=100))).total_s == 101


def test_a_search_that_is_too_large_is_a_bound_only() -> None:
    """With too many models, or states, what single clients and names give is still a bound, and said to be no more."""
    many = tuple(Model(f"m{number}", 60, 1) for number in range(20))
    bound = bounds.unlimited(work(*(chain(model.name) for model in many), models=many))
    assert (bound.loads, bound.is_exact) == (20, False)
    twelve = many[:12]
    chains = [chain(" ".join(m.name for m in (*twelve[n:], *twelve[:n])), 9) for n in range(8)]
    bound = bounds.unlimited(work(*chains, models=twelve))
    assert (bound.loads, bound.is_exact) == (108, False)


def test_waking_counts_as_a_load_of_its_own_length() -> None:
    """A model that can sleep may be back as quickly as it wakes, after its first load."""
    from rolecall.core.events import SleepCost

    models = tuple(replace(model, sleep=(SleepCost(1, 1, 1, 2.0),)) for model in RIVALS)
    bound = bounds.unlimited(work(chain("a b", 10), models=models))
    assert (bound.loads, bound.total_s) == (20, 20 * 2 + 20)


# -- with a limit on waits


def test_turns_of_the_two_model_case() -> None:
    """33 s allow turns of 9 s: 25 rounds of 1 s need three turns each, six loads and 50 s of answers, 122 s."""
    bound = bounds.limited(work(*[chain("a", 25)] * 4, *[chain("b", 25)] * 4))
    assert bound is not None
    assert (bound.loads, bound.total_s, bound.wait_limit_s) == (6, 122, 33)


def test_the_last_turn_is_not_limited() -> None:
    """Whoever is alone at the end is served in one turn: nine rounds of a, then all of b."""
    bound = bounds.limited(work(*[chain("a", 9)] * 4, *[chain("b", 25)] * 4))
    assert bound is not None
    assert bound.loads == 2


@pytest.mark.parametrize(
    "workload",
    [
        work(chain("a b", 5)),
        work(chain("a"), models=RIVALS[:1]),
        work(chain("a"), chain("b"), gpus_mb=(1000,)),
        work(chain("a"), chain("b", answer_s=2), chain("b")),
        work(chain("a", think_s=1), chain("b")),
        work(chain("a"), chain("b", start_s=13)),
        replace(work(chain("a", 2), chain("b", 2)), max_overtake_s=0),
    ],
)
def test_the_limited_bound_is_not_known_elsewhere(workload: Workload) -> None:
    """Outside the case that it is proved for, or if nothing can keep the limit, there is none."""
    assert bounds.limited(workload) is None


# -- no policy beats a bound

models = st.lists(
    st.builds(
        Model,
        name=st.sampled_from("abcd"),
        vram_mb=st.sampled_from([30, 60, 90]),
        load_s=st.sampled_from([0, 3, 10]),
        max_parallel=st.integers(1, 3),
        roles=st.sampled_from([(), (("r", 90),), (("r", 80),)]),
        idle_unload_s=st.sampled_from([0, 20]),
    ),
    min_size=2,
    max_size=4,
    unique_by=lambda model: model.name,
)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    known = tuple(draw(models))
    wanted = [model.name for model in known] + ["role:r"] * any(model.roles for model in known)
    steps = st.builds(Step, st.sampled_from(wanted), st.sampled_from([0, 1, 4]), st.sampled_from([0, 2, 30]))
    chains = st.builds(Chain, st.sampled_from([0, 1, 50]), st.lists(steps, min_size=1, max_size=6).map(tuple))
    return Workload(
        known,
        Machine(draw(st.sampled_from([(100,), (100, 100)]))),
        tuple(draw(st.lists(chains, min_size=1, max_size=4))),
        tolerance=draw(st.sampled_from([0, 10])),
    )


@given(workload=workloads(), policy=st.sampled_from(POLICIES))
def test_no_policy_beats_the_bound(workload: Workload, policy: str) -> None:
    """Whatever the workload, a policy serves it all, with no fewer loads and in no less time than the bound."""
    measures = World(workload, make_policy(policy, workload)).run()
    bound = bounds.unlimited(workload)
    assert measures.served == workload.requests
    assert measures.loads >= bound.loads
    assert measures.total_s >= bound.total_s - 1e-6


sides = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 12)), min_size=1, max_size=6)


@given(sides=sides, answer_s=st.sampled_from([1, 3]), think_s=st.sampled_from([0, 2]), parallel=st.integers(1, 4))
def test_no_policy_that_keeps_the_limit_beats_the_limited_bound(
    sides: list[tuple[str, int]], answer_s: float, think_s: float, parallel: int
) -> None:
    """A policy whose longest wait is within the limit needs at least the loads and the time of the limited bound."""
    chains = [chain(name, times, answer_s=answer_s, think_s=think_s) for name, times in (*sides, ("a", 1), ("b", 1))]
    workload = work(*chains, models=tuple(replace(model, max_parallel=parallel) for model in RIVALS))
    bound = bounds.limited(workload)
    for policy in POLICIES:
        measures = World(workload, make_policy(policy, workload)).run()
        if bound is not None and bound.wait_limit_s is not None and measures.wait.max_s <= bound.wait_limit_s:
            assert measures.loads >= bound.loads
            assert measures.total_s >= bound.total_s - 1e-6
