"""Entries as they are in force: those of the registry, with what was set at `/api/config` and what lies beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from rolecall.backends.base import Places, model_path
from rolecall.core.api_config import ApiConfig, configured_entry
from rolecall.core.models import ModelEntry
from rolecall.runtime.projectors import beside, may_have_one

log = logging.getLogger(__name__)

_Known = tuple[ModelEntry, ApiConfig, str | None, int | None]


class Effective:
    """Makes entries; those of which nothing changed are the same objects each time. It looks at the disk.

    ``own_context`` returns the context that a model's files say it has, in tokens.
    """

    def __init__(self, places: Places, own_context: Callable[[ModelEntry], int | None]) -> None:
        self._places = places
        self._own_context = own_context
        self._made: dict[str, tuple[_Known, ModelEntry]] = {}
        self._warned: set[str] = set()

    def of(self, entries: Iterable[ModelEntry], config: ApiConfig) -> tuple[ModelEntry, ...]:
        """Return the entries as they are in force."""
        return tuple([self._entry(entry, config) for entry in entries])

    def _entry(self, entry: ModelEntry, config: ApiConfig) -> ModelEntry:
        projector = self._projector(entry)
        needs_context = config.llm_params.ctx_size is not None and entry.context_tokens is None
        context = self._own_context(entry) if needs_context else None
        known = (entry, config, projector, context)
        made = self._made.get(entry.name)
        if made is None or made[0][0] is not entry or made[0][1:] != known[1:]:
            made = known, configured_entry(_seeing(entry, projector), config, context)
            self._made[entry.name] = made
        return made[1]

    def _projector(self, entry: ModelEntry) -> str | None:
        """Return the projector beside a model that names none; "" for one that is missing, None where none is."""
        path = model_path(entry, self._places) if may_have_one(entry) else None
        with suppress(OSError, ValueError):
            if path is not None and path.suffix.lower() == ".gguf" and path.is_file():
                found = beside(path)
                if found is not None or "vision" not in entry.capabilities:
                    self._warned.discard(entry.name)
                    return found
                if entry.name not in self._warned:
                    self._warned.add(entry.name)
                    log.warning(
                        "registry: %r lists vision, but no projector (mmproj) lies beside %s; it reads text only until "
                        "there is one, or backend_config.mmproj_id names it",
                        entry.name,
                        path,
                    )
                return ""
        return None


def _seeing(entry: ModelEntry, projector: str | None) -> ModelEntry:
    if projector is None:
        return entry
    if projector:
        return entry.changed({"mmproj_id": projector})
    return entry.changed(capabilities=[word for word in entry.capabilities if word != "vision"])
