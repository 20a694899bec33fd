"""Background jobs with a fake tagger and real files: progress, failures, cancelling, and going on after an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from fakes import FakeTagger
from rolecall.errors import DiskFull, JobRunning, NotFound
from rolecall.vision.datasets_records import Dataset, FileFacts, Wish
from rolecall.vision.datasets_store import DatasetStore
from rolecall.vision.datasets_thread import StoreThread
from rolecall.vision.jobs import (
    MOST_FAILURES_IN_A_ROW,
    Interrupted,
    Jobs,
    NothingWorks,
    Progress,
    SampleFailed,
)
from rolecall.vision.jobs_places import QUESTIONS_AT_A_TIME, SAMPLES_AT_A_TIME

T = TypeVar("T")
WISH = Wish("tags@1")


@asynccontextmanager
async def bench(folder: Path, tagger: FakeTagger) -> AsyncIterator[tuple[Jobs, StoreThread]]:
    """Run jobs on the file of a folder for a while."""
    store = StoreThread(folder / "datasets.duckdb")
    jobs = Jobs(store, tagger, folder / "running")
    try:
        yield jobs, store
    finally:
        await jobs.aclose()
        await store.aclose()


async def dataset(store: StoreThread, count: int = 10, name: str = "one") -> Dataset:
    files = [FileFacts(f"{number:03}.jpg", 1, 1) for number in range(count)]
    return await store.run(lambda opened: opened.add_dataset(name, "/photos", files, 0))


async def watched(jobs: Jobs, id_: int) -> list[Progress]:
    return [state async for state in jobs.watch(id_) if state is not None]


async def turns() -> None:
    """Let everything that can go on do so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_every_sample_is_tagged(tmp_path: Path) -> None:
    """Each is asked for once; the progress begins at nothing and ends with all, and says so in words."""
    tagger = FakeTagger()
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store, 10)
        job = await jobs.start(one.id, WISH)
        assert (job.status, job.total) == ("running", 10)
        states = await watched(jobs, one.id)
        assert states[-1] == Progress("complete", 10, 10, "Tagged 10 samples.")
        assert [state.processed for state in states] == sorted(state.processed for state in states)
        assert all(state.message == f"Tagging... {state.processed}/10" for state in states[:-1])
        assert sorted(tagger.asked) == [f"{number:03}.jpg" for number in range(10)]
        assert (await store.run(lambda opened: opened.dataset(one.id))).tagged == 10
        assert await watched(jobs, one.id) == [states[-1]]
        assert not (tmp_path / "running").exists()


async def test_a_large_dataset_is_read_in_parts(tmp_path: Path) -> None:
    """Each sample is asked for once all the same, in the order of the names as far as some at a time have one."""
    tagger = FakeTagger()
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store, 350)
        await jobs.start(one.id, Wish("tags@1", again=True))
        assert (await watched(jobs, one.id))[-1].processed == 350
        assert sorted(tagger.asked) == [f"{number:03}.jpg" for number in range(350)]
        assert all(abs(int(name[:3]) - place) < SAMPLES_AT_A_TIME for place, name in enumerate(tagger.asked))


async def test_only_some_are_worked_on_at_a_time(tmp_path: Path) -> None:
    """Over all jobs, and fewer of them ask a model."""
    tagger = FakeTagger()
    tagger.hold.clear()
    async with bench(tmp_path, tagger) as (jobs, store):
        both = [(await dataset(store, 30, name)).id for name in ("one", "two")]
        for id_ in both:
            await jobs.start(id_, WISH)
        await tagger.until_asked(SAMPLES_AT_A_TIME)
        await turns()
        assert (len(tagger.asked), tagger.at_once) == (SAMPLES_AT_A_TIME, QUESTIONS_AT_A_TIME)
        tagger.hold.set()
        assert [(await watched(jobs, id_))[-1].status for id_ in both] == ["complete"] * 2
        assert tagger.most_at_once == QUESTIONS_AT_A_TIME


async def test_two_jobs_on_one_dataset(tmp_path: Path) -> None:
    """The second one is refused, also while the first one is only beginning; what is not there is not found."""
    tagger = FakeTagger()
    tagger.hold.clear()
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store)
        results = await asyncio.gather(*(jobs.start(one.id, WISH) for _ in range(5)), return_exceptions=True)
        assert [type(result) for result in results].count(JobRunning) == 4
        with pytest.raises(JobRunning, match="being tagged already"):
            await jobs.start(one.id, WISH)
        with pytest.raises(NotFound):
            await jobs.start(99, WISH)
        tagger.hold.set()
        await watched(jobs, one.id)
        assert (await jobs.start(one.id, Wish("tags@1", again=True))).total == 10
        assert len(await watched(jobs, one.id)) > 0
        assert len(tagger.asked) == 20


