"""``rolecall reload``: a running rolecall reads its configuration again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from rolecall.cli.client import Url, connect
from rolecall.cli.common import AsJson, ConfigDir, print_json
from rolecall.core.wording import counted


def command(*, url: Url = None, as_json: AsJson = False, config_dir: ConfigDir = None) -> None:
    """Have a running rolecall read registry, experiments and settings again.

    It says which settings are in force now and which wait for a restart. What is wrong is refused with exit code 1, and
    the last good configuration stays in force.
    """
    with connect(url, config_dir) as client:
        found = client.reload()
    if as_json:
        print_json(found)
    else:
        for line in _lines(found):
            typer.echo(line)


def _lines(found: dict[str, Any]) -> Iterator[str]:
    entries, settings = found["entries"], found["settings"]
    yield f"registry: {counted(entries, 'entry', 'entries')}, {counted(len(found['warnings']), 'warning')}"
    yield from (f"  {warning}" for warning in found["warnings"])
    if settings["applied"]:
        yield f"settings in force now: {', '.join(settings['applied'])}"
    if settings["restart"]:
        yield f"settings that need a restart: {', '.join(settings['restart'])}"
    if not (settings["applied"] or settings["restart"]):
        yield "settings: unchanged"
