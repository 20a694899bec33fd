"""Entries of the registry from models that were found: names, and what the rules make of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolecall.core.discovery import Rules, Verdict, judge
from rolecall.core.model_names import free_name, full_name, names
from rolecall.core.models import ModelEntry
from rolecall.discovery.found import Model, Skipped, shown

MARK = "discovered"
"""The key of an entry's metadata by which a scan knows its own."""
_OLLAMA_CACHE_MB = 1024
"""What a model of Ollama's is thought to need beside its weights, until it was seen: its default context is small."""

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """A model with its entry, and why it is as it is."""

    model: Model
    verdict: Verdict
    entry: Entry

    @property
    def name(self) -> str:
        """The entry's name."""
        return str(self.entry["name"])


@dataclass
class Naming:
    """What came of naming: entries, models that are not offered, and those of the same name."""

    named: list[Named] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Ground:
    """What entries are made by, beside the models.

    ``known`` are the names of earlier entries by what they stand for (`identity`): whoever has a name keeps it.
    ``owned`` are files of curated entries, with those entries' names. ``ollama_url`` is written into entries whose
    daemon is not where the settings say.
    """

    rules: Rules
    curated: Sequence[ModelEntry] = ()
    known: Mapping[str, str] = field(default_factory=dict)
    owned: Mapping[str, str] = field(default_factory=dict)
    ollama_url: str | None = None

    def owner(self, model: Model) -> str | None:
        """Return the curated entry of a model's file."""
        return self.owned.get(os.path.realpath(model.path)) if model.path else None

    def had(self, model: Model) -> str | None:
        """Return the name that a model had before and may keep."""
        name = self.known.get(f"path {model.path}" if model.path else f"tag {model.tag}")
        return name if name and name in names(model.bare, model.quantization, model.owners) else None

    def fills(self, model: Model, entry: ModelEntry | None) -> bool:
        """Whether a curated entry of a model's name means it: of its backend, with no file of its own or this one."""
        if entry is None or entry.backend != model.backend:
            return False
        has_path = entry.backend_config.model_path or entry.download_location
        return not has_path or self.owner(model) == entry.name


def entries_of(models: Iterable[Model], ground: Ground) -> Naming:
    """Return an entry for each model, with names that nobody else has.

    What a person has registered under a name of their own is not offered again. A name of the curated registry is given
    only to a model that fills that entry.
    """
    made = Naming()
    judged = []
    for model in models:
        verdict = judge(model.found, ground.rules)
        owner = ground.owner(model)
        if owner is not None and owner not in names(model.bare, model.quantization, model.owners):
            made.skipped.append(Skipped(_where(model), f"the curated registry has it as {owner!r}"))
        elif verdict.refused:
            made.skipped.append(Skipped(_where(model), verdict.refused))
        else:
            judged.append((model, verdict))
    _name(made, judged, ground)
    return made


def _where(model: Model) -> str:
    return shown(model.path) if model.path else f"ollama {model.tag}"


def identity(entry: Mapping[str, Any]) -> str:
    """Return what an entry stands for: its file or folder, or the tag of its daemon."""
    config = entry.get("backend_config")
    path = config.get("model_path") if isinstance(config, dict) else None
    return f"path {path}" if isinstance(path, str) else f"tag {entry.get('served_model_id')}"


def _name(made: Naming, judged: Sequence[tuple[Model, Verdict]], ground: Ground) -> None:
    by_name = {entry.name: entry for entry in ground.curated}
    closed = {id_ for entry in ground.curated for id_ in entry.ids}
    taken: set[str] = set()
    groups: dict[str, list[Named]] = {}
    for model, verdict in sorted(judged, key=lambda pair: ground.had(pair[0]) is None):
        unusable = {name for name in closed if not ground.fills(model, by_name.get(name))} | taken
        had = ground.had(model)
        is_free = had is not None and had not in unusable
        name = had if had and is_free else free_name(model.bare, model.quantization, model.owners, unusable)
        taken.add(name)
        one = Named(model, verdict, _entry(model, verdict, name, ground))
        made.named.append(one)
        groups.setdefault(full_name(model.bare, model.quantization), []).append(one)
    _add_aliases(made.named, closed | taken)
    made.conflicts = [
        {"name": name, "models": [{"name": each.name, "path": _where(each.model)} for each in group]}
        for name, group in sorted(groups.items())
        if len(group) > 1
    ]
    made.named.sort(key=lambda each: each.name)


def _add_aliases(named: Sequence[Named], closed: Collection[str]) -> None:
    """Give each model the names by which others know it, the first come of those that two would have."""
    taken = set(closed)
    for each in named:
        free = [id_ for id_ in dict.fromkeys(each.model.ids) if id_ not in taken and len(id_) <= 256]
        taken.update(free)
        if free:
            each.entry["model_aliases"] = free


def _entry(model: Model, verdict: Verdict, name: str, ground: Ground) -> Entry:
    entry: Entry = {
        "name": name,
        "model_aliases": [],
        "backend": model.backend,
        "backend_config": _config(model, ground.ollama_url),
        "served_model_id": model.tag,
        "capabilities": list(verdict.capabilities),
        "role_priority": {role: _plain(priority) for role, priority in verdict.priorities.items()},
        "vram_estimate_mb": (model.size_bytes >> 20) + _OLLAMA_CACHE_MB if model.tag and model.size_bytes else None,
        "quantization": model.quantization and model.quantization.lower(),
        "family": model.family,
        "context_length": _context(model, ground.rules),
        "source_provider": model.provider,
        "download_format": model.found.format,
        "license": model.license,
        "metadata": {MARK: _facts(model, verdict)},
    }
    return {key: value for key, value in entry.items() if value not in (None, [], {})}


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def _context(model: Model, rules: Rules) -> int | None:
    """Of a model of Ollama's the daemon decides; a text to embed has the whole of what the model can take."""
    if model.context_tokens is None or model.tag:
        return None
    return min(model.context_tokens, rules.context_length_at_most)


def _config(model: Model, ollama_url: str | None) -> dict[str, Any]:
    if model.path is None:
        return {"base_url": ollama_url} if ollama_url else {}
    config: dict[str, Any] = {"model_path": str(model.path)}
    if model.projector is not None:
        if model.projector.parent == model.path.parent:
            config["mmproj_path"] = model.projector.name
        else:  # the registry wants it in the model's folder, and this one lies above
            config["extra_args"] = ["--mmproj", str(model.projector)]
    return config


def _facts(model: Model, verdict: Verdict) -> dict[str, Any]:
    facts = {
        "size_bytes": model.size_bytes or None,
        "parameters_b": round(model.found.parameters_b, 3) if model.found.parameters_b else None,
        "trained_context": model.context_tokens,
        "rules": [applied.rule for applied in verdict.applied],
        **model.extra,
    }
    return {key: value for key, value in facts.items() if value is not None}


def owned_paths(curated: Iterable[ModelEntry], expand: Callable[[str], Path]) -> dict[str, str]:
    """Return the files that curated entries name, as they really are, with the names of the entries."""
    found: dict[str, str] = {}
    for entry in curated:
        if path := entry.backend_config.model_path or entry.download_location:
            with suppress(OSError, ValueError):
                found.setdefault(os.path.realpath(expand(path)), entry.name)
    return found
