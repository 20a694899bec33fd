"""What an experiment's report says, from lines of the log."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

from rolecall.core.experiments import Experiment
from rolecall.gateway.recorder import timestamp
from rolecall.insight.experiment_report import Report, lines_of, report_on, words
from rolecall.insight.feedback import Feedback
from rolecall.insight.log_reader import parse_time

NOW = 1_800_000_000.0
HOUR = 3600


def made(**fields: Any) -> Experiment:
    """Return an experiment with the variants ``a``, the control, and ``b``."""
    return Experiment.model_validate({"name": "e", "role": "r", "variants": {"a": {}, "b": {}}, **fields})


def line(variant: str, at: float = NOW - 48 * HOUR, **fields: Any) -> dict[str, Any]:
    """Return a line of a request that succeeded."""
    known = {"ts": timestamp(at), "request_id": "r", "status": 200, "error": None, "experiment": "e"}
    return {**known, "variant": variant, "duration_ms": 100.0, **fields}


def report(lines: Iterable[dict[str, Any]], feedback: dict[str, Feedback] | None = None, **fields: Any) -> Report:
    """Return the report on an experiment like ``made``."""
    return report_on(made(**fields), lines, feedback or {}, NOW)


def alternating(count: int, seed: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Return lines of both variants; a callable makes a field of the random numbers and whether it is ``b``."""
    rng, found = random.Random(seed), []
    for number in range(count):
        is_b = bool(number % 2)
        values = {name: value(rng, is_b) for name, value in fields.items()}
        found.append(line("b" if is_b else "a", **values))
    return found


def test_a_slower_variant_is_told() -> None:
    """Durations are compared as ratios; what is established needs no more requests."""
    lines = alternating(800, duration_ms=lambda rng, is_b: rng.lognormvariate(0.3 if is_b else 0, 0.5) * 100)
    found = report(lines, metric="duration_ms")
    (comparison,) = found.comparisons
    assert (comparison.verdict, comparison.needed, found.is_ratio) == ("worse", None, True)
    assert 0 < (comparison.low or 0) < 0.35 < (comparison.high or 0)
    assert words(comparison, found) == "b is worse than a"
    assert report(lines, metric="duration_ms", better="higher").comparisons[0].verdict == "better"


def test_failures_count_as_such() -> None:
    """The success rate counts errors, broken streams and clients that left; durations count successes alone."""
    kinds: list[dict[str, Any]] = [
        {"status": 500, "error": "x"},
        {"status": 200, "error": "broke"},
        {"status": 499, "error": "client_gone"},
    ]
    lines = [line("a"), *(line("a", **kind) for kind in kinds), line("b")]
    arm = report(lines).arms[0]
    assert (arm.requests, arm.successes, arm.compared) == (4, 1, 4)
    assert report(lines, metric="duration_ms").arms[0].compared == 1


def test_little_is_told_as_little() -> None:
    """Two hundred requests of which hardly any fail are no comparison, and ten say how many pairs are missing."""
    found = report(alternating(10, status=lambda rng, is_b: 200 if rng.random() < 0.5 else 500))
    assert words(found.comparisons[0], found).startswith("not enough data yet: ")
    assert words(found.comparisons[0], found).endswith("the test needs 20")
    assert found.comparisons[0].verdict == "not enough data"
    nobody = report([])
    assert (nobody.comparisons[0].pairs, nobody.comparisons[0].low) == (0, None)
    assert nobody.as_dict()["variants"][0]["success"] is None


