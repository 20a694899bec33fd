"""The figures of docs/scheduling.md, from the descriptions that are shipped; simulated time makes them exact."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.simulation.comparison import Comparison, compare
from rolecall.simulation.measures import Measures
from rolecall.simulation.policies import make_policy
from rolecall.simulation.traces import find_spec, read_spec
from rolecall.simulation.workload import Workload
from rolecall.simulation.world import World

LATE_S = 1e-3
"""Timers ring a little late, never early."""


def drawn(trace: str, seed: int | None = None) -> Workload:
    source = find_spec(trace)
    assert source is not None
    return read_spec(source, seed)


def run(workload: Workload, policy: str) -> Measures:
    return World(workload, make_policy(policy, workload)).run()


@pytest.fixture(scope="module")
def on_each() -> Comparison:
    """Figure (a): four clients on each of two models."""
    return compare(drawn("two-models-a"), ["rolecall", "fifo-swap", "lru-count"])


@pytest.fixture(scope="module")
def alternating() -> Comparison:
    """Figure (b): every client alternates."""
    return compare(drawn("two-models-b"), ["rolecall", "fifo-swap"])


def test_clients_on_each_model_need_few_loads(on_each: Comparison) -> None:
    """Loads at most a tenth of fifo-swap's, throughput at least five times its."""
    ours, fifo = on_each.measures["rolecall"], on_each.measures["fifo-swap"]
    assert ours.served == fifo.served == 200
    assert ours.loads <= fifo.loads / 10
    assert ours.throughput_per_s >= 5 * fifo.throughput_per_s


def test_the_total_time_is_near_the_bound_that_keeps_the_limit(on_each: Comparison) -> None:
    """At most 1.3 times the clairvoyant bound under the same limit on waits; without one, 74 s would do."""
    ours = on_each.measures["rolecall"]
    assert on_each.limited is not None
    assert (on_each.limited.loads, on_each.limited.total_s) == (6, 122)
    assert ours.loads == on_each.limited.loads
    assert ours.total_s <= 1.3 * on_each.limited.total_s
    assert (on_each.unlimited.loads, on_each.unlimited.total_s) == (2, 74)


@pytest.mark.parametrize("seed", range(1, 21))
def test_in_whatever_order_the_clients_come(seed: int) -> None:
    """Always six loads; fifo-swap needs 50 in the order that suits it best, and five times the time even then."""
    workload = drawn("two-models-a", seed)
    ours, fifo = run(workload, "rolecall"), run(workload, "fifo-swap")
    assert ours.loads == 6
    assert fifo.loads >= 50
    assert fifo.total_s >= 5 * ours.total_s


def test_alternating_clients_cost_hardly_more_loads_than_a_clairvoyant(alternating: Comparison) -> None:
    """At most 1.2 times the fewest loads that serve these clients at all."""
    assert alternating.unlimited.is_exact
    assert alternating.measures["rolecall"].loads <= 1.2 * alternating.unlimited.loads
    assert alternating.measures["rolecall"].total_s <= 1.3 * alternating.unlimited.total_s


@pytest.mark.parametrize("seed", range(1, 11))
@pytest.mark.parametrize("trace", ["two-models-a", "two-models-b"])
def test_nobody_waits_longer_than_promised(trace: str, seed: int) -> None:
    """The longest wait is within the bound, one load and one answer; nobody is overtaken for longer than the bound."""
    ours = run(drawn(trace, seed), "rolecall")
    assert ours.wait.max_s <= 20 + 12 + 1 + LATE_S
    assert ours.longest_overtaken_s <= 20 + LATE_S


def test_the_photographer_needs_one_load() -> None:
    """100 images: one model serves all three roles within the tolerance; strict priority swaps twice an image."""
    result = compare(drawn("photographer"), ["rolecall", "priority"])
    assert result.measures["rolecall"].loads == result.unlimited.loads == 1
    assert result.measures["priority"].loads == 201
    assert result.measures["rolecall"].total_s < result.measures["priority"].total_s / 3


@pytest.mark.parametrize("trace", ["mixed-day-16gb", "mixed-day-2x16gb-large"])
def test_a_mixed_day_has_the_shortest_95th_percentile(trace: str) -> None:
    """Where models have to take turns, rolecall's p95 wait is the shortest, with the fewest loads."""
    workload = drawn(trace)
    assert workload.requests > 10_000
    ours = run(workload, "rolecall")
    for name in ("fifo-swap", "lru-count"):
        other = run(workload, name)
        assert ours.served == other.served == workload.requests
        assert ours.wait.p95_s < other.wait.p95_s
        assert ours.wait.mean_s < other.wait.mean_s
        assert ours.loads < other.loads


def test_a_mixed_day_with_room_for_two() -> None:
    """On two cards hardly anybody waits under any policy (p95 is 0); rolecall has the fewest swaps."""
    workload = drawn("mixed-day-2x16gb")
    ours = run(workload, "rolecall")
    for name in ("fifo-swap", "lru-count"):
        other = run(workload, name)
        assert ours.wait.p95_s == other.wait.p95_s == 0
        assert ours.wait.mean_s < other.wait.mean_s
        assert ours.swaps < other.swaps


def test_overtaking_on_one_card_ends_at_the_bound() -> None:
    """In a whole day with three models that do not fit together nobody is overtaken for longer than the bound."""
    assert run(drawn("mixed-day-16gb"), "rolecall").longest_overtaken_s <= 20 + LATE_S


DOCS = Path(__file__).parents[2] / "docs" / "scheduling.md"
SHOWN: dict[str, Callable[[Measures], str]] = {
    "loads": lambda m: f"{m.loads}",
    "swaps": lambda m: f"{m.swaps}",
    "total s": lambda m: f"{m.total_s:.1f}",
    "requests per s": lambda m: f"{m.throughput_per_s:.3f}",
    "wait p50 s": lambda m: f"{m.wait.p50_s:.1f}",
    "p95 s": lambda m: f"{m.wait.p95_s:.1f}",
    "longest s": lambda m: f"{m.wait.max_s:.1f}",
    "overtaken s": lambda m: f"{m.longest_overtaken_s:.1f}",
    "idle VRAM": lambda m: f"{100 * m.idle_vram_share:.1f} %",
}


def documented() -> Iterator[Any]:
    """The first table after each `rolecall simulate TRACE` of the page: trace, columns, rows."""
    for trace, text in re.findall(
        r"`rolecall simulate ([\w-]+)(?: --[^`]*)?`\n\n(\|.*?)\n\n", DOCS.read_text(), re.DOTALL
    ):
        heading, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
        yield pytest.param(trace, heading, rows, id=trace)


@pytest.mark.parametrize(("trace", "heading", "rows"), list(documented()))
def test_the_page_shows_what_the_commands_print(trace: str, heading: list[str], rows: list[list[str]]) -> None:
    """Each number of a policy's row in docs/scheduling.md is the one that is simulated."""
    workload = drawn(trace)
    for name, *cells in rows:
        if name.startswith("clairvoyant"):
            continue
        measures = run(workload, name.partition(" ")[0])
        shown = {title: cell for title, cell in zip(heading[1:], cells, strict=True) if title in SHOWN}
        assert shown == {title: SHOWN[title](measures) for title in shown}


def test_the_page_has_a_table_for_each_trace() -> None:
    """Every shipped trace is on the page."""
    assert [param.id for param in documented()] == [
        "two-models-a",
        "two-models-b",
        "photographer",
        "mixed-day-16gb",
        "mixed-day-2x16gb",
        "mixed-day-2x16gb-large",
    ]
