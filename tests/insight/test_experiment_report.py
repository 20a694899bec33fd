"""What an experiment's report says, from lines of the log."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from rolecall.core.experiments import Experiment
from rolecall.gateway.recorder import timestamp
from rolecall.insight.experiment_lines import Material, open_material
from rolecall.insight.experiment_report import Report, report_on, words
from rolecall.insight.feedback import Feedback, Judgement, feedback_path

NOW = 1_800_000_000.0
HOUR = 3600


def made(**fields: Any) -> Experiment:
    """Return an experiment with the variants ``a``, the control, and ``b``."""
    return Experiment.model_validate({"name": "e", "role": "r", "variants": {"a": {}, "b": {}}, **fields})


def line(variant: str, at: float = NOW - 48 * HOUR, **fields: Any) -> dict[str, Any]:
    """Return a line of a request that succeeded."""
    known = {"ts": timestamp(at), "request_id": "r", "status": 200, "error": None, "experiment": "e"}
    return {**known, "variant": variant, "duration_ms": 100.0, **fields}


def report(lines: Iterable[dict[str, Any]], feedback: dict[str, Judgement] | None = None, **fields: Any) -> Report:
    """Return the report on an experiment like ``made``."""
    return report_on(made(**fields), Material(iter(lines), feedback or {}), NOW)


def judged(scores: Iterable[tuple[str, float]], at: float = NOW - 40 * HOUR) -> dict[str, Judgement]:
    """Return feedback in the order in which it was given, a second apart."""
    found: dict[str, Judgement] = {}
    for place, (name, score) in enumerate(scores):
        found.setdefault(name, Judgement(Feedback(name))).add(Feedback(name, score), at + place, place)
    return found


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


def turning(*parts: tuple[int, float]) -> list[dict[str, Any]]:
    """Return lines with durations that ``b`` multiplies by another factor in each part, of so many lines."""
    rng = random.Random(2)
    factors = [factor for count, factor in parts for _ in range(count)]
    durations = [rng.lognormvariate(0, 0.5) * (factor if n % 2 else 1) for n, factor in enumerate(factors)]
    return [line("ab"[n % 2], duration_ms=100 * duration) for n, duration in enumerate(durations)]


def test_a_difference_that_turns_round_does_not_turn_its_verdict_round() -> None:
    """What was established keeps its direction; that all together do not show it, or show the opposite, is told."""
    lines = turning((600, 0.75), (1500, 1.13))
    early, late, later = (
        report(part, metric="duration_ms") for part in (lines[:600], lines, turning((600, 0.75), (2200, 1.13)))
    )
    assert words(early.comparisons[0], early) == "b is better than a"
    (comparison,) = late.comparisons
    assert (comparison.verdict, comparison.needed) == ("better", None)
    assert comparison.difference < 0
    assert (comparison.low or 0) < 0 < (comparison.high or 0)
    assert comparison.strongest_at is not None
    assert 400 < comparison.strongest_at <= 640
    established = f"established by about {comparison.strongest_at} requests"
    though = "though the interval of all of them does not exclude 0 now"
    assert words(comparison, late) == f"b is better than a: {established}, {though}"
    assert (later.comparisons[0].verdict, later.comparisons[0].difference > 0) == ("was better", True)
    assert words(later.comparisons[0], later).endswith("seen, as the difference of all of them is on the other side")
    assert later.as_dict()["comparisons"][0]["verdict"] == "was better"
    assert late.as_dict()["comparisons"][0]["strongest_at"] == comparison.strongest_at
    higher = report(lines, metric="duration_ms", better="higher").comparisons[0]
    assert higher.verdict == "worse"


def test_a_difference_that_is_established_the_other_way_round_in_the_end_is_told() -> None:
    """Where the evidence of now is the strongest there has been, it is what counts."""
    (comparison,) = report(turning((400, 0.75), (6000, 1.5)), metric="duration_ms").comparisons
    assert comparison.verdict == "worse"
    assert (comparison.low or 0) > 0


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


def test_few_pairs_are_told_by_what_the_test_needs() -> None:
    """Durations and scores need a hundred pairs; successes twenty that differ."""
    lines = alternating(200, duration_ms=lambda rng, is_b: rng.lognormvariate(1 if is_b else 0, 0.5) * 100)
    found = report(lines, metric="duration_ms")
    assert words(found.comparisons[0], found) == "not enough data yet: 96 pairs, the test needs 100"
    failing = alternating(48, status=lambda _, is_b: 500 if is_b else 200)
    assert report(failing).comparisons[0].verdict == "worse"


def test_a_long_tail_is_told() -> None:
    """A variant that is faster but for rare bad cases is not called better before they are known, and it says why."""

    def duration(rng: random.Random, is_b: bool) -> float:  # noqa: FBT001
        return rng.lognormvariate(-0.3 if is_b else 0, 0.1) * (6000 if is_b and rng.random() < 0.03 else 100)

    lines = alternating(1000, duration_ms=duration)
    found = report(lines, metric="duration_ms")
    (comparison,) = found.comparisons
    assert comparison.difference < 0
    assert comparison.low is not None
    assert (comparison.high, comparison.verdict) == (None, "not enough data")
    assert words(comparison, found).startswith("not enough data yet: if it is as it looks, about ")
    assert found.remarks[0].startswith("the pairs of b are lopsided (skewness ")
    assert found.remarks[0].endswith("so the interval has no upper end")
    turned = report([{**each, "variant": "ab"[each["variant"] == "a"]} for each in lines], metric="duration_ms")
    assert (turned.comparisons[0].low, turned.comparisons[0].high is None) == (None, False)
    assert turned.remarks[0].endswith("so the interval has no lower end")


def test_how_many_more_are_needed() -> None:
    """A small difference says how many more requests would establish it; none at all says so."""
    lines = alternating(300, 4, duration_ms=lambda rng, is_b: rng.lognormvariate(0.1 if is_b else 0, 0.5) * 100)
    found = report(lines, metric="duration_ms")
    assert found.comparisons[0].needed is not None
    assert "if it is as it looks, about " in words(found.comparisons[0], found)
    same = [line("ab"[number % 2], duration_ms=100.0 * (1 + number // 2 % 2)) for number in range(400)]
    none = report(same, metric="duration_ms")
    assert (none.comparisons[0].verdict, none.comparisons[0].needed) == ("no difference seen", None)
    assert words(none.comparisons[0], none) == "no difference in sight"


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
    over = report(lines, metric="duration_ms", sticky="key", end=timestamp(NOW - 60))
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


def test_names_of_parameters_are_no_notes() -> None:
    """A kept parameter may be called like another note; it is the first word of each note that says what it is."""
    notes = ["kept forced_decoder fallback_model", "forced; kept unkept", "kept a b; fallback model_not_found"]
    found = report([line("b", variant_note=note) for note in notes])
    assert found.forced == 1
    assert [(arm.requests, arm.kept, arm.fallbacks) for arm in found.arms] == [(0, 0, 0), (2, 2, 1)]


def test_feedback_is_a_metric() -> None:
    """The first score of a request is compared, the last one shown; requests without one are in no pair."""
    lines = [line("ab"[number % 2], request_id=str(number)) for number in range(400)]
    first = [(str(number), float(number % 2)) for number in range(300)]
    found = report(lines, judged([*first, *((name, 0.5) for name, _ in first)]), metric="feedback")
    assert [arm.compared for arm in found.arms] == [150, 150]
    assert (found.comparisons[0].verdict, found.comparisons[0].difference) == ("better", 1.0)
    assert [arm.summary()["feedback"] for arm in found.arms] == [0.5, 0.5]


def test_late_feedback_changes_nothing_that_was_seen() -> None:
    """Scores count in the order in which they were given: what was found stays found, however late others come."""
    rng = random.Random(3)
    lines = [line(rng.choice("ab"), request_id=str(number)) for number in range(600)]
    given = sorted((number + rng.expovariate(1 / 200), str(number), float(rng.random() < 0.6)) for number in range(600))
    scores = [(name, score) for _, name, score in given]
    lowest = 1.0
    for count in range(0, 601, 20):
        p_value = report(lines, judged(scores[:count]), metric="feedback").comparisons[0].p_value
        assert p_value is not None
        assert p_value <= lowest
        lowest = p_value


def test_a_window_that_is_over_is_closed() -> None:
    """Scores that are given, and answers that end, after a key's window are no part of its mean."""
    lines = [line("a", request_id="1", experiment_unit="u"), line("a", request_id="2", experiment_unit="v")]
    scores = judged([("1", 1.0)], NOW - 25 * HOUR) | judged([("2", 1.0)], NOW - 23 * HOUR)
    assert report(lines, scores, metric="feedback", sticky="key").arms[0].compared == 1
    lines = [line("a", experiment_unit="u"), line("a", experiment_unit="v", duration_ms=25 * HOUR * 1000.0)]
    assert report(lines, sticky="key").arms[0].compared == 1


