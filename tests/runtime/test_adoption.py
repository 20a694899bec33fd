"""Engines that are kept when rolecall ends, and what the next one does with them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness import DEADLINE_S, eventually, is_running
from rolecall.backends.base import Launch
from rolecall.core.vram import Share
from rolecall.runtime.guardian import Guardian
from rolecall.runtime.launcher import UNKNOWN_EXIT, AdoptedProcess, EngineLauncher
from rolecall.runtime.leftovers import EngineRecord, EngineRoll, Identity

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")

STAND_IN = Path(__file__).with_name("stand_in.py")
PLACEMENT = (Share("GPU-1", 500, 16000),)
DEAD_PID = 2**22 + 17
ROUNDS = 10

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def token() -> Iterator[str]:
    """Return what all processes of a test have on their command line or in their environment; they are ended."""
    token = f"{random.randrange(10**12):012}"
    yield token
    for process in processes_of(token):
        process.kill()


@pytest.fixture
def run(tmp_path: Path, token: str) -> Iterator[Run]:
    """Return what starts a stand-in for rolecall that keeps its engines, in a server of its own."""
    servers = []

    def start(plan: str) -> subprocess.Popen[str]:
        server = subprocess.Popen(
            [sys.executable, str(STAND_IN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        servers.append(server)
        order(server, tmp_path, token, plan)
        return server

    yield start
    for server in servers:
        for stand_in in psutil.Process(server.pid).children():
            stand_in.kill()
        server.kill()
        server.communicate()


def order(server: subprocess.Popen[str], folder: Path, token: str, plan: str) -> None:
    """Have a server fork a stand-in."""
    assert server.stdin is not None
    server.stdin.write(json.dumps({"folder": str(folder), "token": token, "plan": plan, "keep": True}) + "\n")
    server.stdin.flush()


def line(server: subprocess.Popen[str]) -> str:
    """Return the next line that a server or its stand-in wrote."""
    assert server.stdout is not None
    return server.stdout.readline().strip()


def began(server: subprocess.Popen[str]) -> int:
    """Return the number of the stand-in that now begins."""
    word, pid = line(server).split()
    assert word == "began"
    return int(pid)


def processes_of(token: str) -> list[psutil.Process]:
    """Return all that a stand-in started."""
    return [process for process in psutil.process_iter() if _belongs(process, token)]


def _belongs(process: psutil.Process, token: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and any(token in word for word in process.cmdline())
    except psutil.Error:
        return False


async def until(question: Callable[[], object]) -> None:
    """Let the event loop go on until the answer is yes; fail if that takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def yes(_: EngineRecord) -> bool:
    """Want any engine."""
    return True


@pytest.mark.parametrize("plan", ["ready", "leave"])
async def test_a_kept_engine_is_adopted(tmp_path: Path, run: Run, token: str, plan: str) -> None:
    """After a SIGKILL of rolecall and after an orderly end it goes on, with all that the next one must know."""
    server = run(plan)
    owner, ready = began(server), line(server)
    if plan == "ready":
        os.kill(owner, signal.SIGKILL)
    assert line(server) == "gone"
    roll = EngineRoll(tmp_path / "engines")
    (record,), ended = roll.adopt(lambda record: record.fingerprint == "f")
    assert ended == []
    assert (record.model, f"ready {record.pid}") == ("m", ready)
    assert (record.placement, record.fingerprint, record.port) == (PLACEMENT, "f", 1234)
    assert list((tmp_path / "engines").iterdir()) == [roll.path]
    launcher = EngineLauncher(tmp_path / "logs", os.environ, roll=roll)
    process = launcher.adopt(record)
    await until(lambda: len(process.members()) == 6)
    process.send(signal.SIGKILL)
    assert await process.wait() == UNKNOWN_EXIT
    assert processes_of(token) == []
    assert not roll.path.exists()


