"""The door by itself, as an ASGI application: any headers at all, scopes of routes, what it tells on the terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from rolecall.core.hosts import AllowedHosts, AllowedOrigins
from rolecall.core.keys import ApiKey, hashed
from rolecall.errors import Forbidden, InvalidApiKey
from rolecall.gateway.app import create_app
from rolecall.gateway.caller import Anyone, Stranger, caller_of, introduce
from rolecall.gateway.door import Door, Keys, Refusals
from rolecall.gateway.routes import INFERENCE_PATHS, Need, ScopedRoute, needed_scope
from rolecall.gateway.server import running_gateway
from rolecall.runtime.api_keys import KeyStore, change_keys
from rolecall.runtime.roster import load_roster
from rolecall.runtime.usage import UsageBook
from rolecall.settings import load_settings

PAGE = b"https://chat.example.org"
HOST = (b"host", b"localhost:8100")
FOR_EVERY_KEY = ("/v1/models", "/v1/models/select_by_role", "/v1/models/{id:path}")
"""The routes beside inference that a key of any scope may read."""
Headers = list[tuple[bytes, bytes]]


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    """Say who came in."""
    name = caller_of(scope).name
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-rolecall-test", b"1")]})
    await send({"type": "http.response.body", "body": json.dumps(name).encode()})


async def ask(
    door: Door, headers: Headers, *, method: str = "POST", **scope: Any
) -> tuple[int, dict[bytes, bytes], Any]:
    """Send a request through a door; return status, headers and the parsed body."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing of a body is read at the door")

    whole = {
        "type": "http",
        "method": method,
        "path": "/v1/chat/completions",
        "http_version": "1.1",
        "headers": headers,
    }
    await door({**whole, **scope}, receive, send)
    start, body = sent
    return start["status"], dict(start["headers"]), json.loads(body["body"] or b"null")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Return keys of which one is called ``ci``, and is ``rc-ci``."""
    folder = tmp_path_factory.mktemp("keys")
    change_keys(folder / "keys.json", lambda _keys: (ApiKey(name="ci", sha256=hashed(b"rc-ci")),))
    return Keys(KeyStore(folder / "keys.json"), UsageBook(folder / "usage.json"))


def door(keys: Keys | None = None, origins: AllowedOrigins | None = None) -> Door:
    def needs(scope: Scope) -> Need:
        return "open" if scope["path"] == "/health" else "inference"

    return Door(inside, AllowedHosts(), origins or AllowedOrigins(), needs, keys)


NAMES = st.sampled_from(
    [
        b"host", b"origin", b"authorization", b"x-api-key", b"api-key", b"sec-fetch-site", b"content-type",
        b"access-control-request-method", b"access-control-request-headers", b"x-forwarded-host", b"forwarded",
    ]
)  # fmt: skip
VALUES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"localhost", b"rc-ci", b"Bearer rc-ci", b"Bearer", b"null", PAGE, b"cross-site", b"POST", b""]),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.sampled_from(["GET", "POST", "OPTIONS", "HEAD"]))
def test_any_headers_are_let_in_or_refused(keys: Keys, headers: Headers, method: str) -> None:
    """Nothing is ever a 500; who comes in has the one right key, one allowed host, and no strange page."""
    import asyncio

    status, answered, _ = asyncio.run(ask(door(keys, AllowedOrigins([PAGE.decode()])), headers, method=method))
    assert status in {200, 204, 400, 401, 403, 421}
    assert b"*" not in answered.get(b"access-control-allow-origin", b"")
    if status == 200:
        values: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            values.setdefault(name, []).append(value)
        assert len(values[b"host"]) == 1
        tokens = {
            v.strip().split(b" ")[-1] for n in (b"authorization", b"x-api-key", b"api-key") for v in values.get(n, [])
        }
        assert tokens == {b"rc-ci"}
        assert values.get(b"origin", [PAGE])[0].lower() in {PAGE, b"http://localhost", b"https://localhost"}


async def test_the_caller_of_a_key_comes_in(keys: Keys) -> None:
    """Who serves the request knows the name of the key; without keys there is none."""
    with_key = [HOST, (b"authorization", b"Bearer rc-ci")]
    assert await ask(door(keys), with_key) == (200, {b"x-rolecall-test": b"1"}, "ci")
    assert (await ask(door(), with_key))[2] is None


async def test_headers_of_a_proxy_change_nothing(keys: Keys) -> None:
    """Neither the host nor the key can come in another header."""
    others = [
        (b"x-forwarded-host", b"localhost"),
        (b"forwarded", b"host=localhost"),
        (b"x-forwarded-for", b"127.0.0.1"),
    ]
    assert (await ask(door(), [(b"host", b"evil.example"), *others]))[0] == 421
    assert (await ask(door(keys), [HOST, (b"proxy-authorization", b"Bearer rc-ci"), *others]))[0] == 401


async def test_a_websocket_is_closed() -> None:
    """There is nothing here that speaks it."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await door()({"type": "websocket", "headers": [HOST]}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_around_the_door_nobody_is_anybody() -> None:
    """A request that did not come through the door is a bug, and is not let do everything."""
    with pytest.raises(KeyError):
        caller_of({"type": "http", "state": {}})
    scope: Scope = {"type": "http"}
    introduce(scope, Anyone())
    assert caller_of(scope).may("admin")


