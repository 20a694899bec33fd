"""Reads files of the log that logrotate has compressed."""

from __future__ import annotations

import errno
import gzip
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from rolecall.insight.log_reader import Compression

_BLOCK = 2**20


@contextmanager
def unpacked_copy(file: BinaryIO, compression: Compression) -> Iterator[BinaryIO]:
    """Give what a file holds as a file that can be read backwards; it is on the disk, and gone afterwards.

    Raises ``OSError`` where the file is broken, or for want of room.
    """
    with tempfile.TemporaryFile() as copy:
        for block in unpacked(file, compression):
            copy.write(block)
        yield copy


def unpacked(file: BinaryIO, compression: Compression) -> Iterator[bytes]:
    """Yield what a file holds, from its beginning; raises ``OSError`` where it is broken, ENOPKG for want of zstd."""
    file.seek(0)
    try:
        yield from _gzip(file) if compression == "gzip" else _zstd(file)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise _broken(file, "it is damaged, cut short, or not compressed by gzip") from None


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as content:
        while block := content.read(_BLOCK):
            yield block


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    """Have the program unpack it: the module for it comes with Python 3.14."""
    program = shutil.which("zstd")
    if program is None:
        raise OSError(errno.ENOPKG, "the program zstd, which reads it, is not on the PATH", str(file.name))
    with subprocess.Popen(
        [program, "-d", "-c", "-q"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while block := process.stdout.read(_BLOCK) if process.stdout else b"":
                yield block
        except GeneratorExit:
            process.kill()
            raise
    if process.returncode:
        raise _broken(file, "it is damaged, cut short, or not compressed by zstd")


def _broken(file: BinaryIO, why: str) -> OSError:
    return OSError(errno.EIO, why, str(file.name))
