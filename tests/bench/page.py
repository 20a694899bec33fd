"""The generated part of docs/performance.md, and its picture."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.figures import NGINX, Verdict
from bench.results import DIRECT, Results
from bench.rolecalls import FULL_NAME, NAMES
from bench.servers import ROOT
from bench.tables import Table, checks_table, figures_table, markdown, tables

PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.svg"
PICTURE_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
BEGIN = "<!-- from here on written by make bench -->"
END = "<!-- until here -->"
_NO_PICTURE = (
    "the picture stays as it was: `make bench` makes .venv-bench/ with matplotlib where a package index is there"
)


def write(results: Results, found: Sequence[Verdict]) -> str | None:
    """Write page and picture; return what could not be done."""
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), generated(results, found)), encoding="utf-8")
    if not PICTURE_PYTHON.exists():
        return _NO_PICTURE
    argv = [str(PICTURE_PYTHON), str(Path(__file__).with_name("picture.py")), str(PICTURE)]
    done = subprocess.run(argv, input=json.dumps(panels(results)), capture_output=True, text=True, check=False)
    return f"no picture: {done.stderr.strip()[-500:]}" if done.returncode else None


def replaced(page: str, part: str) -> str:
    """Return the page with another generated part."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def generated(results: Results, found: Sequence[Verdict]) -> str:
    """Return what a run has found."""
    about = results.machine
    ran = f"{about['date']}, {about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, Python {about['python']}."
    peers = ", ".join(name for name in results.targets() if name not in (*NAMES, DIRECT))
    parts = [
        f"{ran} Beside rolecall: {peers}. {results.dropped} loud rounds were dropped.",
        markdown(figures_table(found)),
        "![What a request, a chunk, a delay and a picture cost, by server](performance.svg)",
        "The scale is logarithmic. A dashed line is what rolecall is to reach.",
        *(_section(table) for table in tables(results)),
    ]
    if results.checks:
        parts.append(_section(checks_table(results)))
    return "\n\n".join([*parts, *(f"- {line.splitlines()[0]}" for line in (*results.missing, *results.failed))])


def _section(table: Table) -> str:
    name, colon, about = table.heading.partition(":")
    return f"### {name.capitalize() if not colon else f'`{name}`:{about}'}\n\n{markdown(table)}"


def panels(results: Results) -> list[dict[str, Any]]:
    """Return what the picture shows: in each panel a bar for each server, and the limit that is set for ours."""
    cost, chunk = "cpu_ms_per_request", "cpu_ms_per_chunk"
    chosen = [
        _panel(results, "CPU per request, 32 connections", "ms", "ns32", cost, factor=6),
        _panel(results, "CPU per chunk, 128 streams", "ms", "stsat", chunk, factor=1.5),
        _panel(results, "time to the first token added, 32 streams", "ms", "st32", "+ttft_p50", factor=4),
        _panel(results, "time added to a body of 10 MB", "ms", "up1", "+lat_p50", limit=12),
    ]
    return [panel for panel in chosen if panel["bars"]]


def _panel(
    results: Results,
    title: str,
    unit: str,
    scenario: str,
    figure: str,
    *,
    factor: float = 0,
    limit: float | None = None,
) -> dict[str, Any]:
    is_added = figure.startswith("+")
    name, scale = figure.lstrip("+"), 1e-3 if is_added else 1.0
    take = results.added if is_added else results.median
    values = {target: take(scenario, target, name) for target in results.targets() if target != DIRECT}
    bars = [
        {"name": target, "value": value * scale, "is_ours": target.startswith(FULL_NAME)}
        for target, value in values.items()
        if value is not None and value > 0
    ]
    nginx = values.get(NGINX)
    limit = nginx * scale * factor if factor and nginx is not None else limit
    return {"title": title, "unit": unit, "limit": limit, "bars": bars}
