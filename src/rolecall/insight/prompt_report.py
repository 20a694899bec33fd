"""The report on prompts: its tables, in words that suit a terminal, a web page and Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from rolecall.insight.log_database import LogDatabase, Tally
from rolecall.insight.log_statistics import Conditions
from rolecall.insight.pairings import LEAST_REQUESTS, Pairing, pairings, percent
from rolecall.insight.prompt_figures import BINS, Figures, Scope, prompt_figures

NOTHING = "-"
MOST_PAIRS = 500
"""Pairs of prompt and model, the busiest ones, that tables show: more are no page that anybody could open."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is told of the prompts; ``scope`` is all there is, ``figures`` may be those of the busiest alone."""

    made: datetime
    scope: Scope
    least: int
    tally: Tally
    figures: Sequence[Figures]
    pairings: Sequence[Pairing]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "made": self.made.isoformat(),
            "first": self.scope.first and self.scope.first.isoformat(),
            "last": self.scope.last and self.scope.last.isoformat(),
            "requests": self.scope.requests,
            "least_requests": self.least,
            "log": {"lines": self.tally.lines, "broken": self.tally.broken, "wrong_values": self.tally.wrong},
            "figures": [each.as_dict() for each in self.figures],
            "pairings": [each.as_dict() for each in self.pairings],
        }

    def shown(self) -> Report:
        """Return it as tables show it: the busiest pairs in their order, and what is recommended for their prompts."""
        busiest = sorted(self.figures, key=lambda each: -each.values["requests"])[:MOST_PAIRS]
        keys = {each.key for each in busiest}
        prompts = {(each.prompt, each.version) for each in busiest}
        return replace(
            self,
            figures=[each for each in self.figures if each.key in keys],
            pairings=[each for each in self.pairings if (each.prompt, each.version) in prompts],
        )


@dataclass(frozen=True, slots=True)
class Table:
    """A table under a title; ``right`` are the columns of numbers, ``note`` explains."""

    title: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = frozenset()


def make_report(
    database: LogDatabase,
    conditions: Conditions,
    now: datetime,
    least: int = LEAST_REQUESTS,
    most: int | None = MOST_PAIRS,
) -> Report:
    """Return the report on the requests that are wanted: on all prompts if ``most`` is None, else on the busiest."""
    scope, found = prompt_figures(database, conditions, most)
    return Report(now, scope, least, database.tally, found, pairings(found, least))


def tables(report: Report) -> list[Table]:
    """Return the tables of a report, the one that recommends first."""
    report = report.shown()
    made = [
        _pairings(report),
        _outcomes(report),
        _speed(report),
        _lengths(report),
        _length_classes(report),
        _marked(report),
    ]
    return [table for table in made if table.rows]


def _named(each: Figures | Pairing) -> list[str]:
    model = each.model or NOTHING
    if isinstance(each, Figures) and not each.served:
        model = f"{each.model} (not reached)".strip()
    return [each.prompt, each.version or NOTHING, model]


def _pairings(report: Report) -> Table:
    return Table(
        "Recommended pairings",
        "The model that suits each prompt: success first, then refusals, then the median duration. A model is set "
        "aside only where the bounds of 95 % confidence do not meet those of the best; with fewer than "
        f"{report.least} requests nothing is said of it.",
        ("prompt", "version", "model", "why"),
        [[*_named(each), each.why] for each in report.pairings],
    )


def _outcomes(report: Report) -> Table:
    return Table(
        "Success",
        "Success: answers that came whole, of the requests whose client waited for them; the bounds have a confidence "
        "of 95 % (Wilson). Left: the client went before. Cut: ended by the limit of tokens. Refused: of the answers "
        "whose beginning was looked at.",
        ("prompt", "version", "model", "requests", "success", "from", "to", "left", "cut", "refused", "images"),
        [[*_named(each), *_outcome(each)] for each in report.figures],
        frozenset(range(3, 11)),
    )


def _outcome(each: Figures) -> Iterator[str]:
    low, high = each.success.bounds
    yield count(each.values["requests"])
    yield percent(each.success)
    yield from (f"{100 * low:.1f}", f"{100 * high:.1f}") if each.success.total else (NOTHING, NOTHING)
    yield from (count(each.values[name]) for name in ("left", "cut"))
    yield percent(each.refusals)
    yield count(each.values["images"])


def _speed(report: Report) -> Table:
    names = ("ttft_ms_p50", "ttft_ms_p90", "ttft_ms_p95", "ttft_ms_p99", "duration_ms_p50", "duration_ms_p95")
    return Table(
        "Speed",
        "Milliseconds to the first token (ttft, of streams) and to the end, percentiles of the answers that succeeded; "
        "tokens a second after the first one (of streams, median) and over all the time that was waited.",
        ("prompt", "version", "model", "ttft p50", "p90", "p95", "p99", "ms p50", "p95", "tok/s", "tok/s, all"),
        [
            [
                *_named(each),
                *(count(each.values[name]) for name in names),
                *(one_decimal(each.values[name]) for name in ("tokens_per_second_p50", "tokens_per_second_all")),
            ]
            for each in report.figures
        ],
        frozenset(range(3, 11)),
    )


def _lengths(report: Report) -> Table:
    names = [f"completion_tokens_p{share}" for share in (5, 25, 50, 75, 95)] + ["output_bytes_p50"]
    return Table(
        "Lengths",
        "Tokens of the prompt (mean, and in all) and of the answer (in all, and percentiles of those that succeeded); "
        "bytes of what the model wrote, median.",
        ("prompt", "version", "model", "in", "in, all", "out, all", "out p5", "p25", "p50", "p75", "p95", "bytes p50"),
        [
            [
                *_named(each),
                *(count(each.values[name]) for name in ("prompt_tokens_mean", "prompt_tokens", "completion_tokens")),
                *(count(each.values[name]) for name in names),
            ]
            for each in report.figures
        ],
        frozenset(range(3, 12)),
    )


def _length_classes(report: Report) -> Table:
    classes = length_classes()
    return Table(
        "Classes of lengths",
        "Percent of the answers that succeeded, by their tokens: each class goes from its number to the next one.",
        ("prompt", "version", "model", "answers", *classes),
        [
            [*_named(each), count(sum(each.lengths)), *map(one_decimal, each.length_shares)]
            for each in report.figures
            if any(each.lengths)
        ],
        frozenset(range(3, 4 + len(classes))),
    )


def _marked(report: Report) -> Table:
    groups = sorted({group for each in report.figures for group in each.markers})
    return Table(
        "Markers",
        "Groups of phrases at the beginning of answers, of those that were looked at.",
        ("prompt", "version", "model", "looked at", *groups),
        [
            [*_named(each), count(each.values["looked_at"]), *(percent(each.marked(group)) for group in groups)]
            for each in report.figures
            if groups and each.values["looked_at"]
        ],
        frozenset(range(3, 4 + len(groups))),
    )


def length_classes() -> list[str]:
    """Return the names of the classes of answers' lengths: where each begins, in tokens."""
    return [str(low) if low < BINS[-1] else f"{low}+" for low in BINS]


def count(value: float | None) -> str:
    """Return a whole number for people, thousands apart; a dash for nothing."""
    return NOTHING if value is None else f"{value:,.0f}"


def one_decimal(value: float | None) -> str:
    """Return a number with one decimal; a dash for nothing."""
    return NOTHING if value is None else f"{value:,.1f}"
