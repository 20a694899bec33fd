"""Measure rolecall beside other proxies, and check how it behaves when something goes wrong.

    make bench ARGS="--quick --only rolecall,nginx --scenarios ns32,stsat"

docs/performance.md has the rest, and what a whole run finds is written into it. Exit code 1 if a figure was not
reached, a check of rolecall failed, or something could not be measured; 2 for options that make no sense.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

# As pytest has it (pythonpath in pyproject.toml); a script has only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import page, rolecalls, servers
from bench.figures import all_reached, only_behaviour, verdicts
from bench.programs import build
from bench.results import Results, machine
from bench.rounds import EVERYTHING, Measuring, Plan
from bench.servers import Server
from bench.terminal import console, progress, show
from c_compiler import NoCompiler

SERVERS = {
    "rolecall": rolecalls.full,
    "cutting": rolecalls.cutting,
    "bare": rolecalls.bare,
    "nginx": servers.nginx,
    "haproxy": servers.haproxy,
    "litellm": servers.litellm,
    "llama-swap": servers.llama_swap,
}
"""By the name that ``--only`` takes."""

_MOST_SECONDS = 60.0
"""A load that takes much longer is given up (``sampling``)."""
_QUICK = "--quick: half a second says nothing of a figure, so only the behaviour is judged"


def main() -> int:
    """Measure, show, write it down, and say whether all was reached."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are ended on the way out
    results = options.read or _measured(options)
    found = only_behaviour(verdicts(results)) if options.quick else verdicts(results)
    out = console(to_stderr=options.json)
    show(out, results, found)
    if options.quick:
        out.print(_QUICK, markup=False)
    if options.out:
        options.out.write_text(results.to_json())
    if options.json:
        told = {"figures": [asdict(verdict) for verdict in found], **json.loads(results.to_json())}
        sys.stdout.write(json.dumps(told) + "\n")
    if _is_whole(options) and (problem := page.write(results, found)):
        out.print(problem, style="yellow", markup=False)
    return 0 if all_reached(found) and not results.failed else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of half a second: does it work at all?")
    parser.add_argument("--only", type=_words, default=list(SERVERS), help=f"some of {','.join(SERVERS)}")
    parser.add_argument("--scenarios", type=_words, default=list(EVERYTHING), help=f"some of {','.join(EVERYTHING)}")
    parser.add_argument("--rounds", type=_count, default=3)
    parser.add_argument("--seconds", type=_seconds, default=1.0, help="of a load that is not counted in requests")
    parser.add_argument("--json", action="store_true", help="results on stdout, everything else on stderr")
    parser.add_argument("--out", type=_place, metavar="FILE", help="keep the results")
    parser.add_argument("--read", type=_kept, metavar="FILE", help="measure nothing, take results that were kept")
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md as it is")
    options = parser.parse_args()
    for name, known in (("only", SERVERS), ("scenarios", EVERYTHING)):
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    return options


def _words(text: str) -> list[str]:
    words = [word for word in text.split(",") if word]
    if not words:
        raise argparse.ArgumentTypeError("names nothing")
    return words


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a whole number, at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and 0 < seconds <= _MOST_SECONDS):
        raise argparse.ArgumentTypeError(f"more than 0, at most {_MOST_SECONDS:g}")
    return seconds


def _place(text: str) -> Path:
    """Return where results can be kept: who measures for minutes is not to learn then that they cannot."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


def _kept(text: str) -> Results:
    try:
        return Results.from_json(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, LookupError, AttributeError):
        raise argparse.ArgumentTypeError(f"{text} holds no results that --out has kept") from None


def _is_whole(options: argparse.Namespace) -> bool:
    """Whether the run may stand for all there is to say."""
    chosen = {"rolecall", "bare", "nginx"} <= set(options.only) and set(options.scenarios) == set(EVERYTHING)
    return chosen and not options.quick and not options.no_page


def _measured(options: argparse.Namespace) -> Results:
    chosen = [make() for name, make in SERVERS.items() if name in options.only]
    missing = [server.missing for server in chosen if server.missing is not None]
    results = Results(machine=machine(), missing=missing)
    plan = _plan(options, [server for server in chosen if server.missing is None])
    with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as folder, progress() as say:
        try:
            programs = build(Path(folder))
        except NoCompiler as error:
            sys.exit(str(error))
        Measuring(plan, programs, Path(folder), results, say).all()
    return results


def _plan(options: argparse.Namespace, chosen: list[Server]) -> Plan:
    if options.quick:
        return Plan(chosen, options.scenarios, rounds=1, extra=0, seconds=0.5, starts=1)
    return Plan(chosen, options.scenarios, rounds=options.rounds, seconds=options.seconds)


if __name__ == "__main__":
    sys.exit(main())
