"""Where pulled models lie: ``ORGANISATION/NAME/REVISION`` below the models folder, the files called as in their
repository, with a note of what they are.

Not Hugging Face's cache: what is registered here must not go when somebody tidies up there, nor what others use there
when a model is removed here; that cache is its library's own affair, and since release 1.18 it keeps no part of a
download that broke off.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from rolecall.core.hub_listing import Choice, Format, HubFile, unsafe
from rolecall.runtime.json_file import read_object
from rolecall.runtime.registry import write_atomically

NOTE = ".rolecall.json"
PARTS = ".partial"
VERSION = 1
NOBODY = "_"
"""Stands for the organisation of the few repositories that have none."""
_MOST_NOTE_BYTES = 16 * 2**20
_REVISION = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model of a revision that is here completely; paths are relative to the revision's folder."""

    label: str
    format: Format
    files: tuple[HubFile, ...]
    projector: HubFile | None = None

    @property
    def all_files(self) -> tuple[HubFile, ...]:
        """Its files, with the projector."""
        return (*self.files, self.projector) if self.projector else self.files

    @property
    def size_bytes(self) -> int:
        """The bytes of all its files."""
        return sum(file.size_bytes for file in self.all_files)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A revision of a repository with the models that were pulled of it; ``at`` is the time of the last pull, in s."""

    repository: str
    revision: str
    ref: str
    license: str | None
    at: float
    folder: Path
    models: tuple[PulledModel, ...]

    def path(self, model: PulledModel) -> Path:
        """Return what an engine is given: the first file, or the folder."""
        return self.folder / model.files[0].path if model.format == "gguf" else self.folder

    def files(self) -> dict[str, HubFile]:
        """Return all files by path."""
        return {file.path: file for model in self.models for file in model.all_files}


@dataclass(frozen=True, slots=True)
class Part:
    """What a pull left that was not finished."""

    repository: str
    path: Path
    size_bytes: int


class Busy(Exception):
    """Another process pulls or removes models of the same repository."""


@dataclass(frozen=True, slots=True)
class ModelStore:
    """The models folder. Nothing of it need exist."""

    folder: Path

    def repository_folder(self, repository: str) -> Path:
        """Return the folder of a repository."""
        organisation, separator, name = repository.partition("/")
        return self.folder / organisation / name if separator else self.folder / NOBODY / organisation

    def revision_folder(self, repository: str, revision: str) -> Path:
        """Return the folder of one of its revisions."""
        return self.repository_folder(repository) / revision

    def part(self, repository: str, file: HubFile) -> Path:
        """Return where a file stands until it is complete: by its content, so that a newer revision goes on with it."""
        name = file.key or sha256(file.path.encode()).hexdigest()
        return self.repository_folder(repository) / PARTS / f"{name}.part"

    def pulled(self, repository: str | None = None) -> list[Pulled]:
        """Return what is here, by repository, the newest revision first."""
        root = self.repository_folder(repository) if repository else None
        found = [note for path in self._notes(root) if (note := _read(path)) is not None]
        return sorted(found, key=lambda each: (each.repository, -each.at))

    def revision(self, folder: Path) -> Pulled | None:
        """Return what is here of one revision, None if nothing is."""
        return _read(folder / NOTE)

    def _notes(self, root: Path | None) -> Iterable[Path]:
        return root.glob(f"*/{NOTE}") if root else self.folder.glob(f"*/*/*/{NOTE}")

    def parts(self) -> list[Part]:
        """Return what broken pulls left."""
        found = []
        for path in sorted(self.folder.glob(f"*/*/{PARTS}/*.part")):
            with suppress(OSError):
                found.append(Part(_repository(path.parents[1]), path, path.stat().st_size))
        return found

    def strays(self) -> list[tuple[str, Path]]:
        """Return files of revisions that no note knows, each with its repository: of pulls that ended between files."""
        found: list[tuple[str, Path]] = []
        for folder in self.folder.glob("*/*/*"):
            if _REVISION.fullmatch(folder.name) and folder.is_dir():
                note = _read(folder / NOTE)
                known = {folder / path for path in note.files()} | {folder / NOTE} if note else set()
                files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in known)
                found += [(_repository(folder.parent), path) for path in files]
        return found

    def note(self, pulled: Pulled) -> Path:
        """Return where the note of a revision stands."""
        return pulled.folder / NOTE

    def same_content(self, repository: str, file: HubFile) -> Path | None:
        """Return a file of another revision that is known to have this content."""
        for pulled in self.pulled(repository) if file.key else ():
            for path, known in pulled.files().items():
                if known.key == file.key and _size(pulled.folder / path) == file.size_bytes:
                    return pulled.folder / path
        return None

    def add(self, pulled: Pulled) -> Pulled:
        """Note that models are here, beside those that are noted already; return both. Raises ``OSError``."""
        before = _read(pulled.folder / NOTE)
        models = {_key(model): model for each in (before, pulled) if each for model in each.models}
        return self.write(pulled, models.values())

    def write(self, pulled: Pulled, models: Iterable[PulledModel]) -> Pulled:
        """Note that these models of a revision are here and no others. Raises ``OSError``."""
        whole = Pulled(
            pulled.repository,
            pulled.revision,
            pulled.ref,
            pulled.license,
            pulled.at,
            pulled.folder,
            tuple(models),
        )
        content = {"version": VERSION, **asdict(whole), "folder": None}
        write_atomically(pulled.folder / NOTE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return whole

    @contextmanager
    def held(self, repository: str) -> Iterator[None]:
        """Keep every other process from changing a repository's folder meanwhile; raises `Busy`, ``OSError``."""
        folder = self.repository_folder(repository)
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"another process is pulling or removing {repository}") from None
            yield
        finally:
            os.close(fd)

    def tidy(self, repository: str) -> None:
        """Remove the folders of a repository that have become empty."""
        folder = self.repository_folder(repository)
        below = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
        for path in (*below, folder, folder.parent):
            with suppress(OSError):  # not empty
                path.rmdir()


def _repository(folder: Path) -> str:
    return folder.name if folder.parent.name == NOBODY else f"{folder.parent.name}/{folder.name}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _key(model: PulledModel) -> str:
    return model.files[0].path if model.format == "gguf" else ""


def as_pulled(choice: Choice) -> PulledModel:
    """Return what is noted of a choice."""
    return PulledModel(choice.label, choice.format, choice.files, choice.projector)


def _read(path: Path) -> Pulled | None:
    """Return a note, None for one that is absent or makes no sense."""
    try:
        known = read_object(path, _MOST_NOTE_BYTES)
        models = tuple(map(_model, known["models"]))
        if known["version"] != VERSION or not models:
            return None
        named = known["license"]
        return Pulled(
            str(known["repository"]),
            str(known["revision"]),
            str(known["ref"]),
            named if isinstance(named, str) else None,
            float(known["at"]),
            path.parent,
            models,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _model(known: Mapping[str, Any]) -> PulledModel:
    kind = known["format"]
    if kind not in ("gguf", "safetensors") or not known["files"]:
        raise ValueError("no model")
    projector = known["projector"]
    return PulledModel(
        str(known["label"]),
        cast("Format", kind),
        tuple(map(_file, known["files"])),
        _file(projector) if projector else None,
    )


def _file(known: Mapping[str, Any]) -> HubFile:
    if unsafe(known["path"]) or not isinstance(known["size_bytes"], int):
        raise ValueError("no file")
    return HubFile(known["path"], known["size_bytes"], known["sha256"], known["git_sha1"])
