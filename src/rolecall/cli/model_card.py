"""All that is known of one model: its fields, its files, what it holds, how its engine is started."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.text import Text

from rolecall.backends.base import Backend, Places, RemoteLoad, mmproj_path, model_path
from rolecall.cli.table import labelled
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Candidate, Demand, select
from rolecall.core.wording import counted
from rolecall.runtime.ports import free_port
from rolecall.runtime.roster import Roster

_PARTS = {
    "weights_mb": "weights",
    "kv_cache_mb": "KV cache",
    "compute_mb": "compute",
    "projector_mb": "projector",
    "fixed_mb": "process",
}
_TIMES = {"load_s": "loads", "wake_s": "wakes"}


def card(roster: Roster, entry: ModelEntry) -> dict[str, Any]:
    """Return what ``rolecall models show --json`` prints.

    ``registry`` is the entry as it is written, ``fields`` as it is understood; ``available`` is whether it can serve
    requests on this machine; ``engine`` holds the command line or the address of its engine, None if it has neither;
    ``traits`` are what its chat template says. ``footprint_mb`` is what its next start needs, ``given_mb`` what it is
    given: more if its group has more; memory in MB, times in s.
    """
    at = [written.name for written in roster.registry.entries].index(entry.name)
    candidate = next(candidate for candidate in roster.candidates() if candidate.entry is entry)
    backend = roster.backend(entry)
    reason = _why_not(roster, candidate)
    return {
        "name": entry.name,
        "fields": entry.model_dump(mode="json"),
        "registry": roster.registry.merged[at],
        "unknown_fields": _unknown(entry),
        "roles": entry.priorities,
        "capabilities": sorted(entry.all_capabilities),
        "context_tokens": entry.context_tokens,
        "max_parallel": backend.parallel(entry),
        "installed": candidate.unavailable is None,
        "available": reason is None,
        "reason": reason,
        **_memory(roster, entry),
        "given_mb": candidate.footprint_mb,
        "load_s": _load_s(roster, entry, backend),
        "learnt": _learnt(roster, entry),
        "paths": _paths(roster, entry),
        "traits": asdict(roster.traits(entry)),
        "engine": _engine(entry, backend),
    }


def _why_not(roster: Roster, candidate: Candidate) -> str | None:
    rejected = select(Demand(), [candidate], roster.rules()).rejected
    return rejected[0].reason if rejected else None


def _unknown(entry: ModelEntry) -> list[str]:
    parts = {"": entry, "backend_config.": entry.backend_config, "request.": entry.request}
    return [prefix + key for prefix, record in parts.items() for key in record.model_extra or ()]


def _memory(roster: Roster, entry: ModelEntry) -> dict[str, Any]:
    footprint = roster.footprint(entry)
    computed = roster.footprints.computed(entry)
    parts = None if computed is None else {name: getattr(computed, name) for name in ("mb", *_PARTS, "least_mb", "why")}
    return {
        "footprint_mb": footprint.mb,
        "footprint_source": footprint.source,
        "footprint_detail": footprint.detail,
        "computed": parts,
        "declared_mb": entry.vram_estimate_mb,
    }


def _load_s(roster: Roster, entry: ModelEntry, backend: Backend) -> float | None:
    return round(roster.footprints.load_s(entry), 1) if backend.managed else None


def _learnt(roster: Roster, entry: ModelEntry) -> list[dict[str, Any]]:
    """What its loads have taught, the last kind of start first: another context or card is another footprint."""
    rows = [row for row in roster.footprints.store.rows() if row.key.model == entry.name]
    return [
        {
            "device": row.key.device,
            "context_tokens": row.key.context_tokens or None,
            "max_parallel": row.key.parallel,
            "engine_build": row.key.engine_build,
            "footprint_mb": row.footprint_mb,
            "loads": row.loads,
            "ran_out_with_mb": row.ran_out_with_mb,
            "load_s": row.load_s,
            "wake_s": row.wake_s,
        }
        for row in rows
    ]


def _paths(roster: Roster, entry: ModelEntry) -> list[dict[str, Any]]:
    places = Places(roster.settings.config_dir, roster.settings.state_dir)
    named = {"model": model_path(entry, places), "mmproj": mmproj_path(entry, places)}
    return [{"what": what, "path": str(path), "exists": path.exists()} for what, path in named.items() if path]


def _engine(entry: ModelEntry, backend: Backend) -> dict[str, Any] | None:
    if backend.unavailable(entry) is not None:
        return None
    launch = backend.launch(entry, entry.backend_config.port or free_port()) if backend.managed else None
    if launch is None or isinstance(launch, RemoteLoad):
        upstream = backend.upstream(entry, 0)
        key = upstream.api_key_env
        return {"url": upstream.base_url, "api_key_env": key, "api_key_is_set": bool(key and os.environ.get(key))}
    return {
        "argv": list(launch.argv),
        "env": dict(launch.env),
        "health_url": launch.base_url.removesuffix("/v1") + launch.health_path,
    }


def card_lines(known: Mapping[str, Any], width: int | None) -> Iterator[Text]:
    """Yield the card as people read it: what was derived, the fields that are given, the engine's command line."""
    yield from labelled(_derived(known), width)
    yield Text()
    yield Text("in the registry", "bold")
    yield from labelled([(f"  {name}", _value(value)) for name, value in known["registry"].items()], width)
    engine = known["engine"]
    if engine and "argv" in engine:
        yield Text()
        yield Text("engine (a free port is taken at each start)", "bold")
        words = [f"{name}={shlex.quote(value)}" for name, value in engine["env"].items()]
        yield Text("  " + " ".join([*words, shlex.join(engine["argv"])]))


