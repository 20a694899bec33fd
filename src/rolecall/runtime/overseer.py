"""Who runs rolecall as a service, systemd as a rule: told how it goes, and asked for the socket.

The protocol is sd_notify(3) and sd_listen_fds(3): datagrams of ``NAME=value`` lines to the socket that
``NOTIFY_SOCKET`` names, and listening sockets from file descriptor 3 on. It is documented, stable, and less than a
library would bring.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping

from rolecall.errors import ConfigurationError

log = logging.getLogger(__name__)

_FIRST_FD = 3
STATUS_EVERY_S = 5.0
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Overseer:
    """The service manager that started us; without one all that is told goes nowhere.

    ``watchdog_s`` is how long it waits for a sign of life before it ends us, None for ever.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None, fds: int = 0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address  # "@": an abstract one
        self.watchdog_s = watchdog_s
        self._fds = fds
        self._has_failed = False
        self._last_status = ""

    @classmethod
    def of_environment(cls, environ: MutableMapping[str, str]) -> Overseer:
        """Return who the environment names, and take that out of it: engines are not to speak in our name."""
        found = {name: environ.pop(name, "") for name in _VARIABLES}
        watchdog_us = int(found["WATCHDOG_USEC"]) if _is_ours(found["WATCHDOG_USEC"], found["WATCHDOG_PID"]) else 0
        fds = int(found["LISTEN_FDS"]) if found["LISTEN_PID"] and _is_ours(*_pair(found)) else 0
        return cls(found["NOTIFY_SOCKET"], watchdog_us / 1e6 or None, fds)

    @property
    def listens(self) -> bool:
        """Whether it holds the socket on which we listen; so connections wait in it while nobody serves them."""
        return self._fds > 0

    def listening_socket(self) -> socket.socket | None:
        """Return the socket that it gives us, None if it gives none; raises ``ConfigurationError`` for another kind."""
        if not self.listens:
            return None
        if self._fds > 1:
            raise ConfigurationError(f"the service gives {self._fds} sockets; rolecall listens on one (ListenStream=)")
        try:
            given = socket.socket(fileno=_FIRST_FD)
        except OSError as error:
            reason = f"LISTEN_FDS says that the service gives a socket, and file descriptor {_FIRST_FD} is none"
            raise ConfigurationError(f"{reason}: {error.strerror}") from None
        given.set_inheritable(False)
        is_tcp = given.family in {socket.AF_INET, socket.AF_INET6} and given.type == socket.SOCK_STREAM
        if not is_tcp or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ConfigurationError("the socket that the service gives is no listening TCP socket (ListenStream=PORT)")
        return given

    # -- what it is told

    def ready(self, status: str) -> None:
        """Tell that requests are answered, after the start or after a reload."""
        self._tell("READY=1", f"MAINPID={os.getpid()}", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """Tell that the configuration is being read again; ``ready`` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reading the configuration")

    def stopping(self, status: str, within_s: float) -> None:
        """Tell that the end has begun, and how long it may take at the most, should more time have been planned."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}", f"STATUS={_line(status)}")

    async def accompany(self, status: Callable[[], str]) -> None:
        """Give signs of life until cancelled, as the loop runs: twice within the watchdog's time; and what goes on."""
        if not self._address:
            return
        pause_s = min(STATUS_EVERY_S, (self.watchdog_s or STATUS_EVERY_S) / 2)
        while True:
            words = _line(status())
            told = [] if words == self._last_status else [f"STATUS={words}"]
            self._last_status = words
            if self.watchdog_s is not None:
                told.append("WATCHDOG=1")
            self._tell(*told)
            await asyncio.sleep(pause_s)

    def _tell(self, *lines: str) -> None:
        if not (self._address and lines):
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(0)  # whoever does not read must not hold up the loop
                out.connect(self._address)
                out.send("\n".join(lines).encode())
        except OSError as error:
            if not self._has_failed:
                log.warning("the service manager cannot be told how it goes (NOTIFY_SOCKET): %s", error)
            self._has_failed = True


def _pair(found: MutableMapping[str, str]) -> tuple[str, str]:
    return found["LISTEN_FDS"], found["LISTEN_PID"]


def _is_ours(number: str, pid: str) -> bool:
    """Whether there is a number, and it is meant for this process: variables are inherited by whoever comes after."""
    return number.isdecimal() and pid in {"", str(os.getpid())}


def _line(text: str) -> str:
    return " ".join(text.split())
