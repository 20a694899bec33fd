"""Room in a context that all requests to one engine share.

The slots of a llama.cpp server share one KV cache (``--kv-unified``), so that each request may use the whole context.
But when those that are being answered need more together than it holds, llama.cpp ends them all: 500 "Context size has
been exceeded." So each waits until there is room for its prompt and its answer beside the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import ceil
from weakref import WeakKeyDictionary

from rolecall.gateway.engine_context import EngineContexts
from rolecall.runtime.lease import Lease


@dataclass(slots=True)
class _Context:
    """Tokens in use, the number of requests that have them, and who waits for some, in the order of arrival."""

    taken: int = 0
    inside: int = 0
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)

    def has_room(self, tokens: int, size: int) -> bool:
        """Whether so many fit; where nobody is inside, whoever comes first goes in."""
        return not self.inside or self.taken + tokens <= size

    def enter(self, tokens: int) -> None:
        self.taken += tokens
        self.inside += 1

    def leave(self, tokens: int) -> None:
        self.taken -= tokens
        self.inside -= 1

    def admit(self, size: int) -> None:
        """Let in who has room now."""
        while self.waiting and self.has_room(self.waiting[0][0], size):
            tokens, turn = self.waiting.popleft()
            if not turn.cancelled():
                self.enter(tokens)
                turn.set_result(None)


class SharedContexts:
    """The contexts of engines whose requests share one; of others nothing is waited for."""

    def __init__(self, contexts: EngineContexts) -> None:
        self._contexts = contexts
        self._of_engine: WeakKeyDictionary[asyncio.Event, _Context] = WeakKeyDictionary()

    @asynccontextmanager
    async def room(self, lease: Lease, tokens_in: Callable[[int], float]) -> AsyncIterator[None]:
        """Hold tokens of the context of a lease's engine; waits for them, first come, first served.

        ``tokens_in`` says how many for a context of that size. Whole tokens are held: of fractions that come and go
        something would be left over. What is larger than the whole context goes alone. An engine of which nothing is
        known lets all pass.
        """
        size = await self._contexts.of(lease) if lease.backend.shares_context(lease.entry) else None
        if size is None:
            yield
            return
        context = self._of_engine.setdefault(lease.engine_gone, _Context())
        tokens = ceil(min(tokens_in(size), size))
        await _take(context, tokens, size)
        try:
            yield
        finally:
            context.leave(tokens)
            context.admit(size)


async def _take(context: _Context, tokens: int, size: int) -> None:
    if not context.waiting and context.has_room(tokens, size):
        context.enter(tokens)
        return
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    context.waiting.append((tokens, turn))
    try:
        await turn
    except asyncio.CancelledError:
        if turn.cancelled():
            context.waiting = deque(place for place in context.waiting if place[1] is not turn)
        else:
            context.leave(tokens)  # its turn came in the same moment
        context.admit(size)  # who stood behind it may fit
        raise
