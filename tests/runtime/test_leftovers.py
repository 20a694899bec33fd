"""Engines that outlived their rolecall: who is ended, and who is left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import eventually, is_running
from rolecall.runtime.family import ENGINE_VARIABLE, look
from rolecall.runtime.leftovers import EngineRecord, EngineRoll, Identity

DEAD_PID = 2**22 + 17
DEAD_OWNER = {"pid": DEAD_PID, "born": "long ago"}
MARK = "7-ab12"
PARENT_AND_CHILD = "import subprocess, sys; subprocess.Popen(['sleep', '600']); sys.stdin.read()"

Starter = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Return a starter of processes in a session of their own, which are ended afterwards."""
    started = []

    def begin(*argv: str, mark: str = MARK) -> subprocess.Popen[bytes]:
        env = {**os.environ, ENGINE_VARIABLE: mark}
        process = subprocess.Popen(argv, start_new_session=True, env=env, stdin=subprocess.PIPE)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def identity(pid: int, **more: Any) -> dict[str, Any]:
    """Return a process as it stands in the file."""
    return {**asdict(Identity.of(pid)), **more}


def record(model: str, pid: int, **more: Any) -> EngineRecord:
    """Return a record with what must be there at least."""
    return EngineRecord(model, pid, Identity.of(pid).born, **more)


def write(folder: Path, owner: dict[str, Any], **engines: dict[str, Any]) -> Path:
    """Write the file of another rolecall."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{owner['pid']}.json"
    path.write_text(json.dumps({"owner": owner, "engines": engines}))
    return path


def test_engines_are_written_down_while_they_run(tmp_path: Path, start: Starter) -> None:
    """The file names owner and engines with their creation times, and goes with the last engine."""
    roll = EngineRoll(tmp_path / "engines")
    first, second = start("sleep", "600"), start("sleep", "600")
    roll.add(record("a/b", first.pid))
    roll.add(record("c", second.pid))
    assert roll.path == tmp_path / "engines" / f"{os.getpid()}.json"
    written = json.loads(roll.path.read_text())
    assert written["owner"] == identity(os.getpid())
    assert [(model, row["pid"], row["born"]) for model, row in written["engines"].items()] == [
        ("a/b", first.pid, Identity.of(first.pid).born),
        ("c", second.pid, Identity.of(second.pid).born),
    ]
    roll.remove("a/b")
    assert list(json.loads(roll.path.read_text())["engines"]) == ["c"]
    roll.remove("c")
    assert not roll.path.exists()
    roll.remove("never there")


def test_engines_of_a_dead_owner_are_ended(tmp_path: Path, start: Starter) -> None:
    """They are killed and named, and their file is removed."""
    first, second = start("sleep", "600"), start("sleep", "600")
    path = write(tmp_path, DEAD_OWNER, a=identity(first.pid), b=identity(second.pid))
    assert EngineRoll(tmp_path).reap() == ["a", "b"]
    assert not is_running(first.pid)
    assert not is_running(second.pid)
    assert not path.exists()


def test_engines_of_a_running_owner_are_left_alone(tmp_path: Path, start: Starter) -> None:
    """Two rolecalls may share a state folder."""
    owner, engine = start("sleep", "600"), start("sleep", "600")
    path = write(tmp_path, identity(owner.pid), a=identity(engine.pid))
    assert EngineRoll(tmp_path).reap() == []
    assert is_running(engine.pid)
    assert path.exists()
    owner.kill()  # until it is waited for it is a zombie, and that is no running owner
    eventually(lambda: not is_running(owner.pid))
    assert EngineRoll(tmp_path).reap() == ["a"]


def test_a_number_that_came_again(tmp_path: Path, start: Starter) -> None:
    """A process that has the number of an engine but began at another time is somebody else."""
    stranger = start("sleep", "600")
    other_time = {"pid": stranger.pid, "born": "another boot 17"}
    path = write(tmp_path, DEAD_OWNER, a=other_time)
    assert EngineRoll(tmp_path).reap() == []
    assert is_running(stranger.pid)
    assert not path.exists()


def test_an_owner_whose_number_came_again(tmp_path: Path, start: Starter) -> None:
    """In a container each start has the same number: an owner of that number and another time is dead."""
    engine = start("sleep", "600")
    own_number = {"pid": os.getpid(), "born": "another boot 17"}
    write(tmp_path, own_number, a=identity(engine.pid))
    assert EngineRoll(tmp_path).reap() == ["a"]
    assert not is_running(engine.pid)


def orphan(start: Starter, mark: str) -> tuple[dict[str, Any], int]:
    """Return an engine that is gone as it stands in the file, and a process that it had started and left behind."""
    engine = start(sys.executable, "-c", PARENT_AND_CHILD, mark=mark)
    left = eventually(lambda: psutil.Process(engine.pid).children())[0]
    eventually(lambda: left.name() == "sleep")
    leader = identity(engine.pid, mark=MARK)
    engine.kill()
    engine.wait()
    return leader, left.pid


def test_what_a_dead_engine_left_behind_is_ended(tmp_path: Path, start: Starter) -> None:
    """An engine's worker that outlived it holds memory as well; it is known by the mark."""
    leader, left = orphan(start, MARK)
    write(tmp_path, DEAD_OWNER, a=leader)
    assert EngineRoll(tmp_path).reap() == ["a"]
    assert not is_running(left)


