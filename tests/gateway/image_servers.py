"""Servers of images on loopback that do whatever a test says, and certificates for one of them."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from harness import read_request

CERTIFICATES = Path(__file__).parent / "certificates"
Answer = Callable[[socket.socket, bytes], None]


def png(width: int = 4, height: int = 3) -> bytes:
    """Return a picture."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


def reply(body: bytes = b"", status: str = "200 OK", *headers: str, length: int | None = None) -> Answer:
    """Return an answer with this body, and its length unless it is given as another one."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]

    def answer(connection: socket.socket, _request: bytes) -> None:
        connection.sendall("\r\n".join(lines).encode() + body)

    return answer


def redirect(location: str) -> Answer:
    """Return an answer that says that it is elsewhere."""
    return reply(b"secret", "302 Found", f"Location: {location}")


class ImageServer:
    """Answers each connection as it is told; counts connections, and keeps requests and how they ended."""

    def __init__(self, answer: Answer, host: str, tls: ssl.SSLContext | None) -> None:
        self.answer = answer
        self.connections = 0
        self.requests: list[bytes] = []
        self.left = threading.Event()
        self._tls = tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        """The address of an image, by a name that only ``FakeResolver`` knows."""
        return f"http{'s' if self._tls else ''}://cat.example:{self.port}/cat.png"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            request = read_request(connection)
            self.requests.append(request)
            self.answer(connection, request)
        self.left.set()

    def close(self) -> None:
        """Listen no more; a thread that waits in ``accept`` would keep the socket open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def image_server(answer: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[ImageServer]:
    """Run an ``ImageServer`` for a while."""
    server = ImageServer(answer, host, tls)
    try:
        yield server
    finally:
        server.close()


def server_tls() -> ssl.SSLContext:
    """Return what a server needs that is cat.example."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "cat.example.pem")
    return context


def client_tls() -> ssl.SSLContext:
    """Return what a client needs that trusts the authority of the tests."""
    return ssl.create_default_context(cafile=str(CERTIFICATES / "authority.pem"))
