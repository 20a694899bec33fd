"""uvicorn's server with ends and reloads of our own: what signals mean, and in which order everything is let go.

SIGTERM, SIGINT   answers in flight finish, for ``shutdown_grace_s`` at most, then all ends; twice: at once
SIGHUP            registry and settings are read again; of a rolecall in a terminal it is the end as above, because
it says that the terminal is gone
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import FrameType

import uvicorn

from rolecall.core.wording import counted
from rolecall.errors import ConfigurationError
from rolecall.gateway.http_edge import retire
from rolecall.gateway.inference import Inference
from rolecall.gateway.services import Services
from rolecall.runtime.overseer import Overseer
from rolecall.runtime.settings_reload import Reread

log = logging.getLogger(__name__)

_END_S = 20.0
"""How long connections, engines and the log may take to end, once the answers have."""


@dataclass(frozen=True, slots=True)
class Duties:
    """What the server does beside serving. ``announce`` when requests are answered, ``stops`` when the end begins."""

    services: Services
    inference: Inference
    reload: Callable[[], Awaitable[Reread]]
    overseer: Overseer
    announce: Callable[[], None]
    stops: tuple[Callable[[], None], ...] = ()

    def status(self) -> str:
        """Return what goes on, in a line."""
        scheduler = self.services.supervisor.scheduler
        served = f"{counted(len(self.inference.active), 'request')} in progress, {scheduler.waiting()} waiting"
        return f"{served}, {scheduler.ledger.used_mb} of {scheduler.ledger.budget_mb} MB reserved for models"


class Server(uvicorn.Server):
    """See above. Where the service holds the socket, nobody is refused meanwhile.

    Then what comes over connections that are there is still served, each as its connection's last; new connections wait
    in the socket for the next run.
    """

    def __init__(self, config: uvicorn.Config, duties: Duties) -> None:
        super().__init__(config)
        self._duties = duties
        self._ending = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and say so."""
        await super().startup(sockets)
        self._duties.announce()
        self._duties.overseer.ready(self._duties.status())

    async def main_loop(self) -> None:
        """Wait for a signal, where uvicorn looks for one ten times a second; its date needs a look a second."""
        ending = asyncio.ensure_future(self._ending.wait())
        while not ending.done():
            await self.on_tick(0)
            await asyncio.wait({ending}, timeout=1.0)

    # -- signals

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals on the loop; a handled signal is not raised again, so the exit code stays 0.

        They stay handled to the end of the loop: one more signal must not cut short the end of the engines.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
            if has_terminal():
                loop.add_signal_handler(signal.SIGHUP, self.handle_exit, signal.SIGHUP, None)
            else:
                loop.add_signal_handler(signal.SIGHUP, self.handle_reload)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal does not wait for answers."""
        del frame
        if self.should_exit:
            self.force_exit = True
        else:
            log.info("%s: finishing answers in flight", signal.Signals(sig).name)
        self.should_exit = True
        self._ending.set()

    def handle_reload(self) -> None:
        """Begin to read the configuration again, unless that is being done or the end has begun."""
        if not self.should_exit and (self._reloading is None or self._reloading.done()):
            self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        duties = self._duties
        duties.overseer.reloading()
        try:
            found = await duties.reload()
            problems = duties.services.problems_of_configuration()
            words = "; ".join([f"reloaded{' in part' if problems else ''}", found.told(), *problems])
            log.info("SIGHUP: %s", words)
        except ConfigurationError as error:
            words = f"not reloaded, the last good settings stay in force: {error}"
            log.error("SIGHUP: %s", words)  # noqa: TRY400 - no traceback
        except Exception:
            words = "the reload failed"
            log.exception("SIGHUP: %s", words)
        duties.overseer.ready(words)

    # -- the end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the gateway, then close the connections."""
        duties = self._duties
        within_s = duties.services.settings.shutdown_grace_s + _END_S
        in_flight = len(duties.inference.active)
        words = f"finishing {counted(in_flight, 'answer')} in flight" if in_flight else "ending"
        duties.overseer.stopping(words, within_s)
        for stop in duties.stops:
            stop()
        draining = asyncio.ensure_future(self._drained())
        while not draining.done() and not self.force_exit:
            await asyncio.wait({draining}, timeout=0.1)
        if not draining.done():
            draining.cancel()
            await duties.inference.drain(0)
        await super().shutdown(sockets)

    async def _drained(self) -> None:
        grace_s = self._duties.services.settings.shutdown_grace_s
        if self._duties.overseer.listens:
            for server in self.servers:
                server.close()  # our hold of the socket; the service has its own
            retire(self.server_state.connections)
            await self._duties.inference.serve_out(grace_s)
            grace_s = 0
        await self._duties.inference.drain(grace_s)


def has_terminal() -> bool:
    """Whether there is a terminal that could hang up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
