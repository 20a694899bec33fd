"""A ``multipart/form-data`` body, taken apart as it comes: fields into memory, files into a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TypeVar

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from rolecall.errors import BadRequest, RolecallError

T = TypeVar("T")

MULTIPART = "multipart/form-data"
MAX_PARTS = 100
MAX_FIELD_BYTES = 2**20
WRITE_BYTES = 2**20
"""What is collected before it is written: a switch to a thread for each 64 KB would cost more than the writing."""


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
        if len(self._unwritten) >= WRITE_BYTES:
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
        await on_disk(lambda: self._keep(data))

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


async def on_disk(work: Callable[[], T]) -> T:
    """Do something with a file in a thread; raises ``RolecallError`` for what the disk makes impossible."""
    try:
        return await anyio.to_thread.run_sync(work)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise RolecallError(f"rolecall cannot keep the upload in a file in its state_dir: {problem}.") from error
