"""How many tokens a running engine's context holds, in its own words."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import httpx

from rolecall.backends.base import Upstream
from rolecall.gateway.engine_questions import ask, field, number
from rolecall.runtime.lease import Lease

log = logging.getLogger(__name__)

ASK_AGAIN_S = 30.0
"""How long nobody asks an engine that did not answer: each question may hold a request up."""


class EngineContexts:
    """The contexts of engines; each engine is asked until it has answered, once.

    What the engine says goes before the entry's ``context_length``, which may be that of the files while the engine was
    started with less. What an engine said in an error goes before both.
    """

    def __init__(
        self, http: httpx.AsyncClient, *, within_s: float = 5, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._within_s = within_s
        self._clock = clock
        # By the event of its end, which each engine has one of: what is known of an engine goes with it.
        self._known: WeakKeyDictionary[asyncio.Event, int | None] = WeakKeyDictionary()
        self._silent_since: WeakKeyDictionary[asyncio.Event, float] = WeakKeyDictionary()

    async def of(self, lease: Lease) -> int | None:
        """Return the tokens that one request may take, prompt and answer; None if nobody knows."""
        engine = lease.engine_gone
        if engine not in self._known and self._clock() - self._silent_since.get(engine, -ASK_AGAIN_S) >= ASK_AGAIN_S:
            await self._ask(lease)
        return self._known.get(engine) or lease.entry.context_tokens

    def learn(self, lease: Lease, tokens: int) -> None:
        """Take in what the engine said while it refused a prompt."""
        self._known[lease.engine_gone] = tokens

    async def _ask(self, lease: Lease) -> None:
        """Note what the engine says, or that it says nothing now."""
        try:
            with anyio.fail_after(self._within_s):
                said = await self._said(lease)
        except (_Silent, TimeoutError):
            log.debug("%s does not say how large its context is", lease.entry.name)
            self._silent_since[lease.engine_gone] = self._clock()
        else:
            self._known.setdefault(lease.engine_gone, said)  # an error may have told meanwhile

    async def _said(self, lease: Lease) -> int | None:
        """Return vLLM's ``max_model_len``, else what each slot of llama.cpp has; None if there is neither.

        Slots have only a part of llama.cpp's ``n_ctx`` unless they share one cache (``--kv-unified``).
        """
        models = await self._get(lease.upstream, "/v1/models")
        if (length := _length_in(models, lease.backend.served_id(lease.entry))) is not None:
            return length
        if not lease.backend.managed:
            return None  # of what others run, we look no further than OpenAI's interface
        props = await self._get(lease.upstream, "/props")
        return number(field(props, "default_generation_settings"), "n_ctx")

    async def _get(self, upstream: Upstream, path: str) -> Any:
        """Return the JSON of a page; None if there is none. Raises ``_Silent`` if that cannot be told."""
        said = await ask(self._http, upstream, path)
        if said is None or said.is_failure:
            raise _Silent
        return said.value


class _Silent(Exception):
    """The engine does not answer now."""


def _length_in(models: Any, served_id: str) -> int | None:
    """Return ``max_model_len`` of the model of this id, or of the only one there is."""
    listed = field(models, "data")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    named = [row for row in rows if row.get("id") == served_id] or (rows if len(rows) == 1 else [])
    return next((number(row, "max_model_len") for row in named), None)
