# ruff: noqa: INP001 - a script of its own
"""How long it takes after a `kill -9` of rolecall until nothing of it is left, by what its engine was doing.

    python benchmarks/nothing_left.py [--rounds 5] [--only ready --only loading] [--json]

Each engine has started six processes: in its session and in others, children and orphans, some of which ignore SIGTERM,
one without an environment. Left are rolecall, its guardian, engines, and all that these have started; the time runs
from the kill to the moment when none of them is there and the engine's port is free. Exit code 1 if anything is left
after 5 s. Linux only; needs what the tests need, with a C compiler for the stand-in of NVIDIA's library
(docs/simulator.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from harness import end_all, new_token
from process.test_nothing_left import LIMIT_S, SCENES, Stage, kill_in, missing
from simulator import nvml


def measure(name: str, rounds: int, folder: Path, library: Path) -> list[float]:
    """Return after how many s nothing was left, for each round; infinity if something was."""
    times_s = []
    for number in range(rounds):
        stage = Stage(folder / f"{name}-{number}".replace(" ", "-"), new_token(), library)
        stage.folder.mkdir()
        try:
            times_s.append(kill_in(name, stage))
        except AssertionError as error:
            sys.stderr.write(f"{name}: {error}\n")
            times_s.append(float("inf"))
        finally:
            end_all(stage.token)
    return times_s


def show(figures: dict[str, Sequence[float]]) -> None:
    """Print a table."""
    sys.stdout.write(f"{'engine':<26}{'rounds':>7}{'median s':>10}{'longest s':>11}\n")
    for name, times_s in figures.items():
        sys.stdout.write(f"{name:<26}{len(times_s):>7}{median(times_s):>10.2f}{max(times_s):>11.2f}\n")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=[*SCENES], help="what the engine does; may be repeated")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures: dict[str, Sequence[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = nvml.compile_library(Path(folder))
        for name in given.only or SCENES:
            if missing(name) is None:
                figures[name] = measure(name, given.rounds, Path(folder), library)
    if given.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        show(figures)
    return int(max(max(times_s) for times_s in figures.values()) > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
