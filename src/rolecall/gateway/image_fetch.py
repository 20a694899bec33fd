"""Fetches images by their addresses for engines, which would fetch from anywhere (server-side request forgery).

A host is resolved once, and connected to by the address that was judged: nobody is asked twice, so no second answer can
differ (DNS rebinding). Each redirect is judged in the same way. There are no cookies, no credentials and no proxies,
and what an error says is the same for whatever listens on this side of the internet.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio
import anyio.to_thread
import httpx

from rolecall import __version__
from rolecall.core.addresses import (
    ImageUrl,
    NotFetchable,
    check_port,
    is_allowed,
    is_public,
    read_image_url,
    redirected,
)
from rolecall.core.image_types import HEAD_BYTES, image_type
from rolecall.errors import TooManyRequests
from rolecall.runtime.plain_http import OnDemandTls

MAX_REDIRECTS = 3
MAX_AT_ONCE = 16
"""Fetches in all."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_TRIED = 4
"""Addresses of one host that are tried: without IPv6 here, the first ones of a host may lead nowhere."""
_CONNECT_S = 3.0
_IDLE_S = 5.0
_CLOSE_S = 1.0
_RETRY_S = 5.0
_NOWHERE = "leads to no public address (setting image_hosts)"
"""Said of a host without an address as well: which names exist inside is nobody's business."""


class Resolver(Protocol):
    """Turns names into addresses."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return the IP addresses of a host; raises ``OSError`` if there are none."""
        ...


class SystemResolver:
    """The machine's own resolver, in threads of its own: a name server that is slow holds up no other work."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(MAX_AT_ONCE)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return the IP addresses of a host; raises ``OSError``."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=self._limiter)
        return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Fetched:
    """An image that has come: its media type, and its bytes."""

    media_type: str
    data: bytes


class ImageFetcher:
    """Fetches images. ``hosts`` (names, or names with a port) may be fetched from although they are not public."""

    def __init__(
        self,
        *,
        hosts: Collection[str] = (),
        timeout_s: float = 10.0,
        resolver: Resolver | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._timeout_s = timeout_s
        self._resolver = resolver or SystemResolver()
        self._slots = anyio.Semaphore(MAX_AT_ONCE)
        self._transport = transport or OnDemandTls()

    async def fetch(self, url: str, max_bytes: int) -> Fetched:
        """Return the image of a URL.

        Raises ``NotFetchable`` if it may not be fetched, or could not within ``timeout_s``; ``TooManyRequests`` if
        there was no turn for it within that time.
        """
        target = read_image_url(url)
        async with self._turn():
            try:
                with anyio.fail_after(self._timeout_s):
                    return await self._follow(target, max_bytes)
            except TimeoutError:
                limit_ms = self._timeout_s * 1000
                raise NotFetchable(f"took longer than {limit_ms:g} ms (setting image_fetch_timeout_ms)") from None

    async def aclose(self) -> None:
        """Close what is open."""
        await self._transport.aclose()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            with anyio.fail_after(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            raise TooManyRequests("Too many images are being fetched.", retry_after_s=_RETRY_S) from None
        try:
            yield
        finally:
            self._slots.release()

    async def _follow(self, url: ImageUrl, max_bytes: int) -> Fetched:
        found = await self._get(url, await self._addresses(url), max_bytes)
        for _ in range(MAX_REDIRECTS):
            if isinstance(found, Fetched):
                return found
            try:
                url = redirected(url, found)
                addresses = await self._addresses(url)
            except NotFetchable:
                raise NotFetchable("is redirected to one that may not be fetched") from None
            found = await self._get(url, addresses, max_bytes)
        if isinstance(found, Fetched):
            return found
        raise NotFetchable(f"is redirected more than {MAX_REDIRECTS} times")

    async def _addresses(self, url: ImageUrl) -> Sequence[str]:
        """Return the addresses to connect to; raises ``NotFetchable`` unless all of them are public."""
        allowed = is_allowed(url, self._hosts)
        if not allowed:
            check_port(url)
        addresses: Sequence[str] = [url.ip] if url.ip else await self._resolve(url)
        if not addresses or not (allowed or all(map(is_public, addresses))):
            raise NotFetchable(_NOWHERE)
        return addresses[:_MAX_TRIED]

    async def _resolve(self, url: ImageUrl) -> Sequence[str]:
        try:
            return await self._resolver.resolve(url.host, url.port)
        except (OSError, UnicodeError):
            raise NotFetchable(_NOWHERE) from None

    async def _get(self, url: ImageUrl, addresses: Sequence[str], max_bytes: int) -> Fetched | str:
        """Return the image, or where its server says that it is."""
        response = await self._connect(url, addresses)
        try:
            if response.status_code in _REDIRECTS and "location" in response.headers:
                return response.headers["location"]
            if response.status_code != 200:
                raise NotFetchable(f"was answered with the status {response.status_code}")
            return await _read(response, max_bytes)
        except (httpx.HTTPError, OSError):
            raise NotFetchable("was answered incompletely, or too slowly") from None
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await response.aclose()

    async def _connect(self, url: ImageUrl, addresses: Sequence[str]) -> httpx.Response:
        for address in addresses:
            try:
                return await self._transport.handle_async_request(_request(url, address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            except (httpx.HTTPError, OSError, AttributeError):
                break  # AttributeError is anyio's, of a connection that was lost in the moment in which it was made
        raise NotFetchable("could not be reached")


def _request(url: ImageUrl, address: str) -> httpx.Request:
    headers = {
        "host": url.authority,
        "accept": "image/*",
        "accept-encoding": "identity",
        "user-agent": f"rolecall/{__version__}",
    }
    extensions = {
        "timeout": {"connect": _CONNECT_S, "read": _IDLE_S, "write": _IDLE_S, "pool": _IDLE_S},
        "sni_hostname": url.host,  # the certificate must be for this name, whichever address is connected to
        "target": url.target.encode("ascii"),
    }
    where = httpx.URL(scheme=url.scheme, host=address, port=url.port)
    return httpx.Request("GET", where, headers=headers, extensions=extensions)


async def _read(response: httpx.Response, max_bytes: int) -> Fetched:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        # Not unpacked at all: a few bytes can become gigabytes in one step. Images are compressed as they are.
        raise NotFetchable("was answered in packed form, which was not asked for")
    declared = response.headers.get("content-length", "")
    if len(declared) < 20 and declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > max_bytes:
            raise _too_large(max_bytes)
        if len(data) >= HEAD_BYTES > len(data) - len(chunk):
            _type_of(data)  # a page without end is left at its beginning
    return Fetched(_type_of(data), bytes(data))


def _type_of(data: bytearray) -> str:
    found = image_type(bytes(data[:HEAD_BYTES]))
    if found is None:
        raise NotFetchable("holds no image of a known kind")
    return found


def _too_large(max_bytes: int) -> NotFetchable:
    return NotFetchable(f"holds more than {max_bytes} bytes (setting max_image_bytes)")
