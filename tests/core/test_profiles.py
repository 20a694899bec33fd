"""Profiles: the shipped table, which machine gets which, what the budget is, on which devices, and the groups."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.groups import ModelGroup
from rolecall.core.profiles import (
    RESERVE_MB,
    ActiveProfile,
    GpuSnapshot,
    ProfileError,
    activate,
    detect,
    parse_profiles,
)
from rolecall.core.vram import HOST, Device
from rolecall.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED_FILE = Path(__file__).parents[2] / "configs" / "profiles.toml"
SHIPPED = parse_profiles(tomllib.loads(SHIPPED_FILE.read_text()))
BY_SIZE = ["development", "constrained_16gb", "balanced_24gb", "generous_96gb"]
HOST_RAM_MB = 32_000
WORKING: dict[str, Any] = {
    "max_vram_mb": 10000,
    "max_concurrent_models": 1,
    "preferred_quantizations": ["Q4_K_M", " fp8 "],
    "strategy": "load_unload",
    "bias": "quality",
    "idle_unload_s": 60,
}


def gpus(*totals_mb: int) -> tuple[GpuSnapshot, ...]:
    return tuple(GpuSnapshot(index, "GPU", f"GPU-{index}", total, total) for index, total in enumerate(totals_mb))


def auto(machine: tuple[GpuSnapshot, ...], *, ceiling_mb: int | None = None) -> ActiveProfile:
    return activate(SHIPPED, machine, HOST_RAM_MB, forced=None, ceiling_mb=ceiling_mb)


machines = st.lists(st.integers(min_value=0, max_value=200_000), max_size=6).map(lambda totals: gpus(*totals))
alike = st.tuples(st.integers(1000, 100_000), st.integers(0, 20)).map(
    lambda two: (two[0], two[0] - two[0] * two[1] // 100)
)
ceilings = st.none() | st.integers(min_value=1, max_value=200_000)


def test_shipped_profiles() -> None:
    """The shipped file holds the five profiles of the design, figure by figure."""
    table = """
        development      10000 1 1 q4_k_m,q5_k_m,q8_0          load_unload                    vram_efficient 120
        constrained_16gb 14000 1 1 q4_k_m,fp8,awq,q5_k_m,q8_0  load_unload                    vram_efficient 300
        balanced_24gb    22000 1 2 fp8,awq,q4_k_m,q5_k_m       concurrent_limited             balanced       600
        multi_gpu_2x16gb 28000 2 3 fp8,awq,bf16,q5_k_m         tensor_parallel_or_distributed quality        600
        generous_96gb    90000 1 5 fp8,awq,bf16,fp16           concurrent_full                quality       3600
    """
    rows = [
        f"{p.name} {p.max_vram_mb} {p.gpu_count} {p.max_concurrent_models} {','.join(p.preferred_quantizations)} "
        f"{p.strategy} {p.bias} {p.idle_unload_s}"
        for p in SHIPPED.values()
    ]
    assert rows == [" ".join(line.split()) for line in table.strip().splitlines()]
    assert list(SHIPPED) == [row.split()[0] for row in rows]


@pytest.mark.parametrize(
    ("totals_mb", "profile"),
    [
        ((), "development"),
        ((1024,), "development"),
        ((14000 + RESERVE_MB - 1,), "development"),
        ((14000 + RESERVE_MB,), "constrained_16gb"),
        ((20000 + RESERVE_MB - 1,), "constrained_16gb"),
        ((20000 + RESERVE_MB,), "balanced_24gb"),
        ((85000 + RESERVE_MB - 1,), "balanced_24gb"),
        ((85000 + RESERVE_MB,), "generous_96gb"),
        ((14000, 14000), "multi_gpu_2x16gb"),
        ((14000, 13999), "development"),
        ((97887, 97887), "multi_gpu_2x16gb"),
        ((20000, 16000), "multi_gpu_2x16gb"),
        ((20000, 15999), "constrained_16gb"),
        ((15999, 24564), "balanced_24gb"),
        ((2048, 8192), "development"),
        ((8192, 8192, 8192), "constrained_16gb"),
        ((40000 + RESERVE_MB - 1, 0, 0), "constrained_16gb"),
        ((40000 + RESERVE_MB, 0, 0), "balanced_24gb"),
        ((60000 + RESERVE_MB - 1, 0, 0), "balanced_24gb"),
        ((60000 + RESERVE_MB, 0, 0), "generous_96gb"),
    ],
)
def test_detection_at_its_limits(totals_mb: tuple[int, ...], profile: str) -> None:
    """Each rule holds from its limit on, and not one MB below."""
    assert detect(gpus(*totals_mb)) == profile


@given(machine=machines, order=st.randoms())
def test_order_of_gpus_does_not_matter(machine: tuple[GpuSnapshot, ...], order: Any) -> None:
    """The driver may list the GPUs in any order."""
    shuffled = order.sample(machine, len(machine))
    assert auto(tuple(shuffled)) == auto(machine)


@given(total_mb=st.integers(0, 200_000), more_mb=st.integers(0, 100_000))
def test_larger_card_never_gets_a_smaller_profile(total_mb: int, more_mb: int) -> None:
    """More memory on the one card never makes the profile or the budget smaller."""
    less, more = auto(gpus(total_mb)), auto(gpus(total_mb + more_mb))
    assert BY_SIZE.index(less.profile.name) <= BY_SIZE.index(more.profile.name)
    assert less.budget_mb <= more.budget_mb


@given(machine=machines, ceiling_mb=ceilings)
def test_budget_is_never_above_what_is_there(machine: tuple[GpuSnapshot, ...], ceiling_mb: int | None) -> None:
    """A detected profile promises no more than each card has above the reserve, and no more than the ceiling."""
    there_mb = sum(max(0, gpu.vram_total_mb - RESERVE_MB) for gpu in machine) if machine else HOST_RAM_MB - RESERVE_MB
    budget_mb = auto(machine, ceiling_mb=ceiling_mb).budget_mb
    assert 0 <= budget_mb <= there_mb
    assert ceiling_mb is None or budget_mb <= ceiling_mb


@given(pair=alike)
def test_like_pair_counts_both(pair: tuple[int, int]) -> None:
    """Two cards within 20 % of each other give the sum of their usable memory, as three cards would."""
    assert auto(gpus(*pair)).budget_mb == sum(max(0, total - RESERVE_MB) for total in pair)


@given(machine=machines, name=st.sampled_from(sorted(SHIPPED)), ceiling_mb=ceilings)
def test_named_profile_is_taken_at_its_word(
    machine: tuple[GpuSnapshot, ...], name: str, ceiling_mb: int | None
) -> None:
    """A profile that a person named has its own figure as budget on any machine, below the ceiling."""
    active = activate(SHIPPED, machine, HOST_RAM_MB, forced=name, source="env", ceiling_mb=ceiling_mb)
    expected_mb = min(SHIPPED[name].max_vram_mb, ceiling_mb or 200_000)
    assert (active.profile, active.source, active.budget_mb) == (SHIPPED[name], "env", expected_mb)


@pytest.mark.parametrize(
    ("totals_mb", "budget_mb"),
    [((8192,), 6144), ((143771,), 141723), ((16376, 24564), 22516), ((24564, 1024, 24564), 45032), ((), 29952)],
)
def test_budget_by_hand(totals_mb: tuple[int, ...], budget_mb: int) -> None:
    """A small card lowers the budget, a large one raises it, the smaller of an unlike pair and tiny cards add none."""
    assert auto(gpus(*totals_mb)).budget_mb == budget_mb


def test_host_smaller_than_the_reserve() -> None:
    """A machine with less RAM than the reserve has a budget of 0, not a negative one."""
    assert activate(SHIPPED, (), 1024, forced=None).budget_mb == 0


# -- devices


def capacities(active: ActiveProfile) -> dict[int, int]:
    return {device.index: device.capacity_mb for device in active.devices}


@pytest.mark.parametrize(
    ("totals_mb", "capacities_mb"),
    [
        ((24564,), {0: 22516}),
        ((16376, 16376), {0: 14328, 1: 14328}),
        ((16376, 24564), {1: 22516}),
        ((24564, 1024, 24564), {0: 22516, 2: 22516}),
        ((1024,), {0: 0}),
    ],
)
def test_devices_of_a_detected_profile(totals_mb: tuple[int, ...], capacities_mb: dict[int, int]) -> None:
    """Each GPU that counts has its usable memory; the smaller of an unlike pair and tiny cards are none."""
    assert capacities(auto(gpus(*totals_mb))) == capacities_mb


def test_a_device_is_the_gpu() -> None:
    """A device has the GPU's UUID, total and index, in the order of the index; one without a UUID its index as id."""
    cards = (GpuSnapshot(7, "A", "GPU-7", 24000, 1), GpuSnapshot(3, "B", "", 24100, 1))
    assert auto(cards).devices == (Device("3", 22052, 24100, 3), Device("GPU-7", 21952, 24000, 7))


