"""Small pictures for the page, made once and kept in the state folder."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio.to_thread

from rolecall.errors import InvalidImage
from rolecall.vision.datasets_files import opened
from rolecall.vision.datasets_records import Sample
from rolecall.vision.decoding import Decoding
from rolecall.vision.photos import PhotoError, prepare

SIDES = {"small": 320, "large": 1280}
"""Pixels of the longer side."""
_QUALITY = 80
_KEPT_FREE_BYTES = 256 * 2**20
"""Below that nothing more is kept."""


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


class Thumbnails:
    """Makes and keeps them; a file that changes gets a new one after the next scan."""

    def __init__(self, folder: Path, decoding: Decoding, free: Callable[[Path], int] = _free) -> None:
        self._folder = folder
        self._free = free
        self._decoding = decoding

    async def get(self, folder: Path, sample: Sample, size: str) -> bytes:
        """Return a JPEG; raises ``InvalidImage`` with the reason if the file gives none."""
        kept = self._folder / str(sample.dataset_id) / f"{mark(sample)}-{size}.jpg"
        found = await anyio.to_thread.run_sync(_read, kept)
        if found is not None:
            return found
        return await self._decoding.run(partial(self._make, folder, sample, SIDES[size], kept))

    def _make(self, folder: Path, sample: Sample, side: int, kept: Path) -> bytes:
        try:
            with opened(folder, sample.file.name) as path:
                photo = prepare(path, max_side=side, jpeg_quality=_QUALITY)
        except PhotoError as error:
            raise InvalidImage(f"There is no preview of {sample.file.name!r}: {error}.") from None
        data = base64.b64decode(photo.data_url.partition(",")[2])
        self._keep(kept, data)
        return data

    def _keep(self, path: Path, data: bytes) -> None:
        """Keep a thumbnail where there is room; without one it is made again."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._free(path.parent) < _KEPT_FREE_BYTES:
                return
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    async def forget(self, dataset_id: int) -> None:
        """Remove those of a dataset."""
        await anyio.to_thread.run_sync(partial(shutil.rmtree, self._folder / str(dataset_id), ignore_errors=True))


def mark(sample: Sample) -> str:
    """Return what stands for this state of this file: another one when it changes."""
    text = f"{sample.id} {sample.file.name} {sample.file.size} {sample.file.modified_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
