"""What a page of the dashboard holds after the events that it was sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

SECTIONS = ("server", "gpus", "models", "totals")
WHOLE = ("queue", "live")


def read_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the data of server-sent events, each of which must be named and numbered as its data says."""
    name = None
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = json.loads(line.removeprefix("data: "))
            assert data["type"] == name
            yield data


@dataclass
class Screen:
    """Takes events as docs/dashboard-api.md says."""

    shown: dict[str, Any] = field(default_factory=dict)
    finished: list[Any] = field(default_factory=list)
    timeline: list[Any] = field(default_factory=list)
    skipped: int = 0
    snapshots: int = 0

    def take(self, event: dict[str, Any]) -> None:
        """Show what an event says."""
        kind, rest = event["type"], {key: value for key, value in event.items() if key not in {"type", "ts"}}
        if kind == "snapshot":
            self.finished, self.timeline = list(rest.pop("history")), list(rest.pop("timeline"))
            self.shown, self.snapshots = rest, self.snapshots + 1
        elif kind in {"finished", "timeline"}:
            getattr(self, kind).extend(rest["data"])
            self.skipped += rest["skipped"]
        else:
            self.shown[kind] = rest["data"] if list(rest) == ["data"] else rest
