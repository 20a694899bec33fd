"""What is changed in a request's body before an engine gets it, but for messages and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rolecall.core.endpoints import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from rolecall.core.instructions import fit_instructions
from rolecall.core.models import SIZE_DEFAULTS, ModelEntry
from rolecall.core.responses import fit_responses
from rolecall.core.traits import Traits
from rolecall.core.transforms import RequestFacts

_WITH_DEFAULTS = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})
_REQUEST_NAMES = {"temp": "temperature"}
"""Generation defaults that go by the name of an engine's option, and what a request calls them."""

STAND_INS = "rolecall_defaults"
"""A field of ours, which no engine gets: numbers by name that come last, after request and entry, for llama.cpp."""
_STANDING_IN = frozenset({"temperature", "top_p", "top_k", "presence_penalty", "mirostat"})
_MOST = 2**20
_ANY_SLOT = -1
"""llama.cpp takes the slot whose prompt begins most alike, else the one left alone for longest: questions about one
picture find it in the cache, and pictures throw nothing out of a slot that an entry keeps for something else."""

_NEWER, _OLDER = "max_completion_tokens", "max_tokens"
LIMITS = (_NEWER, _OLDER, "max_output_tokens", "n_predict", "num_predict")
"""What limits an answer, under any of its names; the first two are OpenAI's, and the newer one goes first."""
_LIMIT_OF_ENDPOINT = {COMPLETIONS: _OLDER, MESSAGES: _OLDER, RESPONSES: "max_output_tokens"}
_KNOW_THE_OLDER = frozenset({"llama_cpp", "ollama"})
"""Backends that get ``max_tokens``: Ollama (openai/openai.go) knows no other name, nor does an older llama-server."""

NOT_FOR_CLIENTS = frozenset(
    {
        "num_ctx",  # Ollama loads the model again for another one; so does whoever copies it
        "keep_alive",  # loading and unloading are rolecall's
        "id_slot",  # llama.cpp: waits for one slot and throws out what it has cached, whoever's that is
        "slot_id",
        "sse_ping_interval",  # llama.cpp: 0 stops the pings that keep a stream's connection open, 1 sends many
        "chat_template",  # vLLM: a program that runs in the engine (GHSA-6fvq-23cw-5628); llama.cpp ignores it
        "kv_transfer_params",  # vLLM: a host to fetch the cache from
        "ec_transfer_params",
        "prompt_embeds",  # vLLM: pickled tensors (CVE-2025-62164)
        "logits_processors",  # vLLM before 0.10: names of Python functions to import
    }
)
"""Fields by which a request would do something to an engine or to other requests. All others pass, known or not."""
_NOT_IN = {
    "chat_template_kwargs": frozenset({"chat_template", "tokenize"}),  # vLLM: the same program; CVE-2025-62426
    "options": frozenset(
        {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "use_mlock", "num_thread", "low_vram", "numa"}
    ),  # Ollama's api.Runner and older ones: another value loads the model again
}


def adapt(
    body: Mapping[str, Any], facts: RequestFacts, entry: ModelEntry, served_id: str, traits: Traits | None = None
) -> dict[str, Any]:
    """Return the body for the engine: its model id, the entry's defaults and rules, names that it knows.

    All else stays as it came. Fields that are not for clients go first, so that the registry may set them. Defaults
    fill only what the request leaves out or gives as null. ``request.strip`` and ``request.set`` come last: the
    registry has the last word. Without ``traits`` the roles of messages are left alone.
    """
    adapted = _for_clients(body)
    adapted["model"] = served_id
    stand_ins = adapted.pop(STAND_INS, None)
    if facts.images and facts.endpoint == CHAT and entry.backend == "llama_cpp":
        adapted["id_slot"] = _ANY_SLOT
    if facts.endpoint in _WITH_DEFAULTS:
        _fill(adapted, entry, facts.endpoint)
        if stand_ins is not None and entry.backend == "llama_cpp":
            _stand_in(adapted, stand_ins)
        _rename_limit(adapted, _limit_name(facts.endpoint, entry))
    if facts.hides_usage:
        adapted["stream_options"] = {**(adapted.get("stream_options") or {}), "include_usage": True}
    if facts.endpoint == RESPONSES and entry.backend == "llama_cpp":
        fit_responses(adapted)
    if traits is not None:
        fit_instructions(adapted, facts.endpoint, knows_developer=traits.knows_developer, backend=entry.backend)
    rules = entry.request
    for key in rules.strip:
        adapted.pop(key, None)
    adapted.update(rules.set)
    return adapted


def _for_clients(body: Mapping[str, Any]) -> dict[str, Any]:
    kept = dict(body)
    if not NOT_FOR_CLIENTS.isdisjoint(kept):
        kept = {name: value for name, value in kept.items() if name not in NOT_FOR_CLIENTS}
    if _NOT_IN.keys().isdisjoint(kept):
        return kept
    for name, refused in _NOT_IN.items():
        inner = kept.get(name)
        if isinstance(inner, dict) and not refused.isdisjoint(inner):
            kept[name] = {key: value for key, value in inner.items() if key not in refused}
    return kept


def _fill(adapted: dict[str, Any], entry: ModelEntry, endpoint: str) -> None:
    if not entry.generation_defaults:
        return
    is_limited = any(adapted.get(name) is not None for name in LIMITS)
    for name, value in entry.generation_defaults.items():
        key = _REQUEST_NAMES.get(name, name)
        if value is None or key in SIZE_DEFAULTS:
            continue
        if key in LIMITS:
            key = _LIMIT_OF_ENDPOINT.get(endpoint, key)
            if is_limited:
                continue
        if adapted.get(key) is None:
            adapted[key] = value


def _stand_in(adapted: dict[str, Any], stand_ins: Any) -> None:
    for name in _STANDING_IN.intersection(stand_ins if isinstance(stand_ins, dict) else ()):
        value = stand_ins[name]
        if adapted.get(name) is None and isinstance(value, int | float) and -_MOST <= value <= _MOST:
            adapted[name] = value


def _limit_name(endpoint: str, entry: ModelEntry) -> str | None:
    """Return the one name under which the engine is to get the limit; None if it knows both of OpenAI's."""
    if endpoint in _LIMIT_OF_ENDPOINT:
        return _LIMIT_OF_ENDPOINT[endpoint]
    return _OLDER if entry.backend in _KNOW_THE_OLDER else None


def _rename_limit(adapted: dict[str, Any], name: str | None) -> None:
    """Give a limit under one of OpenAI's names that name; of two the newer one counts, as with OpenAI."""
    if name is None:
        return
    newer, older = adapted.get(_NEWER), adapted.get(_OLDER)
    limit = older if newer is None else newer
    if limit is None or (adapted.get(name) is not None and name not in (_NEWER, _OLDER)):
        return
    for other in (_NEWER, _OLDER):
        adapted.pop(other, None)
    adapted[name] = limit
