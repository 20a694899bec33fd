"""Engine processes: started in a session of their own, bound to our life or kept beyond it, ended as a family."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import psutil

from rolecall.backends.base import Launch
from rolecall.runtime import exec_bound, family
from rolecall.runtime.family import ENGINE_VARIABLE, Family
from rolecall.runtime.guardian import Guardian
from rolecall.runtime.leftovers import EngineRecord, EngineRoll, Identity, boot_s

log = logging.getLogger(__name__)

MAX_LOG_BYTES = 20_000_000
ENGINE_LOGS = "engine-logs"
"""In the state folder."""
UNKNOWN_EXIT = 256
"""The exit code of a process that is not our child: the kernel tells it to nobody else."""
OWNER_VARIABLE = "ROLECALL_PID"
"""Set for every engine: the rolecall that started it, for whoever looks at a process and wonders."""
_TAIL_BYTES = 65_536
_POLL_S = 0.1
_HANGS_S = 10.0
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)
_KEEPS_MARK = {"SPT_NOENV": "1"}
"""py-setproctitle, which vLLM's processes take their names by, would write over the environment and the mark in it."""


class Process(Protocol):
    """One engine with everything that it started."""

    pid: int

    async def wait(self) -> int:
        """Return the exit code once nothing is left of the family; negative for a signal."""
        ...

    def is_ending(self) -> bool:
        """Whether the engine's own process is gone or on its way out already: it takes no signal any more."""
        ...

    def send(self, signal_number: int) -> None:
        """Signal the engine's process group; nothing happens if it is gone."""
        ...

    def send_rest(self, signal_number: int, spare: str | None = None) -> None:
        """Signal the whole family but those whose command line contains ``spare``."""
        ...

    def members(self) -> list[int]:
        """Return the numbers of all processes of the family; a look at all of ``/proc``, some milliseconds."""
        ...

    def tail(self, lines: int) -> list[str]:
        """Return the last lines of its output."""
        ...

    def log_problem(self) -> str | None:
        """Return why nothing can be added to its output, None if something can."""
        ...


class Launcher(Protocol):
    """Starts engine processes."""

    async def start(self, model: str, launch: Launch) -> Process:
        """Start an engine; raises ``OSError`` if there is no such program."""
        ...

    def adopt(self, record: EngineRecord) -> Process:
        """Go on with an engine of an earlier run."""
        ...


class _FamilyProcess:
    """What is the same for all processes, whoever started them."""

    def __init__(self, record: EngineRecord, on_gone: Callable[[], None]) -> None:
        self.pid = record.pid
        self.record = record
        self._family = record.family(watched=True)
        self._on_gone = on_gone

    def is_ending(self) -> bool:
        """Whether the engine's own process is gone or on its way out; where there is no ``/proc`` nobody knows."""
        return family.is_ending(self.pid, self.record.born)

    def send(self, signal_number: int) -> None:
        """Signal the group, or what is left of the family without its leader."""
        if self._is_led():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal_number)
        else:  # the group's number may be somebody else's by now
            self.send_rest(signal_number)

    def send_rest(self, signal_number: int, spare: str | None = None) -> None:
        """Signal the family but those whose command line contains ``spare``."""
        for member in self._family.members(family.look()):
            if spare is None or not member.is_called(spare):
                family.send(member, signal_number)

    def members(self) -> list[int]:
        """Return the numbers of all processes of the family, in order."""
        return [member.pid for member in self._family.members(family.look())]

    def tail(self, lines: int) -> list[str]:
        """Return the last ``lines`` lines of output that are not empty."""
        try:
            with Path(self.record.log_path).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    def log_problem(self) -> str | None:
        """Return why no line can be added to its output, None if one was: there is no other way to know."""
        try:
            fd = os.open(self.record.log_path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(fd, b"\n")
            finally:
                os.close(fd)
        except OSError as error:
            return f"its log {self.record.log_path} cannot be written: {error.strerror}"
        return None

    def _is_led(self) -> bool:
        return self.record.identity.is_running()

    async def _end_rest(self) -> None:
        while not await asyncio.to_thread(family.end, [self._family], _HANGS_S):
            log.warning("%s was killed and does not end: processes %s", self.record.model, self.members())
        self._on_gone()


class EngineProcess(_FamilyProcess):
    """A child in its own session; its output goes to a file, so that a full pipe can never stop it."""

    def __init__(self, child: subprocess.Popen[bytes], record: EngineRecord, on_gone: Callable[[], None]) -> None:
        super().__init__(record, on_gone)
        self._child = child

    async def wait(self) -> int:
        """Return the exit code once the child is reaped, and the rest of its family killed and gone."""
        await _until_gone(self.record.identity)
        code = await asyncio.to_thread(self._child.wait)
        if sys.platform != "linux":  # without /proc the group is all that is known of the family
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        await self._end_rest()
        return code

    def _is_led(self) -> bool:
        return self._child.returncode is None


class AdoptedProcess(_FamilyProcess):
    """An engine that an earlier rolecall started."""

    def __init__(self, record: EngineRecord, on_gone: Callable[[], None], on_watched: Callable[[], None]) -> None:
        super().__init__(record, on_gone)
        self._on_watched = on_watched

    async def wait(self) -> int:
        """Return ``UNKNOWN_EXIT`` once the engine is gone, and the rest of its family killed and gone."""
        self._on_watched()
        await _until_gone(self.record.identity)
        await self._end_rest()
        return UNKNOWN_EXIT


async def _until_gone(identity: Identity) -> None:
    """Wait until a process has exited; whether anybody has reaped it is of no account."""
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):  # as in `family.send`; another system
        while identity.is_running():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(_POLL_S)
        return
    try:
        if identity.is_running():  # and the handle is this very process's
            await _until_readable(handle)
    finally:
        os.close(handle)


