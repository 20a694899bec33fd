"""A collector on loopback that keeps the spans it is sent over OTLP, http/protobuf."""

from __future__ import annotations

import gzip
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from typing_extensions import Self

KINDS = {0: "unspecified", 1: "internal", 2: "server", 3: "client"}


@dataclass
class Span:
    """A span as it came; ids are hexadecimal, times in ns."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    is_error: bool
    attributes: dict[str, Any]
    resource: dict[str, Any] = field(repr=False)


class Receiver:
    """Listens while it is entered; ``status`` is what it answers, after ``delay_s``."""

    def __init__(self, status: int = 200, *, delay_s: float = 0) -> None:
        self.status = status
        self.delay_s = delay_s
        self.spans: list[Span] = []
        self.paths: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                receiver.paths.append(self.path)
                time.sleep(receiver.delay_s)
                if receiver.status == 200:
                    receiver.spans += _spans(body)
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of_trace(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace, in the order of their begin, the outer ones first.

        Of a request that waited for nothing, those of server and client may begin and end together.
        """
        found = (span for span in self.spans if span.trace_id == trace_id)
        return sorted(found, key=lambda span: (span.start, -span.end, span.kind != "server"))


def _spans(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    return [
        Span(
            span.name,
            KINDS[span.kind],
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            span.status.code == 2,
            _attributes(span.attributes),
            _attributes(of_resource.resource.attributes),
        )
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(MessageToDict(pair.value)) for pair in pairs}


def _value(told: dict[str, Any]) -> Any:
    ((kind, value),) = told.items()
    if kind == "intValue":  # JSON has 64 bits as text
        return int(value)
    return [_value(each) for each in value["values"]] if kind == "arrayValue" else value