@pytest.mark.parametrize(("forced", "budget_mb"), [(None, 29952), ("balanced_24gb", 22000)])
def test_host_is_the_device_without_gpus(forced: str | None, budget_mb: int) -> None:
    """Without a GPU there is one device of the whole budget, whoever named it."""
    active = activate(SHIPPED, (), HOST_RAM_MB, forced=forced)
    assert active.devices == (Device(HOST, budget_mb, HOST_RAM_MB),)


@pytest.mark.parametrize(
    ("totals_mb", "forced", "ceiling_mb", "capacities_mb"),
    [
        ((24564,), None, 5000, {0: 22516}),
        ((24564,), "development", None, {0: 22516}),
        ((16376,), "balanced_24gb", None, {0: 22000}),
        ((16376,), "balanced_24gb", 14000, {0: 14328}),
        ((16376,), "balanced_24gb", 20000, {0: 20000}),
        ((12048, 22048, 12048), "generous_96gb", None, {0: 22500, 1: 45000, 2: 22500}),
        ((16376, 24564), "development", None, {1: 22516}),
        ((16376, 24564), "multi_gpu_2x16gb", None, {0: 14328, 1: 22516}),
        ((1024, 2048), "multi_gpu_2x16gb", None, {0: 14000, 1: 14000}),
    ],
)
def test_devices_of_a_budget_by_hand(
    totals_mb: tuple[int, ...], forced: str | None, ceiling_mb: int | None, capacities_mb: dict[int, int]
) -> None:
    """A small budget leaves the capacities as they are, a large one raises them; one for two GPUs has both."""
    active = activate(SHIPPED, gpus(*totals_mb), HOST_RAM_MB, forced=forced, ceiling_mb=ceiling_mb)
    assert capacities(active) == capacities_mb


