"""Datasets that are made when they are needed, and a job that is gone on with as soon as that can be."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import cast

import pytest

from fakes import FakeTagger
from rolecall.errors import DatasetsUnavailable
from rolecall.vision.datasets import Datasets
from rolecall.vision.datasets_extension import LazyDatasets
from rolecall.vision.datasets_records import FileFacts, Wish
from rolecall.vision.datasets_tagger import ModelTagger
from rolecall.vision.decoding import Decoding

FILES = [FileFacts(f"{number:03}.jpg", 1, 1) for number in range(20)]


def made(folder: Path, tagger: FakeTagger) -> Datasets:
    return Datasets(folder, cast("ModelTagger", tagger), Decoding())


async def interrupted(folder: Path) -> int:
    """Leave a dataset whose job was interrupted, and return its id."""
    tagger = FakeTagger()
    tagger.hold.clear()
    datasets = made(folder, tagger)
    added = await datasets.store.run(lambda store: store.add_dataset("one", "/photos", FILES, 0))
    await datasets.jobs.start(added.id, Wish("tags@1"))
    await datasets.aclose()
    return added.id


async def test_nothing_is_made_until_it_is_needed(tmp_path: Path) -> None:
    """Neither by the start nor by the end; then once, however many ask."""
    count = 0

    def make() -> Datasets:
        nonlocal count
        count += 1
        return made(tmp_path / "datasets", FakeTagger())

    lazy = LazyDatasets(tmp_path / "datasets", make)
    await lazy.resume()
    lazy.stop()
    assert (count, (tmp_path / "datasets").exists()) == (0, False)
    several = await asyncio.gather(*(lazy.get() for _ in range(5)))
    assert (count, len(set(map(id, several)))) == (1, 1)
    await lazy.aclose()


async def test_an_interrupted_job_is_gone_on_with_by_itself(tmp_path: Path) -> None:
    """Before anybody asks; whoever asks finds it running or done."""
    id_ = await interrupted(tmp_path)
    tagger = FakeTagger()
    lazy = LazyDatasets(tmp_path, lambda: made(tmp_path, tagger))
    await lazy.resume()
    await tagger.until_asked(20)
    datasets = await lazy.get()
    assert [state async for state in datasets.jobs.watch(id_)][-1].status == "complete"  # type: ignore[union-attr]
    await lazy.aclose()


async def test_what_cannot_be_read_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The reason is told once, not again and again; when the file is back, so is the job."""
    id_ = await interrupted(tmp_path)
    path = tmp_path / "datasets.duckdb"
    good = path.read_bytes()
    path.write_bytes(b"no database" * 1000)
    tagger = FakeTagger()
    lazy = LazyDatasets(tmp_path, lambda: made(tmp_path, tagger), retry_s=0.01)
    with caplog.at_level(logging.WARNING):
        resuming = asyncio.ensure_future(lazy.resume())
        for _ in range(3):
            with pytest.raises(DatasetsUnavailable):
                await lazy.get()
        path.write_bytes(good)
        await asyncio.wait_for(resuming, 20)
    assert len([record for record in caplog.records if "cannot go on yet" in record.message]) == 1
    datasets = await lazy.get()
    assert [state async for state in datasets.jobs.watch(id_)][-1].status == "complete"  # type: ignore[union-attr]
    assert len(tagger.asked) == 20
    await lazy.aclose()


async def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    """It is a 503 with the reason, and made the next time if it can be then."""
    errors = [OSError(13, "Permission denied")]

    def make() -> Datasets:
        if errors:
            raise errors.pop()
        return made(tmp_path, FakeTagger())

    lazy = LazyDatasets(tmp_path, make)
    with pytest.raises(DatasetsUnavailable, match="Permission denied"):
        await lazy.get()
    assert await lazy.get() is await lazy.get()
    await lazy.aclose()
