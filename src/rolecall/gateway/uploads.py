"""Uploads (``multipart/form-data``): read as they come, kept on the disk, passed on with the engine's model name.

A recording may be hundreds of megabytes, and its ``model`` field may stand behind it. So files go into a temporary file
without a name, fields into memory, and the engine is sent the same parts in the same order.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rolecall.core.catalog import Target
from rolecall.core.transforms import RequestFacts
from rolecall.errors import BadRequest, BodyTooLarge, DiskFull
from rolecall.gateway.incoming import Payload
from rolecall.gateway.multipart import MULTIPART, WRITE_BYTES, Form, Part, on_disk
from rolecall.runtime.lease import Lease

if TYPE_CHECKING:
    from rolecall.core.experiments import Variant

_KEPT_FREE_BYTES = 256 * 2**20
"""What uploads leave of the disk for logs and other files, however many of them come at a time."""
_RETRY_S = 30


class Upload:
    """A multipart request, received whole."""

    def __init__(self, form: Form, file: IO[bytes], facts: RequestFacts) -> None:
        self.facts = facts
        self._form = form
        self._file = file

    @property
    def changes(self) -> Mapping[str, str]:
        """Nothing is changed but the model's name."""
        return {}

    @property
    def left_out(self) -> str | None:
        """There is no history."""
        return None

    def treat(self, variant: Variant) -> Sequence[str]:
        """Nothing but the model is changed in a form."""
        del variant
        return ()

    async def settle(self, target: Target) -> None:
        """Nothing is left to do."""

    async def payload(self, lease: Lease) -> Payload:
        """Return the parts, with the engine's name for the model."""
        boundary = secrets.token_hex(16)  # the client's may hold what a header takes only in quotes, or not at all
        body = _Parts(self._form, self._file, lease.backend.served_id(lease.entry).encode(), boundary.encode())
        return Payload(body, body.size, f"{MULTIPART}; boundary={boundary}")

    async def smaller(self, lease: Lease, answer: bytes, *, is_last: bool) -> Payload | None:
        """A recording cannot be made smaller."""

    def room(self, lease: Lease) -> None:
        """Nothing is known of what a recording takes."""

    def learn(self, lease: Lease, prompt_tokens: int) -> None:
        """Nothing is learnt of recordings."""

    def estimate(self, lease: Lease) -> float:
        """Nothing is known of what a recording takes."""
        del lease
        return 0

    def let_go(self) -> None:
        """Give the disk space back."""
        self._file.close()


class _Parts:
    """The body for the engine; ``size`` in bytes."""

    def __init__(self, form: Form, file: IO[bytes], model: bytes, boundary: bytes) -> None:
        self._file = file
        self._pieces: list[bytes | Part] = []
        for part in form.parts:
            self._pieces.append(part.head(boundary))
            is_model = part.name == "model" and not part.is_file
            self._pieces.append(part if part.is_file else model if is_model else bytes(part.content))
            self._pieces.append(b"\r\n")
        self._pieces.append(b"--" + boundary + b"--\r\n")
        self.size = sum(piece.size if isinstance(piece, Part) else len(piece) for piece in self._pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, bytes):
                yield piece
                continue
            for start in range(piece.start, piece.start + piece.size, WRITE_BYTES):
                size = min(WRITE_BYTES, piece.start + piece.size - start)
                yield await on_disk(partial(_read, self._file, start, size))


def _read(file: IO[bytes], start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def is_upload(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request says that it is a multipart one."""
    return headers.get(b"content-type", b"").split(b";")[0].strip().lower() == MULTIPART.encode()


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class Storage:
    """Where uploads are kept: a folder, the ``limit`` of each in bytes, and what tells how many are free there."""

    folder: Path
    limit: int
    free: Callable[[Path], int] = _free

    async def check_room(self) -> None:
        """Raise ``DiskFull`` unless one more upload has room."""
        if await on_disk(lambda: self.free(self.folder)) < self.limit:
            raise _disk_full()

    def check_space(self) -> None:
        """Raise ``DiskFull`` before this upload and others together fill the disk."""
        if self.free(self.folder) < min(self.limit, _KEPT_FREE_BYTES):
            raise _disk_full()


def _disk_full() -> DiskFull:
    return DiskFull(
        "The disk with the state folder (state_dir) has no room for an upload: as many bytes as max_upload_bytes have "
        "to be free. Who runs the server can make room, or lower that setting; other requests are served.",
        retry_after_s=_RETRY_S,
    )


async def read_upload(chunks: AsyncIterator[bytes], content_type: bytes, endpoint: str, storage: Storage) -> Upload:
    """Receive an upload into a nameless file.

    Raises ``BadRequest`` for what is no multipart body, names no model or brings no file, ``BodyTooLarge`` above the
    limit of bytes, ``DiskFull``.
    """
    file = await on_disk(partial(_nameless, storage.folder))
    try:
        form = Form(content_type, file, storage.check_space)
        async for chunk in _limited(chunks, storage.limit):
            await form.feed(chunk)
        await form.close()
        return Upload(form, file, _facts(form, endpoint))
    except BaseException:
        file.close()
        raise


def _nameless(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


async def _limited(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(f"The upload has more than {limit} bytes (setting max_upload_bytes).")
        yield chunk


def _facts(form: Form, endpoint: str) -> RequestFacts:
    model = form.text("model")
    if not model:
        raise BadRequest(
            "The field 'model' of the upload is missing; it takes a model's name, an alias or role:NAME.", param="model"
        )
    form.check_file()
    return RequestFacts(endpoint=endpoint, model=model, stream=form.text("stream") in ("true", "1", "True"))
