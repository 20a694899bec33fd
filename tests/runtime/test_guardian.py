"""The guardian: engines and all that they started end with rolecall, however it ends, and nobody else does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from harness import DEADLINE_S, eventually, is_running
from rolecall.backends.base import Launch
from rolecall.runtime.family import Family, look_at
from rolecall.runtime.guardian import Guardian
from rolecall.runtime.launcher import EngineLauncher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")

STAND_IN = Path(__file__).with_name("stand_in.py")
IGNORED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
"""By the guardian, once it has begun."""
WITHIN_S = 5.0
"""How long anything may live on after rolecall."""
ROUNDS = 30


@dataclass
class StandIns:
    """A server that forks stand-ins for rolecall, one after the other."""

    server: subprocess.Popen[str]
    folder: Path

    def start(self, plan: str) -> tuple[int, str]:
        """Start one that goes by a plan; return its number and its token."""
        token = f"{random.randrange(10**12):012}"
        assert self.server.stdin is not None
        order = {"folder": str(self.folder / token), "token": token, "plan": plan, "keep": False}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        began, pid = self.line().split()
        assert began == "began"
        return int(pid), token

    def line(self) -> str:
        """Return the next line that the server or the stand-in wrote."""
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def kill(self, pid: int) -> None:
        """End a stand-in by SIGKILL and wait until it is reaped."""
        os.kill(pid, signal.SIGKILL)
        while self.line() != "gone":
            pass


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIns]:
    """Return the server."""
    with subprocess.Popen(
        [sys.executable, str(STAND_IN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield StandIns(server, tmp_path_factory.mktemp("stand-ins"))
        end([*psutil.Process(server.pid).children(), psutil.Process(server.pid)])


def processes_of(token: str) -> list[psutil.Process]:
    """Return a stand-in with its guardian, its engines and all that these started."""
    return [process for process in psutil.process_iter() if _belongs(process, token)]


def _belongs(process: psutil.Process, token: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return any(token in word for word in process.cmdline()) or process.environ().get("STAND_IN") == token
    except psutil.Error:
        return False


def end(processes: list[psutil.Process]) -> None:
    """Kill what a failed test left."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_nothing_survives_a_killed_rolecall(stand_ins: StandIns) -> None:
    """Orphans, own sessions, processes deaf to SIGTERM or without an environment, and then the guardian itself go."""
    pid, token = stand_ins.start("ready")
    assert stand_ins.line().startswith("ready ")
    eventually(lambda: len([each for each in processes_of(token) if each.name() == "sleep"]) == 5)
    try:
        stand_ins.kill(pid)
        eventually(lambda: not processes_of(token), within_s=WITHIN_S)
    finally:
        end(processes_of(token))


def test_nothing_survives_whenever_it_is_killed(stand_ins: StandIns) -> None:
    """While an engine is forked, starts, forks, is ready, is stopped, or is waited for: nothing is left."""
    for _ in range(ROUNDS):
        pid, token = stand_ins.start("churn")
        time.sleep(random.uniform(0, 0.3))  # the moment is what is tried here: there is nothing to wait for
        try:
            stand_ins.kill(pid)
            eventually(lambda token=token: not processes_of(token), within_s=WITHIN_S)  # type: ignore[misc]
        finally:
            end(processes_of(token))


@pytest.fixture
async def guardian() -> AsyncIterator[Guardian]:
    """Return a guardian, which is closed afterwards."""
    guardian = Guardian()
    yield guardian
    await guardian.close()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own that has nothing to do with rolecall."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


def family_of(process: subprocess.Popen[bytes], mark: str = "m") -> Family:
    """Return what a process and its session are known by."""
    seen = look_at(process.pid)
    assert seen is not None
    return Family(mark, process.pid, seen.born)


def pid_of(guardian: Guardian) -> int:
    """Return the guardian's process."""
    assert guardian.pid is not None
    return guardian.pid


async def until(question: Callable[[], bool]) -> None:
    """Let the event loop go on until the answer is yes; fail if that takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def successor(guardian: Guardian, old: int) -> int:
    """Return the process that has taken the place of an earlier one."""
    await until(lambda: guardian.pid not in {old, None})
    return pid_of(guardian)


async def test_it_starts_with_the_first_engine_and_ends_with_us(guardian: Guardian) -> None:
    """Without engines there is none, with several there is one, and after the end not even a zombie is left."""
    before = {child.pid for child in psutil.Process().children()}
    guardian.remove("never there")
    assert guardian.pid is None
    guardian.add(Family("a"))
    guardian.add(Family("b"))
    assert {child.pid for child in psutil.Process().children()} - before == {guardian.pid}
    await guardian.close()
    assert {child.pid for child in psutil.Process().children()} == before
    assert guardian.pid is None


async def test_it_holds_nothing_of_ours(guardian: Guardian) -> None:
    """It has our end of no pipe and no listening socket: who reads rolecall's output sees its end."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # noqa: FBT003 - has no name
    try:
        guardian.add(Family("a"))
        pid = pid_of(guardian)
        await until(lambda: ignored_signals(pid) >= IGNORED)  # before that it opens files of Python's own
        files = open_files(pid)
        assert files.pop("fd/0").startswith("socket:")
        assert files == {"fd/1": "/dev/null", "fd/2": "/dev/null", "cwd": "/"}
    finally:
        os.close(reader)
        os.close(writer)


