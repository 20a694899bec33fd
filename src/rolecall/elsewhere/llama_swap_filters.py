"""llama-swap's filters, of models and of peers: what is removed from a request and put into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.tree import Node

_NEVER = "model"
"""llama-swap removes and sets it in no request either."""


def filter_fields(node: Node, name: str, aliases: list[str], subject: str, outcome: Outcome) -> dict[str, Any]:
    """Return ``request`` of an entry; names that stand for parameters of their own become ``aliases`` without them."""
    filters = node["filters"]
    if filters is None:
        return {}
    subject = f"{subject}.filters"
    known = ("stripParams", "strip_params", "setParams", "setParamsByID")
    for key, each in dict(outcome.mapping(node, "filters", subject.removesuffix(".filters"))).items():
        if key not in known:
            outcome.lost(each.line, f"{subject}.{key}", "is not known to be a filter of llama-swap")
    strip = outcome.text(filters, "stripParams", subject) or outcome.text(filters, "strip_params", subject) or ""
    names = [word.strip() for word in strip.split(",")]
    values = {key: each.plain for key, each in outcome.mapping(filters, "setParams", subject) if key != _NEVER}
    _by_id(filters, name, aliases, subject, outcome)
    rules = {"strip": sorted({word for word in names if word not in ("", _NEVER)}), "set": values}
    return {"request": {key: value for key, value in rules.items() if value}}


def _by_id(filters: Node, name: str, aliases: list[str], subject: str, outcome: Outcome) -> None:
    for id_, params in outcome.mapping(filters, "setParamsByID", subject):
        if id_ != name and id_ not in aliases:
            aliases.append(id_)
        said = _listed([key for key, _ in params.members()])
        text = f"{id_!r} answers, but without its own {said}: a name has no parameters of its own, an entry has"
        outcome.lost(params.line, f"{subject}.setParamsByID", text)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "parameters"