def written(path: Path, *files: list[dict[str, Any]]) -> Path:
    """Write a log, the present file first; the second older one is compressed."""
    for number, rows in enumerate(files):
        name = path.name + ("" if number == 0 else f".{number}")
        content = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        if number > 1:
            path.with_name(f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            path.with_name(name).write_bytes(content)
    return path


def material(path: Path, **fields: Any) -> tuple[list[Any], list[str], list[str]]:
    """Return the lines, gaps and notes of a log."""
    with ExitStack() as stack:
        found = open_material(path, made(**fields), stack)
        return list(found.lines), list(found.gaps), list(found.notes)


def test_lines_come_as_they_were_written(tmp_path: Path) -> None:
    """The lines of the experiment are found in all files of the log, half lines and others left out."""
    rows = [line("a", at=NOW + number, request_id=str(number)) for number in range(6)]
    other = orjson.loads(orjson.dumps({**rows[0], "experiment": "f", "prompt": '"experiment":"e"'}))
    path = written(tmp_path / "log.jsonl", [*rows[4:], other], rows[2:4], rows[:2])
    with path.open("ab") as file:
        file.write(b'{"experiment":"e"')
    found, _, _ = material(path)
    assert [each["request_id"] for each in found] == ["0", "1", "2", "3", "4", "5"]
    with pytest.raises(FileNotFoundError):
        material(tmp_path / "none.jsonl")


def test_lines_that_went_through_another_program_count(tmp_path: Path) -> None:
    """JSON has spaces, too; names in other places are no experiment's."""
    rows = [line("a"), line("b"), line("a", experiment="f", prompt_id="e")]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert [row["variant"] for row in material(tmp_path / "log.jsonl")[0]] == ["a", "b"]


START = {"start": "2026-11-01"}


@pytest.mark.parametrize(
    ("ages", "fields", "gap", "note"),
    [
        pytest.param([1], {}, "", "", id="one file"),
        pytest.param([1], START, "", "after the experiment's start", id="one file, begun late"),
        pytest.param([1, 2], {}, "names no start", "", id="rotated, no start"),
        pytest.param(
            [1, 2], START, "after the experiment's start: what was before may", "", id="rotated, begins later"
        ),
        pytest.param([1, 1000], START, "", "", id="rotated, reaches back"),
    ],
)
def test_a_log_that_may_lack_lines_is_told(
    ages: list[int], fields: dict[str, Any], gap: str, note: str, tmp_path: Path
) -> None:
    """A log that does not say where it began has all lines if it was not rotated, or reaches back to the start."""
    path = written(tmp_path / "log.jsonl", *([line("a", at=NOW - days * 24 * HOUR)] for days in ages))
    _, gaps, notes = material(path, **fields)
    assert bool(gaps) is bool(gap)
    assert gap in "\n".join(gaps)
    assert [note in found for found in notes] == ([True] if note else [])


@pytest.mark.parametrize("name", ["log.jsonl.1", "log.jsonl.1.gz", "log-20270114.jsonl"])
def test_an_old_file_alone_is_no_whole_log(name: str, tmp_path: Path) -> None:
    """The one file that is left may be a rotated one, of which nobody knows what was before it."""
    row = orjson.dumps(line("a"))
    (tmp_path / name).write_bytes(gzip.compress(row) if name.endswith(".gz") else row)
    assert "names no start" in "\n".join(material(tmp_path / "log.jsonl")[1])
    (tmp_path / "log.jsonl").touch()
    assert "names no start" in "\n".join(material(tmp_path / "log.jsonl")[1])


@pytest.mark.parametrize("metric", ["success", "feedback"])
def test_a_log_that_shows_its_first_line_is_whole(metric: str, tmp_path: Path) -> None:
    """However often log and feedback were rotated, whether the experiment's start is before it, or there is none."""
    path = tmp_path / "log.jsonl"
    for name in (path, feedback_path(path)):
        rows = [[{**line("a", at=NOW + day * 24 * HOUR), "score": 1}] for day in range(4)]
        written(name, *reversed(rows))
        first = {**rows[0][0], "prompt": [{"x": "y" * 100_000}], "log_begins": True}
        name.with_name(f"{name.name}.3.gz").write_bytes(gzip.compress(orjson.dumps(first) + b"\n"))
    assert material(path, metric=metric)[1] == material(path, metric=metric, **START)[1] == []
    assert len(material(path, metric=metric)[2]) == 0
    (note,) = material(path, metric=metric, **START)[2]
    assert "after the experiment's start" in note
    feedback_path(path).with_name("log.feedback.jsonl.3.gz").unlink()
    assert bool(material(path, metric=metric)[1]) is (metric == "feedback")
    path.with_name("log.jsonl.3.gz").unlink()
    assert material(path, metric=metric)[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"ts": "9999-12-31T23:59:59Z", "duration_ms": 10**18},
        {"ts": "2026-11-01T00:00:00Z", "duration_ms": 10**400},
        {"ts": "1970-01-01T00:00:07Z"},
        {"ts": "0001-01-01T00:00:00+14:00"},
    ],
)
def test_a_clock_that_was_wrong_decides_nothing(fields: dict[str, Any], tmp_path: Path) -> None:
    """Wherever such a line begins a file: the log reaches back no further for it, and the report is made."""
    for place in range(3):
        files = [[line("a", at=NOW - day * 24 * HOUR)] for day in range(3)]
        files[place].insert(0, {**files[place][0], **fields})
        path = tmp_path / f"log{place}.jsonl"
        for number, rows in enumerate(files):
            name = path.with_name(f"{path.name}.{number}" if number else path.name)
            name.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            os.utime(name, (NOW, NOW))
        found, gaps, _ = material(path, **START)
        assert len([row for row in found if row["ts"] != fields["ts"]]) == 3
        assert "after the experiment's start: what was before may be missing" in gaps[0]


