"""One engine from its start to the moment when nothing of it is left."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx

from rolecall.backends.base import Launch
from rolecall.runtime.canary import Canary, Kind
from rolecall.runtime.engine_calls import EngineCalls
from rolecall.runtime.health import Health
from rolecall.runtime.launcher import Launcher, Process, describe_exit
from rolecall.runtime.load_watch import LoadWatch
from rolecall.runtime.out_of_memory import ran_out_of_memory
from rolecall.runtime.patience import Patience, Unwell
from rolecall.runtime.ports import says_port_is_taken, stranger_on
from rolecall.runtime.progress import Progress, progress
from rolecall.runtime.sleep import Sleep

__all__ = ["Exit", "Instance", "Listener", "Patience"]

log = logging.getLogger(__name__)

TAIL_LINES = 12
_SEARCHED_LINES = 300
"""In which a lack of memory is looked for: vLLM's tracebacks of other processes come after the one that matters."""


@dataclass(frozen=True, slots=True)
class Exit:
    """An end that nobody asked for: why, with the engine's last lines, and what could be done about it."""

    error: str
    out_of_memory: bool = False
    lost_port: bool = False
    """Whether somebody else took its port before it listened there."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom an instance tells. ``on_started`` comes first if at all, ``on_exit`` always, once and last.

    ``on_ready`` comes after the load and after each waking, ``on_asleep`` after each falling asleep. ``on_exit`` is
    given None for an exit that was asked for before it came. ``is_progressing`` says whether an answer of the engine is
    getting on.
    """

    on_started: Callable[[int], None]
    on_ready: Callable[[], None]
    on_asleep: Callable[[], None]
    on_exit: Callable[[Exit | None], None]
    is_progressing: Callable[[], bool] = lambda: False


