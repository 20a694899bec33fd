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
from rolecall.errors import BadRequest, RolecallError
from rolecall.gateway.incoming import Payload
from rolecall.gateway.uploads import Form, Upload, read_upload
from rolecall.gateway.upstream import HttpxTransport

PATH = "/v1/audio/transcriptions"


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
        await read_upload(nothing(), b"multipart/form-data; boundary=x", PATH, 1, tmp_path / "gone")
