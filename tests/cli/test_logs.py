"""``rolecall logs`` over real files, and ``-f`` in a process of its own."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rolecall.cli.logs import app
from rolecall.gateway.recorder import Recorder, RequestLine, timestamp
from rolecall.insight.log_reader import lines_backwards, parse_since

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat_proxy.jsonl"


def line(n: int = 0, **fields: Any) -> str:
    known: dict[str, Any] = {"model": "demo-chat", "role": "chat", "status": 200, "finish_reason": "stop"}
    known.update(ts=timestamp((NOON + timedelta(seconds=n)).timestamp()), request_id=f"req-{n:04d}", **fields)
    extra = {key: known.pop(key) for key in ("prompt", "response") if key in known}
    return json.dumps(RequestLine(**known).as_dict() | extra) + "\n"


def logs(path: Path, *arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["--file", str(path), *arguments], env=env)


def ids(output: str) -> list[int]:
    return [int(json.loads(line)["request_id"][4:]) for line in output.splitlines()]


# --- which lines ------------------------------------------------------------------------------------------------------


def test_last_twenty_requests_are_shown_newest_last(path: Path) -> None:
    """Without options the last 20 requests are shown, in the order of the log."""
    path.write_text("".join(line(n) for n in range(30)))
    result = logs(path, "--json")
    assert result.exit_code == 0
    assert ids(result.stdout) == list(range(10, 30))


def test_json_is_the_log_byte_by_byte(path: Path) -> None:
    """--json prints the lines as they stand in the log, however they were written."""
    written = '{"request_id": "a",   "ts":"2026-01-31T12:00:00Z", "x": 1.50, "model":"caf\\u00e9 é"}\n'
    path.write_text(written)
    assert logs(path, "--json").stdout == written


def test_lines_are_counted_after_filtering(path: Path) -> None:
    """-n 3 gives the last three that match, not the matches among the last three."""
    path.write_text("".join(line(n, model="rare" if n % 10 == 0 else "often") for n in range(100)))
    assert ids(logs(path, "--json", "-n", "3", "--model", "rare").stdout) == [70, 80, 90]


def test_rotated_files_are_read_when_the_log_has_too_few(path: Path) -> None:
    """Older files give what the present one lacks, in order, .10 being older than .9."""
    for number in range(12):
        name = f"{path.name}.{number}" if number else path.name
        path.with_name(name).write_text(line(2 * (11 - number)) + line(2 * (11 - number) + 1))
    path.with_name(path.name + ".bak").write_text(line(999))
    assert ids(logs(path, "--json", "-n", "5").stdout) == [19, 20, 21, 22, 23]
    assert ids(logs(path, "--json", "-n", "100").stdout) == list(range(24))


def test_compressed_files_are_read(path: Path) -> None:
    """What logrotate has compressed is older than the rest and read in order, whatever it is called."""
    path.write_text(line(8) + line(9))
    path.with_name(path.name + ".1").write_text(line(6) + line(7))
    path.with_name(path.name + ".2.gz").write_bytes(gzip.compress((line(4) + line(5)).encode()))
    path.with_name(path.name + ".10.gz").write_bytes(gzip.compress((line(0) + line(1)).encode()))
    dated = path.with_name(path.name + "-20260131")
    dated.write_text(line(2) + line(3))
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-q", "--rm", str(dated)], check=True)
    assert ids(logs(path, "--json", "-n", "100").stdout) == list(range(10))
    assert ids(logs(path, "--json", "-n", "5").stdout) == [5, 6, 7, 8, 9]
    assert json.loads(logs(path, "show", "--json", "req-0001").stdout)["request_id"] == "req-0001"
    assert logs(path, "--since", "2026-01-31T12:00:04Z", "--json").exit_code == 0


def test_a_compressed_file_that_is_broken_is_told(path: Path) -> None:
    """It is named where its lines are needed, and costs nothing where they are not."""
    path.write_text(line(1))
    path.with_name(path.name + ".1.gz").write_bytes(gzip.compress(line(0).encode())[:-9])
    assert ids(logs(path, "--json", "-n", "1").stdout) == [1]
    told = logs(path, "show", "req-0000")
    assert told.exit_code == 1
    assert f"it is damaged, cut short, or not compressed by gzip: {path}.1.gz" in told.stderr


def test_file_met_under_two_names_is_read_once(path: Path) -> None:
    """A log that is being rotated, and so is found under its old and its new name, gives its lines once."""
    path.write_text(line(1))
    path.with_name(path.name + ".1").hardlink_to(path)
    assert ids(logs(path, "--json").stdout) == [1]


def test_rotated_files_are_read_when_the_log_is_missing(path: Path) -> None:
    """Just after a rotation there may be no present log; the older files are still shown."""
    path.with_name(path.name + ".1").write_text(line(1))
    assert ids(logs(path, "--json").stdout) == [1]


def test_recorder_and_reader_agree_on_rotation(path: Path) -> None:
    """What the recorder has written over many files is read back complete and in order."""
    with closing(Recorder(path, max_bytes=5_000, backups=100)) as recorder:
        for n in range(200):
            recorder.record(RequestLine(request_id=f"req-{n:04d}").as_dict())
    assert path.with_name(path.name + ".10").exists()
    assert ids(logs(path, "--json", "-n", "1000").stdout) == list(range(200))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("404", [404]),
        ("4xx", [404, 499]),
        ("5xx", [500, 503]),
        (">=499", [499, 500, 503]),
        ("> 499", [500, 503]),
        ("<404", [200, 204, 201]),
        ("<=204", [200, 204, 201]),
        ("!=200", [204, 201, 404, 499, 500, 503]),
        ("ok", [200, 204]),
        ("error", [201, 404, 499, 500, 503, None]),
    ],
)
def test_status_filters(path: Path, status: str, expected: list[int | None]) -> None:
    """A status is a code, a class, a comparison, or ok and error; a stream that broke off (here 201) is an error."""
    codes = [200, 204, 201, 404, 499, 500, 503, None]
    path.write_text("".join(line(status=code, error="engine_error: gone" if code == 201 else None) for code in codes))
    result = logs(path, "--json", "--status", status)
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == expected


@pytest.mark.parametrize(
    ("option", "pattern", "expected"),
    [
        ("--model", "qwen_(FP8)", [0]),
        ("--model", "qwen*", [0, 1]),
        ("--model", "qwen", []),
        ("--model", "odd[1]", [2]),
        ("--model", "nosuch", [3]),
        ("--role", "caption", [0]),
        ("--role", "*ion", [0, 1]),
        ("--role", "narration?", []),
    ],
)
def test_model_and_role_filters(path: Path, option: str, pattern: str, expected: list[int]) -> None:
    """Model and role match exactly or with wildcards; an unknown model is found by the name that was asked for."""
    path.write_text(
        line(0, model="qwen_(FP8)", role="caption")
        + line(1, model="qwen3", role="description")
        + line(2, model="odd[1]", role=None)
        + line(3, model=None, role=None, requested_model="nosuch", status=404)
    )
    result = logs(path, "--json", option, pattern)
    assert ids(result.stdout) == expected
    assert result.exit_code == (0 if expected else 1)


def test_since_takes_an_iso_time(path: Path) -> None:
    """--since with a time keeps the requests that arrived then or later, also where the log is not in their order."""
    path.write_text(line(10) + line(5) + line(20) + line(9))
    assert ids(logs(path, "--json", "--since", "2026-01-31T12:00:10Z").stdout) == [10, 20]
    assert ids(logs(path, "--json", "--since", "2026-01-31T13:00:10+01:00").stdout) == [10, 20]


def test_since_takes_a_duration(path: Path) -> None:
    """--since with a duration counts back from now, and leaves out rotated files that are older as a whole."""
    old = path.with_name(path.name + ".1")
    old.write_text(line(1))
    os.utime(old, (0, 0))
    path.write_text(line(2) + recent_line(3, minutes_ago=70) + recent_line(4, minutes_ago=50))
    assert ids(logs(path, "--json", "--since", "1h").stdout) == [4]
    assert ids(logs(path, "--json", "--since", "1h15m").stdout) == [3, 4]
    assert ids(logs(path, "--json", "--since", "9999d").stdout) == [2, 3, 4]


def recent_line(n: int, minutes_ago: float) -> str:
    ago = datetime.now(timezone.utc) - timedelta(minutes=minutes_ago)
    return json.dumps(RequestLine(ts=timestamp(ago.timestamp()), request_id=f"req-{n:04d}").as_dict()) + "\n"


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1w", 604800), ("1h30m", 5400)]
)
def test_durations(text: str, seconds: int) -> None:
    """Durations are seconds, minutes, hours, days, weeks, and sums of them."""
    assert NOON - parse_since(text, NOON) == timedelta(seconds=seconds)


def test_time_without_a_zone_is_local() -> None:
    """An ISO time that names no zone is one of the user's own clock."""
    assert parse_since("2026-01-31T12:00", NOON) == datetime(2026, 1, 31, 12).astimezone()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--status", "foo"),
        ("--status", "9xx"),
        ("--since", "tomorrow"),
        ("--since", "10"),
        ("-n", "-1"),
        ("-n", "many"),
        ("nosuch",),
    ],
)
def test_wrong_usage_is_exit_2(path: Path, arguments: tuple[str, ...]) -> None:
    """An option that cannot be understood is named, with status 2."""
    path.write_text(line())
    result = logs(path, *arguments)
    assert result.exit_code == 2
    assert arguments[0].lstrip("-") in result.stderr


