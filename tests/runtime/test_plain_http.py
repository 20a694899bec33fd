"""HTTP for all but inference."""

from __future__ import annotations

import certifi
import httpx
import pytest

from gateway.image_servers import CERTIFICATES, image_server, reply, server_tls
from rolecall.runtime.plain_http import plain_client


async def test_plain_addresses_are_asked() -> None:
    """An engine on this machine is asked over plain HTTP."""
    with image_server(reply(b"fine")) as server:
        async with plain_client() as http:
            assert (await http.get(f"http://127.0.0.1:{server.port}/health")).content == b"fine"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_who_cannot_prove_who_it_is_gets_no_request(host: str) -> None:
    """Over TLS a server whose certificate no known authority has signed is refused."""
    with image_server(reply(b"secret"), tls=server_tls()) as server:
        async with plain_client() as http:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await http.get(f"https://{host}:{server.port}/health")


async def test_who_proves_who_it_is_gets_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS the authorities are certifi's, whatever the environment names; the second request needs no more."""
    monkeypatch.setattr(certifi, "where", lambda: str(CERTIFICATES / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    with image_server(reply(b"fine"), tls=server_tls()) as server:
        async with plain_client() as http:
            for _ in range(2):
                known = {"sni_hostname": "cat.example"}
                assert (await http.get(f"https://127.0.0.1:{server.port}/", extensions=known)).content == b"fine"
