"""What we ourselves ask an engine over HTTP: whether it is well, and to sleep, to wake, to answer a canary prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import httpx

from rolecall.backends.base import Call, Launch, Upstream

_EXCERPT = 300


class CallFailed(Exception):
    """An engine did not answer 200; the text says in words what it did instead, ``status`` is its status if any.

    ``is_late``: it did nothing, within the time that it was given.
    """

    def __init__(self, message: str, status: int | None = None, *, is_late: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_late = is_late


class EngineCalls:
    """Requests to one engine's base URL.

    All but health probes show the engine's key: who answers these while it loads may be a stranger.

    Each has a connection of its own: one that was kept may be closed by the engine in the moment of the next request.
    Time limits are anyio's, for the whole request.
    """

    def __init__(self, http: httpx.AsyncClient, launch: Launch) -> None:
        self._http = http
        self._base_url = launch.base_url
        self._authorization = Upstream(launch.base_url, key=launch.key).authorization()
        self._health_url = launch.base_url.removesuffix("/v1") + launch.health_path

    async def check_health(self, within_s: float) -> None:
        """Ask the health path; raises ``CallFailed`` unless it answers 200."""
        await self._send("GET", self._health_url, None, within_s, shows_key=False)

    async def perform(self, call: Call, within_s: float) -> httpx.Response:
        """Make a call of the engine's own interface; raises ``CallFailed``."""
        return await self._send(call.method, call.url, call.json, within_s)

    async def post(self, path: str, body: Mapping[str, Any], within_s: float) -> Any:
        """Post to a path below the base URL, such as ``/chat/completions``, and return the JSON of the answer.

        Raises ``CallFailed``.
        """
        response = await self._send("POST", self._base_url + path, body, within_s)
        try:
            return response.json()
        except ValueError:
            raise CallFailed(f"an answer that is no JSON: {response.text[:_EXCERPT]!r}") from None

    async def is_sleeping(self, call: Call, within_s: float) -> bool:
        """Return what the engine says of itself; raises ``CallFailed``."""
        response = await self.perform(call, within_s)
        try:
            return bool(response.json()["is_sleeping"])
        except (ValueError, KeyError, TypeError):
            raise CallFailed(f"{call.url} does not say whether it sleeps: {response.text[:_EXCERPT]!r}") from None

    async def _send(
        self, method: str, url: str, body: Mapping[str, Any] | None, within_s: float, *, shows_key: bool = True
    ) -> httpx.Response:
        headers = {"Connection": "close"}
        if shows_key and self._authorization:
            headers["Authorization"] = self._authorization
        try:
            with anyio.fail_after(within_s):
                response = await self._http.request(method, url, json=body, timeout=None, headers=headers)
        except TimeoutError:
            raise CallFailed(f"no answer within {within_s:g} s", is_late=True) from None
        except httpx.ConnectError:
            raise CallFailed("connection refused") from None
        except (httpx.HTTPError, OSError, AttributeError) as error:
            # AttributeError is anyio's, of a connection that was lost in the moment in which it was made.
            raise CallFailed(f"it broke off: {str(error) or type(error).__name__}") from None
        if response.status_code != httpx.codes.OK:
            excerpt = response.text[:_EXCERPT]
            raise CallFailed(f"HTTP {response.status_code}{excerpt and f': {excerpt}'}", response.status_code)
        return response
