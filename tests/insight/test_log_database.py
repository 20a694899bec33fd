# ruff: noqa: S608 - queries are what is tested
"""The request log as a database: what counts as a record, which files are read, and what a query cannot do."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import threading
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insight.written_lines import NOON, line, lines
from rolecall.gateway.recorder import Recorder, RequestLine
from rolecall.insight.log_columns import column_types
from rolecall.insight.log_database import QueryError, Tally, foreign_query, needs_of, opened_database
from rolecall.insight.log_reader import parse_time


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat_proxy.jsonl"


def rows(path: Path, sql: str = "SELECT request_id FROM requests ORDER BY ts") -> list[dict[str, Any]]:
    with foreign_query(path, sql) as (_, answer):
        return answer.dicts()


def ids(path: Path) -> list[int]:
    return [int(row["request_id"][4:]) for row in rows(path)]


def tally(path: Path) -> Tally:
    with opened_database(path) as database:
        return database.tally


# --- what is a record


GOOD = b'{"ts":"2026-01-31T12:00:00Z","request_id":"a"'
BROKEN = {
    "half a line": GOOD[:30],
    "binary": b"\x00\xff\xfe\x01",
    "number": b"5",
    "list": b"[1, 2]",
    "null": b"null",
    "text": b'"x"',
    "no request_id": b'{"ts":"2026-01-31T12:00:00Z"}',
    "null request_id": b'{"ts":"2026-01-31T12:00:00Z","request_id":null}',
    "ts of a wrong type": b'{"ts":5,"request_id":"a"}',
    "ts that is no time": b'{"ts":"yesterday","request_id":"a"}',
    "ts without an end": b'{"ts":"infinity","request_id":"a"}',
    "ts too late for anybody": b'{"ts":"99999-01-01T00:00:00Z","request_id":"a"}',
    "lone surrogate": GOOD + b',"model":"\\ud800x"}',
    "not UTF-8": GOOD + b',"model":"\xff"}',
    "a NUL": GOOD + b',"model":"a\x00b"}',
    "two in one": GOOD + b"}" + GOOD + b"}",
    "something behind": GOOD + b"} x",
    "BOM": b"\xef\xbb\xbf" + GOOD + b"}",
    "names in capitals": b'{"TS":"2026-01-31T12:00:00Z","REQUEST_ID":"a"}',
}
WRONG = {
    "words for a number": (b',"status":"ok"', "status"),
    "integer over 64 bits": (b',"prompt_tokens":99999999999999999999999999', "prompt_tokens"),
    "NaN": (b',"ttft_ms":NaN', "ttft_ms"),
    "Infinity": (b',"ttft_ms":-Infinity', "ttft_ms"),
    "object for a number": (b',"duration_ms":{"a":1}', "duration_ms"),
    "list for a truth": (b',"stream":[true]', "stream"),
}
UNUSUAL = {
    "number for a text": (b',"model":5', "model", "5"),
    "object for a text": (b',"model":{"a": [1]}', "model", '{"a":[1]}'),
    "text for a number": (b',"status":"200"', "status", 200),
    "the same key twice": (b',"model":"one","model":"two"', "model", "one"),
    "escaped NUL": (b',"model":"a\\u0000b"', "model", "a\0b"),
    "deep": (b',"x":' + b"[" * 2000 + b"]" * 2000, "model", None),
    "carriage return": (b',"model":"m"', "model", "m"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_lines_that_are_no_records_are_counted_and_skipped(name: str, path: Path) -> None:
    """One such line between two others is counted as one, and costs neither of them."""
    path.write_bytes(line(1) + BROKEN[name] + b"\n" + line(2))
    assert tally(path) == Tally(lines=3, broken=1)
    assert ids(path) == [1, 2]


@pytest.mark.parametrize("name", WRONG)
def test_a_value_of_a_wrong_kind_is_null_and_counted(name: str, path: Path) -> None:
    """It costs no other value of its line, and the line counts as one."""
    more, column = WRONG[name]
    path.write_bytes(GOOD + more + b"}\n" + line(2, **{column: True if column == "stream" else 1}))
    assert tally(path) == Tally(lines=2, wrong=1)
    found = rows(path, f"SELECT request_id, {column} FROM requests ORDER BY request_id")
    assert [list(row.values()) for row in found] == [["a", None], ["req-0002", 1]]


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_value_that_can_be_read_is_read(name: str, path: Path) -> None:
    """What is not as rolecall writes it, but can be understood, is no error."""
    more, column, expected = UNUSUAL[name]
    path.write_bytes(GOOD + more + (b"}\r\n" if name == "carriage return" else b"}\n"))
    assert tally(path) == Tally(lines=1)
    assert rows(path, f"SELECT {column} FROM requests") == [{column: expected}]


def test_a_half_line_at_the_end_and_empty_lines(path: Path) -> None:
    """The half line at the end is counted once; lines without anything are none."""
    path.write_bytes(b"\n  \n" + line(1) + b"\n\n" + line(2)[:50])
    assert tally(path) == Tally(lines=2, broken=1)
    assert ids(path) == [1]


def is_record(raw: bytes) -> bool:
    """Whether a line is a record, found another way."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(found, dict) or not isinstance(found.get("ts"), str):
        return False
    return found.get("request_id") is not None and parse_time(found["ts"]) is not None


