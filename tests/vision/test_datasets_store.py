"""Datasets in their file: what is kept, what a rescan changes, and what happens to a file that cannot be used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from harness import eventually
from rolecall.errors import Conflict, DatasetsUnavailable, DiskFull, NotFound
from rolecall.vision.datasets_records import Dataset, FileFacts, Result, Wish
from rolecall.vision.datasets_store import DatasetStore
from rolecall.vision.datasets_thread import StoreThread

WISH = Wish("tags@1")


def files(*names: str, size: int = 1) -> list[FileFacts]:
    return [FileFacts(name, size, 1) for name in names]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DatasetStore]:
    """Return an open store of its own."""
    opened = DatasetStore(tmp_path / "datasets.duckdb", clock=lambda: 100.0)
    yield opened
    opened.close()


@pytest.fixture
def dataset(store: DatasetStore) -> Dataset:
    """Return a dataset of three samples."""
    return store.add_dataset("one", "/photos", files("a.jpg", "b.jpg", "c.jpg"), 2)


def ids(store: DatasetStore, dataset: Dataset) -> dict[str, int]:
    return {sample.file.name: sample.id for sample in store.samples(dataset.id)[0]}


def test_a_dataset_is_kept(tmp_path: Path, store: DatasetStore, dataset: Dataset) -> None:
    """It is there when the file is opened again, with its samples in the order of their names."""
    store.close()
    again = DatasetStore(tmp_path / "datasets.duckdb")
    assert again.datasets() == [Dataset(dataset.id, "one", "/photos", 100.0, 100.0, 3, 0, 0, 0, 2)]
    found, total = again.samples(dataset.id)
    assert ([sample.file.name for sample in found], total) == (["a.jpg", "b.jpg", "c.jpg"], 3)
    again.close()


def test_datasets_are_numbered_on_their_own(store: DatasetStore, dataset: Dataset) -> None:
    """However many samples and jobs there are; the number of one that is removed is not given again."""
    store.start_job(dataset.id, WISH)
    second = store.add_dataset("two", "/others", files("z.jpg"), 0)
    store.remove_dataset(second.id)
    third = store.add_dataset("three", "/thirds", files("y.jpg"), 0)
    assert [dataset.id, second.id, third.id] == [1, 2, 3]
    assert len({sample.id for each in (dataset, third) for sample in store.samples(each.id)[0]}) == 4


def test_a_file_whose_datasets_are_numbered_with_their_samples(tmp_path: Path, store: DatasetStore) -> None:
    """As they were at first: it is read as it is, and the next dataset has a number that nothing in it has."""
    store._do("INSERT INTO datasets VALUES (nextval('ids'), 'old', '/old', 1, 1, 0)")
    store._add_samples(1, files("a.jpg", "b.jpg"))
    store._do("INSERT INTO datasets VALUES (nextval('ids'), 'older', '/older', 1, 1, 0)")
    store._do("DROP SEQUENCE dataset_ids")
    store.close()
    for expected in (5, 6):
        again = DatasetStore(tmp_path / "datasets.duckdb")
        assert again.add_dataset(f"new {expected}", "/new", files("c.jpg"), 0).id == expected
        assert {each.id for each in again.datasets()} >= {1, 4}
        again.close()


def test_what_is_not_there(store: DatasetStore, dataset: Dataset) -> None:
    """Datasets and samples that are not there are not found, nor a sample in another dataset."""
    other = store.add_dataset("two", "/others", [], 0)
    sample = ids(store, dataset)["a.jpg"]
    for work in (
        lambda: store.dataset(99),
        lambda: store.remove_dataset(99),
        lambda: store.rescanned(99, [], 0),
        lambda: store.start_job(99, WISH),
        lambda: store.sample(other.id, sample),
        lambda: store.edit_tags(other.id, sample, lambda tags: tags),
    ):
        with pytest.raises(NotFound):
            work()
    assert other.samples == 0


def test_a_name_is_taken_once(store: DatasetStore, dataset: Dataset) -> None:
    """The second dataset of a name is a conflict, and nothing of it is kept."""
    with pytest.raises(Conflict, match="'one' already"):
        store.add_dataset("one", "/elsewhere", files("z.jpg"), 0)
    assert [each.folder for each in store.datasets()] == ["/photos"]


def test_samples_by_tags_and_in_parts(store: DatasetStore, dataset: Dataset) -> None:
    """A sample has to have all the tags that are asked for; parts come in order, and say how many there are."""
    names = ids(store, dataset)
    store.edit_tags(dataset.id, names["a.jpg"], lambda tags: tags.edited(["x", "y"]))
    store.edit_tags(dataset.id, names["b.jpg"], lambda tags: tags.edited(["x"]))
    assert [s.file.name for s in store.samples(dataset.id, ["x"])[0]] == ["a.jpg", "b.jpg"]
    assert [s.file.name for s in store.samples(dataset.id, ["y", "x"])[0]] == ["a.jpg"]
    assert store.samples(dataset.id, ["' OR 1=1 --"]) == ([], 0)
    found, total = store.samples(dataset.id, limit=1, offset=1)
    assert ([s.file.name for s in found], total) == (["b.jpg"], 3)
    assert store.tag_counts(dataset.id) == [("x", 2), ("y", 1)]
    assert store.dataset(dataset.id).tagged == 2


def test_tags_are_found_and_counted_whatever_their_capitals(store: DatasetStore, dataset: Dataset) -> None:
    """One sample has it with a capital, another without: it is one tag of two samples."""
    names = ids(store, dataset)
    store.edit_tags(dataset.id, names["a.jpg"], lambda tags: tags.edited(["Sharp"]))
    store.edit_tags(dataset.id, names["b.jpg"], lambda tags: tags.edited(["sharp"]))
    assert [s.file.name for s in store.samples(dataset.id, ["SHARP"])[0]] == ["a.jpg", "b.jpg"]
    assert store.tag_counts(dataset.id) == [("sharp", 2)]


def test_a_rescan(store: DatasetStore, dataset: Dataset) -> None:
    """New files come, gone ones are kept out of sight with their tags, changed ones are to be tagged again."""
    names = ids(store, dataset)
    store.edit_tags(dataset.id, names["a.jpg"], lambda tags: tags.edited(["mine"]))
    job = store.start_job(dataset.id, WISH)
    for id_ in names.values():
        store.record(job, [Result(id_, ("dark",), "m")])
    found = store.rescanned(dataset.id, [*files("b.jpg"), *files("c.jpg", size=5), *files("d.jpg")], 0)
    assert (found.samples, found.missing, found.skipped) == (3, 1, 0)
    assert [s.file.name for s in store.samples(dataset.id)[0]] == ["b.jpg", "c.jpg", "d.jpg"]
    assert store.start_job(dataset.id, WISH).total == 2
    back = store.rescanned(dataset.id, files("a.jpg", "b.jpg"), 0)
    assert (back.samples, back.missing) == (2, 2)
    assert store.sample(dataset.id, names["a.jpg"]).tags.shown == ("mine", "dark")


def test_a_removed_dataset_takes_its_samples_with_it(store: DatasetStore, dataset: Dataset) -> None:
    """Nothing of it is left, and the others stay."""
    store.add_dataset("two", "/others", files("z.jpg"), 0)
    store.start_job(dataset.id, WISH)
    assert store.remove_dataset(dataset.id).name == "one"
    assert [each.name for each in store.datasets()] == ["two"]
    assert store.samples(dataset.id) == ([], 0)
    assert store.running_jobs() == []


def test_a_job_knows_what_is_missing(tmp_path: Path, store: DatasetStore, dataset: Dataset) -> None:
    """After the file was opened again, a job has left what it has neither tagged nor failed at."""
    names = ids(store, dataset)
    job = store.start_job(dataset.id, WISH)
    store.record(job, [Result(names["a.jpg"], ("dark", "sharp"), "m")])
    store.record(job, [Result(names["c.jpg"], problem="it is empty")])
    store.close()
    again = DatasetStore(tmp_path / "datasets.duckdb")
    (found,) = again.running_jobs()
    assert (found.wish, found.total, found.processed, found.failed) == (WISH, 3, 2, 1)
    assert [sample.id for sample in again.to_do(found)] == [names["b.jpg"]]
    again.close()


def test_a_job_tags_what_has_no_tags_of_its_task(store: DatasetStore, dataset: Dataset) -> None:
    """Another job of the same task does only what failed; one of a newer version, or one that says so, does all."""
    names = ids(store, dataset)
    job = store.start_job(dataset.id, WISH)
    store.record(job, [Result(names["a.jpg"], ("dark",), "m")])
    store.record(job, [Result(names["b.jpg"], (), "m")])
    store.record(job, [Result(names["c.jpg"], problem="it is empty")])
    assert [sample.id for sample in store.to_do(store.start_job(dataset.id, WISH))] == [names["c.jpg"]]
    assert store.start_job(dataset.id, Wish("tags@2")).total == 3
    assert store.start_job(dataset.id, Wish("tags@1", again=True)).total == 3
    assert [s.file.name for s in store.samples(dataset.id, failed=True)[0]] == ["c.jpg"]


def test_tags_of_two_tasks_are_kept_beside_each_other(store: DatasetStore, dataset: Dataset) -> None:
    """Those of the same task, in whichever version, give way to its new ones."""
    id_ = ids(store, dataset)["a.jpg"]
    for task, tags in (("tags@1", ("dark",)), ("keywords@1", ("boat",)), ("keywords@2", ("ship",))):
        job = store.start_job(dataset.id, Wish(task))
        store.record(job, [Result(id_, tags, "m")])
    sample = store.sample(dataset.id, id_)
    assert "ship" in sample.tags.shown
    assert "boat" not in sample.tags.shown
    assert (sample.task, sample.model, sample.problem) == ("keywords@2", "m", None)


def test_a_hundred_changes_of_a_list_in_one_file(store: DatasetStore, dataset: Dataset) -> None:
    """Lists are changed again and again, before and after the file is written anew."""
    id_ = ids(store, dataset)["a.jpg"]
    for number in range(100):
        store.edit_tags(dataset.id, id_, lambda tags, n=number: tags.edited([f"t{n}"], [f"t{n - 3}"]))  # type: ignore[misc]
    assert store.sample(dataset.id, id_).tags.shown == ("t97", "t98", "t99")


# -- files that cannot be used


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """It is said which file, and what to do; it is left as it is."""
    path = tmp_path / "datasets.duckdb"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DatasetsUnavailable, match="damaged: put a copy back, or move it away") as error:
        DatasetStore(path)
    assert str(path) in error.value.message
    assert path.read_bytes().startswith(b"no database")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file(tmp_path: Path, store: DatasetStore, dataset: Dataset, damage: str) -> None:
    """A file that was cut off, or in which bytes have changed, is not taken for a good one."""
    store.close()
    path = tmp_path / "datasets.duckdb"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 3]
    else:
        for place in range(12_288, len(data), 512):
            data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DatasetsUnavailable, match="damaged"):
        DatasetStore(path).datasets()


def test_a_file_of_a_newer_version(tmp_path: Path, store: DatasetStore) -> None:
    """It is refused, not rewritten."""
    store._do("UPDATE about SET version = 99")
    store.close()
    with pytest.raises(DatasetsUnavailable, match="newer rolecall"):
        DatasetStore(tmp_path / "datasets.duckdb")


HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_file_that_another_process_holds(tmp_path: Path, store: DatasetStore) -> None:
    """The error names the cause and the way out; once the other one is gone, it works."""
    store.close()
    path = tmp_path / "datasets.duckdb"
    argv = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DatasetsUnavailable, match="held by another process") as error:
            DatasetStore(path)
        assert error.value.headers()["retry-after"] == "10"
        holder.kill()
    DatasetStore(path).close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """It cannot be opened, and says so."""
    with pytest.raises(DatasetsUnavailable):
        DatasetStore(tmp_path / "none" / "datasets.duckdb")


FILLER = """
import resource, sys
from pathlib import Path
from rolecall.errors import DiskFull
from rolecall.vision.datasets_records import FileFacts, Result, Wish
from rolecall.vision.datasets_store import DatasetStore
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, limit = Path(sys.argv[1]), int(sys.argv[2])
store = DatasetStore(path)
dataset = store.add_dataset("one", "/photos", [FileFacts(f"{n}.jpg", 1, 1) for n in range(400)], 0)
store.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + limit, resource.RLIM_INFINITY))
store = DatasetStore(path)
job = store.start_job(dataset.id, Wish("tags@1"))
written = 0
try:
    for round in range(200):
        for sample in store.to_do(job):
            store.record(job, [Result(sample.id, tuple([f"tag number {written} " + "x" * 80 for _ in range(5)]), "m")])
            written += 1
