# ruff: noqa: INP001 - a script of its own
"""How well rolecall learns what models take: declared wrong by 0.5 to 2, 200 random loads, on simulated GPUs.

    python benchmarks/footprints.py [--loads 200] [--processes listed] [--processes empty] [--seed 1] [--json]

Nine models of 4 to 12 GB share two GPUs of 24 GB. Each load takes up to 1.5 % more or less than the model's own figure,
2 % of it with its first answer, and its memory is free 0.5 to 1.5 s after its end. Others hold 300 to 1500 MB of each
GPU, another amount every ten seconds. ``listed`` is a driver that names processes with their memory, ``empty`` one
that names none, as in containers. Errors are of what was reserved for a load against what it took.

Exit code 1 if the 95th percentile of the errors is 5 % or more after three loads of a model, a model ran out of memory
after its first load or more than once before it, an answer was lost, or a restart forgot. Needs what the tests need,
with a C compiler for the stand-in of NVIDIA's library (docs/simulator.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from process.test_footprints import Plan, Report, learn, p95
from simulator import nvml

LIMIT = 0.05


def figures(report: Report) -> dict[str, Any]:
    """Return what is printed."""
    first, learnt = report.errors(range(1)), report.errors(range(3, len(report.loads)))
    return {
        "loads": len(report.loads),
        "answers": report.answers,
        "answers lost": len(report.lost),
        "p95 error, first load %": round(100 * p95(first), 1),
        "p95 error, after one %": round(100 * p95(report.errors(range(1, 2))), 1),
        "p95 error, after three %": round(100 * p95(learnt), 1),
        "largest, after three %": round(100 * learnt[-1], 1),
        "loads after three": len(learnt),
        "ran out, before a load": sum(report.ran_out(learnt=False).values()),
        "most of one model": max(report.ran_out(learnt=False).values(), default=0),
        "ran out, after one": sum(report.ran_out(learnt=True).values()),
        "largest, restarted %": round(100 * max(load.error for load in report.again), 1),
    }


def is_good(report: Report) -> bool:
    """Whether all is as it has to be."""
    is_learnt = p95(report.errors(range(3, len(report.loads)))) < LIMIT and not report.ran_out(learnt=True)
    is_kept = all(load.error < LIMIT for load in report.again)
    return is_learnt and is_kept and max(report.ran_out(learnt=False).values(), default=0) <= 1 and not report.lost


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=200)
    parser.add_argument("--processes", choices=["listed", "empty", "unmeasured", "host-pids"], action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = nvml.compile_library(Path(folder))
        for kind in options.processes or ["listed", "empty"]:
            plan = Plan(options.loads, processes=kind, seed=options.seed)
            reports[kind] = learn(library, Path(folder) / kind, plan)
    found = {kind: figures(report) for kind, report in reports.items()}
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(" " * 26 + "".join(f"{kind:>12}" for kind in found) + "\n")
        for name in next(iter(found.values())):
            sys.stdout.write(f"{name:<26}" + "".join(f"{shown[name]:>12}" for shown in found.values()) + "\n")
    for kind, report in reports.items():
        sys.stderr.writelines(f"{kind}: {lost}\n" for lost in report.lost)
    return int(not all(map(is_good, reports.values())))


if __name__ == "__main__":
    sys.exit(main())
