# ruff: noqa: INP001, T201 - a script of its own
"""A million lines of a request log, counted by ``rolecall logs stats`` and ``rolecall logs query``.

    python benchmarks/log_database.py [--lines 1000000] [--runs 5] [--gzip] [--keep FOLDER]

Each run is a process of its own, from its start to its end. ``--gzip`` splits the log into ten files, nine of them
compressed, as logrotate leaves them.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rolecall.gateway.recorder import RequestLine, encode, timestamp

MODELS = ("qwen3-vl-8b-instruct", "llama-3.3-70b-q4", "florence-2-large", "demo-chat", "mistral-small-24b")
ROLES = ("chat", "vision", "tagger", None, "embed")
PROMPTS = (("caption", "1"), ("caption", "2"), ("tags", "1"), ("narration", "4"), (None, None), (None, None))
SQL = (
    "SELECT model, count(*), sum(prompt_tokens), sum(completion_tokens), quantile_cont(ttft_ms, 0.5), "
    "quantile_cont(ttft_ms, 0.95), avg(tokens_per_second) FROM requests GROUP BY ALL"
)


def made(count: int, seed: int = 8) -> Iterator[bytes]:
    """Yield the lines of so many requests, one a second, as the recorder writes them."""
    chance = random.Random(seed)  # noqa: S311 - no secrets
    at = 1_764_000_000.0
    for _ in range(count):
        at += chance.expovariate(1.0)
        prompt, is_ok, tokens = chance.choice(PROMPTS), chance.random() < 0.97, chance.randrange(1, 900)
        ttft, rate = chance.lognormvariate(5, 0.6), chance.gauss(60, 10)
        line = RequestLine(
            ts=timestamp(at),
            request_id=f"req_{chance.getrandbits(128):032x}",
            endpoint="/v1/chat/completions",
            client="127.0.0.1 OpenAI/Python 2.8.1",
            requested_model="role:chat",
            role=chance.choice(ROLES),
            model=chance.choice(MODELS),
            backend="llama_cpp",
            profile="desktop",
            stream=True,
            status=200 if is_ok else chance.choice([499, 502, 503]),
            error=None if is_ok else "upstream_error: the engine is gone",
            messages=2,
            images=chance.randrange(2),
            role_selector="highest priority that fits",
            prompt_tokens=chance.randrange(20, 4000),
            completion_tokens=tokens,
            finish_reason="stop",
            queue_ms=round(chance.random() * 3, 3),
            load_ms=0.0,
            ttft_ms=round(ttft, 3),
            duration_ms=round(ttft + tokens / rate * 1000, 3),
            tokens_per_second=round(rate, 2),
            prompt_id=prompt[0],
            prompt_version=prompt[1],
            bytes_in=chance.randrange(100, 9000),
            bytes_out=tokens * 200,
        )
        yield encode(line.as_dict())


def write(path: Path, count: int, *, packed: bool) -> None:
    """Write the log; ``packed`` in ten files, of which the present one alone is not compressed."""
    lines = made(count)
    if not packed:
        with path.open("wb") as file:
            file.writelines(lines)
        return
    for number in range(9, -1, -1):
        part = b"".join(line for line, _ in zip(lines, range(count // 10), strict=False))
        if number:
            path.with_name(f"{path.name}.{number}.gz").write_bytes(gzip.compress(part, 6))
        else:
            path.write_bytes(part)


def measure(arguments: Sequence[str], runs: int) -> None:
    """Run a command so often and print its times."""
    walls = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rolecall", "logs", *arguments], stdout=subprocess.DEVNULL, check=True)
        walls.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / runs
    print(
        f"{arguments[0]:6} {' '.join(arguments[1:3])[:40]:40} "
        f"best {min(walls):.2f} s, median {statistics.median(walls):.2f} s, CPU {cpu:.2f} s, "
        f"largest process so far {after.ru_maxrss // 1024} MB"
    )


def main() -> None:
    """Make the log and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "requests.jsonl"
        write(path, options.lines, packed=options.gzip)
        size = sum(each.stat().st_size for each in folder.iterdir()) / 1e6
        print(f"{options.lines:,} lines, {size:.0f} MB, {len(os.sched_getaffinity(0))} cores")
        measure(["stats", "--by", "model", "--file", str(path)], options.runs)
        measure(["stats", "--by", "day,model,role,prompt", "--json", "--file", str(path)], options.runs)
        measure(["query", SQL, "--file", str(path)], options.runs)


if __name__ == "__main__":
    main()
