# ruff: noqa: INP001 - a script of its own
"""What the door adds to a request: CPU time in µs, beside an application that does nothing.

    python benchmarks/door.py [--keys 100] [--json]

The request has the 17 headers that OpenAI's client sends. Each figure is the least of 7 rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rolecall.core.hosts import AllowedHosts, AllowedOrigins
from rolecall.core.keys import ApiKey, hashed
from rolecall.gateway.caller import caller_of
from rolecall.gateway.door import Door, Keys
from rolecall.runtime.api_keys import KeyStore, change_keys
from rolecall.runtime.usage import UsageBook

PAGE = "https://chat.example.org"
HEADERS = [
    (b"host", b"127.0.0.1:8100"),
    *((name, b"x") for name in (b"user-agent", b"accept", b"accept-encoding", b"connection", b"content-type")),
    (b"content-length", b"300"),
    *((b"x-stainless-%d" % number, b"x") for number in range(9)),
]
RIGHT, WRONG = (b"authorization", b"Bearer rc-0"), (b"authorization", b"Bearer rc-wrong")


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once."""
    del scope, receive
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b""})


async def counting(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer and count, as inference does."""
    caller = caller_of(scope)
    caller.begin()
    await nothing(scope, receive, send)
    caller.spend(10)


async def measure(app: ASGIApp, *headers: tuple[bytes, bytes], requests: int = 10_000) -> float:
    """Return the CPU time of a request in µs."""

    async def send(message: Message) -> None:
        del message

    async def receive() -> Message:
        return {}

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "http_version": "1.1"}
    every = [*HEADERS, *headers]
    rounds = []
    for _ in range(7):
        began = time.process_time()
        for _ in range(requests):
            await app({**scope, "headers": every, "state": {}}, receive, send)
        rounds.append((time.process_time() - began) / requests)
    return min(rounds) * 1e6


def door(app: ASGIApp, keys: Keys | None = None, origins: AllowedOrigins | None = None) -> Door:
    """Return a door in front of an application, for which every request is one for inference."""
    return Door(app, AllowedHosts(), origins or AllowedOrigins(), lambda _scope: "inference", keys)


async def figures(keys: Keys) -> dict[str, float]:
    """Return what each kind of door adds, in µs."""
    bare = await measure(nothing, RIGHT)
    page = AllowedOrigins([PAGE])
    found = {
        "no keys": await measure(door(nothing), RIGHT),
        "keys": await measure(door(nothing, keys), RIGHT),
        "keys, counted": await measure(door(counting, keys), RIGHT),
        "keys, counted, from a page": await measure(door(counting, keys, page), RIGHT, (b"origin", PAGE.encode())),
        "a wrong key, refused": await measure(door(nothing, keys), WRONG),
    }
    return {name: round(us - bare, 2) for name, us in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100, help="keys in the file")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.json"
        limits = {"requests_per_minute": 10**9, "tokens_per_day": 10**15}
        rows = ({"name": f"n{at}", "sha256": hashed(b"rc-%d" % at), **limits} for at in range(given.keys))
        made = tuple(map(ApiKey.model_validate, rows))
        change_keys(path, lambda _keys: made)
        found = asyncio.run(figures(Keys(KeyStore(path), UsageBook(Path(folder) / "usage.json"))))
    if given.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for name, us in found.items():
            sys.stdout.write(f"{name:<28}{us:>8.2f} µs\n")


if __name__ == "__main__":
    main()
