"""A request's line as spans: their times, and what becomes of a collector's failures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from insight.lines import line
from rolecall.insight.tracing import Begun, Losses, Traces
from rolecall.insight.tracing_content import MAX_TEXT, MOST_MESSAGES, content_of
from rolecall.insight.tracing_environ import Sending
from rolecall.insight.tracing_spans import Spans

NS = 10**6
START = 1_769_860_800_123 * NS
TS = "2026-01-31T12:00:00.123Z"
BEGUN = Begun(None, 1, 2, 3)


@pytest.fixture
def told() -> Iterator[Any]:
    """Return a function that tells of a line and returns its spans by name."""
    exporter = InMemorySpanExporter()
    spans = Spans(exporter)

    def tell(**fields: Any) -> dict[str, ReadableSpan]:
        exporter.clear()
        spans.tell(line(ts=TS, **fields), BEGUN)
        spans._provider.force_flush()
        return {span.name: span for span in exporter.get_finished_spans()}

    yield tell
    spans.shutdown()


def times(span: ReadableSpan) -> tuple[float, float]:
    """Return begin and end, in ms after the arrival."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.start_time - START) / NS, (span.end_time - START) / NS


def test_queue_load_and_answer_follow_each_other(told: Any) -> None:
    """Each begins where the one before ends, all within the request."""
    found = told(queue_ms=20.0, load_ms=400.0, ttft_ms=470.0, duration_ms=900.0)
    assert {name: times(span) for name, span in found.items()} == {
        "POST /v1/chat/completions": (0, 900),
        "queue": (0, 20),
        "load a": (20, 420),
        "chat a": (420, 900),
    }
    assert found["chat a"].attributes["gen_ai.response.time_to_first_chunk"] == pytest.approx(0.05)


def test_a_wait_of_no_account_is_no_span(told: Any) -> None:
    """Nor is a load that was not waited for."""
    assert told(queue_ms=0.4, load_ms=0.0, duration_ms=900.0).keys() == {"POST /v1/chat/completions", "chat a"}


def test_times_that_contradict_each_other_stay_within_the_request(told: Any) -> None:
    """A wait that is longer than the request ends with it."""
    found = told(queue_ms=500.0, load_ms=500.0, duration_ms=100.0)
    assert all(0 <= begin <= end <= 100 for begin, end in map(times, found.values()))


@pytest.mark.parametrize(
    "fields", [{"status": None, "duration_ms": None, "model": None}, {"requested_model": "\ud800"}]
)
def test_any_line_can_be_told(told: Any, fields: dict[str, Any]) -> None:
    """What is not known, and half a character, are no reason to be silent."""
    assert "POST /v1/chat/completions" in told(**fields)


class Failing(SpanExporter):
    """Does as it is told: a result, or an error."""

    outcome: SpanExportResult | Exception = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_an_outage_is_told_twice(caplog: pytest.LogCaptureFixture) -> None:
    """Once when it begins, with the reason, and once when it ends, with what was lost; raising is failing too."""
    inner = Failing()
    spans = Spans(inner, Sending(batch=1))
    for outcome in (SpanExportResult.SUCCESS, OSError("no"), SpanExportResult.FAILURE, SpanExportResult.SUCCESS):
        inner.outcome = outcome
        spans.tell(line(ts=TS), BEGUN)
    spans.losses.over()
    spans.losses.over()
    assert [record.message for record in caplog.records] == [
        "traces cannot be sent to the collector (OTEL_EXPORTER_OTLP_ENDPOINT); requests go on without: OSError: no",
        "traces are sent again; requests that are left out: 2",
    ]
    assert spans.losses.total == 2


@pytest.mark.parametrize(("sending", "due"), [(Sending(batch=4), 2), (Sending(delay_s=0), 3)])
def test_spans_are_sent_when_they_are_enough_or_old(sending: Sending, due: int) -> None:
    """Of requests with two spans each: in batches of four, or each at once where nothing is to wait."""
    exporter = InMemorySpanExporter()
    spans = Spans(exporter, sending)
    for _ in range(3):
        spans.tell(line(ts=TS), BEGUN)
    assert len(exporter.get_finished_spans()) == 2 * due
    spans.sender.send()
    assert len(exporter.get_finished_spans()) == 6
    assert spans.sender.due_in_s() is None


