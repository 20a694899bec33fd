"""What the gateway holds of an engine: a place in the queue, then the right to send one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from rolecall.backends.base import Backend, Upstream
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Selection


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send one request to one engine; give it back with ``release``, on every path."""

    entry: ModelEntry
    backend: Backend
    upstream: Upstream
    selection: Selection
    queue_ms: float
    load_ms: float
    engine_gone: asyncio.Event
    """Set when nothing is left of the engine that this lease is for."""
    _give_back: Callable[[Lease], None]
    _has_run_out: Callable[[], bool] = lambda: False
    memory: str | None = None
    """What was made smaller for want of memory, as ``core.reductions.told`` says it; None for nothing."""
    _is_released: bool = False
    _moved_at: float = 0.0

    def touch(self) -> None:
        """Note that the answer gets on: an engine with such an answer is not ended for a health probe that fails."""
        self._moved_at = time.monotonic()

    def moved_within(self, seconds: float) -> bool:
        """Whether the answer got on a moment ago."""
        return time.monotonic() - self._moved_at <= seconds

    def has_run_out(self) -> bool:
        """Whether the engine is gone for want of memory: not by the fault of what it was asked."""
        return self._has_run_out()

    def release(self) -> None:
        """Give it back; the second time nothing happens."""
        if not self._is_released:
            self._is_released = True
            self._give_back(self)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a waiting request waits for: its model and the state of that, and how many are ahead of it.

    ``fraction`` (0 to 0.99) and ``eta_s`` are of the load or the waking, None while nothing is known of it.
    """

    model: str
    state: State
    ahead: int = 0
    fraction: float | None = None
    eta_s: float | None = None


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the queue; ``wait`` for its lease, or ask for the ``outlook`` meanwhile."""

    id: int
    arrived: float
    lease: asyncio.Future[Lease]
    _outlook: Callable[[int], Outlook | None]
    _leave: Callable[[int], None]

    @property
    def is_granted(self) -> bool:
        """Whether there is a lease, taken or not."""
        return self.lease.done() and not self.lease.cancelled() and self.lease.exception() is None

    def outlook(self) -> Outlook | None:
        """Return what it waits for; None once it waits no more."""
        return self._outlook(self.id)

    async def wait(self) -> Lease:
        """Return the lease; raises any ``RolecallError``.

        Cancelled, the request leaves the queue, and a lease that came in the same moment is given back.
        """
        try:
            return await asyncio.shield(self.lease)
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """Leave the queue, or give back a lease that nobody took."""
        if self.is_granted:
            self.lease.result().release()
        elif self.lease.done():
            self.lease.exception()  # it is told to nobody, on purpose
        else:
            self.lease.cancel()
            self._leave(self.id)