PIECES = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 300).map(lambda n: line(1).rstrip()[:n]),
    st.integers(0, 300).map(lambda n: line(1).rstrip()[n:]),
    st.just(line(1).rstrip()),
    st.dictionaries(
        st.sampled_from(["ts", "request_id", "model"]), st.sampled_from(["2026-01-31T12:00:00Z", "x", 5, None, [1], {}])
    ).map(lambda found: json.dumps(found).encode()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=30))
def test_the_count_is_exact(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    """Whatever the lines are, as many are told as another reader finds."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    data = b"\n".join(pieces) + b"\n"
    path.write_bytes(data)
    there = [raw for raw in data.split(b"\n") if raw.strip(b" \t\r\v\f")]
    found = tally(path)
    assert (found.lines, found.lines - found.broken) == (len(there), sum(map(is_record, there)))


def test_the_count_is_exact_over_many_blocks(path: Path) -> None:
    """A file of many times the size that is read at once, by several threads, loses and doubles nothing."""
    half = line(0)[:200] + b"\n"
    path.write_bytes(b"".join(line(n) + (half if n % 3 == 0 else b"") for n in range(90_000)))
    assert path.stat().st_size > 48 * 2**20
    assert tally(path) == Tally(lines=120_000, broken=30_000)


# --- columns


def test_every_key_is_a_column_even_if_no_line_has_it(path: Path) -> None:
    """The view is the same for lines of an older version and for none at all."""
    names = [field.name for field in fields(RequestLine)]
    path.write_bytes(GOOD + b"}\n")
    assert list(rows(path, "SELECT * FROM requests")[0]) == names
    path.write_bytes(b"")
    described = rows(path, "DESCRIBE requests")
    assert {row["column_name"]: row["column_type"] for row in described} == column_types()
    assert list(column_types()) == names


def test_types(path: Path) -> None:
    """Each value has the type of its column: moments, numbers, truths, texts, JSON."""
    path.write_bytes(line(1, stream=True, ttft_ms=1.5, images=2, prompt=[{"role": "user"}], response="é"))
    found = rows(path, "SELECT ts, stream, ttft_ms, images, prompt, response, prompt->0->>'role' AS r FROM requests")
    assert found[0].pop("ts").timestamp() == NOON.timestamp() + 1
    assert found == [
        {"stream": True, "ttft_ms": 1.5, "images": 2, "prompt": '[{"role":"user"}]', "response": "é", "r": "user"}
    ]


# --- which files


def test_all_files_are_read(path: Path) -> None:
    """The recorder's numbered ones, those of logrotate with numbers or dates, and compressed ones; nothing else."""
    path.write_bytes(lines(9))
    path.with_name(path.name + ".1").write_bytes(lines(8))
    path.with_name(path.name + ".2.gz").write_bytes(gzip.compress(lines(6)) + gzip.compress(lines(7)))
    path.with_name(path.name + ".10.gz").write_bytes(gzip.compress(lines(1)))
    path.with_name(path.name + "-20260130").write_bytes(lines(4))
    path.with_name("chat_proxy-2026-01-29.jsonl.gz").write_bytes(gzip.compress(lines(3)))
    old = path.with_name(path.name + ".3")
    old.write_bytes(lines(5))
    subprocess.run(["zstd", "-q", "--rm", str(old)], check=True)
    for other in ("other.jsonl", path.name + ".bak", path.name + ".txt.gz", "chat_proxy-two.jsonl"):
        path.with_name(other).write_bytes(lines(99))
    assert ids(path) == [1, 3, 4, 5, 6, 7, 8, 9]
    assert tally(path) == Tally(lines=8)


def test_what_is_being_compressed_is_read_once(path: Path) -> None:
    """While gzip works both files are there, and the compressed one is not whole."""
    path.with_name(path.name + ".1").write_bytes(lines(1, 2))
    path.with_name(path.name + ".1.gz").write_bytes(gzip.compress(lines(1, 2))[:40])
    assert ids(path) == [1, 2]
    assert tally(path) == Tally(lines=2)


def test_a_compressed_file_beside_another_of_its_name_is_read(path: Path) -> None:
    """Who compresses what rolecall has rotated finds its number taken again after the next rotation."""
    path.write_bytes(lines(4))
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(lines(3)))
    path.with_name(path.name + ".1").write_bytes(lines(2))
    path.with_name(path.name + ".1.gz").write_bytes(gzip.compress(lines(1)))
    assert ids(path) == [1, 2, 3, 4]
    path.with_name(path.name + ".1").write_bytes(lines(1))
    path.write_bytes(b"")
    assert ids(path) == [1, 3]


