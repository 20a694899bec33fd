"""A look at all places where there may be models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rolecall.backends.ollama import full_tag
from rolecall.discovery.folder_models import folder_model, is_model_folder, no_model
from rolecall.discovery.found import Model, Skipped, Yield, is_utf8
from rolecall.discovery.gguf_models import gguf_models
from rolecall.discovery.hub_cache import is_repository, repository_models
from rolecall.discovery.ollama_models import Daemon, daemon_models, disk_models
from rolecall.discovery.places import Place
from rolecall.discovery.projectors import Projector
from rolecall.discovery.pulled_models import PROVIDER, pulled_models
from rolecall.discovery.walk import Folder, Walk

Progress = Callable[[str, int], None]
"""Called with what is looked at, and how many models there are so far."""
_NO_MODELS = ("datasets--", "spaces--")


@dataclass
class Findings:
    """What was found. ``per_place`` counts models, ``headers`` those files that were opened.

    ``daemon`` is the answer of Ollama in words, None if it was not asked; ``has_answered`` whether its list is known.
    """

    models: list[Model] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    per_place: list[tuple[Place, int]] = field(default_factory=list)
    looked_at: list[Path] = field(default_factory=list)
    daemon: str | None = None
    has_answered: bool = False
    headers: int = 0


def scan(places: Sequence[Place], daemon: Daemon | None = None, progress: Progress | None = None) -> Findings:
    """Return the models in folders, those below them included, and those of a daemon.

    Headers are read and weights never; nothing is written or moved. What cannot be read or makes no sense is among the
    ``skipped``, with the reason; no exception comes of it.
    """
    look = _Look(progress or (lambda _what, _count: None))
    for place in places:
        before = len(look.out.models)
        look.into(place)
        look.per_place.append((place, len(look.out.models) - before))
    answer = look.ask(daemon)
    out, is_known = look.out, daemon is not None and daemon.has_listed
    return Findings(out.models, out.skipped, look.per_place, out.looked_at, answer, is_known, out.headers)


class _Look:
    def __init__(self, progress: Progress) -> None:
        self.out = Yield()
        self.per_place: list[tuple[Place, int]] = []
        self._walk = Walk(self.out)
        self._progress = progress
        self._left: dict[str, str] = {}

    def into(self, place: Place) -> None:
        if not is_utf8(str(place.path)):
            self.out.skip(place.path, "its name is not UTF-8, which a registry cannot hold: rename it")
            return
        self.out.looked_at += [place.path.absolute(), place.path.resolve()]
        if place.provider == PROVIDER:
            pulled_models(place.path.absolute(), self._walk, self.out)
            return
        projectors: dict[Path, Sequence[Projector]] = {}
        for folder in self._walk.below(place.path.absolute()):
            self._progress(str(folder.path), len(self.out.models))
            if not self._is_whole(folder):
                above = projectors.get(folder.path.parent, ())
                projectors[folder.path] = gguf_models(folder, self._walk, self.out, place.provider, above)
                self._as_one(folder, place.provider)

    def _is_whole(self, folder: Folder) -> bool:
        """Whether a folder is of a form that is read in its own way, or to be left out as a whole."""
        if {"manifests", "blobs"} <= set(folder.folders):
            models, reasons = disk_models(folder.path, self.out)
            self.out.models += models
            self._left |= reasons
            folder.folders = [name for name in folder.folders if name not in ("manifests", "blobs")]
            return True
        reason = no_model(folder)
        if is_repository(folder):
            repository_models(folder.path, self._walk, self.out)
        elif reason:
            self.out.skip(folder.path, reason)
        elif not folder.path.name.startswith(_NO_MODELS):
            return False
        folder.folders = []
        return True

    def _as_one(self, folder: Folder, provider: str) -> None:
        if is_model_folder(folder):
            model = folder_model(folder, self.out, provider)
            self.out.models += [model] if model else []
            if "modules.json" in folder.files:  # its parts lie below it
                folder.folders = []

    def ask(self, daemon: Daemon | None) -> str | None:
        """Add what only the daemon can serve, and return in words what it answered; None if there is none to ask."""
        if daemon is None:
            self._note(self._left.items(), "and Ollama was not asked")
            return None
        self._progress(f"Ollama at {daemon.base_url}", len(self.out.models))
        there = {full_tag(tag) for model in self.out.models if model.provider == "ollama" for tag in model.ids}
        models = daemon_models(daemon, self._left, there, self.out)
        self.out.models += models
        if not daemon.has_listed:
            self._note(self._left.items(), "and Ollama, which could serve it, does not answer")
            return f"no answer from {daemon.base_url}: {daemon.problem}"
        known = {full_tag(tag) for model in models for tag in model.ids}
        self._note([(tag, why) for tag, why in self._left.items() if tag not in known], "and Ollama does not list it")
        return f"{daemon.base_url} serves {len(models)} of its models itself"

    def _note(self, left: Iterable[tuple[str, str]], rest: str) -> None:
        for tag, why in left:
            self.out.skip(f"ollama {tag}", f"{why}, {rest}")
