"""Tagging whole datasets in the background: started, watched, cancelled, and gone on with after a restart.

A job takes one sample after the other, a few at a time, and writes down each result as it comes. What ends rolecall,
its SIGKILL included, ends no job: the next start goes on with the samples that are missing. A sample that fails is
written down with its reason, and the job goes on; it ends early only where every other sample would fail as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from rolecall.errors import DatasetsUnavailable, DiskFull, JobRunning, RolecallError
from rolecall.vision.datasets_records import Dataset, Job, Result, Sample, Status, Wish
from rolecall.vision.datasets_thread import StoreThread
from rolecall.vision.jobs_places import SAMPLES_AT_A_TIME, Line, Place, Places

log = logging.getLogger(__name__)

MARKER = "running"
"""A file beside the datasets that is there while jobs are: by it the next start knows, without opening the datasets."""
MOST_FAILURES_IN_A_ROW = 8
"""Of engines, each after its retries; then the next samples would fail as well."""
_READ_AT_A_TIME = 100
EVENT_EVERY_S = 0.2
SIGN_OF_LIFE_S = 15.0


class SampleFailed(Exception):
    """A sample could not be tagged; the message says why. ``by_engine`` if it was not the picture's fault."""

    def __init__(self, message: str, *, by_engine: bool = False) -> None:
        super().__init__(message)
        self.by_engine = by_engine


class NothingWorks(Exception):
    """No sample can be tagged, whichever it is; the message says why."""


class Interrupted(Exception):
    """The server ends."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """The tags of a sample, and the model that gave them."""

    tags: tuple[str, ...]
    model: str | None


class Tagger(Protocol):
    """Tags pictures."""

    async def tag(self, wish: Wish, folder: Path, sample: Sample, place: Place) -> Tagged:
        """Return the tags of a picture; a model is asked only ``asking`` from its place, which is left while it waits.

        Raises ``SampleFailed``, ``NothingWorks`` and ``Interrupted``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a dataset's tagging is; ``message`` is for people."""

    status: Status
    processed: int
    total: int
    message: str


IDLE = Progress("idle", 0, 0, "Not tagged yet.")


def progress_of(job: Job | None) -> Progress:
    """Return what is said of a job that is not running, or of none."""
    if job is None:
        return IDLE
    if job.status == "running":  # its end could not be written
        return Progress("error", job.processed, job.total, "Interrupted; start it again to go on.")
    return Progress(job.status, job.processed, job.total, job.message)