def test_prompts_become_messages() -> None:
    """Texts in the form of the conventions, cut; pictures by their kind alone; no more than so many messages."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "x" * (MAX_TEXT + 1)}, picture]}
    content = content_of({"prompt": [asked] * (MOST_MESSAGES + 1), "response": "y", "finish_reason": "length"})
    messages = json.loads(content.input)
    assert len(messages) == MOST_MESSAGES
    assert messages[0] == {
        "role": "user",
        "parts": [{"type": "text", "content": "x" * MAX_TEXT}, {"type": "image_url"}],
    }
    assert json.loads(content.output) == [{"role": "assistant", "parts": [{"type": "text", "content": "y"}]}]


CALL = {"type": "tool_call", "id": "c1", "name": "weather", "arguments": '{"in": "Paris"}'}
RESULT = {"type": "tool_call_response", "id": "c1", "response": "rainy"}


@pytest.mark.parametrize(
    "prompt",
    [
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Paris"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "rainy"},
        ],
        [
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"in": "Paris"}}],
            },
            {"role": "tool", "content": [{"type": "text", "text": "rainy"}], "tool_call_id": "c1"},
        ],
        [
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"in": "Paris"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "rainy"},
        ],
    ],
    ids=["chat completions", "messages", "responses"],
)
def test_calls_of_tools_and_their_results_are_parts(prompt: list[Any]) -> None:
    """However the endpoint has them in its requests."""
    assert json.loads(content_of({"prompt": prompt}).input) == [
        {"role": "assistant", "parts": [CALL]},
        {"role": "tool", "parts": [RESULT]},
    ]


def test_a_result_among_the_parts_of_a_user() -> None:
    """As /v1/messages has it: it stays the user's message."""
    part = {
        "type": "tool_result",
        "tool_use_id": "c1",
        "content": [{"type": "text", "text": "rainy"}, {"type": "image"}],
    }
    assert json.loads(content_of({"prompt": [{"role": "user", "content": [part]}]}).input) == [
        {"role": "user", "parts": [RESULT]}
    ]


@pytest.mark.parametrize(
    "prompt",
    ["text", ["one", "two"], None, [{"role": 1}], [7], "\ud800", [{"tool_calls": 7}], [{"tool_calls": [7, {}]}]],
)
def test_any_prompt_becomes_something(prompt: Any) -> None:
    """Whatever a client sent as its prompt, it is JSON that protobuf takes."""
    content = content_of({"prompt": prompt, "response": None})
    assert isinstance(json.loads(content.input), list)
    assert content.output == "[]"
    content.input.encode()


class Slow:
    """Stands for spans; it blocks until it may go on."""

    works = True

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.losses = Losses()
        self.sender = self

    def due_in_s(self) -> float | None:
        return None

    def kept(self) -> int:
        return 0

    def send(self) -> None:
        """Nothing is kept."""

    send_if_due = close = shutdown = send

    def is_sampled(self, begun: Begun, endpoint: str) -> bool:
        return endpoint != "/not-kept"

    def tell(self, line: dict[str, Any], begun: Begun, content: Any) -> None:
        self.seen.append(line["request_id"])


async def test_what_is_not_kept_costs_nothing_later() -> None:
    """A request that is not sampled is not remembered; one that is is told of once, and not kept either."""
    slow = Slow()
    traces = Traces(slow)  # type: ignore[arg-type]
    assert not traces.begin("r1", "/not-kept", None).is_sampled
    assert traces.begin("r2", "/kept", None).is_sampled
    traces.hear(line(request_id="r1"))
    traces.hear(line(request_id="r2"))
    traces.hear(line(request_id="r2"))
    assert traces._begun == {}
    await traces.aclose()
    assert slow.seen == ["r2"]


async def test_no_more_wait_than_allowed() -> None:
    """The oldest go, and are counted."""
    slow = Slow()
    traces = Traces(slow, most_waiting=10)  # type: ignore[arg-type]
    for number in range(50):
        traces.begin(str(number), "/kept", None)
        traces.hear(line(request_id=str(number)))
    await traces.aclose()
    assert slow.seen[-10:] == [str(number) for number in range(40, 50)]
    assert len(slow.seen) < 50
    assert len(slow.seen) + traces.lost() == 50
