"""llama-swap's groups, matrix, selectors, preload and peers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rolecall.elsewhere.llama_swap_filters import filter_fields
from rolecall.elsewhere.llama_swap_model import Model
from rolecall.elsewhere.macros import Macros, secret_variable
from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.secrets import is_no_key, variable_for
from rolecall.elsewhere.tree import Node

_BEST, _STEP = 90, 10
"""Priorities of a selector's targets, in their order."""


def carry_routing(root: Node, macros: Macros, models: Sequence[Model], outcome: Outcome) -> list[Model]:
    """Carry over what is said of models together, and return the models of peers."""
    ids = {id_: model for model in models for id_ in (*model.entry["model_aliases"], model.name)}
    router = _router(root, outcome)
    for parent, where in ((root, ""), (router, "routing.router.settings.")):
        if parent is not None:
            _groups(parent, where, ids, outcome)
            _matrix(parent, where, outcome)
    _preload(root, ids, outcome)
    peers = _peers(root, macros, ids, outcome)
    _selectors(root, {id_: peer for peer in peers for id_ in (*peer.entry["model_aliases"], peer.name)} | ids, outcome)
    return peers


def _router(root: Node, outcome: Outcome) -> Node | None:
    routing = root["routing"]
    if routing is None:
        return None
    if (scheduler := routing["scheduler"]) is not None:
        text = "rolecall serves who waits longest, and collects requests for a model that is loaded"
        outcome.lost(scheduler.line, "routing.scheduler", text)
    router = routing["router"]
    return None if router is None else router["settings"]


def _groups(parent: Node, where: str, ids: Mapping[str, Model], outcome: Outcome) -> None:
    for name, group in outcome.mapping(parent, "groups", where.rstrip(".")):
        subject = f"{where}groups.{name}"
        members = []
        for member in outcome.texts(group, "members", subject):
            if str(member.value) in ids:
                members.append(ids[str(member.value)])
            else:
                outcome.lost(member.line, f"{subject}.members", f"there is no model {member.value!r}")
        swap = outcome.flag(group, "swap", subject) is not False
        outcome.flag(group, "exclusive", subject)
        is_persistent = outcome.flag(group, "persistent", subject)
        if is_persistent and (not swap or len(members) == 1):  # one alone is swapped for nothing
            _pin(group, members, subject, outcome)
        elif swap:
            text = "its models may be loaded together where they fit; max_concurrent_models of the profile is a limit"
            if is_persistent:
                text += "; persistent was left out: its models take turns here, so none of them can be pinned"
            outcome.lost(group.line, subject, text)
        else:
            text = "its models stay loaded together as far as they fit; [[groups]] in profiles.toml loads them together"
            outcome.changed(group.line, subject, text)


def _pin(group: Node, members: Sequence[Model], subject: str, outcome: Outcome) -> None:
    """Pin the models that no other group may unload, but for those that a ttl unloads."""
    for model in members:
        if model.entry.get("idle_unload_s"):
            text = f"{model.name!r} has a ttl, so it is not pinned: others may take its place"
            outcome.lost(group.line, subject, text)
        else:
            model.entry["pinned"] = True
    outcome.changed(group.line, subject, "persistent became pinned: its models are never unloaded for others")


def _matrix(parent: Node, where: str, outcome: Outcome) -> None:
    matrix = parent["matrix"]
    if matrix is not None:
        text = "rolecall keeps loaded together what fits, and unloads what is cheapest to bring back, as it has learnt"
        outcome.lost(matrix.line, f"{where}matrix", f"{text}; [[groups]] in profiles.toml loads models together")


def _preload(root: Node, ids: Mapping[str, Model], outcome: Outcome) -> None:
    for hook, node in outcome.mapping(root, "hooks", ""):
        if hook != "on_startup":
            outcome.lost(node.line, f"hooks.{hook}", "is not known to be a hook of llama-swap")
            continue
        for name in outcome.texts(node, "preload", "hooks.on_startup"):
            model = ids.get(str(name.value).strip())
            if model is None:
                outcome.lost(name.line, "hooks.on_startup.preload", f"there is no model {name.value!r}")
            else:
                model.entry["preload"] = True


