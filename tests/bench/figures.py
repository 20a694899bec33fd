"""What is to be reached, and whether it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.results import DIRECT, Results
from bench.rolecalls import FULL_NAME as OURS
from bench.rolecalls import NAMES
from bench.scenarios import STSAT

NGINX = "nginx"
LITELLM = "litellm"

BEHAVIOUR = "behaviour when something goes wrong"

MOST_STARTUP_S = 0.6
MOST_IDLE_MB = 60
MOST_LEFT_MB = 64
MOST_UPLOAD_MS = 12
FULL_CORE = 0.85
"""A server that uses less of its core was held up by upstream and clients, which have the others."""
ENOUGH_OF_OFFERED = 0.98
"""What counts as all: the ends of streams fall where they will."""


@dataclass(frozen=True)
class Verdict:
    """One figure. ``passed`` is None where it was not measured, and ``reached`` says why."""

    figure: str
    wanted: str
    reached: str
    passed: bool | None

    @classmethod
    def unknown(cls, figure: str, wanted: str, why: str = "not measured") -> Verdict:
        """Return one that nobody knows."""
        return cls(figure, wanted, why, None)


def verdicts(results: Results) -> list[Verdict]:
    """Return all figures, in the order in which they matter."""
    start = results.starts.get(OURS)
    return [
        _cost(results, "ns32", "CPU per request, 32 connections", 6),
        _cost(results, "ns128", "CPU per request, 128 connections", 6),
        _one_core(results, NGINX, 0.2),
        _one_core(results, LITELLM, 100),
        _cost(results, STSAT.name, "CPU per chunk, 128 streams", 1.5, "cpu_ms_per_chunk"),
        _saturated(results),
        _delay(results, "ttft_p50", "TTFT added, 32 streams, median", 4),
        _delay(results, "relay_p99", "relay delay added, 32 streams, 99 of 100", 2),
        _upload(results),
        _left_behind(results),
        _below("start to the first answer", start.seconds if start else None, MOST_STARTUP_S, "s", 2),
        _below("import of what serves", results.import_s, MOST_STARTUP_S, "s", 3),
        _below("memory when idle", start.idle_mb if start else None, MOST_IDLE_MB, "MB", 1),
        _behaviour(results),
    ]


def all_reached(found: Sequence[Verdict]) -> bool:
    """Whether nothing that was measured fell short."""
    return all(verdict.passed is not False for verdict in found)


def only_behaviour(found: Sequence[Verdict]) -> list[Verdict]:
    """Return them with nothing judged but how rolecall behaves."""
    return [each if each.figure == BEHAVIOUR else replace(each, passed=None) for each in found]


def _cost(results: Results, scenario: str, figure: str, most: float, measure: str = "cpu_ms_per_request") -> Verdict:
    wanted = f"≤ {most:g} × nginx"
    ratio = results.ratio(scenario, OURS, NGINX, measure)
    own, its = results.median(scenario, OURS, measure), results.median(scenario, NGINX, measure)
    if ratio is None or own is None or its is None:
        return Verdict.unknown(figure, wanted)
    return Verdict(figure, wanted, f"{ratio:.1f} × ({own:.4f} ms, nginx {its:.4f})", ratio <= most)


def _one_core(results: Results, peer: str, least: float) -> Verdict:
    figure, wanted = "requests/s on one core, 32 connections", f"≥ {least:g} × {peer}"
    alone = Results({"core": results.one_core})
    ratio, own = alone.ratio("core", OURS, peer, "rps"), alone.median("core", OURS, "rps")
    if ratio is None or own is None:
        return Verdict.unknown(figure, wanted)
    its = alone.median("core", peer, "rps") or 0
    held = alone.median("core", peer, "cores") or 0
    note = "" if held > FULL_CORE else f", which had {held:.1f} cores of work"
    return Verdict(
        figure,
        wanted,
        f"{ratio:{',.0f' if ratio >= 10 else '.2g'}} × ({own:,.0f}, {peer} {its:,.0f}{note})",
        ratio >= least,
    )


def _saturated(results: Results) -> Verdict:
    """Compare with what the upstream gets rid of without anybody between: the gaps between streams are its own."""
    figure, wanted = "chunks/s, 128 streams", "= offered"
    share = results.ratio(STSAT.name, OURS, DIRECT, "events_per_s")
    own, offered = (results.median(STSAT.name, name, "events_per_s") for name in (OURS, DIRECT))
    if share is None or own is None or offered is None:
        return Verdict.unknown(figure, wanted)
    late = results.median(STSAT.name, OURS, "relay_p50") or 0
    is_all = share >= ENOUGH_OF_OFFERED and late < STSAT.every_ms * 1000
    return Verdict(figure, wanted, f"{own:,.0f} of {offered:,.0f}, {late / 1000:.1f} ms late", is_all)


def _delay(results: Results, measure: str, figure: str, most: float) -> Verdict:
    wanted = f"≤ {most:g} × nginx"
    own, its = (results.added("st32", name, measure) for name in (OURS, NGINX))
    if own is None or its is None:
        return Verdict.unknown(figure, wanted)
    if its <= 0:
        return Verdict.unknown(figure, wanted, f"{own:,.0f} µs, but nginx adds nothing: the machine was too loud")
    return Verdict(figure, wanted, f"{own / its:.1f} × ({own:,.0f} µs, nginx {its:,.0f})", own / its <= most)


def _upload(results: Results) -> Verdict:
    figure, wanted = "time added to a body of 10 MB", f"≤ {MOST_UPLOAD_MS} ms"
    added, its = (results.added("up1", name, "lat_p50") for name in (OURS, NGINX))
    if added is None:
        return Verdict.unknown(figure, wanted)
    beside = "" if its is None else f" (nginx {its / 1000:.1f})"
    return Verdict(figure, wanted, f"{added / 1000:.1f} ms{beside}", added <= MOST_UPLOAD_MS * 1000)


def _left_behind(results: Results) -> Verdict:
    figure, wanted = "memory after 100 bodies of 10 MB", f"≤ idle + {MOST_LEFT_MB} MB"
    start = results.starts.get(OURS)
    if start is None:
        return Verdict.unknown(figure, wanted)
    left = start.after_mb - start.idle_mb
    return Verdict(figure, wanted, f"idle {'-' if left < 0 else '+'} {abs(left):.0f} MB", left <= MOST_LEFT_MB)


def _below(figure: str, value: float | None, most: float, unit: str, digits: int) -> Verdict:
    wanted = f"< {most:g} {unit}"
    if value is None:
        return Verdict.unknown(figure, wanted)
    return Verdict(figure, wanted, f"{value:.{digits}f} {unit}", value < most)


def _behaviour(results: Results) -> Verdict:
    figure, wanted = BEHAVIOUR, "all checks"
    ours = [(name, passed) for server in NAMES for name, (passed, _) in results.checks.get(server, {}).items()]
    if not ours:
        return Verdict.unknown(figure, wanted)
    failed = sorted({name for name, passed in ours if not passed})
    said = f"{len(ours) - sum(not passed for _, passed in ours)} of {len(ours)}"
    return Verdict(figure, wanted, f"{said}{', not: ' * bool(failed)}{', '.join(failed)}", not failed)
