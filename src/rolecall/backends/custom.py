"""Entries of backends that this version does not drive: they load, and run if they bring their own command."""

from __future__ import annotations

import sys
from pathlib import Path

from rolecall.backends.base import (
    Launch,
    Places,
    Reducible,
    Spread,
    Upstream,
    command_launch,
    command_problem,
    loopback,
    model_path,
)
from rolecall.core.models import ModelEntry
from rolecall.core.vram import Placement


class CustomCommand:
    """A server of any kind that speaks OpenAI's API and ``GET /health``, started by the entry's ``command``."""

    managed = True
    has_port = True
    takes_share = False
    ports: range | None = None
    reducible = Reducible()
    keeps_roles = False

    def __init__(self, places: Places, name: str) -> None:
        self.name = name
        self._places = places

    def unavailable(self, entry: ModelEntry) -> str | None:
        """Return that the backend is not driven, unless there is a command."""
        if entry.backend_config.command:
            return command_problem(entry)
        return (
            f"the backend {self.name!r} is not supported by this version, and the entry has no backend_config.command"
        )

    def files(self, entry: ModelEntry) -> tuple[Path, ...]:
        """Return the model path where one is given."""
        path = model_path(entry, self._places)
        return () if path is None else (path,)

    def parallel(self, entry: ModelEntry) -> int:
        """Return ``max_parallel``, else one: nothing is known of the server."""
        return entry.max_parallel or 1

    def served_id(self, entry: ModelEntry) -> str:
        """Return what the entry says, else its name."""
        return entry.served_model_id or entry.name

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> Launch:
        """Return the entry's own command with its placeholders filled in."""
        del placement
        return command_launch(entry, self._places, port, sys.executable)

    def spread(self, entry: ModelEntry) -> Spread:
        """Return one GPU: nothing is known of the server."""
        del entry
        return Spread()

    def build(self) -> str:
        """Return the backend's name: nothing is known of its builds."""
        return self.name

    def upstream(self, entry: ModelEntry, port: int) -> Upstream:
        """Return the engine's address on loopback."""
        del entry
        return loopback(port)

    def lacks(self, entry: ModelEntry, endpoint: str) -> None:
        """Return None: nothing is known of the server, which says itself what it has not."""
        del entry, endpoint

    def shares_context(self, entry: ModelEntry) -> bool:
        """Return False."""
        del entry
        return False
