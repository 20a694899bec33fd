"""An HTTP/1.1 request to an engine on this machine, as the bytes that are sent. No I/O."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from rolecall.core.hosts import is_loopback
from rolecall.errors import UpstreamError

PART_BYTES = 2**18
"""What is sent of a body until it is looked whether the engine takes it."""

_URL = re.compile(
    r"http://(localhost|[0-9.]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?((?:/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Address:
    """A URL of http on this machine in its parts; ``target`` is path and query."""

    host: str
    port: int
    target: str
    authority: str

    @property
    def key(self) -> tuple[str, int]:
        """What connections are kept by."""
        return self.host, self.port


@lru_cache(maxsize=256)
def loopback_address(url: str) -> Address | None:
    """Return the parts of a URL that this client is for, None for any other."""
    found = _URL.fullmatch(url)
    if found is None:
        return None
    name, port, target = found.groups()
    host = name.strip("[]")
    if not is_loopback(host) or int(port or 80) > 65535:
        return None
    return Address(host, int(port or 80), target or "/", f"{name}:{port}" if port else name)


class Pieces:
    """A body that lies in memory in pieces, and is sent without being put together; ``len`` is its size."""

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._size = sum(map(len, pieces))

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self._size

    def __bytes__(self) -> bytes:
        """Return it in one piece."""
        return b"".join(self._pieces)

    def __iter__(self) -> Iterator[memoryview]:
        """Yield it in parts."""
        for piece in self._pieces:
            view = memoryview(piece)
            for at in range(0, len(view), PART_BYTES):
                yield view[at : at + PART_BYTES]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield it in parts that are bytes of their own."""
        for part in self:
            yield bytes(part)


_IN_MEMORY = (bytes, Pieces)


@dataclass(slots=True)
class HttpRequest:
    """A request as it is sent. ``size`` is that of its body, None for one that is sent in chunks."""

    address: Address
    method: str
    head: bytes
    body: bytes | AsyncIterable[bytes] = field(repr=False)
    size: int | None

    @property
    def can_be_repeated(self) -> bool:
        """Whether it can be sent again: all of it is here."""
        return isinstance(self.body, _IN_MEMORY)

    async def parts(self) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield it in parts; raises ``UpstreamError`` if the body does not have its size."""
        yield self.head
        if isinstance(self.body, _IN_MEMORY):
            for piece in Pieces([self.body]) if isinstance(self.body, bytes) else self.body:
                yield piece
            return
        left = self.size
        async for part in self.body:
            if left is None:
                yield b"%x\r\n%b\r\n" % (len(part), part) if part else b""
            else:
                left = _checked(left - len(part), is_end=False)
                yield part
        if left is None:
            yield b"0\r\n\r\n"
        else:
            _checked(left, is_end=True)


def _checked(left: int, *, is_end: bool) -> int:
    if left < 0 or (is_end and left):
        raise UpstreamError("The request's body is not as long as its head says.")
    return left


def http_request(method: str, url: str, headers: Mapping[str, str], body: bytes | AsyncIterable[bytes]) -> HttpRequest:
    """Return a request; names in ``headers`` are in small letters. Raises ``UpstreamError`` and quotes nothing."""
    address = loopback_address(url)
    if address is None:
        raise not_allowed()
    size = int(headers["content-length"]) if "content-length" in headers else None
    fields = _fields(headers)
    if isinstance(body, _IN_MEMORY):
        if size is None:
            fields += f"content-length: {len(body)}\r\n"
        else:
            _checked(size - len(body), is_end=True)
    elif size is None:
        fields += "transfer-encoding: chunked\r\n"
    start = f"{method} {address.target} HTTP/1.1\r\nhost: {address.authority}\r\n"
    return HttpRequest(address, method, f"{start}{fields}\r\n".encode("ascii"), body, size)


def _fields(headers: Mapping[str, str]) -> str:
    """Return the lines of the headers, looked through as a whole, which is several times as fast."""
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    is_plain = text.isascii() and text.replace("\r\n", "").isprintable() and text.count("\r\n") == len(headers)
    if not is_plain or ":  " in text or " \r\n" in text:
        for value in headers.values():
            if not (value.isascii() and value.isprintable() and value == value.strip()):
                raise not_allowed()
    return text


def not_allowed() -> UpstreamError:
    """Return the error for an address or key that cannot be sent; it quotes neither, and nor may what logs it."""
    return UpstreamError("The engine's address or API key holds characters that HTTP does not allow.")
