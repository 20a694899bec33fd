"""Datasets as the server has them: their file, their thumbnails and their jobs, made when the first one is needed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rolecall.errors import BadRequest
from rolecall.runtime.state_items import SNAPSHOT
from rolecall.vision.datasets_files import checked_folder, scan
from rolecall.vision.datasets_records import MAX_NAME_CHARACTERS, Dataset, clean_text
from rolecall.vision.datasets_tagger import ModelTagger
from rolecall.vision.datasets_thread import StoreThread
from rolecall.vision.datasets_thumbnails import Thumbnails
from rolecall.vision.decoding import Decoding
from rolecall.vision.jobs import MARKER, Jobs


class Datasets:
    """All that the routes need. ``folder`` is made if it is not there."""

    def __init__(self, folder: Path, tagger: ModelTagger, decoding: Decoding) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.tagger = tagger
        self.store = StoreThread(folder / "datasets.duckdb")
        self.thumbnails = Thumbnails(folder / "thumbnails", decoding)
        self.jobs = Jobs(self.store, tagger, folder / MARKER)

    async def add(self, name: str, folder: str) -> Dataset:
        """Take in a folder; raises ``BadRequest`` for a folder or name that is none, ``Conflict`` for a taken name."""
        title = clean_text(name, "name", MAX_NAME_CHARACTERS)
        path = await asyncio.to_thread(checked_folder, folder)
        found = await asyncio.to_thread(scan, path)
        return await self.store.run(lambda store: store.add_dataset(title, str(path), found.files, found.skipped))

    async def rescan(self, dataset_id: int) -> Dataset:
        """Look through a dataset's folder again; raises ``BadRequest`` if it is not there any more."""
        dataset = await self.store.run(lambda store: store.dataset(dataset_id))
        path = await asyncio.to_thread(checked_folder, dataset.folder)
        if str(path) != dataset.folder:
            raise BadRequest(f"The folder {dataset.folder!r} has become a link to another one.", param="folder")
        found = await asyncio.to_thread(scan, path)
        return await self.store.run(lambda store: store.rescanned(dataset_id, found.files, found.skipped))

    async def remove(self, dataset_id: int) -> Dataset:
        """Forget a dataset, and end its job; its folder stays as it is."""
        await self.jobs.cancel(dataset_id)
        removed = await self.store.run(lambda store: store.remove_dataset(dataset_id))
        await self.thumbnails.forget(dataset_id)
        return removed

    async def snapshot(self) -> Path:
        """Return a copy of their file as it is now, beside it; the next one replaces it."""
        copy = self.store.path.with_name(SNAPSHOT)
        await self.store.run(lambda store: store.copy_to(copy))
        return copy

    async def aclose(self) -> None:
        """Interrupt the jobs and close the file."""
        await self.jobs.aclose()
        await self.store.aclose()
