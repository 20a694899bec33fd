# ruff: noqa: INP001 - a script of its own
"""Real processes under fire: what becomes of requests while a random engine is killed all the time.

    python benchmarks/under_fire.py [--requests 500] [--clients 16] [--kill-every-s 2] [--load-s 0.5] [--json]

Three engines of 6000, 7000 and 8000 MB share one simulated GPU of 16 GB; each loads for 0.5 s, and its memory is free a
second after its end. Half of the requests are streamed; an answer takes up to 0.6 s. A client that is refused waits as
long as it is told, but 2 s at most (--patience-s), before its next request.

Exit code 1 if a request ended without a whole answer or a clear error, a cut answer did not say so, a line of the log
is missing, or memory or processes are left. Needs what the tests need, with a C compiler for the stand-in of NVIDIA's
library (docs/simulator.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from process.test_under_fire import Plan, Report, fire
from simulator import nvml


def figures(report: Report) -> dict[str, Any]:
    """Return what is printed."""
    seconds = sorted(ending.seconds for ending in report.endings)
    return {
        "requests": len(report.endings),
        "whole answers": report.count("whole"),
        "clear errors": report.count("refused"),
        "cut, and told so": report.count("cut"),
        "neither": report.count("untold"),
        "errors by code": dict(report.codes()),
        "engines killed": report.kills,
        "engines started": report.starts,
        "log lines": report.lines,
        "wrong log lines": len(report.problems),
        "MB leaked": report.lost_mb,
        "MB still reserved": report.reserved_mb,
        "processes left": report.processes_left,
        "median s": round(seconds[len(seconds) // 2], 2),
        "longest s": round(seconds[-1], 2),
        "whole run s": round(report.wall_s, 1),
    }


def is_good(report: Report) -> bool:
    """Whether all is as it has to be."""
    left = (report.lost_mb, report.reserved_mb, report.processes_left, report.count("untold"))
    return not any(left) and not report.problems and report.lines == len(report.endings)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kill-every-s", type=float, default=2)
    parser.add_argument("--load-s", type=float, default=0.5)
    parser.add_argument(
        "--patience-s", type=float, default=2, help="how long a client waits at most before it asks again"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    with tempfile.TemporaryDirectory() as folder:
        report = fire(nvml.compile_library(Path(folder)), Path(folder) / "run", Plan(**options))
    if as_json:
        sys.stdout.write(json.dumps(figures(report)) + "\n")
    else:
        sys.stdout.writelines(f"{name:<18}{value}\n" for name, value in figures(report).items())
    for problem in [*report.problems, *(ending.code for ending in report.endings if ending.kind == "untold")]:
        sys.stderr.write(f"{problem}\n")
    return int(not is_good(report))


if __name__ == "__main__":
    sys.exit(main())
