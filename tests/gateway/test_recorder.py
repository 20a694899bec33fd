"""The recorder against real files, real limits and real processes."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.gateway.recorder import Recorder, RequestLine, encode, timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Design §8, in its order.
KEYS = re.split(
    " ",
    "ts request_id endpoint client key requested_model role model backend profile stream status error messages images "
    "truncate_history role_selector memory prompt_tokens completion_tokens reasoning_tokens finish_reason queue_ms "
    "load_ms ttft_ms duration_ms tokens_per_second prompt_id prompt_version bytes_in bytes_out "
    "output_bytes",
)


def wait_until(condition: Callable[[], object], deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition has not come true in time"
        time.sleep(0.01)


def numbers(*paths: Path) -> list[int]:
    """The numbers in the files' lines; every line must be whole."""
    return [json.loads(line)["n"] for path in paths for line in path.read_text().splitlines()]


def record_numbers(recorder: Recorder, of: range) -> None:
    for n in of:
        recorder.record({"n": n})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


# --- the line ---------------------------------------------------------------------------------------------------------


def test_line_has_the_documented_keys_in_order() -> None:
    """The keys and their order are those of the design; prompt and response are absent until they are set."""
    line = RequestLine()
    line.status = 200
    assert list(line.as_dict()) == KEYS
    line.prompt, line.response = "hello", "hi"
    assert list(line.as_dict()) == [*KEYS, "prompt", "response"]


def test_line_defaults_are_null_zero_and_false() -> None:
    """A line of which nothing is known says so with null, 0 and false."""
    line = RequestLine(ts="then").as_dict()
    assert {key: value for key, value in line.items() if value is not None} == {
        "ts": "then",
        "stream": False,
        "messages": 0,
        "images": 0,
        "bytes_in": 0,
        "bytes_out": 0,
    }


def test_timestamp_is_utc_with_milliseconds() -> None:
    """Times are ISO 8601 in UTC with three decimals and a Z, also where the fraction is zero."""
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1769860800.1239) == "2026-01-31T12:00:00.123Z"
    assert timestamp(1769860800.999) == "2026-01-31T12:00:00.999Z"
    assert timestamp(1769860801) == "2026-01-31T12:00:01.000Z"


@given(st.integers(0, 4_000_000_000_000))
def test_every_millisecond_is_told_as_it_is(ms: int) -> None:
    """A time that is given to the millisecond comes back as it went in."""
    told = datetime.fromisoformat(timestamp(ms / 1000).replace("Z", "+00:00"))
    assert round(told.timestamp() * 1000) == ms


def test_line_is_stamped_when_it_is_made() -> None:
    """The time of a line is that of its arrival: when the object was made."""
    before = timestamp(time.time())
    line = RequestLine()
    assert before <= line.ts <= timestamp(time.time())


class Stubborn:
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Path("/models"), "/models"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("a pair \ud83d\ude00", "a pair 😀"),
        (["nested \udfff", 1], ["nested \ufffd", 1]),
        (2**70, float(2**70)),
        ({1: "key"}, {"1": "key"}),
        (math.nan, None),
        (0.1, 0.1),
    ],
)
def test_values_that_json_does_not_know_are_written_all_the_same(value: object, written: object) -> None:
    """A value that cannot be written as it is becomes text; the rest of the line is untouched."""
    assert orjson.loads(encode({"a": 1, "value": value, "z": None})) == {"a": 1, "value": written, "z": None}


def test_values_that_resist_every_encoder_do_not_lose_the_line() -> None:
    """A circular value and one whose str() raises are named, and the line is written."""
    circle: list[Any] = []
    circle.append(circle)
    found = orjson.loads(encode({"n": 7, "circle": circle, "stubborn": Stubborn()}))
    assert found["n"] == 7
    assert found["circle"] == "[[...]]"
    assert "Stubborn object" in found["stubborn"]


def test_any_mapping_is_a_line() -> None:
    """A read-only view of a dict is written like the dict."""
    assert encode(MappingProxyType({"a": 1})) == b'{"a":1}\n'


