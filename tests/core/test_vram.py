"""The ledger's arithmetic, the places where a model may lie, and the plan of who has to go."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.vram import HOST, Device, Holding, Ledger, Placement, Share, placements, plan_eviction


def on(mb: int, *devices: str) -> Placement:
    return tuple(Share(device, mb, 1000) for device in devices or (HOST,))


def ledger(budget_mb: int = 100, max_models: int = 10, **held: int) -> Ledger:
    """Return a ledger of one device in which the models already hold what they hold."""
    filled = Ledger((Device(HOST, budget_mb, budget_mb),), budget_mb, max_models)
    for name, mb in held.items():
        filled.correct(name, {HOST: mb})
    return filled


def two_gpus(*, budget_mb: int = 200, **held: dict[str, int]) -> Ledger:
    filled = Ledger((Device("g0", 100, 120, 0), Device("g1", 100, 120, 1)), budget_mb, 10)
    for name, by_device in held.items():
        filled.correct(name, by_device)
    return filled


def costs(**by_name: float) -> list[Holding]:
    return [Holding(name, cost) for name, cost in by_name.items()]


def names(plan: list[Holding] | None) -> list[str] | None:
    return None if plan is None else sorted(holding.name for holding in plan)


# -- the ledger


def test_reservations_add_up() -> None:
    """What is reserved is used, on its device and in all; what lingers still is; what is free again is not."""
    some = two_gpus()
    some.reserve("a", on(30, "g0", "g1"))
    some.reserve("b", on(50, "g1"))
    assert (some.used_mb, some.used_on("g1"), some.room_mb("g0"), some.held_mb("a"), some.held_mb("x")) == (
        110,
        80,
        70,
        60,
        0,
    )
    some.linger("a")
    some.linger("never held")
    assert (some.used_mb, some.lingers("a"), some.loaded) == (110, True, 1)
    some.free("a")
    some.free("a")
    assert (some.used_mb, some.lingers("a")) == (50, False)


def test_repr_tells_who_holds_what() -> None:
    """The ledger's representation is what one wants to read in a failed test."""
    assert repr(ledger(100, 2)) == "<Ledger 0/100 MB, 0/2 models: nothing>"
    assert repr(ledger(100, 3, a=30, b=50)) == "<Ledger 80/100 MB, 2/3 models: a 30, b 50>"


@pytest.mark.parametrize(
    ("mb", "without", "fits"),
    [(20, "", True), (21, "", False), (50, "a", True), (51, "a", False), (100, "abx", True)],
)
def test_lack_counts_megabytes(mb: int, without: str, *, fits: bool) -> None:
    """A model fits if its MB are free once those named are gone; one that holds nothing frees nothing."""
    lack = ledger(100, a=30, b=50).lack(on(mb), [Holding(name, 0) for name in without])
    assert bool(lack) is not fits


def test_lack_counts_models() -> None:
    """A model of no size at all still needs a place."""
    assert ledger(100, 2, a=1, b=1).lack(on(0)).places == 1
    assert not ledger(100, 2, a=1, b=1).lack(on(0), [Holding("a", 0)])


def test_no_device_is_worth_more_than_the_budget() -> None:
    """What models may take of a device is its capacity, or the budget over all of them where that is less."""
    assert two_gpus().usable_mb("g0") == 100
    assert two_gpus(budget_mb=70).usable_mb("g1") == 70


def test_the_budget_bounds_all_devices_together() -> None:
    """Each card has room, all together are at their limit."""
    some = two_gpus(budget_mb=120, a={"g0": 80})
    assert some.lack(on(50, "g1")).budget_mb == 10
    assert not some.lack(on(40, "g1"))


@pytest.mark.parametrize("name", ["a", "c", "gone"])
def test_no_reservation_without_room(name: str) -> None:
    """What does not fit, a second one for the same model, or one for a model that lingers, is refused."""
    some = ledger(100, a=30, b=50, gone=1)
    some.linger("gone")
    with pytest.raises(ValueError, match=f"no room for '{name}'"):
        some.reserve(name, on(20))
    assert some.used_mb == 81


