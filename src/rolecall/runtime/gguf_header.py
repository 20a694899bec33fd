"""The headers of GGUF files, never their weights.

The reader is our own: `gguf.GGUFReader` makes an object of every token and takes 4 s for a vocabulary of 150,000, this
one leaps over it. The `gguf` package is an extra besides, and believes the counts of a file.
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from rolecall.core.model_names import part_names
from rolecall.runtime.fields import MOST_HEADER_BYTES

MOST_ENTRIES = 200_000
"""Of metadata and of tensors; the largest models have some thousands."""
MOST_KEPT = 4096
"""Longer arrays are of the vocabulary."""
READ_BYTES, READ_ON_BYTES, LONG_BYTES = 2**18, 2**21, 2**23
"""A header without a vocabulary has some 100 kB, one with it mostly 3 to 8 MB; what lies behind it is not wanted."""

Tensor: TypeAlias = tuple[tuple[int, ...], int]
"""Its shape, innermost first, and its bytes, padding included."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct(f"<{letter}") for kind, letter in _LETTERS.items()}
_INFOS = [struct.Struct(f"<{dimensions}QIQ") for dimensions in range(9)]
_TEXT, _ARRAY = 8, 9
_NEXT_KEY = b"\0" * 7 + b"tokenizer."
"""The end of a key's length (below 256) and its beginning: after a vocabulary comes another key of the tokenizer."""
_KEY = re.compile(rb"tokenizer\.[a-z0-9_.]+")
_LONGEST_TEXT = 64
"""Bytes of a token or a merge on the average, at the most."""

_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
    41: (128, 18),
}
"""Type of a tensor to the elements of a block and its bytes (ggml.c, ``type_traits``)."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata without the long arrays, and each tensor by its name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of a GGUF (version 2 or 3) and of its further parts, if its name ends in ``-00001-of-0000N``.

    Raises ``ValueError`` that names the file for one that is no GGUF, is cut short or makes no sense, ``OSError`` for
    one that cannot be read. At most `MOST_HEADER_BYTES` are read, whatever the file says of itself.
    """
    headers = [_read_part(part) for part in gguf_parts(path)]
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    return GgufHeader(headers[0].metadata, tensors)


def gguf_parts(path: Path) -> list[Path]:
    """Return the files of a model whose first is ``path``; only their names are looked at."""
    return [path.with_name(name) for name in part_names(path.name)] if is_gguf_name(path) else [path]


def is_gguf_name(path: Path) -> bool:
    """Whether a file of that name is a GGUF: by its ending, or because it is a blob of Ollama's, which has none."""
    return path.suffix.lower() == ".gguf" or path.name.startswith("sha256-")