@given(machine=machines, forced=st.none() | st.sampled_from(sorted(SHIPPED)), ceiling_mb=ceilings)
def test_devices_hold_the_budget(machine: tuple[GpuSnapshot, ...], forced: str | None, ceiling_mb: int | None) -> None:
    """On any machine the devices hold the budget together, and none is below what its GPU can take."""
    active = activate(SHIPPED, machine, HOST_RAM_MB, forced=forced, ceiling_mb=ceiling_mb)
    held_mb = sum(device.capacity_mb for device in active.devices)
    usable_mb = {gpu.uuid: gpu.usable_mb for gpu in machine}
    assert active.budget_mb <= held_mb
    assert held_mb <= max(sum(usable_mb.values()), active.budget_mb + len(active.devices))
    assert all(device.capacity_mb >= usable_mb.get(device.id, 0) for device in active.devices)


# -- wrong files


@pytest.mark.parametrize(
    ("forced", "said"),
    [
        (
            "balanced",
            "unknown profile 'balanced'; did you mean 'balanced_24gb'? allowed: development, constrained_16gb,",
        ),
        ("96gb", "did you mean 'generous_96gb'?"),
        ("dev", "did you mean 'development'?"),
        ("nope", "unknown profile 'nope'; allowed: development,"),
        ("zzz", "unknown profile 'zzz'; allowed: development,"),
    ],
)
def test_unknown_name(forced: str, said: str) -> None:
    """An unknown profile is refused with the names there are, and the nearest if one is near."""
    with pytest.raises(ProfileError) as refused:
        activate(SHIPPED, (), HOST_RAM_MB, forced=forced)
    assert said in str(refused.value)


