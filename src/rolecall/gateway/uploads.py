"""Uploads (``multipart/form-data``): read as they come, kept on the disk, passed on with the engine's model name.

A recording may be hundreds of megabytes, and its ``model`` field may stand behind it. So files go into a temporary file
without a name, fields into memory, and the engine is sent the same parts in the same order.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from rolecall.core.catalog import Target
from rolecall.core.transforms import RequestFacts
from rolecall.errors import BadRequest, BodyTooLarge, DiskFull, RolecallError
from rolecall.gateway.incoming import Payload
from rolecall.runtime.lease import Lease

T = TypeVar("T")

MULTIPART = "multipart/form-data"
MAX_PARTS = 100
MAX_FIELD_BYTES = 2**20
_WRITE_BYTES = 2**20
"""What is collected before it is written: a switch to a thread for each 64 KB would cost more than the writing."""
_KEPT_FREE_BYTES = 256 * 2**20
"""What uploads leave of the disk for logs and other files, however many of them come at a time."""
_RETRY_S = 30


@dataclass(slots=True)
class Part:
    """One part: its own headers as they came, and its content, in memory or at ``start`` of the file."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    name: str = ""
    has_filename: bool = False
    is_file: bool = False
    content: bytearray = field(default_factory=bytearray)
    start: int = 0
    size: int = 0

    def head(self, boundary: bytes) -> bytes:
        """Return what stands before its content."""
        lines = (name + b": " + value + b"\r\n" for name, value in self.headers)
        return b"--" + boundary + b"\r\n" + b"".join(lines) + b"\r\n"


class Form:
    """A multipart body on its way in: ``feed`` it, then ``close`` it. Raises ``BadRequest`` for one that is none.

    ``check_space`` is called, in a thread, before anything is written; what it raises ends the upload.
    """

    def __init__(self, content_type: bytes, file: IO[bytes], check_space: Callable[[], None] | None = None) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind.decode("latin-1") != MULTIPART or not boundary:
            raise BadRequest("The content-type of an upload must be multipart/form-data with a boundary.")
        self.parts: list[Part] = []
        self._file = file
        self._check_space = check_space
        self._unwritten = bytearray()
        self._end = 0
        self._name = self._value = b""
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_end": self._finish,
                },
            )
        except FormParserError as error:
            raise BadRequest(f"The upload's boundary cannot be used: {error}.") from None

    async def feed(self, data: bytes) -> None:
        """Take in the next bytes."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequest(f"The upload is not valid multipart/form-data: {error}.") from None
        if len(self._unwritten) >= _WRITE_BYTES:
            await self._write()

    async def close(self) -> None:
        """Take in the end; raises ``BadRequest`` if it came too early."""
        if not self._is_complete:
            raise BadRequest("The upload ends within a part: its last boundary is missing.")
        await self._write()

    def text(self, name: str) -> str | None:
        """Return a field; None if it is not there, the first of several."""
        found = next((part for part in self.parts if part.name == name and not part.is_file), None)
        return None if found is None else found.content.decode("utf-8", "replace").strip()

    def check_file(self) -> None:
        """Raise ``BadRequest`` unless there is a file: engines answer that in many ways, some after they were loaded.

        OpenAI's API, too, takes a part without a filename for text.
        """
        parts = [part for part in self.parts if part.name == "file"]
        if not parts:
            problem = "is missing"
        elif not any(part.has_filename for part in parts):
            problem = "has no filename"
        elif not any(part.size for part in parts):
            problem = "is empty"
        else:
            return
        raise BadRequest(
            f"The field 'file' of the upload {problem}; it takes the recording (with curl: -F file=@NAME).",
            param="file",
        )

    async def _write(self) -> None:
        data, self._unwritten = self._unwritten, bytearray()
        await _on_disk(lambda: self._keep(data))

    def _keep(self, data: bytearray) -> None:
        if self._check_space is not None:
            self._check_space()
        self._file.write(data)

    def _begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise BadRequest(f"The upload has more than {MAX_PARTS} parts.")
        self.parts.append(Part(start=self._end))

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self.parts[-1].headers.append((self._name, self._value))
        self._name = self._value = b""

    def _headers_end(self) -> None:
        part = self.parts[-1]
        found = (value for name, value in part.headers if name.lower() == b"content-disposition")
        _, options = parse_options_header(next(found, b""))
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        part.has_filename = bool(options.get(b"filename"))
        part.is_file = b"filename" in options or part.name == "file"

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.size += end - start
        if part.is_file:
            self._unwritten += data[start:end]
            self._end += end - start
            return
        if part.size > MAX_FIELD_BYTES:
            raise BadRequest(f"The field {part.name[:100]!r} of the upload is over {MAX_FIELD_BYTES} bytes.")
        part.content += data[start:end]

    def _finish(self) -> None:
        self._is_complete = True


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
            for start in range(piece.start, piece.start + piece.size, _WRITE_BYTES):
                size = min(_WRITE_BYTES, piece.start + piece.size - start)
                yield await _on_disk(partial(_read, self._file, start, size))


def _read(file: IO[bytes], start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


async def _on_disk(work: Callable[[], T]) -> T:
    """Do something with a file in a thread; raises ``RolecallError`` for what the disk makes impossible."""
    try:
        return await anyio.to_thread.run_sync(work)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise RolecallError(f"rolecall cannot keep the upload in a file in its state_dir: {problem}.") from error


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
        if await _on_disk(lambda: self.free(self.folder)) < self.limit:
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
    file = await _on_disk(partial(_nameless, storage.folder))
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