def _read_part(path: Path) -> GgufHeader:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise ValueError(f"{path} is no file")
    with path.open("rb") as file:
        try:
            return read_gguf_from(file, status.st_size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def read_gguf_from(file: BinaryIO, file_bytes: int) -> GgufHeader:
    """Read the header of a GGUF of so many bytes, of which ``file`` may hand out the beginning alone.

    Raises ``ValueError``, and what ``file`` raises. It may give less than it is asked for.
    """
    header = _Header(file)
    try:
        return _parse(header, file_bytes)
    except ValueError:
        header.start_again()
    return _parse(header, file_bytes)


class _Header:
    """The beginning of a file, read as far as it is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = b""
        self._leaps = True
        self.position = 0

    def start_again(self) -> None:
        """Go back to the beginning, and step over each text from now on."""
        self.position = 0
        self._leaps = False

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        start = self.skip(layout.size)
        return layout.unpack_from(self._data, start)

    def number(self, layout: struct.Struct) -> int:
        return int(self.unpack(layout)[0])

    def text(self) -> str:
        length = self.number(_U64)
        start = self.skip(length)
        return self._data[start : start + length].decode("utf-8", "replace")

    def skip(self, size: int) -> int:
        start, self.position = self.position, self.position + size
        self._reach(self.position)
        return start

    def skip_texts(self, count: int) -> None:
        """Step over texts, or leap over many.

        A leap that passed a key by would leave the entries and tensors that follow without sense.
        """
        if self._leaps and count > MOST_KEPT and (found := self._next_key(count * _LONGEST_TEXT)) is not None:
            self.position = found
            return
        position, length_at = self.position, _U64.unpack_from
        for _ in range(count):
            try:
                position += 8 + length_at(self._data, position)[0]
            except (struct.error, OverflowError):
                self._reach(position + 8)
                position += 8 + length_at(self._data, position)[0]
        self.skip(position - self.position)

    def _next_key(self, within: int) -> int | None:
        """Return where the next key of the tokenizer stands, with its length before it; None if there is none."""
        start = self.position
        last = min(start + within, MOST_HEADER_BYTES)
        while (at := self._data.find(_NEXT_KEY, start)) < 0 or at + 300 > len(self._data):
            if len(self._data) > last or not self._read(len(self._data) + 1):
                break
            start = max(start, at)
        if at <= self.position:
            return None
        key = self._data[at + 7 : at + 7 + self._data[at - 1]]
        return at - 1 if _KEY.fullmatch(key) else None

    def _reach(self, end: int) -> None:
        if end > MOST_HEADER_BYTES:
            raise ValueError("its header claims more than 64 MB")
        while len(self._data) < end:
            if not self._read(end):
                raise ValueError("it is cut short in its header")

    def _read(self, end: int) -> bool:
        """Read at least up to ``end``, and all anew: to append to megabytes costs more. False at the file's end."""
        known = len(self._data)
        step = known if known >= LONG_BYTES else READ_ON_BYTES if known else READ_BYTES
        self._file.seek(0)
        self._data = self._file.read(max(end, min(known + step, MOST_HEADER_BYTES)))
        return len(self._data) > known


def _parse(header: _Header, file_bytes: int) -> GgufHeader:
    if header.unpack(struct.Struct("<4s"))[0] != b"GGUF":
        raise ValueError("it is no GGUF")
    version = header.number(_U32)
    if version not in (2, 3):
        raise ValueError(f"its version {version} is not known here (a big-endian file has such, too)")
    tensor_count, entry_count = _count(header), _count(header)
    metadata = dict(_entry(header) for _ in range(entry_count))
    infos = [_tensor_info(header) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise ValueError(f"its alignment is {alignment!r}")
    data_bytes = file_bytes - -(-header.position // alignment) * alignment
    return GgufHeader(metadata, _sizes(infos, data_bytes))


def _count(header: _Header) -> int:
    count = header.number(_U64)
    if count > MOST_ENTRIES:
        raise ValueError(f"its header claims {count} entries")
    return count


def _entry(header: _Header) -> tuple[str, Any]:
    key, kind = header.text(), header.number(_U32)
    if kind == _TEXT:
        return key, header.text()
    if kind != _ARRAY:
        return key, header.unpack(_layout(kind))[0]
    kind, count = header.number(_U32), header.number(_U64)
    if kind == _TEXT:
        header.skip_texts(count)
        return key, None
    layout = _layout(kind)
    if count > MOST_KEPT:
        header.skip(count * layout.size)
        return key, None
    return key, header.unpack(struct.Struct(f"<{count}{layout.format[-1]}"))


def _layout(kind: int) -> struct.Struct:
    if kind not in _SCALARS:
        raise ValueError(f"its header has a value of type {kind}, which is not known")
    return _SCALARS[kind]


_Info: TypeAlias = tuple[str, tuple[int, ...], int, int]
"""A tensor's name, shape, type and offset."""


def _tensor_info(header: _Header) -> _Info:
    name, dimensions = header.text(), header.number(_U32)
    if dimensions > 8:
        raise ValueError(f"its tensor {name[:80]!r} has {dimensions} dimensions")
    *shape, kind, offset = header.unpack(_INFOS[dimensions])
    return name, tuple(shape), kind, offset


def _sizes(infos: Iterable[_Info], data_bytes: int) -> dict[str, Tensor]:
    """A tensor reaches to the next one, so that no type has to be known (new quantizations come every month).

    Of the last one the type says whether all of it is there.
    """
    tensors: dict[str, Tensor] = {}
    end = data_bytes
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3], reverse=True):
        if offset + (0 if tensors else _least_bytes(shape, kind)) > end:
            raise ValueError("it is cut short: it should go on for its tensors")
        tensors[name] = (shape, end - offset)
        end = offset
    return tensors


def _least_bytes(shape: tuple[int, ...], kind: int) -> int:
    elements, size = _BLOCKS.get(kind, (1, 0))
    return prod(shape) // elements * size