@given(
    st.dictionaries(
        st.text(st.characters()),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner),
            max_leaves=8,
        ),
        max_size=5,
    )
)
def test_every_line_is_one_line_of_json(line: dict[str, Any]) -> None:
    """Whatever the values, the encoded line is one JSON object and one newline, at its end."""
    data = encode(line)
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    assert isinstance(orjson.loads(data), dict)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_lines_of_many_threads_all_arrive_in_the_order_of_each(path: Path) -> None:
    """20 threads write 10,000 lines: none is missing, none is torn, and each thread's own order is kept."""

    def work(recorder: Recorder, worker: int) -> None:
        for n in range(500):
            recorder.record({"worker": worker, "n": n})

    with closing(Recorder(path)) as recorder:
        threads = [threading.Thread(target=work, args=(recorder, worker)) for worker in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 10_000
    for worker in range(20):
        assert [line["n"] for line in lines if line["worker"] == worker] == list(range(500))
    assert recorder.dropped == 0


def test_listeners_hear_of_each_line_in_order(path: Path) -> None:
    """Whoever counts or shows requests is given the very lines that the file gets."""
    heard: list[Mapping[str, Any]] = []
    with closing(Recorder(path)) as recorder:
        recorder.listeners.append(heard.append)
        for n in range(3):
            recorder.record({"n": n})
    assert [line["n"] for line in heard] == numbers(path) == [0, 1, 2]


def test_line_reaches_the_file_without_close(path: Path) -> None:
    """A line is in the file shortly after it was recorded, while the recorder goes on."""
    with closing(Recorder(path)) as recorder:
        recorder.record({"n": 1})
        wait_until(lambda: path.exists() and numbers(path) == [1])
        recorder.record({"n": 2})
        wait_until(lambda: numbers(path) == [1, 2])


def test_log_is_private_and_its_folder_is_made(tmp_path: Path) -> None:
    """The log's folder is created, and only the owner may read the log."""
    path = tmp_path / "a" / "b" / "log.jsonl"
    with closing(Recorder(path)) as recorder:
        recorder.record({"n": 1})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert numbers(path) == [1]


def test_lines_are_appended_to_an_older_log(path: Path) -> None:
    """A new recorder goes on behind what an earlier one has written."""
    for n in range(3):
        with closing(Recorder(path)) as recorder:
            recorder.record({"n": n})
    assert numbers(path) == [0, 1, 2]


def test_half_a_line_of_a_killed_process_stays_apart(path: Path) -> None:
    """Where an earlier process was killed while writing, the next line starts on a line of its own."""
    path.write_text('{"n":1}\n{"n":2,"mod')
    with closing(Recorder(path)) as recorder:
        recorder.record({"n": 3})
    assert path.read_text() == '{"n":1}\n{"n":2,"mod\n{"n":3}\n'


def test_no_thread_and_no_file_is_left_after_close(path: Path) -> None:
    """close() ends the writer thread and closes the file, and a second close() does nothing."""

    def open_files() -> list[str]:
        # What a listing finds may be gone when it is looked at: the listing itself is among it.
        return [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]

    recorder = Recorder(path)
    wait_until(lambda: str(path) in open_files())
    recorder.close()
    recorder.close()
    assert str(path) not in open_files()
    assert "rolecall-recorder" not in {thread.name for thread in threading.enumerate()}


def test_line_after_close_is_counted_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line that comes after close() raises nothing; it is counted as dropped and warned about."""
    recorder = Recorder(path)
    recorder.close()
    recorder.record({"n": 1})
    assert recorder.dropped == 1
    assert "is closed" in caplog.text


# --- the first line of all --------------------------------------------------------------------------------------------


def beginnings(*paths: Path) -> list[int]:
    """The numbers of the lines that say that the log begins with them."""
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert all(line.get("log_begins", True) is True for line in lines)
    return [line["n"] for line in lines if "log_begins" in line]


def test_the_first_line_of_a_log_says_so(path: Path) -> None:
    """It is the last key of the very first line, whether the file is still to be made or an empty one."""
    for _ in range(2):
        with closing(Recorder(path)):  # opened, and nothing is written
            pass
        assert path.read_bytes() == b""
    with closing(Recorder(path)) as recorder:
        recorder.record({"n": 0, "prompt": [{"log_begins": 5}]})
        record_numbers(recorder, range(1, 600))
    with closing(Recorder(path)) as recorder:
        record_numbers(recorder, range(600, 610))
    first, second, *_ = path.read_bytes().splitlines()
    assert first == b'{"n":0,"prompt":[{"log_begins":5}],"log_begins":true}'
    assert second == b'{"n":1}'
    assert beginnings(path) == [0]


def test_the_first_line_stays_the_only_one(path: Path) -> None:
    """Rotation, and a file that is removed from outside while it is written, begin no other log."""
    with closing(Recorder(path, max_bytes=100, backups=99)) as recorder:
        record_numbers(recorder, range(100))
        wait_until(lambda: path.exists() and 99 in numbers(path))
        files = files_oldest_first(path)
        assert beginnings(*files) == [0]
        for file in files:
            file.unlink()
        record_numbers(recorder, range(100, 110))
        wait_until(lambda: path.exists() and 109 in numbers(*files_oldest_first(path)))
        assert beginnings(*files_oldest_first(path)) == []


@pytest.mark.parametrize("older", ["log.jsonl.1", "log.jsonl.7.gz", "log.jsonl-20261120", "log-20261120.jsonl.xz"])
def test_a_log_that_has_older_files_does_not_begin(older: str, path: Path) -> None:
    """What logrotate has moved, compressed or not, was before; a new or empty file beside it is no beginning."""
    path.with_name(older).write_bytes(b"x")
    with closing(Recorder(path)) as recorder:
        record_numbers(recorder, range(1))
    assert beginnings(path) == []
    path.write_bytes(b"")
    with closing(Recorder(path)) as recorder:
        record_numbers(recorder, range(1))
    assert beginnings(path) == []


def test_a_first_line_that_could_not_be_written_says_it_later(path: Path) -> None:
    """A folder that is not there yet is no reason to forget it; what is no file of lines begins nothing."""
    folder = path.with_name("below")
    folder.write_text("in the way")
    with closing(Recorder(folder / "log.jsonl", retry_s=0.02)) as recorder:
        record_numbers(recorder, range(2))
        wait_until(lambda: recorder.problem)
        folder.unlink()
    assert beginnings(folder / "log.jsonl") == [0]
    with closing(Recorder(path.with_name("other.jsonl"))) as recorder:
        recorder.record({})
    assert path.with_name("other.jsonl").read_bytes() == b"{}\n"


# --- rotation ---------------------------------------------------------------------------------------------------------


def files_oldest_first(path: Path) -> list[Path]:
    rotated = sorted(path.parent.glob(path.name + ".*"), key=lambda file: int(file.suffix[1:]), reverse=True)
    return [*rotated, path]


def test_rotation_numbers_the_files_and_loses_no_line(path: Path) -> None:
    """Files are rotated by size into .1 (newest) to .N (oldest), with every line whole and in order over all."""
    with closing(Recorder(path, max_bytes=2_000, backups=99)) as recorder:
        record_numbers(recorder, range(3_000))
    files = files_oldest_first(path)
    assert [file.name for file in files] == [f"log.jsonl.{n}" for n in range(len(files) - 1, 0, -1)] + ["log.jsonl"]
    assert numbers(*files) == list(range(3_000))
    assert all(1_900 < file.stat().st_size <= 2_000 for file in files[:-1])


def test_rotation_keeps_as_many_files_as_asked(path: Path) -> None:
    """The oldest file makes room when there are as many backups as configured; what is left has no gap."""
    with closing(Recorder(path, max_bytes=500, backups=3)) as recorder:
        record_numbers(recorder, range(1_000))
    files = files_oldest_first(path)
    assert [file.name for file in files] == ["log.jsonl.3", "log.jsonl.2", "log.jsonl.1", "log.jsonl"]
    kept = numbers(*files)
    assert kept == list(range(kept[0], 1_000))


def test_line_larger_than_the_limit_gets_a_file_of_its_own(path: Path) -> None:
    """A line is never split: one that is larger than a file may be stands alone in its file."""
    with closing(Recorder(path, max_bytes=100, backups=9)) as recorder:
        for n in range(3):
            recorder.record({"n": n, "prompt": "x" * 300})
    assert [numbers(file) for file in files_oldest_first(path)] == [[0], [1], [2]]


@pytest.mark.parametrize(("max_bytes", "backups"), [(0, 5), (100, 0)])
def test_zero_never_rotates(path: Path, max_bytes: int, backups: int) -> None:
    """0 for the size or for the number of backups turns rotation off, and no line is thrown away."""
    with closing(Recorder(path, max_bytes=max_bytes, backups=backups)) as recorder:
        record_numbers(recorder, range(100))
    assert numbers(path) == list(range(100))
    assert files_oldest_first(path) == [path]


def test_log_that_cannot_be_rotated_grows_and_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where renaming fails, lines go on into the present file, with one warning, until it works again."""
    caplog.set_level(logging.INFO)
    blocked = path.with_name("log.jsonl.1")
    (blocked / "in the way").mkdir(parents=True)
    with closing(Recorder(path, max_bytes=200, backups=1)) as recorder:
        record_numbers(recorder, range(100))
        wait_until(lambda: path.exists() and len(numbers(path)) == 100)
        assert recorder.problem is not None
        assert "cannot be rotated" in recorder.problem
        shutil.rmtree(blocked)
        record_numbers(recorder, range(100, 101))
        wait_until(blocked.exists)
        wait_until(lambda: recorder.problem is None)
    assert numbers(blocked, path) == list(range(101))
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


def test_failing_rotations_do_not_push_older_files_out(path: Path) -> None:
    """Rotation that fails again and again leaves the older files as they are."""
    (path.with_name("log.jsonl.1") / "in the way").mkdir(parents=True)
    (path.with_name("log.jsonl.2") / "in the way").mkdir(parents=True)
    path.with_name("log.jsonl.3").write_text('{"n":-1}\n')
    (path.with_name("log.jsonl.4") / "in the way").mkdir(parents=True)
    with closing(Recorder(path, max_bytes=100, backups=4)) as recorder:
        for n in range(20):
            recorder.record({"n": n})
            wait_until(lambda n=n: path.exists() and n in numbers(path))  # type: ignore[misc]
    assert numbers(path) == list(range(20))
    assert numbers(path.with_name("log.jsonl.3")) == [-1]


WRITER = """
    import sys, time
    from pathlib import Path
    from rolecall.gateway.recorder import Recorder

    recorder = Recorder(Path(sys.argv[1]), max_bytes=300, backups=9_999)
    sys.stdin.readline()
    for n in range(int(sys.argv[2]), 6_000, 3):
        recorder.record({"n": n})
        if n % 2:
            time.sleep(0.0001)
    recorder.close()
"""


def test_processes_share_one_log(path: Path) -> None:
    """Three servers that write and rotate one log at once lose no line of each other and tear none."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    writers = [subprocess.Popen([*command, str(first)], stdin=subprocess.PIPE) for first in range(3)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    for writer in writers:
        writer.communicate()
    assert sorted(numbers(*files_oldest_first(path))) == list(range(6_000))


def test_log_is_not_rotated_while_another_process_does(path: Path) -> None:
    """As long as another process holds the log's lock, lines go into the present file, and nothing is a problem."""
    path.write_text('{"n":-1}\n')
    with closing(Recorder(path, max_bytes=50, backups=1)) as recorder:
        with path.open() as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            record_numbers(recorder, range(50))
            wait_until(lambda: len(numbers(path)) == 51)
            assert recorder.problem is None
        recorder.record({"n": 50})
    assert numbers(path.with_name("log.jsonl.1"), path) == list(range(-1, 51))


# --- changes from outside ---------------------------------------------------------------------------------------------


def test_external_rotation_is_followed(path: Path) -> None:
    """After another program renamed the log, new lines are in a new file at the old place."""
    moved = path.with_name("log.jsonl-20260131")
    with closing(Recorder(path)) as recorder:
        recorder.record({"n": 1})
        wait_until(lambda: path.exists() and numbers(path) == [1])
        path.rename(moved)
        recorder.record({"n": 2})
    assert (numbers(moved), numbers(path)) == ([1], [2])


def test_removed_log_is_made_again(path: Path) -> None:
    """After the log and its folder were removed, new lines are in a new file at the old place."""
    path = path.parent / "logs" / path.name
    with closing(Recorder(path)) as recorder:
        recorder.record({"n": 1})
        wait_until(lambda: path.exists() and numbers(path) == [1])
        shutil.rmtree(path.parent)
        recorder.record({"n": 2})
    assert numbers(path) == [2]


def test_truncated_log_goes_on_at_its_start(path: Path) -> None:
    """After another program truncated the log (copytruncate), new lines follow without a hole of zeros."""
    with closing(Recorder(path)) as recorder:
        recorder.record({"n": 1})
        wait_until(lambda: path.exists() and numbers(path) == [1])
        os.truncate(path, 0)
        recorder.record({"n": 2})
    assert path.read_bytes() == b'{"n":2}\n'


# --- a disk that fails ------------------------------------------------------------------------------------------------


def outage_reports(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("rolecall.")]


def test_full_disk_is_reported_once_and_survived(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the disk is full lines wait in order, with one warning at its begin and one report at its end."""
    caplog.set_level(logging.INFO)
    path.symlink_to("/dev/full")
    with closing(Recorder(path, retry_s=0.02)) as recorder:
        record_numbers(recorder, range(50))
        wait_until(lambda: recorder.problem)
        assert f"request log {path} cannot be written: No space left on device" in (recorder.problem or "")
        record_numbers(recorder, range(50, 100))
        path.unlink()
        path.mkdir()  # another attempt fails for another reason: one outage all the same
        wait_until(lambda: "Is a directory; 100 lines wait" in (recorder.problem or ""))
        path.rmdir()
        wait_until(lambda: recorder.problem is None)
    assert numbers(path) == list(range(100))
    assert recorder.dropped == 0
    assert outage_reports(caplog) == [
        (
            "WARNING",
            f"request log {path} cannot be written: No space left on device; lines are kept in memory until it can",
        ),
        ("INFO", f"request log {path} is written again: 100 lines delayed, 0 dropped"),
    ]


def directory_in_its_place(path: Path) -> Callable[[], None]:
    path.mkdir()
    return path.rmdir


def file_in_place_of_its_folder(path: Path) -> Callable[[], None]:
    path.parent.write_text("in the way")
    return path.parent.unlink


def folder_that_takes_no_files(path: Path) -> Callable[[], None]:
    """Under /proc nobody can make a file, root neither."""
    path.symlink_to("/proc/nothing/log.jsonl")
    return path.unlink


@pytest.mark.parametrize("hinder", [directory_in_its_place, file_in_place_of_its_folder, folder_that_takes_no_files])
def test_place_that_cannot_be_written_is_told_at_once_and_survived(
    tmp_path: Path, hinder: Callable[[Path], Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    """A log that cannot be opened is a problem before the first line; the lines are written when it can be."""
    path = tmp_path / ("log.jsonl" if hinder is not file_in_place_of_its_folder else "logs/log.jsonl")
    recover = hinder(path)
    with closing(Recorder(path, retry_s=0.02)) as recorder:
        wait_until(lambda: recorder.problem)
        record_numbers(recorder, range(20))
        assert str(path) in (recorder.problem or "")
        recover()
        wait_until(lambda: recorder.problem is None)
    assert numbers(path) == list(range(20))
    assert [level for level, _ in outage_reports(caplog)] == ["WARNING"]


@pytest.mark.parametrize("limit", [{"max_waiting_lines": 10}, {"max_waiting_bytes": 10 * len('{"n":10}\n')}])
def test_memory_is_bounded_while_the_disk_fails(path: Path, limit: dict[str, int]) -> None:
    """Beyond the limit the oldest waiting lines are dropped and counted, and the newest are written afterwards."""
    path.mkdir()
    with closing(Recorder(path, retry_s=0.02, **limit)) as recorder:
        wait_until(lambda: recorder.problem)
        record_numbers(recorder, range(10, 35))
        wait_until(lambda: recorder.dropped == 15)
        assert "15 dropped" in (recorder.problem or "")
        path.rmdir()
        wait_until(lambda: recorder.problem is None)
        record_numbers(recorder, range(35, 36))
    assert numbers(path) == list(range(25, 36))


def test_close_gives_up_on_a_dead_disk_in_time(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """close() tries until its time is over, then tells how many lines are lost."""
    path.mkdir()
    recorder = Recorder(path, retry_s=60)
    record_numbers(recorder, range(7))
    wait_until(lambda: recorder.problem)
    begin = time.monotonic()
    recorder.close(timeout_s=0.3)
    assert time.monotonic() - begin < 5
    assert recorder.dropped == 7
    assert "7 lines are lost: Is a directory" in caplog.text


def test_close_wakes_the_writer_for_a_disk_that_is_back(path: Path) -> None:
    """close() does not wait for the next regular attempt: lines are written at once when the disk is back."""
    path.mkdir()
    recorder = Recorder(path, retry_s=600)
    wait_until(lambda: recorder.problem)
    record_numbers(recorder, range(7))
    path.rmdir()
    recorder.close(timeout_s=10)
    assert numbers(path) == list(range(7))
    assert recorder.dropped == 0


def test_hanging_disk_blocks_neither_record_nor_close(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While a write does not return (a pipe that nobody reads), record() still returns and close() keeps its time."""
    os.mkfifo(path)
    recorder = Recorder(path, max_waiting_lines=2_000)
    line = {"prompt": "x" * 1_000}
    for _ in range(500):  # a pipe holds 64 KiB
        recorder.record(line)
    begin = time.monotonic()
    for _ in range(5_000):
        recorder.record(line)
    assert time.monotonic() - begin < 5
    assert recorder.dropped > 0
    recorder.close(timeout_s=0.1)
    assert "does not answer" in caplog.text
    drain = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        wait_until(lambda: not reads_on(drain))
    finally:
        os.close(drain)


def reads_on(fd: int) -> bool:
    """Empty the pipe; False once the recorder's thread has ended and closed its side."""
    try:
        return os.read(fd, 2**20) != b""
    except BlockingIOError:
        return True


# --- processes --------------------------------------------------------------------------------------------------------


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


FULL_DISK = """
    import logging, resource, sys, time
    from pathlib import Path
    from rolecall.gateway.recorder import Recorder

    logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
    path = Path(sys.argv[1])

    def wait_until(condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
    recorder = Recorder(path, retry_s=0.02)
    for n in range(100):
        recorder.record({"n": n, "text": "x" * 40})
    wait_until(lambda: recorder.problem)
    print(len(path.read_bytes()), path.read_bytes()[-1:], flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    wait_until(lambda: recorder.problem is None)
    recorder.close()
    print(recorder.dropped)
"""


@pytest.mark.parametrize("limit", [10, 57, 1000, 1024])
def test_short_write_leaves_no_half_line(path: Path, limit: int) -> None:
    """A write that ends in the middle of a line (file size limit) is cut back to whole lines, and finished later."""
    done = run(FULL_DISK, path, limit)
    assert done.returncode == 0, done.stderr
    size, end, dropped = re.fullmatch(r"(\d+) (b'.*')\n(\d+)\n", done.stdout).groups()  # type: ignore[union-attr]
    line = len('{"n":1,"text":"' + "x" * 40 + '"}\n')
    assert int(size) <= limit
    assert int(size) > limit - line - 1
    assert end in ({"b'\\n'"} if int(size) else {"b''"})
    assert int(dropped) == 0
    assert numbers(path) == list(range(100))
    assert done.stderr.count("WARNING") == 1
    assert "File too large" in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root; the size limit above tests the same")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_real_full_disk_holds_whole_lines_and_recovers(small_disk: Path) -> None:
    """On a file system without space the file ends with a whole line; freed space takes all that has waited."""
    path = small_disk / "log.jsonl"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 40_960)
    with closing(Recorder(path, retry_s=0.02)) as recorder:
        record_numbers(recorder, range(4_000))
        wait_until(lambda: recorder.problem)
        assert "No space left on device" in (recorder.problem or "")
        assert path.read_bytes().endswith(b"}\n")
        assert 0 < len(numbers(path)) < 4_000
        ballast.unlink()
        wait_until(lambda: recorder.problem is None)
    assert numbers(path) == list(range(4_000))


def test_read_only_disk_is_reported_and_survived(small_disk: Path) -> None:
    """A file system that is mounted read-only is a problem; writable again it takes what has waited."""
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    path = small_disk / "log.jsonl"
    with closing(Recorder(path, retry_s=0.02)) as recorder:
        record_numbers(recorder, range(5))
        wait_until(lambda: "Read-only file system; 5 lines wait" in (recorder.problem or ""))
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        wait_until(lambda: recorder.problem is None)
    assert numbers(path) == list(range(5))


SERVER = """
    import signal, sys, threading
    from pathlib import Path
    from rolecall.gateway.recorder import Recorder

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    recorder = Recorder(Path(sys.argv[1]))
    print("ready", flush=True)
    n = 0
    while not stop.is_set():
        recorder.record({"n": n})
        n += 1
        stop.wait(0.0001)
    recorder.close()
    print(n)
"""


def test_terminated_server_loses_no_line(path: Path) -> None:
    """A process that closes its recorder on SIGTERM has every line that it recorded in the file."""
    server = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SERVER), path], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server, server.stdout as output:
        assert output.readline() == "ready\n"
        wait_until(lambda: path.exists() and path.stat().st_size > 2_000)
        server.send_signal(signal.SIGTERM)
        count = int(output.read())
    assert server.returncode == 0
    assert numbers(path) == list(range(count))


def test_lines_before_a_crash_are_written(path: Path) -> None:
    """A process that ends by an exception, without close(), still writes the lines recorded before."""
    done = run(
        """
        import sys
        from pathlib import Path
        from rolecall.gateway.recorder import Recorder

        recorder = Recorder(Path(sys.argv[1]))
        for n in range(100):
            recorder.record({"n": n})
        raise RuntimeError("the server is gone")
        """,
        path,
    )
    assert "the server is gone" in done.stderr
    assert numbers(path) == list(range(100))
