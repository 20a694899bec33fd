"""Figures of the log are those that another way of counting finds, for every group and every condition."""

from __future__ import annotations

import random
import re
import statistics as counted
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from insight.written_lines import NOON, line
from rolecall.insight.log_database import opened_database
from rolecall.insight.log_reader import Wanted, parse_entry, parse_status
from rolecall.insight.log_statistics import BY, Conditions, glob, statistics


def some(count: int) -> list[dict[str, Any]]:
    """Return fields of lines of many kinds, over three days; many are unknown."""
    chance = random.Random(8)

    def perhaps(value: Any) -> Any:
        return value if chance.random() < 0.8 else None

    return [
        {
            "n": chance.randrange(3 * 86_400),
            "model": chance.choice(["qwen3-vl", "florence-2", "demo-chat", None]),
            "requested_model": chance.choice(["role:vision", "qwen3-vl", "nobody"]),
            "role": chance.choice(["vision", "chat", None]),
            "prompt_id": chance.choice(["caption", "tags", None]),
            "prompt_version": chance.choice(["1", "2", None]),
            "key": chance.choice(["alice", "bob"]),
            "endpoint": chance.choice(["/v1/chat/completions", "/v1/embeddings"]),
            "status": chance.choice([200, 200, 200, 404, 499, 503, None]),
            "error": chance.choice([None, None, "upstream_error: x", ""]),
            "prompt_tokens": perhaps(chance.randrange(5000)),
            "completion_tokens": perhaps(chance.randrange(900)),
            "ttft_ms": perhaps(round(chance.lognormvariate(5, 1), 3)),
            "duration_ms": perhaps(round(chance.lognormvariate(7, 1), 3)),
            "tokens_per_second": perhaps(round(chance.gauss(60, 9), 2)),
            "queue_ms": perhaps(round(chance.expovariate(1), 3)),
            "load_ms": perhaps(chance.choice([0.0, 14_000.5])),
        }
        for _ in range(count)
    ]


MADE = some(2000)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    path.write_bytes(b"".join(line(**fields) for fields in MADE))
    return path


def quantile(values: list[float], share: float) -> float | None:
    """Return a percentile, interpolated between the two nearest values."""
    if not values:
        return None
    at = share * (len(values) - 1)
    low = sorted(values)[int(at)]
    high = sorted(values)[min(int(at) + 1, len(values) - 1)]
    return low + (high - low) * (at - int(at))


def figures(group: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is to be said of a group, computed in Python."""

    def known(name: str) -> list[float]:
        return [fields[name] for fields in group if fields[name] is not None]

    ok = [fields for fields in group if (fields["status"] or 999) < 400 and not fields["error"]]
    return {
        "requests": len(group),
        "errors": len(group) - len(ok),
        "prompt_tokens": sum(known("prompt_tokens")) if known("prompt_tokens") else None,
        "completion_tokens": sum(known("completion_tokens")) if known("completion_tokens") else None,
        "ttft_ms_p50": quantile(known("ttft_ms"), 0.5),
        "ttft_ms_p95": quantile(known("ttft_ms"), 0.95),
        "duration_ms_p50": quantile(known("duration_ms"), 0.5),
        "duration_ms_p95": quantile(known("duration_ms"), 0.95),
        "tokens_per_second_p50": quantile(known("tokens_per_second"), 0.5),
        "queue_ms_p95": quantile(known("queue_ms"), 0.95),
        "load_ms_mean": counted.fmean(known("load_ms")) if known("load_ms") else None,
    }


def moment(fields: dict[str, Any]) -> datetime:
    return (NOON + timedelta(seconds=fields["n"])).astimezone()


GROUPS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "model": lambda fields: fields["model"] or fields["requested_model"],
    "prompt": lambda fields: fields["prompt_id"],
    "version": lambda fields: fields["prompt_version"],
    "hour": lambda fields: moment(fields).replace(minute=0, second=0),
    "day": lambda fields: moment(fields).replace(hour=0, minute=0, second=0),
    **{name: itemgetter(name) for name in ("role", "key", "endpoint", "status")},
}


@pytest.mark.parametrize("by", [*([name] for name in BY), [], ["model", "role"], ["day", "prompt", "version"]])
def test_figures_are_those_of_another_way(by: list[str], path: Path) -> None:
    """For each group, requests, errors, sums, percentiles and means agree, and there is no other group."""
    groups = defaultdict(list)
    for fields in MADE:
        groups[tuple(GROUPS[name](fields) for name in by)].append(fields)
    with opened_database(path) as database:
        found = statistics(database, by, Conditions())
    assert {tuple(row.pop(name) for name in by): pytest.approx(row) for row in found} == {
        key: figures(group) for key, group in groups.items()
    }


def test_the_busiest_are_first_and_times_in_order(path: Path) -> None:
    """Groups come with most requests first; hours and days one after the other."""
    with opened_database(path) as database:
        models = [row["requests"] for row in statistics(database, ["model"], Conditions())]
        days = [row["day"] for row in statistics(database, ["role", "day"], Conditions())]
    assert models == sorted(models, reverse=True)
    assert days == sorted(days)


@pytest.mark.parametrize("status", ["ok", "error", "404", "4xx", "5xx", ">=400", "<500", "!=200", "<= 404", "> 499"])
def test_a_status_means_the_same_as_for_the_list(status: str, path: Path) -> None:
    """--status of the figures picks the lines that --status of the list picks."""
    wanted = parse_status(status)
    with opened_database(path) as database:
        found = statistics(database, [], Conditions(status=status))
    assert found[0]["requests"] == sum(map(wanted, MADE))


def test_conditions_pick_what_the_list_picks(path: Path) -> None:
    """Model (served or asked for), role, prompt, key and times together, with wildcards."""
    since, until = NOON + timedelta(hours=5), NOON + timedelta(hours=40)
    conditions = Conditions("qwen*", "vis?on", "t*", "[!b]*", None, since, until)
    with opened_database(path) as database:
        found = statistics(database, [], conditions)
    listed = Wanted("qwen*", "vis?on", None, since)
    entries = [entry.fields for raw in path.read_bytes().splitlines() if (entry := parse_entry(raw))]
    expected = [
        fields
        for fields in entries
        if listed(fields)
        and fields["key"] == "alice"
        and fields["prompt_id"] == "tags"
        and datetime.fromisoformat(fields["ts"].replace("Z", "+00:00")) < until.astimezone(timezone.utc)
    ]
    assert 0 < len(expected) < len(entries)
    assert found[0]["requests"] == len(expected)


TEXT = st.text(st.sampled_from("ab[]!*?-^\\.|\n"), max_size=8)


@given(TEXT, TEXT)
@example("[!]", "[!]")
@example("[!]", "!")
@example("[[!].[!]", "[.!")
@example("[!]]", "]")
@example("[b-a]", "a")
@example("[!b-a]*", "a")
@example("[b-a-]", "-")
def test_wildcards_are_those_of_the_shell(pattern: str, text: str) -> None:
    """A pattern picks what it picks for the list, whatever brackets and marks it has."""
    assert bool(re.fullmatch(glob(pattern), text, re.DOTALL)) == fnmatchcase(text, pattern)
