"""What became of models, in words: loads, ends, who made room for whom, and how long each took.

Values only: events and effects of the scheduler in, entries out. The last ones are kept, whoever looks or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from rolecall.core.events import Adopted, BecameReady, Effect, Event, Exited, Pinned, Sleep, Start, Stop, Wake
from rolecall.gateway.recorder import timestamp

MOST_ENTRIES = 500
"""How many are kept."""

TELLING = (Adopted, BecameReady, Exited, Pinned)
"""Events that have an entry; others may have effects that do."""
_LONGEST = 1000

Phase = Literal["load", "wake", "ready", "asleep"]

Entry = dict[str, Any]
"""``ts``, ``model``, ``event``, ``seconds``, ``reason`` and ``cause``, as docs/dashboard-api.md tells of them."""


@dataclass(slots=True)
class Timeline:
    """Keeps the last entries.

    ``count`` is how many there ever were, ``loads`` those that say ``ready`` or ``awake``, ``evictions`` those to make
    room.
    """

    count: int = 0
    loads: int = 0
    evictions: int = 0
    _entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=MOST_ENTRIES))
    _phases: dict[str, tuple[Phase, float]] = field(default_factory=dict)
    """What each model does, and since when (s); of one that is to end, what it did until then."""
    _ends: dict[str, float] = field(default_factory=dict)
    """Since when (s) models are to end."""

    def hear(self, event: Event, effects: Iterable[Effect], now: float, at: float) -> None:
        """Take in an event and what was decided after it; ``now`` (s) is monotonic, ``at`` is since the epoch."""
        if isinstance(event, TELLING):
            self._happened(event, now, at)
        for effect in effects:
            if isinstance(effect, Start | Stop | Sleep | Wake):
                self._decided(effect, now, at)

    def newest(self, most: int) -> list[Entry]:
        """Return the last entries, oldest first."""
        return list(islice(reversed(self._entries), most))[::-1]

    def _happened(self, event: Adopted | BecameReady | Exited | Pinned, now: float, at: float) -> None:
        model = event.model
        phase, since = self._phases.get(model, (None, now))
        match event:
            case Pinned(pinned=pinned):
                self._tell(at, model, "pinned" if pinned else "unpinned", None, "by hand")
            case Adopted():
                self._phases[model] = "ready", now
                self._tell(at, model, "ready", None, "it ran already")
            case BecameReady(load_s=load_s):
                if phase in {"load", "wake"} and model not in self._ends:
                    self._phases[model] = "ready", now
                    self.loads += 1
                    self._tell(at, model, "ready" if phase == "load" else "awake", load_s, None)
            case Exited(error=error, by_itself=by_itself):
                self._phases.pop(model, None)
                asked_at = self._ends.pop(model, None)
                if phase is None or (asked_at is not None and not by_itself):
                    self._tell(at, model, "unloaded", None if asked_at is None else now - asked_at, None)
                else:
                    self._tell(at, model, "failed" if phase in {"load", "wake"} else "crashed", now - since, error)

    def _decided(self, effect: Start | Stop | Sleep | Wake, now: float, at: float) -> None:
        model = effect.model
        _, since = self._phases.get(model, (None, now))
        match effect:
            case Start(words=words) | Wake(words=words):
                is_start = isinstance(effect, Start)
                self._phases[model] = "load" if is_start else "wake", now
                self._tell(at, model, "load" if is_start else "wake", None, words)
            case Stop(why=why, words=words) | Sleep(why=why, words=words):
                is_stop = isinstance(effect, Stop)
                if is_stop:
                    self._ends[model] = now
                else:
                    self._phases[model] = "asleep", now
                self.evictions += why == "room"
                name = "sleep" if not is_stop else "evicted" if why == "room" else "unload"
                self._tell(at, model, name, now - since, words, why)

    def _tell(  # noqa: PLR0913, PLR0917 - the fields of an entry
        self, at: float, model: str, event: str, seconds: float | None, reason: str | None, cause: str | None = None
    ) -> None:
        self.count += 1
        self._entries.append(
            {
                "ts": timestamp(at),
                "model": model,
                "event": event,
                "seconds": None if seconds is None else round(seconds, 3),
                "reason": reason and reason[:_LONGEST],
                "cause": cause,
            }
        )