class Jobs:
    """The jobs of this process, at most one for each dataset; ``marker`` is the file that is there while they are."""

    def __init__(self, store: StoreThread, tagger: Tagger, marker: Path) -> None:
        self._store = store
        self._bench = _Bench(store, tagger)
        self._marker = marker
        self._running: dict[int, _Run] = {}
        self._starting: set[int] = set()
        self._unwritten: dict[int, Progress] = {}
        """How jobs ended whose end could not be written: until the next start only this process knows."""

    async def start(self, dataset_id: int, wish: Wish) -> Job:
        """Begin to tag a dataset; raises ``NotFound``, and ``JobRunning`` if it is being tagged already."""
        if dataset_id in self._running or dataset_id in self._starting:
            raise JobRunning(
                f"The dataset {dataset_id} is being tagged already; GET /datasets/{dataset_id}/auto-tag/progress shows "
                f"how far, DELETE /datasets/{dataset_id}/auto-tag ends it."
            )
        self._starting.add(dataset_id)
        try:
            dataset = await self._store.run(lambda store: store.dataset(dataset_id))
            await asyncio.to_thread(self._mark)
            job = await self._store.run(lambda store: store.start_job(dataset_id, wish))
            await self._launch(dataset, job)
        finally:
            self._starting.discard(dataset_id)
        return job

    def _mark(self) -> None:
        try:
            self._marker.touch(mode=0o600)
        except OSError as error:
            raise DiskFull(f"{self._marker} cannot be written: {error.strerror or error}.", retry_after_s=30) from None

    async def _launch(self, dataset: Dataset, job: Job) -> None:
        run = _Run(dataset, job, self._bench, self._over)
        self._unwritten.pop(dataset.id, None)
        run.task = asyncio.ensure_future(run.run())
        await asyncio.sleep(0)  # a task that is cancelled before its first step never comes to its end
        if not run.task.done():
            self._running[dataset.id] = run

    def _over(self, run: _Run) -> None:
        if self._running.get(run.dataset.id) is run:
            del self._running[run.dataset.id]
        if not run.is_written and run.progress.status != "running":
            self._unwritten[run.dataset.id] = run.progress
        if not self._running and not self._starting and run.is_written:
            self._marker.unlink(missing_ok=True)

    async def resume(self) -> None:
        """Go on with what an earlier process has not finished."""
        for job in await self._store.run(lambda store: store.running_jobs()):
            dataset_id = job.dataset_id
            dataset = await self._store.run(lambda store, id_=dataset_id: store.dataset(id_))  # type: ignore[misc]
            if dataset_id not in self._running and dataset_id not in self._starting:
                log.info("dataset %d: going on with %d of %d samples", dataset_id, job.processed, job.total)
                await self._launch(dataset, job)
        if not self._running and not self._starting:
            self._marker.unlink(missing_ok=True)

    async def cancel(self, dataset_id: int) -> Progress:
        """End a dataset's job, if one runs; what is tagged stays so. Returns how far it came."""
        run = self._running.get(dataset_id)
        if run is not None:
            await run.cancel()
            return run.progress
        return await self._ended(dataset_id)

    async def progress(self, dataset_id: int) -> Progress:
        """Return how far a dataset's tagging is; raises ``NotFound`` if there is no such dataset."""
        run = self._running.get(dataset_id)
        if run is not None:
            return run.progress
        await self._store.run(lambda store: store.dataset(dataset_id))
        return await self._ended(dataset_id)

    async def _ended(self, dataset_id: int) -> Progress:
        if (known := self._unwritten.get(dataset_id)) is not None:
            return known
        return progress_of(await self._store.run(lambda store: store.last_job(dataset_id)))

    async def watch(self, dataset_id: int) -> AsyncIterator[Progress | None]:
        """Yield how far it is whenever that changes, until it ends; None now and then while nothing does."""
        run = self._running.get(dataset_id)
        if run is None:
            yield await self.progress(dataset_id)
            return
        async for progress in run.watch():
            yield progress

    def stop(self) -> None:
        """Interrupt all jobs: the server ends. They are gone on with by the next one."""
        for run in list(self._running.values()):
            run.interrupt()

    async def aclose(self) -> None:
        """Interrupt all jobs and wait until they have ended."""
        self.stop()
        tasks = [run.task for run in self._running.values() if run.task is not None]
        if tasks:
            await asyncio.wait(tasks)


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all jobs work with, and share."""

    store: StoreThread
    tagger: Tagger
    places: Places = field(default_factory=Places)


class _Results:
    """Writes results down as they come; those that come while others are being written go together.

    ``written`` is called with those that are, even if who brought them was cancelled meanwhile.
    """

    def __init__(self, store: StoreThread, job: Job, written: Callable[[list[Result]], None]) -> None:
        self._store = store
        self._job = job
        self._written = written
        self._waiting: list[Result] = []
        self._turn = asyncio.Lock()
        self._writing: asyncio.Future[None] | None = None

    async def add(self, result: Result) -> None:
        """Return once the result is written; raises ``DatasetsUnavailable`` and ``DiskFull``."""
        self._waiting.append(result)
        async with self._turn:
            if result not in self._waiting:  # gone with another
                return
            some, self._waiting = self._waiting, []
            self._writing = asyncio.ensure_future(self._write(some))
            await asyncio.shield(self._writing)

    async def _write(self, some: list[Result]) -> None:
        try:
            await self._store.run(lambda store: store.record(self._job, some))
        except RolecallError:
            self._waiting = some + self._waiting  # whoever waits for one of them is told, too
            raise
        self._written(some)

    async def settled(self) -> None:
        """Wait until what is being written is."""
        if self._writing is not None:
            # Whether it failed is known to the job, or matters no more.
            await asyncio.gather(self._writing, return_exceptions=True)


class _Run:
    """One running job."""

    def __init__(self, dataset: Dataset, job: Job, bench: _Bench, ended: Callable[[_Run], None]) -> None:
        self.dataset = dataset
        self.task: asyncio.Task[None] | None = None
        self.is_written = False
        self._job = job
        self._store = bench.store
        self._bench = bench
        self._ended = ended
        self._results = _Results(bench.store, job, self._count)
        self._line = Line(self._tell)
        self._failures_in_a_row = 0
        self._is_cancelled = self._is_interrupted = False
        self._changed = asyncio.Event()

    @property
    def progress(self) -> Progress:
        job = self._job
        return Progress(job.status, job.processed, job.total, job.message or self._so_far())

    def _so_far(self) -> str:
        job = self._job
        failed = f", {job.failed} failed" if job.failed else ""
        waiting = f", waiting for {self._line.why}" if self._line.why else ""
        return f"Tagging... {job.processed}/{job.total}{failed}{waiting}"

    # -- its life

    async def run(self) -> None:
        """Tag all samples, and write down how that ended; whoever is told of the end may begin the next job."""
        try:
            await self._run()
        finally:
            self._is_interrupted = self._job.status == "running"
            self._ended(self)
            self._tell()

    async def _run(self) -> None:
        try:
            status, message = await self._outcome()
        except Interrupted:
            return
        except asyncio.CancelledError:
            if not self._is_cancelled:  # the server ends
                return
            status, message = "idle", f"Cancelled: {self._job.processed} of {self._job.total} samples are done."
        ended = replace(self._job, status=status, message=message)
        try:
            await self._store.run(lambda store: store.end_job(ended))
            self.is_written = True
        except RolecallError as error:
            log.warning("dataset %d: the end of its job cannot be written: %s", self.dataset.id, error)
        self._job = ended

    async def _outcome(self) -> tuple[Status, str]:
        try:
            await self._tag_all()
        except (NothingWorks, DatasetsUnavailable, DiskFull) as error:
            said = getattr(error, "message", None) or str(error)
            return "error", f"Stopped after {self._job.processed} of {self._job.total} samples: {said}"
        except (asyncio.CancelledError, Interrupted):
            raise
        except Exception:
            log.exception("dataset %d: the job failed", self.dataset.id)
            return "error", "rolecall itself failed; its log on the terminal says why."
        return "complete", self._result()

    def _result(self) -> str:
        job = self._job
        if not job.total:
            return "Nothing to tag: every sample has its tags." if self.dataset.samples else "There are no pictures."
        if job.failed:
            return f"Tagged {job.processed - job.failed} of {job.total} samples; {job.failed} could not be tagged."
        return f"Tagged {job.total} samples." if job.total != 1 else "Tagged one sample."

    async def _tag_all(self) -> None:
        samples = self._all_samples()
        turn = asyncio.Lock()
        workers = [asyncio.ensure_future(self._work(samples, turn)) for _ in range(SAMPLES_AT_A_TIME)]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
            await self._results.settled()

    async def _all_samples(self) -> AsyncIterator[Sample]:
        """Yield what is to be tagged; some are read at a time, so that no dataset is held as a whole."""
        after = ""
        while some := await self._store.run(lambda store, name=after: store.to_do(self._job, name, _READ_AT_A_TIME)):  # type: ignore[misc]
            for sample in some:
                yield sample
            after = some[-1].file.name

    async def _work(self, samples: AsyncIterator[Sample], turn: asyncio.Lock) -> None:
        while True:
            async with Place(self._bench.places, self._line) as place:
                async with turn:
                    sample = await anext(samples, None)
                if sample is None:
                    return
                await self._one(sample, place)

    async def _one(self, sample: Sample, place: Place) -> None:
        try:
            tagged = await self._bench.tagger.tag(self._job.wish, Path(self.dataset.folder), sample, place)
        except SampleFailed as error:
            await self._results.add(Result(sample.id, problem=str(error)))
            self._check_failures(error)
            return
        await self._results.add(Result(sample.id, tagged.tags, tagged.model))
        self._failures_in_a_row = 0

    def _count(self, written: list[Result]) -> None:
        job = self._job
        failed = sum(result.problem is not None for result in written)
        self._job = replace(job, processed=job.processed + len(written), failed=job.failed + failed)
        self._tell()

    def _check_failures(self, error: SampleFailed) -> None:
        if error.by_engine:
            self._failures_in_a_row += 1
        if self._failures_in_a_row >= MOST_FAILURES_IN_A_ROW:
            raise NothingWorks(f"{MOST_FAILURES_IN_A_ROW} in a row failed, the last one because {error}")

    async def cancel(self) -> None:
        """End it for good."""
        self._is_cancelled = True
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})

    def interrupt(self) -> None:
        """End it for now."""
        if self.task is not None and not self._is_cancelled:
            self.task.cancel()

    # -- who watches it

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def watch(self) -> AsyncIterator[Progress | None]:
        """Yield the progress now, when it changes, and at the end; None after a while without a change."""
        seen = None
        while True:
            changed, progress = self._changed, self.progress
            if progress != seen:
                seen = progress
                yield progress
            if progress.status != "running" or self._is_interrupted:
                return
            try:
                await asyncio.wait_for(changed.wait(), SIGN_OF_LIFE_S)
            except asyncio.TimeoutError:
                yield None
                continue
            if self.task is not None:  # some changes at a time, and the end at once
                await asyncio.wait({self.task}, timeout=EVENT_EVERY_S)