def test_a_stranger_may_nothing() -> None:
    """Should one ever reach a model, it is refused."""
    stranger = Stranger()
    assert not stranger.may("inference")
    with pytest.raises(Forbidden):
        stranger.begin()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_refusals_are_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """The first at once, then one in ten seconds and how many there were; nothing of them drives the terminal."""
    clock = Clock()
    refusals = Refusals(clock)
    scope: Scope = {"method": "GET", "path": "/\x1b[2Jx" + "y" * 1000, "client": ("10.0.0.9", 1)}
    with caplog.at_level(logging.WARNING):
        for clock.now in (0.0, 1.0, 9.9, 10.0, 11.0):
            refusals.note(scope, InvalidApiKey("no"))
        refusals.note({**scope, "client": None}, InvalidApiKey("no"))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("refused 'GET /\\x1b[2Jxyy")
    assert first.endswith("' from 10.0.0.9: 401 invalid_api_key")
    assert len(first) < 300
    assert "from 10.0.0.9, and 2 before it: 401" in second


@pytest.fixture
async def routes(tmp_path: Path) -> list[Any]:
    """Return the routes of the application."""
    found = load_settings({"config_dir": tmp_path, "state_dir": tmp_path, "log_path": tmp_path / "log.jsonl"}, {})
    async with running_gateway(load_roster(found)) as gateway:
        return list(create_app(gateway.services, gateway.inference, gateway.reload).routes)


def requests(routes: list[Any]) -> Iterator[Scope]:
    """One request for each route and method, with odd ids where there are some."""
    for route in routes:
        for id_ in ("one", "a/b", "health", "x/load", "select_by_role"):
            for end in ("", "\n", "\r", "/", "\n\n"):
                path = route.path.replace("{id:path}", id_) + end
                yield from (
                    {"type": "http", "method": m, "path": path, "headers": []} for m in ("GET", "HEAD", "POST", "PUT")
                )


async def test_a_scope_is_that_of_the_route_which_answers(routes: list[Any]) -> None:
    """The door finds the route that the router finds; what is not for inference or for all is for admins."""
    needed = needed_scope(routes)
    seen = set()
    for scope in requests(routes):
        found = next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)
        if found is None:
            expected = None
        elif found.path in INFERENCE_PATHS:
            expected = "inference"
        else:
            expected = None if found.path in FOR_EVERY_KEY else "open" if found.path == "/health" else "admin"
            seen.add((found.path, expected))
        assert needed(scope) == expected, scope
    admins = {path for path, expected in seen if expected == "admin"}
    assert {"/v1/models/{id:path}/load", "/v1/models/{id:path}/unload", "/v1/admin/reload"} <= admins
    assert {"/v1/config/proxy", "/v1/config/profile", "/v1/models/health"} <= admins


def open_door(keys: Keys) -> Door:
    """A door to one route that is open, and one for admins, as rooms above the gateway add them."""
    more = [
        ScopedRoute("/page", inside, methods=["GET", "POST"], need="open"),
        ScopedRoute("/vault", inside, methods=["GET"], need="admin"),
    ]
    return Door(inside, AllowedHosts(), AllowedOrigins(), needed_scope(more), keys)


async def test_an_open_route_needs_no_key(keys: Keys) -> None:
    """Its pages are read without one, also from a link on another site; what a page sends needs a key and an origin."""
    foreign = (b"sec-fetch-site", b"cross-site")
    key = (b"authorization", b"Bearer rc-ci")
    for method, headers, status in (
        ("GET", [HOST], 200),
        ("GET", [HOST, foreign], 200),
        ("GET", [HOST, key], 200),
        ("POST", [HOST], 401),
        ("POST", [HOST, key], 200),
        ("POST", [HOST, key, foreign], 403),
    ):
        assert (await ask(open_door(keys), headers, method=method, path="/page"))[0] == status


async def test_a_route_says_itself_what_it_needs(keys: Keys) -> None:
    """A key without the scope of an added route is refused."""
    status, _, body = await ask(
        open_door(keys), [HOST, (b"authorization", b"Bearer rc-ci")], method="GET", path="/vault"
    )
    assert (status, "needs admin" in body["error"]["message"]) == (403, True)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_refusal_has_the_shape_that_its_client_reads(keys: Keys, path: str) -> None:
    """Anthropic's clients get their own form of error, others OpenAI's."""
    _, _, body = await ask(door(keys), [HOST], path=path)
    assert body["type"] == "error"
    assert body["error"]["type"] == "authentication_error"
    _, _, body = await ask(door(keys), [HOST])
    assert set(body) == {"error"}