def test_others_take_what_is_kept_free_first() -> None:
    """Foreign use up to what is kept free of a card anyway costs models nothing; beyond that it does."""
    some = two_gpus()
    some.foreign_mb = {"g0": 20}
    assert (some.open_mb("g0"), some.is_pressed) == (100, False)
    some.foreign_mb = {"g0": 50}
    assert (some.open_mb("g0"), some.open_mb("g1"), some.is_pressed) == (70, 100, True)
    assert some.lack(on(71, "g0")).by_device == {"g0": 1}


def test_measured_use_may_be_more_than_there_is() -> None:
    """What a model really holds is taken in, also where it leaves less than nothing."""
    some = ledger(100, a=30)
    some.correct("a", {HOST: 130})
    assert some.room_mb(HOST) == -30


def test_sleep_keeps_a_rest_and_no_place() -> None:
    """A sleeping model holds its residue and counts as no loaded model; waking needs all of it again."""
    some = ledger(100, 1, a=60)
    some.doze("a", 10)
    assert (some.used_mb, some.loaded) == (10, 0)
    some.reserve("b", on(50))
    with pytest.raises(ValueError, match="no room"):
        some.rouse("a", on(60))
    assert (some.held_mb("a"), some.loaded) == (10, 1)
    some.linger("b")
    some.free("b")
    some.rouse("a", on(60))
    assert (some.held_mb("a"), some.loaded) == (60, 1)


# -- placements


def test_first_number_of_cards_that_are_large_enough() -> None:
    """One card if one is enough, else as many as it takes; equal parts, rounded up."""
    some = two_gpus()
    assert [[s.device for s in p] for p in placements(some, 100, (1, 2), ())] == [["g0"], ["g1"]]
    assert placements(some, 151, (1, 2), ()) == [(Share("g0", 76, 120), Share("g1", 76, 120))]
    assert placements(some, 201, (1, 2), ()) == []
    assert placements(some, 101, (1,), ()) == []


def test_an_entry_can_restrict_its_cards() -> None:
    """Only the cards that it names are considered."""
    assert [p[0].device for p in placements(two_gpus(), 10, (1,), ("g1",))] == ["g1"]


def test_unknown_size_takes_a_card_of_its_own() -> None:
    """A model of unknown size gets all that models may hold of one card, and no more than the budget."""
    assert [p[0].mb for p in placements(two_gpus(), None, (1,), ())] == [100, 100]
    assert [p[0].mb for p in placements(two_gpus(budget_mb=70), None, (1,), ())] == [70, 70]


# -- who has to go


def test_nobody_goes_when_there_is_room() -> None:
    """A model that fits costs nobody its place."""
    assert plan_eviction(ledger(100, a=30), on(70), costs(a=1)) == []


def test_the_cheapest_goes_first() -> None:
    """Of two that would each do, the one that is less dear to bring back goes; by name if both are."""
    assert names(plan_eviction(ledger(100, a=50, b=50), on(50), costs(a=2, b=1))) == ["b"]
    assert names(plan_eviction(ledger(100, a=50, b=50), on(50), costs(b=1, a=1))) == ["a"]


def test_cost_counts_per_megabyte() -> None:
    """One that is dearer in all but frees more for it goes before two cheap ones that free little."""
    some = ledger(100, a=20, b=20, large=60)
    assert names(plan_eviction(some, on(40), costs(a=5, b=5, large=6))) == ["large"]


def test_nobody_goes_in_vain() -> None:
    """A cheap small model stays if the larger one that goes after it makes room for both."""
    assert names(plan_eviction(ledger(100, old=10, large=90), on(80), costs(old=0.1, large=5))) == ["large"]


