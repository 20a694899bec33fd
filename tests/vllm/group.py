"""The processes of a vLLM engine."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness import Rolecall, eventually, is_running

PROGRAM_VARIABLE = "ROLECALL_TEST_VLLM"
"""Set by ``make test-vllm`` to the program that it installed."""

MODEL = "tiny/vllm:test"
LOAD_WITHIN_S = 170.0
"""It takes 20 s on two cores of which nobody else wants anything, and 60 s on a busy machine."""


@dataclass(frozen=True)
class Group:
    """The processes of one engine and what they hold in ``/dev/shm``, seen while they lived."""

    processes: tuple[psutil.Process, ...]
    shared_memory: frozenset[Path]

    def named(self, part: str) -> psutil.Process:
        """Return the process whose command line holds ``part``."""
        return next(process for process in self.processes if part in _words(process))

    def has(self, part: str) -> bool:
        """Whether there is a process whose command line holds ``part``."""
        return any(part in _words(process) for process in self.processes)

    def assert_gone(self, within_s: float = 3.0) -> None:
        """Fail if one of them lives on, or leaves something in ``/dev/shm``."""
        eventually(lambda: not [each for each in self.processes if is_running(each.pid)], within_s=within_s)
        assert [path for path in self.shared_memory if path.exists()] == []


def engine_group(server: Rolecall) -> Group:
    """Return all of the engine that a rolecall runs now; its own guardian is none of it."""
    found = {each for each in server.engine_processes() if "vllm" in (words := _words(each)) or "VLLM::" in words}
    for each in [*found]:
        with suppress(psutil.NoSuchProcess):
            found.update(each.children(recursive=True))
    return Group(tuple(found), frozenset(path for each in found for path in _shared_memory(each)))


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _shared_memory(process: psutil.Process) -> set[Path]:
    try:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return set()
    return {Path(path) for path in re.findall(r"/dev/shm/\S+", maps)}
