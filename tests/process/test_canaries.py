"""Secrets of many kinds go in, errors of many kinds are driven, and then everything that was written is searched."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import CHAT, Rolecall, Upstream, eventually, fake_entry, http_request, prompt, upstream, upstream_entry
from rolecall.core.keys import hashed

USER, BOSS, WRONG, REVOKED = (f"rc-canary{name}0123456789" for name in ("user", "boss", "wrong", "revoked"))
UPSTREAM, PASSWORD, ENGINES = "sk-canaryupstream", "canarypassword", "canaryengines"
PROMPT, QUERY, HEADER = "canaryprompt", "canaryquery", "canaryheader"
SECRETS = (USER, BOSS, WRONG, REVOKED, UPSTREAM, PASSWORD, ENGINES, PROMPT, QUERY, HEADER)
AS_USER, AS_BOSS = ({"Authorization": f"Bearer {key}"} for key in (USER, BOSS))

KEYS: list[dict[str, Any]] = [
    {"name": "user", "sha256": hashed(USER.encode()), "requests_per_minute": 1000},
    {"name": "boss", "sha256": hashed(BOSS.encode()), "scopes": ["admin", "inference"]},
]
GONE = {"name": "gone", "sha256": hashed(REVOKED.encode())}
ENVIRON = {
    "FAR_API_KEY": UPSTREAM,
    "HF_TOKEN": ENGINES,
    "AWS_SECRET_ACCESS_KEY": ENGINES,
    "DB_PASSWORD": ENGINES,
    "ROLECALL_API_KEY": BOSS,
}

FAULTS: list[dict[str, Any]] = [
    {"error_status": 500}, {"error_status": 400}, {"garbage": True}, {"bad_json": True}, {"max_context": 1},
    {"drop_after_tokens": 0}, {"reset_after_tokens": 2}, {"error_after_tokens": 2}, {"head_delay_s": 10},
]  # fmt: skip

BODIES: list[Any] = [
    "{" + PROMPT, f'"{PROMPT}"', "", {"model": "one"}, {"model": 5, "messages": PROMPT},
    {"model": "one", "messages": PROMPT}, {"model": "one", "messages": [PROMPT]}, {"model": "role:none"},
    prompt("one", PROMPT, stream=PROMPT), prompt("one", PROMPT, max_tokens="many"),
    prompt("one", PROMPT, n=-5, metadata={"prompt_id": 7}),
    {"model": "one", "messages": [{"role": PROMPT, "content": [{"type": PROMPT, "text": PROMPT}]}]},
]  # fmt: skip

REFUSED: list[dict[str, str]] = [
    {"Authorization": f"Bearer {WRONG}"},
    {"Authorization": f"Basic {WRONG}"},
    {"X-Api-Key": WRONG},
    {"Host": f"{HEADER}/x"},
    {"Host": f"{HEADER}.example"},
    {"Origin": f"https://{HEADER}.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Content-Type": "text/plain"},
    {"Content-Encoding": "br"},
]


def refuse(connection: socket.socket, request: bytes) -> None:
    """Refuse the key, as servers do, without repeating it."""
    answer_with(connection, b"401 Unauthorized", b'{"error": {"message": "Incorrect API key provided."}}')


def repeat(connection: socket.socket, request: bytes) -> None:
    """Refuse the key, and repeat it, in two pieces."""
    key = re.search(rb"[Bb]earer (\S+)", request)
    assert key is not None
    body = b'{"error": {"message": "Incorrect API key provided: %b."}}' % key[1]
    head = b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection.sendall(b"HTTP/1.1 401 Unauthorized\r\n" + head + body[:50])
    time.sleep(0.05)  # so that they do not come as one
    connection.sendall(body[50:])


def redirect(connection: socket.socket, request: bytes) -> None:
    """Send whoever follows to another server, with the key."""
    answer_with(connection, b"307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/v1", b"{}")


def answer_with(connection: socket.socket, status: bytes, body: bytes) -> None:
    """Answer with JSON, and end the connection."""
    head = b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection.sendall(b"HTTP/1.1 " + status + b"\r\n" + head + body)


@dataclass
class Scene:
    """A rolecall through which secrets went, what it answered, and the servers of others that it asked."""

    rolecall: Rolecall
    others: tuple[Upstream, ...]
    answers: list[httpx.Response] = field(default_factory=list)

    def ask(self, body: Any, headers: dict[str, str] | None = None) -> None:
        """Send a chat request with a secret in each corner, whatever becomes of it."""
        data = body if isinstance(body, str) else json.dumps(body)
        every = {"Content-Type": "application/json", "X-Strange": HEADER, **AS_USER, **(headers or {})}
        with contextlib.suppress(httpx.RemoteProtocolError):  # how a stream that broke off ends
            self.answers.append(self.rolecall.http.post(f"{CHAT}?q={QUERY}", content=data, headers=every))

    def get(self, path: str, method: str = "GET", **headers: str) -> None:
        """Send a request without a body."""
        self.answers.append(self.rolecall.http.request(method, path, headers=headers))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Run one rolecall with secrets everywhere, through errors of every kind."""
    with upstream(refuse) as refusing, upstream(repeat) as repeating, upstream(redirect) as redirecting:
        key = {"backend_config": {"api_key_env": "FAR_API_KEY"}}
        entries = (
            *(fake_entry(name, role_priority={"sort": 1}) for name in ("one", "crashing")),
            fake_entry("broken", "--fail-start", "no such tensor"),
            upstream_entry("refusing", refusing.base_url, **key),
            upstream_entry("repeating", repeating.base_url, **key),
            upstream_entry("redirecting", redirecting.base_url, **key),
            upstream_entry("gone", f"http://user:{PASSWORD}@127.0.0.1:9/v1", **key),
        )
        settings = {"api_keys_file": "keys.json", "log_level": "debug", "backend_timeout_ms": 2000}
        rolecall = Rolecall(tmp_path_factory.mktemp("canaries"), entries, settings=settings, environ=ENVIRON)
        write_keys(rolecall, json.dumps({"version": 1, "keys": [*KEYS, GONE]}))
        with rolecall:
            scene = Scene(rolecall, (refusing, repeating, redirecting))
            drive(scene)
            change_keys(scene)
            yield scene


