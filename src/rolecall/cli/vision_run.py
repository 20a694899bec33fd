"""One run of tasks over many pictures: what is meant, in which order, carried out, and what came of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.text import Text

from rolecall import __version__
from rolecall.cli.client import connect, key_header
from rolecall.cli.common import CommandError, fail, print_json
from rolecall.cli.table import NOTHING, Column, Row, console_for, printable, show, table
from rolecall.cli.vision_machine import Machine, look
from rolecall.cli.vision_progress import Shown, duration
from rolecall.settings import load_settings
from rolecall.vision.ask import Asker
from rolecall.vision.batch import Batch, BatchError, Earlier, Wishes
from rolecall.vision.batch_files import HEIC_SUFFIXES, Found, NoPictures, find_pictures
from rolecall.vision.batch_files import printable as file_text
from rolecall.vision.batch_record import Record, to_json, variables_text
from rolecall.vision.photos import SUFFIXES
from rolecall.vision.plan import Order, Plan, plan
from rolecall.vision.task import Task
from rolecall.vision.tasks import Tasks, UnknownTask, WrongVariable, tasks_of, variables_of
from rolecall.vision.writers import Output, OutputError, OutputRefused, open_output
from rolecall.vision.writers_cells import value_text

_INTERRUPTED = 130


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


def run(tasks: Sequence[Task], words: Sequence[str], options: Options) -> None:
    """Do tasks for the pictures that words mean. Ends with exit code 1 if anything failed, 130 after Ctrl-C."""
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
    job = _Job(tasks, variables, found, made, machine, options, url)
    if options.dry_run:
        job.describe()
    else:
        job.carry_out()


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
        raise WrongVariable(f"{who} variable {unknown[0]!r}; {there}")
    own = {task.id: {name: text for name, text in given.items() if name in task.variables} for task in tasks}
    return {task.id: variables_of(task, own[task.id]) for task in tasks}


@dataclass(frozen=True, slots=True)
class _Job:
    tasks: Sequence[Task]
    variables: Mapping[str, Mapping[str, str]]
    found: Found
    plan: Plan
    machine: Machine
    options: Options
    url: str

    # -- what would be done

    def describe(self) -> None:
        """Print what would be done, and that nothing was."""
        earlier = self._earlier_count()
        if self.options.as_json:
            print_json({**self._facts(), "earlier": earlier, "problems": self.machine.problems, "dry_run": True})
            return
        show(lambda width: self._description(width, earlier))

    def _description(self, width: int | None, earlier: int) -> Iterator[Text]:
        yield Text(self._pictures())
        columns = (Column("task"), Column("version"), Column("role"), Column("model"))
        yield from table(columns, [Row(self._row(task)) for task in self.tasks], width)
        for role, problem in self.machine.problems.items():
            yield Text(f"role {role}: {printable(problem)}", "yellow")
        yield Text(self.plan.words)
        for number, stage in enumerate(self.plan.stages, 1):
            yield Text(f"{number}. {', '.join(stage.tasks)}: {_at_a_time(stage.jobs)}")
        if self.options.out is not None:
            yield Text(f"{self.options.out} has {earlier} of {self._total()} answers already")
        yield Text("nothing was asked (--dry-run)", "dim")

    def _row(self, task: Task) -> tuple[str, str, str, str]:
        found = self.machine.chosen.get(task.role)
        return task.id, task.version, task.role, found.model if found else NOTHING

    def _facts(self) -> dict[str, Any]:
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

    def _pictures(self) -> str:
        over = self.found.passed_over
        return _with_heic(_count(len(self.found.pictures), "picture") + (f"; passed over: {over}" if over else ""))

    def _total(self) -> int:
        return len(self.found.pictures) * len(self.tasks)

    def _earlier_count(self) -> int:
        """How many answers an output has; of a picture that was changed since, they do not count in the end."""
        path = self.options.out
        if path is None or not path.exists():
            return 0
        output = _opened(path, resume=True)
        earlier = Earlier(output.records())
        output.close()
        keys = (
            (file_text(path), task.id, task.version, variables_text(self.variables[task.id]))
            for path in self.found.pictures
            for task in self.tasks
        )
        return sum(key in earlier for key in keys)

    # -- doing it

    def carry_out(self) -> None:
        """Ask for all that is missing, write it down, and say what came of it."""
        console_for()  # so that a stdout that is not UTF-8 fails at no answer
        output = _opened(self.options.out, resume=self.options.resume)
        shown = Shown(self._total(), self._show, self.options.out)
        began = time.monotonic()
        for line in self._pictures().splitlines():
            shown.say(line)
        shown.say(f"{self.plan.words}; {_at_a_time(max(stage.jobs for stage in self.plan.stages))}")
        problem, stopped = None, False
        try:
            with shown.open():
                stopped = asyncio.run(self._ask_all(output, shown))
        except (BatchError, OutputError) as error:
            problem = str(error)
        except KeyboardInterrupt:
            stopped = True
        except BaseException:  # such as that nobody reads stdout any more
            output.close()
            raise
        try:
            output.close()
        except OutputError as error:
            problem = problem or str(error)
        self._conclude(shown, time.monotonic() - began, problem, stopped=stopped)

    async def _ask_all(self, output: Output, shown: Shown) -> bool:
        earlier = Earlier(output.records() if self.options.resume else (), sidecars=self.options.sidecars)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"user-agent": f"rolecall/{__version__}", **key_header()}
        client = httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, limits=limits)
        wishes = Wishes(self.variables, self.options.model, self.options.sidecars, self.options.replace_descriptions)
        tasks = {task.id: task for task in self.tasks}
        async with client:
            batch = Batch(Asker(client, patience_s=0), tasks, self.plan, output, shown, wishes=wishes, earlier=earlier)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, batch.stop)
            await batch.run(self.found.pictures)
        return batch.stopped

    def _show(self, record: Record) -> None:
        if self.options.out is not None or record.status != "ok":
            return
        if self.options.as_json:
            typer.echo(to_json(record))
        else:
            what = f"{record.task}: " if len(self.tasks) > 1 else ""
            text = ", ".join(record.tags) if record.tags else value_text(record.value)
            typer.echo(printable(f"{_short(record.file)}: {what}{text}"))

    def _conclude(self, shown: Shown, seconds: float, problem: str | None, *, stopped: bool) -> None:
        for each in self.found.unreadable:
            shown.say(each)
        shown.say(self._result(shown, seconds))
        if self.options.as_json and self.options.out is not None:
            print_json({**self._facts(), **_tallied(shown), "seconds": round(seconds, 3), "stopped": stopped})
        again = "; the same command with --resume goes on" if self._has_output(shown) else ""
        if problem is not None:
            fail(problem + ("" if "--resume" in problem else again))
        if stopped:
            shown.say(f"stopped{again}")
            raise typer.Exit(_INTERRUPTED)
        if shown.tally.failed or shown.tally.sidecar_errors or self.found.unreadable:
            raise typer.Exit(1)

    def _has_output(self, shown: Shown) -> bool:
        """Whether there is something to go on with; a file in which nothing is written would only be in the way."""
        path, tally = self.options.out, shown.tally
        if path is not None and not self.options.resume and not tally.ok + tally.failed:
            path.unlink(missing_ok=True)
            return False
        return path is not None

    def _result(self, shown: Shown, seconds: float) -> str:
        tally = shown.tally
        parts = [f"{_count(tally.ok, 'answer')} in {duration(seconds)}"]
        if tally.earlier:
            parts.append(f"{tally.earlier} there already")
        if tally.failed:
            parts.append(f"{tally.failed} failed")
        if tally.discarded:
            parts.append(f"{_count(tally.discarded, 'part')} of them not used")
        if tally.sidecars:
            parts.append(_count(tally.sidecars, "sidecar"))
        if tally.sidecar_errors:
            parts.append(f"{_count(tally.sidecar_errors, 'sidecar')} not written")
        models = ", ".join(f"{name} {count}" for name, count in tally.models.most_common())
        return ", ".join(parts) + (f" ({models})" if models else "")


class _Nowhere:
    """An output that keeps nothing: the answers are printed."""

    def records(self) -> Iterator[Record]:
        yield from ()

    def add(self, record: Record) -> None:
        del record

    def close(self) -> None:
        pass


def _opened(path: Path | None, *, resume: bool) -> Output:
    if path is None:
        return _Nowhere()
    try:
        return open_output(path, resume=resume)
    except OutputRefused as error:
        fail(str(error), 2)
    except OutputError as error:
        raise CommandError(str(error)) from None


def _tallied(shown: Shown) -> dict[str, Any]:
    tally = shown.tally
    return {
        "ok": tally.ok,
        "failed": tally.failed,
        "earlier": tally.earlier,
        "sidecars": tally.sidecars,
        "sidecar_errors": tally.sidecar_errors,
        "discarded": tally.discarded,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "models": dict(tally.models),
    }


def _short(file: str) -> str:
    """Return a path as seen from here, if it lies below."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file


def _at_a_time(jobs: int) -> str:
    return f"{_count(jobs, 'picture')} at a time"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def split(words: Sequence[str], tasks: Tasks) -> tuple[list[Task], list[str]]:
    """Return the tasks with which words begin, and the rest, which are paths; raises ``UnknownTask``.

    A folder that has the name of a task is meant by ``./caption``.
    """
    found: list[Task] = []
    rest = list(words)
    while rest and rest[0] in tasks:
        task = tasks[rest.pop(0)]
        if task not in found:
            found.append(task)
    if not found:
        if Path(words[0]).exists():
            raise UnknownTask(f"the tasks come first, then the paths: rolecall run caption {words[0]}")
        tasks.find(words[0])
    if not rest:
        raise NoPictures("no path was given: name files, folders or patterns after the tasks")
    return found, rest
