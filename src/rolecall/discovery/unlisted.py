"""Entries for models that are in no registry, by the path of a file or a folder: as a scan would register them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rolecall.core.discovery import Rules
from rolecall.core.models import ModelEntry
from rolecall.discovery.entries import Ground, entries_of
from rolecall.discovery.found import Model, Skipped, Yield, is_utf8, shown
from rolecall.discovery.gguf_models import gguf_models
from rolecall.discovery.places import Place
from rolecall.discovery.scan import scan
from rolecall.discovery.walk import Walk
from rolecall.runtime.gguf_header import gguf_parts, is_gguf_name

_PROVIDER = "folder"
_FEW = 3


class NoModel(ValueError):
    """A path that holds no model; the message says why."""


def unlisted(path: Path, rules: Rules) -> list[ModelEntry]:
    """Return an entry for a GGUF, or for each model in and below a folder; headers are read, nothing is written.

    A file that no scan would offer gets a bare entry, so that the reason can be seen by whoever reads it. Raises
    ``NoModel`` for a path that is not there or holds none.
    """
    if not is_utf8(str(path)):
        raise NoModel(f"{shown(path)}: its name is not UTF-8, which a registry cannot hold: rename it")
    path = path.absolute()
    if path.is_file():
        return [_in_file(path, rules)]
    if not path.is_dir():
        raise NoModel(f"{path} does not exist")
    found = scan([Place(_PROVIDER, path)])
    naming = entries_of(found.models, Ground(rules))
    if not naming.named:
        reasons = [f"{each.path}: {each.reason}" for each in (*found.skipped, *naming.skipped)]
        raise NoModel("; ".join([f"{path} holds no model that can be served here", *reasons[:_FEW]]))
    return [ModelEntry.model_validate(each.entry) for each in naming.named]


def _in_file(path: Path, rules: Rules) -> ModelEntry:
    if not is_gguf_name(path):
        raise NoModel(f"{path} is no GGUF: name a file that ends in .gguf, or a folder")
    models, skipped = _beside(path)
    naming = entries_of([model for model in models if path in (model.path, *model.files)], Ground(rules))
    if naming.named:
        return ModelEntry.model_validate(naming.named[0].entry)
    refused = [each.reason for each in (*naming.skipped, *skipped) if each.path == str(path)]
    if refused and all(part.is_file() for part in gguf_parts(path)):
        raise NoModel(f"{path}: {refused[0]}")
    bare = {"name": path.stem[:256], "backend": "llama_cpp", "backend_config": {"model_path": str(path)}}
    return ModelEntry.model_validate(bare)


def _beside(path: Path) -> tuple[Sequence[Model], Sequence[Skipped]]:
    """Return the models of a file's folder, for its further parts and its projector lie there."""
    out = Yield()
    walk = Walk(out)
    folder = walk.open(path.parent)
    if folder is not None:
        gguf_models(folder, walk, out, _PROVIDER, ())
    return out.models, out.skipped
