"""A sample's tags from a model: its picture prepared, its task run within this process, failures sorted by their fault.

Requests go through the whole of rolecall's inference on behalf of the key that started the job, so that queue, limits
and log apply to them like to all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio.to_thread
from starlette.types import ASGIApp

from rolecall.errors import BadRequest, RateLimited, ShuttingDown, Unavailable
from rolecall.gateway.caller import Caller
from rolecall.vision.ask import Asker, AskError
from rolecall.vision.datasets_files import opened
from rolecall.vision.datasets_records import Sample, Wish
from rolecall.vision.decoding import Decoding
from rolecall.vision.in_process import client_of
from rolecall.vision.jobs import Interrupted, NothingWorks, SampleFailed, Tagged
from rolecall.vision.jobs_places import Place
from rolecall.vision.photos import Photo, PhotoError, prepare
from rolecall.vision.runner import Outcome, run_task
from rolecall.vision.task import Task
from rolecall.vision.tasks import TaskError, Tasks, UnknownTask

PAUSES_S = (1.0, 4.0)
"""Before a question that failed by an engine is asked again: it may have been killed, and starts anew."""
_TAGGING = frozenset({"tags", "keywords"})
_MOST_CHARACTERS_SAID = 300


@dataclass(frozen=True, slots=True)
class OwnServer:
    """What tagging needs of the server that it runs in.

    ``caller`` finds who asks by the name of a key, None if that key is not in force any more. ``check_sees`` raises
    where a caller finds no model that sees by a name or ``role:NAME``: 404, 403, or 400.
    """

    inference: ASGIApp
    caller: Callable[[str | None], Caller | None]
    check_sees: Callable[[Caller, str], None]


class ModelTagger:
    """Tags pictures by tasks whose answers are words: tags of a vocabulary, or keywords."""

    def __init__(
        self,
        server: OwnServer,
        tasks: Callable[[], Tasks],
        decoding: Decoding,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        self._server = server
        self._tasks = tasks
        self._pauses_s = pauses_s
        self._decoding = decoding

    def wish(self, task_id: str, *, model: str | None, again: bool, caller: Caller) -> Wish:
        """Return what a job is to do; raises what ``check_sees`` does for its model, or else for the task's role.

        It raises ``BadRequest`` for a task that there is not, or that gives no tags. It reads files, as ``tasks`` does,
        and raises ``Unavailable`` where the task's own cannot be used.
        """
        task = self._task(task_id)
        self._server.check_sees(caller, model or f"role:{task.role}")
        return Wish(f"{task.id}@{task.version}", model, again, caller.name)

    def tasks(self) -> list[Task]:
        """Return the tasks that a dataset can be tagged by."""
        return [task for task in self._tasks().values() if task.parser in _TAGGING]

    def _task(self, task_id: str) -> Task:
        try:
            task = self._tasks().find(task_id)
        except UnknownTask as error:
            raise BadRequest(f"The field task: {error}.", param="task") from None
        except TaskError as error:
            raise Unavailable(f"The field task: {error}.") from None
        if task.parser not in _TAGGING:
            names = ", ".join(each.id for each in self.tasks())
            raise BadRequest(f"The task {task.id} gives no tags; these do: {names}.", param="task")
        return task

    async def tag(self, wish: Wish, folder: Path, sample: Sample, place: Place) -> Tagged:
        """Return the tags of a picture; see ``jobs.Tagger``."""
        try:
            task = await anyio.to_thread.run_sync(self._task, wish.task_id)
        except (BadRequest, Unavailable) as error:
            raise NothingWorks(error.message) from None
        if f"{task.id}@{task.version}" != wish.task:
            raise NothingWorks(f"the task {task.id} has become version {task.version} meanwhile; start it again")
        caller = self._server.caller(wish.key)
        if caller is None:
            who = f"the API key {wish.key!r}" if wish.key else "nobody's key"
            raise NothingWorks(f"it was started by {who}, which may not ask models (any more); start it again")
        photo = await self._photo(folder, sample, task)
        async with place.asking(), client_of(self._server.inference, caller) as client:
            asker = Asker(client, waiting=partial(_waiting, place, wish))
            return _tagged(await self._asked(partial(run_task, asker, task, photo, model=wish.model)))

    async def _photo(self, folder: Path, sample: Sample, task: Task) -> Photo:
        def read() -> Photo:
            with opened(folder, sample.file.name) as path:
                return prepare(path, max_side=task.image.max_side, jpeg_quality=task.image.jpeg_quality)

        try:
            return await self._decoding.run(read)
        except PhotoError as error:
            raise SampleFailed(str(error)) from None

    async def _asked(self, ask: Callable[[], Awaitable[Outcome]]) -> Outcome:
        for pause_s in (*self._pauses_s, None):
            try:
                return await ask()
            except AskError as error:
                _check(error)
                if pause_s is None or 0 < error.status < 500:  # 0: the answer broke off
                    raise SampleFailed(error.message[:_MOST_CHARACTERS_SAID], by_engine=True) from None
                await asyncio.sleep(pause_s)
        raise AssertionError("the last pause is None")


def _waiting(place: Place, wish: Wish, error: AskError) -> AbstractAsyncContextManager[None]:
    """Stand aside for what holds up this job alone; all jobs wait for an engine alike."""
    is_limit = error.code == RateLimited.code
    return place.aside(f"the limit of the key {wish.key!r}") if is_limit else nullcontext()


def _check(error: AskError) -> None:
    """Raise for what every other question would meet too."""
    if error.code == ShuttingDown.code:
        raise Interrupted
    if error.is_ours or error.code == RateLimited.code:
        raise NothingWorks(error.message)


def _tagged(outcome: Outcome) -> Tagged:
    if outcome.value is None:
        raise SampleFailed(f"{outcome.model}: {outcome.problem}"[:_MOST_CHARACTERS_SAID])
    return Tagged(outcome.tags, outcome.model)
