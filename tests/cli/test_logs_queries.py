"""``rolecall logs stats`` and ``rolecall logs query`` as they are typed: what they print, tell and refuse."""

from __future__ import annotations

import csv
import gzip
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.invoke import call, environment, in_terminal, rolecall
from harness import DEADLINE_S
from insight.written_lines import line, lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(
        lines(0, 3600, model="qwen3-vl", prompt_tokens=100, completion_tokens=10, ttft_ms=100.0, duration_ms=1000.0)
        + line(7200, model="florence-2", status=503, error="engine_error: gone")
    )
    return path


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import time

    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def test_stats_by_model(path: Path) -> None:
    """Without options there is a row for each model, the busiest first, with heads that fit a terminal."""
    result = call("logs", "--file", path, "stats")
    assert result.exit_code == 0, result.output
    assert [row.split() for row in result.stdout.splitlines()[1:]] == [
        ["qwen3-vl", "2", "0", "200", "20", "100", "100", "1000", "1000", "-", "-", "-"],
        ["florence-2", "1", "1", "-", "-", "-", "-", "-", "-", "-", "-", "-"],
    ]
    assert result.stderr == ""


def test_stats_as_json_and_csv(path: Path) -> None:
    """Both have all figures in full, moments in UTC; --by takes several."""
    found = json.loads(call("logs", "stats", "--file", path, "--by", "hour, model", "--json").stdout)
    assert [(row["hour"], row["model"], row["requests"], row["errors"]) for row in found] == [
        ("2026-01-31T12:00:00.000Z", "qwen3-vl", 1, 0),
        ("2026-01-31T13:00:00.000Z", "qwen3-vl", 1, 0),
        ("2026-01-31T14:00:00.000Z", "florence-2", 1, 1),
    ]
    text = call("logs", "stats", "--file", path, "--by", "hour,model", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [{**row, **{name: None for name in row if row[name] == ""}} for row in rows] == [
        {name: None if value is None else str(value) for name, value in row.items()} for row in found
    ]


def test_stats_take_the_filters_of_the_list(path: Path) -> None:
    """--model, --status, --since and --until leave out what they leave out of the list."""

    def requests(*options: str) -> int:
        rows = json.loads(call("logs", "stats", "--file", path, "--by", "", "--json", *options).stdout)
        return sum(row["requests"] for row in rows)

    assert requests() == 3
    assert requests("--model", "qwen*") == 2
    assert requests("--status", "error") == 1
    assert requests("--since", "2026-01-31T13:00") == 2
    assert requests("--until", "2026-01-31T13:00") == 1
    assert requests("--since", "1h") == 0


@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",), ("--by", "")])
def test_stats_that_no_request_matches_end_as_the_list_does(form: tuple[str, ...], path: Path) -> None:
    """What matches nothing is told, with the status that the list and the report have for it."""
    for pattern in ("nobody", "[z-a]*"):
        result = call("logs", "stats", "--file", path, "--model", pattern, *form)
        assert (result.exit_code, result.stderr.split()[-1]) == (1, "matches")
        assert call("logs", "--file", path, "--model", pattern).exit_code == 1
    path.write_bytes(b"")
    assert "no request in" in call("logs", "stats", "--file", path, *form).stderr


def test_a_name_with_brackets_is_found_by_itself(path: Path) -> None:
    """A name that is a pattern, too, stands for itself as it does for the list."""
    path.write_bytes(line(1, model="m[1]", prompt_id="[v2] caption") + line(2, model="m1"))
    for options in (("--model", "m[1]"), ("--prompt", "[v2] caption")):
        found = json.loads(call("logs", "stats", "--file", path, *options, "--by", "model", "--json").stdout)
        assert "m[1]" in [row["model"] for row in found]


def test_numbers_that_nothing_can_measure_cost_no_figure(path: Path) -> None:
    """Values that no sum could hold are unknown and told, and the report has its figures, too."""
    huge = {"prompt_tokens": 9 * 10**18, "images": 9 * 10**18, "load_ms": 1.7e308, "prompt_id": "caption"}
    path.write_bytes(path.read_bytes() + lines(*range(30), completion_tokens=10**15, **huge))
    result = call("logs", "stats", "--file", path)
    assert result.exit_code == 0, result.output
    assert ["qwen3-vl", "2", "0", "200"] in [row.split()[:4] for row in result.stdout.splitlines()]
    assert "30 lines have a value of a wrong kind" in result.stderr
    found = json.loads(call("report", "prompts", "--file", path, "--json").stdout)
    assert [(row["prompt_tokens"], row["completion_tokens"]) for row in found["figures"]] == [(None, 30 * 10**15)]


def test_sums_beyond_64_bits_are_whole(path: Path) -> None:
    """Each number can be measured, their sum has no bound."""
    path.write_bytes(lines(*range(9300), completion_tokens=10**15, images=10**15, prompt_id="caption"))
    (row,) = json.loads(call("logs", "stats", "--file", path, "--json").stdout)
    assert row["completion_tokens"] == 9300 * 10**15
    (row,) = json.loads(call("report", "prompts", "--file", path, "--json").stdout)["figures"]
    assert row["images"] == row["completion_tokens"] == 9300 * 10**15


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--by", "colour"), "colour"),
        (("--status", "bad"), "bad"),
        (("--since", "soon"), "soon"),
        (("--json", "--csv"), "--csv"),
    ],
)
def test_wrong_options_are_wrong_usage(options: tuple[str, ...], named: str, path: Path) -> None:
    """What an option cannot be is named, with status 2."""
    result = call("logs", "stats", "--file", path, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert named in result.stderr


@pytest.mark.parametrize(
    ("zone", "midnight"),
    [
        ("CET-1CEST,M3.5.0,M10.5.0/3", "2026-01-30T23:00:00.000Z"),
        ("<+0530>-5:30", "2026-01-30T18:30:00.000Z"),
        ("EST5EDT,M3.2.0,M11.1.0", "2026-01-31T05:00:00.000Z"),
    ],
)
def test_days_are_those_of_a_zone_without_a_name(zone: str, midnight: str, path: Path) -> None:
    """A zone given by its rule is that zone whose clocks go alike, for figures and for queries."""
    here = environment(TZ=zone)
    figures = rolecall("logs", "stats", "--file", path, "--by", "day", "--json", env=here)
    assert [(row["day"], row["requests"]) for row in json.loads(figures.stdout)] == [(midnight, 3)]
    sql = "SELECT date_trunc('day', ts) AS day, count(*) AS n FROM requests GROUP BY ALL"
    result = rolecall("logs", "query", sql, "--file", path, "--json", env=here)
    assert (json.loads(result.stdout), result.stderr) == ([{"day": midnight, "n": 3}], "")


def test_a_zone_that_nobody_knows_is_told(path: Path) -> None:
    """Where no zone has such clocks, stderr names the one whose hours and days are counted."""
    result = rolecall("logs", "stats", "--file", path, "--by", "day", "--json", env=environment(TZ="<+0037>-0:37"))
    assert "hours and days are those of" in result.stderr
    assert json.loads(result.stdout)[0]["day"] == "2026-01-31T00:00:00.000Z"


def test_query_prints_a_table_json_and_csv(path: Path) -> None:
    """The same answer in three forms; nothing is null, empty or a dash."""
    sql = "SELECT model AS m, ttft_ms, ts, ['a', 'b'] AS l, 'x,\n' AS t FROM requests ORDER BY ts DESC LIMIT 2"
    table = call("logs", "query", sql, "--file", path).stdout.splitlines()
    assert [row.split() for row in table] == [
        ["m", "ttft_ms", "ts", "l", "t"],
        ["florence-2", "-", "2026-01-31", "14:00:00", '["a",', '"b"]', "x,"],
        ["qwen3-vl", "100", "2026-01-31", "13:00:00", '["a",', '"b"]', "x,"],
    ]
    found = json.loads(call("logs", "query", sql, "--file", path, "--json").stdout)
    assert found[0] == {
        "m": "florence-2",
        "ttft_ms": None,
        "ts": "2026-01-31T14:00:00.000Z",
        "l": ["a", "b"],
        "t": "x,\n",
    }
    rows = list(csv.reader(io.StringIO(call("logs", "query", sql, "--file", path, "--csv").stdout)))
    assert rows[0] == ["m", "ttft_ms", "ts", "l", "t"]
    assert rows[1] == ["florence-2", "", "2026-01-31T14:00:00.000Z", '["a", "b"]', "x,\n"]


def test_query_as_json_of_anything(path: Path) -> None:
    """Columns of one name, no rows, and values that JSON has no form for are still JSON."""

    def answer(sql: str) -> object:
        return json.loads(call("logs", "query", sql, "--file", path, "--json").stdout)

    assert answer("SELECT 1 AS a, 2 AS a, 3 AS a_2") == [{"a": 1, "a_2": 2, "a_2_2": 3}]
    assert answer("FROM requests WHERE false") == []
    assert answer(
        "SELECT 'nan'::DOUBLE AS n, 1.5::DECIMAL(9, 2) AS d, DATE '2026-01-31' AS day, INTERVAL 90 SECONDS AS i, "
        "{'a': TIMESTAMP '2026-01-31 12:00:00'} AS s, 170141183460469231731687303715884105727 AS big, "
        "TIME '12:30:00' AS t, true AS b, MAP {1: 'x'} AS m, 'ab\\x00\\x5C'::BLOB AS bytes"
    ) == [
        {
            "n": None,
            "d": 1.5,
            "day": "2026-01-31",
            "i": 90.0,
            "s": {"a": "2026-01-31T12:00:00"},
            "big": 2**127 - 1,
            "t": "12:30:00",
            "b": True,
            "m": {"1": "x"},
            "bytes": r"ab\x00\x5C",
        }
    ]


@pytest.mark.parametrize("comment", ["-- what = it is\n", "--\tx\n", "--what\n", "/* x */"])
def test_a_query_may_begin_with_a_comment(comment: str, path: Path) -> None:
    """SQL that begins with a comment is no option; a wrong option is one still."""
    result = call("logs", "query", comment + "SELECT 1 AS one", "--file", path, "--json")
    assert (result.exit_code, result.stdout) == (0, '[{"one":1}]\n')
    assert call("logs", "query", "SELECT 1", "--jsno", f"--file={path} x").exit_code == 2


def test_what_there_is_to_ask_is_shown(path: Path) -> None:
    """`SHOW TABLES` has the views and nothing behind them; `DESCRIBE` has their columns."""

    def names(sql: str, column: str) -> list[str]:
        rows = json.loads(call("logs", "query", sql, "--file", path, "--json").stdout)
        return [row[column] for row in rows]

    assert names("SHOW TABLES", "name") == ["feedback", "requests"]
    assert names("DESCRIBE requests", "column_name")[:2] == ["ts", "request_id"]
    assert names("DESCRIBE feedback", "column_name")[:3] == ["request_id", "given_at", "score"]


def test_a_wrong_query_names_the_error_and_the_columns(path: Path) -> None:
    """The reason is the database's, and the columns with their types stand below it."""
    result = call("logs", "query", "SELECT modle FROM requests", "--file", path, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert '"modle" not found' in result.stderr
    assert "requests has the columns ts TIMESTAMP WITH TIME ZONE, request_id VARCHAR" in result.stderr


def test_a_query_that_fails_on_its_way_says_why(path: Path) -> None:
    """An error that comes with the rows is told like one before them."""
    result = call("logs", "query", "SELECT error(model) FROM requests", "--file", path)
    assert result.exit_code == 1
    assert "qwen3-vl" in result.stderr
    assert "Traceback" not in result.stderr


def test_broken_lines_wrong_values_and_files_are_told(path: Path) -> None:
    """They cost nothing but themselves, and stderr says how many; the output stays clean."""
    path.write_bytes(path.read_bytes() + b"half\n" + line(9, ttft_ms="soon"))
    path.with_name(path.name + ".1.gz").write_bytes(gzip.compress(lines(8))[:20])
    for command in (("stats",), ("query", "SELECT count(*) AS requests FROM requests")):
        result = call("logs", *command, "--file", path, "--json")
        assert result.exit_code == 0
        assert sum(row["requests"] for row in json.loads(result.stdout)) == 4
        assert "1 of 5 lines is no record of a request" in result.stderr
        assert "1 line has a value of a wrong kind" in result.stderr
        assert "left out: requests.jsonl.1.gz" in result.stderr


def test_no_log(tmp_path: Path) -> None:
    """A log that is not there is a reason to fail, and the way out is named."""
    result = call("logs", "stats", "--file", tmp_path / "none.jsonl")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no request log" in result.stderr
    assert "--file" in result.stderr


def test_a_long_table_ends(path: Path) -> None:
    """A thousand rows are enough to look at; that there are more is said, and the other forms have them."""
    path.write_bytes(lines(*range(1500)))
    result = call("logs", "query", "SELECT request_id FROM requests", "--file", path)
    assert len(result.stdout.splitlines()) == 1001
    assert "--csv" in result.stderr
    everything = call("logs", "query", "SELECT request_id FROM requests", "--file", path, "--csv")
    assert len(everything.stdout.splitlines()) == 1501


def test_control_characters_do_not_reach_the_terminal(path: Path) -> None:
    """A client chose much of what is logged: in a table it cannot drive the terminal."""
    path.write_bytes(line(1, model="\x1b[31mred\x07"))
    shown = "\n".join(in_terminal("logs", "stats", "--file", path, columns=100))
    assert "\x1b" not in shown
    assert "\x07" not in shown


@pytest.mark.parametrize("command", [("stats", "--by", "model,role,hour"), ("query", "FROM requests")])
def test_a_narrow_terminal_has_every_figure(path: Path, command: tuple[str, ...]) -> None:
    """What has no room beside its row stands under it with its full name, and no line is longer than the terminal."""
    shown = in_terminal("logs", *command, "--file", path, columns=80)
    assert max(map(len, shown)) <= 80
    words = " ".join(" ".join(shown).split())
    assert "duration_ms_p95 1000" in words or "duration_ms 1000" in words
    assert "…" not in words


def test_ctrl_c_ends_a_long_query(path: Path) -> None:
    """It ends at once with the status of an interrupt and without a traceback."""
    path.write_bytes(lines(*range(3000)))
    sql = "SELECT count(*) FROM requests a, requests b, requests c WHERE a.request_id || b.request_id > c.request_id"
    argv = [sys.executable, "-m", "rolecall", "logs", "query", sql, "--file", str(path)]
    process = subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err


def test_a_closed_pipe_ends_it_quietly(path: Path) -> None:
    """`| head` is no error."""
    path.write_bytes(lines(*range(3000)))
    argv = [sys.executable, "-m", "rolecall", "logs", "query", "FROM requests", "--csv", "--file", str(path)]
    process = subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"ts,")
    process.stdout.close()
    assert process.wait(DEADLINE_S) == 0
    assert process.stderr.read() == b""


def test_the_list_does_not_wait_for_the_database(path: Path) -> None:
    """DuckDB is imported by the commands that ask it, and by no other."""
    code = "import sys; import rolecall.cli.logs; sys.exit('duckdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert rolecall("logs", "--file", path, "--json").returncode == 0