def write_keys(rolecall: Rolecall, text: str) -> None:
    path = rolecall.config_dir / "keys.json"
    path.write_text(text)
    path.chmod(0o600)


def drive(scene: Scene) -> None:
    """Ask in every way that goes wrong, and in some that do not."""
    for stream in (False, True):
        for fault in FAULTS:
            scene.ask(prompt("one", PROMPT, stream=stream, fake=fault))
    scene.ask(prompt("crashing", PROMPT, fake={"crash_after_tokens": 2}))
    for model in ("refusing", "repeating", "redirecting", "gone", "broken", "nobody"):
        scene.ask(prompt(model, PROMPT))
    for body in BODIES:
        scene.ask(body)
    for headers in REFUSED:
        scene.ask(prompt("one", PROMPT), headers)
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/nowhere"),
        ("DELETE", "/health"),
        ("POST", "/v1/admin/reload"),
    ):
        scene.get(f"{path}?api_key={USER}&q={QUERY}", method)
        scene.get(f"{path}?api_key={USER}&q={QUERY}", method, **AS_USER)
    scene.rolecall.exchange(http_request(prompt("one", PROMPT), headers=AS_USER, path=f"{CHAT}?{QUERY}"))
    with scene.rolecall.raw(
        f"GET / HTTP/1.1\r\nAuthorization: Bearer {USER}\0\r\nBad {PROMPT}\r\n\r\n".encode()
    ) as raw:
        raw.recv(65536)
    scene.rolecall.http.post(CHAT, json=prompt("one", PROMPT), headers=AS_USER).raise_for_status()
    for path in ("/health", "/v1/config/proxy", "/v1/config/profile", "/v1/models/health", "/v1/models"):
        scene.get(path, **AS_BOSS)
        scene.answers[-1].raise_for_status()


