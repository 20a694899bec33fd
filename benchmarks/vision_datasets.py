# ruff: noqa: INP001 - a script of its own
"""A dataset tagged in the background with llama.cpp and the demo vision model, beside the engine by itself: how fast.

    python benchmarks/vision_datasets.py [--pictures 100] [--rounds 4] [--layers 1] [--json]

Each round has new photographs, 1600 × 1200 pixels with EXIF: the same requests, prepared beforehand, are sent straight
to the engine that rolecall has started, four at a time; and a dataset is tagged, from the request that begins it to the
event that ends it, pictures read, scaled and written down. ``--layers`` makes the model slower: the demo model answers
in a fraction of the time that a real one takes. The ratio is that of the best rounds, so that both had the machine to
themselves. Exit code 1 if a picture has no tags or the ratio is below 0.9.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from vision_batch import LEAST, photographs, slower, straight

from engines.test_vision_batch import serving
from harness import CONFIGS, Rolecall
from rolecall.vision.photos import prepare
from rolecall.vision.tasks import load_tasks
from tagging import add_dataset, start, states


def tagged(running: Rolecall, folder: Path) -> float:
    """Return the seconds in which a dataset of a folder is tagged."""
    dataset = add_dataset(running, folder.name, folder)
    began = time.monotonic()
    start(running, dataset["id"])
    *_, last = states(running, dataset["id"])
    seconds = time.monotonic() - began
    if running.get(f"/datasets/{dataset['id']}")["tagged"] != dataset["samples"]:
        raise SystemExit(last["message"])
    return seconds


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    task = load_tasks(CONFIGS / "tasks")["tags"]
    direct: list[float] = []
    dataset: list[float] = []
    with tempfile.TemporaryDirectory() as text, serving(Path(text, "rolecall")) as running:
        scratch = Path(text)
        if given.layers > 1:
            slower(running, given.layers)
        tagged(running, photographs(scratch / "first", 4, 0))  # the model is loaded by it
        for number in range(given.rounds):
            mine = photographs(scratch / f"a{number}", given.pictures, (2 * number + 1) * 10_000)
            photos = [prepare(path, max_side=task.image.max_side) for path in sorted(mine.iterdir())]
            direct.append(given.pictures / asyncio.run(straight(running, task, photos)))
            theirs = photographs(scratch / f"b{number}", given.pictures, (2 * number + 2) * 10_000)
            dataset.append(given.pictures / tagged(running, theirs))
    figures = {
        "straight_per_s": [round(each, 2) for each in direct],
        "dataset_per_s": [round(each, 2) for each in dataset],
        "ratio": round(max(dataset) / max(direct), 3),
    }
    if given.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{name}: {value}\n" for name, value in figures.items())
    return int(max(dataset) / max(direct) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
