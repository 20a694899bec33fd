"""A sample's tags from a model: its picture prepared, its task run within this process, failures sorted by their fault.

Requests go through the whole of rolecall's inference on behalf of the key that started the job, so that queue, limits
and log apply to them like to all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio.to_thread
from starlette.types import ASGIApp

from rolecall.errors import BadRequest, Unavailable
from rolecall.gateway.caller import Caller
from rolecall.vision.ask import Asker, AskError
from rolecall.vision.datasets_files import opened
from rolecall.vision.datasets_records import Sample, Wish
from rolecall.vision.decoding import Decoding
from rolecall.vision.in_process import client_of
from rolecall.vision.jobs import Interrupted, NothingWorks, SampleFailed, Tagged
from rolecall.vision.photos import Photo, PhotoError, prepare
from rolecall.vision.runner import Outcome, run_task
from rolecall.vision.task import Task
from rolecall.vision.tasks import TaskError, Tasks, UnknownTask

PAUSES_S = (1.0, 4.0)
"""Before a question that failed by an engine is asked again: it may have been killed, and starts anew."""
_TAGGING = frozenset({"tags", "keywords"})
_MOST_CHARACTERS_SAID = 300

Callers = Callable[[str | None], Caller | None]
"""Finds who asks, by the name of a key; None if that key is not in force any more."""


class ModelTagger:
    """Tags pictures by tasks whose answers are words: tags of a vocabulary, or keywords."""

    def __init__(
        self,
        inference: ASGIApp,
        tasks: Callable[[], Tasks],
        callers: Callers,
        decoding: Decoding,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        self._inference = inference
        self._tasks = tasks
        self._callers = callers
        self._pauses_s = pauses_s
        self._decoding = decoding

    def wish(self, task_id: str, *, model: str | None, again: bool, key: str | None) -> Wish:
        """Return what a job is to do; raises ``BadRequest`` for a task that there is not, or that gives no tags.

        It reads files, as ``tasks`` does, and raises ``Unavailable`` where the task's own cannot be used.
        """
        task = self._task(task_id)
        return Wish(f"{task.id}@{task.version}", model, again, key)

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

    async def tag(self, wish: Wish, folder: Path, sample: Sample, gate: asyncio.Semaphore) -> Tagged:
        """Return the tags of a picture; see ``jobs.Tagger``."""
        try:
            task = await anyio.to_thread.run_sync(self._task, wish.task_id)
        except (BadRequest, Unavailable) as error:
            raise NothingWorks(error.message) from None
        if f"{task.id}@{task.version}" != wish.task:
            raise NothingWorks(f"the task {task.id} has become version {task.version} meanwhile; start it again")
        caller = self._callers(wish.key)
        if caller is None:
            who = f"the API key {wish.key!r}" if wish.key else "nobody's key"
            raise NothingWorks(f"it was started by {who}, which may not ask models (any more); start it again")
        photo = await self._photo(folder, sample, task.image.max_side)
        async with gate, client_of(self._inference, caller) as client:
            return _tagged(await self._asked(partial(run_task, Asker(client), task, photo, model=wish.model)))

    async def _photo(self, folder: Path, sample: Sample, max_side: int) -> Photo:
        def read() -> Photo:
            with opened(folder, sample.file.name) as path:
                return prepare(path, max_side=max_side)

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


def _check(error: AskError) -> None:
    """Raise for what every other question would meet too."""
    if error.code == "shutting_down":
        raise Interrupted
    if error.is_ours or error.code == "rate_limit_exceeded":
        raise NothingWorks(error.message)


def _tagged(outcome: Outcome) -> Tagged:
    if outcome.value is None:
        raise SampleFailed(f"{outcome.model}: {outcome.problem}"[:_MOST_CHARACTERS_SAID])
    words = outcome.tags
    if not words and isinstance(outcome.value, list):
        words = tuple(word for word in outcome.value if isinstance(word, str))
    return Tagged(words, outcome.model)