# --- what can be wrong with the file ----------------------------------------------------------------------------------


def test_missing_log_says_where_it_was_looked_for(path: Path) -> None:
    """Without a log the message names the place and the ways to name another, with status 1."""
    result = logs(path)
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert "--file" in result.stderr
    assert "CHAT_PROXY_LOG_PATH" in result.stderr


def test_environment_names_the_log(path: Path) -> None:
    """CHAT_PROXY_LOG_PATH is used where --file is not given, by both commands."""
    path.write_text(line(7))
    env = {"CHAT_PROXY_LOG_PATH": str(path)}
    assert ids(CliRunner().invoke(app, ["--json"], env=env).stdout) == [7]
    assert ids(CliRunner().invoke(app, ["show", "req-0007", "--json"], env=env).stdout) == [7]


def test_option_wins_over_the_environment(path: Path) -> None:
    """--file wins over CHAT_PROXY_LOG_PATH, before and after the name of the command."""
    path.write_text(line(7))
    env = {"CHAT_PROXY_LOG_PATH": str(path.with_name("other"))}
    for arguments in (["--file", str(path), "show", "req", "--json"], ["show", "req", "--json", "--file", str(path)]):
        assert ids(CliRunner().invoke(app, arguments, env=env).stdout) == [7]


def test_nothing_found_is_exit_1(path: Path) -> None:
    """An empty log and a filter without a match print a reason, no table, with status 1."""
    path.write_text("")
    assert (logs(path).exit_code, logs(path).stdout) == (1, "")
    path.write_text(line())
    result = logs(path, "--model", "nosuch")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "matches" in result.stderr


