"""All tasks: those that come with rolecall, and a user's own, which add to them or take their place."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from rolecall.errors import ConfigurationError
from rolecall.settings import Settings, shipped
from rolecall.vision.task import Dimension, Image, Task, Validation, Variable, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = "tasks"
"""Of the config folder, with a TOML file for each task."""
SHIPPED_IDS = frozenset({"caption", "description", "keywords", "mono_interpretation", "narration", "ocr", "tags"})
"""The ids of the tasks that come with rolecall: in a clone their folder is the user's, too."""


class TaskError(ConfigurationError):
    """A file of a task cannot be used; the message names the file, the field and what is allowed."""


class UnknownTask(Exception):
    """There is no such task; the message names one that is alike, and all there are."""


class WrongVariable(Exception):
    """A task was given a variable that it does not have, or not given one that it needs; the message names both.

    ``name`` is the variable's.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class Tasks(Mapping[str, Task]):
    """The tasks by id, in the order of their files.

    ``problems`` are those of files that cannot be used, by file, one line for each; what such a file would be the task
    of is refused, also where another folder has a task of that id.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        files: Mapping[str, Path] | None = None,
        problems: Mapping[Path, str] | None = None,
        broken: Mapping[str, Path] | None = None,
    ) -> None:
        self._broken = dict(broken or {})
        self._tasks = {id_: task for id_, task in tasks.items() if id_ not in self._broken}
        self._files = dict(files or {})
        self.problems = dict(problems or {})

    def __getitem__(self, id_: str) -> Task:
        """Return a task; raises ``KeyError``."""
        return self._tasks[id_]

    def __iter__(self) -> Iterator[str]:
        """Yield the ids."""
        return iter(self._tasks)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._tasks)

    def file(self, id_: str) -> Path:
        """Return the file that a task was read from; raises ``KeyError``."""
        return self._files[id_]

    def is_own(self, id_: str) -> bool:
        """Whether a task is the user's: not one of those that come with rolecall."""
        return id_ not in SHIPPED_IDS or self._files[id_].parent.resolve() != shipped(FOLDER).resolve()

    def knows(self, id_: str) -> bool:
        """Whether a task is asked for by this id, also one whose file cannot be used."""
        return id_ in self._tasks or id_ in self._broken

    def find(self, id_: str) -> Task:
        """Return a task; raises ``UnknownTask``, and ``TaskError`` for one whose file cannot be used."""
        plain = id_.strip().lower()
        if (path := self._broken.get(plain)) is not None:
            raise TaskError(f"the task {plain} cannot be used: {self.problems[path]}")
        task = self._tasks.get(plain)
        if task is None:
            near = did_you_mean(plain, self._tasks)
            raise UnknownTask(f"there is no task {id_[:100]!r}{near or '; there are ' + ', '.join(self._tasks)}")
        return task


def load_tasks(*folders: Path) -> Tasks:
    """Return the tasks of all ``*.toml`` in the folders; a later folder's task takes the place of one of the same id.

    A folder that is not there has none. A file that cannot be used takes nothing from the others.
    """
    tasks: dict[str, Task] = {}
    files: dict[str, Path] = {}
    problems: dict[Path, str] = {}
    broken: dict[str, Path] = {}
    for folder in folders:
        found: dict[str, Path] = {}
        for path in sorted(folder.glob("*.toml")):
            try:
                task = read_task(path)
            except TaskError as error:
                problems[path] = str(error)
                broken |= dict.fromkeys(_meant(path), path)
                continue
            if task.id in found:
                twice = f"{path}: id: {task.id!r} is the id of {found[task.id]} too; give one of them another"
                problems[path], broken[task.id] = twice, path
            found[task.id] = files[task.id] = path
            tasks[task.id] = task
    return Tasks(tasks, files, problems, broken)


def _meant(path: Path) -> set[str]:
    """Return the ids that a file which cannot be used is asked for by: its name, and what it says itself."""
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8")).get("id", path.stem)
    except (OSError, ValueError):
        said = path.stem
    return {path.stem.lower(), str(said).lower()}


class TaskFolder:
    """The tasks as their files are now: read when they are asked for, and again when a file has come, gone or changed.

    Threads may share it; it reads files, so a loop asks for them in one.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._lock = Lock()
        self._seen: object = None
        self._tasks = Tasks({})

    def __call__(self) -> Tasks:
        """Return the tasks."""
        with self._lock:
            seen = [_state(path) for folder in self._folders for path in sorted(folder.glob("*.toml"))]
            if seen != self._seen:
                self._tasks, self._seen = load_tasks(*self._folders), seen
            return self._tasks


def _state(path: Path) -> tuple[object, ...]:
    try:
        found = path.stat()
    except OSError:
        return (path,)
    return path, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def tasks_of(settings: Settings) -> Tasks:
    """Return the tasks that come with rolecall, with those in ``tasks/`` of the config folder over them."""
    return load_tasks(*folders_of(settings))


def folders_of(settings: Settings) -> tuple[Path, ...]:
    """Return the folders whose files are tasks, those of a later one over those of an earlier one."""
    own, come_along = settings.config_dir / FOLDER, shipped(FOLDER)
    return (come_along,) if own.resolve() == come_along.resolve() else (come_along, own)


def read_task(path: Path) -> Task:
    """Return the task of a file; raises ``TaskError``. Where the file names no ``id``, its own name is it."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise TaskError(f"{path}: is no TOML: {error}") from None
    try:
        return Task.model_validate({"id": path.stem, **values})
    except ValidationError as error:
        raise TaskError("\n".join(f"{path}: {_problem(each)}" for each in error.errors())) from None


def _problem(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        known = _fields_at(error["loc"])
        name = str(error["loc"][-1])
        return f"{place}: there is no such field{did_you_mean(name, known) or '; there are ' + ', '.join(known)}"
    if error["type"] == "missing":
        return f"{place}: is missing; a task needs it"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


_PARTS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {"variables": Variable, "dimensions": Dimension, "image": Image, "validation": Validation}
)


def _fields_at(place: tuple[int | str, ...]) -> list[str]:
    """Return the fields that there are where an unknown one stood."""
    return list(_PARTS.get(str(place[0]), Task).model_fields if len(place) > 1 else Task.model_fields)


def variables_of(task: Task, given: Mapping[str, str]) -> dict[str, str]:
    """Return the values of a task's variables but for those that are measured: as given, else their defaults.

    Raises ``WrongVariable``.
    """
    for name in given:
        if name not in task.variables:
            known = did_you_mean(name, task.variables) or f"; it has {', '.join(task.variables) or 'none'}"
            raise WrongVariable(f"the task {task.id} has no variable {name!r}{known}", name)
    values = {name: given.get(name, variable.default) for name, variable in task.variables.items()}
    for name, variable in task.variables.items():
        if variable.is_required and not (values[name] or "").strip():
            what = f" ({variable.title})" if variable.title else ""
            raise WrongVariable(f"the task {task.id} needs the variable {name!r}{what}", name)
    return {name: value for name, value in values.items() if value is not None}
