"""Counts of finished requests, for `/metrics`: folded from the lines of the request log, so that both tell the same.

Values only. A line is put on a list when it comes, and folded with a hundred others. Nothing that
a client writes becomes a label: models and roles are those that the registry resolved to, endpoints and codes are known
ones, and the rest is `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BATCH = 128
"""Lines that are folded in one go: a tenth of a millisecond."""

UNKNOWN = "unknown"
"""The model of a request that was for none, or for several."""

OTHER = "other"
"""What is not known, or was removed from the registry a while ago."""

MAX_SERIES = 2000
"""With more, models and roles that the registry has no more are counted together, as `other`."""

DURATION_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FIRST_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
WAIT_S = (0.005, 0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
RATE = (1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)

Key = tuple[str, str, str, str]
"""Model, role (empty for none), endpoint, class of the status (`2xx`)."""
ErrorKey = tuple[str, str, str, str]
"""Model, role, endpoint, code of the error."""


@dataclass(slots=True)
class Histogram:
    """Counts by bucket: of the values up to each bound and above the one before, and last of those above all."""

    bounds: tuple[float, ...]
    total: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.total += value
        self.counts[bisect_left(self.bounds, value)] += 1

    def merge(self, other: Histogram) -> None:
        """Take in what another one with the same bounds has counted."""
        self.total += other.total
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]

    def copy(self) -> Histogram:
        """Return one that does not change any more."""
        return Histogram(self.bounds, self.total, list(self.counts))


@dataclass(slots=True)
class Counted:
    """What was counted of the requests of one key. Times are in seconds."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    images: int = 0
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_S))
    first: Histogram = field(default_factory=lambda: Histogram(FIRST_S))
    queue: Histogram = field(default_factory=lambda: Histogram(WAIT_S))
    load: Histogram = field(default_factory=lambda: Histogram(WAIT_S))
    rate: Histogram = field(default_factory=lambda: Histogram(RATE))

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a request by its line."""
        self.requests += 1
        self.input_tokens += line["prompt_tokens"] or 0
        self.output_tokens += line["completion_tokens"] or 0
        self.reasoning_tokens += line["reasoning_tokens"] or 0
        self.images += line["images"]
        self.duration.add(line["duration_ms"] / 1000)
        if (ms := line["ttft_ms"]) is not None:
            self.first.add(ms / 1000)
        if (ms := line["queue_ms"]) is not None:
            self.queue.add(ms / 1000)
        if ms := line["load_ms"]:
            self.load.add(ms / 1000)
        if (rate := line["tokens_per_second"]) is not None:
            self.rate.add(rate)

    def copy(self) -> Counted:
        """Return one that does not change any more."""
        return Counted(
            self.requests,
            self.input_tokens,
            self.output_tokens,
            self.reasoning_tokens,
            self.images,
            self.duration.copy(),
            self.first.copy(),
            self.queue.copy(),
            self.load.copy(),
            self.rate.copy(),
        )

    def merge(self, other: Counted) -> None:
        """Take in what was counted of another key."""
        self.requests += other.requests
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.reasoning_tokens += other.reasoning_tokens
        self.images += other.images
        for name in ("duration", "first", "queue", "load", "rate"):
            getattr(self, name).merge(getattr(other, name))


class RequestTally:
    """Counts finished requests. ``endpoints`` and ``codes`` are those that may become labels."""

    def __init__(self, endpoints: Collection[str], codes: Collection[str], *, max_series: int = MAX_SERIES) -> None:
        self._endpoints = frozenset(endpoints)
        self._codes = frozenset(codes)
        self._max_series = max_series
        self._pending: list[Mapping[str, Any]] = []
        self._counted: dict[Key, Counted] = {}
        self._errors: dict[ErrorKey, int] = {}
        self._by_line: dict[tuple[Any, ...], Counted] = {}

    def hear(self, line: Mapping[str, Any]) -> None:
        """Take in a line; it is counted with others, later, but at once with prompts in it: it can be megabytes."""
        self._pending.append(line)
        if len(self._pending) >= BATCH or "prompt" in line or "response" in line:
            self.fold()

    def fold(self) -> None:
        """Count what waits."""
        pending, self._pending = self._pending, []
        for line in pending:
            key = _model(line), line["role"], line["endpoint"], line["status"]
            counted = self._by_line.get(key)
            if counted is None:
                counted = self._by_line[key] = self._series(self._key(*key))
            counted.add(line)
            if line["error"] is not None:
                self._count_error(line)

    def _key(self, model: str | None, role: str | None, endpoint: str | None, status: int | None) -> Key:
        known = endpoint if endpoint in self._endpoints else None
        return model or UNKNOWN, role or "", known or OTHER, f"{status // 100}xx" if status else OTHER

    def _series(self, key: Key) -> Counted:
        return self._counted.setdefault(key, Counted())

    def _count_error(self, line: Mapping[str, Any]) -> None:
        code = line["error"].partition(":")[0]
        model, role, endpoint, _ = self._key(_model(line), line["role"], line["endpoint"], None)
        key = model, role, endpoint, code if code in self._codes else OTHER
        self._errors[key] = self._errors.get(key, 0) + 1

    # -- what was counted

    def forget(self, models: Collection[str], roles: Collection[str]) -> None:
        """Count models and roles that are none of these together, where there are too many series; sums stay."""
        self.fold()
        if len(self._counted) + len(self._errors) <= self._max_series:
            return
        models, roles = {*models, UNKNOWN, OTHER}, {*roles, "", OTHER}

        def told(model: str, role: str) -> tuple[str, str]:
            return model if model in models else OTHER, role if role in roles else OTHER

        counted, self._counted, self._by_line = self._counted, {}, {}
        for (model, role, endpoint, status), each in counted.items():
            self._series((*told(model, role), endpoint, status)).merge(each)
        errors, self._errors = self._errors, {}
        for (model, role, endpoint, code), count in errors.items():
            key = (*told(model, role), endpoint, code)
            self._errors[key] = self._errors.get(key, 0) + count

    def counted(self) -> Tallied:
        """Return what was counted so far, as it stays."""
        self.fold()
        return Tallied([(key, each.copy()) for key, each in self._counted.items()], list(self._errors.items()))


def _model(line: Mapping[str, Any]) -> str | None:
    """Return the model that served a request, or else the one that it was for."""
    return line["model"] or line.get("wanted_model")


@dataclass(frozen=True, slots=True)
class Tallied:
    """What was counted, by model, role and endpoint: requests by the class of the status, failures by the code."""

    rows: Sequence[tuple[Key, Counted]]
    errors: Sequence[tuple[ErrorKey, int]]


def summed(rows: Sequence[tuple[Key, Counted]], kind: str, parts: int) -> dict[tuple[str, ...], Histogram]:
    """Return the histograms ``kind`` (a field of ``Counted``) by the first ``parts`` of the key."""
    found: dict[tuple[str, ...], Histogram] = {}
    for key, counted in rows:
        histogram: Histogram = getattr(counted, kind)
        if (known := found.get(key[:parts])) is None:
            found[key[:parts]] = histogram.copy()
        else:
            known.merge(histogram)
    return {key: histogram for key, histogram in found.items() if any(histogram.counts)}