except DiskFull as error:
    print(written, error.message, flush=True)
else:
    print("never full", flush=True)
"""


def test_a_full_disk_corrupts_nothing(tmp_path: Path) -> None:
    """The write that has no room is refused as such; what was written before is there, and all can go on."""
    path = tmp_path / "datasets.duckdb"
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(path), "20000"], capture_output=True, text=True, timeout=120, check=False
    )
    count, _, message = done.stdout.partition(" ")
    assert count.isdigit(), done.stdout + done.stderr
    assert "no room" in message
    store = DatasetStore(path)
    (dataset,) = store.datasets()
    assert dataset.samples == 400
    assert dataset.tagged == int(count)
    (job,) = store.running_jobs()
    for sample in store.to_do(job):
        store.record(job, [Result(sample.id, ("dark",), "m")])
    assert store.dataset(dataset.id).tagged == 400
    store.close()


FIRST = """
import resource, sys
from pathlib import Path
from rolecall.errors import DiskFull
from rolecall.vision.datasets_store import DatasetStore
import duckdb, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    DatasetStore(Path(sys.argv[1])).add_dataset("one", "/photos", [], 0)
except DiskFull as error:
    print(error.message)
"""


@pytest.mark.parametrize("room", [0, 4096, 8192, 12288, 20000, 266_240])
def test_the_first_dataset_on_a_full_disk(room: int, tmp_path: Path) -> None:
    """Nothing is left of the file that found no room, so that all can go on once there is some."""
    path = tmp_path / "datasets.duckdb"
    argv = [sys.executable, "-c", FIRST, str(path), str(room)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert f"no room to write {path}" in done.stdout
    assert list(tmp_path.iterdir()) == []
    with closing(DatasetStore(path)) as store:
        assert store.add_dataset("one", "/photos", [], 0).name == "one"


def test_an_empty_file_is_as_none(tmp_path: Path) -> None:
    """It is what a full disk left of one, and is replaced, with the log that lies beside it and the link that stays."""
    link, path = tmp_path / "datasets.duckdb", tmp_path / "elsewhere.duckdb"
    path.touch()
    link.symlink_to(path)
    path.with_name("elsewhere.duckdb.wal").write_bytes(b"of another file")
    for _ in range(2):
        with closing(DatasetStore(link)) as store:
            assert store.datasets() == []
    assert link.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == [link.name, path.name]


MAKER = """
import sys
from pathlib import Path
from rolecall.errors import DatasetsUnavailable
from rolecall.vision.datasets_store import DatasetStore
import duckdb
print("ready", flush=True)
sys.stdin.readline()
while True:
    try:
        store = DatasetStore(Path(sys.argv[1]))
    except DatasetsUnavailable as error:
        assert "held by another process" in error.message, error.message
    else:
        break