def change_keys(scene: Scene) -> None:
    """Break the key file by a key that is written into it, and revoke one."""

    def is_well() -> bool:
        return bool(scene.rolecall.http.get("/health").json()["status"] == "ok")

    write_keys(scene.rolecall, "{" + WRONG)
    eventually(lambda: not is_well())
    scene.get("/health", **AS_BOSS)
    write_keys(scene.rolecall, json.dumps({"version": 1, "keys": KEYS}))
    eventually(is_well)
    scene.get("/v1/models", Authorization=f"Bearer {REVOKED}")


def secrets_in(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def test_it_went_through_many_errors(scene: Scene) -> None:
    """Otherwise the rest would say little."""
    statuses = {answer.status_code for answer in scene.answers}
    assert {200, 400, 401, 403, 404, 405, 415, 421, 502, 503, 504} <= statuses
    errors = [answer.json()["error"] for answer in scene.answers if answer.status_code >= 400]
    codes = {"invalid_api_key", "permission_denied", "origin_not_allowed", "host_not_allowed", "model_start_failed"}
    assert codes <= {error.get("code") for error in errors}


def test_others_get_their_key_and_nothing_of_ours(scene: Scene) -> None:
    """The key of the environment goes to the server that it is for, once; callers' keys and headers go nowhere."""
    for other in scene.others:
        (request,) = (each.decode() for each in other.requests)
        assert f"bearer {UPSTREAM}" in request.lower()
        assert set(secrets_in(request)) == {UPSTREAM, PROMPT}


def test_no_secret_is_in_the_request_log(scene: Scene) -> None:
    """Neither keys nor prompts, whatever went wrong."""
    lines = scene.rolecall.log_lines(30)
    assert {line["status"] for line in lines} >= {200, 400, 404, 502, 503, 504}
    assert [line["error"] for line in lines if secrets_in(json.dumps(line))] == []


def test_no_secret_is_on_the_terminal(scene: Scene) -> None:
    """Not even at the level debug."""
    assert "DEBUG" in scene.rolecall.words()
    assert "refused 'POST /v1/chat/completions'" in scene.rolecall.words()
    assert secrets_in(scene.rolecall.words()) == []


def test_no_secret_is_in_the_state_folder(scene: Scene) -> None:
    """Engine logs, process ids, what was used and learnt; and the registry that is written."""
    written = [path for path in scene.rolecall.state.rglob("*") if path.is_file()]
    assert {"one.log", "broken.log", "usage.json"} <= {path.name for path in written}
    found = {path.name: secrets_in(path.read_bytes().decode(errors="replace")) for path in written}
    assert {name: secrets for name, secrets in found.items() if secrets} == {}


def test_no_answer_tells_a_secret(scene: Scene) -> None:
    """No error, no view of settings, models and health repeats one."""
    for answer in scene.answers:
        told = secrets_in(answer.text + str(answer.headers))
        assert "Incorrect API key provided: sk" not in answer.text
        # A page or a name that is refused is named to whoever asked.
        assert told in ([], [HEADER]), answer.text
        assert not told or answer.status_code in {403, 421}


def test_no_engine_inherits_a_secret(scene: Scene) -> None:
    """Environments and command lines of all processes that rolecall started, and its own command line."""
    scene.rolecall.http.post("/v1/models/one/load", headers=AS_BOSS).raise_for_status()
    engines = scene.rolecall.engine_processes()
    assert engines
    for engine in engines:
        environ, argv = (bytes_of(engine.pid, name) for name in ("environ", "cmdline"))
        assert "PATH=" in environ
        assert secrets_in(environ + argv) == []
    assert secrets_in(bytes_of(scene.rolecall.process.pid, "cmdline")) == []


def bytes_of(pid: int, name: str) -> str:
    return (Path("/proc") / str(pid) / name).read_bytes().decode(errors="replace")
