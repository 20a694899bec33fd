"""Datasets, samples and jobs in DuckDB: one file in the state folder.

Everything here is done by one thread, which ``StoreThread`` keeps; so no two writes meet, and the rules that tables
could keep are kept here: DuckDB changes a list by taking the row out and putting it back, which its indexes don't
forgive within a transaction. Datasets are numbered on their own; samples, over all datasets, and jobs share a sequence.
``duckdb`` itself is imported with the first dataset, for it takes 50 MB.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolecall.errors import Conflict, DatasetsUnavailable, DiskFull, NotFound
from rolecall.runtime.private_file import locked
from rolecall.vision.datasets_records import Dataset, FileFacts, Job, Result, Sample, Tags, Wish

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

VERSION = 1
_SCHEMA = """
CREATE SEQUENCE IF NOT EXISTS ids;
CREATE TABLE IF NOT EXISTS datasets (
    id BIGINT, name VARCHAR, folder VARCHAR, created DOUBLE, scanned DOUBLE, skipped BIGINT);
CREATE TABLE IF NOT EXISTS samples (
    id BIGINT, dataset_id BIGINT, file_name VARCHAR, tags VARCHAR[], own_tags VARCHAR[], given_tags VARCHAR[],
    refused_tags VARCHAR[], bytes BIGINT, modified_ns BIGINT, missing BOOLEAN, task VARCHAR, model VARCHAR,
    problem VARCHAR, job_id BIGINT);
CREATE TABLE IF NOT EXISTS jobs (
    id BIGINT, dataset_id BIGINT, task VARCHAR, model VARCHAR, again BOOLEAN, api_key VARCHAR, status VARCHAR,
    total BIGINT, processed BIGINT, failed BIGINT, message VARCHAR, started DOUBLE, ended DOUBLE);
"""
_LAST_ID = "SELECT last_value FROM duckdb_sequences() WHERE sequence_name = 'ids'"
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "memory_limit": "512MB",
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
"""SQL reaches no file but this one."""
_SAMPLE = (
    "id, dataset_id, file_name, bytes, modified_ns, tags, own_tags, given_tags, refused_tags, task, model, problem"
)
_JOB = "id, dataset_id, task, model, again, api_key, status, total, processed, failed, message"
_DATASET = """
SELECT d.id, d.name, d.folder, d.created, d.scanned,
    count(s.id) FILTER (NOT s.missing), count(s.id) FILTER (NOT s.missing AND len(s.tags) > 0),
    count(s.id) FILTER (NOT s.missing AND s.problem IS NOT NULL), count(s.id) FILTER (s.missing), d.skipped