def test_detected_profile_that_the_file_lacks() -> None:
    """A file without the profile that the machine calls for is refused; the message says which it has."""
    own = parse_profiles({"profiles": {"mine": WORKING}})
    with pytest.raises(ProfileError, match=r"calls for profile 'balanced_24gb'.*: mine\."):
        activate(own, gpus(24564), HOST_RAM_MB, forced=None)
    assert activate(own, gpus(24564), HOST_RAM_MB, forced="mine").source == "config"


def test_own_profile() -> None:
    """A table of one's own is a profile like the shipped; quantizations are lower-cased."""
    (mine,) = parse_profiles({"profiles": {"mine": WORKING}}).values()
    assert (mine.name, mine.gpu_count, mine.preferred_quantizations) == ("mine", 1, ("q4_k_m", "fp8"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_vram_mb": 0}, "max_vram_mb = 0; allowed: MB for all models over all GPUs, a whole number above 0."),
        ({"max_vram_mb": "10 GB"}, "max_vram_mb = '10 GB'; allowed: MB"),
        (
            {"max_concurrent_models": True},
            "max_concurrent_models = True; allowed: models loaded at once, a whole number",
        ),
        ({"idle_unload_s": -1}, "idle_unload_s = -1; allowed: seconds"),
        ({"gpu_count": 1.5}, "gpu_count = 1.5; allowed: GPUs"),
        ({"bias": "fast"}, "bias = 'fast'; allowed: vram_efficient | balanced | quality."),
        ({"strategy": ""}, "strategy = ''; allowed: load_unload | concurrent_limited | "),
        ({"preferred_quantizations": "fp8"}, "preferred_quantizations = 'fp8'; allowed: a list of names"),
        ({"preferred_quantizations": ["fp8", 8]}, "preferred_quantizations.1 = 8; allowed: a list of names"),
        ({"preferred_quantizations": [" "]}, "preferred_quantizations.0 = ' '; allowed: a list of names"),
        ({"max_vram": 1}, "max_vram: no such field; did you mean 'max_vram_mb'? allowed: max_vram_mb, gpu_count,"),
        ({"zz": 1}, "zz: no such field; allowed: max_vram_mb,"),
        ({"name": "other"}, "name: its heading names it"),
    ],
)
def test_wrong_field(change: dict[str, Any], said: str) -> None:
    """A wrong value names the profile, the field, the value, and what is allowed."""
    with pytest.raises(ProfileError) as refused:
        parse_profiles({"profiles": {"good": WORKING, "mine": {**WORKING, **change}}})
    assert str(refused.value).startswith(f"profile 'mine', {said}")
    assert "\n" not in str(refused.value)


def test_every_wrong_field_is_told_at_once() -> None:
    """One reading of the file tells all that is wrong in it, a missing field too."""
    with pytest.raises(ProfileError) as refused:
        parse_profiles({"profiles": {"a": {}, "b": {**WORKING, "bias": 1}, "c": 3}})
    lines = str(refused.value).splitlines()
    assert len(lines) == len(WORKING) + 2
    assert "profile 'a', bias is missing; allowed: vram_efficient | balanced | quality." in lines
    assert "profile 'c' = 3: allowed is a table [profiles.c]." in lines


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"profiles": {}},
        {"profiles": []},
        {"profile": {"mine": WORKING}},
        {"profiles": {"a": WORKING}, "b": 1},
        {"groups": []},
    ],
)
def test_file_without_profiles(data: dict[str, Any]) -> None:
    """A file with no profile, or with other tables, is refused with the form that is allowed."""
    with pytest.raises(ProfileError, match=r"allowed are tables \[profiles.NAME\]"):
        parse_profiles(data)


# -- groups

