"""How many samples are worked on at a time, over all jobs, and how one stands aside that only its own job waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType

from typing_extensions import Self

SAMPLES_AT_A_TIME = 8
"""Over all jobs: four that wait for an engine, as many as it serves, and as many that are prepared or written down."""
QUESTIONS_AT_A_TIME = 4


class Places:
    """What all jobs share: places for samples, and seats from which a model is asked about one."""

    def __init__(self) -> None:
        self.samples = asyncio.Semaphore(SAMPLES_AT_A_TIME)
        self.questions = asyncio.Semaphore(QUESTIONS_AT_A_TIME)


class Line:
    """The samples of a job that wait for what holds up this job alone, such as the limit of its key.

    They wait one after the other: what one of them was refused, the others would be refused as well, and so none of
    them is overtaken for ever. ``changed`` is called when ``why`` may have become another.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._waiting: list[str] = []
        self._turn = asyncio.Lock()

    @property
    def why(self) -> str | None:
        """What is waited for, in words; None for nothing."""
        return self._waiting[0] if self._waiting else None

    @asynccontextmanager
    async def wait(self, why: str) -> AsyncIterator[None]:
        """Hold the head of the line, once it is reached."""
        self._waiting.append(why)
        self._changed()
        try:
            async with self._turn:
                yield
        finally:
            self._waiting.remove(why)
            self._changed()


class Place:
    """The place of one sample, held by ``async with``, and within that the seat from which a model is asked."""

    def __init__(self, places: Places, line: Line) -> None:
        self._places = places
        self._line = line
        self._held: list[asyncio.Semaphore] = []

    async def __aenter__(self) -> Self:
        """Wait for a place."""
        await self._take(self._places.samples)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self._leave(self._places.samples)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Hold a seat for questions, once one is free."""
        await self._take(self._places.questions)
        try:
            yield
        finally:
            self._leave(self._places.questions)

    @asynccontextmanager
    async def aside(self, why: str) -> AsyncIterator[None]:
        """Let other jobs have the place and the seat while this one waits; it goes on once both are free again."""
        held = list(self._held)
        for each in held:
            self._leave(each)
        async with self._line.wait(why):
            yield
        for each in held:
            await self._take(each)

    async def _take(self, kind: asyncio.Semaphore) -> None:
        await kind.acquire()
        self._held.append(kind)

    def _leave(self, kind: asyncio.Semaphore) -> None:
        if kind in self._held:  # not if it was cancelled while it stood aside
            self._held.remove(kind)
            kind.release()
