"""A model of a repository onto the disk, whole and verified, before anybody is told of it."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.core.hub_listing import Choice, HubFile
from rolecall.core.wording import amount
from rolecall.hub.download import NoRoom, Report, check, fetch, link, settle, size, written
from rolecall.hub.failures import HubError, WrongContent
from rolecall.runtime.model_store import Busy, ModelStore, Pulled, as_pulled

if TYPE_CHECKING:
    from rolecall.hub.client import Hub, Repository


def missing_bytes(store: ModelStore, repository: Repository, choice: Choice) -> int:
    """Return how many bytes of a choice are yet to come."""
    folder = store.revision_folder(repository.id, repository.commit)
    return sum(_missing(store, repository.id, folder, file) for file in choice.all_files)


def _missing(store: ModelStore, name: str, folder: Path, file: HubFile) -> int:
    if size(folder / file.path) == file.size_bytes or store.same_content(name, file):
        return 0
    return max(0, file.size_bytes - size(store.part(name, file)))


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk of a folder that need not exist yet."""
    for path in (folder, *folder.parents):
        with suppress(OSError):
            return shutil.disk_usage(path).free
    return 0


def pull(hub: Hub, store: ModelStore, repository: Repository, choice: Choice, report: Report) -> Pulled:
    """Fetch what is not here of a choice, verify it and note that it is here.

    Files get their names one by one when they are verified; the note comes last, so that what is noted is whole. Raises
    `HubError` for anything that goes wrong; what came is kept for the next attempt, unless it was wrong.
    """
    need, free = missing_bytes(store, repository, choice), free_bytes(store.folder)
    if need > free:
        raise NoRoom(
            f"{amount(need)} are to come, and {amount(free)} are free on the disk of {store.folder}: "
            "make room (`rolecall models prune`, `rolecall models remove`), or set models_dir to another disk"
        )
    bringing = _Bringing(hub, store, repository, report)
    try:
        with store.held(repository.id):
            pulled = bringing.all_of(choice)
            store.tidy(repository.id)
            return pulled
    except Busy as error:
        raise HubError(f"{error}: wait for it, or end it") from None
    except OSError as error:
        raise written(bringing.folder, error) from None


@dataclass(frozen=True, slots=True)
class _Bringing:
    hub: Hub
    store: ModelStore
    repository: Repository
    report: Report

    @property
    def folder(self) -> Path:
        return self.store.revision_folder(self.repository.id, self.repository.commit)

    def all_of(self, choice: Choice) -> Pulled:
        here = self.store.pulled(self.repository.id)
        noted = next((each.files() for each in here if each.folder == self.folder), {})
        for file in choice.all_files:
            target = self.folder / file.path
            if not (noted.get(file.path) == file and size(target) == file.size_bytes):
                self.one(file, target)
        name, commit, ref = self.repository.id, self.repository.commit, self.repository.ref
        models = (as_pulled(choice),)
        return self.store.add(Pulled(name, commit, ref, self.repository.license, time.time(), self.folder, models))

    def one(self, file: HubFile, target: Path) -> None:
        if target.exists() and _is_right(target, file, self.report):  # of an attempt that ended before its note
            return
        same = self.store.same_content(self.repository.id, file)
        if same is not None and link(same, target):
            return
        part = self.store.part(self.repository.id, file)
        try:
            fetch(self.hub, self.repository, file, part, self.report)
            check(part, file, self.report)
        except WrongContent as error:
            part.unlink(missing_ok=True)
            raise WrongContent(
                f"{error}: nothing of this file is kept. Pull again; if that ends likewise, something between here "
                f"and {self.repository.url} changes contents, or the repository is broken"
            ) from None
        settle(part, target)


def _is_right(path: Path, file: HubFile, report: Report) -> bool:
    """Whether a file is what it should be; one that is not is removed."""
    try:
        check(path, file, report)
    except WrongContent:
        path.unlink()
        return False
    return True
