# ruff: noqa: INP001, T201 - a script of its own
"""What the body of a chat request costs the event loop: from its bytes to the bytes for the engine, step by step.

    python benchmarks/request_body.py [--rounds 4000] [--json]

Three bodies: two messages of 400 bytes together, twenty of 5 KB, and a picture of 10 MB. No sockets, no engine: an
entry of somebody else's server with a context of 128k tokens, whose model is known well. Prints medians in µs; the
picture's are wall time, for parts of its work are done in threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any, cast

import httpx

from rolecall.backends.base import Upstream
from rolecall.backends.external import OpenAIServer
from rolecall.core.catalog import Target
from rolecall.core.endpoints import CHAT
from rolecall.core.models import ModelEntry
from rolecall.core.ranges import check_counts, check_ranges
from rolecall.core.selection import Demand, Selection
from rolecall.core.traits import Traits
from rolecall.core.transforms import read_facts
from rolecall.gateway.body import BodyBuffer, aside, read_json, work_of
from rolecall.gateway.counting import Counting
from rolecall.gateway.images import Images
from rolecall.gateway.pictures import Pictures
from rolecall.gateway.pipeline import JsonRequest
from rolecall.runtime.lease import Lease
from rolecall.runtime.token_memory import TokenMemory
from rolecall.settings import load_settings

PART_BYTES = 2**16
"""What uvicorn hands on at once, about."""
FOXES = "Tell me about foxes and dogs, and about what they do all day long when nobody looks at them. "


def small() -> bytes:
    """Return a body of some 400 bytes."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": FOXES * 2},
    ]
    return json.dumps({"model": "alpha", "messages": messages, "max_tokens": 64, "temperature": 0.7}).encode()


def conversation() -> bytes:
    """Return a body of some 5 KB with twenty messages."""
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    messages += [{"role": ("user", "assistant")[number % 2], "content": FOXES * 2} for number in range(19)]
    return json.dumps({"model": "alpha", "messages": messages, "max_tokens": 64, "stream": True}).encode()


def picture() -> bytes:
    """Return a body of 10 MB."""
    url = "data:image/png;base64," + b64encode(os.urandom(7_500_000)).decode()
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"model": "alpha", "messages": [{"role": "user", "content": parts}]}).encode()


class Bench:
    """Prepares requests as the gateway does."""

    def __init__(self, folder: Path) -> None:
        self.settings = load_settings({"config_dir": folder, "state_dir": folder}, {})
        http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(404)))
        pictures = Pictures()
        self.counting = Counting.of(self.settings, TokenMemory(folder / "tokens.json"), pictures, http)
        self.services = SimpleNamespace(
            settings=self.settings,
            counting=self.counting,
            images=Images(self.settings, None, pictures),
            roster=SimpleNamespace(traits=lambda _: Traits(knows_developer=True), fallbacks=lambda _: []),
        )
        entry = ModelEntry(name="alpha", backend="openai", context_length=131072)
        self.target = Target((entry,))
        self.lease = Lease(
            entry, OpenAIServer(), Upstream("http://127.0.0.1:1/v1"), Selection(Demand(), (), (), "the only one"),
            0, 0, asyncio.Event(), lambda: None,
        )  # fmt: skip

    async def run(self, raw: bytes, times: dict[str, list[int]]) -> None:
        """Take one body through all steps."""
        began = last = perf_counter_ns()

        def note(step: str) -> None:
            nonlocal last
            now = perf_counter_ns()
            times.setdefault(step, []).append(now - last)
            last = now

        buffer = BodyBuffer(2**30)
        for at in range(0, len(raw), PART_BYTES):
            buffer.add(raw[at : at + PART_BYTES])
        came = buffer.take()
        note("receive")
        body = await read_json(came, in_full=False)
        note("parse")
        check_counts(body, self.settings.max_messages)
        check_ranges(body, CHAT)
        note("ranges")
        facts = await aside(
            work_of(came),
            lambda: read_facts(
                body, CHAT, max_image_bytes=self.settings.max_image_bytes, max_images=self.settings.max_images
            ),
        )
        note("facts")
        request = JsonRequest(cast("Any", self.services), body, facts, None, size=len(raw))
        note("request")
        await request.settle(self.target)
        note("settle")
        payload = await request.payload(self.lease)
        note("payload")
        request.room(self.lease)
        note("room")
        request.let_go()
        note("let go")
        request.learn(self.lease, 4 * payload.size // 10 if payload.size < 10**6 else 900)
        note("learn")
        times.setdefault("whole", []).append(last - began)


async def measured(rounds: int) -> dict[str, dict[str, float]]:
    """Return medians, in µs, by body and step."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bodies: list[tuple[str, Callable[[], bytes], int]] = [
            ("400 bytes", small, rounds),
            ("5 KB", conversation, rounds // 2),
            ("10 MB", picture, max(10, rounds // 100)),
        ]
        for name, make, count in bodies:
            raw, times = make(), dict[str, list[int]]()
            for _ in range(count):
                await bench.run(raw, times)
            found[name] = {step: round(median(each) / 1000, 1) for step, each in times.items()}
            found[name]["mean"] = round(sum(times["whole"]) / count / 1000, 1)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measured(options.rounds))
    if options.json:
        print(json.dumps(found))
        return 0
    steps = list(found["5 KB"])
    print(" " * 10, *(f"{name:>12}" for name in found))
    for step in steps:
        print(f"{step:<10}", *(f"{times[step]:12.1f}" for times in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
