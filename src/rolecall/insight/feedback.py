"""What people or programs thought of answers: one JSON object a line, beside the request log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from rolecall.errors import BadRequest
from rolecall.insight.log_files import open_log
from rolecall.insight.log_reader import Part, oldest_first, parse_time

THUMBS = {"up": 1.0, "down": 0.0}
MOST_LABEL, MOST_COMMENT = 100, 2000
"""Characters."""
_FIELDS = frozenset({"request_id", "score", "label", "comment"})


@dataclass(frozen=True, slots=True)
class Feedback:
    """What was thought of one answer; ``score`` from 0, useless, to 1, perfect."""

    request_id: str
    score: float | None = None
    label: str | None = None
    comment: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return its fields."""
        return asdict(self)


def feedback_path(log_path: Path) -> Path:
    """Return where the feedback on the requests of a log is."""
    return log_path.with_name(f"{log_path.stem}.feedback.jsonl")


def read_feedback(body: Any) -> Feedback:
    """Return what was posted; raises ``BadRequest`` that names the field and what it takes."""
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object with request_id, and score or label.")
    if unknown := sorted(body.keys() - _FIELDS):
        raise BadRequest(f"There is no field {unknown[0][:100]!r}; there are {', '.join(sorted(_FIELDS))}.")
    request_id = body.get("request_id")
    if not isinstance(request_id, str) or not request_id:
        raise BadRequest(
            "The field 'request_id' takes the id of a request: the header x-request-id of its answer.",
            param="request_id",
        )
    found = Feedback(
        request_id,
        _score(body.get("score")),
        _text(body, "label", MOST_LABEL),
        _text(body, "comment", MOST_COMMENT),
    )
    if found.score is None and found.label is None:
        raise BadRequest("A score or a label is needed.", param="score")
    return found


def _score(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) and value in THUMBS:
        return THUMBS[value]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1:
        return float(value)
    raise BadRequest('The field \'score\' takes a number from 0 to 1, "up" or "down".', param="score")


def _text(body: Mapping[str, Any], name: str, limit: int) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise BadRequest(f"The field {name!r} takes a text of 1 to {limit} characters.", param=name)
    return value


@dataclass(slots=True)
class Judgement:
    """All feedback on one request. ``said`` is the last word, field by field; ``first_score`` never changes again."""

    said: Feedback
    first_score: float | None = None
    first_at: float = math.nan
    """When it was given (s since the epoch)."""
    first_place: int = 0
    """Its place among all feedback."""

    def add(self, feedback: Feedback, at: float, place: int) -> None:
        """Take in what was said later, at ``at``; what it leaves out stays as it was."""
        if self.first_score is None and feedback.score is not None:
            self.first_score, self.first_at, self.first_place = feedback.score, at, place
        self.said = Feedback(
            feedback.request_id,
            self.said.score if feedback.score is None else feedback.score,
            feedback.label or self.said.label,
            feedback.comment or self.said.comment,
        )


def judgements(parts: Sequence[Part], request_id: str | None = None) -> dict[str, Judgement]:
    """Return what was thought of requests, or of one alone, by id.

    ``parts`` are the files of the feedback, newest first; lines that make no sense are left out. Raises ``OSError`` for
    a file that cannot be read.
    """
    found: dict[str, Judgement] = {}
    needle = b"" if request_id is None else request_id.encode("utf-8", "replace")
    for place, raw in enumerate(oldest_first(parts)):
        if needle in raw and (parsed := _parsed(raw)) is not None and request_id in {None, parsed[0].request_id}:
            feedback, at = parsed
            found.setdefault(feedback.request_id, Judgement(Feedback(feedback.request_id))).add(feedback, at, place)
    return found


def judgement_of(log_path: Path, request_id: str) -> Feedback | None:
    """Return the last word on a request of a log, None if nothing was said; raises as ``judgements`` does."""
    with ExitStack() as stack, suppress(FileNotFoundError):
        found = judgements(open_log(feedback_path(log_path), stack).files, request_id)
        return found[request_id].said if request_id in found else None
    return None


def _parsed(raw: bytes) -> tuple[Feedback, float] | None:
    try:
        line = orjson.loads(raw)
        feedback = read_feedback({name: value for name, value in line.items() if name in _FIELDS})
    except (orjson.JSONDecodeError, AttributeError, BadRequest):
        return None
    moment = parse_time(str(line.get("ts")))
    return None if moment is None else (feedback, moment.timestamp())
