"""What loads have taught, kept on disk from one run to the next."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rolecall.core.learning import (
    NOTHING,
    WINDOW,
    FootprintKey,
    Learnt,
    footprint_mb,
    load_s,
    observe,
    observe_load,
    observe_wake,
    ran_out,
    wake_s,
)
from rolecall.runtime.kept_file import KeptFile
from rolecall.runtime.registry import write_atomically

log = logging.getLogger(__name__)

VERSION = 1
MOST_KEYS = 1000
"""Those that were not used for longest go first."""
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class LearntRow:
    """One line of a table: a key, what would be reserved (MB), how long a start and a waking take (s), and counts."""

    key: FootprintKey
    footprint_mb: int | None
    load_s: float | None
    wake_s: float | None
    loads: int
    ran_out_with_mb: int | None


class LearntStore:
    """Footprints and load times by key, in one JSON file. It is written by `save` alone; the file is this process'.

    One thread observes; others may read and `save` meanwhile, one of them at a time: what is known is never changed,
    but replaced as a whole. A file that cannot be understood is moved aside with a warning.
    """

    def __init__(self, path: Path) -> None:
        self.file = KeptFile(path, "what was learnt of the models' memory")
        self._learnt = _load(path)
        self.is_dirty = False

    def get(self, key: FootprintKey) -> Learnt | None:
        """Return what is known of exactly this key."""
        return self._learnt.get(key)

    def load_s(self, key: FootprintKey) -> float | None:
        """Return how long a start takes; of another context, slots or build on the same device if need be."""
        return self._time(key, load_s)

    def wake_s(self, key: FootprintKey) -> float | None:
        """Return how long waking takes; of another context, slots or build on the same device if need be."""
        return self._time(key, wake_s)

    def observe_footprint(self, key: FootprintKey, mb: int, *, again: bool = False) -> None:
        """Add what a load holds; ``again`` is a later look at the same load."""
        self._change(key, lambda learnt: observe(learnt, mb=mb, again=again))

    def observe_load(self, key: FootprintKey, seconds: float) -> None:
        """Add how long a start took."""
        self._change(key, lambda learnt: observe_load(learnt, seconds))

    def observe_wake(self, key: FootprintKey, seconds: float) -> None:
        """Add how long a waking took."""
        self._change(key, lambda learnt: observe_wake(learnt, seconds))

    def ran_out(self, key: FootprintKey, reserved_mb: int) -> None:
        """Note that a start with this reservation ran out of memory."""
        self._change(key, lambda learnt: ran_out(learnt, reserved_mb))

    def rows(self) -> list[LearntRow]:
        """Return everything for a table, the last used first."""
        return [
            LearntRow(key, footprint_mb(one), load_s(one), wake_s(one), one.count, one.at_least_mb)
            for key, one in reversed(self._learnt.items())
        ]

    def save(self) -> None:
        """Write what has changed; what a disk did not take is tried again with the next call."""
        if not self.is_dirty:
            return
        self.is_dirty = False  # before the look at what is known: what is observed from here on sets it again
        entries = [{"key": asdict(key), "learnt": asdict(one)} for key, one in self._learnt.items()]
        text = json.dumps({"version": VERSION, "entries": entries}, indent=1) + "\n"
        if not self.file.written(lambda: write_atomically(self.file.path, text)):
            self.is_dirty = True

    def _time(self, key: FootprintKey, seconds: Callable[[Learnt], float | None]) -> float | None:
        known = self._learnt
        kin = (other for other in reversed(known) if (other.model, other.device) == (key.model, key.device))
        times = (seconds(known[each]) for each in (key, *kin) if each in known)
        return next((time for time in times if time is not None), None)

    def _change(self, key: FootprintKey, change: Callable[[Learnt], Learnt]) -> None:
        known = dict(self._learnt)
        known[key] = change(known.pop(key, NOTHING))
        while len(known) > MOST_KEYS:
            del known[next(iter(known))]
        self._learnt = known
        self.is_dirty = True


def _load(path: Path) -> dict[FootprintKey, Learnt]:
    try:
        with path.open("rb") as file:
            return dict(_entries(file.read(MOST_BYTES + 1)))
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("what was learnt of the models' memory cannot be read from %s: %s", path, error)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _move_aside(path, error)
    return {}


def _entries(text: bytes) -> Iterable[tuple[FootprintKey, Learnt]]:
    if len(text) > MOST_BYTES:
        raise ValueError("it is too large")
    data = json.loads(text)
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']!r:.80}, known is {VERSION}")
    for entry in data["entries"][-MOST_KEYS:]:
        yield _key(entry["key"]), _learnt(entry["learnt"])


def _key(data: dict[str, Any]) -> FootprintKey:
    key = FootprintKey(**data)
    for field in fields(key):
        if type(getattr(key, field.name)).__name__ != field.type:
            raise ValueError(f"{field.name} is {getattr(key, field.name)!r:.80}")
    return key


def _learnt(data: dict[str, Any]) -> Learnt:
    at_least = data["at_least_mb"]
    return Learnt(
        held_mb=tuple(map(_whole, data["held_mb"]))[-WINDOW:],
        load_s=tuple(map(_seconds, data["load_s"]))[-WINDOW:],
        wake_s=tuple(map(_seconds, data["wake_s"]))[-WINDOW:],
        count=_whole(data["count"]),
        at_least_mb=None if at_least is None else _whole(at_least),
        since_out_of_memory=_whole(data["since_out_of_memory"]),
    )


def _whole(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**40:
        raise ValueError(f"{value!r:.80} is no number of MB or loads")
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r:.80} is no number of seconds")
    return float(value)


def _move_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(f"{path.name}.broken")
    log.warning("what was learnt of the models' memory makes no sense (%s); it is kept as %s", error, aside)
    with suppress(OSError):
        path.replace(aside)
