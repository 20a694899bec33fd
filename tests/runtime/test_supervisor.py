"""The supervisor carries out decisions: leases, starts, stops. Processes are fakes that do as the test says."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from builders import configured, spec
from fakes import FakeBackend, FakeLauncher
from rolecall.core.events import Spec
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Demand
from rolecall.errors import Conflict, NotLoaded, ShuttingDown, StartFailed
from rolecall.runtime.engine import EngineMaker
from rolecall.runtime.lease import Lease
from rolecall.runtime.leftovers import EngineRoll
from rolecall.runtime.supervisor import EngineStatus, Supervisor

Make = Callable[..., Supervisor]


async def until(question: Callable[[], Any], within_s: float = 10) -> None:
    """Let the loop run until the answer is true."""
    deadline = time.monotonic() + within_s
    while not question():
        assert time.monotonic() < deadline, "still not"
        await asyncio.sleep(0.002)


def backend_for(entry: ModelEntry) -> FakeBackend:
    """Return a backend; models of ``openai`` are run by somebody else."""
    return FakeBackend(managed=entry.backend != "openai")


@pytest.fixture
def launcher() -> FakeLauncher:
    """Return the launcher of the supervisor."""
    return FakeLauncher()


@pytest.fixture
async def make(tmp_path: Path, launcher: FakeLauncher) -> AsyncIterator[Make]:
    """Return a maker of a supervisor with these models; it is closed afterwards."""
    made: list[Supervisor] = []
    async with launcher.http() as http:

        def build(*specs: Spec, budget_mb: int = 10_000, **fields: Any) -> Supervisor:
            limits = {name: fields.pop(name) for name in ("load_timeout_s",) if name in fields}
            maker = EngineMaker(launcher, http, backend_for, EngineRoll(tmp_path), **limits)
            supervisor = Supervisor(Scheduler(linger_share=0), maker, backend_for, **fields)
            supervisor.configure(configured(*specs, budget_mb=budget_mb))
            made.append(supervisor)
            return supervisor

        yield build
        for supervisor in made:
            await asyncio.wait_for(supervisor.close(), 10)


def ask(supervisor: Supervisor, *specs: Spec, **options: Any) -> asyncio.Task[Lease]:
    """Begin to wait for a lease of one of these models."""
    return asyncio.create_task(supervisor.acquire([each.entry for each in specs], Demand(), **options))


async def take(supervisor: Supervisor, *specs: Spec) -> Lease:
    """Return a lease of one of these models."""
    return await asyncio.wait_for(supervisor.acquire([each.entry for each in specs], Demand()), 10)


def status(supervisor: Supervisor, model: str) -> EngineStatus:
    """Return the row of a model."""
    return next(each for each in supervisor.status() if each.model.name == model)


def files(folder: Path) -> list[Path]:
    """Return what the supervisor has written down."""
    return list(folder.iterdir())


def in_flight(supervisor: Supervisor, model: str) -> int:
    """Return the leases of a model that are out."""
    return status(supervisor, model).model.in_flight


# -- starting


async def test_many_requests_start_one_engine(make: Make, launcher: FakeLauncher) -> None:
    """Fifty that want a cold model at once get a lease each, of the one engine that is started."""
    a = spec("a", max_parallel=50)
    supervisor = make(a)
    waiting = [ask(supervisor, a) for _ in range(50)]
    await until(lambda: "a" in launcher.processes)
    assert not any(task.done() for task in waiting)
    launcher.ready.add("a")
    leases = await asyncio.gather(*waiting)
    assert launcher.started == ["a"]
    assert len({lease.upstream.base_url for lease in leases}) == 1
    assert in_flight(supervisor, "a") == 50
    for lease in leases:
        lease.release()
    assert in_flight(supervisor, "a") == 0


async def test_listeners_hear_what_changes_a_model(make: Make, launcher: FakeLauncher) -> None:
    """A load is told from the request that wants it to its readiness; the traffic of a loaded model is not.

    With each is told how long it took to decide.
    """
    a = spec("a", max_parallel=2)
    supervisor = make(a)
    heard: list[tuple[str, list[str]]] = []
    took_s: list[float] = []
    supervisor.listeners.append(
        lambda event, effects: heard.append((type(event).__name__, [type(effect).__name__ for effect in effects]))
    )
    supervisor.listeners.append(lambda _event, _effects: took_s.append(supervisor.decision_s))
    launcher.ready.add("a")
    first = await take(supervisor, a)
    assert heard[0] == ("Arrived", ["Start"])
    assert ("BecameReady", ["Grant"]) in heard
    (await take(supervisor, a)).release()
    assert len(took_s) == len(heard)
    assert all(0 < each < 1 for each in took_s)
    heard.clear()
    second = supervisor.lease_at_once([a.entry], Demand())
    assert second is not None
    second.release()
    first.release()
    assert not any(kind in {"Arrived", "Released"} for kind, _ in heard)


async def test_the_times_of_a_lease(make: Make, launcher: FakeLauncher) -> None:
    """Waiting for the load is load time; a lease of a loaded model has neither load nor queue time to speak of."""
    a = spec("a", max_parallel=2)
    supervisor = make(a)
    begun = time.monotonic()
    first = ask(supervisor, a)
    await until(lambda: "a" in launcher.processes)
    launcher.ready.add("a")
    lease = await first
    spent_ms = (time.monotonic() - begun) * 1000
    assert 0 < lease.load_ms <= spent_ms
    assert 0 <= lease.queue_ms <= spent_ms - lease.load_ms + 1e-6
    assert (await take(supervisor, a)).load_ms == 0


async def test_a_start_that_fails(make: Make, launcher: FakeLauncher) -> None:
    """All who wait are told the exit and the engine's last lines; soon after they are told so at once."""
    a = spec("a")
    supervisor = make(a)
    waiting = [ask(supervisor, a) for _ in range(3)]
    await until(lambda: "a" in launcher.processes)
    launcher.processes["a"].lines = ["loading", "out of memory"]
    launcher.processes["a"].exit(1)
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, StartFailed)
        assert "exit code 1" in error.message
        assert "out of memory" in error.message
        assert 0 < (error.retry_after_s or 0) <= 1
    with pytest.raises(StartFailed):
        await take(supervisor, a)
    assert launcher.started == ["a"]
    assert status(supervisor, "a").model.state is State.FAILED


