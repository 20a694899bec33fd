"""Records on the disk in three forms: whole lines, none lost, none twice."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import DEADLINE_S, eventually
from rolecall.vision.batch_record import COLUMNS, Record, from_json, to_json
from rolecall.vision.writers import Output, OutputError, OutputRefused, open_output
from rolecall.vision.writers_cells import from_cells, to_cells
from rolecall.vision.writers_forms import Csv

FORMS = (".jsonl", ".csv", ".duckdb")
ONE = Record(
    file='/p/ä, "b".jpg',
    sha256="00ff",
    task="tags",
    version="1",
    variables={"language": "ja"},
    value={"lighting": ["dark"]},
    tags=("dark", "sharp"),
    discarded=2,
    model="m:1",
    prompt_tokens=10,
    completion_tokens=3,
    ms=12.5,
    width=640,
    height=480,
    sidecar="/p/a.jpg.xmp",
    ts="2026-11-20T17:21:54.146Z",
)
TWO = Record("/p/c.jpg", "", "caption", "2", status="failed", error='it is\n"empty"', discarded=0)
THREE = Record("/p/d.jpg", "11", "caption", "2", value='=1+1\nand "two"\r\n', tags=())


def output(path: Path, *records: Record, resume: bool = False) -> Output:
    """Open an output and add records."""
    made = open_output(path, resume=resume)
    for record in records:
        made.add(record)
    return made


def read(path: Path) -> list[Record]:
    """Read an output again; values that are no text are texts in tables."""
    made = open_output(path, resume=True)
    found = list(made.records())
    made.close()
    return [
        replace(each, value=json.loads(each.value)) if isinstance(each.value, str) and each.value[:1] == "{" else each
        for each in found
    ]


@pytest.fixture(params=FORMS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a path of each form."""
    return tmp_path / f"out{request.param}"


def test_all_forms_hold_the_same_records(path: Path) -> None:
    """What is written comes back, with line ends, quotes and formulas as they were."""
    output(path, ONE, TWO, THREE).close()
    assert read(path) == [ONE, TWO, THREE]


def test_an_output_that_is_there_is_not_written_over(path: Path) -> None:
    """It takes --resume, which adds to it."""
    output(path, ONE).close()
    with pytest.raises(OutputRefused, match="--resume continues it"):
        open_output(path, resume=False)
    output(path, TWO, resume=True).close()
    assert read(path) == [ONE, TWO]


def test_a_record_made_anew_takes_the_place_of_the_old_one(path: Path) -> None:
    """Of each file, task, version and variables there is one record after the run, the latest."""
    output(path, TWO, ONE).close()
    made = open_output(path, resume=True)
    assert len(list(made.records())) == 2
    better = replace(TWO, status="ok", value="A cat.", error=None)
    made.add(better)
    made.add(replace(ONE, version="2"))
    made.close()
    assert read(path) == [ONE, better, replace(ONE, version="2")]
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]


def test_one_run_at_a_time(path: Path) -> None:
    """A second process is refused while the first one writes."""
    made = output(path, ONE)
    code = "import sys, pathlib, rolecall.vision.writers as w; w.open_output(pathlib.Path(sys.argv[1]), resume=True)"
    second = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    assert second.returncode == 1
    assert "another run is writing it" in second.stderr or "another program has it open" in second.stderr
    made.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
@pytest.mark.parametrize("form", [".jsonl", ".csv"])
def test_a_torn_last_line_is_mended(form: str, cut: int, tmp_path: Path) -> None:
    """Wherever a killed process left off, all records before are kept and the next one begins a line of its own."""
    path = tmp_path / f"out{form}"
    output(path, ONE, THREE).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    output(path, TWO, resume=True).close()
    assert read(path) == [ONE, TWO]
    path.write_bytes(whole)
    assert read(path) == [ONE, THREE]


