"""Groups: how memory is parted, what is refused, and names of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rolecall.core import events
from rolecall.core.groups import AllocationError, ModelGroup, Need, allocate, clashes, resolve

CAPACITY_MB = 20_000
NAMES = ("a", "b", "c", "d")


def group(*models: str, name: str = "photos", **fields: Any) -> ModelGroup:
    return ModelGroup(name=name, models=models, **fields)


def fixed(mb: int) -> Need:
    return Need(mb, takes_share=False)


# -- by hand


@pytest.mark.parametrize(
    ("needs", "given_mb"),
    [
        ({"a": Need(1000), "b": Need(2000)}, {"a": 10_000, "b": 10_000}),
        ({"a": Need(1000), "b": fixed(6000)}, {"a": 14_000, "b": 6000}),
        ({"a": Need(1000), "b": fixed(6000), "c": Need(1000)}, {"a": 7000, "b": 6000, "c": 7000}),
        ({"a": Need(15_000), "b": Need(2000)}, {"a": 15_000, "b": 5000}),
        ({"a": Need(1000, 4000), "b": Need(2000)}, {"a": 4000, "b": 16_000}),
        ({"a": Need(1000, 4000), "b": Need(2000, 3000)}, {"a": 4000, "b": 3000}),
        ({"a": Need(5000, 4000), "b": Need(15_000)}, {"a": 5000, "b": 15_000}),
        ({"a": Need(0), "b": Need(0), "c": Need(0)}, {"a": 6666, "b": 6666, "c": 6666}),
        ({"a": fixed(6000), "b": fixed(6000)}, {"a": 6000, "b": 6000}),
        ({"b": Need(1)}, {"b": 20_000}),
        ({"another": Need(1)}, {}),
    ],
)
def test_balanced(needs: Mapping[str, Need], given_mb: Mapping[str, int]) -> None:
    """Those that take a share get equal parts of what the fixed ones leave, within their least and what they want."""
    assert allocate(group("a", "b", "c"), needs, CAPACITY_MB) == given_mb


@pytest.mark.parametrize(
    ("models", "given_mb"),
    [
        ("abc", {"a": 9000, "b": 9000, "c": 2000}),
        ("cab", {"a": 1000, "b": 2000, "c": 17_000}),
        ("bca", {"a": 1000, "b": 17_000, "c": 2000}),
    ],
)
def test_priority(models: str, given_mb: Mapping[str, int]) -> None:
    """In the order of the list each gets what it wants, as far as the later ones keep their least."""
    needs = {"a": Need(1000, 9000), "b": Need(2000), "c": Need(2000)}
    assert allocate(group(*models, allocation="priority"), needs, CAPACITY_MB) == given_mb


def test_priority_of_a_fixed_model() -> None:
    """A model of a fixed size takes that, wherever it stands in the list."""
    needs = {"a": fixed(3000), "b": Need(1000)}
    for models in ("ab", "ba"):
        assert allocate(group(*models, allocation="priority"), needs, CAPACITY_MB) == {"a": 3000, "b": 17_000}


def test_custom() -> None:
    """Fractions are of the capacity; a model without one gets its least, a fixed one what it takes."""
    parted = group("a", "b", "c", "d", allocation="custom", shares={"a": 0.29, "b": 0.5, "c": 0.2})
    needs = {"a": Need(10), "b": Need(10, 20), "c": fixed(15), "d": Need(1)}
    assert allocate(parted, needs, 100) == {"a": 29, "b": 50, "c": 15, "d": 1}


@pytest.mark.parametrize(
    ("fields", "needs", "said"),
    [
        (
            {},
            {"a": Need(15_000), "b": fixed(6000)},
            "the group 'photos' does not fit: a 15000, b 6000 MB are 1000 MB more than the 20000 MB there",
        ),
        (
            {"allocation": "custom", "shares": {"a": 0.5}},
            {"a": Need(10_001), "b": Need(1)},
            "the group 'photos' does not fit: a needs 10001 MB, its share 0.5 of 20000 MB is 10000 MB",
        ),
        (
            {"allocation": "custom", "shares": {"a": 0.9}},
            {"a": Need(1), "b": fixed(6000)},
            "the group 'photos' does not fit: a 18000, b 6000 MB are 4000 MB more than the 20000 MB there",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], needs: Mapping[str, Need], said: str) -> None:
    """A group that does not fit is refused with each model's MB and what lacks."""
    with pytest.raises(AllocationError) as refused:
        allocate(group("a", "b", **fields), needs, CAPACITY_MB)
    assert str(refused.value) == said


# -- any group

megabytes = st.integers(0, 12_000)
all_needs = st.dictionaries(
    st.sampled_from(NAMES), st.builds(Need, megabytes, st.none() | megabytes, st.booleans()), min_size=1
)
fractions = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 100), min_size=1)


def shared_out(parts: Mapping[str, int]) -> dict[str, float]:
    whole = max(100, sum(parts.values()))
    return {name: part / whole for name, part in parts.items()}


order = st.permutations(NAMES)
groups = st.one_of(
    st.builds(lambda models, how: group(*models, allocation=how), order, st.sampled_from(["balanced", "priority"])),
    st.builds(
        lambda models, parts: group(*models, allocation="custom", shares=shared_out(parts)),
        order,
        fractions,
    ),
)


def attempt(parted: ModelGroup, needs: Mapping[str, Need], capacity_mb: int) -> dict[str, int] | str:
    try:
        return allocate(parted, needs, capacity_mb)
    except AllocationError as error:
        return str(error)


