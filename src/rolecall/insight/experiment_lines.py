"""What a request log and its feedback hold of an experiment, and whether that is all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import orjson

from rolecall.core.experiments import Experiment
from rolecall.insight.feedback import Judgement, feedback_path, judgements
from rolecall.insight.log_files import LogFiles, begins, is_first, open_log
from rolecall.insight.log_reader import Fields, Part, oldest_first, parse_entry


@dataclass(frozen=True, slots=True)
class Material:
    """The lines that name an experiment, as they were written, to be read once; feedback by request id.

    ``gaps`` say why lines may be missing; ``notes`` are what else is to be known of the files.
    """

    lines: Iterator[Fields]
    judgements: Mapping[str, Judgement]
    gaps: Sequence[str] = ()
    notes: Sequence[str] = ()


def open_material(log_path: Path, experiment: Experiment, stack: ExitStack) -> Material:
    """Open a log and the feedback beside it; ``stack`` closes them.

    Raises ``FileNotFoundError`` if there is no log, ``OSError`` for a file that cannot be read, then or with the lines.
    """
    logs = {"log": open_log(log_path, stack)}
    with suppress(FileNotFoundError):
        logs["feedback"] = open_log(feedback_path(log_path), stack)
    judged = judgements(logs["feedback"].files) if "feedback" in logs else {}
    if experiment.metric != "feedback":
        logs.pop("feedback", None)
    lines = _naming(logs["log"].files, experiment.name)
    gaps, notes = _gaps(logs, log_path, experiment), _notes(logs["log"], log_path, experiment)
    return Material(lines, judged, list(gaps), list(notes))


def _naming(parts: Sequence[Part], experiment: str) -> Iterator[Fields]:
    needle = orjson.dumps(experiment)
    for raw in oldest_first(parts):
        if needle in raw and (entry := parse_entry(raw)) is not None and entry.fields.get("experiment") == experiment:
            yield entry.fields


def _gaps(logs: Mapping[str, LogFiles], path: Path, experiment: Experiment) -> Iterator[str]:
    """Yield why logs may lack what they had at an earlier look, and which start would do."""
    left_out = [f"lines may be missing: {why}" for log in logs.values() for why in log.left_out]
    yield from left_out
    start, end = experiment.span
    at = 0.0
    for what, log in logs.items():
        if not _is_whole(log, path if what == "log" else feedback_path(path), start):
            at = max(at, _beginning(log))
            begun = f"the {what} was rotated and begins on {_moment(_beginning(log))}"
            was = "and the experiment names no start" if start is None else "after the experiment's start"
            yield f"{begun}, {was}: what was before may be missing"
    if end is not None and at >= end:
        yield "nothing can be established any more: the experiment was over by then"
    elif at and not left_out:
        yield (
            f"a verdict needs a start from which all is there: start = {_second_from(at)} would do. It drops the "
            "requests before it, and each start is a test of its own: move it once"
        )


def _is_whole(log: LogFiles, path: Path, start: float | None) -> bool:
    """Whether no line of an experiment can be missing at the beginning.

    A log that shows its first line has all. Older versions did not mark it: then there is the present file alone,
    which was never rotated, or the log reaches back to before the experiment, as nobody knows how many files are gone.
    """
    if not log.files or (start is not None and _beginning(log) <= start):
        return True
    return [file.name for file in log.files] == [path.name] or any(map(is_first, log.files))


def _notes(log: LogFiles, path: Path, experiment: Experiment) -> Iterator[str]:
    start = experiment.span[0]
    if start is not None and _beginning(log) > start and _is_whole(log, path, start):
        yield (
            f"the log begins on {_moment(_beginning(log))}, after the experiment's start: if older lines were moved "
            "elsewhere or removed, nothing is established"
        )


def _second_from(at: float) -> str:
    return f"{datetime.fromtimestamp(math.ceil(at), timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M} UTC"


def _beginning(log: LogFiles) -> float:
    return begins(log.files[-1]) if log.files else 0.0