def _peers(root: Node, macros: Macros, ids: Mapping[str, Model], outcome: Outcome) -> list[Model]:
    found = []
    for name, node in outcome.mapping(root, "peers", ""):
        subject = f"peers.{name}"
        found += _peer(name, macros.expand(node, subject, outcome), subject, outcome)
    counts = Counter(model.entry["served_model_id"] for model in found)
    for model in found:
        short = model.entry["served_model_id"]
        if counts[short] == 1 and short not in ids and short != model.name:
            model.entry["model_aliases"] = [short, *model.entry["model_aliases"]]
    return found


def _peer(name: str, node: Node, subject: str, outcome: Outcome) -> list[Model]:
    proxy = outcome.text(node, "proxy", subject)
    if proxy is None or not proxy.startswith(("http://", "https://")):
        outcome.wrong(node.line, f"{subject}.proxy", "must be an address that begins with http:// or https://")
        return []
    for key, each in node.members():
        if key == "timeouts":
            outcome.lost(
                each.line, f"{subject}.timeouts", "rolecall's are backend_timeout_ms and stream_idle_timeout_ms"
            )
        elif key not in ("proxy", "apiKey", "models", "filters"):
            outcome.lost(each.line, f"{subject}.{key}", "is not known to be a field of llama-swap")
    config = {"base_url": f"{proxy.rstrip('/')}/v1", "api_key_env": _key(name, node, subject, outcome)}
    models = []
    for each in outcome.texts(node, "models", subject):
        aliases: list[str] = []
        request = filter_fields(node, str(each.value), aliases, subject, outcome)
        entry: dict[str, Any] = {
            "name": f"{name}/{each.value}",
            "model_aliases": [f"{name}/{alias}" for alias in aliases],
            "backend": "openai",
            "backend_config": {key: value for key, value in config.items() if value},
            "served_model_id": str(each.value),
            **request,
        }
        models.append(Model(entry["name"], each, [], {}, entry))
    if not models:
        outcome.wrong(node.line, subject, "names no models")
    return models


def _key(name: str, node: Node, subject: str, outcome: Outcome) -> str | None:
    """Return the variable that holds a peer's key; a key itself is not copied."""
    key = outcome.text(node, "apiKey", subject)
    if key is None or is_no_key(key):
        return None
    if variable := secret_variable(key):
        return variable
    variable = variable_for(name)
    line = node["apiKey"].line if node["apiKey"] else node.line
    outcome.todo(line, f"{subject}.apiKey", f"the key is not copied: put it into the environment variable {variable}")
    return variable


def _selectors(root: Node, ids: Mapping[str, Model], outcome: Outcome) -> None:
    for name, node in outcome.mapping(root, "selectors", ""):
        subject = f"selectors.{name}"
        strategy = outcome.text(node, "strategy", subject) or "warm"
        targets = []
        for each in outcome.texts(node, "targets", subject):
            if str(each.value) in ids:
                targets.append(ids[str(each.value)])
            else:
                outcome.lost(each.line, f"{subject}.targets", f"there is no model {each.value!r}")
        if strategy == "pin" and targets:
            targets[0].entry["model_aliases"].append(name)
            outcome.changed(node.line, subject, f"became an alias of {targets[0].name!r}")
        elif targets:
            _as_role(name, node, targets, strategy, outcome)


def _as_role(name: str, node: Node, targets: Sequence[Model], strategy: str, outcome: Outcome) -> None:
    """Let the targets play a role of the selector's name, the first one best."""
    role = name.strip().lower()
    for number, model in enumerate(targets):
        model.entry.setdefault("role_priority", {})[role] = max(1, _BEST - _STEP * number)
    outcome.changed(node.line, f"selectors.{name}", f"became a role: ask for role:{role}")
    if strategy == "warm" and len(targets) > 1:
        key = role if re.fullmatch(r"[a-z0-9_-]+", role) else json.dumps(role, ensure_ascii=False)
        spread = min(_STEP * (len(targets) - 1), _BEST - 1)
        outcome.settings.append(f"[roles.{key}]\nquality_tolerance = {spread}")
        outcome.todo(
            node.line, f"selectors.{name}", "quality_tolerance of the role lets a loaded model go before the first"
        )
    elif strategy != "warm":
        outcome.lost(node.line, f"selectors.{name}", f"{strategy}: rolecall takes the role's best model that fits")
