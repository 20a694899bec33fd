"""A repository in the cache of huggingface_hub, which llama.cpp uses as well.

``models--ORG--NAME`` holds ``refs`` (a name to a revision), ``snapshots/REVISION`` (links with the names of the files)
and ``blobs`` (the contents, ``….incomplete`` while they are downloaded).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rolecall.discovery.folder_models import PREFIX, folder_model, is_model_folder, no_model
from rolecall.discovery.found import Model, Yield, is_utf8, why
from rolecall.discovery.gguf_models import gguf_models
from rolecall.discovery.projectors import Projector
from rolecall.discovery.walk import Folder, Walk

_MOST_REF_BYTES = 256


def is_repository(folder: Folder) -> bool:
    """Whether a folder is one of the cache's, with its revisions."""
    return folder.path.name.startswith(PREFIX) and "snapshots" in folder.folders


def repository_models(path: Path, walk: Walk, out: Yield) -> None:
    """Add the models of a repository to ``out``: of each the newest revision that has it completely."""
    repository = path.name.removeprefix(PREFIX).replace("--", "/")
    seen = Yield()
    names: set[str] = set()
    before = len(out.models)
    for snapshot in _snapshots(path, out):
        for model in _in_snapshot(snapshot, walk, seen):
            relative = str(model.path.relative_to(snapshot)) if model.path else ""
            if relative not in names:
                names.add(relative)
                out.models.append(_of_repository(model, repository))
    out.headers += seen.headers
    if names:
        # A revision may lack what another one has.
        is_whole = any(model.backend == "vllm" for model in out.models[before:])
        out.skipped += [each for each in seen.skipped if not is_whole or each.path.lower().endswith(".gguf")]
    elif seen.skipped:
        out.skipped += seen.skipped
    elif any(_unfinished(path)):
        out.skip(path, "incomplete: its download is not finished")


def _unfinished(path: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (path / "blobs").glob("*.incomplete")


def _snapshots(path: Path, out: Yield) -> list[Path]:
    """Return the revisions: that of ``main``, those of other names, then the rest, the newest first."""
    try:
        there = {each.name: each for each in (path / "snapshots").iterdir() if each.is_dir() and is_utf8(each.name)}
        newest = sorted(there, key=lambda name: (-there[name].stat().st_mtime_ns, name))
    except OSError as error:
        out.skip(path, f"this folder cannot be read: {why(error)}")
        return []
    named = [name for name in (_ref(file) for file in _refs(path)) if name in there]
    return [there[name] for name in dict.fromkeys([*named, *newest])]


def _refs(path: Path) -> list[Path]:
    with suppress(OSError):
        files = [file for file in (path / "refs").rglob("*") if file.is_file()]
        return sorted(files, key=lambda file: (file.name != "main", str(file)))
    return []


def _ref(file: Path) -> str:
    with suppress(OSError), file.open("rb") as opened:
        return opened.read(_MOST_REF_BYTES).decode("ascii", "replace").strip()
    return ""


def _in_snapshot(snapshot: Path, walk: Walk, out: Yield) -> list[Model]:
    found = Yield()
    above: Sequence[Projector] = ()
    files = Walk(found)  # of its own: an earlier revision may have the same projector for another model
    for folder in walk.below(snapshot):
        if folder.path == snapshot:
            if reason := no_model(folder):
                out.skip(folder.path, reason)
                return []
            if is_model_folder(folder):
                model = folder_model(folder, found, "huggingface")
                found.models += [model] if model else []
        projectors = gguf_models(folder, files, found, "huggingface", above)
        for name in folder.named(".gguf"):
            walk.is_new_file(folder.files[name])
        above = projectors if folder.path == snapshot else above
    out.skipped += found.skipped
    out.headers += found.headers
    return found.models


def _of_repository(model: Model, repository: str) -> Model:
    """Add the names that people use: the repository, or for a GGUF what llama.cpp takes for ``-hf``."""
    owner = repository.rpartition("/")[0]
    if model.backend == "vllm":
        return replace(model, owners=(owner, *model.owners[-1:]))
    ids = (f"{repository}:{model.quantization}",) if model.quantization else ()
    return replace(model, owners=(owner, repository.replace("/", "-"), *model.owners[-1:]), ids=ids)