def open_files(pid: int) -> dict[str, str]:
    """Return what a process holds open, and its folder, by their places in its ``/proc``."""
    folder = Path(f"/proc/{pid}")
    return {str(path.relative_to(folder)): str(path.readlink()) for path in (*folder.glob("fd/*"), folder / "cwd")}


async def test_it_is_out_of_reach_of_a_terminal(guardian: Guardian) -> None:
    """It leads a session of its own and ignores the signals that end a foreground group."""
    guardian.add(Family("a"))
    pid = pid_of(guardian)
    assert os.getsid(pid) == pid
    await until(lambda: ignored_signals(pid) >= IGNORED)


def ignored_signals(pid: int) -> set[int]:
    """Return the signals that a process ignores (proc_pid_status(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


async def test_it_is_small(guardian: Guardian) -> None:
    """What it takes is a bare interpreter's: it loads nothing of rolecall but the one module that it needs."""
    guardian.add(Family("a"))
    pid = pid_of(guardian)
    await until(lambda: signal.SIGTERM in ignored_signals(pid))  # it has loaded everything
    assert psutil.Process(pid).memory_full_info().uss < 12 << 20


async def test_another_one_takes_the_place_of_a_dead_one(
    guardian: Guardian, stranger: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """It is noticed at once, said, and the new one knows all engines: it ends them when we are gone."""
    guardian.add(family_of(stranger))
    first = pid_of(guardian)
    os.kill(first, signal.SIGKILL)
    second = await successor(guardian, first)
    assert "the guardian of the engines ended (exit code -9)" in caplog.text
    os.kill(second, signal.SIGKILL)  # so soon again: the third one comes after a pause
    third = await successor(guardian, second)
    assert len({first, second, third}) == 3
    assert not is_running(first)
    assert stranger.poll() is None
    await guardian.close()
    assert stranger.wait(WITHIN_S) == -signal.SIGKILL


async def test_a_dead_one_without_engines_is_not_replaced(guardian: Guardian) -> None:
    """It comes back with the next engine."""
    guardian.add(Family("a"))
    guardian.remove("a")
    first = pid_of(guardian)
    os.kill(first, signal.SIGKILL)
    await until(lambda: guardian.pid is None)
    guardian.add(Family("b"))
    assert pid_of(guardian) != first


async def test_one_that_is_stuck_is_replaced(guardian: Guardian) -> None:
    """A guardian that takes no messages any more could end nothing."""
    guardian.add(Family("a"))
    first = pid_of(guardian)
    os.kill(first, signal.SIGSTOP)
    for number in range(5000):
        guardian.add(Family(f"{number}", spare="x" * 100))
        guardian.remove(f"{number}")
    assert await successor(guardian, first) != first


async def test_one_that_cannot_be_started(
    guardian: Guardian, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, engines start all the same, and it is tried again."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        guardian.add(Family("a"))
    assert guardian.pid is None
    assert "no guardian for the engines can be started" in caplog.text
    assert await successor(guardian, -1)


async def test_an_engine_that_was_taken_back_lives_on(guardian: Guardian, stranger: subprocess.Popen[bytes]) -> None:
    """One that is gone is forgotten, whoever has its number now."""
    guardian.add(family_of(stranger))
    guardian.remove("m")
    await guardian.close()
    assert is_running(stranger.pid)


async def test_a_number_that_came_again(guardian: Guardian, stranger: subprocess.Popen[bytes]) -> None:
    """A process with the number of an engine that was born at another time is somebody else, and so is its session."""
    guardian.add(Family("m", stranger.pid, "another boot 17"))
    await guardian.close()
    assert is_running(stranger.pid)


TRACKER = """
import os, subprocess, sys, time
reader, writer = os.pipe()
code = "import os, sys, time; os.read(int(sys.argv[2]), 1); os.unlink(sys.argv[3]); time.sleep(float(sys.argv[4]))"
argv = [sys.executable, "-I", "-S", "-c", code, "clean" "er", str(reader), *sys.argv[1:]]
print(subprocess.Popen(argv, pass_fds=[reader]).pid, flush=True)
time.sleep(600)
"""
"""Leaves a process behind that removes a file once its parent is gone, as multiprocessing's resource tracker does."""


@pytest.mark.parametrize("then_s", [0, 600])
async def test_who_cleans_up_is_killed_last(guardian: Guardian, tmp_path: Path, then_s: int) -> None:
    """What is to be killed last has the time to do its work, and goes at the end even if it would stay."""
    rubbish = tmp_path / "rubbish"
    rubbish.touch()
    launcher = EngineLauncher(tmp_path, os.environ, guardian=guardian)
    argv = (sys.executable, "-I", "-S", "-c", TRACKER, str(rubbish), str(then_s))
    process = await launcher.start("m", Launch(argv, "", killed_last="cleaner"))
    await until(lambda: bool(process.tail(1)))
    tracker = int(process.tail(1)[0])
    waiting = asyncio.create_task(process.wait())
    await guardian.close()
    assert not rubbish.exists()
    assert not is_running(tracker)
    assert await waiting == -signal.SIGKILL


def test_it_ends_engines_in_order_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An event loop that ends with an engine still there takes it along, and nothing is said to be wrong."""

    async def forget_it() -> int:
        launcher = EngineLauncher(tmp_path, os.environ, guardian=Guardian())
        return (await launcher.start("m", Launch(("sleep", "600"), ""))).pid

    caplog.set_level(logging.WARNING)
    engine = asyncio.run(forget_it())
    eventually(lambda: not is_running(engine), within_s=WITHIN_S)
    assert caplog.text == ""
