# ruff: noqa: INP001 - a script of its own
"""A long run: what a rolecall holds before and after 50,000 requests, a third of whose clients leave early.

    python benchmarks/soak.py [--requests 50000] [--clients 32] [--leave 0.3] [--seed 1] [--json]

Two fake engines; half of the requests are streamed, bodies have up to 200 kB, answers up to 30 tokens. A client that
leaves does so within its body, at once after it, or somewhere in the answer, half of them by a reset of the connection.

Exit code 1 if open files, threads, tasks, processes, leases, waiting requests or reserved memory are more than before,
memory by more than 30 MB, a request without its line in the log, or an answer that is not what was asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from process.test_soak import Plan, Report, soak


def table(report: Report) -> dict[str, tuple[Any, Any]]:
    """Return what was held before and after."""
    before, after = asdict(report.before), asdict(report.after)
    return {name.replace("_", " "): (before[name], after[name]) for name in before}


def figures(report: Report) -> dict[str, Any]:
    """Return what is printed below the table."""
    return {
        "requests": sum(report.endings.values()),
        **dict(sorted(report.endings.items())),
        "log lines": report.lines,
        "peak memory mb": round(report.peak_mb),
        "loop held ms": report.held_ms,
        "seconds": round(report.wall_s, 1),
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--leave", type=float, default=0.3, help="share of the clients that leave early")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    plan = Plan(**options, warm_up=min(2000, options["requests"]))
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), plan)
    if as_json:
        sys.stdout.write(json.dumps({"held": table(report), **figures(report)}) + "\n")
    else:
        sys.stdout.write(f"{'':<18}{'before':>10}{'after':>10}\n")
        sys.stdout.writelines(f"{name:<18}{was:>10}{now:>10}\n" for name, (was, now) in table(report).items())
        sys.stdout.writelines(f"{name:<18}{value:>10}\n" for name, value in figures(report).items())
    problems = report.problems(plan)
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
