"""What a request log and its feedback hold of an experiment, and whether that is all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import orjson

from rolecall.core.experiments import Experiment
from rolecall.insight.feedback import Judgement, feedback_path, judgements
from rolecall.insight.log_files import LogFiles, begins, open_log
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
    log = open_log(log_path, stack)
    gaps = list(_gaps("log", log, experiment))
    judged: Mapping[str, Judgement] = {}
    with suppress(FileNotFoundError):
        feedback = open_log(feedback_path(log_path), stack)
        judged = judgements(feedback.files)
        gaps += _gaps("feedback", feedback, experiment) if experiment.metric == "feedback" else ()
    return Material(_naming(log.files, experiment.name), judged, gaps, list(_notes(log, experiment)))


def _naming(parts: Sequence[Part], experiment: str) -> Iterator[Fields]:
    needle = b'"experiment":' + orjson.dumps(experiment)
    for raw in oldest_first(parts):
        if needle in raw and (entry := parse_entry(raw)) is not None and entry.fields.get("experiment") == experiment:
            yield entry.fields


def _gaps(what: str, log: LogFiles, experiment: Experiment) -> Iterator[str]:
    """Yield why a log may lack what it had at an earlier look.

    One that was never rotated has all. Of one that was, nobody knows how many files are gone already: it must reach
    back to before the experiment.
    """
    yield from (f"lines may be missing: {why}" for why in log.left_out)
    start = experiment.span[0]
    if len(log.files) <= 1 or (start is not None and _beginning(log) <= start):
        return
    reach = f"the {what} was rotated and begins on {_moment(_beginning(log))}"
    if start is None:
        yield f"{reach}, and the experiment does not say when it began: give it a start, from which all lines are there"
    else:
        yield f"{reach}, after the experiment's start: what was before is missing, and nothing can be established"


def _notes(log: LogFiles, experiment: Experiment) -> Iterator[str]:
    start = experiment.span[0]
    if len(log.files) == 1 and start is not None and _beginning(log) > start:
        yield (
            f"the log begins on {_moment(_beginning(log))}, after the experiment's start: if lines were moved "
            "elsewhere, nothing is established"
        )


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M} UTC"


def _beginning(log: LogFiles) -> float:
    return begins(log.files[-1]) if log.files else 0.0
