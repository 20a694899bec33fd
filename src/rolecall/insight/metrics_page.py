"""`/metrics` as text, by prometheus_client. Imported with the first scrape, and run in a thread.

It is written in pieces, with a pause after each: the event loop gets the interpreter between them, and waits for one no
longer than a millisecond.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate, chain
from typing import Literal

from prometheus_client import exposition as text
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from rolecall.insight.metrics_families import Family
from rolecall.insight.tally import Histogram

_PIECE = 100
"""Samples that are written in one go."""

_PAUSE_S = 0.0002
_EOF = b"# EOF\n"

Form = Literal["text", "text1", "openmetrics"]

_FORMS: dict[tuple[str, str], Form] = {
    ("application/openmetrics-text", ""): "openmetrics",
    ("application/openmetrics-text", "1.0.0"): "openmetrics",
    ("text/plain", ""): "text",
    ("text/plain", "0.0.4"): "text",
    ("text/plain", "1.0.0"): "text1",
    ("text/*", ""): "text",
    ("*/*", ""): "text",
}
"""By media type and version; what is not among them cannot be written."""

# All names here are plain, so that no way of escaping changes them; but prometheus_client escapes the colons of
# ``vllm:…`` unless it is told that nothing needs to be.
_PLAIN_TEXT = partial(text.generate_latest, escaping=openmetrics.ALLOWUTF8)
_ENCODERS: dict[Form, tuple[Callable[[Collector], bytes], str]] = {
    "text": (_PLAIN_TEXT, "text/plain; version=0.0.4; charset=utf-8"),
    "text1": (_PLAIN_TEXT, "text/plain; version=1.0.0; charset=utf-8"),
    "openmetrics": (
        partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8, version="1.0.0"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    ),
}


class _One(Collector):
    """A registry of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        """Return the metric."""
        return (self._metric,)


class PageWriter:
    """Writes pages; what it knows of the process it asks itself."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._process = (ProcessCollector(registry=own), PlatformCollector(registry=own))

    def write(self, form: Form, families: Iterable[Family], more: Iterable[Metric] = ()) -> tuple[bytes, str]:
        """Return the page in a form, and its content type; ``more`` are metrics of others."""
        encode, content_type = _ENCODERS[form]
        parts: list[bytes] = []
        for pieces in self._all(families, more):
            for number, piece in enumerate(pieces):
                parts.append(_encoded(encode, piece, is_first=number == 0))
                time.sleep(_PAUSE_S)
        if form == "openmetrics":
            parts.append(_EOF)
        return b"".join(parts), content_type

    def _all(self, families: Iterable[Family], more: Iterable[Metric]) -> Iterator[Iterator[Metric]]:
        yield from map(pieces_of, families)
        yield from map(_sliced, chain.from_iterable(collector.collect() for collector in self._process))
        yield from map(_sliced, more)


def form_of(accept: str) -> Form:
    """Return the form that ``Accept`` likes best of those that can be written; text where it names none of them.

    Only three are ever written, so that those who scrape at once share their pages, however they ask.
    """
    best: float = 0
    found: Form = "text"
    for one in accept.split(","):
        name, *rest = (part.strip().lower() for part in one.split(";"))
        given = {key.strip(): value.strip().strip('"') for key, _, value in (part.partition("=") for part in rest)}
        form = _FORMS.get((name, given.get("version", "")))
        if form is not None and (liked := _weight(given.get("q", "1"))) > best:
            best, found = liked, form
    return found


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def pieces_of(family: Family) -> Iterator[Metric]:
    """Yield a metric as prometheus_client has it, in pieces, at least one."""
    piece = Metric(family.name, family.help, family.kind)
    name = f"{family.name}_total" if family.kind == "counter" else family.name
    for values, value in family.rows:
        if len(piece.samples) >= _PIECE:
            yield piece
            piece = Metric(family.name, family.help, family.kind)
        labels = dict(zip(family.labels, values, strict=True))
        if isinstance(value, Histogram):
            _add_histogram(piece, family.name, labels, value)
        else:
            piece.add_sample(name, labels, value)
    yield piece


def _add_histogram(metric: Metric, name: str, labels: dict[str, str], value: Histogram) -> None:
    for bound, count in zip((*value.bounds, float("inf")), accumulate(value.counts), strict=True):
        metric.add_sample(f"{name}_bucket", {**labels, "le": _bound(bound)}, count)
    metric.add_sample(f"{name}_count", labels, sum(value.counts))
    metric.add_sample(f"{name}_sum", labels, value.total)


def _bound(value: float) -> str:
    return "+Inf" if math.isinf(value) else str(value)


def _sliced(metric: Metric) -> Iterator[Metric]:
    for start in range(0, max(1, len(metric.samples)), _PIECE):
        piece = Metric(metric.name, metric.documentation, metric.type)
        piece.samples = metric.samples[start : start + _PIECE]
        yield piece


def _encoded(encode: Callable[[Collector], bytes], piece: Metric, *, is_first: bool) -> bytes:
    """Return the lines of a piece; those of help and type stand before the first one alone."""
    written = encode(_One(piece)).removesuffix(_EOF)
    while not is_first and written.startswith(b"# "):
        written = written.partition(b"\n")[2]
    return written