async def test_a_sample_that_fails_holds_up_no_other(tmp_path: Path) -> None:
    """Its reason is kept with it, the others are tagged, and the end says how many failed."""
    tagger = FakeTagger(faults={"003.jpg": [SampleFailed("it is empty (0 bytes)")]})
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store)
        await jobs.start(one.id, WISH)
        last = (await watched(jobs, one.id))[-1]
        assert last == Progress("complete", 10, 10, "Tagged 9 of 10 samples; 1 could not be tagged.")
        (failed,) = (await store.run(lambda opened: opened.samples(one.id, failed=True)))[0]
        assert (failed.file.name, failed.problem, failed.tags.shown) == ("003.jpg", "it is empty (0 bytes)", ())
        await jobs.start(one.id, WISH)
        assert (await watched(jobs, one.id))[-1].message == "Tagged one sample."
        assert tagger.asked[10:] == ["003.jpg"]
        await jobs.start(one.id, WISH)
        assert (await watched(jobs, one.id))[-1].message.startswith("Nothing to tag")


async def test_what_every_sample_would_meet_ends_the_job(tmp_path: Path) -> None:
    """A model that there is not, for one; what was tagged by then stays."""
    tagger = FakeTagger(faults={"004.jpg": [NothingWorks("there is no model for the role 'tags'")]})
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store, 40)
        await jobs.start(one.id, WISH)
        last = (await watched(jobs, one.id))[-1]
        assert last.status == "error"
        assert last.message.endswith("samples: there is no model for the role 'tags'")
        assert (await store.run(lambda opened: opened.dataset(one.id))).tagged == last.processed < 40
        assert not (tmp_path / "running").exists()


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_what_is_being_written_when_a_job_ends_is_counted(tmp_path: Path, end: str) -> None:
    """So that what the job says and what the dataset shows are the same."""
    faults: list[Exception] = [NothingWorks("there is no model for the role 'tags'")] if end == "failed" else []
    tagger = FakeTagger(faults={f"{SAMPLES_AT_A_TIME - 1:03}.jpg": faults})
    tagger.hold.clear()
    gate = threading.Event()
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store, 40)
        await jobs.start(one.id, WISH)
        await tagger.until_asked(SAMPLES_AT_A_TIME)
        closed = asyncio.ensure_future(store.run(lambda _: gate.wait(20)))
        tagger.hold.set()
        watching = asyncio.ensure_future(watched(jobs, one.id))
        await turns()
        cancelling = asyncio.ensure_future(jobs.cancel(one.id)) if end == "cancelled" else None
        await turns()
        gate.set()
        assert await closed
        last = (await watching)[-1]
        assert (last.status, last.message.split()[0]) == (
            ("error", "Stopped") if end == "failed" else ("idle", "Cancelled:")
        )
        assert cancelling is None or await cancelling == last
        assert (await store.run(lambda opened: opened.dataset(one.id))).tagged == last.processed > 0
        assert f" {last.processed} of 40 samples" in last.message


async def test_an_engine_that_fails_again_and_again_ends_the_job(tmp_path: Path) -> None:
    """A few failures in a row are borne, for it may have been killed and start anew; more are not."""
    names = [f"{number:03}.jpg" for number in range(60)]

    def faults(count: int) -> dict[str, list[Exception]]:
        return {name: [SampleFailed("the engine broke off", by_engine=True)] for name in names[10 : 10 + count]}

    tagger = FakeTagger(faults=faults(4))
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store, 60)
        await jobs.start(one.id, WISH)
        assert (await watched(jobs, one.id))[-1].message == "Tagged 56 of 60 samples; 4 could not be tagged."
        tagger.faults = faults(50)
        await jobs.start(one.id, Wish("tags@1", again=True))
        last = (await watched(jobs, one.id))[-1]
        assert last.status == "error"
        assert f"{MOST_FAILURES_IN_A_ROW} in a row failed, the last one because the engine broke off" in last.message


async def test_a_cancelled_job_keeps_what_is_done(tmp_path: Path) -> None:
    """Who watches it is told; another job goes on with the rest; to cancel what does not run changes nothing."""
    tagger = FakeTagger()
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store, 10)
        assert (await jobs.cancel(one.id)).status == "idle"
        tagger.hold.clear()
        await jobs.start(one.id, WISH)
        watching = asyncio.ensure_future(watched(jobs, one.id))
        await tagger.until_asked(SAMPLES_AT_A_TIME)
        progress = await jobs.cancel(one.id)
        assert progress == Progress("idle", 0, 10, "Cancelled: 0 of 10 samples are done.")
        assert (await watching)[-1] == progress == await jobs.progress(one.id)
        assert not (tmp_path / "running").exists()
        tagger.hold.set()
        await jobs.start(one.id, WISH)
        assert (await watched(jobs, one.id))[-1].status == "complete"