def test_directory_is_no_log(tmp_path: Path) -> None:
    """A directory in place of the log is a reason, not a traceback."""
    result = logs(tmp_path)
    assert result.exit_code == 1
    assert "not a regular file" in result.stderr


def test_lines_that_are_no_records_are_skipped_and_counted(path: Path) -> None:
    """Half lines, other programs' lines and binary rubbish are left out, and told once on stderr."""
    rubbish = b'{"ts":"2026-01-31T12:0\n[1]\nplain text\n{"level":"info"}\n\xff\xfe\n\n{"ts":1,"request_id":2}\n'
    path.write_bytes(line(1).encode() + rubbish + line(2).encode() + b'{"half')
    result = logs(path, "--json")
    assert ids(result.stdout) == [1, 2]
    assert result.stderr.count("skipped") == 1
    assert result.stderr.startswith("7 lines")


@given(
    sizes=st.lists(st.integers(0, 3) | st.integers(60_000, 70_000) | st.just(300_000), max_size=8), ends=st.booleans()
)
def test_reading_backwards_gives_each_line_once(sizes: list[int], *, ends: bool) -> None:
    """Whatever the lines' lengths, reading backwards by blocks yields all but the empty ones, last first."""
    lines = [bytes([97 + n]) * size for n, size in enumerate(sizes)]
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    assert list(lines_backwards(io.BytesIO(data), len(data))) == [found for found in reversed(lines) if found]


# --- the table --------------------------------------------------------------------------------------------------------


