"""Pulled models as entries of the registry, as a scan would write them, and out of it again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolecall.backends.base import Places
from rolecall.core.models import ModelEntry
from rolecall.discovery.discover import Discovery, discover_in
from rolecall.discovery.discovered_file import read_earlier, write
from rolecall.discovery.places import Place
from rolecall.discovery.pulled_models import PROVIDER
from rolecall.runtime.private_file import locked
from rolecall.runtime.registry import load_registry
from rolecall.settings import Settings


@dataclass(frozen=True, slots=True)
class Registered:
    """What the registry says of a pulled model: its entry as written, or why there is none."""

    found: Discovery
    entry: Mapping[str, Any] | None
    reason: str | None = None


def register(settings: Settings, path: Path) -> Registered:
    """Write what is in the models folder into the discovered registry; return what became of one model.

    Raises ``ConfigurationError``, ``OSError``.
    """
    settings.config_dir.mkdir(parents=True, exist_ok=True)
    found = discover_in(settings, [Place(PROVIDER, settings.models_folder)])
    found.write()
    for named in found.naming.named:
        if named.model.path == path:
            return Registered(found, named.entry)
    reason = next((each.reason for each in found.left_out if each.path == str(path)), "a scan does not see it")
    return Registered(found, None, reason)


def entries_by_path(settings: Settings) -> dict[Path, list[ModelEntry]]:
    """Return the entries of the registry by the file or folder that their engine is given."""
    places = Places(settings.config_dir, settings.state_dir)
    found: dict[Path, list[ModelEntry]] = {}
    for entry in load_registry(settings.config_dir).entries:
        path = entry.backend_config.model_path or entry.download_location
        if path:
            found.setdefault(places.expand(path), []).append(entry)
    return found


def forget(settings: Settings, paths: Collection[Path]) -> list[str]:
    """Take the discovered entries of these files out of the registry; return their names. Raises ``OSError``."""
    with locked(settings.config_dir):
        earlier = read_earlier(settings.config_dir)
        gone = [entry for entry in earlier.scanned if _path(entry) in paths]
        kept = [entry for entry in earlier.scanned if _path(entry) not in paths]
        if gone:
            write(earlier.path, [*earlier.foreign, *kept])
    return [str(entry["name"]) for entry in gone]


def _path(entry: Mapping[str, Any]) -> Path | None:
    config = entry.get("backend_config")
    path = config.get("model_path") if isinstance(config, dict) else None
    return Path(path) if isinstance(path, str) else None