def test_a_log_shows_its_first_line_in_whatever_file(tmp_path: Path) -> None:
    """One that was begun by a clock that was years ahead is not the oldest by its time."""
    first = line("a", at=NOW + 10**8, log_begins=True)
    path = written(tmp_path / "log.jsonl", [line("a", at=NOW)], [line("a", at=NOW - HOUR)], [first])
    assert material(path, **START)[1] == []


def test_the_start_that_would_do_is_named(tmp_path: Path) -> None:
    """Where lines may be missing there is a later start from which all are there: with it there is a verdict."""
    path = written(tmp_path / "log.jsonl", [line("a", at=NOW + 60)], [line("a", at=NOW + 0.5)])
    said: list[dict[str, Any]] = [{"ts": timestamp(NOW + 7.25), "request_id": "r", "score": 1}]
    written(feedback_path(path), said, said)
    for fields, start in (({}, "2027-01-15T08:00:01Z"), ({"metric": "feedback"}, "2027-01-15T08:00:08Z")):
        *_, advice = material(path, **START, **fields)[1]
        assert f"start = {start} would do. It drops the requests before it" in advice
        assert material(path, start=start, **fields)[1] == []
    assert "the experiment was over by then" in material(path, end=timestamp(NOW))[1][-1]
    path.with_name("log.jsonl.9.xz").write_bytes(b"x")
    assert "would do" not in "\n".join(material(path, **START)[1])