def test_nothing_is_lost_whenever_it_is_killed(tmp_path: Path, run: Run, token: str) -> None:
    """While an engine is forked, starts, is ready or is stopped: the next start adopts it or ends it, with all."""
    server = run("churn")
    fates = set()
    for number in range(ROUNDS):
        if number:
            order(server, tmp_path, token, "churn")
        owner = began(server)
        time.sleep(random.uniform(0, 0.3))  # the moment is what is tried here: there is nothing to wait for
        os.kill(owner, signal.SIGKILL)
        assert line(server) == "gone"
        roll = EngineRoll(tmp_path / "engines")
        adopted, ended = roll.adopt(yes)
        assert all(record.identity.is_running() for record in adopted)
        fates.add((len(adopted), len(ended)))
        asyncio.run(stop(roll, tmp_path, adopted))
        eventually(lambda: not processes_of(token), within_s=3)
        assert list((tmp_path / "engines").iterdir()) == []
    assert fates <= {(0, 0), (1, 0), (0, 1)}
    assert fates != {(0, 0)}


async def stop(roll: EngineRoll, folder: Path, adopted: list[EngineRecord]) -> None:
    """End what was adopted."""
    launcher = EngineLauncher(folder / "logs", os.environ, roll=roll)
    for record in adopted:
        process = launcher.adopt(record)
        process.send(signal.SIGTERM)
        assert await process.wait() == UNKNOWN_EXIT


# -- which are adopted


@pytest.fixture
def engine(token: str) -> Iterator[EngineRecord]:
    """Return a kept engine that is ready, as a rolecall that is gone has written it down."""
    argv = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", token]
    env = {**os.environ, "ROLECALL_ENGINE": token}
    with subprocess.Popen(argv, env=env, start_new_session=True) as process:
        born = Identity.of(process.pid).born
        yield EngineRecord("m", process.pid, born, token, placement=PLACEMENT, is_kept=True, is_ready=True)
        process.kill()


def leave(folder: Path, *records: EngineRecord, number: int = 0) -> Path:
    """Write the file of a rolecall that is gone."""
    folder.mkdir(exist_ok=True)
    owner = {"pid": DEAD_PID + number, "born": "long ago"}
    path = folder / f"{DEAD_PID + number}.json"
    path.write_text(json.dumps({"owner": owner, "engines": {record.model: record.row() for record in records}}))
    return path


@pytest.mark.parametrize(
    "change",
    [{"is_ready": False}, {"is_kept": False}, {"mark": ""}, {"fingerprint": "of another entry"}],
    ids=["not ready", "not kept on purpose", "without a mark", "not wanted"],
)
def test_all_others_are_ended(tmp_path: Path, engine: EngineRecord, change: dict[str, object]) -> None:
    """An engine that was loading, was to be stopped, was to end with rolecall or is no longer right is ended."""
    path = leave(tmp_path, replace(engine, **change))  # type: ignore[arg-type]
    assert EngineRoll(tmp_path).adopt(lambda record: record.fingerprint == "") == ([], ["m"])
    assert not is_running(engine.pid)
    assert not path.exists()


def test_an_engine_that_died_meanwhile(tmp_path: Path, engine: EngineRecord) -> None:
    """It is not adopted, and neither is another process that has its number."""
    gone = replace(engine, model="gone", born="another boot 17", mark="none")
    leave(tmp_path, engine, gone)
    os.kill(engine.pid, signal.SIGKILL)
    eventually(lambda: not is_running(engine.pid))
    assert EngineRoll(tmp_path).adopt(yes) == ([], [])


