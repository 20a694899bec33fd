"""The two C programs, and the upstream as a process."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from c_compiler import compile_c

NATIVE = Path(__file__).with_name("native")


@dataclass(frozen=True)
class Programs:
    """Where they are."""

    mock: Path
    load: Path


def build(folder: Path) -> Programs:
    """Compile both into ``folder``; raises ``NoCompiler``."""
    made = {name: compile_c(NATIVE / f"{name}.c", folder / name, "-O2") for name in ("mock", "load")}
    return Programs(**made)


@dataclass(frozen=True)
class Seen:
    """What the upstream has seen so far; its questioner is not counted."""

    accepted: int
    requests: int
    active: int
    aborted: int
    last_abort_ns: int
    bytes_out: int


class MockDied(Exception):
    """Nothing that was measured since then says anything."""


class Mock:
    """The upstream on a free port, for as long as the ``with`` block lasts."""

    def __init__(self, programs: Programs) -> None:
        self.process = subprocess.Popen([programs.mock, "0"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split()[-1])
        self._questions = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)

    def __enter__(self) -> Self:
        """Return it: it listens already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._questions.close()
        self.process.kill()
        self.process.communicate()

    def seen(self) -> Seen:
        """Return what it has seen; raises ``MockDied``."""
        if self.process.poll() is not None:
            raise MockDied(f"the upstream has ended with {self.process.returncode}")
        self._questions.request("GET", "/stats")
        told = json.loads(self._questions.getresponse().read())
        return Seen(
            told["accepted"] - 1,
            told["requests"],
            told["active_streams"],
            told["aborted_streams"],
            told["last_abort_ns"],
            told["bytes_out"],
        )

    def is_drained(self, within_s: float) -> bool:
        """Wait until it answers nobody any more; whether that was in time."""
        until = time.monotonic() + within_s
        while self.seen().active:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True
