"""Rolecall's side of the guardian: the process that ends its engines when rolecall itself cannot any more."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from rolecall.runtime import guardian_process
from rolecall.runtime.family import ENGINE_VARIABLE, Family

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_END_S = 5.0
_ROOT = Path(guardian_process.__file__).parents[2]


class Guardian:
    """One small process, started with the first engine, in a session of its own.

    If it dies, which is noticed at once, another one takes its place. Only where there is a ``/proc``: elsewhere it
    does nothing.
    """

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._started = 0.0
        self._retry: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process; None if there is none."""
        return None if self._process is None else self._process.pid

    def add(self, family: Family) -> None:
        """Have an engine's processes ended with rolecall; a later call with the same mark replaces the earlier one.

        To be called before the engine is started: then nothing that is being forked can escape.
        """
        self._families[family.mark] = family
        if self._link is None:
            self._start()
        else:
            self._send(_message(family))

    def remove(self, mark: str) -> None:
        """Forget an engine: it is gone, or may live on."""
        if self._families.pop(mark, None) is not None:
            self._send(f"{mark}\0")

    async def close(self) -> None:
        """Let the process end, and with it all engines that were not removed."""
        if self._retry is not None:
            self._retry.cancel()
        process, self._process = self._process, None
        self._families = {}
        self._unlink()
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, _END_S)

    def _start(self) -> None:
        if sys.platform != "linux":
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = _spawn(theirs)
            except OSError as error:
                ours.close()
                log.warning("no guardian for the engines can be started: %s", error)
                self._start_later(_RETRY_S)
                return
        self._started = time.monotonic()
        self._link = ours
        asyncio.get_running_loop().add_reader(ours, self._on_end)
        for family in self._families.values():
            self._send(_message(family))

    def _start_later(self, delay_s: float) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(delay_s, self._start_again)

    def _start_again(self) -> None:
        if self._families and self._link is None:
            self._start()

    def _send(self, message: str) -> None:
        try:
            if self._link is not None:
                self._link.send(message.encode(), socket.MSG_DONTWAIT)
        except OSError:  # it is dead or stuck: `_on_end` starts another one, which is told everything
            if self._process is not None:
                self._process.kill()

    def _on_end(self) -> None:
        """The link can be read: the process has closed its end, for it never writes."""
        self._unlink()
        if self._process is not None:
            self._process.kill()
            code = self._process.wait()
            log.warning("the guardian of the engines ended (exit code %d); another one is started", code)
            self._process = None
        lived_s = time.monotonic() - self._started
        self._start_later(0 if lived_s > _RETRY_S else _RETRY_S)

    def _unlink(self) -> None:
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link)
            self._link.close()
        self._link = None


def _spawn(link: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        (sys.executable, "-I", "-S", guardian_process.__file__, str(_ROOT)),
        stdin=link.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != ENGINE_VARIABLE},
        start_new_session=True,
    )


def _message(family: Family) -> str:
    return "\0".join((family.mark, str(family.pid), family.born, family.spare))
