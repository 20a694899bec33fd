"""What a command over many pictures is to do: which tasks and pictures, by which models, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.text import Text

from rolecall.cli.client import connect
from rolecall.cli.common import CommandError, fail, print_json
from rolecall.cli.table import NOTHING, Column, Row, printable, show, table
from rolecall.cli.vision_machine import Machine, look
from rolecall.core.wording import counted
from rolecall.settings import load_settings
from rolecall.vision.batch_earlier import Earlier
from rolecall.vision.batch_files import HEIC_SUFFIXES, Found, NoPictures, find_pictures, path_text
from rolecall.vision.batch_record import variables_text
from rolecall.vision.photos import SUFFIXES
from rolecall.vision.plan import Order, Plan, plan
from rolecall.vision.task import Task
from rolecall.vision.tasks import Tasks, UnknownTask, WrongVariable, tasks_of, variables_of
from rolecall.vision.writers import OutputError, OutputRefused, read_output


@dataclass(frozen=True, slots=True)
class Options:
    """The options that all commands over many pictures have."""

    out: Path | None
    sidecars: bool
    replace_descriptions: bool
    resume: bool
    jobs: int | None
    order: Order | None
    model: str | None
    variables: Mapping[str, str]
    dry_run: bool
    as_json: bool
    url: str | None
    config_dir: Path | None


def known_tasks(config_dir: Path | None) -> Tasks:
    """Return the tasks that come with rolecall and the user's own."""
    return tasks_of(load_settings({"config_dir": config_dir}))


