"""What engines write about themselves, read so that nothing in it can spoil our own page. Runs in a thread.

Names stay as they are (``vllm:…``, ``llamacpp:…``); each sample gets the label ``model``. Where two engines disagree
about what a metric is, the first by name is right and the other one's is left out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

MAX_SAMPLES = 5000
"""Of one engine."""

_PAUSE_EVERY = 20
_PAUSE_S = 0.0002
_MAX_TEXT = 300
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}", re.ASCII)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}", re.ASCII)
_OURS = ("rolecall_", "process_", "python_")
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
    "unknown": ("",),
}


def merged(texts: Mapping[str, bytes]) -> tuple[list[Metric], dict[str, int]]:
    """Return the metrics of several engines (text by model) as one list, and how many samples of each were left out.

    A text that cannot be read to its end counts up to the line that is wrong.
    """
    found: dict[str, Metric] = {}
    taken: set[str] = set()
    rejected: dict[str, int] = {}
    for model, text in sorted(texts.items()):
        kept = left_out = 0
        for metric in _families(text):
            mine = _accept(metric, found, taken)
            fresh = _samples(metric, model)[: MAX_SAMPLES - kept] if mine is not None else []
            if mine is not None:
                mine.samples.extend(fresh)
            kept += len(fresh)
            left_out += max(1, len(metric.samples)) if mine is None else len(metric.samples) - len(fresh)
        rejected[model] = left_out
    return [metric for metric in found.values() if metric.samples], rejected


def _families(text: bytes) -> Iterator[Metric]:
    """Yield what can be read; at the first line that is no metric an empty one, and no more."""
    try:
        for number, metric in enumerate(text_string_to_metric_families(text.decode("utf-8", "replace"))):
            if number % _PAUSE_EVERY == 0:
                time.sleep(_PAUSE_S)  # the event loop gets the interpreter
            yield metric
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        yield Metric("unreadable", "", "unknown")


def _accept(metric: Metric, found: dict[str, Metric], taken: set[str]) -> Metric | None:
    """Return where the samples of a metric go; None if they go nowhere."""
    name, kind = metric.name, metric.type
    if not metric.samples or not _NAME.fullmatch(name) or name.startswith(_OURS) or name.endswith("_created"):
        return None
    if kind not in _SUFFIXES or any(sample.name.removeprefix(name) not in _SUFFIXES[kind] for sample in metric.samples):
        kind = "unknown"
    if (known := found.get(name)) is not None:
        return known if known.type == kind else None
    names = {name, *(name + suffix for suffix in _SUFFIXES[kind])}
    if not taken.isdisjoint(names) or any(sample.name not in names for sample in metric.samples):
        return None
    taken.update(names)
    known = found[name] = Metric(name, metric.documentation[:_MAX_TEXT], kind)
    return known


def _samples(metric: Metric, model: str) -> list[Sample]:
    """Return the samples of a metric that can stand on our page, each series once, without times and exemplars."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
    for sample in metric.samples:
        labels = {
            ("exported_model" if name == "model" else name): text[:_MAX_TEXT] for name, text in sample.labels.items()
        }
        if all(map(_LABEL.fullmatch, labels)) and isinstance(sample.value, int | float):
            labels["model"] = model
            found.setdefault((sample.name, frozenset(labels.items())), Sample(sample.name, labels, float(sample.value)))
    return list(found.values())
