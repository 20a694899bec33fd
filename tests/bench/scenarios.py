"""What is asked: the requests of each scenario, and how many of them at a time."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["whole", "stream", "upload"]

UPLOAD_BYTES = 7_500_000
"""Of the picture; in base64 it makes a request of 10 MB."""


@dataclass(frozen=True)
class Scenario:
    """A load: ``count`` requests, or as many as there are in the time that is given to each.

    ``tokens`` and ``every_ms`` are of streams, and ``ramp_ms`` spreads their beginnings.
    """

    name: str
    kind: Kind
    about: str
    connections: int
    count: int = 0
    warm_up: int = 0
    ramp_ms: int = 0
    tokens: int = 64
    every_ms: int = 0

    def shortened(self) -> Scenario:
        """Return the same for a server that would need everybody's time for it: a quarter of requests and tokens."""
        least = min(self.count, self.connections)
        count, tokens = max(least, self.count // 4), max(10, self.tokens // 4)
        return replace(self, count=count, warm_up=self.warm_up // 4, tokens=tokens)

    def arguments(self, seconds: float) -> list[str]:
        """Return the options of the load program."""
        limit = ["-n", str(self.count)] if self.count else ["-d", f"{seconds:g}"]
        options = ["-c", str(self.connections), *limit, "-w", str(self.warm_up), "-r", str(self.ramp_ms)]
        return [*options, *(["-s"] if self.kind == "stream" else [])]

    def body(self, model: str) -> bytes:
        """Return the request."""
        body: dict[str, Any] = {"model": model, "messages": _messages(self.kind), "max_tokens": self.tokens}
        if self.kind == "stream":
            body |= {"stream": True, "stream_options": {"include_usage": True}, "seed": self.every_ms}
        return json.dumps(body | {"temperature": 0.7}).encode()


NS1 = Scenario("ns1", "whole", "whole answers, one at a time", 1, warm_up=50)
NS32 = Scenario("ns32", "whole", "whole answers, 32 at a time", 32, warm_up=200)
NS128 = Scenario("ns128", "whole", "whole answers, 128 at a time", 128, warm_up=400)
ST1 = Scenario("st1", "stream", "one stream, a token in 20 ms", 1, count=4, warm_up=1, tokens=20, every_ms=20)
ST32 = Scenario("st32", "stream", "32 streams, a token in 10 ms each", 32, 64, ramp_ms=200, tokens=100, every_ms=10)
STSAT = Scenario("stsat", "stream", "128 streams, a token in 5 ms each", 128, ramp_ms=200, tokens=100, every_ms=5)
STBURST = Scenario("stburst", "stream", "16 streams, as fast as they go", 16, tokens=400)
UP1 = Scenario("up1", "upload", "a picture of 10 MB, one at a time", 1, count=12, warm_up=2)
UP4 = Scenario("up4", "upload", "a picture of 10 MB, four at a time", 4, count=24, warm_up=4)

SCENARIOS = {each.name: each for each in (NS1, NS32, NS128, ST1, ST32, STSAT, STBURST, UP1, UP4)}


def _messages(kind: Kind) -> list[dict[str, Any]]:
    if kind == "upload":
        url = "data:image/png;base64," + base64.b64encode(picture(UPLOAD_BYTES)).decode()
        parts = [{"type": "text", "text": "What is in this picture?"}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": parts}]
    return [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Tell me about foxes and dogs. " * 8},
    ]


def picture(size: int) -> bytes:
    """Return a PNG of about so many bytes that cannot be compressed; the same one each time."""
    width = 1600
    height = size // (3 * width)
    noise = random.Random(1)
    rows = b"".join(b"\0" + noise.randbytes(3 * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
