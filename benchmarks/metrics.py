# ruff: noqa: INP001, T201, PT008
"""What `/metrics` costs: a request's share of the counting, and a page of 1,000 series.

    python benchmarks/metrics.py [--series N]

Prints µs of CPU a line, ms of CPU to gather on the event loop and to write the page in a thread, and the longest time
for which that keeps the interpreter from the event loop.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from unittest import mock

from rolecall.core.endpoints import CHAT
from rolecall.gateway.recorder import RequestLine
from rolecall.insight.load_tally import LoadTally
from rolecall.insight.metrics_families import load_families, request_families
from rolecall.insight.metrics_page import PageWriter
from rolecall.insight.tally import RequestTally

LINES = 200_000


def line(number: int) -> dict[str, object]:
    """Return a line of one of ``number`` series."""
    made = RequestLine(endpoint=CHAT, status=200, model=f"m{number % 100}", role=f"r{number // 100}")
    made.prompt_tokens, made.completion_tokens, made.queue_ms, made.load_ms = 100, 50, 0.0, 0.0
    made.ttft_ms, made.duration_ms, made.tokens_per_second = 80.0, 900.0, 60.0
    return made.as_dict()


def pieces_ms(work: Callable[[], object]) -> list[float]:
    """Return for how long (ms of CPU) the work keeps the interpreter each time, until it pauses."""
    found = [time.thread_time()]
    with mock.patch.object(time, "sleep", lambda _: found.append(time.thread_time())):
        work()
    return [(end - begin) * 1000 for begin, end in itertools.pairwise(found)]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--series", type=int, default=1000)
    series = parser.parse_args().series
    tally = RequestTally([CHAT], ["queue_full"])
    lines = [line(number) for number in range(series)]
    begun = time.process_time()
    for number in range(LINES):
        tally.hear(lines[number % series])
    tally.fold()
    print(f"counting: {(time.process_time() - begun) / LINES * 1e6:.2f} µs a request")
    writer = PageWriter()
    for _ in range(3):
        begun = time.thread_time()
        tallied = tally.counted()
        gathered_ms = (time.thread_time() - begun) * 1000
        families = itertools.chain(request_families(tallied), load_families(LoadTally()))
        pages: list[bytes] = []
        pieces = pieces_ms(lambda: pages.append(writer.write("text", families)[0]))  # noqa: B023
        print(
            f"page of {series} series, {len(pages[0].splitlines()):,} lines: {gathered_ms:.1f} ms on the event loop, "
            f"{sum(pieces):.0f} ms in a thread, in pieces of {max(pieces):.1f} ms at the most"
        )


if __name__ == "__main__":
    main()
