"""A client that speaks HTTP/1.1 by hand, to do what no ordinary one does and to see how an answer really ends."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from typing_extensions import Self

from bench.running import PATH, Target

STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}

Ending = Literal["whole", "closed", "cut", "reset", "silent", "nothing"]
"""How an answer ended: by its framing; with the connection, as one without a length does; with the connection, though
more was announced; by a reset; not at all within the patience; before its head."""


@dataclass(frozen=True)
class Answer:
    """What a client has got."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    ending: Ending = "whole"
    trailer: bytes = b""

    @property
    def is_clean(self) -> bool:
        """Whether nobody would see that something is missing."""
        return self.ending in ("whole", "closed")

    @property
    def chunks(self) -> int:
        """How many chunks of the upstream are in it; fails for one that is broken."""
        events = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: {")]
        return sum(b'"@' in event and bool(json.loads(event)) for event in events)


class Wire:
    """A connection for the length of the ``with`` block; what has not come after ``patience_s`` counts as silence."""

    def __init__(self, target: Target, *, patience_s: float = 10.0, receive_buffer: int | None = None) -> None:
        self._target = target
        self._until_s = time.monotonic() + patience_s
        self.socket = socket.socket()
        self.socket.settimeout(patience_s)
        if receive_buffer is not None:  # has to be set before the connection is made
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", target.port))
        self._buffer = b""

    def __enter__(self) -> Self:
        """Return it: it is connected."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.socket.close()

    def reset(self) -> None:
        """Close it as a process that dies with unread data does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # -- what is sent

    def request(self, extra: str = "", **body: Any) -> bytes:
        """Return the bytes of a chat request; ``extra`` are header lines."""
        given = {"model": self._target.model, "messages": [{"role": "user", "content": "hi"}], **body}
        data = json.dumps(given).encode()
        return (
            self.head(f"POST {PATH}", f"content-type: application/json\r\ncontent-length: {len(data)}\r\n{extra}")
            + data
        )

    def head(self, start: str, lines: str = "") -> bytes:
        """Return the head of a request."""
        own = "".join(f"{name}: {value}\r\n" for name, value in self._target.headers.items())
        return f"{start} HTTP/1.1\r\nhost: 127.0.0.1\r\n{own}{lines}\r\n".encode()

    def send(self, extra: str = "", **body: Any) -> None:
        """Send a chat request."""
        self.socket.sendall(self.request(extra, **body))

    def ask(self, extra: str = "", **body: Any) -> Answer:
        """Send a chat request and return the answer."""
        self.send(extra, **body)
        return self.answer()

    # -- what comes

    def answer(self, *, has_body: bool = True) -> Answer:
        """Read an answer to its end, however it ends; what goes before it with a status 1xx is left out."""
        status, headers = 0, dict[str, str]()
        body, trailer = bytearray(), b""
        ending: Ending = "whole"
        try:
            while status < 200:
                status, headers = self.read_head()
            if has_body and status != 204:
                ending, trailer = self._read_body(headers, body)
        except TimeoutError:
            ending = "silent"
        except ConnectionError:
            ending = "reset" if status else "nothing"
        except EOFError:
            ending = "cut" if status else "nothing"
        return Answer(status, headers, bytes(body), ending, trailer)

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Read a head; raises ``EOFError`` if the connection ends before."""
        start, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return int(start.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    def read_chunk(self) -> None:
        """Wait until a chunk of a stream is there."""
        self._until(b'"@')

    def _read_body(self, headers: dict[str, str], body: bytearray) -> tuple[Ending, bytes]:
        """Read into ``body``; return how it ends, and its trailer."""
        if "chunked" in headers.get("transfer-encoding", ""):
            for size in iter(lambda: int(self._until(b"\r\n").split(b";")[0], 16), 0):
                self._take(size, body)
                self._take(2, bytearray())
            return "whole", b"\n".join(iter(lambda: self._until(b"\r\n"), b""))
        if "content-length" in headers:
            self._take(int(headers["content-length"]), body)
            return "whole", b""
        while True:
            body += self._buffer
            self._buffer = self._received()
            if not self._buffer:
                return "closed", b""

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._buffer += self._more()
        before, _, self._buffer = self._buffer.partition(mark)
        return before

    def _take(self, size: int, into: bytearray) -> None:
        while size:
            part, self._buffer = self._buffer[:size], self._buffer[size:]
            into += part
            size -= len(part)
            if size and not self._buffer:
                self._buffer = self._more()

    def _more(self) -> bytes:
        data = self._received()
        if not data:
            raise EOFError
        return data

    def _received(self) -> bytes:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.socket.settimeout(left_s)
        return self.socket.recv(1 << 16)


def pieces(data: bytes, count: int) -> Iterator[bytes]:
    """Yield ``data`` in so many parts."""
    size = -(-len(data) // count)
    return (data[at : at + size] for at in range(0, len(data), size))