async def test_a_job_that_is_cancelled_at_once(tmp_path: Path) -> None:
    """Before it has done anything it can be ended, and begun again; so can one whose end somebody has just heard of."""
    async with bench(tmp_path, FakeTagger()) as (jobs, store):
        one = await dataset(store, 10)
        await jobs.start(one.id, WISH)
        assert (await jobs.cancel(one.id)).status == "idle"
        for _ in range(3):
            await jobs.start(one.id, Wish("tags@1", again=True))
            async for state in jobs.watch(one.id):
                last = state
            assert last is not None
            assert last.status == "complete"


async def test_an_interrupted_job_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """The end of the process ends no job: the next one asks only for the samples that have no result yet."""
    tagger = FakeTagger(faults={"000.jpg": [SampleFailed("it is empty")], "020.jpg": [Interrupted()]})
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store, 40)
        await jobs.start(one.id, WISH)
        states = await watched(jobs, one.id)
        assert states[-1].status == "running"
        done = (await store.run(lambda opened: opened.running_jobs()))[0].processed
        assert 0 < done < 40
    assert (tmp_path / "running").exists()
    again = FakeTagger()
    async with bench(tmp_path, again) as (jobs, store):
        await jobs.resume()
        assert (await watched(jobs, one.id))[-1] == Progress(
            "complete", 40, 40, "Tagged 39 of 40 samples; 1 could not be tagged."
        )
        assert len(again.asked) == 40 - done
        assert "020.jpg" in again.asked
    assert not (tmp_path / "running").exists()


async def test_stop_ends_whoever_watches(tmp_path: Path) -> None:
    """The server's end does not wait for streams of progress, and leaves the job to the next start."""
    tagger = FakeTagger()
    tagger.hold.clear()
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store, 10)
        await jobs.start(one.id, WISH)
        watching = asyncio.ensure_future(watched(jobs, one.id))
        await tagger.until_asked(1)
        jobs.stop()
        assert (await watching)[-1].status == "running"
        assert [job.total for job in await store.run(lambda opened: opened.running_jobs())] == [10]


async def test_a_dataset_that_is_removed_meanwhile(tmp_path: Path) -> None:
    """Its samples are passed over."""
    tagger = FakeTagger()
    tagger.hold.clear()
    async with bench(tmp_path, tagger) as (jobs, store):
        one = await dataset(store, 30)
        await jobs.start(one.id, WISH)
        await tagger.until_asked(3)
        await store.run(lambda opened: opened.remove_dataset(one.id))
        tagger.hold.set()
        assert (await watched(jobs, one.id))[-1].status == "complete"


async def test_results_that_cannot_be_written_end_the_job(tmp_path: Path) -> None:
    """The disk is full: the job says so, later as well, and nothing that was written before is lost."""

    def full(_opened: DatasetStore) -> NoReturn:
        raise DiskFull("There is no room.")

    class FullDisk(StoreThread):
        is_full = False

        async def run(self, work: Callable[[DatasetStore], T]) -> T:
            return await super().run(full if self.is_full else work)

    tagger = FakeTagger()
    store = FullDisk(tmp_path / "datasets.duckdb")
    jobs = Jobs(store, tagger, tmp_path / "running")
    one = await dataset(store, 20)
    await jobs.start(one.id, WISH)
    await tagger.until_asked(8)
    store.is_full = True
    last = (await watched(jobs, one.id))[-1]
    assert last.status == "error"
    assert last.message.endswith("There is no room.")
    store.is_full = False
    assert await jobs.progress(one.id) == await jobs.cancel(one.id) == last
    assert await watched(jobs, one.id) == [last]
    assert (tmp_path / "running").exists()
    kept = await store.run(lambda opened: opened.dataset(one.id))
    assert last.processed <= kept.tagged < 20
    told = Progress("error", kept.tagged, 20, "Interrupted; start it again to go on.")
    assert await Jobs(store, tagger, tmp_path / "running").progress(one.id) == told
    await jobs.start(one.id, WISH)
    assert (await watched(jobs, one.id))[-1].status == "complete"
    assert (await store.run(lambda opened: opened.dataset(one.id))).tagged == 20
    await jobs.aclose()
    await store.aclose()
