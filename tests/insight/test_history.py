"""Pages of the request log: all lines once, newest first, through rotation, however little of it one call reads."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import entry
from rolecall.core.selection import Candidate, Demand, Rules, select
from rolecall.errors import BadRequest, PageGone
from rolecall.insight.history import Question, decision, read_line, read_page
from rolecall.insight.log_reader import Wanted, parse_status

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def line(number: int, **fields: Any) -> dict[str, Any]:
    ts = (NOON + timedelta(seconds=number)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"ts": ts, "request_id": f"req_{number}", "status": 200, "error": None, "duration_ms": 5.0, **fields}


def write(path: Path, *lines: dict[str, Any] | str) -> None:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines))


def all_pages(path: Path, most_bytes: int = 2**20, **question: Any) -> list[str]:
    found: list[str] = []
    before = None
    for _ in range(10_000):
        page = read_page(path, Question(**{"wanted": Wanted(), "before": before, **question}), most_bytes)
        found += [fields["request_id"] for fields in page.lines]
        before = page.next
        if before is None:
            return found
    raise AssertionError("there is always another page")


@given(
    sizes=st.lists(st.integers(0, 300), max_size=30),
    split=st.integers(0, 30),
    limit=st.integers(1, 7),
    most_bytes=st.integers(1, 2000),
    blank=st.booleans(),
)
def test_pages_have_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], split: int, limit: int, most_bytes: int, *, blank: bool
) -> None:
    """Whatever their sizes are, over two files, with blank and broken lines between them."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    lines: list[dict[str, Any] | str] = [line(number, pad="x" * size) for number, size in enumerate(sizes)]
    between: list[dict[str, Any] | str] = ["", "half a li"] if blank else []
    write(path.with_name("log.jsonl.1"), *lines[:split], *between)
    write(path, *between, *lines[split:])
    expected = [f"req_{number}" for number in reversed(range(len(sizes)))]
    assert all_pages(path, most_bytes, limit=limit) == expected


def test_pages_go_on_though_the_log_is_rotated(tmp_path: Path) -> None:
    """What was written meanwhile is no part of the next page, and nothing is told twice."""
    path = tmp_path / "log.jsonl"
    write(path, *(line(number) for number in range(10)))
    page = read_page(path, Question(Wanted(), limit=4))
    path.rename(tmp_path / "log.jsonl.1")
    write(path, line(10), line(11))
    after = read_page(path, Question(Wanted(), limit=100, before=page.next))
    assert [fields["request_id"] for fields in after.lines] == [f"req_{number}" for number in range(5, -1, -1)]
    (tmp_path / "log.jsonl.1").unlink()
    with pytest.raises(PageGone):
        read_page(path, Question(Wanted(), before=page.next))
    for wrong in ("", "x", "1-", "-1", "1-2-3", "g-1", "1" * 40):
        if wrong:
            with pytest.raises(BadRequest, match="before must be the next"):
                read_page(path, Question(Wanted(), before=wrong))


def test_what_is_asked_for(tmp_path: Path) -> None:
    """Model, role, status, key and time are looked at together."""
    path = tmp_path / "log.jsonl"
    write(
        path,
        line(0, model="a", role="tag", key="k"),
        line(1, model="b", role="tag", key="k"),
        line(2, model="a", role=None, key=None, status=500),
        line(3, model="a", role="tag", key="other"),
    )
    assert all_pages(path, wanted=Wanted(model="a")) == ["req_3", "req_2", "req_0"]
    assert all_pages(path, wanted=Wanted(role="tag"), key="k") == ["req_1", "req_0"]
    assert all_pages(path, wanted=Wanted(status=parse_status("error"))) == ["req_2"]
    assert all_pages(path, wanted=Wanted(since=NOON + timedelta(seconds=2))) == ["req_3", "req_2"]


def test_nothing_is_read_that_was_over_before(tmp_path: Path) -> None:
    """Lines come in the order of their ends: one that ended before the time is the last that is looked at."""
    path = tmp_path / "log.jsonl"
    write(path, *(line(number) for number in range(100)), line(100, duration_ms=100_000), line(101))
    page = read_page(path, Question(Wanted(since=NOON + timedelta(seconds=90)), limit=500))
    assert (len(page.lines), page.next) == (12, None)
    assert page.searched_to == line(87)["ts"]


def test_a_line_with_numbers_that_no_request_has_ends_no_search(tmp_path: Path) -> None:
    """It does not say when it was over, so what lies before it is looked at as well."""
    path = tmp_path / "log.jsonl"
    last = {"ts": "9999-12-31T23:59:59.999Z"}
    write(path, line(0), line(1, duration_ms=1e300), line(2, **last), line(3))
    assert all_pages(path, wanted=Wanted(since=NOON)) == ["req_3", "req_2", "req_1", "req_0"]


def test_a_page_says_how_far_it_has_read(tmp_path: Path) -> None:
    """One that was to find what is rare is short, and says where to go on; broken lines are counted."""
    path = tmp_path / "log.jsonl"
    write(path, "no line", *(line(number) for number in range(50)), "half")
    page = read_page(path, Question(Wanted(model="rare")), most_bytes=1000)
    assert (page.lines, page.skipped) == ([], 1)
    assert page.next is not None
    assert page.searched_to is not None
    assert page.searched_to > line(30)["ts"]


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    """It has no lines."""
    page = read_page(tmp_path / "log.jsonl", Question(Wanted()))
    assert (page.lines, page.next, page.searched_to) == ([], None, None)
    assert read_line(tmp_path / "log.jsonl", "req_1") is None


def test_one_line_is_found_by_its_whole_id(tmp_path: Path) -> None:
    """Not by the beginning of it, nor by another line that speaks of it."""
    path = tmp_path / "log.jsonl"
    write(path.with_name("log.jsonl.1"), line(1), line(2))
    write(path, line(10), line(20, error="see req_2"))
    assert read_line(path, "req_2") == line(2)
    assert read_line(path, "req_1") == line(1)
    assert read_line(path, "req_") is None


def test_a_decision_in_words_and_in_full() -> None:
    """The words are the line's; who else could have served, and who could not, is known for a while."""
    candidates = [
        Candidate(entry("best", role_priority={"tag": 90}), 1000, costs_swap=True, swap_s=14.04),
        Candidate(entry("good", role_priority={"tag": 80}), 1000, loaded=True),
        Candidate(entry("gone", role_priority={"tag": 99}), 1000, unavailable="its file is missing"),
    ]
    choice = select(Demand("tag"), candidates, Rules(2000, tolerance=15))
    words = "best 90 would need a swap of 14 s; good at 80 is loaded; tolerance 15"
    told = {"words": words, "role": "tag"}
    written = line(1, role="tag", role_selector=words)
    assert decision(written, None) == {**told, "candidates": None, "rejected": None}
    assert (
        decision(written, choice)
        == decision(line(1, role="tag", role_selector=None), choice)
        == {
            **told,
            "candidates": [
                {"model": "good", "priority": 80, "loaded": True, "costs_swap": False, "swap_s": None},
                {"model": "best", "priority": 90, "loaded": False, "costs_swap": True, "swap_s": 14.0},
            ],
            "rejected": [{"model": "gone", "why": "unavailable", "reason": "its file is missing"}],
        }
    )
    assert decision(line(1, role=None, role_selector=None), None) is None
    assert decision(line(1, role="tag", role_selector=None), None) is None
