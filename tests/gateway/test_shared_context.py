"""Requests that share a context wait until there is room for them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeBackend
from gateway.test_engine_context import contexts, lease
from rolecall.core.models import ModelEntry
from rolecall.gateway.shared_context import SharedContexts
from rolecall.runtime.lease import Lease

PAGES = {"/props": {"default_generation_settings": {"n_ctx": 1000}}}


class Sharing(FakeBackend):
    """An engine whose requests share one context."""

    def shares_context(self, entry: ModelEntry) -> bool:
        """Return that they do."""
        return True


@dataclass
class Requests:
    """Requests to one engine by name; ``inside`` are those that have their room."""

    shared: SharedContexts
    lease: Lease
    inside: list[str] = field(default_factory=list)
    tasks: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = field(default_factory=dict)

    async def come(self, name: str, tokens: float) -> None:
        """Begin a request, as far as it gets."""
        leave = asyncio.Event()

        async def request() -> None:
            async with self.shared.room(self.lease, lambda _: tokens):
                self.inside.append(name)
                try:
                    await leave.wait()
                finally:
                    self.inside.remove(name)

        self.tasks[name] = (asyncio.create_task(request()), leave)
        await settled()

    async def go(self, name: str) -> None:
        """End a request's answer."""
        self.tasks[name][1].set()
        await settled()

    async def cancel(self, *names: str) -> None:
        """Cancel requests in the same moment."""
        for name in names:
            self.tasks[name][0].cancel()
        await settled()


async def settled() -> None:
    """Let all tasks get on as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


def requests(backend: FakeBackend | None = None, pages: dict[str, Any] | None = None) -> Requests:
    """Return requests to an engine with a context of 1000 tokens."""
    made = replace(lease(), backend=backend or Sharing())
    return Requests(SharedContexts(contexts(PAGES if pages is None else pages)), made)


async def test_what_fits_together_goes_together() -> None:
    """Requests pass until the context is full; the next one waits until one of them has its answer."""
    each = requests()
    for name in "abc":
        await each.come(name, 400)
    assert each.inside == ["a", "b"]
    await each.go("a")
    assert each.inside == ["b", "c"]


async def test_nobody_is_overtaken() -> None:
    """A small request does not pass a large one that came before it, however much room there is."""
    each = requests()
    await each.come("a", 400)
    await each.come("large", 900)
    await each.come("small", 100)
    assert each.inside == ["a"]
    await each.go("a")
    assert each.inside == ["large", "small"]


async def test_what_is_larger_than_the_context_goes_alone() -> None:
    """It is the engine's to refuse it; nobody waits for ever."""
    each = requests()
    await each.come("huge", 5000)
    await each.come("a", 1)
    assert each.inside == ["huge"]
    await each.go("huge")
    assert each.inside == ["a"]


async def test_who_leaves_the_queue_makes_way() -> None:
    """A waiting request that is cancelled lets those behind it in; one that is being answered gives its room back."""
    each = requests()
    await each.come("a", 400)
    await each.come("large", 900)
    await each.come("small", 500)
    await each.cancel("large")
    assert each.inside == ["a", "small"]
    await each.come("last", 500)
    await each.cancel("a")
    assert each.inside == ["small", "last"]


async def test_cancelled_in_the_moment_of_its_turn() -> None:
    """Room that came in the same moment as the cancellation is not lost, whichever came first."""
    for names in (("a", "b"), ("b", "a")):
        each = requests()
        await each.come("a", 1000)
        await each.come("b", 1000)
        await each.cancel(*names)
        await each.come("c", 1000)
        assert each.inside == ["c"]
    each = requests()
    await each.come("a", 1000)
    await each.come("b", 1000)
    each.tasks["a"][1].set()
    await asyncio.sleep(0)
    await each.cancel("b")
    await each.come("c", 1000)
    assert each.inside == ["c"]


@pytest.mark.parametrize("pages", [PAGES, {}])
async def test_others_do_not_wait(pages: dict[str, Any]) -> None:
    """Engines that share nothing, and those of which nothing is known, let all pass."""
    each = requests(FakeBackend() if pages else Sharing(), pages)
    for name in "abc":
        await each.come(name, 900)
    assert each.inside == ["a", "b", "c"]


async def test_each_engine_has_a_context_of_its_own() -> None:
    """Requests to another engine, also of the same model, do not wait for each other."""
    each = requests()
    async with AsyncExitStack() as stack:
        for made in (each.lease, replace(lease(), backend=Sharing())):
            await asyncio.wait_for(stack.enter_async_context(each.shared.room(made, lambda _: 900)), 1)


async def test_how_much_is_held_may_depend_on_the_size() -> None:
    """Whoever wants room is told how large the context is."""
    each = requests()
    asked: list[int] = []

    def half(size: int) -> float:
        asked.append(size)
        return size / 2

    async with each.shared.room(each.lease, half), each.shared.room(each.lease, half):
        await each.come("third", 1)
        assert each.inside == []
    await settled()
    assert (each.inside, asked) == (["third"], [1000, 1000])


async def test_a_context_that_turns_out_smaller_lets_the_next_in() -> None:
    """Who waits for more than the engine has, as it said since then, goes alone like any other."""
    known = contexts(PAGES)
    each = Requests(SharedContexts(known), replace(lease(), backend=Sharing()))
    await each.come("a", 1000)
    await each.come("b", 1000)
    known.learn(each.lease, 600)
    await each.come("c", 100)
    assert each.inside == ["a"]
    await each.go("a")
    assert each.inside == ["b"]
    await each.go("b")
    assert each.inside == ["c"]


@given(
    st.lists(st.floats(0.01, 1500) | st.sampled_from([0.1, 333.3, 700.7]), min_size=1, max_size=8),
    st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=12),
)
def test_whatever_came_and_went_the_context_is_whole_again(sizes: list[float], ends: list[tuple[bool, int]]) -> None:
    """Fractions of tokens leave nothing over: as long as anybody waits somebody is inside, at the end all were."""

    async def come_and_go() -> None:
        each = requests()
        for number, tokens in enumerate(sizes):
            await each.come(str(number), tokens)
        for is_cancelled, number in [*ends, *((False, number) for number in range(len(sizes)))]:
            if (name := str(number)) in each.tasks:
                await (each.cancel(name) if is_cancelled else each.go(name))
            waiting = [task for task, _ in each.tasks.values() if not task.done()]
            assert not waiting or each.inside
            assert len(each.inside) == 1 or sum(sizes[int(name)] for name in each.inside) <= 1000
        await each.come("whole", 1000)
        assert each.inside == ["whole"]
        await each.go("whole")

    asyncio.run(come_and_go())
