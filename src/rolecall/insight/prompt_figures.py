"""What the log says of each prompt: how answers to it succeeded, how long they took, how long they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rolecall.core.markers import REFUSAL
from rolecall.core.rates import Rate
from rolecall.insight.log_database import VIEW, LogDatabase
from rolecall.insight.log_statistics import IS_OK, Conditions

COLUMNS = frozenset(
    [
        "ts",
        "prompt_id",
        "prompt_version",
        "model",
        "requested_model",
        "role",
        "key",
        "status",
        "error",
        "images",
        "prompt_tokens",
        "completion_tokens",
        "ttft_ms",
        "duration_ms",
        "tokens_per_second",
        "output_bytes",
        "finish_reason",
        "markers",
    ]
)
"""What a database has to have for this."""

BINS = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Where the classes of answers' lengths begin, in tokens."""

_HAS_LEFT = "coalesce(status = 499, false)"
_GROUP = (
    "prompt_id AS prompt, nullif(prompt_version, '') AS version, coalesce(model, requested_model, '') AS model, "
    "model IS NOT NULL AS served"
)
_QUANTILES = {
    "ttft_ms": (0.5, 0.9, 0.95, 0.99),
    "duration_ms": (0.5, 0.95),
    "tokens_per_second": (0.5,),
    "completion_tokens": (0.05, 0.25, 0.5, 0.75, 0.95),
    "output_bytes": (0.05, 0.5, 0.95),
}
_FIGURES = {
    "requests": "count(*)",
    "left": f"count(*) FILTER ({_HAS_LEFT})",
    "succeeded": f"count(*) FILTER ({IS_OK} AND NOT {_HAS_LEFT})",
    "images": "coalesce(sum(images), 0)",
    "prompt_tokens": "sum(prompt_tokens)",
    "completion_tokens": "sum(completion_tokens)",
    "prompt_tokens_mean": "avg(prompt_tokens)",
    "cut": f"count(*) FILTER ({IS_OK} AND coalesce(finish_reason IN ('length', 'max_tokens'), false))",
    "looked_at": "count(markers)",
    "tokens_per_second_all": f"sum(completion_tokens) FILTER ({IS_OK} AND duration_ms > 0) * 1000.0"
    f" / nullif(sum(duration_ms) FILTER ({IS_OK} AND completion_tokens IS NOT NULL AND duration_ms > 0), 0)",
    **{
        f"{name}_p{round(share * 100)}": f"quantile_cont({name}, {share}) FILTER ({IS_OK})"
        for name, shares in _QUANTILES.items()
        for share in shares
    },
}
"""Times and lengths are those of answers that succeeded: an error comes quickly and is short."""

