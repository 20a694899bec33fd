"""Tasks over many pictures: prepared ahead, asked as many at a time as the plan says, written down one by one.

What is over is over: a record is written as soon as there is an answer, after the sidecar, so that a record tells of
both. A run that ends in whatever way can be continued, and asks for nothing that it has the answer to: the same task,
version and variables for the same file with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from rolecall.vision.ask import Asker, AskError
from rolecall.vision.batch_earlier import Earlier
from rolecall.vision.batch_files import path_text
from rolecall.vision.batch_patience import Patience, ends_all
from rolecall.vision.batch_record import Key, Record, variables_text
from rolecall.vision.photos import Photo, PhotoError, prepare, sha256_of
from rolecall.vision.plan import Plan, Stage
from rolecall.vision.runner import Outcome, run_task
from rolecall.vision.sidecar import Neighbours, SidecarError, write_sidecar
from rolecall.vision.task import Task
from rolecall.vision.writers import Output, OutputError

FAILURES_IN_A_ROW = 10
"""So many pictures that get no answer, one after the other, are no fault of the pictures."""
WRITING = 2
"""So many more pictures may be in work than questions are asked: while one is written down, the next one is asked."""
_PREPARERS = 4
"""Threads that decode pictures; Pillow lets go of the interpreter's lock meanwhile."""


class BatchError(Exception):
    """The run cannot go on; the message says why. What was written down stays."""


