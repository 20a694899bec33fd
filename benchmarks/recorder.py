# ruff: noqa: INP001 - a script of its own
"""What a request's line costs the event loop, part by part, and what it costs the writer's thread.

    python benchmarks/recorder.py [--rate 10000] [--seconds 2] [--json]

CPU time in µs; each part is the least of 7 rounds, and its ratio is to ``orjson.dumps`` of the finished line in the
same run. The last rows are of one loop that records at the rate that is asked for: that is what a busy server pays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from rolecall.backends.base import Places, Upstream
from rolecall.backends.llama_server import LlamaServer
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Demand, Selection
from rolecall.core.transforms import RequestFacts
from rolecall.gateway.account import Account
from rolecall.gateway.recorder import Recorder, encode
from rolecall.gateway.tidy import keep_pages
from rolecall.runtime.lease import Lease

SCOPE: dict[str, Any] = {
    "path": "/v1/chat/completions",
    "client": ("127.0.0.1", 50_000),
    "headers": [
        (b"host", b"127.0.0.1:8100"),
        (b"user-agent", b"OpenAI/Python 2.8.1"),
        *((name, b"application/json") for name in (b"accept", b"accept-encoding", b"connection", b"content-type")),
        (b"content-length", b"300"),
        *((b"x-stainless-%d" % number, b"x") for number in range(9)),
    ],
}
FACTS = RequestFacts(SCOPE["path"], "role:chat", messages=2, images=1)
ANSWER = {
    "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 64},
}
TICK_S = 0.001


def lease() -> Lease:
    """Return the right to use an engine that is there already."""
    return Lease(
        entry=ModelEntry.model_validate({"name": "bench", "backend": "llama_cpp"}),
        backend=LlamaServer(Places(Path(), Path()), None),
        upstream=Upstream("http://127.0.0.1:9/v1"),
        selection=Selection(Demand(), (), (), "highest priority that fits"),
        queue_ms=0.07,
        load_ms=0.0,
        engine_gone=asyncio.Event(),
        _give_back=lambda: None,
    )


def opened() -> Account:
    """Return the account of a request that has just arrived."""
    return Account(SCOPE, "req_0123456789abcdef0123456789abcdef", keeps_prompts=False)


def over(given: Lease) -> Account:
    """Return the account of a request that was answered."""
    account = opened()
    fill(account, given)
    account.answer.read(ANSWER)
    return account


def fill(account: Account, given: Lease) -> None:
    """Take in all that the exchange tells an account."""
    account.note_facts(FACTS, {})
    account.note_lease(given)
    account.note_sent()
    account.line.status = 200


def least(work: Callable[[], Any], times: int = 5_000) -> float:
    """Return the CPU time of this thread for one call in µs."""
    rounds = []
    for _ in range(7):
        began = time.thread_time_ns()
        for _ in range(times):
            work()
        rounds.append((time.thread_time_ns() - began) / times)
    return min(rounds) / 1000


def parts(given: Lease) -> dict[str, float]:
    """Return what each part costs in µs."""
    account = over(given)
    line = account.close("development", 600)
    return {
        "orjson.dumps of the line": least(lambda: orjson.dumps(line)),
        "Account, its line and answer": least(opened),
        "facts, lease, status": least(lambda: fill(account, given)),
        "tokens": least(lambda: account.tokens(lambda _lease: 0)),
        "close": least(lambda: account.close("development", 600)),
        "encode": least(lambda: encode(line)),
    }


async def paced(work: Callable[[], Any], rate: int, seconds: float) -> float:
    """Do something so often a second; return what one costs this thread in µs, the pauses included."""
    count = round(rate * TICK_S)
    began, cpu = time.monotonic(), time.thread_time_ns()
    ticks = round(seconds / TICK_S)
    for tick in range(1, ticks + 1):
        for _ in range(count):
            work()
        await asyncio.sleep(max(0.0, began + tick * TICK_S - time.monotonic()))
    return (time.thread_time_ns() - cpu) / (ticks * count) / 1000


def at_a_rate(given: Lease, rate: int, seconds: float) -> dict[str, float]:
    """Return what a line costs the loop as a whole, and the writer's thread."""
    pauses = asyncio.run(paced(lambda: None, rate, seconds))
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "log.jsonl")

        def request() -> None:
            account = opened()
            fill(account, given)
            recorder.record(account.close("development", 600))
            account.tokens(lambda _lease: 0)

        cpu, other = time.process_time_ns(), time.thread_time_ns()
        loop = asyncio.run(paced(request, rate, seconds))
        other = time.thread_time_ns() - other
        recorder.close()
        writer = (time.process_time_ns() - cpu - other) / (round(rate * TICK_S) * round(seconds / TICK_S)) / 1000
        if recorder.dropped:
            raise SystemExit("the writer did not keep up: lines were dropped")
    return {"a line, on the loop": loop - pauses, "a line, in the writer": writer}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=10_000, help="lines a second, at least 1000")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_pages()  # as the server does: to get pages anew for each second's lines would cost as much as the lines
    given = lease()
    found = parts(given) | at_a_rate(given, options.rate, options.seconds)
    dumps = found["orjson.dumps of the line"]
    if options.json:
        sys.stdout.write(json.dumps({name: round(us, 2) for name, us in found.items()}) + "\n")
    else:
        sys.stdout.writelines(f"{name:<30}{us:>8.2f} µs{us / dumps:>8.1f} ×\n" for name, us in found.items())


if __name__ == "__main__":
    main()
