"""What cards can hold: the largest context, and models side by side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.capacity import MOST_CONTEXT, Cards, beside, cards_of, fit_together, largest_context
from rolecall.core.profiles import Profile
from rolecall.core.together import Tenant
from rolecall.core.vram import HOST, Device


def cards(*capacities: int, budget_mb: int | None = None) -> Cards:
    """Return GPUs of these capacities."""
    devices = tuple(Device(f"g{index}", mb, mb + 2048, index) for index, mb in enumerate(capacities))
    return Cards(devices, sum(capacities) if budget_mb is None else budget_mb, 1)


# -- the largest context


@pytest.mark.parametrize(
    ("room_mb", "own_tokens", "tokens"),
    [
        (1000, 4096, 4096),
        (1000, 131072, 28672),
        (1000, 0, 28672),
        (100, 4096, None),
        (108, 4096, 256),
        (107, 4096, None),
        (2**20, 0, MOST_CONTEXT),
        (103, 100, 100),
        (102, 100, None),
    ],
)
def test_the_largest_context_is_found(room_mb: int, own_tokens: int, tokens: int | None) -> None:
    """100 MB and 1 MB for each 32 tokens: never more than the model was trained for, in steps of 256."""
    assert largest_context(lambda context: 100 + context // 32, room_mb, own_tokens) == tokens


@given(st.integers(1, 2**20), st.integers(0, 5000), st.integers(1, 5000), st.integers(0, 10**6))
def test_the_largest_context_fits_and_the_next_does_not(own: int, base: int, per_mb: int, room: int) -> None:
    """Whatever the model."""

    def need_mb(tokens: int) -> int:
        return base + tokens // per_mb

    found = largest_context(need_mb, room, own)
    if found is None:
        assert need_mb(min(256, own)) > room
    else:
        assert need_mb(found) <= room
        assert found <= own
        assert found == own or need_mb(min(own, found + 256)) > room


# -- the cards


def test_a_profile_has_equal_cards() -> None:
    """As many as it is made for, of its memory together, each rounded up so that all of it fits."""
    profile = Profile(
        name="pair",
        max_vram_mb=28001,
        gpu_count=2,
        max_concurrent_models=3,
        preferred_quantizations=("q8_0",),
        strategy="concurrent_limited",
        bias="balanced",
        idle_unload_s=60,
    )
    made = cards_of(profile)
    assert [(device.capacity_mb, device.total_mb) for device in made.devices] == [(14001, 16049)] * 2
    assert (made.budget_mb, made.max_models, made.are_gpus) == (28001, 3, True)


def test_host_ram_is_no_gpu() -> None:
    """A machine without a GPU has the one device of that name."""
    assert not Cards((Device(HOST, 1000, 2000),), 1000, 1).are_gpus


@pytest.mark.parametrize(
    ("spread", "room_mb"), [((1,), 14000), ((1, 2), 20000), ((2,), 20000), ((1, 2, 3), 20000), ((3,), 0), ((), 0)]
)
def test_the_room_for_one_model_follows_its_cards(spread: tuple[int, ...], room_mb: int) -> None:
    """Parts are equal, so the smallest of the cards counts; there are two."""
    assert cards(14000, 10000).room_mb(spread) == room_mb


def test_the_budget_bounds_the_room() -> None:
    """A ceiling set by hand holds for one model as well."""
    assert cards(14000, 10000, budget_mb=9000).room_mb((1, 2)) == 9000


# -- side by side


def test_who_fits_beside_a_model() -> None:
    """Each without the others, on the cards where it may lie."""
    first = Tenant("first", 9000)
    others = [Tenant("a", 5000), Tenant("b", 5001), Tenant("c", 5000), Tenant("d", 9000, devices=("g9",))]
    assert beside(cards(14000), first, others) == ["a", "c"]
    assert beside(cards(8000), first, others) == []


def test_large_gaps_stay_for_large_models() -> None:
    """The tightest card is taken: 5000 go beside the 9000, not on the card that 14000 need."""
    tenants = [Tenant("nine", 9000), Tenant("five", 5000), Tenant("fourteen", 14000)]
    assert fit_together(cards(14000, 14000), tenants) == [("nine", "five", "fourteen")]


def test_sets_that_fit_together() -> None:
    """One for each model, the best first; a set that comes twice is told once, and alone is no set."""
    tenants = [Tenant("a", 6000), Tenant("b", 6000), Tenant("c", 4000), Tenant("d", 9000), Tenant("e", 15000)]
    assert fit_together(cards(14000), tenants) == [("a", "b"), ("a", "c"), ("c", "d")]
    assert fit_together(cards(14000), tenants[:1]) == []


def test_a_model_over_two_cards() -> None:
    """It lies on one if it fits there; beside others it has parts on both."""
    tenants = [Tenant("wide", 18000, (1, 2)), Tenant("small", 5000)]
    assert fit_together(cards(14000, 14000), tenants) == [("wide", "small")]
    assert fit_together(cards(14000, 14000), [Tenant("wide", 20000, (1, 2)), Tenant("small", 5000)]) == []