def test_somebody_elses_session_is_left_alone(tmp_path: Path, start: Starter) -> None:
    """A session with the number of a dead engine's, but without its mark, is none of ours."""
    leader, left = orphan(start, "another")
    write(tmp_path, DEAD_OWNER, a=leader)
    try:
        assert EngineRoll(tmp_path).reap() == []
        assert is_running(left)
    finally:
        psutil.Process(left).kill()


def test_all_sessions_of_a_running_engine_are_ended(tmp_path: Path, start: Starter) -> None:
    """A record of another version, with an identity alone, is enough to end an engine with its session and children."""
    engine = start(sys.executable, "-c", PARENT_AND_CHILD.replace("'600']", "'600'], start_new_session=True"))
    child = eventually(lambda: psutil.Process(engine.pid).children())[0]
    write(tmp_path, DEAD_OWNER, a=identity(engine.pid, unknown="field"))
    assert EngineRoll(tmp_path).reap() == ["a"]
    assert not is_running(child.pid)


def test_two_engines_of_one_model_are_both_ended(tmp_path: Path, start: Starter) -> None:
    """Two rolecalls that are gone may have had the same models."""
    first, second = start("sleep", "600", mark="1"), start("sleep", "600", mark="2")
    write(tmp_path, DEAD_OWNER, a=identity(first.pid))
    write(tmp_path, {"pid": DEAD_PID + 1, "born": "long ago"}, a=identity(second.pid))
    assert EngineRoll(tmp_path).reap() == ["a", "a"]
    assert not is_running(first.pid)
    assert not is_running(second.pid)


def test_a_file_that_was_half_written_is_removed(tmp_path: Path, start: Starter) -> None:
    """A rolecall that was killed while it wrote leaves one; that of a running one stays."""
    dead, alive = tmp_path / f".1.json.{DEAD_PID}", tmp_path / f".1.json.{os.getpid()}"
    dead.touch()
    alive.touch()
    assert EngineRoll(tmp_path).reap() == []
    assert list(tmp_path.iterdir()) == [alive]


NO_ENGINES: tuple[Any, ...] = ([], {"a": {}}, {"a": {"pid": "x"}}, 1)
NONSENSE = (
    *("", "{", "[]", "{}", "17", '{"owner": {}}', '{"owner": {"pid": 1}}', '{"owner": 1, "engines": {}}'),
    *(json.dumps({"owner": DEAD_OWNER, "engines": engines}) for engines in NO_ENGINES),
)


@pytest.mark.parametrize("text", NONSENSE)
def test_a_file_that_makes_no_sense_is_removed(tmp_path: Path, text: str, start: Starter) -> None:
    """It stops neither the start nor the end of engines in other files."""
    engine = start("sleep", "600")
    write(tmp_path, DEAD_OWNER, a=identity(engine.pid))
    (tmp_path / "1.json").write_text(text)
    assert EngineRoll(tmp_path).reap() == ["a"]
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_makes_no_sense_hides_no_other(
    tmp_path: Path, start: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    """The file's other engines are ended, before and after it, and the row is told."""
    first, second = start("sleep", "600"), start("sleep", "600")
    odd = {**identity(second.pid), "placement": 17}
    path = write(tmp_path, DEAD_OWNER, a=identity(first.pid), odd=odd, none={}, b=identity(second.pid))
    assert EngineRoll(tmp_path).reap() == ["a", "b"]
    assert not is_running(first.pid)
    assert not is_running(second.pid)
    assert not path.exists()
    assert "'odd'" in caplog.text


def test_a_folder_that_does_not_exist_or_is_odd(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing to reap is no error; a place that cannot be written to is a warning."""
    assert EngineRoll(tmp_path / "none").reap() == []
    (tmp_path / "odd" / "1.json").mkdir(parents=True)
    assert EngineRoll(tmp_path / "odd").reap() == []
    (tmp_path / "file").touch()
    EngineRoll(tmp_path / "file").add(record("a", os.getpid()))
    assert str(tmp_path / "file") in caplog.text


async def test_a_disk_that_takes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It stays a problem, told once, until something can be written; by then no engine need be left to write of."""
    folder = tmp_path / "engines"
    roll = EngineRoll(folder)
    await roll.write_again()
    assert not folder.exists()
    folder.touch()  # a file in the way
    roll.add(record("a", os.getpid()))
    roll.add(record("b", os.getpid()))
    await roll.write_again()
    assert caplog.text.count("cannot be written") == 1
    folder.unlink()
    await roll.write_again()
    assert set(json.loads(roll.path.read_text())["engines"]) == {"a", "b"}
    roll.path.with_name(f".{roll.path.name}.{os.getpid()}").mkdir()  # nothing can be written, but files go
    roll.remove("a")
    roll.remove("b")
    assert not roll.path.exists()
    assert "cannot be written" in str(roll.file.problem)
    roll.path.with_name(f".{roll.path.name}.{os.getpid()}").rmdir()
    await roll.write_again()
    assert roll.file.problem is None
    assert list(folder.iterdir()) == []


def test_the_identity_of_a_process_that_is_gone() -> None:
    """It is not running, now or later."""
    gone = Identity.of(2**30)
    assert gone == Identity(2**30, "")
    assert not gone.is_running()
    assert Identity.of(os.getpid()).is_running()
    assert look()[os.getpid()].born == Identity.of(os.getpid()).born
