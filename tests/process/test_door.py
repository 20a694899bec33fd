"""The door of a whole rolecall, over raw sockets: hosts, web pages, keys and limits."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import rolecall
from harness import (
    CHAT,
    DEADLINE_S,
    Rolecall,
    eventually,
    fake_entry,
    http_request,
    prompt,
    read_to_end,
    upstream,
    upstream_entry,
)
from rolecall.core.keys import hashed
from rolecall.gateway.routes import INFERENCE_PATHS

PAGE = "https://chat.example.org"
KEY, ADMIN, MODEST, SLOW, OLD = (f"rc-{name}" for name in ("anything", "admin", "modest", "slow", "old"))

GETS = (
    *("/health", "/v1/models", "/v1/models/one", "/v1/models/health", "/v1/models/select_by_role?role=sort"),
    *("/v1/config/profile", "/v1/config/proxy", "/nowhere", "/"),
)
POSTS = (*INFERENCE_PATHS, "/v1/models/one/load", "/v1/models/one/unload", "/v1/admin/reload", "/nowhere")
ROUTES = [*(("GET", path) for path in GETS), *(("POST", path) for path in POSTS)]


def key_row(name: str, token: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashed(token.encode()), **fields}


KEYS = (
    key_row("user", KEY),
    key_row("boss", ADMIN, scopes=["admin"]),
    key_row("modest", MODEST, models=["one"], roles=["sort"]),
    key_row("old", OLD, expires="2020-01-01T00:00:00Z"),
)


def write_keys(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"version": 1, "keys": rows}))
    new.chmod(0o600)
    new.replace(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall without keys that knows of one page."""
    settings = {"allowed_origins": [PAGE], "allowed_hosts": ["*.lan"]}
    entries = (fake_entry("one", role_priority={"sort": 1}), fake_entry("two", role_priority={"sort": 2, "other": 1}))
    with Rolecall(tmp_path_factory.mktemp("open"), entries, settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with keys, on all addresses."""
    folder = tmp_path_factory.mktemp("guarded")
    write_keys(folder / "configs" / "keys.json", *KEYS)
    settings = {"api_keys_file": "keys.json", "host": "0.0.0.0", "allowed_origins": [PAGE]}
    entries = (fake_entry("one", role_priority={"sort": 1}), fake_entry("two", role_priority={"sort": 2, "other": 1}))
    with Rolecall(folder, entries, settings=settings) as running:
        running.http.base_url = httpx.URL(f"http://127.0.0.1:{running.port}")
        yield running


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def error_of(status: int, answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    """The error of a raw answer in OpenAI's shape."""
    assert answer[0] == status, answer
    assert answer[1]["content-type"] == "application/json"
    assert answer[1]["x-request-id"].startswith("req_")
    error: dict[str, Any] = json.loads(answer[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def raw_request(method: str, path: str, *fields: str) -> bytes:
    """A request with these header lines and no others."""
    lines = "".join(f"{line}\r\n" for line in fields)
    return f"{method} {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode("latin-1")


# -- Host


@pytest.mark.parametrize(
    "host", ["x/v1/models", "x?role=chat", "x#f", "/", "?", "#", "", "a b", "[::1", "@", "localhost/v1/config/proxy?x="]
)
def test_a_host_that_is_none_shifts_nothing(server: Rolecall, host: str) -> None:
    """On every route it is a 400 in OpenAI's shape: no redirect, no other path, and the header is not repeated."""
    for method, path in ROUTES:
        answer = server.exchange(raw_request(method, path, f"Host: {host}", "Content-Length: 0"))
        assert error_of(400, answer)["code"] == "invalid_request"
        assert "location" not in answer[1]


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8100", "192.168.7.7", "0.0.0.0"])
def test_a_host_that_is_not_ours_is_refused(server: Rolecall, host: str) -> None:
    """On every route it is a 421 that names the setting: a name that was rebound reads nothing."""
    for method, path in ROUTES:
        error = error_of(421, server.exchange(raw_request(method, path, f"Host: {host}", "Content-Length: 0")))
        assert (error["code"], "allowed_hosts" in error["message"]) == ("host_not_allowed", True)


@pytest.mark.parametrize("fields", [(), ("Host: localhost", "Host: localhost"), ("Host: localhost", "host: evil")])
def test_a_host_that_is_missing_or_there_twice(server: Rolecall, fields: tuple[str, ...]) -> None:
    """It is a 400 (RFC 9112, 3.2), also where both are the same."""
    error = error_of(400, server.exchange(raw_request("GET", "/health", *fields)))
    assert "Host" in error["message"].title()


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:{port}", "[::1]", "box.lan", "a.localhost:80"])
def test_our_own_hosts(server: Rolecall, host: str) -> None:
    """Loopback's names and addresses with any port, and those of the setting."""
    answer = server.exchange(raw_request("GET", "/v1/models", f"Host: {host.format(port=server.port)}"))
    assert answer[0] == 200


def test_nothing_decides_by_the_url_of_a_request() -> None:
    """`request.url`, `base_url` and `url_for` are made from the Host header, and no module of the server has them."""
    made_of_host = re.compile(r"request\.(url|base_url)\b|\burl_for\(|\bURL\(|HTTPSRedirect|TrustedHost")
    source = Path(rolecall.__file__).parent
    every = {path.name: path.read_text() for path in source.rglob("*.py")}
    texts = {name: text for name, text in every.items() if "starlette" in text}
    assert {"app.py", "door.py", "exchange.py", "routes.py"} <= set(texts)
    assert 'scope["path"]' in texts["door.py"]
    prose = re.compile(r"``[^`]*``|`[^`]*`|\"[^\"\n]*\"")
    assert [name for name, text in texts.items() if made_of_host.search(prose.sub("", text))] == []


# -- web pages

STRANGE = ["https://evil.example", "null", "http://localhost:3000", "http://chat.example.org", PAGE + ":8443", "*", ""]


@pytest.mark.parametrize("origin", STRANGE)
def test_a_page_that_is_not_listed_is_refused(server: Rolecall, origin: str) -> None:
    """On everything but GET /health it is a 403, without a header that would let the page read it."""
    for method, path in ROUTES:
        fields = ("Host: localhost", f"Origin: {origin}", "Content-Length: 0")
        answer = server.exchange(raw_request(method, path, *fields))
        assert not [name for name in answer[1] if name.startswith("access-control-")]
        if (method, path) == ("GET", "/health"):
            assert answer[0] == 200
        else:
            error = error_of(403, answer)
            assert (error["code"], "allowed_origins" in error["message"]) == ("origin_not_allowed", True)
            assert answer[1]["vary"] == "Origin"


def test_a_page_that_does_not_say_who_it_is(server: Rolecall) -> None:
    """A browser marks what another site caused, as by a link or a form; that is refused like a page that is named."""
    fields = ("Host: localhost", "Sec-Fetch-Site: cross-site", "Content-Length: 0")
    for method, path in ROUTES:
        status = server.exchange(raw_request(method, path, *fields))[0]
        assert status == (200 if (method, path) == ("GET", "/health") else 403)
    same = (f.replace("cross-site", "same-origin") for f in fields)
    assert server.exchange(raw_request("GET", "/v1/models", *same))[0] == 200


def test_our_own_page_may_ask(server: Rolecall) -> None:
    """A page that came from the host and port that it asks is no stranger, and needs no CORS."""
    host = f"localhost:{server.port}"
    answer = server.exchange(raw_request("GET", "/v1/models", f"Host: {host}", f"Origin: http://{host}"))
    assert (answer[0], "access-control-allow-origin" in answer[1]) == (200, False)


def test_a_listed_page_reads_answers_errors_and_streams(server: Rolecall) -> None:
    """Each has the page's origin and never a wildcard, says that it varies, and exposes our headers."""
    page = {"Origin": PAGE}
    answers = [
        server.http.post(CHAT, json=prompt("one"), headers=page),
        server.http.post(CHAT, json=prompt("one", stream=True), headers=page),
        server.http.post(CHAT, json=prompt("nobody"), headers=page),
        server.http.get("/nowhere", headers=page),
        server.http.request("DELETE", "/health", headers=page),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 404, 405]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in answer.headers["vary"]
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", *(name for name in answer.headers if name.startswith("x-rolecall-"))} <= set(exposed)
    assert "x-rolecall-model" in answers[1].headers["access-control-expose-headers"]


def test_answers_to_others_vary_too(server: Rolecall) -> None:
    """A cache must not give a page the answer that somebody without a page got."""
    answer = server.http.get("/v1/models")
    assert (answer.headers["vary"], "access-control-allow-origin" in answer.headers) == ("Origin", False)


def test_the_preflight_of_a_listed_page(server: Rolecall) -> None:
    """It says what may be sent, whatever the path, without a wildcard."""
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    asked |= {"Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
    asked |= {"Access-Control-Request-Private-Network": "true"}
    answer = server.http.options(CHAT, headers=asked)
    assert (answer.status_code, answer.content) == (204, b"")
    allowed = {name[21:]: value for name, value in answer.headers.items() if name.startswith("access-control-allow-")}
    assert allowed == {
        "origin": PAGE,
        "methods": "GET, POST, PATCH, DELETE",
        "headers": asked["Access-Control-Request-Headers"],
        "private-network": "true",
    }
    assert "Origin" in answer.headers["vary"]


def test_other_preflights(server: Rolecall) -> None:
    """A page that is not listed is refused; OPTIONS that is no preflight is any other method."""
    asked = {"Access-Control-Request-Method": "POST"}
    assert server.http.options(CHAT, headers={"Origin": "https://evil.example", **asked}).status_code == 403
    assert server.http.options(CHAT, headers={"Origin": PAGE}).status_code == 405
    assert server.http.options(CHAT, headers=asked).status_code == 405


def test_no_page_is_allowed_by_default(guarded: Rolecall, tmp_path: Path) -> None:
    """Without the setting there is no CORS header at all."""
    with Rolecall(tmp_path, [fake_entry("one")]) as running:
        assert running.http.get("/v1/models", headers={"Origin": PAGE}).status_code == 403
        assert "vary" not in running.http.get("/v1/models").headers


# -- keys


@pytest.mark.parametrize(
    "headers", [bearer(KEY), {"Authorization": f"bearer   {KEY}"}, {"X-Api-Key": KEY}, {"api-key": KEY}]
)
def test_a_key_is_taken_as_the_sdks_send_it(guarded: Rolecall, headers: dict[str, str]) -> None:
    """OpenAI's as a bearer token, Anthropic's as x-api-key, Azure's as api-key."""
    assert guarded.http.get("/v1/models", headers=headers).status_code == 200
    assert guarded.http.post(CHAT, json=prompt("one"), headers=headers).status_code == 200


HOSTILE: list[list[str]] = [
    [],
    ["Authorization: Bearer"],
    ["Authorization: Bearer "],
    ["Authorization:"],
    ["Authorization: Basic dXNlcjpwYXNz"],
    [f"Authorization: Token {KEY}"],
    [f"Authorization: {KEY}"],
    [f"Authorization: Bearer {KEY}x"],
    [f"Authorization: Bearer {KEY} {KEY}"],
    [f"Authorization: Bearer {KEY},"],
    ["Authorization: Bearer \xff\xfe\xe4\xf6"],
    ["Authorization: Bearer rc-\u00e4"],
    ["Authorization: Bearer " + "a" * 20_000],
    ["Authorization: Bearer ' OR 1=1 --"],
    ["Authorization: Bearer {{7*7}}"],
    ["Authorization: Bearer " + hashed(KEY.encode())],
    [f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"],
    [f"Authorization: Bearer {KEY}", "Authorization: Basic x"],
    [f"Authorization: Bearer {KEY}", "X-Api-Key: other"],
    [f"X-Api-Key: {KEY}", f"api-key: {ADMIN}"],
    ["X-Api-Key:"],
    [f"X-Api-Key: Bearer {KEY}"],
    [f"Cookie: api-key={KEY}"],
    [f"Authorization: Bearer {OLD}"],
]


@pytest.mark.parametrize("fields", HOSTILE)
def test_anything_else_is_a_401(guarded: Rolecall, fields: list[str]) -> None:
    """In its client's shape, on every route but GET /health, without a word of what was sent, and never a 500."""
    for method, path in ROUTES:
        answer = guarded.exchange(raw_request(method, path, "Host: localhost", "Content-Length: 0", *fields))
        if (method, path) == ("GET", "/health"):
            assert json.loads(answer[2]) == {"status": "ok", "name": "rolecall"}
            continue
        error = error_of(401, answer)
        kind = "authentication_error" if path.startswith("/v1/messages") else "invalid_request_error"
        assert (error["code"], error["type"]) == ("invalid_api_key", kind)
        assert answer[1]["www-authenticate"] == "Bearer"
        assert KEY not in error["message"]


def test_a_null_character_is_no_key(guarded: Rolecall) -> None:
    """It is refused by whoever sees it first."""
    data = raw_request("GET", "/v1/models", "Host: localhost", f"Authorization: Bearer {KEY}\0")
    with guarded.raw(data) as connection:
        assert connection.recv(65536).split(b" ")[1:2] in ([b"400"], [b"401"])


@pytest.mark.parametrize("query", [f"?api_key={KEY}", f"?key={KEY}", f"?authorization=Bearer%20{KEY}"])
def test_a_key_in_the_url_is_none(guarded: Rolecall, query: str) -> None:
    """URLs end up in logs and histories."""
    assert guarded.http.get("/v1/models" + query).status_code == 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_scopes(guarded: Rolecall, method: str, path: str) -> None:
    """A key for inference reads the list of models and asks them; one for admin sees and does the rest."""
    is_inference = path in INFERENCE_PATHS
    is_open = path.partition("?")[0] in {"/health", "/v1/models", "/v1/models/one", "/v1/models/select_by_role"}
    is_open = is_open or path in {"/nowhere", "/"}
    for token, may in ((KEY, is_inference or is_open), (ADMIN, not is_inference)):
        answer = guarded.http.request(method, path, headers=bearer(token))
        if may:
            assert answer.status_code not in {401, 403}, answer.text
        else:
            assert answer.status_code == 403
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("permission_denied", "permission_error")
            assert "needs inference" in error["message"] if is_inference else "needs admin" in error["message"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_control_character_opens_no_other_route(guarded: Rolecall, method: str, path: str) -> None:
    """A line feed behind a path is a 400 for every key: no route is served to a key that may not use it."""
    path, _, query = path.partition("?")
    for token in (KEY, ADMIN):
        for control in ("%0A", "%0D", "%00", "%7F", "%C2%85"):
            target = f"{path}{control}" + (f"?{query}" if query else "")
            fields = ("Host: localhost", f"Authorization: Bearer {token}", "Content-Length: 0")
            error = error_of(400, guarded.exchange(raw_request(method, target, *fields)))
            assert "control character" in error["message"]


def test_a_key_that_is_bound_sees_what_it_may_use(guarded: Rolecall) -> None:
    """Lists and choices have its models alone; others and other roles are a 403."""

    def seen(token: str, path: str) -> httpx.Response:
        return guarded.http.get(path, headers=bearer(token))

    assert [card["id"] for card in seen(KEY, "/v1/models").json()["data"]] == ["one", "two"]
    assert [card["id"] for card in seen(MODEST, "/v1/models").json()["data"]] == ["one"]
    assert seen(KEY, "/v1/models/role:sort").json()["resolves_to"] == "two"
    assert seen(MODEST, "/v1/models/role:sort").json()["resolves_to"] == "one"
    assert seen(MODEST, "/v1/models/select_by_role?role=sort").json()["model"] == "one"
    for path in ("/v1/models/two", "/v1/models/role:other", "/v1/models/select_by_role?role=other"):
        answer = seen(MODEST, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")


def test_health_by_key(guarded: Rolecall) -> None:
    """Everybody learns that it is up; what it is doing is for admins."""
    assert guarded.http.get("/health").json() == {"status": "ok", "name": "rolecall"}
    assert guarded.http.get("/health", headers=bearer("rc-wrong")).json() == {"status": "ok", "name": "rolecall"}
    assert guarded.http.get("/health", headers=bearer(KEY)).json() == {"status": "ok", "name": "rolecall"}
    assert guarded.http.get("/health", headers=bearer(ADMIN)).json()["budget_mb"] > 0


def test_a_preflight_needs_no_key(guarded: Rolecall) -> None:
    """Browsers send none with it; the answer to the request itself without a key can be read by the page."""
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    assert guarded.http.options(CHAT, headers=asked).status_code == 204
    refused = guarded.http.post(CHAT, json=prompt("one"), headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)


def test_an_open_server_takes_any_key(server: Rolecall) -> None:
    """Without a key file, clients that must send some key may send anything, twice if they like to."""
    assert server.http.get("/v1/models", headers=bearer("none")).status_code == 200
    answer = server.exchange(http_request(prompt("one"), headers={"Authorization": "Bearer \xff"}))
    assert answer[0] == 200
    fields = ("Host: localhost", "Authorization: Bearer a", "Authorization: Bearer b", "X-Api-Key: c")
    assert server.exchange(raw_request("GET", "/v1/models", *fields))[0] == 200


def test_keys_are_taken_over_while_it_runs(tmp_path: Path) -> None:
    """A new key works and a revoked one does not, within a moment; a broken file keeps the last good, and says so."""
    path = tmp_path / "keys.json"
    write_keys(path, *KEYS)
    with Rolecall(tmp_path / "server", [fake_entry("one")], settings={"api_keys_file": str(path)}) as running:

        def status(token: str) -> int:
            return running.http.get("/v1/models", headers=bearer(token)).status_code

        def problems() -> Any:
            return running.http.get("/health", headers=bearer(ADMIN)).json()["problems"]

        assert (status(KEY), status("rc-new")) == (200, 401)
        write_keys(path, *KEYS[1:], key_row("new", "rc-new"))
        eventually(lambda: (status(KEY), status("rc-new")) == (401, 200))
        path.write_text("{rc-canary")
        eventually(lambda: "api_keys" in problems())
        assert "the last good keys stay in force" in problems()["api_keys"]
        assert "canary" not in str(problems()) + running.words()
        assert status("rc-new") == 200
        assert running.http.get("/health").json() == {"status": "degraded", "name": "rolecall"}
        write_keys(path, *KEYS)
        eventually(lambda: problems() == {})
        path.unlink()
        eventually(lambda: status(ADMIN) == 401)
        assert running.http.get("/health").json()["status"] == "degraded"


def test_files_in_the_folder_of_a_running_server_are_changed_by_command(tmp_path: Path) -> None:
    """The server uses its state folder all the time; nobody who locks it for the moment of a change waits for that."""
    folder = tmp_path / "server" / "configs"
    folder.mkdir(parents=True)
    write_keys(folder / "keys.json", *KEYS)
    settings = {"api_keys_file": str(folder / "keys.json")}
    with Rolecall(folder.parent, [fake_entry("one")], settings=settings, state_dir=folder) as running:
        for command in (("keys", "revoke", "user"), ("models", "set", "one", "vram_estimate_mb=200")):
            argv = [sys.executable, "-m", "rolecall", *command, "--config-dir", str(folder)]
            done = subprocess.run(
                argv, env=running.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
            )
            assert done.returncode == 0, done.stderr
        eventually(lambda: running.http.get("/v1/models", headers=bearer(KEY)).status_code == 401)


# -- the address


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("keys", [None, "missing", "empty"])
def test_beyond_loopback_it_does_not_start_without_a_key(tmp_path: Path, host: str, keys: str | None) -> None:
    """The address, the setting and both ways out are named; nothing was listening, no file was made."""
    settings: dict[str, Any] = {"host": host}
    if keys:
        settings["api_keys_file"] = str(tmp_path / "keys.json")
    if keys == "empty":
        write_keys(tmp_path / "keys.json")
    rolecall = Rolecall(tmp_path / "server", [fake_entry("one")], settings=settings)
    done = rolecall.run()
    assert (done.returncode, rolecall.state.exists()) == (2, False)
    assert f"rolecall: host: {host!r} can be reached by other machines" in done.stderr
    for way in ("127.0.0.1", "api_keys_file (CHAT_PROXY_API_KEYS_FILE)", "`rolecall keys add NAME`", "rolecall.toml"):
        assert way in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2", "::1", "::ffff:127.0.0.1"])
def test_loopback_needs_no_key(tmp_path: Path, host: str) -> None:
    """Each of its addresses and spellings."""
    with Rolecall(tmp_path, [fake_entry("one")], settings={"host": host}) as running:
        assert running.get("/health")["status"] == "ok"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1, "keys": [{"name": "rc-canary"}]}'])
def test_a_broken_key_file_ends_the_start(tmp_path: Path, text: str) -> None:
    """There is no last good one; the message names setting and file."""
    path = tmp_path / "keys.json"
    path.write_text(text)
    done = Rolecall(tmp_path / "server", settings={"api_keys_file": str(path)}).run()
    assert done.returncode == 2
    assert f"rolecall: api_keys_file: {path}" in done.stderr
    assert "canary" not in done.stderr


def test_without_a_key_nobody_comes_in(tmp_path: Path) -> None:
    """A file that is not there yet is no open door; the terminal and /health say so."""
    with Rolecall(tmp_path, [fake_entry("one")], settings={"api_keys_file": "keys.json"}) as running:
        assert running.http.get("/v1/models").status_code == 401
        assert running.http.get("/health").json()["status"] == "degraded"
        assert "holds no API key" in running.words()


def test_refusals_are_told_on_the_terminal(tmp_path: Path) -> None:
    """Once, with the path and the reason; thousands of them do not fill it."""
    with Rolecall(tmp_path, [fake_entry("one")]) as running:
        for _ in range(50):
            assert running.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 421
        told = [line for line in running.words().splitlines() if "refused" in line]
    assert len(told) == 1
    assert "'GET /v1/models' from 127.0.0.1: 421 host_not_allowed" in told[0]


def test_a_page_gets_the_head_of_a_stream_before_its_first_token(tmp_path: Path) -> None:
    """With what lets it read the answer; an engine may think for long before it says anything."""
    go_on = threading.Event()

    def slow(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        go_on.wait(10)
        events = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events))

    settings = {"allowed_origins": [PAGE], "stream_loading_comments": False}
    asked = http_request(prompt("m", stream=True), headers={"Origin": PAGE})
    with (
        upstream(slow) as engine,
        Rolecall(tmp_path, [upstream_entry("m", engine.base_url)], settings=settings) as server,
        server.raw(asked) as connection,
    ):
        head = connection.recv(65536)
        assert b"HTTP/1.1 200 OK\r\n" in head
        assert f"access-control-allow-origin: {PAGE}\r\n".encode() in head
        assert b"x-rolecall-model" in head.partition(b"access-control-expose-headers: ")[2].partition(b"\r\n")[0]
        go_on.set()
        assert read_to_end(connection).endswith(b"0\r\n\r\n")
