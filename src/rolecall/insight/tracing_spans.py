"""A request as spans, by OpenTelemetry's SDK. Imported only where traces are switched on.

The semantic conventions are those for HTTP servers and for generative AI as of 2026
(https://github.com/open-telemetry/semantic-conventions-genai): a SERVER span for the request, and below it `queue`,
`load`, and a CLIENT span for the engine's answer. Their times are those of the request's line, which does not say when
the wait began and which part of it came first: the queue is shown from the arrival on, the load after it, and the
engine's answer after both.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from rolecall import __version__
from rolecall.core import endpoints
from rolecall.core.trace_context import TraceContext
from rolecall.insight.tracing import Begun, Losses
from rolecall.insight.tracing_content import Content
from rolecall.insight.tracing_environ import Sending
from rolecall.insight.tracing_sending import Sender

_NS = 10**6
"""Nanoseconds of a millisecond."""

_OPERATIONS = {
    endpoints.CHAT: "chat",
    endpoints.RESPONSES: "chat",
    endpoints.MESSAGES: "chat",
    endpoints.COMPLETIONS: "text_completion",
    endpoints.EMBEDDINGS: "embeddings",
}
"""What the conventions call an endpoint; others go by the end of their path."""

Attributes = dict[str, Any]


class _Ids(IdGenerator):
    """Gives the ids that were given out when the request began, and new ones for what lies below."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self.trace_id = 0
        self.next_span_id: int | None = None

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        given, self.next_span_id = self.next_span_id, None
        return self._random.generate_span_id() if given is None else given


class Spans:
    """Makes spans and sends them; ``exporter`` is the one of the environment's ``OTEL_*`` variables unless given.

    All but ``is_sampled`` and ``shutdown`` is for one thread.
    """

    def __init__(self, exporter: SpanExporter | None = None, sending: Sending | None = None) -> None:
        self.losses = Losses()
        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):  # OTEL_SERVICE_NAME is silent
            resource = resource.merge(Resource({SERVICE_NAME: "rolecall"}))
        self._sampler = TracerProvider(resource=resource, shutdown_on_exit=False).sampler  # that of the environment
        self._ids = _Ids()
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=self._ids)
        self.sender = Sender(exporter or OTLPSpanExporter(), self.losses, sending or Sending())
        self._provider.add_span_processor(self.sender)
        self._tracer = self._provider.get_tracer("rolecall", __version__)

    def is_sampled(self, begun: Begun, endpoint: str) -> bool:
        """Whether a request is to be told of: as whoever sent it decided, or as the environment's sampler says."""
        result = self._sampler.should_sample(
            _context(begun.came),
            begun.trace_id,
            f"POST {endpoint}",
            SpanKind.SERVER,
            {"http.request.method": "POST", "url.path": endpoint},
        )
        return result.decision is Decision.RECORD_AND_SAMPLE

    def tell(self, line: Mapping[str, Any], begun: Begun, content: Content | None = None) -> None:
        """Make the spans of a request from its line."""
        start = round(datetime.fromisoformat(line["ts"].replace("Z", "+00:00")).timestamp() * 1000) * _NS
        end = start + round((line["duration_ms"] or 0) * _NS)
        self._ids.trace_id, self._ids.next_span_id = begun.trace_id, begun.server_id
        server = self._tracer.start_span(
            f"POST {line['endpoint']}", _context(begun.came), SpanKind.SERVER, _of_server(line), start_time=start
        )
        if (line["status"] or 500) >= 500 or (line["error"] and line["status"] == 200):
            server.set_status(Status(StatusCode.ERROR))
        below = set_span_in_context(server)
        queued = min(end, start + round((line["queue_ms"] or 0) * _NS))
        loaded = min(end, queued + round((line["load_ms"] or 0) * _NS))
        if queued - start >= _NS:  # else nobody was in its way
            self._tracer.start_span("queue", below, start_time=start).end(queued)
        if loaded > queued:
            self._tracer.start_span(f"load {line['model']}", below, start_time=queued).end(loaded)
        if line["model"] is None and "wanted_model" in line and _gave_up(line) and end - start >= _NS:
            self._tracer.start_span(f"wait {line['wanted_model']}", below, start_time=start).end(end)
        if line["model"] is not None:
            self._tell_engine(line, begun, below, (loaded, end), content)
        server.end(end)
        self.sender.send_if_due()

    def _tell_engine(
        self, line: Mapping[str, Any], begun: Begun, below: Context, times: tuple[int, int], content: Content | None
    ) -> None:
        start, end = times
        self._ids.next_span_id = begun.client_id
        attributes = _of_client(line)
        if content is not None:
            attributes |= {"gen_ai.input.messages": content.input, "gen_ai.output.messages": content.output}
        if line["ttft_ms"] is not None:
            first_s = line["ttft_ms"] / 1000 - (line["queue_ms"] or 0) / 1000 - (line["load_ms"] or 0) / 1000
            attributes["gen_ai.response.time_to_first_chunk"] = max(0.0, first_s)
        name = f"{_operation(line)} {line['model']}"
        span = self._tracer.start_span(name, below, SpanKind.CLIENT, attributes, start_time=start)
        if line["error"]:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def shutdown(self) -> None:
        """Send nothing more."""
        self._provider.shutdown()


