"""Models that were pulled, kept in order: verified, removed, and what is of no more use taken away. No hub is asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rolecall.hub.download import Report, check, written
from rolecall.hub.failures import WrongContent
from rolecall.runtime.model_store import Busy, ModelStore, Pulled, PulledModel


@dataclass(frozen=True, slots=True)
class Removal:
    """Files that are to go, with their bytes, and what they are in words."""

    what: str
    repository: str
    paths: tuple[Path, ...]

    @property
    def freed_bytes(self) -> int:
        """What that gives back; a file that another revision shares gives back nothing."""
        return sum(map(_freed, self.paths))


def _freed(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if status.st_nlink == 1 else 0


def problems(pulled: Pulled, model: PulledModel, report: Report) -> Iterator[str]:
    """Yield what is wrong with the files of a model, each read as a whole and compared with its digest."""
    for file in model.all_files:
        try:
            check(pulled.folder / file.path, file, report)
        except FileNotFoundError:
            yield f"{pulled.folder / file.path} is missing"
        except WrongContent as error:
            yield str(error)
        except OSError as error:
            yield f"{pulled.folder / file.path} cannot be read: {error.strerror}"


def removal(pulled: Pulled, model: PulledModel) -> Removal:
    """Return the files of a model that no other model of its revision needs."""
    others = {file.path for each in pulled.models if each != model for file in each.all_files}
    paths = tuple(pulled.folder / file.path for file in model.all_files if file.path not in others)
    return Removal(f"{pulled.repository} {model.label}", pulled.repository, paths)


def remove(store: ModelStore, pulled: Pulled, model: PulledModel) -> int | None:
    """Remove a model; return the bytes that gave back, None while its repository is being pulled.

    Its note goes first, so that a break leaves no half a model. Raises `HubError`.
    """
    return _taken_away(store, pulled.repository, pulled.folder, lambda: _forgotten(store, pulled.folder, model))


def _forgotten(store: ModelStore, folder: Path, model: PulledModel) -> Removal | None:
    """Take a model out of the note of its revision as that stands now: another one of it may have gone meanwhile."""
    pulled = store.revision(folder)
    if pulled is None or model not in pulled.models:
        return None
    gone = removal(pulled, model)
    rest = [each for each in pulled.models if each != model]
    if rest:
        store.write(pulled, rest)
    else:
        store.note(pulled).unlink(missing_ok=True)
    return gone


def sweep(store: ModelStore, gone: Removal) -> int | None:
    """Remove what a pull left; return the bytes that gave back, None while the repository is being pulled.

    What a pull that has ended since made a model of stays. Raises `HubError`.
    """
    return _taken_away(store, gone.repository, gone.paths[0], lambda: _still_left(store, gone))


def _still_left(store: ModelStore, gone: Removal) -> Removal:
    left = {path for each in leftovers(store) for path in each.paths}
    return replace(gone, paths=tuple(path for path in gone.paths if path in left))


def _taken_away(store: ModelStore, repository: str, place: Path, gone: Callable[[], Removal | None]) -> int | None:
    try:
        with store.held(repository):
            found = gone()
            freed = found.freed_bytes if found else 0
            for path in found.paths if found else ():
                path.unlink(missing_ok=True)
            store.tidy(repository)
            return freed
    except Busy:
        return None
    except OSError as error:
        raise written(place, error) from None


def outdated(store: ModelStore, in_use: Collection[Path]) -> list[tuple[Pulled, PulledModel]]:
    """Return the models of which a newer revision is here and whose files no entry of the registry names."""
    seen: set[tuple[str, str]] = set()
    found = []
    for pulled in store.pulled():
        for model in pulled.models:
            key = pulled.repository, model.files[0].path
            if key in seen and pulled.path(model) not in in_use:
                found.append((pulled, model))
            seen.add(key)
    return found


def leftovers(store: ModelStore) -> list[Removal]:
    """Return what pulls that broke off have left."""
    parts = [Removal(f"{part.repository}, a part", part.repository, (part.path,)) for part in store.parts()]
    strays = [
        Removal(f"{name}, of a pull that ended between two files", name, (path,)) for name, path in store.strays()
    ]
    return parts + strays