def split(words: Sequence[str], tasks: Tasks) -> tuple[list[Task], list[str]]:
    """Return the tasks with which words begin, and the rest, which are paths.

    Raises ``UnknownTask``, ``NoPictures`` where no path is left, and ``TaskError`` for a task that cannot be used.
    A folder that has the name of a task is meant by ``./caption``; one that has it in capitals is meant as it is.
    """
    found: list[Task] = []
    rest = list(words)
    while rest and (tasks.knows(rest[0]) or (tasks.knows(rest[0].lower()) and not Path(rest[0]).exists())):
        task = tasks.find(rest.pop(0))
        if task not in found:
            found.append(task)
    if not found:
        if Path(words[0]).exists():
            raise UnknownTask(f"the tasks come first, then the paths: rolecall run caption {words[0]}")
        tasks.find(words[0])
    if not rest:
        raise NoPictures("no path was given: name files, folders or patterns after the tasks")
    return found, rest


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, where, in which order."""

    tasks: Sequence[Task]
    variables: Mapping[str, Mapping[str, str]]
    found: Found
    plan: Plan
    machine: Machine
    options: Options
    url: str

    def describe(self) -> None:
        """Print what would be done, and that nothing was."""
        earlier = self._earlier_count()
        if self.options.as_json:
            print_json({**self.facts(), "earlier": earlier, "problems": self.machine.problems, "dry_run": True})
            return
        show(lambda width: self._description(width, earlier))

    def _description(self, width: int | None, earlier: int) -> Iterator[Text]:
        yield Text(self.pictures)
        columns = (Column("task"), Column("version"), Column("role"), Column("model"))
        yield from table(columns, [Row(self._row(task)) for task in self.tasks], width)
        for role, problem in self.machine.problems.items():
            yield Text(f"role {role}: {printable(problem)}", "yellow")
        yield Text(self.plan.words)
        for number, stage in enumerate(self.plan.stages, 1):
            yield Text(f"{number}. {', '.join(stage.tasks)}: {at_a_time(stage.jobs)}")
        if self.options.out is not None:
            yield Text(f"{self.options.out} has {earlier} of {self.total} answers already")
        yield Text("nothing was asked (--dry-run)", "dim")

    def _row(self, task: Task) -> tuple[str, str, str, str]:
        found = self.machine.chosen.get(task.role)
        return task.id, task.version, task.role, found.model if found else NOTHING

    def facts(self) -> dict[str, Any]:
        """Return pictures, tasks and order for programs."""
        names = ("task", "version", "role", "model")
        rows = [dict(zip(names, self._row(task), strict=True)) for task in self.tasks]
        return {
            "pictures": len(self.found.pictures),
            "passed_over": dict(self.found.others),
            "tasks": [{**row, "model": None if row["model"] == NOTHING else row["model"]} for row in rows],
            "order": self.plan.order.value,
            "reason": self.plan.reason,
            "stages": [
                {"tasks": stage.tasks, "models": stage.models, "jobs": stage.jobs} for stage in self.plan.stages
            ],
            "out": None if self.options.out is None else str(self.options.out),
        }

    @property
    def pictures(self) -> str:
        """How many pictures there are, and what was passed over."""
        over = self.found.passed_over
        return _with_heic(counted(len(self.found.pictures), "picture") + (f"; passed over: {over}" if over else ""))

    @property
    def total(self) -> int:
        """How many answers there are to be."""
        return len(self.found.pictures) * len(self.tasks)

    def _earlier_count(self) -> int:
        """How many answers an output has; of a picture that was changed since, they do not count in the end."""
        path = self.options.out
        if path is None:
            return 0
        with usable_output():
            earlier = Earlier(read_output(path))
        keys = (
            (path_text(path), task.id, task.version, variables_text(self.variables[task.id]))
            for path in self.found.pictures
            for task in self.tasks
        )
        return sum(key in earlier for key in keys)


@contextmanager
def usable_output() -> Iterator[None]:
    """End the command where an output cannot be used: with exit code 2 where its path cannot be meant."""
    try:
        yield
    except OutputRefused as error:
        fail(str(error), 2)
    except OutputError as error:
        raise CommandError(str(error)) from None


def planned(tasks: Sequence[Task], words: Sequence[str], options: Options) -> Job:
    """Return what tasks for the pictures that words mean come to; ends with exit code 2 if that makes no sense."""
    if options.resume and options.out is None:
        fail("--resume goes on with what an earlier run wrote: name that file with --out", 2)
    try:
        variables = _variables(tasks, options.variables)
        found = find_pictures(words, _suffixes())
    except (NoPictures, WrongVariable) as error:
        fail(_with_heic(str(error)), 2)
    with connect(options.url, options.config_dir) as client:
        machine = look(client, [task.role for task in tasks], options.model)
        url = client.url
    roles = [(task.id, task.role) for task in tasks]
    made = plan(roles, machine.chosen, machine.room, wish=options.order, jobs=options.jobs)
    return Job(tasks, variables, found, made, machine, options, url)


def _suffixes() -> frozenset[str]:
    return SUFFIXES if find_spec("pillow_heif") else SUFFIXES - HEIC_SUFFIXES


def _with_heic(message: str) -> str:
    is_told = any(f" {suffix}" in message for suffix in HEIC_SUFFIXES) and not find_spec("pillow_heif")
    return message + "\nHEIC needs a library more: pip install 'rolecall[heic]'" if is_told else message


def _variables(tasks: Sequence[Task], given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the variables of each task; each that is given must be one of some task."""
    known = {name for task in tasks for name in task.variables}
    if unknown := [name for name in given if name not in known]:
        who = f"the task {tasks[0].id} has no" if len(tasks) == 1 else "none of the tasks has a"
        there = f"there is {', '.join(sorted(known))}" if known else "there is none"
        raise WrongVariable(f"{who} variable {unknown[0]!r}; {there}", unknown[0])
    own = {task.id: {name: text for name, text in given.items() if name in task.variables} for task in tasks}
    return {task.id: variables_of(task, own[task.id]) for task in tasks}


def at_a_time(jobs: int) -> str:
    """Return ``4 pictures at a time``."""
    return f"{counted(jobs, 'picture')} at a time"