async def test_a_start_that_fails_falls_to_the_next_candidate(make: Make, launcher: FakeLauncher) -> None:
    """A request that any of two models may answer gets the other one."""
    bad, good = spec("bad", role_priority={"r": 90}), spec("good", role_priority={"r": 10})
    supervisor = make(bad, good)
    launcher.ready.add("good")
    request = asyncio.create_task(supervisor.acquire([bad.entry, good.entry], Demand(role="r")))
    await until(lambda: "bad" in launcher.processes)
    launcher.processes["bad"].exit(1)
    assert (await asyncio.wait_for(request, 10)).entry.name == "good"


async def test_a_program_that_cannot_be_started(make: Make, launcher: FakeLauncher) -> None:
    """What the launcher says is what the request is told."""
    a = spec("a")
    supervisor = make(a)
    launcher.error = OSError("no space left on device")
    with pytest.raises(StartFailed, match="no space left on device"):
        await take(supervisor, a)


async def test_a_fixed_port_that_is_taken(make: Make, launcher: FakeLauncher) -> None:
    """Nothing is started, and the refusal names the port and who holds it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        a = spec("a", backend_config={"port": port})
        with pytest.raises(StartFailed, match=rf"port {port} is taken by process \d+"):
            await take(make(a), a)
    assert launcher.started == []


async def test_a_crash_is_followed_by_a_new_start(make: Make, launcher: FakeLauncher) -> None:
    """An engine that dies idle is failed until the next request, which starts another."""
    a = spec("a")
    supervisor = make(a)
    launcher.ready.add("a")
    (await take(supervisor, a)).release()
    launcher.processes["a"].exit(-signal.SIGKILL)
    await until(lambda: status(supervisor, "a").model.state is State.FAILED)
    assert "SIGKILL" in (status(supervisor, "a").model.error or "")
    (await take(supervisor, a)).release()
    assert launcher.started == ["a", "a"]


async def test_a_crash_that_was_not_known_when_the_model_was_to_go(make: Make, launcher: FakeLauncher) -> None:
    """It is one nevertheless, and the other model has the room."""
    a, b = spec("a"), spec("b")
    supervisor = make(a, b, budget_mb=1000)
    launcher.ready |= {"a", "b"}
    lease = await take(supervisor, a)
    waits = ask(supervisor, b)
    await asyncio.sleep(0)
    launcher.processes["a"].exit(-signal.SIGSEGV)
    lease.release()
    assert status(supervisor, "a").model.state is State.STOPPING
    (await waits).release()
    row = status(supervisor, "a").model
    assert (row.state, row.failures) == (State.FAILED, 1)
    assert "SIGSEGV" in (row.error or "")


async def test_a_load_that_lost_its_port_and_is_not_wanted(make: Make, launcher: FakeLauncher) -> None:
    """It is not started on another port: it was to go."""
    a = spec("a")
    supervisor = make(a)
    waits = ask(supervisor, a)
    await until(lambda: "a" in launcher.processes)
    launcher.processes["a"].lines = ["error: Address already in use"]
    launcher.processes["a"].exit(1)
    ended = asyncio.create_task(supervisor.unload(a.entry))
    waits.cancel()
    await asyncio.wait_for(ended, 10)
    assert launcher.started == ["a"]


# -- leases and cancellation


async def test_a_lease_is_given_back_once(make: Make, launcher: FakeLauncher) -> None:
    """A second release takes nothing from another holder."""
    a = spec("a", max_parallel=2)
    supervisor = make(a)
    launcher.ready.add("a")
    first, second = await take(supervisor, a), await take(supervisor, a)
    first.release()
    first.release()
    assert in_flight(supervisor, "a") == 1
    second.release()
    assert in_flight(supervisor, "a") == 0


async def test_a_cancelled_wait_leaves_the_queue(make: Make, launcher: FakeLauncher) -> None:
    """A client that left while queued is never granted anything, and the next one is served."""
    a = spec("a")
    supervisor = make(a)
    launcher.ready.add("a")
    held = await take(supervisor, a)
    gone, next_one = ask(supervisor, a), ask(supervisor, a)
    await until(lambda: status(supervisor, "a").model.waiting == 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert status(supervisor, "a").model.waiting == 1
    held.release()
    lease = await asyncio.wait_for(next_one, 10)
    assert in_flight(supervisor, "a") == 1
    lease.release()


@pytest.mark.parametrize("first", ["grant", "cancel"])
async def test_a_grant_and_a_cancellation_cross(make: Make, launcher: FakeLauncher, first: str) -> None:
    """In whichever order they come within one turn of the loop, the lease is not lost."""
    a = spec("a")
    supervisor = make(a)
    launcher.ready.add("a")
    held = await take(supervisor, a)
    gone = ask(supervisor, a)
    await until(lambda: status(supervisor, "a").model.waiting == 1)
    for step in (held.release, gone.cancel) if first == "grant" else (gone.cancel, held.release):
        step()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await until(lambda: in_flight(supervisor, "a") == 0)
    (await take(supervisor, a)).release()


async def test_a_refusal_and_a_cancellation_cross(make: Make, launcher: FakeLauncher) -> None:
    """A client that leaves as its request is refused disturbs nobody."""
    a = spec("a")
    supervisor = make(a)
    gone = ask(supervisor, a)
    await until(lambda: "a" in launcher.processes)
    supervisor.stop_admission()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert supervisor.scheduler.waiting() == 0


async def test_nobody_waits_for_a_load_that_nobody_wants(make: Make, launcher: FakeLauncher) -> None:
    """When the client of a load has left, a load that another client wants takes its place."""
    a, b = spec("a", 1000), spec("b", 1000)
    supervisor = make(a, b, budget_mb=1000)
    gone = ask(supervisor, a)
    await until(lambda: "a" in launcher.processes)
    gone.cancel()
    launcher.ready.add("b")
    (await take(supervisor, b)).release()
    assert launcher.processes["a"].signals == [signal.SIGTERM]
    assert status(supervisor, "a").model.state is State.STOPPED


async def test_a_lease_keeps_the_entry_it_was_started_with(make: Make, launcher: FakeLauncher) -> None:
    """A new registry does not touch answers in flight; the changed engine is stopped after them."""
    old = spec("a", served_model_id="old")
    new = spec("a", served_model_id="new")
    supervisor = make(old)
    launcher.ready.add("a")
    lease = await take(supervisor, old)
    process = launcher.processes["a"]
    supervisor.configure(configured(new, budget_mb=10_000))
    following = ask(supervisor, new)
    await until(lambda: status(supervisor, "a").model.waiting == 1)
    assert process.signals == []
    lease.release()
    renewed = await asyncio.wait_for(following, 10)
    assert (lease.entry.served_model_id, renewed.entry.served_model_id) == ("old", "new")
    assert process.signals == [signal.SIGTERM]
    renewed.release()


async def test_a_model_that_is_removed_while_it_answers(make: Make, launcher: FakeLauncher) -> None:
    """Its engine has a row until it is gone, and then none."""
    a = spec("a")
    supervisor = make(a)
    launcher.ready.add("a")
    lease = await take(supervisor, a)
    supervisor.configure(configured(budget_mb=10_000))
    assert (status(supervisor, "a").model.state, status(supervisor, "a").backend) == (State.STOPPING, "llama_cpp")
    lease.release()
    await until(lambda: supervisor.status() == [])
    assert launcher.processes["a"].signals == [signal.SIGTERM]


# -- without autostart, by hand, in advance


async def test_without_autostart_only_loaded_models_answer(make: Make, launcher: FakeLauncher) -> None:
    """A cold model is refused with the way to load it; by hand it can be loaded; what others run always answers."""
    cold, other = spec("cold"), spec("other", backend="openai", managed=False)
    supervisor = make(cold, other, autostart=False)
    with pytest.raises(NotLoaded, match=r"cold.*rolecall load"):
        await take(supervisor, cold)
    assert launcher.started == []
    assert (await take(supervisor, cold, other)).entry.name == "other"
    launcher.ready.add("cold")
    await supervisor.load([cold.entry])
    assert in_flight(supervisor, "cold") == 0
    (await take(supervisor, cold)).release()


async def test_an_unload_waits_for_the_end(make: Make, launcher: FakeLauncher) -> None:
    """It returns once answers in flight are over and the process is gone."""
    a = spec("a")
    supervisor = make(a)
    launcher.ready.add("a")
    lease = await take(supervisor, a)
    unloading = asyncio.create_task(supervisor.unload(a.entry))
    await until(lambda: status(supervisor, "a").model.state is State.STOPPING)
    assert not unloading.done()
    assert launcher.processes["a"].signals == []
    lease.release()
    await asyncio.wait_for(unloading, 10)
    assert launcher.processes["a"].signals == [signal.SIGTERM]
    assert (status(supervisor, "a").model.state, status(supervisor, "a").pid) == (State.STOPPED, None)
    await supervisor.unload(a.entry)  # a second time nothing happens


async def test_an_unload_calls_a_load_off(make: Make, launcher: FakeLauncher) -> None:
    """Whoever loads the model by hand is told, the preload ends with a line in the terminal, a request gets it yet."""
    a = spec("a", preload=True)
    supervisor = make(a)
    loading = asyncio.create_task(supervisor.load([a.entry]))
    supervisor.preload()
    await until(lambda: "a" in launcher.processes)
    first = launcher.processes["a"]
    await asyncio.wait_for(supervisor.unload(a.entry), 10)
    with pytest.raises(Conflict, match="'a' was unloaded meanwhile"):
        await loading
    assert (status(supervisor, "a").model.state, launcher.started) == (State.STOPPED, ["a"])

    loading = asyncio.create_task(supervisor.load([a.entry]))
    request = ask(supervisor, a)
    await until(lambda: launcher.processes["a"] is not first)
    launcher.ready.add("a")
    unloading = asyncio.create_task(supervisor.unload(a.entry))
    lease = await asyncio.wait_for(request, 10)
    await unloading
    with pytest.raises(Conflict):
        await loading
    lease.release()


async def test_connections_are_closed_before_an_engine_is_ended(make: Make, launcher: FakeLauncher) -> None:
    """When it is unloaded, and when rolecall ends: an engine with clients may take long over its end."""
    a, b = spec("a"), spec("b")
    supervisor = make(a, b)
    launcher.ready |= {"a", "b"}
    leases = {each.name: await take(supervisor, each) for each in (a, b)}
    names = {lease.upstream.base_url: name for name, lease in leases.items()}
    closed: list[str] = []

    def hang_up(url: str) -> None:
        assert launcher.processes[names[url]].signals == []
        closed.append(names[url])

    supervisor.hang_up = hang_up
    unloading = asyncio.create_task(supervisor.unload(a.entry))
    await until(lambda: status(supervisor, "a").model.state is State.STOPPING)
    assert closed == []
    leases["a"].release()
    await asyncio.wait_for(unloading, 10)
    assert closed == ["a"]
    await asyncio.wait_for(supervisor.close(), 10)
    assert closed == ["a", "b"]


async def test_an_unload_of_what_others_run(make: Make) -> None:
    """There is no process to wait for; the model is no longer in use when it returns."""
    other = spec("other", backend="openai", managed=False)
    supervisor = make(other)
    lease = await take(supervisor, other)
    unloading = asyncio.create_task(supervisor.unload(other.entry))
    await until(lambda: status(supervisor, "other").model.state is State.STOPPING)
    assert not unloading.done()
    lease.release()
    await asyncio.wait_for(unloading, 10)
    assert status(supervisor, "other").model.state is State.STOPPED


async def test_models_are_loaded_in_advance(
    make: Make, launcher: FakeLauncher, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that ask for it are loaded one after the other; one that fails is a warning and stops nothing."""
    bad, good = spec("bad", preload=True), spec("good", preload=True)
    supervisor = make(bad, spec("lazy"), good)
    launcher.ready.add("good")
    with caplog.at_level(logging.WARNING):
        supervisor.preload()
        await until(lambda: "bad" in launcher.processes)
        launcher.processes["bad"].exit(2)
        await until(lambda: status(supervisor, "good").model.state is State.READY)
    assert launcher.started == ["bad", "good"]
    assert "preload of bad failed" in caplog.text


