"""What is shown of results: rows of text, for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import NGINX, Verdict
from bench.results import DIRECT, Results, Round, loudness
from bench.scenarios import SCENARIOS, Kind


@dataclass(frozen=True)
class Table:
    """A heading, the names of the columns, and rows; behind the first column are numbers, or words."""

    heading: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    is_numeric: bool = True


@dataclass(frozen=True)
class _Column:
    """A figure of a sample. ``is_added`` shows what is added to the upstream's own."""

    name: str
    figure: str
    digits: int = 0
    is_added: bool = False
    scale: float = 1.0


_CPU_PER_REQUEST = _Column("CPU ms/request", "cpu_ms_per_request", 4)
_CPU_PER_CHUNK = _Column("CPU ms/chunk", "cpu_ms_per_chunk", 4)

_COLUMNS: dict[Kind, tuple[_Column, ...]] = {
    "whole": (
        _CPU_PER_REQUEST,
        _Column("requests/s", "rps"),
        _Column("p50 µs", "lat_p50"),
        _Column("p99 µs", "lat_p99"),
    ),
    "stream": (
        _CPU_PER_CHUNK,
        _Column("chunks/s", "events_per_s"),
        _Column("TTFT p50 +µs", "ttft_p50", is_added=True),
        _Column("relay p50 +µs", "relay_p50", is_added=True),
        _Column("relay p99 +µs", "relay_p99", is_added=True),
        _Column("chunks/read", "chunks_per_read", 2),
    ),
    "upload": (
        _CPU_PER_REQUEST,
        _Column("p50 ms", "lat_p50", 1, scale=1e-3),
        _Column("p50 +ms", "lat_p50", 1, is_added=True, scale=1e-3),
        _Column("memory MB", "rss_mb"),
    ),
}
"""By kind of scenario; the first one is what counts."""


def tables(results: Results) -> list[Table]:
    """Return a table for each scenario, one for one core, one for starts."""
    found = [_scenario(results, name) for name in results.rounds]
    if results.one_core:
        found.append(_one_core(results.one_core))
    if results.starts:
        found.append(_starts(results))
    return found


def _scenario(results: Results, name: str) -> Table:
    scenario = SCENARIOS[name]
    heading = f"{name}: {scenario.about}"
    return _samples(results, name, heading, _COLUMNS[scenario.kind])


def _one_core(rounds: list[Round]) -> Table:
    alone = Results({"core": rounds})
    return _samples(alone, "core", "core: ns32, the servers on one core, all else on the others", _COLUMNS["whole"])


def _samples(results: Results, name: str, heading: str, columns: tuple[_Column, ...]) -> Table:
    cost = columns[0].figure
    targets = dict.fromkeys(target for each in results.rounds[name] for target in each)
    rows = [
        (
            target,
            *(_cell(results, name, target, column) for column in columns),
            _number(None if target == DIRECT else results.ratio(name, target, NGINX, cost), 1),
            _number(results.median(name, target, "cores"), 2),
            str(sum(sample.failures for sample in results.samples(name, target)) or ""),
        )
        for target in targets
    ]
    names = (*(column.name for column in columns), "CPU / nginx", "cores", "failed")
    return Table(heading + _loud(results.rounds[name]), ("target", *names), rows)


def _cell(results: Results, scenario: str, target: str, column: _Column) -> str:
    if target == DIRECT and (column.is_added or column.figure.startswith("cpu")):
        return ""
    take = results.added if column.is_added else results.median
    value = take(scenario, target, column.figure)
    return _number(None if value is None else value * column.scale, column.digits)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _loud(rounds: Sequence[Round]) -> str:
    others = max(map(loudness, rounds), default=0.0)
    return f" (others kept up to {others:.1f} cores busy)" if others > 0.1 else ""


def _starts(results: Results) -> Table:
    rows = [
        (name, f"{each.seconds:.2f}", f"{each.idle_mb:.0f}", f"{each.after_mb:.0f}")
        for name, each in results.starts.items()
    ]
    return Table("alone", ("server", "first answer s", "idle MB", "MB after 100 × 10 MB"), rows)


def figures_table(found: Sequence[Verdict]) -> Table:
    """Return what is to be reached, and what was."""
    words = {True: "yes", False: "NO", None: "?"}
    rows = [(each.figure, each.wanted, each.reached, words[each.passed]) for each in found]
    return Table("figures", ("figure", "to reach", "reached", "passed"), rows, is_numeric=False)


def checks_table(results: Results) -> Table:
    """Return what each server did when something went wrong."""
    servers = list(results.checks)
    names = dict.fromkeys(name for found in results.checks.values() for name in found)
    rows = [(name, *(_check(results, server, name) for server in servers)) for name in names]
    return Table("behaviour", ("check", *servers), rows, is_numeric=False)


def _check(results: Results, server: str, name: str) -> str:
    found = results.checks[server].get(name)
    if found is None:
        return ""
    passed, seen = found
    return seen if passed else f"✗ {seen}"


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    rule = "---:" if table.is_numeric else "---"
    lines = [_line(table.columns), _line(["---", *[rule] * (len(table.columns) - 1)])]
    return "\n".join([*lines, *(_line(row) for row in table.rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