PHOTOS: dict[str, Any] = {"name": "photos", "models": ["captioner", "keyworder"]}
SEARCH: dict[str, Any] = {"name": "search", "models": ["embedder"]}


def grouped(*shared: Any, **own: list[Any]) -> dict[str, list[str]]:
    """Return profile to the names of its groups, for a file with these groups at its top and inside profiles."""
    return {name: [group.name for group in profile.groups] for name, profile in parsed(*shared, **own).items()}


def parsed(*shared: Any, **own: Any) -> dict[str, Any]:
    tables = {name: {**WORKING, **({"groups": own[name]} if name in own else {})} for name in ("small", "large")}
    return dict(parse_profiles({"profiles": tables, "groups": list(shared)}))


def test_a_group_with_all_its_fields() -> None:
    """A group holds what its table says; what it leaves out is balanced and serial."""
    own = {**PHOTOS, "allocation": "custom", "shares": {"captioner": 0.7, "keyworder": 0.3}, "startup": "parallel"}
    profiles = parsed(SEARCH, large=[own])
    assert profiles["large"].groups == (
        ModelGroup(name="search", models=("embedder",), allocation="balanced", startup="serial"),
        ModelGroup(
            name="photos",
            models=("captioner", "keyworder"),
            allocation="custom",
            shares={"captioner": 0.7, "keyworder": 0.3},
            startup="parallel",
        ),
    )
    assert activate(profiles, (), HOST_RAM_MB, forced="large").groups == profiles["large"].groups


def test_where_a_group_holds() -> None:
    """A group at the top holds for all profiles, or for those it names; one of a profile's own replaces its like."""
    assert grouped(PHOTOS, {**SEARCH, "profiles": ["large"]}) == {"small": ["photos"], "large": ["photos", "search"]}
    own = {"name": "photos", "models": ["embedder"]}
    assert grouped(PHOTOS, small=[own]) == {"small": ["photos"], "large": ["photos"]}
    assert parsed(PHOTOS, small=[own])["small"].groups[0].models == ("embedder",)
    apart = [{**PHOTOS, "profiles": [name]} for name in ("small", "large")]
    assert grouped(*apart) == {"small": ["photos"], "large": ["photos"]}
    assert all(not profile.groups for profile in SHIPPED.values())