def test_a_file_that_cannot_be_read_is_left_out_and_told(path: Path) -> None:
    """One that was cut, one that is something else, and one of another kind cost nothing else, and are named."""
    path.write_bytes(lines(1) + b"broken\n")
    packed = gzip.compress(lines(*range(200)))
    path.with_name(path.name + ".1.gz").write_bytes(packed[: len(packed) // 2])
    path.with_name(path.name + ".2.zst").write_bytes(b"no zstd")
    path.with_name(path.name + ".3.xz").write_bytes(b"")
    found = tally(path)
    assert (found.lines, found.broken) == (2, 1)
    assert [reason.partition(":")[0] for reason in sorted(found.left_out)] == [
        f"{path.name}.1.gz",
        f"{path.name}.2.zst",
        f"{path.name}.3.xz",
    ]
    assert ids(path) == [1]
    assert not any("/proc" in reason for reason in found.left_out)


@pytest.mark.parametrize("damage", ["a byte of a gzip", "the end of a zstd"])
def test_what_unpacks_to_something_else_is_left_out_and_told(damage: str, path: Path) -> None:
    """A compressed file that makes a line which is no record is compared with its check sum."""
    path.write_bytes(lines(1))
    if damage == "a byte of a gzip":
        path.with_name(path.name + ".1.gz").write_bytes(gzip.compress(lines(2, 3, 4), 0).replace(b'{"ts"', b'x"ts"', 1))
    else:
        whole = subprocess.run(["zstd", "-q"], input=lines(*range(9000)), capture_output=True, check=True).stdout
        path.with_name(path.name + ".1.zst").write_bytes(whole[: len(whole) // 2])
    found = tally(path)
    assert found.lines == 1
    assert [reason.partition(", ")[0] for reason in found.left_out] == [
        f"{path.name}.1.{damage.rsplit(maxsplit=1)[-1].replace('gzip', 'gz').replace('zstd', 'zst')}: it is damaged"
    ]
    assert ids(path) == [1]


def test_a_half_line_costs_a_sound_compressed_file_nothing(path: Path) -> None:
    """What was packed half is counted, and the other lines of the file are there."""
    path.with_name(path.name + ".1.gz").write_bytes(gzip.compress(lines(1, 2) + line(3)[:50]))
    path.write_bytes(lines(4))
    assert tally(path) == Tally(lines=4, broken=1)
    assert ids(path) == [1, 2, 4]


def test_files_that_cannot_be_read_cost_the_others_nothing(path: Path) -> None:
    """Some with reasons that name them, some with reasons that do not: the sound ones around them are read once."""
    path.write_bytes(lines(9))
    for number, extra in enumerate((b"", b"behind", b""), start=1):
        path.with_name(f"{path.name}.{number}.gz").write_bytes(gzip.compress(lines(number)) + extra)
    path.with_name(path.name + ".4.gz").write_bytes(b"none")
    path.with_name(path.name + ".5.gz").write_bytes(gzip.compress(lines(5, response="x" * 40_000_000)))
    assert ids(path) == [1, 3, 5, 9]
    left_out = tally(path).left_out
    assert sorted(reason.partition(":")[0] for reason in left_out) == [f"{path.name}.2.gz", f"{path.name}.4.gz"]


def test_a_line_of_hundreds_of_megabytes_costs_its_file(path: Path) -> None:
    """A hole in a file is a line without an end: what is left out for it, and from what length on, is told."""
    path.write_bytes(lines(1))
    with path.with_name(path.name + ".1").open("wb") as file:
        file.write(line(2))
        file.seek(2**28 + 2**20)
        file.write(b"\n" + line(3))
    assert tally(path) == Tally(lines=1, left_out=(f"{path.name}.1: it has a line of more than 256 MB",))


# --- feedback


def said(request_id: str = "req-0001", **fields: Any) -> bytes:
    """Return a line of feedback."""
    return json.dumps({"ts": "2026-01-31T12:00:00Z", "request_id": request_id, **fields}).encode() + b"\n"


def test_feedback_that_makes_no_sense_is_counted_and_told(path: Path) -> None:
    """Lines that the dashboard takes for none are none here, too; they and files that cannot be read cost no other."""
    path.write_bytes(lines(1))
    nonsense = [b"half\n", said(score="NaN"), said(score=7), said(), said(score=0.5).replace(b"2026", b"year")]
    beside = path.with_name("chat_proxy.feedback.jsonl")
    beside.write_bytes(said(score=1.0) + b"".join(nonsense))
    beside.with_name(beside.name + ".1.gz").write_bytes(gzip.compress(said("req-0002", label="up"))[:-8])
    with foreign_query(path, "SELECT request_id, score FROM feedback") as (database, answer):
        assert answer.dicts() == [{"request_id": "req-0001", "score": 1.0}]
    assert database.tally.unheard == len(nonsense)
    assert [reason.partition(":")[0] for reason in database.tally.left_out] == [f"{beside.name}.1.gz"]
    assert any("5 lines of the feedback make no sense" in words for words in database.tally.words())


@pytest.mark.parametrize("kind", ["folder", "no gzip"])
def test_damaged_feedback_fails_no_query(kind: str, path: Path) -> None:
    """A query of the feedback tells of it; one of the requests alone does not open it."""
    path.write_bytes(lines(1))
    beside = path.with_name("chat_proxy.feedback.jsonl" + ("" if kind == "folder" else ".1.gz"))
    beside.mkdir() if kind == "folder" else beside.write_bytes(b"no gzip")
    for table, told in (("requests", []), ("feedback", [beside.name]), ("query('FROM feed' || 'back')", [beside.name])):
        with foreign_query(path, f"SELECT count(*) FROM {table}") as (database, _):
            assert [reason.partition(":")[0] for reason in database.tally.left_out] == told


def test_lines_of_tens_of_megabytes(path: Path) -> None:
    """Prompts with many images make long lines; they are read, with more memory and one thread."""
    path.write_bytes(lines(1) + line(2, response="x" * 40_000_000) + lines(3))
    assert tally(path) == Tally(lines=3)
    assert rows(path, "SELECT max(length(response)) AS n FROM requests") == [{"n": 40_000_000}]


def test_there_is_no_log(path: Path) -> None:
    """A log that is not there is an error and no empty database."""
    with pytest.raises(FileNotFoundError), opened_database(path):
        raise AssertionError


def test_the_log_is_read_while_it_is_written_and_rotated(path: Path) -> None:
    """Each look finds every line that was in the files before, none of them twice, and none broken."""
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        with closing(Recorder(path, max_bytes=50_000, backups=100)) as recorder:
            for n in range(7_000):
                recorder.record(RequestLine(request_id=f"req-{n}").as_dict())
                written = n + 1
                if stop.wait(0.0003):
                    return

    writer = threading.Thread(target=write)
    path.touch()
    writer.start()
    seen = 0
    try:
        for _ in range(12):
            found = rows(path, "SELECT count(*) AS n, count(DISTINCT request_id) AS d FROM requests") if seen else []
            with opened_database(path) as database:
                look = database.ask("SELECT count(*), count(DISTINCT request_id) FROM requests")
                (counted, distinct) = next(look.batches)[0]
                assert database.tally.broken == 0
                assert counted == distinct == database.tally.lines
                assert counted >= max([seen, *(row["n"] for row in found)])
                assert counted <= written
                seen = counted
    finally:
        stop.set()
        writer.join()
    assert path.with_name(path.name + ".2").exists()


# --- what a query cannot do


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    secret = tmp_path / "secret.csv"
    secret.write_text("password\n")
    return secret


REFUSED = [
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM glob('{secret}')",
    "SELECT * FROM query('FROM read_text(''{secret}'')')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_json('http://127.0.0.1:9/x')",
    "SELECT getenv('HOME')",
    "SELECT * FROM secret",
    "COPY (SELECT 1) TO '{target}'",
    "COPY (SELECT 1) TO '{log}'",
    "COPY (SELECT 1) TO '{log}' (FORMAT csv, USE_TMP_FILE false)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{log}' (FORMAT csv, USE_TMP_FILE false)",
    "EXPORT DATABASE '{target}'",
    "ATTACH '{target}'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET memory_limit = '100GB'",
    "RESET lock_configuration",
    "PRAGMA enable_profiling",
    "CREATE TABLE t AS SELECT 1",
    "DROP VIEW requests",
    "DELETE FROM requests",
    "SELECT 1; SELECT 2",
    "CALL pragma_version()",
    "BEGIN",
    "",
    "-- nothing",
    "SELECT nope FROM requests",
    "selec 1",
    "SELECT 1 / '",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_a_query_reads_the_log_and_nothing_else(sql: str, path: Path, secret: Path, tmp_path: Path) -> None:
    """No other file, no network, no extension, no setting, nothing written; and the database goes on."""
    path.write_bytes(lines(1))
    target = tmp_path / "target"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QueryError):
        rows(path, sql.format(secret=secret, target=target, log=path))
    assert sorted(tmp_path.iterdir()) == before
    assert path.read_bytes() == lines(1)
    assert secret.read_text() == "password\n"


@pytest.mark.parametrize("sql", [sql for sql in REFUSED if "{" in sql or "SET " in sql or "http" in sql])
def test_the_database_itself_has_no_way_out(sql: str, path: Path, secret: Path, tmp_path: Path) -> None:
    """Even a statement that nobody is let ask reaches no file and no network, and changes no setting."""
    path.write_bytes(lines(1))
    with opened_database(path) as database, pytest.raises(QueryError):
        database.ask(sql.format(secret=secret, target=tmp_path / "target", log=path))
    assert not (tmp_path / "target").exists()
    assert path.read_bytes() == lines(1)


def test_memory_is_limited(path: Path) -> None:
    """A query that needs more says so, and what would allow it."""
    path.write_bytes(lines(*range(2000)))
    sql = "SELECT repeat(a.request_id || b.request_id, 100) AS x FROM requests a, requests b ORDER BY x"
    with pytest.raises(QueryError, match="--memory"), foreign_query(path, sql, 256) as (_, answer):
        answer.dicts()
    path.write_bytes(lines(*range(4000), response="x" * 100_000))
    with pytest.raises(QueryError, match="--memory"), foreign_query(path, "FROM requests", 256) as (_, answer):
        answer.dicts()
    with foreign_query(path, "SELECT count(*) AS n FROM requests", 256) as (_, answer):
        assert answer.dicts() == [{"n": 4000}]


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("SELECT count(*) FROM requests", set()),
        ("SELECT MODEL FROM requests ORDER BY Ts", {"model", "ts"}),
        ('SELECT a."key" FROM requests a JOIN requests b USING (role)', {"key", "role"}),
        ("WITH x AS (SELECT status AS s FROM requests) SELECT s FROM x", {"status", "key"}),
        ("SELECT 1 FROM requests WHERE EXISTS (SELECT stream FROM requests)", {"stream"}),
        ("FROM requests", None),
        ("SUMMARIZE requests", None),
        ("SELECT requests FROM requests", None),
        ("SELECT COLUMNS('.*_ms') FROM requests", None),
        ("SELECT c FROM requests AS r(a, b, c)", None),
        ("SELECT key FROM requests AS r(a, b, key)", None),
        ("SELECT count(*) FROM requests NATURAL JOIN requests r", None),
        ("SELECT m FROM (PIVOT requests ON model IN ('m') USING count(*))", None),
        ("SELECT column_name FROM information_schema.columns", None),
        ("SELECT column_name FROM duckdb_columns()", None),
        ("SELECT 'star', raw.model FROM requests raw", {"model"}),
        ("SELECT model FROM query('SELECT model, role FROM requests')", None),
    ],
)
def test_only_what_a_query_needs_is_read(sql: str, columns: set[str] | None, path: Path) -> None:
    """The columns of a statement are found wherever they stand in it, and it works with them alone."""
    with duckdb.connect() as connection:
        assert needs_of(connection, sql).columns == columns
    path.write_bytes(lines(1))
    with foreign_query(path, sql) as (_, answer):
        found = answer.dicts()
    with opened_database(path) as database:
        assert database.ask(sql).dicts() == found


def test_files_are_closed_at_the_end(path: Path) -> None:
    """Nothing stays open once the log was read."""
    path.write_bytes(lines(1))
    path.with_name(path.name + ".1.gz").write_bytes(gzip.compress(lines(0)))
    assert ids(path) == [0, 1]
    names = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert not any(name.startswith(str(path)) or "rolecall-log" in name for name in names)


def test_texts_that_a_query_makes_are_bounded_too(path: Path) -> None:
    """A text of gigabytes, which the database's own limit lets pass, ends the query, and nothing else later."""
    path.write_bytes(lines(1))
    with (
        pytest.raises(QueryError, match=r"(?i)memory|alloc"),
        foreign_query(path, "SELECT repeat('x', 3900000000)", 256),
    ):
        pass
    assert len(rows(path)) == 1


def test_a_with_that_writes_is_refused(path: Path) -> None:
    """A statement whose WITH deletes is no statement that reads."""
    path.write_bytes(lines(1))
    with pytest.raises(QueryError, match="that reads"):
        rows(path, "WITH a AS (DELETE FROM raw.lines RETURNING 1) SELECT count(*) FROM a")


@pytest.mark.parametrize("table", ["raw.lines", 'memory."RAW".feedback'])
def test_what_is_behind_the_views_is_refused(table: str, path: Path) -> None:
    """The tables behind the views have what is no record, too."""
    path.write_bytes(lines(1))
    with pytest.raises(QueryError, match="the views requests and feedback"):
        rows(path, f"SELECT count(*) FROM {table}")


@pytest.mark.parametrize("sql", ["SELECT r FROM requests AS r", 'SELECT "R" AS r FROM requests r'])
def test_a_row_named_by_an_alias_has_all_columns(sql: str, path: Path) -> None:
    """The view's alias where a column may stand is a row with every column, as the view's name is."""
    path.write_bytes(lines(1))
    assert set(rows(path, sql)[0]["r"]) == set(column_types())
