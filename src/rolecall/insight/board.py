"""What all watchers of the dashboard are shown: its sections as they were encoded last, and what each has yet to get.

Values only. Everything is encoded once, however many watch. A watcher holds nothing but a number: that of the last
round it was given. One that has missed more rounds than are kept is given a snapshot of the newest in their place, so
nobody who does not read costs memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from rolecall.gateway.recorder import member

KEPT_ROUNDS = 20
"""Five seconds of a busy server."""

_RETRY = b"retry: 1000\n\n"

Values = Mapping[str, Any]


def event(kind: str, number: int, ts: str, body: bytes) -> bytes:
    """Return a server-sent event; ``body`` is a JSON object, to which ``type`` and ``ts`` are added."""
    rest = b"," + body[1:] if len(body) > len(b"{}") else b"}"
    return b'event: %b\nid: %d\ndata: {"type":"%b","ts":"%b"%b\n\n' % (
        *(kind.encode(), number),
        *(kind.encode(), ts.encode(), rest),
    )


@dataclass(slots=True)
class _Section:
    body: bytes
    number: int
    told: bytes


@dataclass(frozen=True, slots=True)
class Tail:
    """What is new of a list that only grows: the newest values, oldest first, and how many older ones were left out."""

    kind: str
    values: list[Any]
    skipped: int = 0


@dataclass(slots=True)
class Board:
    """The sections by name; ``number`` counts the rounds in which anything changed."""

    number: int = 0
    ts: str = ""
    _sections: dict[str, _Section] = field(default_factory=dict)
    _rounds: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=KEPT_ROUNDS))
    """Of the last rounds that which does not replace what was told before."""
    _latest: bytes = b""
    """All of the last round."""
    _lists: dict[str, list[Any]] = field(default_factory=dict)
    _snapshot: tuple[int, bytes] = (-1, b"")

    def update(
        self, ts: str, sections: Mapping[str, Values], tails: Iterable[Tail], lists: Mapping[str, list[Any]]
    ) -> bool:
        """Take in how everything stands; whether there is anything to tell.

        ``sections`` are told where they differ from before, ``tails`` where they hold anything. ``lists`` are what a
        snapshot shows of the lists whose ends the tails are.
        """
        number = self.number + 1
        changed = self._changed(number, ts, sections)
        grown = b"".join(
            event(tail.kind, number, ts, member({"skipped": tail.skipped, "data": tail.values}))
            for tail in tails
            if tail.values or tail.skipped
        )
        if not changed and not grown:
            return False
        self.number, self.ts = number, ts
        self._latest = changed + grown
        self._rounds.append((number, grown))
        self._lists = dict(lists)
        return True

    def _changed(self, number: int, ts: str, sections: Mapping[str, Values]) -> bytes:
        told = []
        for name, values in sections.items():
            body = member(values)
            known = self._sections.get(name)
            if known is None or known.body != body:
                self._sections[name] = _Section(body, number, event(name, number, ts, body))
                told.append(self._sections[name].told)
        return b"".join(told)

    def after(self, number: int | None) -> bytes:
        """Return what a watcher is to be given who has had everything up to a round; None has had nothing."""
        if number == self.number:
            return b""
        if number is None:
            return _RETRY + self.snapshot()
        if number == self.number - 1:
            return self._latest
        if not self._rounds or self._rounds[0][0] > number + 1:
            return self.snapshot()
        changed = (section.told for section in self._sections.values() if section.number > number)
        return b"".join((*changed, *(grown for at, grown in self._rounds if at > number)))

    def snapshot(self) -> bytes:
        """Return the event that has everything."""
        if self._snapshot[0] != self.number:
            whole = {name: _fragment(section.body) for name, section in self._sections.items()} | {
                name: orjson.Fragment(member(values)) for name, values in self._lists.items()
            }
            self._snapshot = self.number, event("snapshot", self.number, self.ts, member(whole))
        return self._snapshot[1]


def _fragment(body: bytes) -> orjson.Fragment:
    """Return a section as it stands in the snapshot: its ``data`` alone where it has nothing else."""
    start = b'{"data":'
    return orjson.Fragment(body[len(start) : -1] if body.startswith(start) else body)
