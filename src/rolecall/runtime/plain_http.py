"""HTTP for all but inference: connections are not kept, and nothing is taken from the environment."""

from __future__ import annotations

import ssl

import httpx

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)


def plain_client() -> httpx.AsyncClient:
    """Return a client for what is asked of engines beside inference: health, loads, counts of tokens."""
    return httpx.AsyncClient(trust_env=False, transport=OnDemandTls())


class OnDemandTls(httpx.AsyncBaseTransport):
    """Reads the certificate authorities with the first address that is asked over TLS.

    That takes 13 ms and a megabyte, and most servers have engines on their own machine and images in their requests.
    """

    def __init__(self) -> None:
        # Its context knows no authority, so a connection over TLS would fail rather than go unchecked.
        self._plain = plain_transport(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self._tls: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        if request.url.scheme != "https":
            return await self._plain.handle_async_request(request)
        if self._tls is None:
            self._tls = plain_transport(httpx.create_ssl_context(trust_env=False))
        return await self._tls.handle_async_request(request)

    async def aclose(self) -> None:
        """Close what is open."""
        await self._plain.aclose()
        if self._tls is not None:
            await self._tls.aclose()


def plain_transport(verify: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    """Return a transport; without a client it knows no cookies, redirects or environment, and unpacks nothing."""
    return httpx.AsyncHTTPTransport(verify=verify, limits=_LIMITS, trust_env=False)
