"""The HTTP client for all that is asked of engines beside inference: health, loads, counts of tokens."""

from __future__ import annotations

import ssl

import httpx

_LIMITS = httpx.Limits(max_keepalive_connections=0)


def control_client() -> httpx.AsyncClient:
    """Return a client that keeps no connections and does not look at the environment."""
    return httpx.AsyncClient(trust_env=False, transport=_OnDemandTls())


class _OnDemandTls(httpx.AsyncBaseTransport):
    """Reads the certificate authorities with the first address that is asked over TLS.

    That takes 13 ms and a megabyte, and most engines are on this machine.
    """

    def __init__(self) -> None:
        # Its context knows no authority, so a connection over TLS would fail rather than go unchecked.
        self._plain = _transport(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self._tls: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        if request.url.scheme != "https":
            return await self._plain.handle_async_request(request)
        if self._tls is None:
            self._tls = _transport(httpx.create_ssl_context(trust_env=False))
        return await self._tls.handle_async_request(request)

    async def aclose(self) -> None:
        """Close what is open."""
        await self._plain.aclose()
        if self._tls is not None:
            await self._tls.aclose()


def _transport(verify: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(verify=verify, limits=_LIMITS, trust_env=False)
