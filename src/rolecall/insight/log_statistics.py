"""Figures of the request log by model, role, prompt, time and so on, and the conditions that pick lines, as SQL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rolecall.insight.log_columns import text
from rolecall.insight.log_database import VIEW, LogDatabase
from rolecall.insight.log_reader import parse_status

BY = {
    "model": "coalesce(model, requested_model)",
    "role": "role",
    "prompt": "prompt_id",
    "version": "prompt_version",
    "hour": "date_trunc('hour', ts)",
    "day": "date_trunc('day', ts)",
    "key": "key",
    "endpoint": "endpoint",
    "status": "status",
}
"""What lines are put together by, and its expression. Hours and days are those of the local time."""

IS_OK = "(coalesce(status < 400, false) AND coalesce(error, '') = '')"
"""As `rolecall logs --status ok` has it: below 400, and complete."""

FIGURES = {
    "requests": "count(*)",
    "errors": f"count(*) FILTER (NOT {IS_OK})",
    "prompt_tokens": "sum(prompt_tokens)",
    "completion_tokens": "sum(completion_tokens)",
    "ttft_ms_p50": "quantile_cont(ttft_ms, 0.5)",
    "ttft_ms_p95": "quantile_cont(ttft_ms, 0.95)",
    "duration_ms_p50": "quantile_cont(duration_ms, 0.5)",
    "duration_ms_p95": "quantile_cont(duration_ms, 0.95)",
    "tokens_per_second_p50": "quantile_cont(tokens_per_second, 0.5)",
    "queue_ms_p95": "quantile_cont(queue_ms, 0.95)",
    "load_ms_mean": "avg(load_ms)",
}
"""What is said of each group. Percentiles are interpolated between the two nearest values; null: nothing is known."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Which lines are wanted; None: all. Model, role, prompt and key may hold the wildcards of a shell."""

    model: str | None = None
    role: str | None = None
    prompt: str | None = None
    key: str | None = None
    status: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def sql(self) -> tuple[str, list[Any]]:
        """Return the condition and its parameters; raises ValueError for a status that is none."""
        found: list[str] = []
        parameters: list[Any] = []
        for columns, pattern in (
            (("model", "requested_model"), self.model),
            (("role",), self.role),
            (("prompt_id",), self.prompt),
            (("key",), self.key),
        ):
            if pattern is not None:
                is_like = "coalesce({0} = ? OR regexp_full_match({0}, ?, 's'), false)"
                found.append(" OR ".join(is_like.format(name) for name in columns))
                parameters += [pattern, glob(pattern)] * len(columns)
        if self.status is not None:
            found.append(status_sql(self.status))
        for comparison, time in ((">=", self.since), ("<", self.until)):
            if time is not None:
                found.append(f"ts {comparison} TIMESTAMPTZ {text(time.isoformat())}")
        return " AND ".join(f"({part})" for part in found) or "true", parameters


COLUMNS = frozenset(
    [
        "ts",
        "model",
        "requested_model",
        "role",
        "prompt_id",
        "prompt_version",
        "key",
        "endpoint",
        "status",
        "error",
        "prompt_tokens",
        "completion_tokens",
        "ttft_ms",
        "duration_ms",
        "tokens_per_second",
        "queue_ms",
        "load_ms",
    ]
)
"""What a database has to have for all this."""


def status_sql(wanted: str) -> str:
    """Return the condition that a ``--status`` stands for; raises ValueError as ``parse_status`` does."""
    parse_status(wanted)
    if wanted in {"ok", "error"}:
        return IS_OK if wanted == "ok" else f"NOT {IS_OK}"
    if wanted.endswith("xx"):
        return f"coalesce(status // 100 = {int(wanted[0])}, false)"
    comparison = wanted.rstrip("0123456789").strip() or "="
    return f"coalesce(status {comparison} {int(wanted[-3:])}, false)"


def glob(pattern: str) -> str:
    """Return the regular expression of a pattern with the wildcards of a shell: ``*``, ``?``, ``[a-z]``, ``[!a]``."""
    expression = ""
    rest = pattern
    while rest:
        found = re.match(r"\[(?=(!?\]?))\1([^\]]*)\]", rest)  # a ] right at the beginning is one of the characters
        if found is not None:
            members = _members(found[1].removeprefix("!") + found[2])
            other, none = ("^", ".") if found[1].startswith("!") else ("", r"[^\s\S]")
            expression += f"[{other}{members}]" if members else none
        else:
            expression += {"*": ".*", "?": "."}.get(rest[0]) or re.escape(rest[0])
        rest = rest[found.end() if found else 1 :]
    return expression


def _members(inside: str) -> str:
    """Return what stands in the brackets of a pattern as an expression has it; a range backwards has no members."""
    ranges = re.findall(r"(.)(?:-(.))?", inside, re.DOTALL)
    return "".join(
        f"{re.escape(low)}-{re.escape(high)}" if high else re.escape(low)
        for low, high in ranges
        if not high or low <= high
    )


def statistics(database: LogDatabase, by: Sequence[str], conditions: Conditions) -> list[dict[str, Any]]:
    """Return the figures of each group, those with most requests first, times in their order; no ``by``: of all.

    Keys are those of ``by`` and of ``FIGURES``; times are aware datetimes.
    """
    where, parameters = conditions.sql()
    groups = [f"{BY[name]} AS {name}" for name in by]
    figures = [f"{expression} AS {name}" for name, expression in FIGURES.items()]
    times = [name for name in by if name in {"hour", "day"}]
    order = [*times, "requests DESC", *(name for name in by if name not in times)]
    grouped = f"GROUP BY {', '.join(map(str, range(1, len(by) + 1)))} ORDER BY {', '.join(order)}" if by else ""
    query = f"SELECT {', '.join([*groups, *figures])} FROM {VIEW} WHERE {where} {grouped}"  # noqa: S608 - names of ours
    return database.ask(query, parameters).dicts()
