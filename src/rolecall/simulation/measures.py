"""What a simulation is judged by."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waits:
    """How long requests waited from their arrival until they were granted (s)."""

    served: int
    p50_s: float
    p95_s: float
    max_s: float
    mean_s: float


@dataclass(frozen=True, slots=True)
class Measures:
    """One policy's figures. Times in s.

    ``waits`` has the waits for each model or role that was asked for. ``longest_overtaken_s`` is the longest time from
    the first to the last of the later requests that passed a waiting one on a model that was in its way: one that was
    no longer loaded when it was served itself. ``swaps`` counts the engines that were stopped or put to sleep
    while requests waited. ``idle_vram_share`` is the memory held by models that were loaded, or asleep, and answered
    nothing (MB·s), over the capacity of all GPUs (MB·s); a model that is loading is not idle. ``vain_loads`` ended
    without a single request.
    """

    requests: int
    served: int
    errors: int
    loads: int
    vain_loads: int
    sleeps: int
    wakes: int
    swaps: int
    total_s: float
    throughput_per_s: float
    wait: Waits
    waits: dict[str, Waits]
    longest_overtaken_s: float
    idle_vram_share: float


class Book:
    """Takes notes while a simulation runs."""

    def __init__(self, capacity_mb: int) -> None:
        self.loads = self.vain_loads = self.sleeps = self.wakes = self.swaps = self.errors = self.ended = 0
        self._capacity_mb = capacity_mb
        self._waits: dict[str, list[float]] = {}
        self._wanted: dict[int, str] = {}
        self._arrived: dict[int, float] = {}
        self._overtaken: dict[int, dict[str, tuple[float, float]]] = {}
        self._longest_overtaken_s = 0.0
        self._idle: dict[str, int] = {}
        self._idle_mb = 0
        self._idle_mb_s = 0.0
        self._idle_at = 0.0
        self._ended_s = 0.0

    def arrive(self, waiter: int, wanted: str, now: float) -> None:
        """Note a request; numbers rise with the order of arrival."""
        self._arrived[waiter] = now
        self._wanted[waiter] = wanted

    def grant(self, waiter: int, model: str, loaded: Collection[str], now: float) -> None:
        """Note that a request was let through to a model, and who was overtaken by it; ``loaded`` are all models."""
        arrived = self._arrived.pop(waiter)
        self._waits.setdefault(self._wanted.pop(waiter), []).append(now - arrived)
        self._end_overtaking(waiter, loaded)
        for older, since in self._arrived.items():
            if older > waiter:
                break
            if since < arrived:
                first, _ = self._overtaken.setdefault(older, {}).get(model, (now, now))
                self._overtaken[older][model] = first, now

    def reject(self, waiter: int, now: float) -> None:
        """Note that a request got an error."""
        self.errors += 1
        self.answered(now)
        self._end_overtaking(waiter, ())
        del self._arrived[waiter]
        del self._wanted[waiter]

    def answered(self, now: float) -> None:
        """Note the end of an answer."""
        self.ended += 1
        self._ended_s = now

    def hold(self, model: str, idle_mb: int, now: float) -> None:
        """Note how much memory a model holds for nothing from now on."""
        self._idle_mb_s += self._idle_mb * (now - self._idle_at)
        self._idle_mb += idle_mb - self._idle.get(model, 0)
        self._idle[model], self._idle_at = idle_mb, now

    def close(self, requests: int) -> Measures:
        """Return the figures; the simulation is over with the last answer."""
        self._idle_mb_s += self._idle_mb * (self._ended_s - self._idle_at)
        wait = _waits([seconds for waits in self._waits.values() for seconds in waits])
        return Measures(
            requests=requests,
            served=wait.served,
            errors=self.errors,
            loads=self.loads,
            vain_loads=self.vain_loads,
            sleeps=self.sleeps,
            wakes=self.wakes,
            swaps=self.swaps,
            total_s=self._ended_s,
            throughput_per_s=wait.served / self._ended_s if self._ended_s else 0.0,
            wait=wait,
            waits={wanted: _waits(waits) for wanted, waits in sorted(self._waits.items())},
            longest_overtaken_s=self._longest_overtaken_s,
            idle_vram_share=self._idle_mb_s / (self._capacity_mb * self._ended_s) if self._ended_s else 0.0,
        )

    def _end_overtaking(self, waiter: int, loaded: Collection[str]) -> None:
        spans = [span for model, span in self._overtaken.pop(waiter, {}).items() if model not in loaded]
        if spans:
            first, last = min(first for first, _ in spans), max(last for _, last in spans)
            self._longest_overtaken_s = max(self._longest_overtaken_s, last - first)


def _waits(seconds: Iterable[float]) -> Waits:
    waits = sorted(seconds)
    mean_s = sum(waits) / len(waits) if waits else 0.0
    return Waits(len(waits), percentile(waits, 50), percentile(waits, 95), percentile(waits, 100), mean_s)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest of the sorted ``values`` that ``percent`` of them do not exceed; 0 if there are none."""
    rank = -(-len(values) * percent // 100)
    return values[max(0, rank - 1)] if values else 0.0
