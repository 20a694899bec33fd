"""Takes in the lines of an experiment: counts and figures of each variant, and their values for the test.

The test holds at every look only if later looks add to what earlier ones saw, and change nothing of it. So values come
in the order in which they became known, for good: that of the log's lines, of the first scores, and of the ends of the
windows of keys and sessions.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rolecall.core.experiments import Experiment
from rolecall.core.sequential import Evidence, Pairing
from rolecall.insight.feedback import Judgement
from rolecall.insight.log_reader import Fields, parse_time

AS_LOGARITHMS = frozenset({"ttft_ms", "duration_ms", "tokens_per_second", "completion_tokens"})
"""Positive and skewed: a variant multiplies them, and one that took an hour is not to outweigh all others."""
_HOUR_S = 3600.0


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
    values: dict[str, array[float]] = field(default_factory=dict)

    def note(self, name: str, value: Any) -> None:
        """Take in a number of a request."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.values.setdefault(name, array("d")).append(value)

    def summary(self) -> dict[str, Any]:
        """Return counts, the share of successes, medians, and the mean score."""
        scores = self.values.get("feedback", array("d"))
        medians = {name: median(self.values[name]) if name in self.values else None for name in sorted(AS_LOGARITHMS)}
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


@dataclass(slots=True)
class _Unit:
    """A key or session: its variant, when it began, until when it is looked at, and its mean so far."""

    variant: str
    since: float
    until: float
    total: float = 0.0
    count: int = 0


class Reading:
    """Takes in lines in the order of the log."""

    def __init__(self, experiment: Experiment, judgements: Mapping[str, Judgement], now: float) -> None:
        self.experiment = experiment
        self._judgements = judgements
        self._now = now
        start, end = experiment.span
        self._start, self._end = start or 0.0, math.inf if end is None else end
        self.arms = {name: Arm(name) for name in experiment.variants}
        self.forced = self.unknown = self.moved = self.without_unit = self.still_open = 0
        others = [name for name in experiment.variants if name != experiment.control_name]
        self.tests = {name: (Pairing(), Evidence(is_yes_or_no(experiment))) for name in others}
        self._units: dict[str, _Unit] = {}
        self._scores: list[tuple[int, str, float]] = []

    def add(self, line: Fields) -> None:
        """Take in the next line."""
        moment = parse_time(str(line.get("ts")))
        at = moment.timestamp() if moment else math.nan
        if not self._start <= at < self._end:
            return
        if "forced" in _noted(line):
            self.forced += 1
        elif (arm := self.arms.get(str(line.get("variant")))) is None:
            self.unknown += 1
        elif self.experiment.sticky is not None:
            self._add_to_unit(arm, line, at)
        else:
            arm.units += 1
            self._count(arm, line)
            self._add_alone(arm, line)

    def end(self) -> None:
        """Compare what does not come in the order of the lines; called once, after the last of them."""
        for _, variant, score in sorted(self._scores):
            self._compare(variant, score)
        for unit in sorted(self._units.values(), key=lambda unit: unit.since):
            if unit.until > self._now:
                self.still_open += 1
            elif unit.count:
                self._compare(unit.variant, unit.total / unit.count)

    def _count(self, arm: Arm, line: Fields) -> None:
        arm.requests += 1
        noted = _noted(line)
        arm.fallbacks += "fallback" in noted
        arm.kept += "kept" in noted
        if (judgement := self._judgement(line)) is not None:
            arm.note("feedback", judgement.said.score)
        if _is_success(line):
            arm.successes += 1
            for name in AS_LOGARITHMS:
                arm.note(name, line.get(name))

    def _add_alone(self, arm: Arm, line: Fields) -> None:
        value = self._value(line)
        if value is None:
            return
        if self.experiment.metric != "feedback":
            self._compare(arm.name, value)
        elif (judgement := self._judgement(line)) is not None:
            self._scores.append((judgement.first_place, arm.name, value))

    def _add_to_unit(self, arm: Arm, line: Fields, at: float) -> None:
        name = line.get("experiment_unit")
        if not isinstance(name, str):
            self.without_unit += 1
            return
        unit = self._units.get(name)
        if unit is None:
            until = min(at + self.experiment.window_h * _HOUR_S, self._end)
            unit = self._units[name] = _Unit(arm.name, at, until)
            arm.units += 1
        if unit.variant != arm.name:
            self.moved += 1
            return
        self._count(arm, line)
        value = self._value(line)
        if value is not None and self._known_at(line, at) <= unit.until:
            unit.total += value
            unit.count += 1

    def _known_at(self, line: Fields, at: float) -> float:
        """Return when a value became known (s since the epoch): what comes later does not change a closed window."""
        if self.experiment.metric == "feedback":
            judgement = self._judgement(line)
            return math.inf if judgement is None else judgement.first_at
        took = line.get("duration_ms")
        return at + (took / 1e3 if isinstance(took, int | float) else 0)

    def _judgement(self, line: Fields) -> Judgement | None:
        return self._judgements.get(str(line.get("request_id")))

    def _value(self, line: Fields) -> float | None:
        """Return what counts of a line; None where it has no such thing: a failure has no duration to be proud of."""
        metric = self.experiment.metric
        if metric == "success":
            return float(_is_success(line))
        if metric == "feedback":
            judgement = self._judgement(line)
            return None if judgement is None else judgement.first_score
        value = line.get(metric)
        if not _is_success(line) or not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return math.log(max(value, 1.0 if metric == "completion_tokens" else 1e-3))

    def _compare(self, variant: str, value: float) -> None:
        """Let a value of a request or unit meet those of the variants that it is compared with."""
        self.arms[variant].compared += 1
        is_control = variant == self.experiment.control_name
        for pairing, evidence in self.tests.values() if is_control else [self.tests[variant]]:
            for difference in pairing.add(value, of_variant=not is_control):
                evidence.add(difference)


def is_yes_or_no(experiment: Experiment) -> bool:
    """Whether what is compared is 0 or 1; scores may be, but nobody has promised it, and units have means."""
    return experiment.metric == "success" and experiment.sticky is None


def _noted(line: Fields) -> set[str]:
    """Return what is noted of a line, ``kept`` of ``kept temperature``; the names behind it may be anything."""
    return {note.partition(" ")[0] for note in str(line.get("variant_note") or "").split("; ")}


def _is_success(line: Fields) -> bool:
    status = line.get("status")
    return isinstance(status, int) and status < 400 and not line.get("error")
