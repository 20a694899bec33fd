"""Feedback: what may be posted, and how it and its request are found in the files."""

from __future__ import annotations

import gzip
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import BadRequest
from rolecall.gateway.recorder import timestamp
from rolecall.insight.feedback import Feedback, feedback_path, judgement_of, judgements, read_feedback
from rolecall.insight.line_search import find_line
from rolecall.insight.log_database import foreign_query
from rolecall.insight.log_files import open_log

NOON = 1_800_000_000.0


@pytest.mark.parametrize(
    ("posted", "score"),
    [
        ({"score": 0.5}, 0.5),
        ({"score": "up"}, 1.0),
        ({"score": "down"}, 0.0),
        ({"score": 1}, 1.0),
        ({"label": "x"}, None),
    ],
)
def test_what_can_be_posted(posted: dict[str, Any], score: float | None) -> None:
    """A number from 0 to 1, a thumb, or a label alone."""
    assert read_feedback({"request_id": "r", **posted}).score == score


@pytest.mark.parametrize(
    ("posted", "complaint"),
    [
        ([], "must be a JSON object"),
        ({"score": 1}, "request_id"),
        ({"request_id": 5, "score": 1}, "request_id"),
        ({"request_id": "r"}, "A score or a label"),
        ({"request_id": "r", "score": 1.01}, "from 0 to 1"),
        ({"request_id": "r", "score": True}, "from 0 to 1"),
        ({"request_id": "r", "score": "good"}, "from 0 to 1"),
        ({"request_id": "r", "score": float("nan")}, "from 0 to 1"),
        ({"request_id": "r", "label": ""}, "'label' takes"),
        ({"request_id": "r", "score": 1, "comment": "x" * 2001}, "1 to 2000"),
        ({"request_id": "r", "scroe": 1}, "no field 'scroe'"),
    ],
)
def test_what_cannot_be_posted(posted: Any, complaint: str) -> None:
    """The error names the field and what it takes."""
    with pytest.raises(BadRequest, match=complaint):
        read_feedback(posted)


def test_the_last_word_counts_field_by_field(tmp_path: Path) -> None:
    """In rotated and compressed files too; the first score is kept beside it; what makes no sense is left out."""
    path = tmp_path / "log.jsonl"
    lines: list[dict[str, Any]] = [
        {"request_id": "a", "label": "early"},
        {"request_id": "a", "score": 0},
        {"request_id": "b", "score": 0.5, "comment": "c"},
        {"request_id": "a", "score": 1},
        {"request_id": "a", "label": "x"},
    ]
    rows = [json.dumps({"ts": timestamp(NOON + number), "key": None, **line}) for number, line in enumerate(lines)]
    name = feedback_path(path)
    name.with_name(f"{name.name}.2.gz").write_bytes(gzip.compress(f"{rows[0]}\n{rows[1]}\n".encode()))
    name.with_name(f"{name.name}.1").write_text(rows[2] + "\n")
    name.write_text("\n".join([*rows[3:], "[]", "{", '{"request_id": "a", "score": 0.2}', ""]))
    with ExitStack() as stack:
        found = judgements(open_log(name, stack).files)
    assert found["a"].said == judgement_of(path, "a") == Feedback("a", 1, "x")
    assert (found["a"].first_score, found["a"].first_at, found["a"].first_place) == (0, NOON + 1, 1)
    assert found["b"].said == judgement_of(path, "b") == Feedback("b", 0.5, None, "c")
    assert judgement_of(path, "c") is judgement_of(tmp_path / "none.jsonl", "a") is None


def test_a_request_is_found_wherever_it_is(tmp_path: Path) -> None:
    """Across blocks and files, behind lines of megabytes; half a line, and an id within a text, are none."""
    path = tmp_path / "log.jsonl"
    ids = [f"req_{number:032x}" for number in range(9)]

    def row(number: int, size: int) -> bytes:
        fields = {"ts": "t", "request_id": ids[number], "n": number, "x": "y" * size}
        return json.dumps(fields, separators=(",", ":")).encode()

    (tmp_path / "log.jsonl.2.gz").write_bytes(gzip.compress(row(8, 10) + b"\n"))
    (tmp_path / "log.jsonl.1").write_bytes(row(0, 2**20 - 80) + b"\n" + row(1, 10) + b"\n")
    quoted = json.dumps({"ts": "t", "request_id": ids[7], "x": {"request_id": ids[5]}}, separators=(",", ":")).encode()
    path.write_bytes(b"\n".join([row(2, 3 * 2**20), quoted, row(3, 10), row(4, 10)[:-3]]))
    with ExitStack() as stack:
        parts = open_log(path, stack).files
        found = [find_line(parts, id_) for id_ in ids]
        assert not any(find_line(parts, id_, lambda _: False) for id_ in ids)
    numbers = [line and line.get("n") for line in found]
    assert numbers == [0, 1, 2, 3, None, None, None, None, 8]
    assert found[7] is not None


def test_feedback_is_a_view_of_the_log(tmp_path: Path) -> None:
    """A query can join it with the requests: the last word on each, from rotated files too, wrong lines left out."""
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"ts": "2026-11-20T10:00:00Z", "request_id": "a", "model": "m"}) + "\n")
    sql = "SELECT model, score, label, given_by, key FROM requests JOIN feedback USING (request_id)"
    with foreign_query(path, sql) as (_, answer):
        assert answer.dicts() == []
    rows = [
        {"ts": "2026-11-20T10:00:01.000Z", "request_id": "a", "score": 0, "label": "old", "log_begins": True},
        {"ts": "2026-11-20T10:00:02.000Z", "request_id": "a", "score": 0.5, "key": "k"},
        {"ts": "2026-11-20T09:00:02.000Z", "request_id": "a", "score": 1.0, "key": "k"},  # the clock was set back
    ]
    rotated = gzip.compress(json.dumps(rows[0]).encode() + b"\n")
    feedback_path(path).with_name("log.feedback.jsonl.1.gz").write_bytes(rotated)
    lines = [*map(json.dumps, rows[1:]), "{", json.dumps({"request_id": "a", "score": 0.1})]
    feedback_path(path).write_text("\n".join(lines) + "\n")
    with foreign_query(path, sql) as (_, answer):
        assert answer.dicts() == [{"model": "m", "score": 1.0, "label": "old", "given_by": "k", "key": None}]
    with foreign_query(path, "SELECT count(*) AS n FROM feedback") as (_, answer):
        assert answer.dicts() == [{"n": 1}]
