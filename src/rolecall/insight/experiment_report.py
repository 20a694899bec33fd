"""What came out of an experiment, from the lines of the request log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

import orjson

from rolecall.core.experiments import Experiment
from rolecall.core.sequential import ALPHA, FIRST_PAIRS, Evidence, Pairing, split_evidence
from rolecall.insight.feedback import Feedback
from rolecall.insight.log_reader import newest_first, open_parts, parse_entry, parse_time

Fields = Mapping[str, Any]
Verdict = Literal["better", "worse", "not enough data", "no difference seen"]

_AS_LOGARITHMS = frozenset({"ttft_ms", "duration_ms", "tokens_per_second", "completion_tokens"})
"""Positive and skewed: a variant multiplies them, and one that took an hour is not to outweigh all others."""
_DOUBTED_BELOW = 0.001
"""Shares less likely than that are told: most often something is wrong then, and not with the dice."""
_HOUR_S = 3600.0
_FIRST_LINE = 2**20


@dataclass(slots=True)
class Arm:
    """What is known of one variant. ``requests`` are those that were assigned to it, whatever became of them."""

    name: str
    requests: int = 0
    units: int = 0
    compared: int = 0
    fallbacks: int = 0
    kept: int = 0
    successes: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: Any) -> None:
        """Take in a number of a request."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.values.setdefault(name, []).append(value)

    def summary(self) -> dict[str, Any]:
        """Return counts, the share of successes, medians, and the mean score."""
        scores = self.values.get("feedback", [])
        medians = {name: median(self.values[name]) if name in self.values else None for name in sorted(_AS_LOGARITHMS)}
        return {
            "variant": self.name,
            "requests": self.requests,
            "units": self.units,
            "compared": self.compared,
            "fallbacks": self.fallbacks,
            "kept": self.kept,
            "success": self.successes / self.requests if self.requests else None,
            **{f"median_{name}": value for name, value in medians.items()},
            "feedback": sum(scores) / len(scores) if scores else None,
            "feedbacks": len(scores),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against the control. ``difference``, ``low`` and ``high`` are of means, or ratios less 1.

    ``needed`` is how many more requests, keys or sessions of the two would establish what is seen, if it is true.
    """

    variant: str
    pairs: int
    differing: int
    difference: float
    low: float | None
    high: float | None
    p_value: float
    verdict: Verdict
    needed: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """All of it; ``remarks`` are what to know before believing it."""

    experiment: Experiment
    arms: Sequence[Arm]
    comparisons: Sequence[Comparison]
    alpha: float
    forced: int
    remarks: Sequence[str]

    @property
    def is_ratio(self) -> bool:
        """Whether differences are relative."""
        return self.experiment.metric in _AS_LOGARITHMS

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        experiment = self.experiment
        return {
            "experiment": experiment.name,
            "concerns": experiment.concerns,
            "metric": experiment.metric,
            "better": "lower" if experiment.is_lower_better else "higher",
            "unit": experiment.sticky or "request",
            "control": experiment.control_name,
            "differences_are": "relative" if self.is_ratio else "absolute",
            "alpha": self.alpha,
            "forced": self.forced,
            "variants": [arm.summary() for arm in self.arms],
            "comparisons": [
                {name: getattr(each, name) for name in Comparison.__dataclass_fields__} for each in self.comparisons
            ],
            "remarks": list(self.remarks),
        }


@dataclass(slots=True)
class _Unit:
    """A key or session: its variant, when it began, and its mean within its window."""

    variant: str
    since: float
    total: float = 0.0
    count: int = 0


class _Reading:
    """Takes in lines, oldest first."""

    def __init__(self, experiment: Experiment, feedback: Mapping[str, Feedback], now: float) -> None:
        self._experiment = experiment
        self._feedback = feedback
        self._now = now
        self._start, self._end = experiment.span
        self.arms = {name: Arm(name) for name in experiment.variants}
        self.units: dict[str, _Unit] = {}
        self.forced = self.unknown = self.moved = self.without_unit = 0
        others = [name for name in experiment.variants if name != experiment.control_name]
        self.tests = {name: (Pairing(), Evidence()) for name in others}

    def add(self, line: Fields) -> None:
        moment = parse_time(str(line.get("ts")))
        at = moment.timestamp() if moment else math.nan
        if not (self._start or 0) <= at < (self._end or math.inf):
            return
        if "forced" in str(line.get("variant_note") or ""):
            self.forced += 1
        elif (arm := self.arms.get(str(line.get("variant")))) is None:
            self.unknown += 1
        elif self._experiment.sticky is None:
            arm.units += 1
            self._count(arm, line)
            if (value := self._value(line)) is not None:
                self.compare(arm.name, value)
        else:
            self._add_to_unit(arm, line, at)

    def _add_to_unit(self, arm: Arm, line: Fields, at: float) -> None:
        name = line.get("experiment_unit")
        if not isinstance(name, str):
            self.without_unit += 1
            return
        unit = self.units.get(name)
        if unit is None:
            unit = self.units[name] = _Unit(arm.name, at)
            arm.units += 1
        if unit.variant != arm.name:
            self.moved += 1
            return
        self._count(arm, line)
        value = self._value(line) if at < unit.since + self._experiment.window_h * _HOUR_S else None
        if value is not None:
            unit.total += value
            unit.count += 1

    def _count(self, arm: Arm, line: Fields) -> None:
        arm.requests += 1
        note = str(line.get("variant_note") or "")
        arm.fallbacks += "fallback" in note
        arm.kept += "kept" in note
        score = self._score(line)
        arm.note("feedback", score)
        if _is_success(line):
            arm.successes += 1
            for name in _AS_LOGARITHMS:
                arm.note(name, line.get(name))

    def _score(self, line: Fields) -> float | None:
        found = self._feedback.get(str(line.get("request_id")))
        return None if found is None else found.score

    def _value(self, line: Fields) -> float | None:
        """Return what counts of a line; None where it has no such thing: a failure has no duration to be proud of."""
        metric = self._experiment.metric
        if metric == "success":
            return float(_is_success(line))
        if metric == "feedback":
            return self._score(line)
        value = line.get(metric)
        if not _is_success(line) or not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return math.log(max(value, 1.0 if metric == "completion_tokens" else 1e-3))

    def compare(self, variant: str, value: float) -> None:
        """Let a value of a request or unit meet those of the variants that it is compared with."""
        self.arms[variant].compared += 1
        is_control = variant == self._experiment.control_name
        for pairing, evidence in self.tests.values() if is_control else [self.tests[variant]]:
            for difference in pairing.add(value, of_variant=not is_control):
                evidence.add(difference)

    def close_units(self) -> int:
        """Compare the units whose windows are over, in the order in which they began; returns how many are not."""
        still_open = 0
        window_s, over = self._experiment.window_h * _HOUR_S, self._end is not None and self._end <= self._now
        for unit in sorted(self.units.values(), key=lambda unit: unit.since):
            if unit.since + window_s > self._now and not over:
                still_open += 1
            elif unit.count:
                self.compare(unit.variant, unit.total / unit.count)
        return still_open


def _is_success(line: Fields) -> bool:
    status = line.get("status")
    return isinstance(status, int) and status < 400 and not line.get("error")


def lines_of(log_path: Path, experiment: str) -> tuple[list[Fields], datetime | None]:
    """Return the lines of a log and its rotated files that name an experiment, oldest first, and when the log begins.

    Raises ``OSError`` for a file that cannot be read.
    """
    needle = b'"experiment":' + orjson.dumps(experiment)
    with ExitStack() as stack:
        parts = open_parts(log_path, stack)
        entries = (parse_entry(raw) for raw in newest_first(parts) if needle in raw)
        found = [
            entry.fields for entry in entries if entry is not None and entry.fields.get("experiment") == experiment
        ]
        begins = None
        if parts:
            parts[-1].file.seek(0)
            first = parse_entry(parts[-1].file.read(_FIRST_LINE).partition(b"\n")[0])
            begins = None if first is None else parse_time(first.fields["ts"])
    return found[::-1], begins


def report_on(experiment: Experiment, lines: Iterable[Fields], feedback: Mapping[str, Feedback], now: float) -> Report:
    """Return the report on an experiment from the lines that name it, oldest first; ``now`` in s since the epoch."""
    reading = _Reading(experiment, feedback, now)
    for line in lines:
        reading.add(line)
    still_open = reading.close_units()
    alpha = ALPHA / max(1, len(reading.tests))  # Bonferroni: one of several comparisons may be wrong by chance
    comparisons = [
        _compared(experiment, name, evidence, reading, alpha) for name, (_, evidence) in reading.tests.items()
    ]
    arms = list(reading.arms.values())
    return Report(experiment, arms, comparisons, alpha, reading.forced, _remarks(experiment, reading, still_open))


def _compared(experiment: Experiment, name: str, evidence: Evidence, reading: _Reading, alpha: float) -> Comparison:
    shown = _ratio if experiment.metric in _AS_LOGARITHMS else float
    half = evidence.half_width(alpha)
    needed = evidence.pairs_needed(alpha)
    if evidence.p_value <= alpha:
        verdict: Verdict = "better" if (evidence.mean < 0) is experiment.is_lower_better else "worse"
        needed = None
    else:
        verdict = "not enough data" if needed is not None or not evidence.is_enough else "no difference seen"
    seen = reading.arms[name].compared + reading.arms[experiment.control_name].compared
    more = None if needed is None else math.ceil(max(0, needed - evidence.pairs) * seen / evidence.pairs)
    return Comparison(
        name,
        evidence.pairs,
        evidence.differing,
        shown(evidence.mean),
        None if half is None else shown(evidence.mean - half),
        None if half is None else shown(evidence.mean + half),
        evidence.p_value,
        verdict,
        more,
    )


def _ratio(logarithm: float) -> float:
    return math.expm1(min(logarithm, 700.0))


def _remarks(experiment: Experiment, reading: _Reading, still_open: int) -> list[str]:
    arms = list(reading.arms.values())
    found = []
    weights = [variant.weight for variant in experiment.variants.values()]
    chance = split_evidence([arm.units for arm in arms], weights)
    if chance < _DOUBTED_BELOW:
        counts = ", ".join(f"{arm.name} {arm.units}" for arm in arms)
        found.append(
            f"the shares are not those of the weights ({counts}; chance {chance:.1g}): weights changed on the "
            "way, or lines that are missing for one variant; do not believe the comparison before you know why"
        )
    if reading.moved:
        found.append(f"{reading.moved} requests of keys or sessions that were given another variant later are left out")
    if reading.unknown:
        found.append(f"{reading.unknown} requests of variants that are not in the file any more are left out")
    if reading.without_unit:
        found.append(f"{reading.without_unit} requests from before the experiment was sticky are left out")
    for arm in arms:
        if arm.fallbacks:
            found.append(f"{arm.fallbacks} requests of {arm.name} were served otherwise, as its model could not")
        if arm.kept:
            found.append(f"{arm.kept} requests of {arm.name} kept parameters of their own")
    if still_open:
        found.append(f"{still_open} keys or sessions began less than {experiment.window_h:g} h ago, and count later")
    return found


def words(comparison: Comparison, report: Report) -> str:
    """Return what a comparison comes to, in a sentence."""
    experiment = report.experiment
    if comparison.verdict in {"better", "worse"}:
        return f"{comparison.variant} is {comparison.verdict} than {experiment.control_name}"
    unit = {"key": "keys", "session": "sessions", None: "requests"}[experiment.sticky]
    if comparison.differing < FIRST_PAIRS:
        found = f"{comparison.differing} pairs that differ, the test needs {FIRST_PAIRS}"
        return f"not enough data yet: {found}"
    if comparison.needed is not None:
        more = f"about {comparison.needed:,} more {unit} of the two" if comparison.needed else "a few more"
        return f"not enough data yet: if it is as it looks, {more} will tell"
    return "not enough data yet: no difference in sight"
