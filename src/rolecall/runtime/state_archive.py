"""A backup: the config folder and what rolecall knows, in one compressed tar file.

    rolecall-backup.json    who wrote it, when, from which folders
    config/…                the config folder
    state/…                 the state folder without what is made anew (engine logs) or can be fetched again (models)
    keys/…                  the file of API keys, if it lies elsewhere
    rolecall-backup.end     how many files and bytes there were: without it the archive is cut off

It holds hashes of keys, tags of pictures, and no prompts. It is of mode 0600, and there as a whole or not at all.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from rolecall import __version__
from rolecall.errors import ConfigurationError, naming
from rolecall.runtime.state_items import Item

MANIFEST = "rolecall-backup.json"
END = "rolecall-backup.end"
FORM = 1
KINDS = (".tar.gz", ".tgz", ".tar.zst")
TOPS = ("config", "state", "keys")
"""The folders in it."""
_MOST_BYTES = 2**16

Tell = Callable[[int], None]
"""Is given the number of bytes that were read or written since the last call."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What stands in front. Folders are those of the machine it was written on."""

    form: int
    rolecall: str
    created: str
    config_dir: str
    state_dir: str
    api_keys_file: str | None


@dataclass(slots=True)
class Content:
    """How much there is, in bytes before compression."""

    files: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Count a file."""
        self.files += 1
        self.bytes += size


# -- writing


def write_archive(path: Path, items: Iterable[Item], origin: Mapping[str, Any], tell: Tell) -> tuple[Manifest, Content]:
    """Write the archive; ``origin`` names the folders. Raises ``OSError``, and then there is none."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest, content = Manifest(FORM, __version__, created, **origin), Content()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with naming(path), os.fdopen(fd, "wb") as file:
            with _compressing(file, path.name) as out, tarfile.open(fileobj=out, mode="w|") as archive:
                _add(archive, MANIFEST, asdict(manifest))
                for item in items:
                    with suppress(FileNotFoundError):  # a mark that is taken away when its job ends
                        content.add(size := _add_file(archive, item))
                        tell(size)
                _add(archive, END, asdict(content))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    return manifest, content


def _add(archive: tarfile.TarFile, name: str, value: Mapping[str, Any]) -> None:
    data = json.dumps(value, indent=2).encode() + b"\n"
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
    archive.addfile(member, io.BytesIO(data))


def _add_file(archive: tarfile.TarFile, item: Item) -> int:
    with item.path.open("rb") as file:  # what is replaced from here on is read as it was
        facts = os.fstat(file.fileno())
        member = tarfile.TarInfo(item.name)
        member.size, member.mode, member.mtime = facts.st_size, facts.st_mode & 0o777, int(facts.st_mtime)
        archive.addfile(member, file)
    return facts.st_size


@contextmanager
def _compressing(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    if name.endswith(".zst"):
        with _zstd(["-q", "-c"], stdin=subprocess.PIPE, stdout=file) as process:
            yield cast("IO[bytes]", process.stdin)
    else:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6) as out:
            yield cast("IO[bytes]", out)


@contextmanager
def _zstd(options: list[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program zstd; the module for it comes with Python 3.14."""
    program = shutil.which("zstd")
    if program is None:
        raise ConfigurationError("for .tar.zst the program zstd has to be on the PATH; .tar.gz needs nothing")
    with subprocess.Popen([program, *options], stderr=subprocess.PIPE, **streams) as process:
        try:
            with suppress(BrokenPipeError):  # it has ended, and says below why
                yield process
        except BaseException:
            process.kill()
            raise
        finally:
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()
        said = process.stderr.read() if process.stderr is not None else b""
        if process.wait() != 0:
            raise OSError(errno.EIO, said.decode(errors="replace").strip() or "zstd failed")


# -- reading


class NoBackup(ConfigurationError):
    """The file is no backup of ours, or is damaged."""


def unpack(path: Path, folder: Path, tell: Tell) -> tuple[Manifest, Content]:
    """Unpack the archive into an empty folder, which then holds ``config``, ``state`` and ``keys``.

    Nothing is written outside of it, whatever the archive says; links and devices are refused. Raises ``NoBackup`` for
    what is none, is damaged or was written by a newer rolecall, ``OSError`` for what cannot be read or written.
    """
    seen, end = Content(), None
    try:
        with naming(path), path.open("rb") as file, _expanding(file, path.name) as plain:
            with tarfile.open(fileobj=plain, mode="r|") as archive:
                manifest = _manifest(archive, path)
                while (member := archive.next()) is not None:
                    if member.name == END:
                        end = Content(**_read(archive, member))
                        break
                    _unpack(archive, member, folder)
                    seen.add(member.size)
                    tell(member.size)
            while plain.read(2**20):  # to the end, where the checksum stands
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, TypeError, KeyError) as error:
        raise NoBackup(f"{path} is no backup of rolecall, or damaged: {error}") from None
    if seen != end:
        raise NoBackup(f"{path} is cut off, or damaged: {seen.files} files are whole")
    return manifest, seen


@contextmanager
def _expanding(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    if name.endswith(".zst"):
        with _zstd(["-q", "-d", "-c"], stdin=file, stdout=subprocess.PIPE) as process:
            yield cast("IO[bytes]", process.stdout)
    else:
        with gzip.GzipFile(fileobj=file, mode="rb") as plain:
            yield cast("IO[bytes]", plain)


def _manifest(archive: tarfile.TarFile, path: Path) -> Manifest:
    first = archive.next()
    if first is None or first.name != MANIFEST:
        raise NoBackup(f"{path} is no backup of rolecall: it does not begin with {MANIFEST}")
    data = _read(archive, first)
    if data["form"] > FORM:
        raise NoBackup(f"{path} was written by rolecall {data['rolecall']}, which is newer: update this one first")
    return Manifest(**{each.name: data[each.name] for each in fields(Manifest)})


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    """Return what one of our own files says; raises ``ValueError`` for what makes no sense."""
    content = archive.extractfile(member) if member.isreg() and member.size <= _MOST_BYTES else None
    data = json.loads(content.read()) if content else None
    if not isinstance(data, dict):
        raise ValueError(f"{member.name} makes no sense")  # noqa: TRY004 - the file's fault
    return data


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    # Only files, each under a new name in folders of our own making: so nothing leads elsewhere. tarfile's own filter,
    # which would see to that as well, is missing from the Python 3.10 and 3.11 of some distributions.
    parts = PurePosixPath(member.name).parts
    content = archive.extractfile(member) if member.isreg() else None
    if content is None or len(parts) < 2 or parts[0] not in TOPS or ".." in parts:
        raise NoBackup(f"the archive holds {member.name[:200]!r}, which no backup of rolecall has")
    path = folder.joinpath(*parts)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with naming(path), path.open("xb") as file:
        shutil.copyfileobj(content, file)
    path.chmod(member.mode & 0o755 | 0o600)