class Instance:
    """The one task that owns an engine process; ``run`` it once, ``stop`` it at any time.

    With ``adopted`` it takes over a process that runs already and is ready. ``served_id`` and ``kind`` are for the
    canary prompt, which an engine is asked before its first sleep and after each.
    """

    def __init__(  # noqa: PLR0913 - what an engine consists of; the optional ones by name only
        self,
        model: str,
        launch: Launch,
        launcher: Launcher,
        http: httpx.AsyncClient,
        *,
        load_timeout_s: float,
        served_id: str = "",
        kind: Kind = "chat",
        adopted: Process | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.model = model
        self.pid: int | None = None
        self._launch = launch
        self._launcher = launcher
        self._load_timeout_s = load_timeout_s
        self._adopted = adopted
        self._patience = patience or Patience()
        calls = EngineCalls(http, launch)
        canary = Canary(calls, served_id, kind, within_s=self._patience.canary_s)
        self._health = Health(model, calls, self._patience)
        self._sleeps = {sleep.level: Sleep(calls, sleep, canary, self._patience) for sleep in launch.sleeps}
        self._process: Process | None = None
        self._dismissed = asyncio.Event()
        self._is_stopped = self._is_let_go = False
        self._has_lost_port = False
        self._requests: asyncio.Queue[Sleep] = asyncio.Queue()
        self._is_to_sleep: Sleep | None = None
        self._busy_since: float | None = None
        self._watch: LoadWatch | None = None

    # -- what others ask of it; each returns at once

    def stop(self) -> None:
        """Ask the engine to end."""
        self._is_stopped, self._is_let_go = True, False
        self._dismissed.set()

    def let_go(self) -> None:
        """Ask for the engine to live on without us: ``run`` returns, and nobody is told anything any more."""
        self._is_let_go = not self._is_stopped
        self._dismissed.set()

    def sleep(self, level: int) -> None:
        """Ask a ready engine to sleep; nothing may be in flight on it.

        Raises ``ValueError`` for a launch that knows no such sleep, and for an engine that sleeps or is to.
        """
        if level not in self._sleeps:
            raise ValueError(f"{self.model} was not launched for sleep level {level}")
        if self._is_to_sleep is not None:
            raise ValueError(f"{self.model} sleeps already")
        self._is_to_sleep = self._sleeps[level]
        self._requests.put_nowait(self._is_to_sleep)

    def wake(self) -> None:
        """Ask an engine that sleeps, or is falling asleep, to wake; raises ``ValueError`` for any other."""
        if self._is_to_sleep is None:
            raise ValueError(f"{self.model} does not sleep")
        self._requests.put_nowait(self._is_to_sleep)
        self._is_to_sleep = None

    def progress(self, expected_load_s: float | None, files_mb: float | None) -> Progress:
        """Return how far its load or its waking is; nothing is known of an engine that does neither."""
        if self._busy_since is None:
            return Progress()
        read_mb = self._watch.read_mb if self._watch else None
        return progress(time.monotonic() - self._busy_since, expected_load_s, read_mb, files_mb)

    def members(self) -> list[int]:
        """Return the numbers of its processes; a look at all of ``/proc``, some milliseconds."""
        return self._process.members() if self._process else []

    # -- its life

    async def run(self, listener: Listener) -> None:
        """Start the engine, wait until it is ready, watch it, and see it off."""
        reason: Exit | None = Exit("the task that watched it failed")
        try:
            reason = await self._live(listener)
        except asyncio.CancelledError:
            reason = None
            raise
        finally:
            log.info("%s is let go" if self._is_let_go else "%s is gone", self.model)
            if not self._is_let_go:
                listener.on_exit(reason)

    async def _live(self, listener: Listener) -> Exit | None:
        self._busy_since = time.monotonic()
        if self._is_stopped:  # before it began
            return None
        try:
            process = self._process = self._adopted or await self._launcher.start(self.model, self._launch)
        except (OSError, ValueError) as failure:  # ValueError: a null character among its words
            return Exit(f"it cannot be started: {failure}")
        self.pid = process.pid
        listener.on_started(process.pid)
        exited: asyncio.Future[int] = asyncio.ensure_future(process.wait())
        dismissed: asyncio.Future[Any] = asyncio.ensure_future(self._dismissed.wait())
        phases = asyncio.create_task(self._phases(process, listener, exited), name=f"phases of {self.model}")
        reason: Exit | None = None
        try:
            await asyncio.wait({exited, dismissed, phases}, return_when=asyncio.FIRST_COMPLETED)
            if not self._dismissed.is_set():
                why = describe_exit(exited.result()) if exited.done() else str(phases.result())
                reason = self._report(process, why)
            # An engine that dies cuts its answers off before anybody sees it dead. Then it is idle for the scheduler,
            # which may have it stopped at once; it was sent nothing yet, so this is its own end.
            is_asked = reason is None and not self._is_let_go
            has_crashed = is_asked and (exited.done() or process.is_ending())
            breakdown = await self._health.breakdown() if is_asked and not has_crashed and self._is_at_work else None
        finally:
            dismissed.cancel()
            phases.cancel()
            if self._is_let_go:
                exited.cancel()
            else:
                await asyncio.shield(end(process, exited, self._launch_to_end(), self._patience))
        if breakdown or has_crashed:
            return self._report(process, breakdown or describe_exit(exited.result()))
        return reason

    @property
    def _is_at_work(self) -> bool:
        return self._busy_since is None and self._is_to_sleep is None

    async def _phases(self, process: Process, listener: Listener, exited: asyncio.Future[int]) -> Unwell:
        """Go through the phases of a life and return why it has to end; an exit or a stop breaks in anywhere."""

        def tell(event: Callable[[], None]) -> None:
            self._busy_since = None
            if not (exited.done() or self._dismissed.is_set()):
                event()

        try:
            await (self._take_over() if self._adopted else self._load(process))
            while True:
                tell(listener.on_ready)
                sleep = await self._watch_until_it_is_to_sleep(listener)
                await sleep.fall_asleep()
                log.info("%s sleeps (level %d)", self.model, sleep.level)
                tell(listener.on_asleep)
                await self._requests.get()
                await self._wake_up(sleep)
        except Unwell as reason:
            return reason

    def _report(self, process: Process, reason: str) -> Exit:
        log.warning("%s ended: %s", self.model, reason)
        lines = process.tail(_SEARCHED_LINES)
        last = "\n".join(lines[-TAIL_LINES:])
        problem = process.log_problem()  # for which many an engine ends, and can't say so
        told = f"{reason}, and {problem}" if problem else reason if lines else f"{reason}, without a word"
        error = f"{told}. The engine's last lines:\n{last}" if lines else told
        is_loading = self._busy_since is not None and self._adopted is None
        lost_port = self._has_lost_port or (is_loading and says_port_is_taken(lines))
        return Exit(error, ran_out_of_memory([*lines, reason]), lost_port)

    # -- its phases; each raises ``Unwell``

    async def _load(self, process: Process) -> None:
        began = time.monotonic()
        self._watch = LoadWatch(process, self._load_timeout_s, self._patience.load_limit)
        await self._health.until_ready(self._watch)
        if self._launch.listens_itself and (stranger := await self._stranger(process)):
            self._has_lost_port = True
            raise Unwell(f"its port {self._port} is answered by {stranger}, which is not the engine")
        log.info("%s is ready after %.1f s (pid %d)", self.model, time.monotonic() - began, process.pid)

    async def _stranger(self, process: Process) -> str | None:
        """Return who answers in the engine's place: vLLM begins to listen long after it took its port."""
        return await asyncio.to_thread(lambda: stranger_on(self._port, process.members()))

    @property
    def _port(self) -> int:
        return urlsplit(self._launch.base_url).port or 0

    def _launch_to_end(self) -> Launch:
        """Return how it is ended: at once if it was to be taken over and is not well, for the start waits for it."""
        is_unfit = self._adopted is not None and self._busy_since is not None
        return replace(self._launch, term_grace_s=self._patience.takeover_s) if is_unfit else self._launch

    async def _take_over(self) -> None:
        await self._health.check()
        for sleep in list(self._sleeps.values())[:1]:
            await sleep.check_awake()
        log.info("%s is taken over (pid %d)", self.model, self.pid)

    async def _watch_until_it_is_to_sleep(self, listener: Listener) -> Sleep:
        asked = asyncio.ensure_future(self._requests.get())
        watching = asyncio.create_task(self._health.watch(listener.is_progressing), name=f"health of {self.model}")
        try:
            await asyncio.wait({asked, watching}, return_when=asyncio.FIRST_COMPLETED)
            return asked.result() if asked.done() else await watching
        finally:
            asked.cancel()
            watching.cancel()

    async def _wake_up(self, sleep: Sleep) -> None:
        self._busy_since, self._watch = time.monotonic(), None
        await sleep.wake_up(max(self._patience.wake_s, self._load_timeout_s))
        log.info("%s is awake after %.1f s", self.model, time.monotonic() - self._busy_since)


async def end(process: Process, exited: asyncio.Future[int], launch: Launch, patience: Patience) -> None:
    """Stop the whole family in the order that engines survive, and wait until it is reaped.

    SIGTERM, a while, SIGKILL for all but those that clean up after the others, a while, SIGKILL for these.
    """
    term_grace_s = patience.term_grace_s if launch.term_grace_s is None else launch.term_grace_s
    if not exited.done():
        process.send(signal.SIGTERM)
        await asyncio.wait({exited}, timeout=term_grace_s)
    if not exited.done() and launch.killed_last:
        process.send_rest(signal.SIGKILL, launch.killed_last)
        await asyncio.wait({exited}, timeout=patience.last_grace_s)
    if not exited.done():
        process.send_rest(signal.SIGKILL)
    await exited
