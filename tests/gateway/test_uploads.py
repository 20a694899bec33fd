"""Uploads on their way through: whatever their boundary is, and whatever the disk does."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import pytest

from gateway.test_engine_context import lease
from rolecall.core.transforms import RequestFacts
from rolecall.errors import BadRequest, DiskFull, RolecallError
from rolecall.gateway.incoming import Payload
from rolecall.gateway.multipart import Form
from rolecall.gateway.uploads import Storage, Upload, read_upload
from rolecall.gateway.upstream import HttpxTransport

PATH = "/v1/audio/transcriptions"
MB = 2**20
TYPE = b"multipart/form-data; boundary=x"
LIMIT = 64 * MB
HEAD = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nears\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)


class BrokenDisk(io.BytesIO):
    """A file that takes what is written and cannot give it back."""

    def read(self, size: int | None = -1) -> bytes:
        """Fail."""
        raise OSError(5, "Input/output error")


class FullDisk(io.BytesIO):
    """A file for which there is no space."""

    def write(self, data: object) -> int:
        """Fail."""
        raise OSError(28, "No space left on device")


def multipart(boundary: bytes) -> bytes:
    """Return a body with a model's name and a file."""
    return b"".join(
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="' + head + b"\r\n\r\n" + content + b"\r\n"
        for head, content in ((b'model"', b"ears"), (b'file"; filename="a.wav"', b"RIFF"))
    ) + (b"--" + boundary + b"--\r\n")


async def upload(file: IO[bytes], boundary: bytes = b"x", quoted: bytes = b"x") -> Upload:
    """Return an upload that was received into a file."""
    form = Form(b"multipart/form-data; boundary=" + quoted, file)
    await form.feed(multipart(boundary))
    await form.close()
    return Upload(form, file, RequestFacts(PATH, "ears"))


async def sent(payload: Payload) -> bytes:
    """Return the body."""
    assert not isinstance(payload.data, bytes)
    body = b"".join([chunk async for chunk in payload.data])
    assert len(body) == payload.size
    return body


@pytest.mark.parametrize(
    ("boundary", "quoted"),
    [
        (b"x", b"x"),
        (b"a b;c, d=e", b'"a b;c, d=e"'),
        (b'say "hi"', b'"say \\"hi\\""'),
        (b"a\r\nx-evil: y", b'"a\r\nx-evil: y"'),
        ("ä".encode(), '"ä"'.encode()),
    ],
)
async def test_the_engine_can_read_whatever_boundary_was_used(boundary: bytes, quoted: bytes) -> None:
    """It gets one that needs no quotes, in the header and between the parts, which are what the client sent."""
    payload = await (await upload(io.BytesIO(), boundary, quoted)).payload(lease())
    assert payload.content_type.isascii()
    assert payload.content_type.removeprefix("multipart/form-data; boundary=").isalnum()
    received = Form(payload.content_type.encode(), io.BytesIO())
    await received.feed(await sent(payload))
    await received.close()
    assert received.text("model") == "alpha"
    assert [(part.name, part.size) for part in received.parts] == [("model", 5), ("file", 4)]


async def test_a_boundary_that_is_too_long_is_told() -> None:
    """It is the client's fault, not ours."""
    with pytest.raises(BadRequest, match="boundary cannot be used"):
        Form(b"multipart/form-data; boundary=" + b"x" * 300, io.BytesIO())


async def test_a_file_that_cannot_be_read_back_is_not_the_engines_fault() -> None:
    """The client is told what broke, and nobody takes the engine for unreachable."""

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server, transport = await asyncio.start_server(engine, "127.0.0.1", 0), HttpxTransport()
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    payload = await (await upload(BrokenDisk())).payload(lease())
    with pytest.raises(RolecallError, match="Input/output error") as caught:
        await transport.post(url, {"content-length": str(payload.size)}, payload.data, head_timeout_s=5)
    assert (type(caught.value), caught.value.status) == (RolecallError, 500)
    await transport.aclose()
    server.close()


async def test_a_full_disk_is_told() -> None:
    """What cannot be kept is an error that says where and why."""
    with pytest.raises(RolecallError, match="state_dir: No space left on device"):
        await upload(FullDisk())


async def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    """So is one in which no file can be made."""

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    with pytest.raises(RolecallError, match="state_dir: No such file or directory"):
        await read_upload(nothing(), b"multipart/form-data; boundary=x", PATH, Storage(tmp_path / "gone", 1))


class Disk:
    """A disk on which each question finds ``step`` bytes less."""

    def __init__(self, free: int, step: int = 0) -> None:
        self.free = free
        self.step = step

    def __call__(self, _folder: Path) -> int:
        self.free -= self.step
        return self.free


async def recording(megabytes: int) -> AsyncIterator[bytes]:
    yield HEAD
    for _ in range(megabytes):
        yield bytes(MB)
    yield b"\r\n--x--\r\n"


async def test_as_much_as_the_limit_has_to_be_free(tmp_path: Path) -> None:
    """A byte less, and an upload is not begun."""
    await Storage(tmp_path, LIMIT, Disk(LIMIT)).check_room()
    with pytest.raises(DiskFull, match="max_upload_bytes") as caught:
        await Storage(tmp_path, LIMIT, Disk(LIMIT - 1)).check_room()
    assert caught.value.headers() == {"retry-after": "30"}


async def test_uploads_together_never_fill_the_disk(tmp_path: Path) -> None:
    """Each looks again at every megabyte: where several share the room of one, they end before nothing is left."""
    disk = Disk(LIMIT + 20 * MB, MB)
    storage = Storage(tmp_path, LIMIT, disk)
    uploads = (read_upload(recording(12), TYPE, PATH, storage) for _ in "ab")
    results = await asyncio.gather(*uploads, return_exceptions=True)
    assert any(isinstance(result, DiskFull) for result in results), results
    assert disk.free >= LIMIT - 2 * MB


async def test_an_upload_is_kept_whole_where_there_is_room(tmp_path: Path) -> None:
    """It is there to be passed on, as long as it was sent."""
    upload = await read_upload(recording(3), TYPE, PATH, Storage(tmp_path, LIMIT, Disk(LIMIT)))
    assert upload.facts.model == "ears"
    upload.let_go()
