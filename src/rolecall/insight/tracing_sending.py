"""Spans on their way to the collector: kept until there are enough of them, and sent by the thread that makes them.

So a slow collector makes whole requests wait, in the one queue that counts what it drops.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from rolecall.insight.tracing import Losses
from rolecall.insight.tracing_environ import Sending

log = logging.getLogger(__name__)

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_QUIET = ("opentelemetry.trace.span", "opentelemetry.attributes")
"""Warn once a request, of what clients send."""

_MAX_REASON = 300


class Reason(logging.Filter):
    """Keeps what the exporter says first of a batch, which is the cause, instead of having it said again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(_EXPORTER).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a record's words, and say nothing."""
        if not self.text:
            is_retry = record.args and str(record.msg).startswith("Transient error")
            words = str(record.args[0]) if is_retry and isinstance(record.args, tuple) else record.getMessage()
            self.text = words.replace("\n", " ")[:_MAX_REASON]
        return False

    def close(self) -> None:
        """Let the exporter speak for itself again."""
        logging.getLogger(_EXPORTER).removeFilter(self)


class Sender(SpanProcessor):
    """Sends spans in batches; what cannot be sent is lost, and ``losses`` tells of it."""

    def __init__(self, exporter: SpanExporter, losses: Losses, sending: Sending) -> None:
        self._exporter = exporter
        self._losses = losses
        self._sending = sending
        self._reason = Reason()
        self._spans: list[ReadableSpan] = []
        self._since = 0.0
        self.works = True

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span."""
        if not self._spans:
            self._since = time.monotonic()
        self._spans.append(span)

    def due_in_s(self) -> float | None:
        """Return when what is kept is to be sent; None if nothing is."""
        if not self._spans:
            return None
        return max(0.0, self._since + self._sending.delay_s - time.monotonic())

    def send_if_due(self) -> None:
        """Send what is kept, if it is enough or has waited long enough."""
        if self._spans and (len(self._spans) >= self._sending.batch or self.due_in_s() == 0):
            self.send()

    def send(self) -> None:
        """Send what is kept."""
        if not self._spans:
            return
        self._reason.text = ""
        self.works = self._is_sent(self._spans)
        count, self._spans = self.kept(), []
        if not self.works:
            self._losses.add(
                count,
                "traces cannot be sent to the collector (OTEL_EXPORTER_OTLP_ENDPOINT); requests go on without: "
                + (self._reason.text or "no reason is known"),
            )

    def kept(self) -> int:
        """Return of how many requests spans are kept, those included that are being sent."""
        return sum(span.kind is SpanKind.SERVER for span in self._spans)

    def _is_sent(self, spans: Sequence[ReadableSpan]) -> bool:
        try:
            return self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - whatever it is, no request is to suffer from it
            self._reason.text = f"{type(error).__name__}: {error}"[:_MAX_REASON]
            return False

    def shutdown(self) -> None:
        """Send nothing more; a batch that is about to be sent again is given up."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002 - the interface's
        """Send what is kept."""
        self.send()
        return self.works

    def close(self) -> None:
        """Let go of the exporter's words."""
        self._reason.close()