def test_feedback_that_was_rotated_away_is_told(tmp_path: Path) -> None:
    """It matters where feedback is what is compared."""
    path = written(tmp_path / "log.jsonl", [line("a", at=NOW - 1000 * 24 * HOUR)])
    said: list[dict[str, Any]] = [{"ts": timestamp(NOW), "request_id": "r", "score": 1}]
    written(feedback_path(path), said, said)
    assert material(path, **START)[1] == []
    assert material(path, metric="feedback", **START)[1][0].startswith(
        "the feedback was rotated and begins on 2027-01-15"
    )


def test_nothing_is_established_where_lines_may_be_missing() -> None:
    """Each look at a window that moves is a test of its own: there is a difference, and no interval and verdict."""
    lines = alternating(800, duration_ms=lambda rng, is_b: rng.lognormvariate(0.3 if is_b else 0, 0.5) * 100)
    found = report_on(made(metric="duration_ms"), Material(iter(lines), {}, ["lines may be missing"]), NOW)
    (comparison,) = found.comparisons
    assert (comparison.verdict, comparison.p_value, comparison.low) == ("incomplete log", None, None)
    assert comparison.difference == pytest.approx(0.35, abs=0.1)
    assert words(comparison, found) == "no verdict: lines may be missing"
    assert found.remarks[0] == "lines may be missing"
    assert found.as_dict()["is_complete"] is False
