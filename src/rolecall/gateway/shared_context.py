"""Room in a context that all requests to one engine share.

The slots of a llama.cpp server share one KV cache (``--kv-unified``), so that each request may use the whole context.
But when those that are being answered need more together than it holds, llama.cpp ends them all: 500 "Context size has
been exceeded." So each waits until there is room for its prompt and its answer beside the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from rolecall.gateway.engine_context import EngineContexts
from rolecall.runtime.lease import Lease


@dataclass(slots=True)
class _Context:
    """Tokens in use, and who waits for some, in the order of arrival."""

    taken: float = 0.0
    waiting: deque[tuple[float, asyncio.Future[None]]] = field(default_factory=deque)


class SharedContexts:
    """The contexts of engines whose requests share one; of others nothing is waited for."""

    def __init__(self, contexts: EngineContexts) -> None:
        self._contexts = contexts
        self._of_engine: WeakKeyDictionary[asyncio.Event, _Context] = WeakKeyDictionary()

    @staticmethod
    def concerns(lease: Lease) -> bool:
        """Whether the requests to the lease's engine share one context."""
        return lease.backend.shares_context(lease.entry)

    @asynccontextmanager
    async def room(self, lease: Lease, tokens: float) -> AsyncIterator[None]:
        """Hold so many tokens of the context of a lease's engine; waits for them, first come, first served.

        What is larger than the whole context goes alone. An engine of which nothing is known lets all pass.
        """
        size = await self._contexts.of(lease) if self.concerns(lease) else None
        if size is None:
            yield
            return
        context = self._of_engine.setdefault(lease.engine_gone, _Context())
        tokens = min(tokens, size)
        await _take(context, tokens, size)
        try:
            yield
        finally:
            _give(context, tokens, size)


async def _take(context: _Context, tokens: float, size: int) -> None:
    if not context.waiting and context.taken + tokens <= size:
        context.taken += tokens
        return
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    context.waiting.append((tokens, turn))
    try:
        await turn
    except asyncio.CancelledError:
        if turn.cancelled():
            context.waiting = deque(place for place in context.waiting if place[1] is not turn)
            _give(context, 0, size)  # who stood behind it may fit
        else:
            _give(context, tokens, size)  # its turn came in the same moment
        raise


def _give(context: _Context, tokens: float, size: int) -> None:
    """Give tokens back, and let in who has room now."""
    context.taken -= tokens
    while context.waiting and context.taken + context.waiting[0][0] <= size:
        wanted, turn = context.waiting.popleft()
        if not turn.cancelled():
            context.taken += wanted
            turn.set_result(None)
