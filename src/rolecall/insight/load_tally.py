"""Counts of what becomes of models, for `/metrics`: loads, swaps, who goes and why, failures, time spent deciding.

Values only: events and effects of the scheduler in, numbers out. It keeps for each model what it is doing, so that the
end of an engine can be told to be a failed start, a crash, or what somebody asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from rolecall.core.events import Adopted, BecameReady, Effect, Event, Exited, Sleep, Start, Stop, Wake
from rolecall.insight.tally import OTHER, Histogram

LOAD_S = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
DECISION_S = (0.00001, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05)

Phase = Literal["start", "wake", "ready"]


@dataclass(slots=True)
class LoadTally:
    """Counts loads and ends of engines. ``loads`` are by model and kind (start, wake), times in seconds.

    ``failures`` are by model and what failed (start, wake, crash); ``departures`` by model, how it went (stop, sleep)
    and why.
    """

    loads: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    swaps: Counter[tuple[str, ...]] = field(default_factory=Counter)
    failures: Counter[tuple[str, ...]] = field(default_factory=Counter)
    departures: Counter[tuple[str, ...]] = field(default_factory=Counter)
    decisions: Histogram = field(default_factory=lambda: Histogram(DECISION_S))
    _phases: dict[str, Phase] = field(default_factory=dict)
    """What each model does; of one that is to stop, what it did until then."""
    _stopping: set[str] = field(default_factory=set)

    def hear(self, event: Event, effects: Iterable[Effect], decision_s: float) -> None:
        """Take in an event, what was decided after it, and how long that took."""
        self.decisions.add(decision_s)
        match event:
            case BecameReady(model, load_s):
                self._ready(model, load_s)
            case Adopted(model):
                self._phases[model] = "ready"
            case Exited(model, by_itself=by_itself):
                self._exited(model, by_itself=by_itself)
            case _:
                pass
        for effect in effects:
            self._decided(effect)

    def _ready(self, model: str, load_s: float | None) -> None:
        phase = self._phases.get(model)
        if phase in {"start", "wake"} and model not in self._stopping:
            self._phases[model] = "ready"
            if load_s is not None:  # an engine that others run is not loaded
                self.loads.setdefault((model, str(phase)), Histogram(LOAD_S)).add(load_s)

    def _exited(self, model: str, *, by_itself: bool) -> None:
        phase = self._phases.pop(model, None)
        was_asked = model in self._stopping and not by_itself
        self._stopping.discard(model)
        if phase is not None and not was_asked:
            self.failures[model, "crash" if phase == "ready" else phase] += 1

    def _decided(self, effect: Effect) -> None:
        match effect:
            case Start(model) | Wake(model):
                phase: Phase = "start" if isinstance(effect, Start) else "wake"
                self._phases[model] = phase
                for kind in (phase, "crash"):  # a counter has to be seen at 0 before it can be seen to grow
                    self.failures[model, kind] += 0
                self.swaps[model,] += effect.is_swap
            case Stop(model, why):
                self._stopping.add(model)
                self.departures[model, "stop", why] += 1
            case Sleep(model, _, why):
                self.departures[model, "sleep", why] += 1
            case _:
                pass

    def forget(self, models: Collection[str], most: int) -> None:
        """Count models that are none of these together where there are more than ``most`` series; sums stay."""
        if len(self.loads) + len(self.swaps) + len(self.failures) + len(self.departures) <= most:
            return
        known = {*models, OTHER}
        for counts in (self.swaps, self.failures, self.departures):
            for key in [key for key in counts if key[0] not in known]:
                counts[(OTHER, *key[1:])] += counts.pop(key)
        for name, kind in [key for key in self.loads if key[0] not in known]:
            self.loads.setdefault((OTHER, kind), Histogram(LOAD_S)).merge(self.loads.pop((name, kind)))
