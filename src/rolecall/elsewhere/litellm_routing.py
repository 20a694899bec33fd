"""LiteLLM's settings beside ``model_list``: other names, fallbacks, and what has no counterpart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.secrets import is_secret
from rolecall.elsewhere.tree import Node

LITELLM_SETTINGS = {
    "drop_params": "requests reach the server as they come, but for request.strip of an entry",
    "num_retries": "rolecall sends once more only what no engine has begun to answer",
    "request_timeout": "rolecall's are backend_timeout_ms and stream_idle_timeout_ms in rolecall.toml",
    "timeout": "rolecall's are backend_timeout_ms and stream_idle_timeout_ms in rolecall.toml",
    "stream_timeout": "rolecall's is stream_idle_timeout_ms in rolecall.toml",
    "set_verbose": "rolecall's is log_level in rolecall.toml",
    "json_logs": "rolecall's request log is JSON",
    "cache": "rolecall keeps no answers",
    "cache_params": "rolecall keeps no answers",
    "success_callback": "rolecall calls nobody; its request log is a file",
    "failure_callback": "rolecall calls nobody; its request log is a file",
    "callbacks": "rolecall calls nobody; its request log is a file",
    "routing_strategy": "rolecall chooses by role, priority and what is loaded",
    "context_window_fallbacks": "rolecall cuts a conversation to the model's context where history_fit says so",
    "content_policy_fallbacks": "rolecall passes such errors on",
    "default_fallbacks": "a role has fallbacks: rolecall roles policy ROLE --fallback NAME",
    "telemetry": "rolecall sends nothing to anybody",
}
_SECTIONS = ("model_list", "router_settings", "litellm_settings", "general_settings", "credential_list")
_GENERAL = {
    "master_key": "the key is not copied: `rolecall keys add NAME --scope admin` makes one; api_keys_file asks for it",
    "database_url": "rolecall has no database",
    "max_parallel_requests": "max_parallel of an entry bounds the requests of a model",
    "global_max_parallel_requests": "max_queue and max_connections in rolecall.toml bound them",
}


def carry_settings(root: Node, entries: Mapping[str, dict[str, Any]], outcome: Outcome) -> None:
    """Carry over what the other sections say; ``entries`` are by ``model_name``, the first of several."""
    for section in ("router_settings", "litellm_settings"):
        for key, node in outcome.mapping(root, section, ""):
            subject = f"{section}.{key}"
            if key == "model_group_alias":
                _aliases(node, subject, entries, outcome)
            elif key == "fallbacks":
                _fallbacks(node, subject, entries, outcome)
            else:
                _lost(node, subject, LITELLM_SETTINGS.get(key), outcome)
    _general(root, outcome)
    for key, node in root.members():
        if key == "environment_variables":
            outcome.todo(node.line, key, "variables are not copied: set them where rolecall is started")
        elif key == "include":
            outcome.lost(node.line, key, "other files are not read: import each of them")
        elif key not in _SECTIONS:
            outcome.lost(node.line, key, "has no counterpart")


def _general(root: Node, outcome: Outcome) -> None:
    for key, node in outcome.mapping(root, "general_settings", ""):
        if key == "master_key":
            outcome.todo(node.line, f"general_settings.{key}", _GENERAL[key])
        else:
            _lost(node, f"general_settings.{key}", _GENERAL.get(key), outcome)


def _lost(node: Node, subject: str, why: str | None, outcome: Outcome) -> None:
    hidden = "; its value is not shown" if is_secret(subject) and why is None else ""
    outcome.lost(node.line, subject, (why or "has no counterpart") + hidden)


def _aliases(node: Node, subject: str, entries: Mapping[str, dict[str, Any]], outcome: Outcome) -> None:
    for alias, target in node.members():
        name = target["model"] if isinstance(target.value, dict) else target
        entry = entries.get(str(name.value)) if name is not None else None
        if entry is None:
            outcome.lost(target.line, f"{subject}.{alias}", "there is no such model among those that were carried over")
        elif alias not in entries:
            entry.setdefault("model_aliases", []).append(alias)


def _fallbacks(node: Node, subject: str, entries: Mapping[str, dict[str, Any]], outcome: Outcome) -> None:
    """Turn the fallbacks of a name into those of a role of that name."""
    for name, targets in _pairs(node):
        known = [str(each.value) for each in targets.elements() if str(each.value) in entries]
        if name not in entries or not known:
            outcome.lost(
                targets.line, f"{subject}.{name}", "there are no such models among those that were carried over"
            )
            continue
        role = name.strip().lower()
        entries[name].setdefault("role_priority", {}).setdefault(role, 50)
        key = role if re.fullmatch(r"[a-z0-9_-]+", role) else json.dumps(role, ensure_ascii=False)
        outcome.settings.append(f"[roles.{key}]\nfallback = {json.dumps(known, ensure_ascii=False)}")
        text = f"roles have fallbacks, names have none: {name!r} plays the role {role!r}, so ask for role:{role}"
        outcome.changed(targets.line, f"{subject}.{name}", text)


def _pairs(node: Node) -> Iterator[tuple[str, Node]]:
    for each in node.elements():
        yield from each.members()
