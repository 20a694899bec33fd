"""Engine processes: their session, environment, log, end, and their bond to the process that started them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness import DEADLINE_S, eventually, is_running
from rolecall.backends.base import Launch
from rolecall.runtime.guardian import Guardian
from rolecall.runtime.launcher import (
    MAX_LOG_BYTES,
    UNKNOWN_EXIT,
    EngineLauncher,
    EngineProcess,
    describe_exit,
    memory_mb,
)
from rolecall.runtime.leftovers import EngineRecord, EngineRoll, boot_s

PARENT = """
import asyncio, os, pathlib, sys
from rolecall.backends.base import Launch
from rolecall.runtime.launcher import EngineLauncher

async def main():
    launcher = EngineLauncher(pathlib.Path(sys.argv[1]), os.environ)
    process = await launcher.start("m", Launch(("sleep", "600"), ""))
    print(process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def python(script: str, *arguments: str, env: dict[str, str] | None = None) -> Launch:
    """Return a launch of a Python script."""
    return Launch((sys.executable, "-c", script, *arguments), "http://127.0.0.1:1/v1", env or {})


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[EngineLauncher]:
    """Return a launcher whose environment holds secrets; what a test leaves is ended."""
    secrets = {"OPENAI_API_KEY": "canary", "hf_token": "canary", "X_SECRET": "canary", "DB_PASSWORD": "canary"}
    harmless = {"KEYBOARD": "de", "TOKENIZERS_PARALLELISM": "1"}
    environ = {"PATH": os.environ["PATH"], **secrets, **harmless}
    guardian = Guardian()
    yield EngineLauncher(tmp_path / "logs", environ, guardian=guardian)
    await guardian.close()


async def test_a_child_leads_a_session_of_its_own(launcher: EngineLauncher) -> None:
    """A Ctrl-C on the terminal does not reach engines, and one signal reaches all that they start."""
    process = await launcher.start("m", Launch(("sleep", "600"), ""))
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    process.send(signal.SIGTERM)
    assert await process.wait() == -signal.SIGTERM
    process.send(signal.SIGTERM)  # nothing happens


async def test_the_environment_of_a_child(launcher: EngineLauncher) -> None:
    """Variables that look like secrets stay here unless the entry names them itself."""
    launch = python(
        "import os, json; print(json.dumps(dict(os.environ)))", env={"MY_API_KEY": "given", "KEYBOARD": "us"}
    )
    process = await launcher.start("m", launch)
    assert await process.wait() == 0
    seen = json.loads(process.tail(1)[0])
    assert "canary" not in seen.values()
    assert (seen["MY_API_KEY"], seen["KEYBOARD"], seen["TOKENIZERS_PARALLELISM"]) == ("given", "us", "1")
    assert seen["ROLECALL_PID"] == str(os.getpid())
    assert seen["SPT_NOENV"] == "1"


async def test_each_start_has_a_mark_of_its_own(launcher: EngineLauncher) -> None:
    """An entry cannot set it, or two engines would end each other."""
    launch = python("import os; print(os.environ['ROLECALL_ENGINE'])", env={"ROLECALL_ENGINE": "mine"})
    marks = set()
    for _ in range(2):
        process = await launcher.start("m", launch)
        await process.wait()
        assert process.tail(1) == [process.record.mark]
        marks.add(process.record.mark)
    assert len(marks) == 2
    assert "mine" not in marks


async def test_the_words_of_a_command_arrive_as_they_are(launcher: EngineLauncher) -> None:
    """No shell is between, and no option of Python's is read from the engine's words."""
    words = ["-c", "$HOME `id`", "a b", "", "--version", "ä"]
    process = await launcher.start("m", python("import sys, json; print(json.dumps(sys.argv[1:]))", *words))
    assert await process.wait() == 0
    assert json.loads(process.tail(1)[0]) == words


async def test_the_log_and_its_tail(launcher: EngineLauncher) -> None:
    """Both outputs go to one file that only its owner reads; the tail leaves out empty lines and survives any bytes."""
    script = "import sys; sys.stdout.buffer.write(b'one\\n\\n \\xff two\\n'); sys.stdout.flush(); sys.exit('three')"
    process = await launcher.start("m", python(script))
    assert await process.wait() == 1
    assert process.tail(9) == ["one", " \N{REPLACEMENT CHARACTER} two", "three"]
    assert process.tail(1) == ["three"]
    assert launcher.log_path("m").stat().st_mode & 0o777 == 0o600


async def test_whether_the_log_can_be_written(launcher: EngineLauncher, tmp_path: Path) -> None:
    """To find out adds nothing that would be seen; what is in the way is named with the file."""
    process = await launcher.start("m", python("print('one')"))
    assert await process.wait() == 0
    assert process.log_problem() is None
    assert process.tail(2) == ["one"]
    log = launcher.log_path("m")
    log.unlink()
    log.symlink_to("/dev/full")
    assert process.log_problem() == f"its log {log} cannot be written: No space left on device"


async def test_the_tail_of_a_long_log(launcher: EngineLauncher) -> None:
    """Of much output the last lines are returned, in order."""
    process = await launcher.start("m", python("for i in range(20000): print('line', i)"))
    await process.wait()
    assert process.tail(2) == ["line 19998", "line 19999"]
    launcher.log_path("m").unlink()
    assert process.tail(2) == []


async def test_the_previous_log_is_kept(launcher: EngineLauncher) -> None:
    """A start begins a new log; that of the start before stands beside it, which is where a crash is explained."""
    for text in ("first", "second", "third"):
        await (await launcher.start("m.5", python(f"print('{text}')"))).wait()
    path = launcher.log_path("m.5")
    assert path.read_text() == "third\n"
    assert path.with_name("m.5.previous.log").read_text() == "second\n"


@pytest.mark.parametrize("names", [("a/b", "a:b"), ("a" * 150 + "1", "a" * 150 + "2"), ("ä", "ä/")])
async def test_each_model_has_a_log_of_its_own(launcher: EngineLauncher, names: tuple[str, str]) -> None:
    """Names that only differ in characters a file name cannot have do not share a log."""
    paths = [launcher.log_path(name) for name in names]
    assert paths[0] != paths[1]
    assert {path.parent for path in paths} == {launcher.log_path("plain").parent}


@pytest.mark.parametrize("name", ["漢" * 256, "../../etc/passwd", "..", "/", " ", "a\nb"])
async def test_any_name_makes_a_log(launcher: EngineLauncher, tmp_path: Path, name: str) -> None:
    """Whatever a model is called, its log can be written, and lies in the folder for logs."""
    process = await launcher.start(name, python("print('here')"))
    assert await process.wait() == 0
    assert process.tail(1) == ["here"]
    assert launcher.log_path(name).resolve().parent == tmp_path / "logs"


async def test_a_binary_that_is_not_there(launcher: EngineLauncher) -> None:
    """The child exits with a shell's code for it, and its log has the reason."""
    process = await launcher.start("m", Launch(("/no/such/engine",), ""))
    assert await process.wait() == 127
    assert process.tail(9) == ["/no/such/engine: No such file or directory"]


async def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """Without a log nothing is started."""
    (tmp_path / "logs").touch()
    with pytest.raises(OSError, match="logs"):
        await EngineLauncher(tmp_path / "logs", {}).start("m", python("0"))


async def test_an_engine_begins_once_it_is_written_down(launcher: EngineLauncher, tmp_path: Path) -> None:
    """Its first act finds it in the roll, with what its end takes; it is struck off when it is gone."""
    roll = EngineRoll(tmp_path / "engines")
    launcher = EngineLauncher(tmp_path, os.environ, roll=roll)
    launch = python("import sys; print(open(sys.argv[1]).read(), sys.stdin.read())", str(roll.path))
    process = await launcher.start("m", replace(launch, killed_last="tracker", health_path="/alive"))
    await process.wait()
    found = json.loads(process.tail(1)[0])
    assert EngineRecord.from_row("m", found["engines"]["m"]) == process.record
    record = process.record
    assert (record.pid, record.mark != "", record.killed_last) == (process.pid, True, "tracker")
    assert (record.base_url, record.port, record.health_path) == ("http://127.0.0.1:1/v1", 1, "/alive")
    assert Path(record.log_path) == launcher.log_path("m")
    assert abs(record.started_at - time.time()) < 60
    assert abs(record.started_boot_s - boot_s()) < 60
    assert (record.is_kept, record.is_ready, record.placement, record.fingerprint) == (False, False, (), "")
    assert not roll.path.exists()


FAMILY = """
import os, signal, sys, time

def start(*steps, environ=os.environ):
    if os.fork() == 0:
        for step in steps:
            step()
        print(os.getpid(), flush=True)
        os.execve("/bin/sleep", ["sleep", "600"], environ)

def fork_again():
    if os.fork():
        os._exit(0)

start()
start(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
start(environ={})
start(os.setsid)
start(fork_again, os.setsid, fork_again)
exec(sys.argv[1])
"""
"""Children of all sorts, which write their numbers to the log: they share a session, have their own, or are orphans."""


async def until(question: Callable[[], object]) -> None:
    """Let the event loop go on until the answer is yes; fail if that takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def family(launcher: EngineLauncher, then: str, model: str = "m") -> tuple[EngineProcess, list[int]]:
    """Return an engine with five others, and the numbers of these."""
    process = await launcher.start(model, python(FAMILY, then))
    await until(lambda: len(process.tail(9)) == 5 and all(is_asleep(int(line)) for line in process.tail(9)))
    return process, [int(line) for line in process.tail(9)]


def is_asleep(pid: int) -> bool:
    """Whether a process has become what it was to be."""
    return is_running(pid) and psutil.Process(pid).name() == "sleep"


async def test_what_a_child_started_goes_with_it(launcher: EngineLauncher) -> None:
    """Nothing of it is left when an engine is said to be gone: workers would hold its memory for ever."""
    process, others = await family(launcher, "sys.stdin.close(); time.sleep(600)")
    other_engine, its_others = await family(launcher, "time.sleep(600)", "another")
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    assert not any(map(is_running, others))
    assert process.members() == []
    assert other_engine.members() == sorted([other_engine.pid, *its_others])
    other_engine.send(signal.SIGKILL)
    await other_engine.wait()


async def test_what_is_left_of_an_engine_that_exits(launcher: EngineLauncher) -> None:
    """Also an engine that ends by itself, with any code, takes the others along."""
    process, others = await family(launcher, "time.sleep(0.3); sys.exit(7)")
    assert await process.wait() == 7
    assert not any(map(is_running, others))


async def test_a_signal_to_the_rest(launcher: EngineLauncher) -> None:
    """It reaches sessions of their own and orphans, and leaves out whose command line has the word."""
    process, others = await family(launcher, "time.sleep(600)")
    process.send_rest(signal.SIGKILL, "sleep 600")
    await until(lambda: not is_running(process.pid))
    assert all(map(is_running, others))
    process.send_rest(signal.SIGSTOP, "no such word")
    await until(
        lambda: {psutil.Process(pid).status() for pid in others if os.getsid(pid) != process.pid} == {"stopped"}
    )
    process.send_rest(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL


async def test_who_was_seen_once_is_not_forgotten(launcher: EngineLauncher) -> None:
    """A process that can be told from others by nothing but its parent is ended even when the parent is gone."""
    script = "pid = start(os.setsid, environ={}); time.sleep(600)"
    process = await launcher.start("m", python(FAMILY.partition("start()\n")[0] + script))
    await until(lambda: process.tail(1) and is_asleep(int(process.tail(1)[0])))
    orphan = int(process.tail(1)[0])
    assert process.members() == [process.pid, orphan]
    process.send(signal.SIGKILL)
    await process.wait()
    assert not is_running(orphan)


def shared_memory() -> list[Path]:
    """Return all pieces of shared memory that have a name."""
    return list(Path("/dev/shm").iterdir())


def threads(pid: int) -> list[Path]:
    """Return a process's threads; a zombie has one, a process that is gone none."""
    return list(Path("/proc").glob(f"{pid}/task/*"))


async def test_those_who_clean_up_have_the_time_for_it(launcher: EngineLauncher, tmp_path: Path) -> None:
    """When an engine crashes, multiprocessing's tracker, which outlives it, removes the shared memory it left."""
    script = (
        "from multiprocessing import resource_tracker, shared_memory\n"
        "import os, time\n"
        "memory = shared_memory.SharedMemory(create=True, size=4096)\n"
        "print('/dev/shm/' + memory.name, resource_tracker._resource_tracker._pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = await launcher.start("m", replace(python(script), killed_last="resource_tracker"))
    await until(lambda: process.tail(1))
    path, tracker = process.tail(1)[0].split()
    assert Path(path) in shared_memory()
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    assert Path(path) not in shared_memory()
    assert not is_running(int(tracker))


async def test_a_process_that_is_on_its_way_out(launcher: EngineLauncher) -> None:
    """Whoever sees its connection closed by its death knows that it takes no signal any more; not before."""
    script = "import socket, sys, os; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); s.recv(1); "
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = await launcher.start("m", python(script + "os._exit(3)", str(listener.getsockname()[1])))
        connection, _ = await asyncio.to_thread(listener.accept)
    assert not process.is_ending()
    with connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b""
    assert process.is_ending()
    assert await process.wait() == 3
    assert process.is_ending()


async def test_a_thread_may_outlive_the_first_one(launcher: EngineLauncher) -> None:
    """A process whose first thread is gone looks like a zombie, and holds all its memory until the last one ends."""
    script = (
        "import ctypes, os, threading, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "    print(os.getpid(), flush=True)\n"
        "    ctypes.CDLL(None).pthread_exit(None)\n"
        "time.sleep(600)\n"
    )
    process = await launcher.start("m", python(script))
    await until(lambda: process.tail(1) and not is_running(int(process.tail(1)[0])))
    half = int(process.tail(1)[0])
    assert process.members() == sorted([process.pid, half])
    process.send(signal.SIGKILL)
    await process.wait()
    assert len(threads(half)) <= 1


async def test_without_handles_for_processes(launcher: EngineLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an older kernel, or with a Python built for one, all of it works by looking again and again."""
    monkeypatch.delattr(os, "pidfd_open")
    process, others = await family(launcher, "time.sleep(600)")
    waiting = asyncio.create_task(process.wait())
    process.send_rest(signal.SIGKILL, "sleep 600")
    assert await waiting == -signal.SIGKILL
    assert not any(map(is_running, others))


async def test_a_kept_engine_is_bound_to_nobody(tmp_path: Path) -> None:
    """Neither the kernel nor a guardian is told to end it, and its record says that it may be adopted."""
    guardian = Guardian()
    roll = EngineRoll(tmp_path / "engines")
    process = await EngineLauncher(tmp_path, os.environ, keep=True, guardian=guardian, roll=roll).start(
        "m", python("import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)")
    )
    assert guardian.pid is None
    assert process.record.is_kept
    assert await process.wait() == 0
    assert process.tail(1) == ["0"]  # PR_GET_PDEATHSIG


@pytest.mark.skipif(sys.platform != "linux", reason="there is no parent-death signal")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """Even a SIGKILL of rolecall, which nothing can catch, takes the engines with it."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        eventually(lambda: psutil.Process(child).name() == "sleep")
        parent.kill()
        parent.wait()
        eventually(lambda: not is_running(child))
    finally:
        parent.kill()
        parent.communicate()


def test_a_parent_that_is_gone_already(tmp_path: Path) -> None:
    """A child whose parent died before the signal was set does not become the engine."""
    done = tmp_path / "done"
    bound = Path(__file__).parents[2] / "src" / "rolecall" / "runtime" / "exec_bound.py"
    orphan = subprocess.run([sys.executable, str(bound), "1", "touch", str(done)], check=False, timeout=20)
    assert orphan.returncode == 1
    assert not done.exists()


def test_a_gate_that_is_never_opened(tmp_path: Path) -> None:
    """A child whose parent died before it was written down does not become the engine, bound or not."""
    done = tmp_path / "done"
    bound = Path(__file__).parents[2] / "src" / "rolecall" / "runtime" / "exec_bound.py"
    for parent in ("0", str(os.getpid())):
        argv = [sys.executable, str(bound), "--gate", parent, "touch", str(done)]
        child = subprocess.run(argv, check=False, timeout=20, stdin=subprocess.DEVNULL)
        assert child.returncode == 1
        assert not done.exists()
        assert subprocess.run(argv, check=False, timeout=20, input=b"\n").returncode == 0
        done.unlink()


async def test_large_logs_are_emptied(launcher: EngineLauncher) -> None:
    """A log above the limit is emptied, and its engine goes on writing at the start; a smaller one stays."""
    script = """
import os, time
print("before", flush=True)
while os.fstat(1).st_size:
    time.sleep(0.01)
print("after")
"""
    process = await launcher.start("large", python(script))
    large, small = launcher.log_path("large"), launcher.log_path("small")
    eventually(lambda: large.stat().st_size)
    os.truncate(large, MAX_LOG_BYTES + 1)
    small.write_text("kept")
    launcher.trim_logs()
    assert await process.wait() == 0
    assert (large.read_text(), small.read_text()) == ("after\n", "kept")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL"),
        (-250, "killed by signal 250"),
        (UNKNOWN_EXIT, "exit code unknown (an earlier rolecall started it)"),
    ],
)
def test_an_exit_in_words(code: int, words: str) -> None:
    """Codes below zero are signals, by name where they have one."""
    assert describe_exit(code) == words


def test_the_memory_of_a_process() -> None:
    """It is in MB, and 0 for a process that is not there."""
    assert 5 < memory_mb(os.getpid()) < 5000
    assert memory_mb(2**30) == 0
