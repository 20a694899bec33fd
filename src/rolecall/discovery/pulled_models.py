"""Models that were pulled from a hub: read like others, and known by their repository as well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rolecall.discovery.folder_models import folder_model, is_model_folder
from rolecall.discovery.found import Model, Yield
from rolecall.discovery.gguf_models import gguf_models
from rolecall.discovery.projectors import Projector
from rolecall.discovery.walk import Walk
from rolecall.runtime.model_store import ModelStore, Pulled, PulledModel

PROVIDER = "rolecall"
_REVISION = re.compile(r"/[0-9a-f]{40}(?=/|$)")


def pulled_models(root: Path, walk: Walk, out: Yield) -> None:
    """Add the models of the models folder to ``out``: of each the newest revision; what is half there is no model.

    ``walk`` does not enter these folders again.
    """
    seen: set[tuple[str, str]] = set()
    for pulled in ModelStore(root).pulled():
        walk.open(pulled.folder)
        found = _in_revision(pulled, out)
        for noted in pulled.models:
            key, model = (pulled.repository, noted.files[0].path), found.get(pulled.path(noted))
            if model is not None and key not in seen:
                seen.add(key)
                out.models.append(_annotated(model, pulled, noted))


def _in_revision(pulled: Pulled, out: Yield) -> dict[Path, Model]:
    here = Yield()
    walk = Walk(here)  # files may be those of an older revision under new names, and are looked at all the same
    above: Sequence[Projector] = ()
    for folder in walk.below(pulled.folder):
        if is_model_folder(folder):
            model = folder_model(folder, here, PROVIDER, pulled.repository)
            here.models += [model] if model else []
        projectors = gguf_models(folder, walk, here, PROVIDER, above)
        above = projectors if folder.path == pulled.folder else above
    out.skipped += here.skipped
    out.headers += here.headers
    return {model.path: model for model in here.models if model.path}


def _annotated(model: Model, pulled: Pulled, noted: PulledModel) -> Model:
    owner = pulled.repository.rpartition("/")[0]
    id_ = f"{pulled.repository}:{noted.label}" if noted.format == "gguf" else pulled.repository
    return replace(
        model,
        owners=(owner, pulled.repository.replace("/", "-"), *model.owners[-1:]),
        ids=(id_,),
        license=model.license or pulled.license,
        extra={**model.extra, "repository": pulled.repository, "revision": pulled.revision},
    )


def renewed(names: Mapping[str, str], models: Iterable[Model]) -> dict[str, str]:
    """Return the names by what they stand for, with a pulled model's name for its newer revision as well."""
    found = dict(names)
    by_place = {_REVISION.sub("", key): name for key, name in names.items()}
    for model in models:
        key = f"path {model.path}"
        if model.provider == PROVIDER and key not in found and (name := by_place.get(_REVISION.sub("", key))):
            found[key] = name
    return found