FROM datasets d LEFT JOIN samples s ON s.dataset_id = d.id
"""
_GROUPED = " GROUP BY d.id, d.name, d.folder, d.created, d.scanned, d.skipped ORDER BY d.id"
_TO_DO = "dataset_id = ? AND NOT missing AND job_id IS DISTINCT FROM ? AND (? OR task IS DISTINCT FROM ?)"


class DatasetStore:
    """The open file. Every method raises ``DatasetsUnavailable`` or ``DiskFull`` if the file cannot be used.

    It is made whole or not at all, and a write that fails leaves what was there before.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        with _failures(path):
            if not is_made(path):
                _make(path.resolve())
            self._sql = _opened(path)

    def close(self) -> None:
        """Let go of the file."""
        self._sql.close()

    def copy_to(self, copy: Path) -> None:
        """Copy the file with all that was written so far; nobody writes meanwhile, as one thread does it all.

        Another process does it: to close the file here, after reading it, would give up DuckDB's lock on it.
        """
        self._do("CHECKPOINT")
        done = subprocess.run(
            ["cp", "--reflink=auto", "--", str(self._path), str(copy)],  # noqa: S607 - wherever it is
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
        if done.returncode != 0:
            raise _problem(copy, done.stderr)
        copy.chmod(0o600)

    # -- datasets

    def datasets(self) -> list[Dataset]:
        """Return all of them."""
        return [Dataset(*row) for row in self._rows(_DATASET + _GROUPED)]

    def dataset(self, dataset_id: int) -> Dataset:
        """Return one; raises ``NotFound``."""
        rows = self._rows(_DATASET + " WHERE d.id = ?" + _GROUPED, dataset_id)
        if not rows:
            raise NotFound(f"There is no dataset {dataset_id}; GET /datasets lists those there are.")
        return Dataset(*rows[0])

    def add_dataset(self, name: str, folder: str, files: Iterable[FileFacts], skipped: int) -> Dataset:
        """Add a dataset with its samples; raises ``Conflict`` if the name is taken."""
        with self._transaction():
            if self._rows("SELECT 1 FROM datasets WHERE name = ?", name):
                raise Conflict(f"There is a dataset {name!r} already; choose another name.", param="name")
            ((id_,),) = self._rows("SELECT nextval('dataset_ids')")
            now = self._clock()
            self._do("INSERT INTO datasets VALUES (?, ?, ?, ?, ?, ?)", id_, name, folder, now, now, skipped)
            self._add_samples(id_, files)
        return self.dataset(id_)

    def _add_samples(self, dataset_id: int, files: Iterable[FileFacts]) -> None:
        columns = list(zip(*((file.name, file.size, file.modified_ns) for file in files), strict=True))
        if columns:
            self._do(
                "INSERT INTO samples SELECT nextval('ids'), ?, f.name, [], [], [], [], f.size, f.modified, false, "
                "NULL, NULL, NULL, NULL FROM (SELECT unnest(?::VARCHAR[]) AS name, unnest(?::BIGINT[]) AS size, "
                "unnest(?::BIGINT[]) AS modified) f ORDER BY f.name",
                dataset_id,
                *map(list, columns),
            )

    def rescanned(self, dataset_id: int, files: Iterable[FileFacts], skipped: int) -> Dataset:
        """Take in what the folder holds now: new files are added; of those that are gone the tags are kept."""
        found = {file.name: file for file in files}
        with self._transaction():
            self.dataset(dataset_id)
            known = self._rows(
                "SELECT id, file_name, bytes, modified_ns, missing FROM samples WHERE dataset_id = ?", dataset_id
            )
            for id_, name, size, modified_ns, missing in known:
                file = found.pop(name, None)
                if file is None and not missing:
                    self._do("UPDATE samples SET missing = true WHERE id = ?", id_)
                elif file is not None and (missing or (file.size, file.modified_ns) != (size, modified_ns)):
                    self._take_in(id_, file, has_changed=(file.size, file.modified_ns) != (size, modified_ns))
            self._add_samples(dataset_id, found.values())
            self._do("UPDATE datasets SET scanned = ?, skipped = ? WHERE id = ?", self._clock(), skipped, dataset_id)
        return self.dataset(dataset_id)

    def _take_in(self, sample_id: int, file: FileFacts, *, has_changed: bool) -> None:
        self._do(
            "UPDATE samples SET missing = false, bytes = ?, modified_ns = ? WHERE id = ?",
            file.size,
            file.modified_ns,
            sample_id,
        )
        if has_changed:  # another picture under the same name: it is tagged the next time
            self._do("UPDATE samples SET task = NULL, problem = NULL WHERE id = ?", sample_id)

    def remove_dataset(self, dataset_id: int) -> Dataset:
        """Forget a dataset, its samples and jobs, and return it as it was; raises ``NotFound``."""
        with self._transaction():
            found = self.dataset(dataset_id)
            for table, column in (("jobs", "dataset_id"), ("samples", "dataset_id"), ("datasets", "id")):
                self._do(f"DELETE FROM {table} WHERE {column} = ?", dataset_id)  # noqa: S608 - names from here
        return found

    # -- samples

    def samples(
        self, dataset_id: int, tags: Sequence[str] = (), *, failed: bool = False, limit: int = 100, offset: int = 0
    ) -> tuple[list[Sample], int]:
        """Return samples that have all these tags, by file name, and how many there are in all.

        Capitals make no tag another one. ``failed`` leaves those that could not be tagged at the last try.
        """
        where = "dataset_id = ? AND NOT missing AND "
        where += "list_has_all([lower(t) for t in tags], [lower(t) for t in ?::VARCHAR[]])"
        where += " AND problem IS NOT NULL" if failed else ""
        ((total,),) = self._rows(f"SELECT count(*) FROM samples WHERE {where}", dataset_id, list(tags))  # noqa: S608
        rows = self._rows(
            f"SELECT {_SAMPLE} FROM samples WHERE {where} ORDER BY file_name LIMIT ? OFFSET ?",  # noqa: S608
            dataset_id,
            list(tags),
            limit,
            offset,
        )
        return [_sample(row) for row in rows], total

    def sample(self, dataset_id: int, sample_id: int) -> Sample:
        """Return one; raises ``NotFound``."""
        rows = self._rows(
            f"SELECT {_SAMPLE} FROM samples WHERE id = ? AND dataset_id = ?",  # noqa: S608
            sample_id,
            dataset_id,
        )
        if not rows:
            raise NotFound(f"There is no sample {sample_id} in a dataset {dataset_id}.")
        return _sample(rows[0])

    def tag_counts(self, dataset_id: int) -> list[tuple[str, int]]:
        """Return each tag with the number of samples that have it, the most frequent ones first."""
        rows = self._rows(
            "SELECT max(tag) AS tag, count(DISTINCT id) AS n FROM (SELECT id, unnest(tags) AS tag FROM samples "
            "WHERE dataset_id = ? AND NOT missing) GROUP BY lower(tag) ORDER BY n DESC, 1",
            dataset_id,
        )
        return [(tag, count) for tag, count in rows]

    def edit_tags(self, dataset_id: int, sample_id: int, change: Callable[[Tags], Tags]) -> Sample:
        """Change a sample's tags as a person wants it; raises ``NotFound``."""
        with self._transaction():
            self._write_tags(sample_id, change(self.sample(dataset_id, sample_id).tags))
        return self.sample(dataset_id, sample_id)

    def _write_tags(self, sample_id: int, tags: Tags, **more: object) -> None:
        columns = {"tags": tags.shown, "own_tags": tags.own, "given_tags": tags.given, "refused_tags": tags.refused}
        values = {name: list(value) for name, value in columns.items()} | more
        names = ", ".join(f"{name} = ?" for name in values)
        self._do(f"UPDATE samples SET {names} WHERE id = ?", *values.values(), sample_id)  # noqa: S608 - from here

    # -- jobs

    def start_job(self, dataset_id: int, wish: Wish) -> Job:
        """Write down that a job begins, with as many samples as there are to be tagged."""
        with self._transaction():
            self.dataset(dataset_id)
            ((id_,),) = self._rows("SELECT nextval('ids')")
            total = self._count_to_do(dataset_id, id_, wish)
            self._do("DELETE FROM jobs WHERE dataset_id = ?", dataset_id)
            self._do(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, 'running', ?, 0, 0, '', ?, NULL)",
                id_,
                dataset_id,
                wish.task,
                wish.model,
                wish.again,
                wish.key,
                total,
                self._clock(),
            )
        return Job(id_, dataset_id, wish, "running", total)

    def _count_to_do(self, dataset_id: int, job_id: int, wish: Wish) -> int:
        sql = f"SELECT count(*) FROM samples WHERE {_TO_DO}"  # noqa: S608
        ((count,),) = self._rows(sql, dataset_id, job_id, wish.again, wish.task)
        return int(count)

    def running_jobs(self) -> list[Job]:
        """Return the jobs that have not come to their end, with what they have done; ``total`` is counted anew."""
        rows = self._rows(f"SELECT {_JOB} FROM jobs WHERE status = 'running' ORDER BY id")  # noqa: S608
        return [self._recounted(_job(row)) for row in rows]

    def _recounted(self, job: Job) -> Job:
        ((done, failed),) = self._rows(
            "SELECT count(*), count(problem) FROM samples WHERE dataset_id = ? AND job_id = ?", job.dataset_id, job.id
        )
        total = done + self._count_to_do(job.dataset_id, job.id, job.wish)
        return replace(job, total=total, processed=done, failed=failed, message="")

    def last_job(self, dataset_id: int) -> Job | None:
        """Return the dataset's latest job; of one without an end what it has done is counted."""
        rows = self._rows(
            f"SELECT {_JOB} FROM jobs WHERE dataset_id = ? ORDER BY id DESC LIMIT 1",  # noqa: S608
            dataset_id,
        )
        job = _job(rows[0]) if rows else None
        return self._recounted(job) if job is not None and job.status == "running" else job

    def to_do(self, job: Job, after: str = "", limit: int | None = None) -> list[Sample]:
        """Return samples that a job has still to tag, by file name: those whose name comes ``after`` one."""
        rows = self._rows(
            f"SELECT {_SAMPLE} FROM samples WHERE {_TO_DO} AND file_name > ? ORDER BY file_name LIMIT ?",  # noqa: S608
            job.dataset_id,
            job.id,
            job.wish.again,
            job.wish.task,
            after,
            limit,
        )
        return [_sample(row) for row in rows]

    def record(self, job: Job, results: Iterable[Result]) -> None:
        """Merge tags that a model gave into samples, and keep why others have none, whose tags stay as they are.

        Nothing is done for samples that are gone meanwhile.
        """
        with self._transaction():
            for result in results:
                if result.problem is not None:
                    sql = "UPDATE samples SET problem = ?, job_id = ? WHERE id = ?"
                    self._do(sql, result.problem, job.id, result.sample_id)
                else:
                    self._merge(job, result)

    def _merge(self, job: Job, result: Result) -> None:
        rows = self._rows(f"SELECT {_SAMPLE} FROM samples WHERE id = ?", result.sample_id)  # noqa: S608
        for row in rows:
            sample = _sample(row)
            before = (sample.task or "").partition("@")[0]
            tags = sample.tags.merged(result.tags, instead=before == job.wish.task_id)
            more = {"task": job.wish.task, "model": result.model, "problem": None, "job_id": job.id}
            self._write_tags(sample.id, tags, **more)

    def end_job(self, job: Job) -> None:
        """Write down how a job ended."""
        self._do(
            "UPDATE jobs SET status = ?, processed = ?, failed = ?, total = ?, message = ?, ended = ? WHERE id = ?",
            job.status,
            job.processed,
            job.failed,
            job.total,
            job.message,
            self._clock(),
            job.id,
        )

    # -- SQL

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        with _failures(self._path):
            return self._sql.execute(sql, values).fetchall()

    def _do(self, sql: str, *values: Any) -> None:
        with _failures(self._path):
            self._sql.execute(sql, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._do("BEGIN")
        try:
            yield
        except BaseException:
            with suppress(DatasetsUnavailable, DiskFull), _failures(self._path):  # DuckDB may have done it itself
                self._sql.rollback()
            raise
        self._do("COMMIT")


def is_made(path: Path) -> bool:
    """Whether there is a file of datasets; one of 0 bytes is what a full disk left of one."""
    return path.exists() and path.stat().st_size > 0


def _make(path: Path) -> None:
    """Make a file without datasets under another name, and give it its own once it is whole."""
    new = path.with_name(f".{path.name}.new")
    with locked(path.parent):  # of two processes the second one finds what the first one made
        if is_made(path):
            return
        try:
            new.unlink(missing_ok=True)
            with closing(_opened(new)) as sql:
                sql.execute("CHECKPOINT")
            _log_of(path).unlink(missing_ok=True)  # of a file that was taken away
            new.replace(path)
        finally:
            for rest in (new, _log_of(new)):
                rest.unlink(missing_ok=True)


def _log_of(path: Path) -> Path:
    """Return where DuckDB writes what is not in the file yet."""
    return path.with_name(f"{path.name}.wal")


def _opened(path: Path) -> DuckDBPyConnection:
    import duckdb  # noqa: PLC0415 - takes 50 MB

    sql = duckdb.connect(str(path), config=_CONFIG)
    try:
        _prepare(sql, path)
    except BaseException:
        sql.close()
        raise
    return sql


def _prepare(sql: DuckDBPyConnection, path: Path) -> None:
    sql.execute("CREATE TABLE IF NOT EXISTS about (version INTEGER)")
    found = sql.execute("SELECT version FROM about").fetchall()
    if found and found[0][0] > VERSION:
        raise DatasetsUnavailable(
            f"{path} was written by a newer rolecall (version {found[0][0]} of its form; this one knows "
            f"{VERSION}). Use that one, or move the file away to begin anew."
        )
    sql.execute(_SCHEMA)
    ((last_id,),) = sql.execute(_LAST_ID).fetchall()
    # In older files datasets have ids of the one sequence; so none of their ids is given a second time.
    sql.execute(f"CREATE SEQUENCE IF NOT EXISTS dataset_ids START {(last_id or 0) + 1}")
    if not found:
        sql.execute("INSERT INTO about VALUES (?)", [VERSION])


def _job(row: Sequence[Any]) -> Job:
    id_, dataset_id, task, model, again, key, *rest = row
    return Job(id_, dataset_id, Wish(task, model, again, key), *rest)


def _sample(row: Sequence[Any]) -> Sample:
    id_, dataset_id, name, size, modified_ns, *tags, task, model, problem = row
    return Sample(id_, dataset_id, FileFacts(name, size, modified_ns), Tags(*map(tuple, tags)), task, model, problem)


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Say in words what DuckDB makes of a file that it cannot use."""
    try:
        yield
    except OSError as error:
        raise DatasetsUnavailable(f"{path} cannot be used: {error.strerror or error}.") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in {"duckdb", "_duckdb"}:
            raise
        raise _problem(path, str(error)) from None


def _problem(path: Path, said: str) -> DatasetsUnavailable | DiskFull:
    words = " ".join(said.split())[:400]
    lower = words.lower()
    if "could not set lock" in lower:
        return DatasetsUnavailable(
            f"{path} is held by another process, such as a second rolecall or a duckdb prompt: end that one. ({words})",
            retry_after_s=10,
        )
    if "no space left" in lower or "could not write" in lower or "disk quota" in lower or "file too large" in lower:
        return DiskFull(
            f"There is no room to write {path}; free some and go on: nothing that was written is lost. ({words})",
            retry_after_s=30,
        )
    return DatasetsUnavailable(
        f"{path} cannot be read, it may be damaged: put a copy back, or move it away to begin anew. ({words})"
    )
