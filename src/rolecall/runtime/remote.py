"""A model of a daemon that others run: loaded, watched and unloaded over HTTP. There is no process of ours."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Any

import httpx

from rolecall.backends.base import Call, RemoteLoad
from rolecall.runtime.instance import Exit, Listener

log = logging.getLogger(__name__)

_POLL_S = 3.0
_UNLOAD_POLL_S = 0.25
_UNLOAD_LIMIT_S = 30.0
_CALL_TIMEOUT_S = 10.0
_LATE_LOOKS = 4
"""After a load without an answer: looks in a row without the model until it counts as not loaded."""
_MISSES = 3
"""Looks in a row that may fail before the daemon counts as gone; a refused connection counts at once."""

_NO_MEMORY = re.compile(
    r"requires more (?:system )?memory|out of memory|failed to allocate|unable to allocate", re.IGNORECASE
)


BAD_KEY = "its API key holds characters that HTTP does not allow"


class Refused(Exception):
    """The daemon cannot be reached, or does not do what it is asked; the text is the reason."""


class RemoteInstance:
    """The one task that owns a model of a daemon; ``run`` it once, ``stop`` it at any time.

    The daemon has a queue and a memory of its own and may unload the model at any time, for another one or because
    another client says so. That is found out within ``poll_s`` and told as an exit, so that the next request loads it.
    """

    pid = None

    def __init__(  # noqa: PLR0913 - the times are for tests
        self,
        model: str,
        load: RemoteLoad,
        http: httpx.AsyncClient,
        load_timeout_s: float,
        *,
        poll_s: float = _POLL_S,
        unload_limit_s: float = _UNLOAD_LIMIT_S,
    ) -> None:
        self.model = model
        self.held_mb: int | None = None
        """What the daemon said last that the model holds; None while it is not loaded."""
        self._load = load
        self._http = http
        self._load_timeout_s = load_timeout_s
        self._poll_s = poll_s
        self._unload_limit_s = unload_limit_s
        self._dismissed = asyncio.Event()
        self._is_let_go = self._is_unanswered = False

    def stop(self) -> None:
        """Ask for the model to be unloaded; returns at once."""
        self._is_let_go = False
        self._dismissed.set()

    def let_go(self) -> None:
        """Ask for the model to stay loaded without us; returns at once, and nobody is told anything any more."""
        self._is_let_go = not self._dismissed.is_set()
        self._dismissed.set()

    async def run(self, listener: Listener) -> None:
        """Load the model, watch it, and unload it; ``on_started`` is not called, since nothing of ours starts."""
        reason: Exit | None = Exit("the task that watched it failed")
        try:
            reason = await self._live(listener)
        finally:
            self.held_mb = None
            if not self._is_let_go:
                listener.on_exit(None if self._dismissed.is_set() else reason)

    async def _live(self, listener: Listener) -> Exit | None:
        phases = asyncio.create_task(self._phases(listener), name=f"phases of {self.model}")
        dismissed = asyncio.create_task(self._dismissed.wait())
        try:
            await asyncio.wait({phases, dismissed}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._dismissed.is_set() else phases.result()
        finally:
            dismissed.cancel()
            phases.cancel()
            if not self._is_let_go:
                await asyncio.shield(self._unload(phases))

    async def _phases(self, listener: Listener) -> Exit:
        try:
            began = time.monotonic()
            await self._until_loaded()
            log.info("%s is loaded after %.1f s (%s MB)", self.model, time.monotonic() - began, self.held_mb)
            listener.on_ready()
            await self._watch()
        except Refused as refused:
            log.warning("%s ended: %s", self.model, refused)
            return Exit(str(refused), bool(_NO_MEMORY.search(str(refused))))
        return Exit("the daemon unloaded it: its room was needed, or another client sent a keep_alive of its own")

    async def _until_loaded(self) -> None:
        """Load the model and look for it; raises ``Refused``."""
        deadline = time.monotonic() + self._load_timeout_s
        self._is_unanswered = True
        await self._send(self._load.load, self._load_timeout_s)
        while (await self._look()) is None:
            if time.monotonic() > deadline:
                raise Refused(f"the daemon did not keep it loaded for {self._load_timeout_s:g} s (load_timeout_s)")
            await asyncio.sleep(min(self._poll_s, _UNLOAD_POLL_S))

    async def _watch(self) -> None:
        """Return once the model is not loaded any more; raises ``Refused`` when the daemon is gone."""
        misses = 0
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                if await self._look() is None:
                    return
                misses = 0
            except Refused as refused:
                misses += 1
                if misses >= _MISSES or isinstance(refused.__cause__, httpx.ConnectError):
                    raise

    async def _unload(self, phases: asyncio.Task[Exit]) -> None:
        """Unload the model and wait until it is gone; a load that was broken off may show only a while later."""
        await asyncio.wait({phases})
        deadline = time.monotonic() + self._unload_limit_s
        misses = _LATE_LOOKS if self._is_unanswered else 1
        try:
            while misses:
                if await self._look() is None:
                    misses -= 1
                else:
                    await self._send(self._load.unload, _CALL_TIMEOUT_S)
                if time.monotonic() > deadline:
                    log.warning("%s is still loaded %g s after it was unloaded", self.model, self._unload_limit_s)
                    return
                await asyncio.sleep(_UNLOAD_POLL_S if misses else 0)
        except Refused as refused:
            log.warning("%s may still be loaded: %s", self.model, refused)

    async def _look(self) -> int | None:
        self.held_mb = self._load.held_mb(await self._send(self._load.list_loaded, _CALL_TIMEOUT_S))
        return self.held_mb

    async def _send(self, call: Call, timeout_s: float) -> Any:
        """Return what the daemon answers; raises ``Refused`` with the reason for anything but a 200."""
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, _CALL_TIMEOUT_S))
        headers = self._load.headers()
        try:
            response = await self._http.request(call.method, call.url, json=call.json, headers=headers, timeout=timeout)
        except (httpx.ConnectError, OSError, AttributeError) as error:
            # AttributeError is anyio's, of a connection that was lost in the moment in which it was made.
            raise Refused(f"Ollama is not to be reached at {call.url}: {error}; is `ollama serve` running?") from error
        except (httpx.LocalProtocolError, UnicodeEncodeError):
            # httpx would quote the header.
            raise Refused(f"{call.url} cannot be asked: {BAD_KEY}") from None
        except httpx.TimeoutException as error:
            raise Refused(f"no answer from {call.url} within {timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise Refused(f"{call.url}: {str(error) or type(error).__name__}") from error
        self._is_unanswered = False
        if response.status_code == httpx.codes.OK:
            return _json(response)
        raise Refused(_reason(response, call))


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _reason(response: httpx.Response, call: Call) -> str:
    answer = _json(response)
    error = answer.get("error") if isinstance(answer, dict) else None
    said = str(error or response.text[:300] or "without a word")
    tag = (call.json or {}).get("model")
    if response.status_code == httpx.codes.NOT_FOUND and tag:
        return f"Ollama has no model {tag!r} ({said}); get it with: ollama pull {tag}"
    return f"HTTP {response.status_code} from {call.url}: {said}"