SHARES = 'a table "model" = fraction for models of the group, each above 0, together at most 1, where allocation is'


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": []}, "models = []; allowed: a list of names or aliases of the registry, one at least, each once."),
        ({"models": "captioner"}, "models = 'captioner'; allowed: a list of names"),
        ({"models": ["captioner", 3]}, "models.1 = 3; allowed: a list of names"),
        ({"models": ["b", "b"]}, "models = ['b', 'b'], but 'b' is there twice; allowed: a list of names"),
        ({"allocation": "even"}, "allocation = 'even'; allowed: balanced | priority | custom."),
        ({"startup": ""}, "startup = ''; allowed: parallel | serial."),
        ({"allocation": "custom"}, f'shares = {{}}, but a custom allocation has none; allowed: {SHARES} "custom".'),
        ({"shares": {"captioner": 0.5}}, "shares = {'captioner': 0.5}, but the allocation is balanced; allowed: a"),
        ({"allocation": "custom", "shares": {"captioner": 0}}, "shares.captioner = 0; allowed: a table"),
        ({"allocation": "custom", "shares": {"captioner": 1.5}}, "shares.captioner = 1.5; allowed: a table"),
        ({"allocation": "custom", "shares": {"captioner": True}}, "shares.captioner = True; allowed: a table"),
        ({"allocation": "custom", "shares": {"captioner": "0.5"}}, "shares.captioner = '0.5'; allowed: a table"),
        (
            {"allocation": "custom", "shares": {"captioner": 0.7, "keyworder": 0.4}},
            "shares = {'captioner': 0.7, 'keyworder': 0.4}, but together they are 1.1; allowed: a table",
        ),
        (
            {"allocation": "custom", "shares": {"keywords": 0.7}},
            "shares = {'keywords': 0.7}, but 'keywords' is not in models; allowed: a table",
        ),
        ({"model": []}, "model: no such field; did you mean 'models'? allowed: name, models, allocation, shares,"),
    ],
)
@pytest.mark.parametrize("is_shared", [True, False])
def test_wrong_field_of_a_group(change: dict[str, Any], said: str, *, is_shared: bool) -> None:
    """A wrong value names the group, its profile if it is in one, the field, the value, and what is allowed."""
    wrong = {**PHOTOS, **change}
    with pytest.raises(ProfileError) as refused:
        parsed(SEARCH, *([wrong] if is_shared else []), **({} if is_shared else {"small": [wrong]}))
    where = "group 'photos', " if is_shared else "profile 'small', group 'photos', "
    assert str(refused.value).startswith(where + said)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("shared", "own", "said"),
    [
        ([{"models": ["a"]}], [], "group 1, name is missing; allowed: a name, not empty."),
        ([SEARCH, 3], [], "group 2 = 3: allowed is a table [[groups]]."),
        ([], [3], "profile 'small', group 1 = 3: allowed is a table [[profiles.small.groups]]."),
        ([], 3, "profile 'small', groups = 3; allowed: tables [[profiles.NAME.groups]]."),
        ([], [{**PHOTOS, "profiles": ["large"]}], "profile 'small', group 'photos', profiles: no such field; "),
        (
            [{**PHOTOS, "profiles": ["larg"]}],
            [],
            "group 'photos', profiles: no profile 'larg'; did you mean 'large'? allowed: small, large.",
        ),
        ([{**PHOTOS, "profiles": []}], [], "group 'photos', profiles = []; allowed: a list of profiles, one at least;"),
        ([PHOTOS, PHOTOS], [], "group 'photos' is there twice; allowed: each name once in a profile."),
        ([], [PHOTOS, PHOTOS], "group 'photos' is there twice; allowed: each name once in a profile."),
        (
            [PHOTOS],
            [{**SEARCH, "models": ["keyworder"]}],
            "groups 'photos' and 'search' both hold 'keyworder'; allowed: one group for each model.",
        ),
    ],
)
def test_wrong_groups(shared: list[Any], own: Any, said: str) -> None:
    """What is wrong with a group as a whole, or with two together, is told with what is allowed."""
    with pytest.raises(ProfileError) as refused:
        parsed(*shared, small=own)
    assert str(refused.value).startswith(said)


def test_groups_that_are_no_list() -> None:
    """A single table [groups] is refused with the form that is allowed."""
    with pytest.raises(ProfileError, match=r"allowed are tables \[\[groups\]\]"):
        parse_profiles({"profiles": {"a": WORKING}, "groups": PHOTOS})


def test_all_that_is_wrong_with_groups_and_profiles_is_told_at_once() -> None:
    """Wrong profiles, wrong groups at the top and wrong groups in a profile are told together, one a line."""
    with pytest.raises(ProfileError) as refused:
        parse_profiles(
            {
                "profiles": {"a": {**WORKING, "bias": 1, "groups": [{**PHOTOS, "startup": 1}]}},
                "groups": [{**SEARCH, "models": 1}],
            }
        )
    assert [line.partition(" = ")[0] for line in str(refused.value).splitlines()] == [
        "profile 'a', bias",
        "profile 'a', group 'photos', startup",
        "group 'search', models",
    ]


def test_the_example_of_the_shipped_file() -> None:
    """The group that the shipped file shows in its comments is one."""
    lines = SHIPPED_FILE.read_text(encoding="utf-8").splitlines()
    start = lines.index("#   [[groups]]")
    example = [line.removeprefix("#") for line in lines[start : lines.index("", start)]]
    (group,) = parse_profiles({"profiles": dict.fromkeys(SHIPPED, WORKING), **tomllib.loads("\n".join(example))})[
        "balanced_24gb"
    ].groups
    assert (group.name, group.shares) == ("photos", {"captioner": 0.6, "keyworder": 0.3})


def test_error_is_one_of_configuration() -> None:
    """What catches wrong configuration catches wrong profiles."""
    with pytest.raises(ConfigurationError):
        parse_profiles({})
    assert issubclass(ProfileError, ValueError)