def test_one_engine_of_a_model_is_enough(tmp_path: Path, engine: EngineRecord) -> None:
    """If two rolecalls left the same model, or one engine stands in two files, one is adopted."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        leave(tmp_path, engine)
        leave(tmp_path, engine, number=1)
        other = replace(engine, pid=process.pid, born=Identity.of(process.pid).born, mark="other")
        leave(tmp_path, other, number=2)
        assert EngineRoll(tmp_path).adopt(yes) == ([engine], ["m"])
        assert process.wait() == -signal.SIGKILL
    assert is_running(engine.pid)


def test_a_rolecall_with_the_number_of_the_one_before(tmp_path: Path, engine: EngineRecord) -> None:
    """In a container each start has the same number: the new one's file takes the place of the old one's."""
    roll = EngineRoll(tmp_path)
    owner = {"pid": os.getpid(), "born": "another boot 17"}
    roll.path.write_text(json.dumps({"owner": owner, "engines": {"m": engine.row()}}))
    assert roll.adopt(yes) == ([engine], [])
    assert json.loads(roll.path.read_text())["owner"]["born"] != "another boot 17"
    assert EngineRoll(tmp_path).adopt(yes) == ([], [])
    assert is_running(engine.pid)


RIVAL = """
import pathlib, sys
from rolecall.runtime.leftovers import EngineRoll
sys.stdout.write("here\\n")
sys.stdout.flush()
sys.stdin.readline()
adopted, ended = EngineRoll(pathlib.Path(sys.argv[1])).adopt(lambda record: True)
sys.stdout.write(f"{len(adopted)} {len(ended)}\\n")
sys.stdout.flush()
sys.stdin.readline()
"""


def test_two_rolecalls_do_not_adopt_the_same_engine(tmp_path: Path, engine: EngineRecord) -> None:
    """Of several that start at once with one state folder one has it, and none ends it."""
    leave(tmp_path, engine)
    argv = [sys.executable, "-c", RIVAL, str(tmp_path)]
    rivals = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [line(rival) for rival in rivals] == ["here"] * 4
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("\n")
        rival.stdin.flush()
    assert sorted(line(rival) for rival in rivals) == ["0 0", "0 0", "0 0", "1 0"]
    assert is_running(engine.pid)
    for rival in rivals:
        rival.communicate("\n")


# -- what is adopted


@pytest.fixture
def adopted(tmp_path: Path, engine: EngineRecord) -> AdoptedProcess:
    """Return the engine as one of ours."""
    return EngineLauncher(tmp_path, {}).adopt(engine)


@pytest.mark.parametrize("has_handles", [True, False])
async def test_the_end_of_an_adopted_engine(
    adopted: AdoptedProcess, engine: EngineRecord, monkeypatch: pytest.MonkeyPatch, *, has_handles: bool
) -> None:
    """It is noticed at once, or soon on older kernels; nobody knows the code."""
    if not has_handles:
        monkeypatch.delattr(os, "pidfd_open")
    waiting = asyncio.create_task(adopted.wait())
    assert adopted.members() == [engine.pid]
    adopted.send(0)
    os.kill(engine.pid, signal.SIGKILL)
    started = time.monotonic()
    assert await waiting == UNKNOWN_EXIT
    assert time.monotonic() - started < 2
    assert await adopted.wait() == UNKNOWN_EXIT
    adopted.send(signal.SIGKILL)  # nothing happens


async def test_a_wait_that_is_given_up_leaves_the_engine(adopted: AdoptedProcess, engine: EngineRecord) -> None:
    """A rolecall that ends in order waits no longer for an engine that it keeps."""
    waiting = asyncio.create_task(adopted.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert is_running(engine.pid)


async def test_an_adopted_engine_is_not_kept_for_ever(tmp_path: Path, engine: EngineRecord) -> None:
    """Adopted by a rolecall that keeps no engines, it ends with that one, and would not be adopted again."""
    leave(tmp_path, engine)
    roll, guardian = EngineRoll(tmp_path), Guardian()
    records, _ = roll.adopt(yes)
    process = await asyncio.to_thread(EngineLauncher(tmp_path, {}, guardian=guardian, roll=roll).adopt, records[0])
    waiting = asyncio.create_task(process.wait())
    await until(lambda: guardian.pid)
    assert not json.loads(roll.path.read_text())["engines"]["m"]["is_kept"]
    await guardian.close()
    assert await waiting == UNKNOWN_EXIT
    assert not roll.path.exists()


async def test_the_state_of_a_kept_engine_is_written_down(tmp_path: Path) -> None:
    """It is ready from when it answers until it is to be stopped or put to sleep; other models are not concerned."""
    roll = EngineRoll(tmp_path / "engines")
    launcher = EngineLauncher(tmp_path, os.environ, keep=True, roll=roll)
    process = await launcher.start("m", Launch(("sleep", "600"), "http://127.0.0.1:1/v1"))

    def written() -> EngineRecord:
        return EngineRecord.from_row("m", json.loads(roll.path.read_text())["engines"]["m"])

    assert not written().can_be_adopted
    roll.ready("m", fingerprint="f", placement=PLACEMENT)
    roll.unready("another")
    assert (written().can_be_adopted, written().fingerprint, written().placement) == (True, "f", PLACEMENT)
    roll.unready("m")
    assert not written().can_be_adopted
    process.send(signal.SIGKILL)
    await process.wait()
    roll.ready("m", fingerprint="f")
    assert not roll.path.exists()
