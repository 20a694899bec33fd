"""Events to the scheduler, and what it decides to whoever carries that out.

The supervisor is written in layers, each a class that knows those below it: `Posting` has the state that all share,
`weighing.Weighing` sees what engines hold of the GPUs, `lives.Lives` starts and ends engines, and
`supervisor.Supervisor` is what the gateway calls.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rolecall.backends.base import Backend
from rolecall.core.events import Effect, Event, Exited, Freed, Grant, Reject, Released, Tick
from rolecall.core.models import ModelEntry
from rolecall.core.scheduler import Scheduler
from rolecall.runtime.engine import Engine, EngineMaker
from rolecall.runtime.footprints import Footprints
from rolecall.runtime.lease import Ticket
from rolecall.runtime.memory import MemoryWatch, Tenant

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Posting(ABC):
    """Hands the scheduler one event at a time, and has its effects applied."""

    scheduler: Scheduler
    maker: EngineMaker
    backend_for: Callable[[ModelEntry], Backend]
    footprints: Footprints | None = None
    memory: MemoryWatch | None = None
    autostart: bool = True
    keeps_engines: bool = False
    record: Callable[[Event, float, list[Effect]], None] | None = None
    """Is told every event and what was decided."""
    listeners: list[Callable[[Event, list[Effect]], None]] = field(default_factory=list, init=False)
    """Are told the same but for requests that are served at once, and their ends, which change no model's state."""
    decision_s: float = field(default=0, init=False)
    """How long the decision took that listeners are being told of."""
    hang_up: Callable[[str], None] | None = None
    """Closes the connections that are kept to an address: engines end fast only when nobody is connected."""
    _engines: dict[str, Engine] = field(default_factory=dict, init=False)
    _leaving: dict[int, Tenant] = field(default_factory=dict, init=False)
    """Engines that are giving memory back, by ``id``: two of one name may do so at a time."""
    _entries: dict[str, ModelEntry] = field(default_factory=dict, init=False)
    _tickets: dict[int, Ticket] = field(default_factory=dict, init=False)
    _ids: itertools.count[int] = field(default_factory=itertools.count, init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _alarm: asyncio.TimerHandle | None = field(default=None, init=False)
    _rings_at: float = field(default=0, init=False)
    _looked_at: float = field(default=0, init=False)
    _passed_over: set[tuple[str, str]] = field(default_factory=set, init=False)
    """Which models were said to answer instead of which, that ran out of memory: once until these start again."""
    _closing: bool = field(default=False, init=False)

    def _post(self, event: Event) -> None:
        now = time.monotonic()
        effects = self.scheduler.handle(event, now)
        is_told = bool(effects) or not isinstance(event, Released)
        took_s = time.monotonic() - now if is_told else 0.0  # who is served at once does not pay for the clock
        for effect in effects:
            self._carry_out(effect)
        self._set_alarm()
        if self.record is not None:
            self.record(event, now, effects)
        if is_told:
            self.decision_s = took_s
            for listener in self.listeners:
                listener(event, effects)

    def _carry_out(self, effect: Effect) -> None:
        """Apply one effect; what fails ends the engine that it is about, and the others are carried out anyway."""
        try:
            self._apply(effect)
        except Exception:
            log.exception("%r cannot be carried out", effect)
            if isinstance(effect, Grant | Reject):
                raise
            if engine := self._engines.get(effect.model):
                self._stop(engine)
            else:  # it was not even made
                self._soon(self._post, Exited(effect.model, "it cannot be started; rolecall's own log says why"))
                self._soon(self._post, Freed(effect.model))

    @abstractmethod
    def _apply(self, effect: Effect) -> None:
        """Do what the scheduler has decided."""

    @abstractmethod
    def _stop(self, engine: Engine) -> None:
        """End an engine."""

    # -- later

    def _set_alarm(self) -> None:
        """Have the scheduler told of the moment when time alone changes something: ticks alone would be late.

        An alarm that rings too early does no harm: most requests put the moment off by a little.
        """
        moment = self.scheduler.wake_at()
        if self._alarm is not None:
            if moment is not None and self._rings_at <= moment:
                return
            self._alarm.cancel()
            self._alarm = None
        if moment is not None and not self._closing:
            delay_s = max(0.001, moment - time.monotonic())
            self._alarm, self._rings_at = asyncio.get_running_loop().call_later(delay_s, self._ring), moment

    def _ring(self) -> None:
        self._alarm = None
        self._post(Tick())

    def _soon(self, what: Callable[..., None], *arguments: Any) -> None:
        """Do what results from an effect once all effects of the present event are carried out."""
        asyncio.get_running_loop().call_soon(what, *arguments)

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_tell_failure)


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)
