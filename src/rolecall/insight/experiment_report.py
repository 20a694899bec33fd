"""What came out of an experiment: variants compared with the control, and what to know before believing it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rolecall.core.experiments import Experiment
from rolecall.core.sequential import ALPHA, FIRST_PAIRS, LEAST_PAIRS, Evidence, split_evidence
from rolecall.insight.experiment_lines import Material
from rolecall.insight.experiment_reading import AS_LOGARITHMS, Arm, Reading, is_yes_or_no

Verdict = Literal[
    "better", "worse", "was better", "was worse", "not enough data", "no difference seen", "incomplete log"
]

_DOUBTED_BELOW = 0.001
"""Shares less likely than that are told: most often something is wrong then, and not with the dice."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against the control. ``difference``, ``low`` and ``high`` are of means, or ratios less 1.

    ``needed`` is how many more requests, keys or sessions of the two would establish what is seen, if it is true.
    ``strongest_at`` is after about how many of them the evidence was strongest, where it was once enough: from there
    the verdict has its direction, and "was better", "was worse" say that the difference of all is on the other side. Of
    a log in which lines may be missing there is the difference alone.
    """

    variant: str
    pairs: int
    differing: int
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    verdict: Verdict
    needed: int | None
    strongest_at: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All of it; ``remarks`` are what to know before believing it. ``is_complete``: no line can be missing."""

    experiment: Experiment
    arms: Sequence[Arm]
    comparisons: Sequence[Comparison]
    alpha: float
    forced: int
    is_complete: bool
    remarks: Sequence[str]

    @property
    def is_ratio(self) -> bool:
        """Whether differences are relative."""
        return self.experiment.metric in AS_LOGARITHMS

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
            "is_complete": self.is_complete,
            "variants": [arm.summary() for arm in self.arms],
            "comparisons": [
                {name: getattr(each, name) for name in Comparison.__dataclass_fields__} for each in self.comparisons
            ],
            "remarks": list(self.remarks),
        }


def report_on(experiment: Experiment, material: Material, now: float) -> Report:
    """Return the report on an experiment at ``now`` (s since the epoch).

    Where lines may be missing nothing is established: which of them are left changes from look to look, and what is
    read anew each time would be a test that is begun anew each time.
    """
    reading, gaps = Reading(experiment, material.judgements, now), material.gaps
    for line in material.lines:
        reading.add(line)
    reading.end()
    alpha = ALPHA / max(1, len(reading.tests))  # Bonferroni: one of several comparisons may be wrong by chance
    comparisons = [
        _described(name, evidence, experiment) if gaps else _tested(name, evidence, reading, alpha)
        for name, (_, evidence) in reading.tests.items()
    ]
    tails = [] if gaps else [tail for name, (_, evidence) in reading.tests.items() for tail in _tails(name, evidence)]
    remarks = [*gaps, *material.notes, *tails, *_remarks(experiment, reading)]
    return Report(experiment, list(reading.arms.values()), comparisons, alpha, reading.forced, not gaps, remarks)


def _described(name: str, evidence: Evidence, experiment: Experiment) -> Comparison:
    difference = _shown(evidence.mean, experiment)
    return Comparison(
        name, evidence.pairs, evidence.differing, difference, None, None, None, "incomplete log", needed=None
    )


def _tested(name: str, evidence: Evidence, reading: Reading, alpha: float) -> Comparison:
    experiment = reading.experiment
    low, high = evidence.bounds(alpha)
    needed = strongest_at = None
    seen = reading.arms[name].compared + reading.arms[experiment.control_name].compared
    if evidence.p_value <= alpha:
        verdict = _found(evidence, experiment)
        strongest_at = round(evidence.strongest_at * seen / evidence.pairs)
    else:
        needed = evidence.pairs_needed(alpha)
        verdict = "not enough data" if needed is not None or not evidence.is_enough else "no difference seen"
    more = None if needed is None else math.ceil(max(0, needed - evidence.pairs) * seen / evidence.pairs)
    return Comparison(
        name,
        evidence.pairs,
        evidence.differing,
        _shown(evidence.mean, experiment),
        None if low is None else _shown(low, experiment),
        None if high is None else _shown(high, experiment),
        evidence.p_value,
        verdict,
        more,
        strongest_at,
    )


def _tails(name: str, evidence: Evidence) -> Iterator[str]:
    for above, side in ((True, "upper"), (False, "lower")):
        if evidence.is_enough and not evidence.is_known(above=above):
            yield (
                f"the pairs of {name} are lopsided (skewness {evidence.skewness:.1f}): how far the long tail moves the "
                f"mean is not known yet, so the interval has no {side} end"
            )


def _found(evidence: Evidence, experiment: Experiment) -> Verdict:
    """Return what was established: its direction is that of the strongest evidence, whatever the mean is by now."""
    is_better = evidence.is_positive is not experiment.is_lower_better
    if evidence.is_positive is (evidence.total > 0):
        return "better" if is_better else "worse"
    return "was better" if is_better else "was worse"


def _shown(difference: float, experiment: Experiment) -> float:
    return math.expm1(min(difference, 700.0)) if experiment.metric in AS_LOGARITHMS else difference


def _remarks(experiment: Experiment, reading: Reading) -> list[str]:
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
    if reading.still_open:
        found.append(
            f"{reading.still_open} keys or sessions began less than {experiment.window_h:g} h ago, and count later"
        )
    return found


def words(comparison: Comparison, report: Report) -> str:
    """Return what a comparison comes to, in a sentence."""
    experiment = report.experiment
    unit = {"key": "keys", "session": "sessions", None: "requests"}[experiment.sticky]
    if comparison.strongest_at is not None:
        return _established(comparison, experiment.control_name, unit)
    if comparison.verdict == "incomplete log":
        return "no verdict: lines may be missing"
    if comparison.verdict == "no difference seen":
        return "no difference in sight"
    if comparison.needed is None:
        few, least = f"{comparison.differing} pairs that differ", FIRST_PAIRS
        if comparison.pairs < LEAST_PAIRS and not is_yes_or_no(experiment):
            few, least = f"{comparison.pairs} pairs", LEAST_PAIRS
        return f"not enough data yet: {few}, the test needs {least}"
    more = f"about {comparison.needed:,} more {unit} of the two" if comparison.needed else "a few more"
    return f"not enough data yet: if it is as it looks, {more} will tell"


def _established(comparison: Comparison, control: str, unit: str) -> str:
    by = f"established by about {comparison.strongest_at:,} {unit}"
    if comparison.verdict in {"was better", "was worse"}:
        side = "the difference of all of them is on the other side"
        return f"{comparison.variant} {comparison.verdict} than {control}: {by}, and no longer seen, as {side}"
    found = f"{comparison.variant} is {comparison.verdict} than {control}"
    if (comparison.low or 0) > 0 or (comparison.high or 0) < 0:
        return found
    return f"{found}: {by}, though the interval of all of them does not exclude 0 now"