def test_table_in_a_pipe_is_plain_and_uncut(path: Path) -> None:
    """Outside a terminal there are no colours and no cut names, so that grep finds what it looks for."""
    model = "a-model-with-a-very-long-name-that-no-column-holds_(Q4_K_M)"
    path.write_text(
        line(1, model=model, duration_ms=1234.5, ttft_ms=56.7, prompt_tokens=812, completion_tokens=34)
        + line(2, status=503, error="model_start_failed: " + "reason " * 20)
    )
    head, first, second = logs(path).stdout.splitlines()
    assert head.split() == ["time", "stat", "model", "role", "ms", "ttft", "tokens", "tok/s", "result"]
    assert first.split() == ["2026-01-31", "12:00:01", "200", model, "chat", "1234", "57", "812→34", "-", "stop"]
    assert second.endswith("reason " * 19 + "reason ")
    assert "\x1b" not in logs(path).stdout


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_table_fits_the_terminal(path: Path, width: int) -> None:
    """In a terminal each request is one line of at most its width, with the columns under their heads."""
    path.write_text(
        line(1, model="m" * 60, role="r" * 40, duration_ms=999_999, ttft_ms=99_000, tokens_per_second=1234.5)
        + line(
            2,
            model="模型" * 30,
            prompt_tokens=128_000,
            completion_tokens=16_000,
            error="code: " + "x" * 300,
            status=500,
        )
    )
    output = logs(path, env={"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}).stdout
    assert "\x1b[31m500" in output
    assert "\x1b[32m200" in output
    head, first, second = re.sub("\x1b\\[[0-9;]*m", "", output).splitlines()
    assert len(head) <= width
    assert len(first) <= width
    assert "1000s 99000         -  1234" in first
    assert "128k→16k" in second
    assert "…" in second
    assert head.index("stat") == first.index("200")


def test_times_of_today_have_seconds_in_a_narrow_terminal(path: Path) -> None:
    """A terminal of 80 columns shows the time of today's requests, and date and minute of older ones."""
    path.write_text(line(1) + recent_line(2, minutes_ago=0))
    output = logs(path, env={"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}).stdout
    _, older, newer = re.sub("\x1b\\[[0-9;]*m", "", output).splitlines()
    assert older.startswith("01-31 12:00 ")
    assert re.match("\\d\\d:\\d\\d:\\d\\d    ", newer)


def test_log_cannot_drive_the_terminal(path: Path) -> None:
    """Escape sequences that a client put into a name or an error are shown as signs, and line ends as spaces."""
    evil = "\x1b]0;owned\x07\x9b2J\u202e\r"
    path.write_text(line(1, model=evil, error=f"code: a\nb{evil}"))
    for arguments in ((), ("show", "req-0001")):
        output = logs(path, *arguments).stdout
        assert not set(output) & set(evil) - set("]0;owned2J")
    assert len(logs(path).stdout.splitlines()) == 2


def test_foreign_types_in_the_fields_are_shown(path: Path) -> None:
    """A line whose fields hold other types than ours is shown as well as may be, without a traceback."""
    odd = {"ts": "noon", "request_id": 5, "status": "fine", "model": [1], "duration_ms": "long", "prompt_tokens": True}
    path.write_text(json.dumps(odd) + "\n")
    result = logs(path)
    assert result.exit_code == 0
    assert "noon" in result.stdout
    assert "fine" in result.stdout


# --- show -------------------------------------------------------------------------------------------------------------


def test_show_prints_every_field(path: Path) -> None:
    """All fields of one request are printed, one a line, in their order."""
    path.write_text(line(1) + line(2, error="a: b\nlast line", stream=True, prompt=[{"role": "user"}]) + line(3))
    result = logs(path, "show", "req-0002")
    assert result.exit_code == 0
    names = [row.split()[0] for row in result.stdout.splitlines() if not row.startswith(" ")]
    assert names == list(json.loads(line(2, prompt="x")))
    assert re.search(r"^error +a: b\n +last line$", result.stdout, re.MULTILINE)
    assert re.search(r"^stream +true$", result.stdout, re.MULTILINE)
    assert re.search(r"^status +200$", result.stdout, re.MULTILINE)


def test_show_in_a_terminal_fits_its_width(path: Path) -> None:
    """In a terminal a long value is folded inside its column."""
    path.write_text(line(1, error="x" * 300))
    output = logs(path, "show", "req", env={"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}).stdout
    rows = re.sub("\x1b\\[[0-9;]*m", "", output).splitlines()
    assert max(map(len, rows)) <= 80
    assert sum(row.count("x") for row in rows if row.startswith(("error", " "))) == 300


def test_show_takes_the_beginning_of_an_id(path: Path) -> None:
    """The first characters of an id are enough where they fit one request, in rotated files too."""
    path.with_name(path.name + ".1").write_text(line(12) + line(20))
    path.write_text(line(30))
    assert ids(logs(path, "show", "req-001", "--json").stdout) == [12]


def test_show_takes_a_whole_id_that_others_begin_with(path: Path) -> None:
    """An id that is the beginning of another one is not ambiguous."""
    path.write_text(line(1).replace("req-0001", "req-00") + line(2))
    assert '"req-00"' in logs(path, "show", "req-00", "--json").stdout


def test_show_gives_the_newest_of_an_id_used_twice(path: Path) -> None:
    """Where a client used an id more than once, its last request is shown."""
    path.write_text(line(1, status=404) + line(1, status=200))
    assert json.loads(logs(path, "show", "req-0001", "--json").stdout)["status"] == 200


def test_show_lists_the_candidates_of_an_ambiguous_id(path: Path) -> None:
    """An ambiguous beginning lists the newest candidates with their time and model, with status 1."""
    path.write_text("".join(line(n) for n in range(30)))
    result = logs(path, "show", "req-")
    assert result.exit_code == 1
    assert "30 requests begin with 'req-'" in result.stderr
    assert "req-0029  2026-01-31 12:00:29  demo-chat" in result.stderr
    assert "and 20 more" in result.stderr


def test_show_of_an_unknown_id_is_exit_1(path: Path) -> None:
    """An unknown id, and a missing log, are a reason with status 1."""
    assert "no request log" in logs(path, "show", "req").stderr
    path.write_text(line(1))
    result = logs(path, "show", "other")
    assert result.exit_code == 1
    assert "no request with the id 'other'" in result.stderr


# --- follow -----------------------------------------------------------------------------------------------------------


class Following:
    """``rolecall logs -f`` as a process whose output is read with a deadline."""

    def __init__(self, path: Path, *arguments: str) -> None:
        command = [
            sys.executable,
            "-c",
            "from rolecall.cli.logs import app; app()",
            "--file",
            str(path),
            "-f",
            *arguments,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._buffers = {self._output: b"", self._errors: b""}

    def __enter__(self) -> Following:  # noqa: PYI034 - no subclass
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def _output(self) -> BinaryIO:
        assert self.process.stdout is not None
        return self.process.stdout  # type: ignore[return-value]

    @property
    def _errors(self) -> BinaryIO:
        assert self.process.stderr is not None
        return self.process.stderr  # type: ignore[return-value]

    def read(self) -> str:
        return self._line(self._output)

    def read_error(self) -> str:
        return self._line(self._errors)

    def read_ids(self, count: int) -> list[int]:
        return ids("\n".join(self.read() for _ in range(count)))

    def _line(self, stream: BinaryIO, deadline_s: float = 20) -> str:
        end = time.monotonic() + deadline_s
        while b"\n" not in self._buffers[stream]:
            ready, _, _ = select.select([stream], [], [], max(0, end - time.monotonic()))
            block = os.read(stream.fileno(), 65_536) if ready else b""
            assert block, f"no line came; {self._buffers}"
            self._buffers[stream] += block
        found, self._buffers[stream] = self._buffers[stream].split(b"\n", 1)
        return found.decode()

    def is_silent(self) -> bool:
        """Whether nothing more has come than was read."""
        ready, _, _ = select.select([self._output, self._errors], [], [], 0)
        return not ready and not any(self._buffers.values())

    def end(self) -> tuple[int, bytes]:
        """Wait for the end; return the status and what is left on stderr."""
        status = self.process.wait(20)
        return status, self._buffers[self._errors] + self._errors.read()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_follow_prints_the_last_and_then_what_comes(path: Path) -> None:
    """-f shows the last lines that match and goes on with new ones that match."""
    path.write_text(line(1) + line(2, model="other") + line(3))
    with Following(path, "--json", "-n", "1", "--model", "demo*") as following:
        assert following.read_ids(1) == [3]
        append(path, line(4, model="other") + line(5))
        assert following.read_ids(1) == [5]
        append(path, line(6))
        assert following.read_ids(1) == [6]
        assert following.is_silent()


def test_follow_prints_a_table_with_one_head(path: Path) -> None:
    """Without --json the rows that come later stand under the same head."""
    path.write_text(line(1))
    with Following(path) as following:
        head, first = following.read(), following.read()
        assert head.startswith("time")
        append(path, line(2, model="another"))
        second = following.read()
        assert second.index("another") == first.index("demo-chat") == head.index("model")


def test_follow_waits_for_a_log_that_is_not_there_yet(path: Path) -> None:
    """-f without a log says so and shows all lines of the one that comes, its folder included."""
    path = path.parent / "logs" / path.name
    with Following(path, "--json") as following:
        assert following.read_error() == f"waiting for {path}"
        path.parent.mkdir()
        path.write_text(line(1) + line(2))
        assert following.read_ids(2) == [1, 2]


def test_follow_goes_through_rotations(path: Path) -> None:
    """Over dozens of rotations by the recorder every line comes once and in order."""
    with closing(Recorder(path, max_bytes=4_000, backups=100)) as recorder, Following(path, "--json") as following:
        for n in range(300):
            recorder.record(RequestLine(request_id=f"req-{n:04d}").as_dict())
            if n % 100 == 0:
                assert following.read_ids(1 if n == 0 else 100)[-1] == n
        assert following.read_ids(99) == list(range(201, 300))
        assert path.with_name(path.name + ".20").exists()
        assert following.is_silent()


def test_follow_survives_external_changes(path: Path) -> None:
    """-f goes on after the log was renamed, removed or truncated by another program."""
    path.write_text(line(1) + line(2))
    with Following(path, "--json", "-n", "1") as following:
        assert following.read_ids(1) == [2]
        path.rename(path.with_name("moved"))
        append(path.with_name("moved"), line(3))
        path.write_text(line(4))
        assert following.read_ids(2) == [3, 4]
        path.unlink()
        path.write_text(line(5))
        assert following.read_ids(1) == [5]
        path.write_text('{"ts":"","request_id":"req-0006"}\n')  # shorter: else truncation cannot be told from no change
        assert following.read_ids(1) == [6]


def test_follow_waits_for_the_end_of_a_line(path: Path) -> None:
    """A line that is half written is neither shown nor counted as broken until its end has come."""
    path.write_text(line(1) + line(2)[:50])
    with Following(path, "--json") as following:
        assert following.read_ids(1) == [1]
        append(path, line(2)[50:-3])
        append(path, line(2)[-3:])
        assert following.read_ids(1) == [2]
        assert following.is_silent()


def test_follow_tells_of_broken_lines_once(path: Path) -> None:
    """However many lines are no records, -f mentions them once."""
    path.write_text(line(1))
    with Following(path, "--json") as following:
        assert following.read_ids(1) == [1]
        append(path, "rubbish\n" + line(2))
        assert following.read_ids(1) == [2]
        assert "skipped" in following.read_error()
        append(path, "more\n" + line(3))
        assert following.read_ids(1) == [3]
        assert following.is_silent()


def test_follow_ends_well_on_ctrl_c(path: Path) -> None:
    """Ctrl-C is the way to end -f: status 0 and no words about it."""
    path.write_text(line(1))
    with Following(path, "--json") as following:
        following.read_ids(1)
        following.process.send_signal(signal.SIGINT)
        assert following.end() == (0, b"")


def test_follow_ends_when_nobody_reads_on(path: Path) -> None:
    """-f in a pipe whose reader has ended (``| head``) ends at once, without new lines and without a traceback."""
    path.write_text(line(1))
    with Following(path, "--json") as following:
        following.read_ids(1)
        following._output.close()
        assert following.end() == (0, b"")


@pytest.mark.parametrize("mode", ["--json", "--follow"])
def test_closed_pipe_ends_a_long_listing(path: Path, mode: str) -> None:
    """A listing larger than a pipe holds ends quietly when its reader takes only the first line."""
    path.write_text("".join(line(n) for n in range(3_000)))
    with Following(path, mode, "-n", "3000") as following:
        following.read()
        following._output.close()
        assert following.end() == (0, b"")