def test_a_torn_head_is_mended(tmp_path: Path) -> None:
    """A CSV of which not even the head was written whole begins anew."""
    path = tmp_path / "out.csv"
    path.write_bytes(b"file,sha2")
    output(path, ONE, resume=True).close()
    assert read(path) == [ONE]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"some": "thing"}\n', "record 1 is none .*lacks file"),
        ("a.jsonl", to_json(ONE).encode() + b"\nhello\n", "record 2 is none"),
        ("a.jsonl", b"[1]\n", "it is no object"),
        ("a.csv", b"name,size\na,1\n", "first line is not that of rolecall's"),
        ("a.txt", b"", "ends in .jsonl, .csv or .duckdb"),
        ("a.duckdb", b"x" * 20_000, "not a valid DuckDB"),
    ],
)
def test_files_of_others_are_refused(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    """What rolecall did not write is named as such and keeps every byte."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(OutputError, match=reason):
        list(open_output(path, resume=True).records())
    assert path.read_bytes() == content


HEAD = ",".join(COLUMNS).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b'name,note\npipe,5" wide\nb,two\nc,three\n'),
        ("a.csv", b"diary of mine, one line"),
        ("a.csv", b'name,note\npipe,5" wide'),
        ("a.jsonl", b'{"my":"data","n":1}'),
        ("a.jsonl", b'{"my":"data","n":1}\n{"last":"line"}'),
        ("a.jsonl", to_json(ONE).encode() + b'\n{"last":"line"}'),
        ("a.jsonl", b'{"my":"data","n":1}\n{"file":"'),
    ],
)
def test_not_one_byte_of_others_is_cut_off(name: str, content: bytes, tmp_path: Path) -> None:
    """Whose a file is is found out before anything is cut off its end; also where it has no line end at all."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(OutputError, match="is it another program's file"):
        open_output(path, resume=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize("place", [b"/p/c.jpg", b"caption,2,{}", b"failed"])
def test_a_stray_quote_cuts_nothing_off(place: bytes, tmp_path: Path) -> None:
    """Where somebody put a quote into a row by hand, the records after it are not taken for a torn one."""
    path = tmp_path / "a.csv"
    output(
        path, ONE, replace(TWO, error="empty"), replace(ONE, file="/p/e.jpg"), THREE, replace(TWO, file="/p/f")
    ).close()
    for old, new in ((place, place + b'"'), (place, b'"' + place)):
        content = HEAD + path.read_bytes().removeprefix(HEAD).replace(old, new, 1)
        edited = tmp_path / "edited.csv"
        edited.write_bytes(content)
        with pytest.raises(OutputError, match="mend the line"):
            open_output(edited, resume=True)
        assert edited.read_bytes() == content


def test_a_stray_quote_in_a_long_table_is_found_at_once(tmp_path: Path) -> None:
    """All that is behind it is looked through once, not anew for each of its lines, which would take hours."""
    path, row = tmp_path / "a.csv", Csv().line(replace(TWO, error="empty"))
    path.write_bytes(HEAD + row.replace(b"failed", b'"failed') + row * 300_000)
    with pytest.raises(OutputError, match="a quote is open"):
        open_output(path, resume=True)


def test_a_stray_quote_in_the_last_row(tmp_path: Path) -> None:
    """It is no torn record either, for it has all its cells and its end."""
    path = tmp_path / "a.csv"
    output(path, ONE, replace(TWO, error='5" wide')).close()
    content = path.read_bytes().replace(b'"5"" wide"', b'5" wide')
    path.write_bytes(content)
    with pytest.raises(OutputError, match="a quote is open"):
        open_output(path, resume=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize("text", ["a\rb", "\r", "one\r\ntwo", "tail\r"])
def test_a_carriage_return_is_read_again(text: str, path: Path) -> None:
    """In a name or an answer it is one character as any other, whatever line ends CSV has elsewhere."""
    record = replace(THREE, file=f"/p/{text}.jpg", value=text)
    output(path, record, TWO).close()
    assert read(path) == [record, TWO]


def test_a_database_with_another_table_is_refused(tmp_path: Path) -> None:
    """A table of the same name with other columns is left alone; other tables do not matter."""
    path = tmp_path / "a.duckdb"
    with duckdb.connect(str(path)) as database:
        database.execute("CREATE TABLE mine (a INTEGER)")
    output(path, ONE, resume=True).close()
    assert read(path) == [ONE]
    with duckdb.connect(str(path)) as database:
        assert database.execute("SELECT tags, value FROM records").fetchall() == [
            (["dark", "sharp"], '{"lighting": ["dark"]}')
        ]
        database.execute("ALTER TABLE records DROP COLUMN ms")
    with pytest.raises(OutputError, match="other columns"):
        open_output(path, resume=True)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The reason is told."""
    for form in FORMS:
        with pytest.raises(OutputError, match=r"No such file|[Cc]annot open"):
            open_output(tmp_path / "no" / f"out{form}", resume=False)


WRITE = """
import resource, sys
from pathlib import Path
from rolecall.vision.batch_record import COLUMNS, Record
from rolecall.vision.writers import OutputError, open_output
path, limit = Path(sys.argv[1]), int(sys.argv[2])
output = open_output(path, resume=True)
had = len(list(output.records()))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
count = had
try:
    while count < had + 5000:
        output.add(Record(f"/p/{count}.jpg", "00", "caption", "1", value='say "x"\\n' * 200))
        count += 1
        print(count, flush=True)
except OutputError as error:
    print(error, file=sys.stderr)
    try:
        output.close()
    except OutputError as error:
        print(error, file=sys.stderr)
"""


def test_a_full_disk_loses_nothing(path: Path) -> None:
    """The error says what to do; every record that was taken is there, and with room the next run goes on."""
    output(path, ONE).close()
    argv = [sys.executable, "-c", WRITE, str(path), "1000000"]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert "the disk is full" in ended.stderr
    assert "--resume" in ended.stderr
    assert "Traceback" not in ended.stderr
    taken = int(ended.stdout.split()[-1])
    assert taken > 100
    assert len(read(path)) == taken
    output(path, TWO, resume=True).close()
    assert len(read(path)) == taken + 1


def test_a_killed_process_loses_at_most_the_record_in_work(path: Path) -> None:
    """Whatever was taken before SIGKILL is there afterwards."""
    with subprocess.Popen([sys.executable, "-c", WRITE, str(path), "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(50):
            taken = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        rest = process.stdout.read().split()
    taken = int(rest[-1]) if rest else taken
    assert eventually(lambda: len(read(path))) - taken in (0, 1)


def test_a_spreadsheet_computes_nothing(tmp_path: Path) -> None:
    """No cell of a text begins like a formula, and the text comes back as it was."""
    evil = [
        replace(THREE, file=f"/{n}", value=text) for n, text in enumerate(["=1", "+1", "-1", "@a", "'=1", "''@", "'a"])
    ]
    path = tmp_path / "out.csv"
    output(path, *evil).close()
    rows = list(csv.reader(io.StringIO(path.read_text(), newline="")))
    assert [row[6][:1] for row in rows[1:]] == ["'"] * 7
    assert [record.value for record in read(path)] == [record.value for record in evil]


WORD = st.text(st.characters(exclude_characters=";\0", exclude_categories=["Cs"]), min_size=1)


@given(st.text(), st.lists(WORD), st.floats(0, 1e6))
def test_any_text_survives(text: str, words: list[str], ms: float) -> None:
    """A line is one line and a row has all cells, whatever a model said."""
    record = Record("/p", "00", "t", "1", {"a": "b"}, value=text, tags=tuple(words), ms=ms)
    assert from_json(to_json(record)) == record
    assert "\n" not in to_json(record)
    assert from_cells(to_cells(replace(record, value=text.replace("\0", "")))) == replace(
        record, value=text.replace("\0", "")
    )


def test_half_a_surrogate_pair_can_be_written(path: Path) -> None:
    """What no encoding has becomes a question mark."""
    output(path, replace(THREE, value="a\ud83d", tags=("\ude00",))).close()
    assert [(record.value, record.tags) for record in read(path)] == [("a?", ("?",))]
