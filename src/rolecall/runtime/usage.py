"""What each API key has used, kept from one run to the next."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rolecall.core.keys import ApiKey
from rolecall.core.quota import NOTHING, Usage, admit, day_of, on_day_of, spend
from rolecall.runtime.kept_file import KeptFile
from rolecall.runtime.private_file import write_privately

log = logging.getLogger(__name__)

USAGE = "usage.json"
VERSION = 1
SAVE_EVERY_S = 2.0
_MOST_BYTES = 8 * 2**20


class UsageBook:
    """Counts requests and tokens of keys, on the event loop; a JSON file keeps them, which is this process' alone.

    It is written every `SAVE_EVERY_S` while something changes, and at the end: what ``kill -9`` loses is what was used
    in the last seconds. The counts belong to a key, not to its name: a new key of an old name has used nothing.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.file = KeptFile(path, "what API keys have used")
        self._clock = clock
        self._used = read_usage(path)
        self._is_dirty = False
        self._writing = threading.Lock()  # the last text is written while the thread of an earlier one still runs
        self._text_number = self._written_number = 0

    def begin(self, key: ApiKey) -> None:
        """Count a request; raises ``RateLimited`` if the key allows no more of them."""
        self._used[_id(key)] = admit(self._used.get(_id(key), NOTHING), key, self._clock())
        self._is_dirty = True

    def spend(self, key: ApiKey, tokens: int) -> None:
        """Add the tokens of an answer."""
        self._used[_id(key)] = spend(self._used.get(_id(key), NOTHING), tokens, self._clock())
        self._is_dirty = True

    async def write(self) -> None:
        """Write what has changed, without holding up the loop."""
        if self._is_dirty:
            await asyncio.to_thread(self._write, *self._text())

    def close(self) -> None:
        """Write what has changed, now; also what a ``write`` that was cancelled may not have written."""
        if self._is_dirty or self._written_number < self._text_number:
            self._write(*self._text())

    def _text(self) -> tuple[str, int]:
        """Return what the file is to hold, and how many of such texts there were."""
        now = self._clock()
        # Yesterday's are forgotten, unless their bucket is still filling.
        self._used = {id_: used for id_, used in self._used.items() if used.day >= day_of(now) or used.full_at > now}
        self._is_dirty = False  # what changes from here on is written the next time
        rows = {id_: used._asdict() for id_, used in self._used.items()}
        self._text_number += 1
        return json.dumps({"version": VERSION, "used": rows}) + "\n", self._text_number

    def _write(self, text: str, number: int) -> None:
        with self._writing:
            if number <= self._written_number:  # not over a later one
                return
            if self.file.written(lambda: write_privately(self.file.path, text)):
                self._written_number = number
            else:
                self._is_dirty = True


def _id(key: ApiKey) -> str:
    return key.sha256[:16]


def used_today(used: Mapping[str, Usage], key: ApiKey, now: float) -> Usage:
    """Return what a key has used today, of what `read_usage` returned."""
    return on_day_of(now, used.get(_id(key), NOTHING))


def read_usage(path: Path) -> dict[str, Usage]:
    """Return what was used by each key; nothing, with a warning, of a file or a row that makes no sense."""
    try:
        with path.open("rb") as file:
            return dict(_rows(json.loads(file.read(_MOST_BYTES))))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("what API keys have used cannot be read from %s, counting begins anew: %s", path, error)
        return {}


def _rows(data: Any) -> Iterator[tuple[str, Usage]]:
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']!r:.80}")
    for id_, used in data["used"].items():
        try:
            day, requests, tokens = (_count(used[name]) for name in ("day", "requests", "tokens"))
            yield str(id_), Usage(day, requests, tokens, _time(used["full_at"]))
        except (ValueError, KeyError, TypeError) as error:  # the other keys' limits stay
            log.warning("what the API key %.16s has used cannot be read, its counting begins anew: %r", id_, error)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.80} is no count")
    return value


def _time(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.80} is no time")
    return float(value)