@given(parted=groups, needs=all_needs, capacity_mb=st.integers(0, 40_000))
@example(group("a", "b", "c", allocation="custom", shares={"a": 0.1, "b": 0.2, "c": 0.7}), {"a": Need(0)}, 10)
def test_within_the_capacity_and_never_below_the_least(
    parted: ModelGroup, needs: Mapping[str, Need], capacity_mb: int
) -> None:
    """What is given never exceeds the capacity, nobody gets less than the least, a fixed model gets exactly that."""
    given_mb = attempt(parted, needs, capacity_mb)
    least_mb = sum(need.least_mb for need in needs.values())
    if isinstance(given_mb, str):
        assert parted.allocation == "custom" or least_mb > capacity_mb
        return
    assert set(given_mb) == set(needs)
    assert sum(given_mb.values()) <= capacity_mb
    for name, need in needs.items():
        assert given_mb[name] >= need.least_mb
        assert need.takes_share or given_mb[name] == need.least_mb
        if need.wanted_mb is not None and parted.allocation != "custom":
            assert given_mb[name] <= max(need.least_mb, need.wanted_mb)


@given(parted=groups, needs=all_needs, capacity_mb=st.integers(0, 40_000), data=st.data())
def test_order_of_the_needs_never_matters(
    parted: ModelGroup, needs: Mapping[str, Need], capacity_mb: int, data: st.DataObject
) -> None:
    """The same needs in another order give the same answer, down to the words; so does asking twice."""
    again = dict(data.draw(st.permutations(list(needs.items()))))
    assert attempt(parted, again, capacity_mb) == attempt(parted, needs, capacity_mb)


@given(models=order, needs=all_needs, capacity_mb=st.integers(0, 40_000))
def test_balanced_is_fair_and_wastes_nothing(models: list[str], needs: Mapping[str, Need], capacity_mb: int) -> None:
    """Whoever has more than another has only its least, or the other all it wants; less than a MB each is left over."""
    given_mb = attempt(group(*models), needs, capacity_mb)
    assume(isinstance(given_mb, dict))
    assert isinstance(given_mb, dict)
    sharing = {name: need for name, need in needs.items() if need.takes_share}
    for one, other in combinations(sharing, 2):
        more, less = (one, other) if given_mb[one] >= given_mb[other] else (other, one)
        wanted_mb = sharing[less].wanted_mb
        is_content = wanted_mb is not None and given_mb[less] >= wanted_mb
        assert given_mb[more] in (given_mb[less], sharing[more].least_mb) or is_content
    left_mb = capacity_mb - sum(given_mb.values())
    hungry = [n for n, need in sharing.items() if need.wanted_mb is None or given_mb[n] < need.wanted_mb]
    assert left_mb < len(hungry) or not hungry


@given(models=order, needs=all_needs, capacity_mb=st.integers(0, 40_000))
def test_priority_lets_nobody_later_go_first(models: list[str], needs: Mapping[str, Need], capacity_mb: int) -> None:
    """A model gets more than its least only if all those before it that take a share have what they want."""
    given_mb = attempt(group(*models, allocation="priority"), needs, capacity_mb)
    assume(isinstance(given_mb, dict))
    assert isinstance(given_mb, dict)
    members = [name for name in models if name in needs]
    for earlier, later in combinations(members, 2):
        wanted_mb = needs[earlier].wanted_mb
        has_all = not needs[earlier].takes_share or (wanted_mb is not None and given_mb[earlier] >= wanted_mb)
        assert has_all or given_mb[later] == needs[later].least_mb


# -- names


def test_names_of_the_registry() -> None:
    """Aliases become names, in models and shares; what the registry lacks is left out with a warning."""
    found, warnings = resolve(
        [
            group("cap", "gone", "b", allocation="custom", shares={"cap": 0.5, "gone": 0.2}),
            group("A", "d", name="again", startup="parallel"),
            group("gone", name="empty"),
        ],
        {"A": "A", "cap": "A", "b": "b", "d": "d"},
    )
    assert found == (
        group("A", "b", allocation="custom", shares={"A": 0.5}),
        group("d", name="again", startup="parallel"),
    )
    assert warnings == (
        "group 'photos': the registry has no model 'gone'; it is left out",
        "group 'again': 'A' is left out, it is in group 'photos' already",
        "group 'empty': the registry has no model 'gone'; it is left out",
    )


def test_a_model_twice_in_one_group_by_its_alias() -> None:
    """A model that a group names twice, by its name and its alias, is in it once."""
    found, warnings = resolve([group("A", "cap")], {"A": "A", "cap": "A"})
    assert [each.models for each in found] == [("A",)]
    assert warnings == ("group 'photos': 'cap' is left out, it is in group 'photos' already",)


def test_groups_that_clash() -> None:
    """Two groups of one profile have different names and no model in common."""
    assert list(clashes([group("a", "b"), group("c", name="x"), group("b", "d", name="y"), group("e", name="x")])) == [
        "groups 'photos' and 'y' both hold 'b'; allowed: one group for each model.",
        "group 'x' is there twice; allowed: each name once in a profile.",
    ]


def test_a_group_is_one_of_the_scheduler() -> None:
    """Name, models and startup are what the scheduler takes."""
    one = group("a", "b", startup="parallel")
    assert events.Group(one.name, one.models, one.startup) == events.Group("photos", ("a", "b"), "parallel")