store.add_dataset(sys.argv[2], "/photos", [], 0)
store.close()
"""


def test_two_that_make_the_file_at_once(tmp_path: Path) -> None:
    """The second one takes what the first one made: no dataset is lost."""
    path = tmp_path / "datasets.duckdb"
    names = ["one", "two", "three"]
    with ExitStack() as stack:
        makers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", MAKER, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            for name in names
        ]
        assert [maker.stdout.readline() for maker in makers if maker.stdout] == [b"ready\n"] * 3
        for maker in makers:
            maker.communicate(b"go\n", timeout=60)
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    with closing(DatasetStore(path)) as store:
        assert sorted(dataset.name for dataset in store.datasets()) == sorted(names)


# -- the thread


async def test_the_file_is_closed_when_nobody_needs_it(tmp_path: Path) -> None:
    """Another process may open it then; the next work opens it again."""
    thread = StoreThread(tmp_path / "datasets.duckdb", idle_s=0.01)
    await thread.run(lambda store: store.add_dataset("one", "/photos", [], 0))
    copy = tmp_path / "copy.duckdb"

    def is_free() -> bool:
        argv = [sys.executable, "-c", HOLDER, str(thread.path)]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    import asyncio

    await asyncio.to_thread(eventually, is_free)
    shutil.copy(thread.path, copy)
    assert len(await thread.run(lambda store: store.datasets())) == 1
    await thread.aclose()


async def test_a_file_that_was_mended_is_used(tmp_path: Path) -> None:
    """A failure is not kept: the next work opens the file anew."""
    path = tmp_path / "datasets.duckdb"
    thread = StoreThread(path)
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DatasetsUnavailable):
        await thread.run(lambda store: store.datasets())
    path.unlink()
    assert await thread.run(lambda store: store.datasets()) == []
    await thread.aclose()


def test_out_of_room_is_told_from_damage(tmp_path: Path) -> None:
    """DuckDB's own words for a full disk become a 503 that may be tried again."""
    from rolecall.vision.datasets_store import _problem

    for words in ("IO Error: Could not write file: No space left on device", "Could not write all bytes"):
        assert isinstance(_problem(tmp_path, words), DiskFull)
    assert not isinstance(_problem(tmp_path, "Corrupt database file"), DiskFull)
