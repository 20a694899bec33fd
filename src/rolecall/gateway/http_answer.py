"""An HTTP/1.1 answer, read from bytes that come in pieces of any size. No I/O."""

from __future__ import annotations

import httptools

MAX_HEAD_BYTES = 2**16
"""Of all heads before the body, those with status 1xx included; of what follows the body as well."""
_TOO_LONG = f"its head has more than {MAX_HEAD_BYTES} bytes"


class Malformed(Exception):
    """What came is no HTTP, or ended too early; the message quotes nothing of it."""


class HttpAnswer:
    """One answer. However its bytes are split, status, headers and body are the same.

    ``headers`` have names in small letters; those of one name are joined by commas. ``waiting`` is the number of bytes
    of the body that nobody took yet. After the end of the answer ``is_clean`` says that nothing followed it, and
    ``keeps_alive`` that another may.
    """

    __slots__ = (
        "_fed",
        "_has_body",
        "_is_open_ended",
        "_parser",
        "_parts",
        "has_head",
        "headers",
        "is_clean",
        "is_complete",
        "keeps_alive",
        "status",
        "waiting",
    )

    def __init__(self, *, has_body: bool = True) -> None:
        """Begin; ``has_body`` is False for the answer to HEAD."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.has_head = self.is_complete = self.keeps_alive = False
        self.is_clean = True
        self.waiting = 0
        self._has_body = has_body
        self._is_open_ended = False
        self._parts: list[bytes] = []
        self._fed = 0  # bytes since the last one that was of a body
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    # -- for its reader

    def feed(self, data: bytes) -> None:
        """Take in the next bytes; raises ``Malformed``."""
        parser = self._parser
        if parser is None:
            self.is_clean = False
            return
        try:
            rest = data if self.has_head else self._feed_head(parser, data)
            if rest:
                self._fed += len(rest)
                parser.feed_data(rest)
                if self._fed >= MAX_HEAD_BYTES and not self.is_complete:
                    raise Malformed(_TOO_LONG)
        except httptools.HttpParserError as error:
            if not self.is_complete:
                raise Malformed(_reason(error)) from None
            self.is_clean = False
        if self.is_complete:
            self.let_go()

    def end(self, *, is_reset: bool = False) -> None:
        """Take in the end of the connection; raises ``Malformed`` unless the answer may end here."""
        if self.has_head and self._is_open_ended and not is_reset:
            self.is_complete = True
        if not self.is_complete:
            raise Malformed("the connection was lost" if is_reset else "it closed the connection")

    def take(self) -> bytes:
        """Return what is waiting of the body."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.waiting = 0
        return data

    def let_go(self) -> None:
        """Take in nothing any more. Parser and answer refer to each other, and would wait for the garbage collector."""
        self._parser = None

    def _feed_head(self, parser: httptools.HttpResponseParser, data: bytes) -> bytes:
        """Feed at most what a head may have, whatever comes at once; return the rest, once the head is complete."""
        room = MAX_HEAD_BYTES - self._fed
        self._fed += len(data)
        parser.feed_data(data[:room])
        if not self.has_head:
            if self._fed >= MAX_HEAD_BYTES:
                raise Malformed(_TOO_LONG)
            return b""
        self._fed = 0
        return data[room:]

    # -- what the parser finds; an error raised here comes out of ``feed_data`` as the context of the parser's own

    def on_message_begin(self) -> None:
        """Begin an answer; another one after the last was not asked for."""
        if self.is_complete:
            self.is_clean = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header; those that follow a chunked body are dropped."""
        if not self.has_head:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        """Take in the end of a head; one with status 1xx announces another."""
        if self._parser is None or self.has_head:
            return
        status = self._parser.get_status_code()
        if status < 100 or status == 101:
            raise Malformed(f"it answered with the status {status}, which nobody asked for")
        if status < 200:
            self.headers.clear()
            return
        self.status, self.has_head = status, True
        self.keeps_alive = self._parser.should_keep_alive()
        coding = self.headers.get("transfer-encoding", "").rpartition(",")[2].strip().lower()
        self._is_open_ended = coding != "chunked" and "content-length" not in self.headers
        self.is_complete = not self._has_body

    def on_body(self, part: bytes) -> None:
        """Take in a part of the body."""
        if not self.is_complete:
            self._parts.append(part)
            self.waiting += len(part)
            self._fed = 0

    def on_message_complete(self) -> None:
        """Take in the end of an answer."""
        if self.has_head:
            self.is_complete = True


def _reason(error: httptools.HttpParserError) -> str:
    if isinstance(error, httptools.HttpParserUpgrade):
        return "it changed to another protocol"
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
    return f"it does not speak HTTP ({cause})" if cause is error else str(cause)