def test_how_many_more_are_needed() -> None:
    """A small difference says how many more requests would establish it; none at all says so."""
    lines = alternating(300, 4, duration_ms=lambda rng, is_b: rng.lognormvariate(0.1 if is_b else 0, 0.5) * 100)
    found = report(lines, metric="duration_ms")
    assert found.comparisons[0].needed is not None
    assert "if it is as it looks, about " in words(found.comparisons[0], found)
    same = [line("ab"[number % 2], duration_ms=100 + 50 * (number // 2 % 2) * (-1) ** number) for number in range(400)]
    none = report(same, metric="duration_ms")
    assert none.comparisons[0].needed is None or none.comparisons[0].needed > 0


def test_several_variants_share_the_risk() -> None:
    """Each is compared with the control, and each at half the risk."""
    variants: dict[str, Any] = {"a": {}, "b": {}, "c": {}}
    lines = [line("abc"[number % 3], status=500 if number % 3 == 2 else 200) for number in range(600)]
    found = report(lines, variants=variants, control="b")
    assert [comparison.variant for comparison in found.comparisons] == ["a", "c"]
    assert [comparison.verdict for comparison in found.comparisons] == ["not enough data", "worse"]
    assert found.alpha == pytest.approx(0.025)


def test_a_key_counts_once() -> None:
    """Whoever sends a thousand requests is one unit, by its mean, once its window is over; what is later is no part."""
    lines = [line("a", experiment_unit="u1", duration_ms=100.0) for _ in range(1000)]
    lines += [line("b", experiment_unit="u2"), line("b", experiment_unit="u3", at=NOW - HOUR)]
    found = report(lines, metric="duration_ms", sticky="key")
    assert [(arm.requests, arm.units, arm.compared) for arm in found.arms] == [(1000, 1, 1), (2, 2, 1)]
    assert found.remarks == ["1 keys or sessions began less than 24 h ago, and count later"]
    over = report(lines, metric="duration_ms", sticky="key", end=NOW - 60)
    assert [arm.compared for arm in over.arms] == [1, 2]


def test_many_requests_of_few_keys_establish_nothing() -> None:
    """Two keys that differ by themselves are two observations, however many requests they send."""
    lines = []
    for number in range(4000):
        unit = number % 2
        lines.append(line("ab"[unit], experiment_unit=f"u{unit}", duration_ms=100.0 + 900 * unit + number % 7))
    found = report(lines, metric="duration_ms", sticky="key")
    assert found.comparisons[0].verdict == "not enough data"
    by_request = report(lines, metric="duration_ms")
    assert by_request.comparisons[0].verdict == "worse"


def test_what_to_know_is_said() -> None:
    """Forced requests are left out; fallbacks, kept parameters, strangers, movers and wrong shares are told."""
    lines = [line("a") for _ in range(200)]
    lines += [line("b", variant_note="fallback model_not_found"), line("b", variant_note="kept temperature")]
    lines += [line("b", variant_note="forced"), line("old"), line("a", at=0.0), line("a", ts="nonsense")]
    found = report(lines, start="2020-01-01")
    said = "\n".join(found.remarks)
    assert found.forced == 1
    assert [arm.requests for arm in found.arms] == [200, 2]
    for phrase in (
        "not those of the weights (a 200, b 2",
        "1 requests of b were served otherwise",
        "1 requests of b kept",
    ):
        assert phrase in said
    assert "1 requests of variants that are not in the file" in said
    sticky = [line("a", experiment_unit="u"), line("b", experiment_unit="u"), line("a")]
    said = "\n".join(report(sticky, sticky="session").remarks)
    assert "1 requests of keys or sessions that were given another variant" in said
    assert "1 requests from before the experiment was sticky" in said


def test_feedback_is_a_metric() -> None:
    """The last score of a request counts; requests without one are in no pair."""
    lines = [line("ab"[number % 2], request_id=str(number)) for number in range(200)]
    feedback = {str(number): Feedback(str(number), float(number % 2)) for number in range(100)}
    found = report(lines, feedback, metric="feedback")
    assert [arm.compared for arm in found.arms] == [50, 50]
    assert (found.comparisons[0].verdict, found.comparisons[0].difference) == ("better", 1.0)
    assert [arm.summary()["feedback"] for arm in found.arms] == [0.0, 1.0]


def test_lines_come_oldest_first(tmp_path: Path) -> None:
    """The lines of the experiment are found in all files of the log, half lines and others left out."""
    path = tmp_path / "log.jsonl"
    rows = [line("a", at=NOW + number, request_id=str(number)) for number in range(4)]
    (tmp_path / "log.jsonl.1").write_bytes(b"\n".join(map(orjson.dumps, rows[:2])) + b"\n")
    other = orjson.dumps({**rows[0], "experiment": "f", "prompt": '"experiment":"e"'})
    path.write_bytes(b"\n".join([*map(orjson.dumps, rows[2:]), other, b'{"experiment":"e"', b""]))
    found, begins = lines_of(path, "e")
    assert [each["request_id"] for each in found] == ["0", "1", "2", "3"]
    assert begins == parse_time(timestamp(NOW))
    assert lines_of(tmp_path / "none.jsonl", "e") == ([], None)