_SCOPE = (
    "coalesce(sum(pairs.requests), 0)::BIGINT AS requests, count(*) AS pairs, "
    "count(*) FILTER (pairs.requests = 1) AS single, min(pairs.first) AS first, max(pairs.last) AS last"
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of one prompt, in one version, with one model; ``served`` is false if that was only asked for.

    ``values`` are those of ``FIGURE_NAMES``: times in ms, lengths in tokens and bytes, null where nothing is known.
    ``markers`` are how many of the ``looked_at`` answers had each group, ``lengths`` how many answers each of ``BINS``.
    """

    prompt: str
    version: str | None
    model: str
    served: bool
    values: Mapping[str, Any]
    markers: dict[str, int] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=lambda: [0] * len(BINS))

    @property
    def key(self) -> tuple[str, str | None, str, bool]:
        """What tells it from all others."""
        return self.prompt, self.version, self.model, self.served

    @property
    def length_shares(self) -> list[float]:
        """Percent of the answers in each of ``BINS``; some are known."""
        total = sum(self.lengths)
        return [100 * number / total for number in self.lengths]

    @property
    def success(self) -> Rate:
        """Answers of those that were waited for to the end."""
        return Rate(self.values["succeeded"], self.values["requests"] - self.values["left"])

    def marked(self, group: str) -> Rate:
        """Answers with a group of markers, of those that were looked at."""
        return Rate(self.markers.get(group, 0), self.values["looked_at"])

    @property
    def refusals(self) -> Rate:
        """Answers that refuse."""
        return self.marked(REFUSAL)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, with rates and their bounds."""
        return {
            "prompt": self.prompt,
            "version": self.version,
            "model": self.model,
            "served": self.served,
            **self.values,
            "success": rate_dict(self.success),
            "refusals": rate_dict(self.refusals),
            "markers": self.markers,
            "lengths": [{"from": low, "count": count} for low, count in zip(BINS, self.lengths, strict=True)],
        }


def rate_dict(rate: Rate) -> dict[str, Any]:
    """Return a rate as JSON has it."""
    low, high = rate.bounds
    return {"count": rate.count, "total": rate.total, "share": rate.share, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Scope:
    """How much there is: requests with a prompt id, from when to when, and of how many pairs of prompt and model.

    ``single`` of the pairs have one request alone. A prompt counts anew in each version.
    """

    requests: int
    pairs: int
    single: int
    first: datetime | None
    last: datetime | None


def prompt_figures(
    database: LogDatabase, conditions: Conditions, most: int | None = None
) -> tuple[Scope, list[Figures]]:
    """Return the figures of requests with a prompt id, by prompt and version, the busiest model first.

    They are those of every model of the prompts that the ``most`` busiest pairs are of; None: of all prompts.
    """
    where, parameters = conditions.sql()
    where = f"prompt_id <> '' AND ({where})"
    pairs = (
        f"(SELECT {_GROUP}, count(*) AS requests, min(ts) AS first, max(ts) AS last "  # noqa: S608
        f"FROM {VIEW} WHERE {where} GROUP BY 1, 2, 3, 4) AS pairs"
    )
    scope = Scope(**database.ask(f"SELECT {_SCOPE} FROM {pairs}", parameters).dicts()[0])  # noqa: S608
    if most is not None and most < scope.pairs:
        order = "requests DESC, prompt, version, model, served"
        query = f"SELECT prompt, version FROM {pairs} ORDER BY {order} LIMIT {most}"  # noqa: S608
        busiest = database.ask(query, parameters).dicts()
        where += " AND (prompt_id, coalesce(prompt_version, '')) IN (SELECT unnest(?), unnest(?))"
        parameters += [[row["prompt"] for row in busiest], [row["version"] or "" for row in busiest]]
    return scope, _all_figures(database, where, parameters)


def _all_figures(database: LogDatabase, where: str, parameters: list[Any]) -> list[Figures]:
    figures = ", ".join(f"{expression} AS {name}" for name, expression in _FIGURES.items())
    order = "prompt, version NULLS FIRST, requests DESC, model, served"
    query = f"SELECT {_GROUP}, {figures} FROM {VIEW} WHERE {where} GROUP BY 1, 2, 3, 4 ORDER BY {order}"  # noqa: S608
    found = [_figures(row) for row in database.ask(query, parameters).dicts()]
    by_key = {each.key: each for each in found}
    for row in database.ask(_of_each("list_distinct(markers)", where), parameters).dicts():
        by_key[_key(row)].markers[row["each"]] = row["n"]
    bin_of = "len(list_filter([" + ", ".join(map(str, BINS)) + "], lambda low: low <= completion_tokens))"
    for row in database.ask(
        _of_each(f"[{bin_of}]", f"{where} AND {IS_OK} AND completion_tokens >= 0"), parameters
    ).dicts():
        by_key[_key(row)].lengths[row["each"] - 1] = row["n"]
    return found


def _of_each(values: str, where: str) -> str:
    """Return the query that counts each value of a list, by group."""
    return (
        f"SELECT prompt, version, model, served, each, count(*) AS n FROM (SELECT {_GROUP}, unnest({values}) AS each "  # noqa: S608
        f"FROM {VIEW} WHERE {where}) GROUP BY 1, 2, 3, 4, 5 ORDER BY each"
    )


def _key(row: Mapping[str, Any]) -> tuple[str, str | None, str, bool]:
    return row["prompt"], row["version"], row["model"], row["served"]


def _figures(row: Mapping[str, Any]) -> Figures:
    return Figures(*_key(row), values={name: row[name] for name in _FIGURES})


FIGURE_NAMES = tuple(_FIGURES)
