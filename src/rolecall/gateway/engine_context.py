"""How many tokens a running engine's context holds, in its own words."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import httpx

from rolecall.backends.base import Upstream
from rolecall.runtime.lease import Lease

log = logging.getLogger(__name__)


class EngineContexts:
    """The contexts of engines; each engine is asked once.

    What the engine says goes before the entry's ``context_length``, which may be that of the files while the engine was
    started with less. What an engine said in an error goes before both.
    """

    def __init__(self, http: httpx.AsyncClient, *, within_s: float = 5) -> None:
        self._http = http
        self._within_s = within_s
        # By the event of its end, which each engine has one of: what is known of an engine goes with it.
        self._known: WeakKeyDictionary[asyncio.Event, int | None] = WeakKeyDictionary()

    async def of(self, lease: Lease) -> int | None:
        """Return the tokens that one request may take, prompt and answer; None if nobody knows."""
        if lease.engine_gone not in self._known:
            self._known[lease.engine_gone] = await self._ask(lease)
        return self._known[lease.engine_gone] or lease.entry.context_tokens

    def learn(self, lease: Lease, tokens: int) -> None:
        """Take in what the engine said while it refused a prompt."""
        self._known[lease.engine_gone] = tokens

    async def _ask(self, lease: Lease) -> int | None:
        """Ask for vLLM's ``max_model_len``, else for what each slot of llama.cpp has.

        Slots have only a part of llama.cpp's ``n_ctx`` unless they share one cache (``--kv-unified``).
        """
        models = await self._get(lease.upstream, "/v1/models")
        if (length := _length_in(models, lease.backend.served_id(lease.entry))) is not None:
            return length
        if not lease.backend.managed:
            return None  # of what others run, we look no further than OpenAI's interface
        props = await self._get(lease.upstream, "/props")
        return _number(_at(props, "default_generation_settings"), "n_ctx")

    async def _get(self, upstream: Upstream, path: str) -> Any:
        """Return the JSON of a page; None if there is none."""
        headers = {"connection": "close"}
        if (authorization := upstream.authorization()) is not None:
            headers["authorization"] = authorization
        try:
            with anyio.fail_after(self._within_s):
                response = await self._http.get(upstream.url(path), headers=headers, timeout=None)
            return response.json() if response.status_code == httpx.codes.OK else None
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError, OSError, AttributeError) as error:
            # AttributeError is anyio's, of a connection that was lost in the moment in which it was made.
            log.debug("no answer from %s: %s", path, type(error).__name__)
            return None


def _length_in(models: Any, served_id: str) -> int | None:
    """Return ``max_model_len`` of the model of this id, or of the only one there is."""
    listed = _at(models, "data")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    named = [row for row in rows if row.get("id") == served_id] or (rows if len(rows) == 1 else [])
    return next((_number(row, "max_model_len") for row in named), None)


def _at(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _number(value: Any, key: str) -> int | None:
    number = _at(value, key)
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else None