def _derived(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", known["name"]
    yield "available", "yes" if known["available"] else f"no: {known['reason']}"
    yield from _needs(known)
    yield "roles", ", ".join(f"{role} {priority:g}" for role, priority in known["roles"].items()) or "none"
    yield "can", ", ".join(known["capabilities"])
    yield "thinks", "before it answers, perhaps" if known["traits"]["thinks"] else "no"
    yield "developer", "a role that it knows" if known["traits"]["knows_developer"] else "becomes the role system"
    yield "context", f"{known['context_tokens']} tokens" if known["context_tokens"] else "as the engine has it"
    yield "serves", f"{counted(known['max_parallel'], 'request')} at once"
    for path in known["paths"]:
        yield f"{path['what']} file", path["path"] + f"  ({'exists' if path['exists'] else 'does not exist'})"
    if known["unknown_fields"]:
        yield "unknown fields", ", ".join(known["unknown_fields"])
    engine = known["engine"]
    if engine and "url" in engine:
        key = engine["api_key_env"]
        yield "upstream", engine["url"]
        yield "API key", f"${key} ({'set' if engine['api_key_is_set'] else 'not set'})" if key else "none"


def _needs(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    mb, given_mb, computed = known["footprint_mb"], known["given_mb"], known["computed"]
    yield "footprint", f"{'?' if mb is None else mb} MB ({known['footprint_source']}: {known['footprint_detail']})"
    if None not in (mb, given_mb) and given_mb != mb:
        yield "given", f"{given_mb} MB, its part of what its group has"
    if computed is not None:
        sizes = " + ".join(f"{what} {computed[name]}" for name, what in _PARTS.items() if computed[name])
        yield "computed", f"{computed['mb']} MB = {sizes} ({computed['why']})"
    if known["declared_mb"] is not None:
        yield "declared", f"{known['declared_mb']} MB (vram_estimate_mb)"
    for row in known["learnt"]:
        yield "learnt", _lesson(row)
    if known["load_s"] is not None and all(row["load_s"] is None for row in known["learnt"]):
        yield "load time", f"about {known['load_s']:g} s, guessed: no load was seen"


def _lesson(row: Mapping[str, Any]) -> str:
    """``on NVIDIA X: 5210 MB (3 loads), loads in 12.1 s, wakes in 0.8 s``."""
    said = []
    if row["footprint_mb"] is not None:
        said.append(f"{row['footprint_mb']} MB ({counted(row['loads'], 'load')})")
    if row["ran_out_with_mb"] is not None:
        said.append(f"ran out of memory with {row['ran_out_with_mb']} MB")
    said += [f"{what} in {row[name]:.1f} s" for name, what in _TIMES.items() if row[name] is not None]
    context = f", context {row['context_tokens']}" if row["context_tokens"] else ""
    return f"on {row['device']}{context}: {', '.join(said)}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