def test_a_single_one_that_is_cheaper_than_the_cheapest_per_megabyte() -> None:
    """What is cheap per MB may still cost more than one model that is just large enough."""
    some = ledger(100, huge=80, fit=20)
    assert names(plan_eviction(some, on(20), costs(huge=8, fit=3))) == ["fit"]


def test_who_is_leaving_counts_as_gone() -> None:
    """Memory that is about to be free is not freed a second time."""
    assert plan_eviction(ledger(100, a=50, b=50), on(50), costs(b=1), [Holding("a", 0)]) == []


def test_what_lingers_can_leave() -> None:
    """Memory of a process that is gone frees no place, since it holds none."""
    some = ledger(100, 1, a=50, b=50)
    some.linger("a")
    assert names(plan_eviction(some, on(50), costs(b=1), [Holding("a", 0)])) == ["b"]


def test_only_who_frees_what_is_missing_goes() -> None:
    """A model on another card stays, however cheap it is."""
    some = two_gpus(a={"g0": 90}, b={"g1": 90})
    assert names(plan_eviction(some, on(50, "g0"), costs(a=9, b=1))) == ["a"]


def test_going_to_sleep_frees_less() -> None:
    """A model that only sleeps keeps its residue: if that is in the way there is no such plan."""
    some = ledger(100, a=80)
    assert plan_eviction(some, on(95), [Holding("a", 1, keeps_mb=10)]) is None
    assert names(plan_eviction(some, on(90), [Holding("a", 1, keeps_mb=10)])) == ["a"]


def test_no_plan_if_all_would_not_do() -> None:
    """There is no plan when the model would not fit even with all candidates gone."""
    assert plan_eviction(ledger(100, a=50, pinned=50), on(60), costs(a=1)) is None


def test_a_lowered_budget_evicts_more() -> None:
    """After the budget was lowered under running models the debt is paid first."""
    assert ledger(50, a=60, b=30).room_mb(HOST) == -40
    assert names(plan_eviction(ledger(50, a=60, b=30), on(20), costs(b=1, a=2))) == ["a"]
    assert names(plan_eviction(ledger(50, a=60, b=30), on(21), costs(b=1, a=2))) == ["a", "b"]


sizes = st.dictionaries(st.sampled_from(["g0", "g1"]), st.integers(0, 60), min_size=1)


@given(
    held=st.lists(sizes, max_size=5),
    candidates=st.sets(st.integers(0, 4)),
    prices=st.lists(st.integers(0, 9), min_size=5, max_size=5),
    budget_mb=st.integers(0, 240),
    max_models=st.integers(0, 6),
    foreign_mb=st.integers(0, 60),
    placement=st.builds(on, st.integers(0, 100), st.just("g0")) | st.builds(on, st.integers(0, 60), st.just("g1")),
)
def test_plan_is_right_and_minimal(  # noqa: PLR0917
    held: list[dict[str, int]],
    candidates: set[int],
    prices: list[int],
    budget_mb: int,
    max_models: int,
    foreign_mb: int,
    placement: Placement,
) -> None:
    """A plan makes room, names only candidates and none in vain; there is none only where no plan could be."""
    filled = Ledger((Device("g0", 100, 120), Device("g1", 80, 90, 1)), budget_mb, max_models)
    filled.foreign_mb = {"g0": foreign_mb}
    for number, by_device in enumerate(held):
        filled.correct(f"m{number}", by_device)
    able = [Holding(f"m{number}", prices[number]) for number in range(len(held)) if number in candidates]
    plan = plan_eviction(filled, placement, able)
    subsets = [subset for size in range(len(able) + 1) for subset in combinations(able, size)]
    assert (plan is not None) == any(not filled.lack(placement, subset) for subset in subsets)
    if plan is not None:
        assert set(plan) <= set(able)
        assert not filled.lack(placement, plan)
        for holding in plan:
            assert filled.lack(placement, [other for other in plan if other is not holding])
