# ruff: noqa: INP001 - a script of its own
"""Photographs tagged by the command with llama.cpp and the demo vision model: all accounted for, and how fast.

    python benchmarks/vision_batch.py [--pictures 300] [--measured 100] [--rounds 6] [--layers 1] [--still-s 0] [--json]

First the command tags the photographs (1600 × 1200 pixels, with EXIF), is killed with SIGKILL after a third, and goes
on with --resume; each has to have one record with tags.

Then, each round with ``--measured`` new photographs: the same requests, prepared beforehand, are sent straight to the
engine that rolecall has started, as many at a time; and the command is run, pictures read, scaled and written down. Its
seconds are those that it tells, from its first look at the pictures to the last record; the start of Python, half a
second, does not count. The ratio is that of the medians of the rounds. ``--layers`` makes the model slower: the demo
model answers in a fraction of the time that a real one takes, and computes on the processors that the command needs,
too. With ``--still-s`` a fake engine is measured that takes so long for a picture and no processor time meanwhile, like
one on a GPU. Exit code 1 if a picture is missing or the ratio is below 0.9.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from engines.test_vision_batch import check_all_accounted_for, serving, tag, tag_killed_once
from harness import CONFIGS, Rolecall, fake_entry
from rolecall.backends.llama_server import KEY_VARIABLE
from rolecall.demo.weights import write_chat
from rolecall.vision.ask import Asker
from rolecall.vision.photos import Photo, prepare
from rolecall.vision.runner import run_task
from rolecall.vision.task import Task
from rolecall.vision.tasks import load_tasks
from vision.pictures import photograph

SIZE = (1600, 1200)
JOBS = 4
LEAST = 0.9
ECHOED = """
version = "1"
title = "tags that the fake engine says"
role = "vision_general"
user = '''ECHO {"light": "bright"}
{dimensions}'''
parser = "tags"
[dimensions.light]
question = "?"
values = ["dark", "bright"]
[image]
max_side = 768
"""


def photographs(folder: Path, count: int, first: int) -> Path:
    """Make photographs that no other call has made."""
    for number in range(first, first + count):
        photograph(folder / f"IMG_{number:05}.jpg", number, size=SIZE)
    return folder


def slower(running: Rolecall, layers: int) -> None:
    """Give the demo model more layers, which change nothing in what it says."""
    write_chat(running.state / "demo" / "demo-vision.gguf", name="demo-vision", layers=layers)


def still(scratch: Path, seconds: float) -> Rolecall:
    """Return a rolecall whose one engine waits so long for each picture, four at a time; not started yet."""
    waits = ("--mmproj", "x", "--head-delay-s", str(seconds))
    sees = {"capabilities": ["text", "vision"], "role_priority": {"vision_general": 1}}
    made = Rolecall(scratch, [fake_entry("still", *waits, **sees)])
    (made.config_dir / "tasks").mkdir()
    (made.config_dir / "tasks" / "tags.toml").write_text(ECHOED)
    return made


def engine(running: Rolecall, model: str) -> httpx.AsyncClient:
    """Return a client of the engine itself; it asks for a key that only rolecall and the engine's environment have."""
    row = running.row(model)
    key = psutil.Process(row["pid"]).environ()[KEY_VARIABLE]
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{row['port']}", headers=headers, trust_env=False)


async def straight(running: Rolecall, model: str, task: Task, photos: Sequence[Photo]) -> float:
    """Return the seconds in which the engine answers for all photographs."""
    waiting = iter(photos)

    async def ask(asker: Asker) -> None:
        for photo in waiting:
            outcome = await run_task(asker, task, photo, model=model)
            if not outcome.tags:
                raise SystemExit(f"the engine said {outcome.text!r}")

    async with engine(running, model) as client:
        began = time.monotonic()
        await asyncio.gather(*(ask(Asker(client)) for _ in range(JOBS)))
        return time.monotonic() - began


def through(running: Rolecall, pictures: Path, out: Path) -> float:
    """Return the seconds in which the command tags a folder."""
    options = ("--jobs", str(JOBS), "--json", "--config-dir", str(running.config_dir))
    with tag(running, pictures, out, *options) as process:
        told, said = process.communicate()
    if process.returncode:
        raise SystemExit(said)
    return float(json.loads(told)["seconds"])


def measure(running: Rolecall, model: str, scratch: Path, count: int, rounds: int) -> dict[str, Any]:
    """Return requests a second of both ways."""
    task = load_tasks(CONFIGS / "tasks", running.config_dir / "tasks")["tags"]
    through(running, photographs(scratch / "first", JOBS, 5_000), scratch / "first.jsonl")
    direct: list[float] = []
    command: list[float] = []
    for number in range(rounds):
        mine = photographs(scratch / f"a{number}", count, (2 * number + 1) * 10_000)
        photos = [prepare(path, max_side=task.image.max_side) for path in sorted(mine.iterdir())]
        direct.append(count / asyncio.run(straight(running, model, task, photos)))
        theirs = photographs(scratch / f"b{number}", count, (2 * number + 2) * 10_000)
        command.append(count / through(running, theirs, scratch / f"b{number}.jsonl"))
    return {
        "straight_per_s": [round(each, 2) for each in direct],
        "command_per_s": [round(each, 2) for each in command],
        "ratio": round(median(command) / median(direct), 3),
    }


def account(running: Rolecall, scratch: Path, count: int) -> int:
    """Tag photographs with a kill in between, check that each is accounted for, and return how many there are."""
    pictures = photographs(scratch / "pictures", count, 0)
    found = tag_killed_once(running, pictures, scratch / "out.jsonl", after=count // 3)
    check_all_accounted_for(running, pictures, found)
    return len(found)


def main() -> int:
    """Tag, check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--measured", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--still-s", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if given.still_s:
            with still(scratch / "rolecall", given.still_s) as running:
                figures = measure(running, "still", scratch, given.measured, given.rounds)
        else:
            with serving(scratch / "rolecall") as running:
                if given.layers > 1:
                    slower(running, given.layers)
                figures["pictures"] = account(running, scratch, given.pictures)
                figures |= measure(running, "demo-vision", scratch, given.measured, given.rounds)
    if given.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{name}: {value}\n" for name, value in figures.items())
    return int(figures["ratio"] < LEAST)


if __name__ == "__main__":
    sys.exit(main())
