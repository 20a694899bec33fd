"""What engines write about themselves, read so that nothing in it can spoil our own page. Runs in a thread.

Names stay as they are (``vllm:…``, ``llamacpp:…``); each sample gets the label ``model``. Where two engines disagree
about what a metric is, the first by name is right and the other one's is left out.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise

from prometheus_client.core import Metric
from prometheus_client.parser import text_fd_to_metric_families
from prometheus_client.samples import Sample

MAX_SAMPLES = 5000
"""Of one engine."""

LIMIT_S = 2.0
"""How long reading all of them may take."""

_MAX_LINES = 20_000
_MAX_LINE = 4000
_PAUSE_EVERY = 20
_PAUSE_S = 0.0002
_MAX_TEXT = 300
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}", re.ASCII)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}", re.ASCII)
_OURS = ("rolecall_", "process_", "python_")
_OF_PROMETHEUS = re.compile(r"up|scrape_.*|ALERTS(_FOR_STATE)?")
"""What it writes itself for each target and each alert; ``up{model="a"} 0`` would mean to a rule that we are down."""
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
    "unknown": ("",),
}


class _Merger:
    """Takes in one engine after the other. No series, and no name of one, is there twice."""

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}
        self._names: set[str] = set()
        self._series: set[tuple[str, frozenset[tuple[str, str]]]] = set()

    def take(self, model: str, lines: _Lines) -> int:
        """Take in what an engine wrote; return how many samples of it were left out."""
        kept = left_out = 0
        for metric in _families(lines):
            if metric is None:
                left_out += 1
                continue
            mine = self._accept(metric)
            fresh = [] if mine is None else list(islice(self._samples(metric, model), MAX_SAMPLES - kept))
            if mine is not None and mine.type == "histogram" and len(fresh) < len(metric.samples):
                fresh = []  # a part of one is none
            if mine is not None:
                mine.samples.extend(fresh)
            kept += len(fresh)
            if not metric.name.endswith("_created"):  # those are not wanted
                left_out += len(metric.samples) - len(fresh)
        return left_out + lines.left_out

    def _accept(self, metric: Metric) -> Metric | None:
        """Return where the samples of a metric go; None if they go nowhere."""
        name, kind = metric.name, metric.type
        is_taken = name.startswith(_OURS) or _OF_PROMETHEUS.fullmatch(name)
        if not metric.samples or not _NAME.fullmatch(name) or is_taken or name.endswith("_created"):
            return None
        given = {sample.name for sample in metric.samples}
        if kind not in _SUFFIXES or not given <= {name + suffix for suffix in _SUFFIXES[kind]}:
            kind = "unknown"
        if kind == "histogram" and not _is_whole(metric.samples, name):
            return None
        if (known := self.metrics.get(name)) is not None:
            return known if known.type == kind and self._fits(given, name, kind) else None
        names = {name, *(name + suffix for suffix in _SUFFIXES[kind])}
        if not self._names.isdisjoint(names) or not self._fits(given, name, kind):
            return None
        self._names |= names
        known = self.metrics[name] = Metric(name, metric.documentation[:_MAX_TEXT], kind)
        return known

    @staticmethod
    def _fits(given: set[str], name: str, kind: str) -> bool:
        return given <= {name + suffix for suffix in _SUFFIXES[kind]}

    def _samples(self, metric: Metric, model: str) -> Iterator[Sample]:
        """Yield the samples of a metric that can stand on our page, without times and exemplars."""
        for sample in metric.samples:
            labels = {
                ("exported_model" if name == "model" else name): value[:_MAX_TEXT]
                for name, value in sample.labels.items()
            }
            labels["model"] = model
            series = sample.name, frozenset(labels.items())
            if all(map(_LABEL.fullmatch, labels)) and series not in self._series:
                self._series.add(series)
                yield Sample(sample.name, labels, float(sample.value))


def merged(texts: Mapping[str, bytes], within_s: float = LIMIT_S) -> tuple[list[Metric], dict[str, int]]:
    """Return the metrics of several engines (text by model) as one list, and how many samples of each were left out.

    A text that cannot be read to its end counts up to the line that is wrong. After ``within_s`` no more is read.
    """
    merger, until = _Merger(), time.monotonic() + within_s
    left_out = {model: merger.take(model, _Lines(text, until)) for model, text in sorted(texts.items())}
    return [metric for metric in merger.metrics.values() if metric.samples], left_out


def _is_whole(samples: Iterable[Sample], name: str) -> bool:
    """Whether a histogram is one as OpenMetrics demands it, so that nobody refuses a page for it.

    For each set of labels there are rising buckets up to +Inf, and sum and count, which is that of the last bucket, or
    neither.
    """
    groups: dict[frozenset[tuple[str, str]], list[Sample]] = {}
    for sample in samples:
        labels = frozenset((key, value) for key, value in sample.labels.items() if key != "le")
        groups.setdefault(labels, []).append(sample)
    return all(_is_whole_group(group, name) for group in groups.values())


def _is_whole_group(samples: Sequence[Sample], name: str) -> bool:
    buckets = [(_bound(sample), sample.value) for sample in samples if sample.name == f"{name}_bucket"]
    sums, counts = ([s.value for s in samples if s.name == f"{name}_{end}"] for end in ("sum", "count"))
    rises = all(low[0] < high[0] and low[1] <= high[1] for low, high in pairwise(buckets))
    if not buckets or not rises or not math.isinf(buckets[-1][0]):
        return False
    if sums and buckets[0][0] < 0:
        return False
    return len(sums) == len(counts) and counts in ([], [buckets[-1][1]])


def _bound(sample: Sample) -> float:
    try:
        return float(sample.labels.get("le", "nan"))
    except ValueError:
        return math.nan


class _Lines:
    """The lines of a text that an engine may have written, with pauses; those that are left out are counted.

    The parser takes time with the square of a line's length.
    """

    def __init__(self, text: bytes, until: float) -> None:
        self._lines = text.decode("utf-8", "replace").split("\n")
        self._until = until
        self.left_out = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._lines):
            if number % _PAUSE_EVERY == 0:
                time.sleep(_PAUSE_S)  # the event loop gets the interpreter
                if number >= _MAX_LINES or time.monotonic() >= self._until:
                    self.left_out += sum(map(_is_sample, self._lines[number:]))
                    return
            if len(line) > _MAX_LINE:
                self.left_out += _is_sample(line)
            else:
                yield line


def _is_sample(line: str) -> bool:
    return bool(line) and not line.startswith("#")


def _families(lines: _Lines) -> Iterator[Metric | None]:
    """Yield what can be read; at the first line that is no metric None, and no more."""
    try:
        # mypy: it takes any lines, and says so of a file alone
        yield from text_fd_to_metric_families(lines)  # type: ignore[arg-type]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        yield None
