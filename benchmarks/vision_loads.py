# ruff: noqa: INP001 - a script of its own
"""How often models are loaded for captions and keywords of many pictures, by the order in which they are made.

    python benchmarks/vision_loads.py [--pictures 100] [--load-s 0.5] [--json]

Two models of 9,000 and 8,000 MB on a simulated GPU of 16 GB; the engines are fake and load for --load-s. The table in
docs/vision.md is from here. Exit code 1 if an order loads more often than it should. Needs what the tests need, with a
C compiler for the stand-in of NVIDIA's library (docs/simulator.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from process.test_vision_loads import WAYS, Figures, count_loads
from simulator import nvml
from vision.pictures import folder


def show(figures: dict[str, Figures]) -> None:
    """Print a table."""
    sys.stdout.write("| order | loads | seconds | keywords by the best model |\n|---|---|---|---|\n")
    for name, each in figures.items():
        sys.stdout.write(f"| {name} | {each.loads} | {each.seconds:.0f} | {each.best_keywords} |\n")


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--load-s", type=float, default=0.5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as scratch:
        library = nvml.compile_library(Path(scratch))
        pictures = folder(Path(scratch, "pictures"), given.pictures)
        for number, way in enumerate(WAYS):
            figures[way.name] = count_loads(way, pictures, Path(scratch, str(number)), library, given.load_s)
    if given.json:
        sys.stdout.write(json.dumps({name: asdict(each) for name, each in figures.items()}, indent=2) + "\n")
    else:
        show(figures)
    return int(figures["stage by stage"].loads > 2 or figures["as the command chooses"].loads > 2)


if __name__ == "__main__":
    sys.exit(main())
