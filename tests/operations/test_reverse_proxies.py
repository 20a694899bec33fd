"""The shipped nginx.conf and Caddyfile before a whole rolecall: streams, addresses, sizes, clients that leave."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from harness import CHAT, Rolecall, eventually, fake_entry, prompt
from operations.shipped import ROOT, shipped
from unused_ports import unused_port

pytestmark = pytest.mark.long

NAME = "cat.example"
CERTIFICATE = ROOT / "tests" / "gateway" / "certificates" / "cat.example.pem"
CLIENT = "127.0.0.9"
"""Our own address, told apart from the proxy's."""
SNI = {"sni_hostname": NAME}
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CADDY = shutil.which("caddy")
HOLDER = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  include {folder}/rolecall.conf;
}}
"""


def nginx(folder: Path, port: int, upstream: int) -> list[str]:
    """Lay out nginx with the shipped server, and return its command line."""
    text = shipped("nginx.conf").replace("127.0.0.1:8100", f"127.0.0.1:{upstream}")
    text = text.replace("listen 443", f"listen 127.0.0.1:{port}").replace("llm.example.org;", f"{NAME};")
    for name in ("/etc/ssl/llm.example.org.pem", "/etc/ssl/llm.example.org.key"):
        text = text.replace(name, str(CERTIFICATE))
    (folder / "rolecall.conf").write_text(text)
    (folder / "nginx.conf").write_text(HOLDER.format(folder=folder))
    return [str(NGINX), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, port: int, upstream: int) -> list[str]:
    """Lay out Caddy with the shipped site, and return its command line."""
    text = shipped("Caddyfile").replace("127.0.0.1:8100", f"127.0.0.1:{upstream}")
    site = f"https://{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {CERTIFICATE} {CERTIFICATE}"
    text = "{\n\tadmin off\n\tauto_https off\n}\n" + text.replace("llm.example.org {", site)
    (folder / "Caddyfile").write_text(text)
    return [str(CADDY), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


PROXIES = [
    pytest.param(nginx, id="nginx", marks=pytest.mark.skipif(NGINX is None, reason="nginx is not here")),
    pytest.param(caddy, id="caddy", marks=pytest.mark.skipif(CADDY is None, reason="caddy is not here")),
]


@pytest.fixture(params=PROXIES)
def proxied(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Rolecall, httpx.Client]]:
    """Yield a rolecall, and a client that talks TLS to the program before it."""
    entries = [fake_entry("m", max_parallel=4)]
    with Rolecall(tmp_path / "r", entries, settings={"allowed_hosts": [NAME]}) as server:
        port, folder = unused_port(), tmp_path / "proxy"
        folder.mkdir()
        argv = request.param(folder, port, server.port)
        environ = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        with (folder / "terminal").open("wb") as terminal:
            process = subprocess.Popen(argv, env=environ, stdout=terminal, stderr=terminal)
        try:
            with httpx.Client(
                base_url=f"https://127.0.0.1:{port}",
                transport=httpx.HTTPTransport(verify=_context(), local_address=CLIENT),
                headers={"host": NAME},
                timeout=20,
                trust_env=False,
            ) as http:
                eventually(lambda: _answers(http) or (process.poll() is not None and _dead(folder)))
                yield server, http
        finally:
            process.terminate()
            process.wait(10)


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _answers(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return http.get("/health", extensions=SNI).status_code == 200
    return False


def _dead(folder: Path) -> bool:
    logs = [path.read_text() for path in folder.glob("*") if path.name in {"terminal", "error.log"}]
    raise AssertionError("\n".join(logs))


def test_streams_pass_as_they_come(proxied: tuple[Rolecall, httpx.Client]) -> None:
    """The first piece is there while the engine still answers; the end is there as well."""
    server, http = proxied
    body = prompt("m", stream=True, fake={"tokens": 20, "token_delay_s": 0.1})
    with http.stream("POST", CHAT, json=body, extensions=SNI) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.row("m")["in_flight"] == 1
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_client_that_leaves_is_noticed(proxied: tuple[Rolecall, httpx.Client]) -> None:
    """The engine's work ends, and the line says 499."""
    server, http = proxied
    body = prompt("m", stream=True, fake={"tokens": 10_000, "token_delay_s": 0.02})
    with http.stream("POST", CHAT, json=body, extensions=SNI) as answer:
        next(answer.iter_lines())
        id_ = answer.headers["x-request-id"]
    server.await_in_flight("m", 0)
    assert server.line(id_)["status"] == 499


def test_the_log_has_the_clients_own_address(proxied: tuple[Rolecall, httpx.Client]) -> None:
    """It comes from the proxy, and what a client claims about itself is not believed."""
    server, http = proxied
    answer = http.post(CHAT, json=prompt("m"), headers={"x-forwarded-for": "203.0.113.9"}, extensions=SNI)
    assert answer.status_code == 200, answer.text
    assert server.line_of(answer)["client"].startswith(f"{CLIENT} ")


def test_large_bodies_pass_up_to_rolecalls_own_limit(proxied: tuple[Rolecall, httpx.Client]) -> None:
    """20 MB pass; a request beyond max_body_bytes is 413, whoever of the two says so."""
    _, http = proxied
    assert http.post(CHAT, json=prompt("m", "x" * 20_000_000), extensions=SNI).status_code == 200
    assert http.post(CHAT, json=prompt("m", "x" * 70_000_000), extensions=SNI).status_code == 413


def test_another_name_is_refused(proxied: tuple[Rolecall, httpx.Client]) -> None:
    """allowed_hosts names the one that the proxy passes on."""
    server, http = proxied
    assert http.get("/v1/models", extensions=SNI).status_code == 200
    direct = httpx.get(f"{server.base_url}/v1/models", headers={"host": "other.example"}, trust_env=False)
    assert direct.status_code == 421