async def test_a_row_of_status(make: Make, launcher: FakeLauncher) -> None:
    """A running engine shows its process, port and age, and since when it answers; one that does not shows none."""
    a, b = spec("a", 700), spec("b")
    supervisor = make(a, b)
    begun = time.monotonic()
    taking = asyncio.create_task(take(supervisor, a))
    await until(lambda: "a" in launcher.processes)
    loading, before = status(supervisor, "a"), time.monotonic()
    assert (loading.uptime_s or 0) > 0
    assert loading.ready_s is None
    launcher.ready.add("a")
    lease = await taking
    row, cold = status(supervisor, "a"), status(supervisor, "b")
    assert (row.pid, row.model.vram_mb) == (launcher.processes["a"].pid, 700)
    assert lease.upstream.base_url == f"http://127.0.0.1:{row.port}/v1"
    assert row.ready_s is not None
    assert row.uptime_s is not None
    assert row.ready_s < time.monotonic() - before
    assert row.ready_s < row.uptime_s < time.monotonic() - begun
    assert (cold.pid, cold.port, cold.uptime_s, cold.ready_s, cold.backend) == (None, None, None, None, "llama_cpp")


async def test_time_passes_for_the_scheduler(make: Make, launcher: FakeLauncher) -> None:
    """While time is kept, an idle model is unloaded without any request."""
    a = spec("a", idle_unload_s=0.05)
    supervisor = make(a)
    launcher.ready.add("a")
    (await take(supervisor, a)).release()
    assert status(supervisor, "a").model.state is State.READY
    for _ in range(1000):
        await supervisor.tick()
        await asyncio.sleep(0.01)
        if status(supervisor, "a").model.state is State.STOPPED:
            break
    assert status(supervisor, "a").model.state is State.STOPPED


# -- the end


async def test_closing_leaves_nothing(make: Make, launcher: FakeLauncher, tmp_path: Path) -> None:
    """Engines that are ready, loading or wanted in advance are all gone, those who wait are told, none is started."""
    ready, loading, wanted = spec("ready"), spec("loading"), spec("wanted", preload=True)
    supervisor = make(ready, loading, wanted)
    launcher.ready.add("ready")
    held = await take(supervisor, ready)
    waiting = ask(supervisor, loading)
    await until(lambda: "loading" in launcher.processes)
    supervisor.preload()
    await until(lambda: status(supervisor, "wanted").model.waiting == 1)
    await asyncio.wait_for(supervisor.close(), 10)
    held.release()
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await take(supervisor, ready)
    assert {name: process.signals for name, process in launcher.processes.items()} == {
        "ready": [signal.SIGTERM],
        "loading": [signal.SIGTERM],
    }
    assert [each.model.state for each in supervisor.status()] == [State.STOPPED] * 3
    assert files(tmp_path) == []
    await supervisor.close()