def _context(came: TraceContext | None) -> Context:
    """Return what a request came with as OpenTelemetry has it."""
    if came is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if came.is_sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([came.state]) if came.state else None
    parent = SpanContext(
        int(came.trace_id, 16), int(came.span_id, 16), is_remote=True, trace_flags=flags, trace_state=state
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _gave_up(line: Mapping[str, Any]) -> bool:
    """Whether a request ended while it waited: its client left, or there was no model for it."""
    return (line["status"] or 500) >= 499


def _operation(line: Mapping[str, Any]) -> str:
    endpoint = line["endpoint"] or ""
    return _OPERATIONS.get(endpoint, endpoint.rpartition("/")[2])


def _of_server(line: Mapping[str, Any]) -> Attributes:
    client, _, agent = (line["client"] or "").partition(" ")
    return _known(
        {
            "http.request.method": "POST",
            "http.route": line["endpoint"],
            "url.path": line["endpoint"],
            "url.scheme": "http",
            "http.response.status_code": line["status"],
            "http.request.body.size": line["bytes_in"],
            "http.response.body.size": line["bytes_out"],
            "client.address": client,
            "user_agent.original": agent,
            "error.type": _error_type(line),
            "gen_ai.request.model": line["requested_model"],
            "gen_ai.response.model": line["model"],
            "rolecall.request_id": line["request_id"],
            "rolecall.role": line["role"],
            "rolecall.role_selector": line["role_selector"],
            "rolecall.key": line["key"],
            "rolecall.profile": line["profile"],
        }
    )


def _of_client(line: Mapping[str, Any]) -> Attributes:
    return _known(
        {
            "gen_ai.operation.name": _operation(line),
            "gen_ai.provider.name": line["backend"],
            "gen_ai.request.model": line["model"],
            "gen_ai.request.stream": line["stream"] or None,
            "gen_ai.prompt.name": line["prompt_id"],
            "gen_ai.prompt.version": line["prompt_version"] if line["prompt_id"] else None,
            "gen_ai.response.model": line["model"],
            "gen_ai.response.finish_reasons": _finish_reasons(line),
            "gen_ai.usage.input_tokens": line["prompt_tokens"],
            "gen_ai.usage.output_tokens": line["completion_tokens"],
            "gen_ai.usage.reasoning.output_tokens": line["reasoning_tokens"],
            "error.type": _error_type(line),
        }
    )


def _finish_reasons(line: Mapping[str, Any]) -> list[str] | None:
    """Return why the model stopped; an answer that was to have a reason, and broke off before it, has `error`."""
    if line["finish_reason"]:
        return [line["finish_reason"]]
    return ["error"] if line["error"] and _operation(line) in {"chat", "text_completion"} else None


def _error_type(line: Mapping[str, Any]) -> str | None:
    return line["error"].partition(":")[0] if line["error"] else None


def _known(attributes: Attributes) -> Attributes:
    """Return what is known; texts without halves of characters, which protobuf does not take."""
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None and value != ""
    }