class Watch(Protocol):
    """Who is told how it goes."""

    def begin(self, stage: Stage) -> None:
        """A stage begins."""

    def earlier(self, record_key: Key) -> None:
        """There is a record of an earlier run."""

    def finished(self, record: Record) -> None:
        """A record was written down."""

    def waiting(self, reason: str, pause_s: float) -> None:
        """A question got no answer, for that reason, and is asked again after so many seconds."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked beside the tasks: variables of each, a model instead of their roles, and sidecars."""

    variables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    model: str | None = None
    sidecars: bool = False
    replace_descriptions: bool = False


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture with the tasks that are to be asked, prepared for each; or why it cannot be."""

    path: Path
    sha256: str
    photos: Sequence[tuple[Task, Photo | PhotoError]]


class Batch:
    """One run; ``stop`` ends it as soon as what is answered is written.

    ``asker`` is best without patience of its own, for the run has it.
    """

    def __init__(  # noqa: PLR0913 - the parts of a run
        self,
        asker: Asker,
        tasks: Mapping[str, Task],
        plan: Plan,
        output: Output,
        watch: Watch,
        *,
        wishes: Wishes | None = None,
        earlier: Earlier | None = None,
    ) -> None:
        self._asker = asker
        self._tasks = tasks
        self._plan = plan
        self._output = output
        self._watch = watch
        self._wishes = wishes or Wishes()
        self._earlier = earlier or Earlier()
        self._describes = next((task.id for task in tasks.values() if task.goes_to == "description"), None)
        self._neighbours = Neighbours()
        self._writing = anyio.Lock()
        self._scope = anyio.CancelScope()
        self._failure: Exception | None = None
        self._in_a_row = 0
        self.stopped = False

    def stop(self) -> None:
        """End it; what waits for an answer is given up."""
        self.stopped = True
        self._scope.cancel()

    async def run(self, pictures: Sequence[Path]) -> None:
        """Do all of it; raises ``BatchError``, ``OutputError`` or what ``watch`` raises if it cannot go on."""
        with self._scope:
            for stage in self._plan.stages:
                self._watch.begin(stage)
                await self._stage(stage, pictures)
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._scope.cancel()

    async def _stage(self, stage: Stage, pictures: Sequence[Path]) -> None:
        tasks = [self._tasks[id_] for id_ in stage.tasks]
        waiting = iter(pictures)
        ready, taken = anyio.create_memory_object_stream[_Picture](stage.jobs)
        async with anyio.create_task_group() as group, ready, taken:
            for _ in range(min(stage.jobs + 1, _PREPARERS)):
                group.start_soon(self._prepare_each, waiting, tasks, ready.clone())
            asking = anyio.Semaphore(stage.jobs)
            for _ in range(stage.jobs + WRITING):
                group.start_soon(self._ask_each, taken.clone(), asking)

    # -- before the question

    async def _prepare_each(
        self, waiting: Iterator[Path], tasks: Sequence[Task], ready: MemoryObjectSendStream[_Picture]
    ) -> None:
        with ready:
            for path in waiting:
                picture = await anyio.to_thread.run_sync(self._prepared, path, tasks, abandon_on_cancel=True)
                await self._settle(path, picture, tasks)
                if picture.photos:
                    await ready.send(picture)

    def _prepared(self, path: Path, tasks: Sequence[Task]) -> _Picture:
        """Read a picture; one that was answered for is only looked at."""
        keys = {task.id: self._key(path, task) for task in tasks}
        digest = ""
        if any(key in self._earlier for key in keys.values()):
            with suppress(PhotoError):
                digest = sha256_of(path)
        missing = [task for task in tasks if not (digest and self._earlier.has(keys[task.id], digest))]
        photos: dict[tuple[int, int], Photo | PhotoError] = {}
        for task in missing:
            how = (task.image.max_side, task.image.jpeg_quality)
            if how not in photos:
                photos[how] = _photo(path, *how)
        found = [(task, photos[task.image.max_side, task.image.jpeg_quality]) for task in missing]
        return _Picture(path, digest, found)

    async def _settle(self, path: Path, picture: _Picture, tasks: Sequence[Task]) -> None:
        """Deal with the tasks that were done in an earlier run."""
        for task in tasks:
            if any(task is each for each, _ in picture.photos):
                continue
            key = self._key(path, task)
            record = self._earlier.without_sidecar(key)
            if record is not None and any(self._for_sidecar(task, record)):
                await self._keep(path, task, record)
            else:
                self._watch.earlier(key)

    def _key(self, path: Path, task: Task) -> Key:
        return path_text(path), task.id, task.version, variables_text(self._variables(task))

    def _variables(self, task: Task) -> Mapping[str, str]:
        return self._wishes.variables.get(task.id, {})

    # -- question and answer

    async def _ask_each(self, taken: MemoryObjectReceiveStream[_Picture], asking: anyio.Semaphore) -> None:
        """Ask all about one picture, so that the engine's cache has it; its last record is written beside the next."""
        with taken:
            async for picture in taken:
                *others, last = picture.photos
                async with asking:
                    for task, photo in others:
                        await self._keep_safely(picture.path, task, await self._record(picture.path, task, photo))
                    record = await self._record(picture.path, *last)
                await self._keep_safely(picture.path, last[0], record)

    async def _keep_safely(self, path: Path, task: Task, record: Record) -> None:
        with anyio.CancelScope(shield=True):
            await self._keep(path, task, record)

    async def _record(self, path: Path, task: Task, photo: Photo | PhotoError) -> Record:
        bare = Record(path_text(path), "", task.id, task.version, self._variables(task), status="failed", ts=_now())
        if isinstance(photo, PhotoError):
            return replace(bare, error=str(photo))
        bare = replace(bare, sha256=photo.sha256, width=photo.width, height=photo.height)
        try:
            outcome = await self._outcome(task, photo)
        except AskError as error:
            return replace(bare, error=error.message, ts=_now())
        self._in_a_row = 0
        return _filled(bare, outcome)

    async def _outcome(self, task: Task, photo: Photo) -> Outcome:
        """Ask, and once more where that may help; what no picture can change ends the run."""
        patience = Patience()
        while True:
            try:
                return await run_task(self._asker, task, photo, self._variables(task), model=self._wishes.model)
            except AskError as error:
                pause_s = patience.pause_s(error)
                if pause_s is None:
                    self._count_failure(error)
                    raise
                self._watch.waiting(error.message, pause_s)
            await anyio.sleep(pause_s)

    def _count_failure(self, error: AskError) -> None:
        self._in_a_row += 1
        if (reason := ends_all(error)) is not None:
            self._fail(BatchError(reason))
        elif self._in_a_row >= FAILURES_IN_A_ROW:
            self._fail(BatchError(f"{self._in_a_row} questions in a row got no answer; the last one: {error.message}"))

    # -- after the answer

    async def _keep(self, path: Path, task: Task, record: Record) -> None:
        """Write down what was answered; a question that was given up is asked again by the next run."""
        if self._failure is not None and record.status == "failed":
            return
        if self._wishes.sidecars and record.status == "ok":
            record = await anyio.to_thread.run_sync(self._with_sidecar, path, task, record)
        try:
            if not self._would_lose(record):
                async with self._writing:
                    await anyio.to_thread.run_sync(self._output.add, record)
            self._watch.finished(record)
        except (OutputError, OSError) as error:
            self._fail(error)

    def _would_lose(self, record: Record) -> bool:
        """Whether it would take the place of an answer although nobody knows whether the picture is another one."""
        return record.status == "failed" and not record.sha256 and record.key in self._earlier

    def _with_sidecar(self, path: Path, task: Task, record: Record) -> Record:
        words, text = self._for_sidecar(task, record)
        if not words and not text:
            return record
        try:
            replaces = self._wishes.replace_descriptions
            written = write_sidecar(path, words, text, replace=replaces, neighbours=self._neighbours)
        except (SidecarError, OSError) as error:
            return replace(record, sidecar=None, sidecar_error=_words(error))
        return replace(record, sidecar=path_text(written.path), sidecar_error=None)

    def _for_sidecar(self, task: Task, record: Record) -> tuple[tuple[str, ...], str | None]:
        """Return the keywords and the description of an answer; of several texts the first task's is that."""
        words = record.tags if task.goes_to == "keywords" else ()
        is_text = task.id == self._describes and isinstance(record.value, str)
        return words, record.value if is_text else None


def _photo(path: Path, max_side: int, jpeg_quality: int) -> Photo | PhotoError:
    try:
        return prepare(path, max_side=max_side, jpeg_quality=jpeg_quality)
    except PhotoError as error:
        return error


def _filled(bare: Record, outcome: Outcome) -> Record:
    return replace(
        bare,
        status="ok" if outcome.problem is None else "failed",
        value=outcome.value,
        tags=outcome.tags,
        discarded=len(outcome.discarded),
        error=outcome.problem,
        model=outcome.model,
        prompt_tokens=outcome.usage.get("prompt_tokens"),
        completion_tokens=outcome.usage.get("completion_tokens"),
        ms=outcome.ms,
        ts=_now(),
    )


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'sidecar'}: {error.strerror}"
    return str(error)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
