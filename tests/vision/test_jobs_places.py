"""Places of samples over all jobs: who stands aside gives them to others, and waits in the line of its own job."""

from __future__ import annotations

import asyncio

from rolecall.vision.jobs_places import QUESTIONS_AT_A_TIME, SAMPLES_AT_A_TIME, Line, Place, Places


class Bench:
    """Places and a line, and what is told of the line."""

    def __init__(self) -> None:
        self.places = Places()
        self.told: list[str | None] = []
        self.line = Line(self._changed)
        self.has_changed = asyncio.Event()
        self.go_on = asyncio.Event()
        self.order: list[int] = []

    def _changed(self) -> None:
        self.told.append(self.line.why)
        self.has_changed.set()

    async def until_told(self, count: int) -> None:
        """Wait until the line has changed so often."""
        while len(self.told) < count:
            self.has_changed.clear()
            await asyncio.wait_for(self.has_changed.wait(), 20)

    async def wait_aside(self, number: int) -> None:
        """Work on a sample that has to wait while it asks."""
        async with Place(self.places, self.line) as place, place.asking():
            async with place.aside("a limit"):
                await self.go_on.wait()
            self.order.append(number)

    async def ask(self) -> None:
        """Work on a sample of another job, that waits for nothing."""
        async with Place(self.places, Line(lambda: None)) as place, place.asking():
            pass

    def is_free(self) -> bool:
        """Whether nobody holds anything, and nothing was given back twice."""
        counts = (self.places.samples._value, self.places.questions._value)
        return counts == (SAMPLES_AT_A_TIME, QUESTIONS_AT_A_TIME)


async def until_waiting(bench: Bench, count: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.ensure_future(bench.wait_aside(number)) for number in range(count)]
    await bench.until_told(count)
    return tasks


async def test_who_stands_aside_holds_up_nobody() -> None:
    """More than there are places wait for their own limit; others go on all the same."""
    bench = Bench()
    tasks = await until_waiting(bench, 2 * SAMPLES_AT_A_TIME)
    await asyncio.wait_for(asyncio.gather(*(bench.ask() for _ in range(20))), 20)
    assert bench.line.why == "a limit"
    assert not any(task.done() for task in tasks)
    bench.go_on.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    assert bench.told[-1] is None
    assert bench.is_free()


async def test_they_wait_in_their_order() -> None:
    """None of them is overtaken by one that came later."""
    bench = Bench()
    tasks = await until_waiting(bench, 20)
    bench.go_on.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    assert bench.order == list(range(20))


async def test_a_cancelled_wait_gives_nothing_back_twice() -> None:
    """Neither aside, nor on the way back to a place that others have."""
    bench = Bench()
    for task in (tasks := await until_waiting(bench, 3)):
        task.cancel()
    await asyncio.wait(tasks)
    assert (bench.line.why, bench.is_free()) == (None, True)
    bench.told.clear()
    (task,) = await until_waiting(bench, 1)
    for _ in range(SAMPLES_AT_A_TIME):
        await bench.places.samples.acquire()
    bench.go_on.set()
    await bench.until_told(2)
    task.cancel()
    await asyncio.wait({task})
    for _ in range(SAMPLES_AT_A_TIME):
        bench.places.samples.release()
    assert bench.is_free()