async def _until_readable(handle: int) -> None:
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(handle, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(handle)


def is_secret(variable: str) -> bool:
    """Whether a variable of the environment is named like one that holds a secret."""
    return _SECRET.search(variable) is not None


def log_path(folder: Path, model: str) -> Path:
    """Return the file in a folder that holds the output of a model's engine since its last start."""
    plain = re.sub(r"[^\w.()-]", "_", model)[:50]  # a character may take four of the 255 bytes of a name
    mark = "" if plain == model else f"-{zlib.crc32(model.encode()):08x}"  # `a/b` and `a:b` have a log each
    return folder / f"{plain}{mark}.log"


class EngineLauncher:
    """Starts engines, with their logs in ``log_dir`` and the environment without other people's secrets.

    With ``keep`` they outlive us; without it the kernel kills them when we are gone, and ``guardian`` what they
    started. In ``roll`` they are written down before they begin, and struck off when nothing is left of them.
    """

    def __init__(
        self,
        log_dir: Path,
        environ: Mapping[str, str],
        *,
        keep: bool = False,
        guardian: Guardian | None = None,
        roll: EngineRoll | None = None,
    ) -> None:
        self._log_dir = log_dir
        self._environ = {name: value for name, value in environ.items() if not _SECRET.search(name)}
        self._keep = keep
        self._guardian = None if keep else guardian
        self._roll = roll

    def log_path(self, model: str) -> Path:
        """Return the file that holds the engine's output since its last start."""
        return log_path(self._log_dir, model)

    async def start(self, model: str, launch: Launch) -> EngineProcess:
        """Start the engine of ``model``; raises ``OSError`` if its log cannot be written."""
        mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        with contextlib.ExitStack() as stack:
            output = self._new_log(model)
            stack.callback(os.close, output)
            gate, opener = os.pipe()
            stack.callback(os.close, gate)
            stack.callback(os.close, opener)
            try:
                self._guard(Family(mark, spare=launch.killed_last or ""))
                child = self._spawn(launch, mark, gate, output)
            except (OSError, ValueError):
                self._forget(model, mark)
                raise
            record = self._record(model, launch, mark, child.pid)
            self._guard(record.family(watched=True))
            if self._roll is not None:
                self._roll.add(record)
            with contextlib.suppress(BrokenPipeError):
                os.write(opener, b"\n")
        return EngineProcess(child, record, lambda: self._forget(model, mark))

    def adopt(self, record: EngineRecord) -> AdoptedProcess:
        """Go on with an engine of an earlier run; without ``keep`` it ends with us from its first ``wait`` on.

        It may be called off the event loop, where ``EngineRoll.adopt`` belongs.
        """
        record = replace(record, is_kept=self._keep)
        if self._roll is not None:
            self._roll.add(record)
        guarded = record.family(watched=True)
        return AdoptedProcess(record, lambda: self._forget(record.model, record.mark), lambda: self._guard(guarded))

    def _new_log(self, model: str) -> int:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        path = self.log_path(model)
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_suffix(".previous.log"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _spawn(self, launch: Launch, mark: str, gate: int, output: int) -> subprocess.Popen[bytes]:
        """Start the child, which waits at the gate. asyncio's own subprocesses end with their event loop."""
        parent = "0" if self._keep else str(os.getpid())
        marks = {OWNER_VARIABLE: str(os.getpid()), ENGINE_VARIABLE: mark}
        return subprocess.Popen(
            (sys.executable, "-I", "-S", exec_bound.__file__, "--gate", parent, *launch.argv),
            stdin=gate,
            stdout=output,
            stderr=output,
            env={**self._environ, **_KEEPS_MARK, **launch.env, **marks},
            start_new_session=True,
        )

    def _record(self, model: str, launch: Launch, mark: str, pid: int) -> EngineRecord:
        return EngineRecord(
            model=model,
            pid=pid,
            born=Identity.of(pid).born,
            mark=mark,
            base_url=launch.base_url,
            health_path=launch.health_path,
            killed_last=launch.killed_last,
            log_path=str(self.log_path(model).absolute()),
            started_at=time.time(),
            started_boot_s=boot_s(),
            is_kept=self._keep,
            key=launch.key or "",
        )

    def _guard(self, family: Family) -> None:
        if self._guardian is not None:
            self._guardian.add(family)

    def _forget(self, model: str, mark: str) -> None:
        if self._guardian is not None:
            self._guardian.remove(mark)
        if self._roll is not None:
            self._roll.remove(model)

    def trim_logs(self) -> None:
        """Empty engine logs that have grown too large; engines append, so they go on at the start."""
        for path in self._log_dir.glob("*.log"):
            with contextlib.suppress(OSError):  # it may go at any moment
                if path.stat().st_size > MAX_LOG_BYTES:
                    os.truncate(path, 0)


def describe_exit(code: int) -> str:
    """Return an exit code in words: ``exit code 1`` or ``killed by SIGKILL``."""
    if code == UNKNOWN_EXIT:
        return "exit code unknown (an earlier rolecall started it)"
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def memory_mb(pid: int) -> int:
    """Return the resident memory of a process and its children in MB; 0 if it is gone."""
    rss = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # a child may go at any moment
                rss += process.memory_info().rss
    return rss >> 20
