"""Measure rolecall beside other proxies, and check how it behaves when something goes wrong.

    make bench ARGS="--quick --only rolecall,nginx --scenarios ns32,stsat"

docs/performance.md has the rest. Exit code 1 if a figure was not reached or a check of rolecall failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

# As pytest has it (pythonpath in pyproject.toml); a script has only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from bench import rolecalls, servers
from bench.figures import Verdict, all_reached, verdicts
from bench.programs import Mock, build
from bench.results import Results, machine
from bench.rounds import ALONE, CORE, Measuring, Plan, Say
from bench.running import Running
from bench.scenarios import SCENARIOS
from bench.servers import Server
from bench.tables import Table, checks_table, figures_table, tables

EVERY = {
    "rolecall": rolecalls.full,
    "bare": rolecalls.bare,
    "nginx": servers.nginx,
    "haproxy": servers.haproxy,
    "litellm": servers.litellm,
    "llama-swap": servers.llama_swap,
}
"""The servers by the name that ``--only`` takes."""

WIDTH = 140
"""Of tables that go to a file."""


def main() -> int:
    """Measure, show, and say whether all was reached."""
    options = _options()
    out = Console(stderr=options.json, width=None if sys.stdout.isatty() else WIDTH)
    results = Results(machine=machine())
    plan = _plan(options, results)
    with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as folder, _progress() as say:
        programs = build(Path(folder))
        Measuring(plan, programs, Path(folder), results, say).all(_during)
    found = verdicts(results)
    _show(out, results, found)
    if options.out:
        options.out.write_text(results.to_json())
    if options.json:
        told = {"figures": [asdict(verdict) for verdict in found], **json.loads(results.to_json())}
        sys.stdout.write(json.dumps(told) + "\n")
    return 0 if all_reached(found) else 1


def _during(running: Sequence[Running], mock: Mock) -> None:
    pass


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of half a second: does it work at all?")
    parser.add_argument("--only", type=_words, default=list(EVERY), help=f"some of {','.join(EVERY)}")
    parser.add_argument(
        "--scenarios",
        type=_words,
        default=[*SCENARIOS, CORE, ALONE],
        help=f"some of {','.join([*SCENARIOS, CORE, ALONE])}",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.2, help="of a load that is not counted in requests")
    parser.add_argument("--json", action="store_true", help="results on stdout, everything else on stderr")
    parser.add_argument("--out", type=Path, help="a file for the results")
    options = parser.parse_args()
    for name, known in (("only", EVERY), ("scenarios", [*SCENARIOS, CORE, ALONE])):
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    return options


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _plan(options: argparse.Namespace, results: Results) -> Plan:
    chosen: list[Server] = []
    for make in (EVERY[name] for name in EVERY if name in options.only):
        server = make()
        if server.missing is None:
            chosen.append(server)
        else:
            results.missing.append(server.missing)
    if options.quick:
        return Plan(chosen, options.scenarios, rounds=1, extra=0, seconds=0.5, starts=1)
    return Plan(chosen, options.scenarios, rounds=options.rounds, seconds=options.seconds)


@contextlib.contextmanager
def _progress() -> Iterator[Say]:
    columns = (TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("building", total=None)
        yield lambda words: progress.update(task, description=words)


def _show(out: Console, results: Results, found: Sequence[Verdict]) -> None:
    for table in (*tables(results), checks_table(results), figures_table(found)):
        if table.rows:
            _print(out, table)
    for line in (*results.missing, *results.failed):
        out.print(line, style="yellow", highlight=False, markup=False)


def _print(out: Console, table: Table) -> None:
    shown = RichTable(title=table.heading, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(table.columns):
        shown.add_column(name, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*row)
    out.print(shown)
    out.print()


if __name__ == "__main__":
    sys.exit(main())
