"""Traces of a running rolecall: headers that pass through it, and spans that a collector gets."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import CHAT, Rolecall, eventually, fake_entry, prompt
from otlp_receiver import Receiver, Span

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEPT, NOT_KEPT = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
CANARY = "canary-5521"


def ask(server: Rolecall, model: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return server.http.post(CHAT, json=prompt(model, CANARY, **body), headers=headers)


def told_engine(server: Rolecall, model: str) -> dict[str, str]:
    """Return the headers of a trace that the engine was sent with the last request."""
    headers = server.stats(model)["last_request"]["headers"]
    return {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}


def spans_of(receiver: Receiver, trace_id: str, names: int) -> list[Span]:
    """Return the spans of a trace once there are so many; that of a wait in the queue may be there or not.

    On a busy machine there is one: it takes a millisecond until a free engine is given.
    """

    def without_queue() -> list[Span]:
        return [span for span in receiver.of_trace(trace_id) if span.name != "queue"]

    found = eventually(lambda: spans if len(spans := without_queue()) >= names else None)
    assert len(found) == names
    return found


# -- passed on, whether or not rolecall takes part


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run a rolecall that sends no traces."""
    with Rolecall(tmp_path_factory.mktemp("silent"), [fake_entry("m")]) as server:
        yield server


def test_a_trace_is_passed_on_and_written_down(silent: Rolecall) -> None:
    """The engine gets the headers as they came, and the line has the trace's id."""
    answer = ask(silent, "m", {"traceparent": KEPT, "tracestate": "vendor=x"})
    assert told_engine(silent, "m") == {"traceparent": KEPT, "tracestate": "vendor=x"}
    assert silent.line_of(answer)["trace_id"] == TRACE


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}, {"tracestate": "vendor=x"}])
def test_without_a_trace_there_is_none(silent: Rolecall, headers: dict[str, str]) -> None:
    """Nothing is made up; what is no trace is dropped, and the request is answered."""
    answer = ask(silent, "m", headers)
    assert answer.status_code == 200
    assert told_engine(silent, "m") == {}
    assert "trace_id" not in silent.line_of(answer)


def test_a_state_that_cannot_be_sent_is_dropped(silent: Rolecall) -> None:
    """The request and its trace go on."""
    body = json.dumps(prompt("m")).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
    head += f"traceparent: {KEPT}\r\ncontent-length: {len(body)}\r\n"
    status, _, _ = silent.exchange(head.encode() + b"tracestate: a=\xe9\r\n\r\n" + body)
    assert status == 200
    assert told_engine(silent, "m") == {"traceparent": KEPT}


# -- spans


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Run a collector for the module."""
    with Receiver() as running:
        yield running


def environ(receiver: Receiver, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50", **more}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Rolecall]:
    """Run a rolecall that sends traces."""
    entries = [
        fake_entry("m", role_priority={"talk": 50}, capabilities=["text", "embedding"]),
        fake_entry("slow", "--load-s", "0.3"),
    ]
    settings = {"otel_enabled": True}
    folder = tmp_path_factory.mktemp("traced")
    with Rolecall(folder, entries, settings=settings, environ=environ(receiver)) as server:
        server.http.post("/v1/models/m/load")
        yield server


def test_a_request_as_spans(traced: Rolecall, receiver: Receiver) -> None:
    """A SERVER span with what HTTP was about, and a CLIENT span with what the model did, with the line's figures."""
    with traced.stream("role:talk", CANARY, fake={"first_token_delay_s": 0.1}) as answer:
        answer.read()
    line = traced.line_of(answer)
    server, client = spans_of(receiver, line["trace_id"], 2)
    assert (server.name, server.kind, server.parent_id) == (f"POST {CHAT}", "server", "")
    assert (client.name, client.kind, client.parent_id) == ("chat m", "client", server.span_id)
    assert server.resource["service.name"] == "rolecall"
    assert (
        server.attributes
        | {
            "http.route": CHAT,
            "http.response.status_code": 200,
            "gen_ai.request.model": "role:talk",
            "gen_ai.response.model": "m",
            "rolecall.role": "talk",
            "rolecall.request_id": line["request_id"],
        }
        == server.attributes
    )
    assert client.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama_cpp",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": line["prompt_tokens"],
        "gen_ai.usage.output_tokens": line["completion_tokens"],
        "gen_ai.response.time_to_first_chunk": pytest.approx((line["ttft_ms"] - line["queue_ms"]) / 1000, abs=0.001),
    }
    assert (server.end - server.start) / 1e6 == pytest.approx(line["duration_ms"], abs=0.001)
    assert server.start <= client.start <= client.end == server.end
    assert not server.is_error
    assert CANARY not in str(receiver.spans)


def test_the_engine_hears_of_its_own_span(traced: Rolecall, receiver: Receiver) -> None:
    """The trace goes on: the client's span is the parent of ours, and ours that of the engine's."""
    trace_id = TRACE.replace("4", "5")
    ask(traced, "m", {"traceparent": KEPT.replace(TRACE, trace_id), "tracestate": "vendor=x"})
    server, client = spans_of(receiver, trace_id, 2)
    assert server.parent_id == PARENT
    assert told_engine(traced, "m") == {
        "traceparent": f"00-{trace_id}-{client.span_id}-01",
        "tracestate": "vendor=x",
    }


def test_what_is_not_to_be_kept_is_not_sent(traced: Rolecall, receiver: Receiver) -> None:
    """A trace that its client does not keep has no spans of ours, and its engine is told the same."""
    trace_id = TRACE.replace("4", "6")
    answer = ask(traced, "m", {"traceparent": NOT_KEPT.replace(TRACE, trace_id)})
    assert told_engine(traced, "m")["traceparent"].startswith(f"00-{trace_id}-")
    assert told_engine(traced, "m")["traceparent"].endswith("-00")
    assert traced.line_of(answer)["trace_id"] == trace_id
    later = traced.line_of(ask(traced, "m"))["trace_id"]
    spans_of(receiver, later, 2)
    assert receiver.of_trace(trace_id) == []


def test_a_load_is_a_span_of_its_own(traced: Rolecall, receiver: Receiver) -> None:
    """Waiting for a model that has to be started is told, before the engine's answer."""
    line = traced.line_of(ask(traced, "slow"))
    found = {span.name: span for span in spans_of(receiver, line["trace_id"], 3)}
    assert found.keys() == {f"POST {CHAT}", "load slow", "chat slow"}
    load = found["load slow"]
    assert (load.end - load.start) / 1e6 == pytest.approx(line["load_ms"], abs=0.01)
    assert load.start >= found[f"POST {CHAT}"].start
    assert load.end == found["chat slow"].start


def test_failures_are_errors(traced: Rolecall, receiver: Receiver) -> None:
    """An engine's failure is one of both spans, with its code; a model that nobody has is no failure of ours."""
    broken = traced.line_of(ask(traced, "m", fake={"error_status": 500}))
    server, client = spans_of(receiver, broken["trace_id"], 2)
    assert server.is_error
    assert client.is_error
    assert client.attributes["error.type"] == broken["error"].partition(":")[0]
    (unknown,) = spans_of(receiver, traced.line_of(ask(traced, "nobody"))["trace_id"], 1)
    assert not unknown.is_error
    assert unknown.attributes["error.type"] == "model_not_found"


def test_other_endpoints_have_their_operations(traced: Rolecall, receiver: Receiver) -> None:
    """Embeddings are called so."""
    answer = traced.http.post("/v1/embeddings", json={"model": "m", "input": "x"})
    _, client = spans_of(receiver, traced.line_of(answer)["trace_id"], 2)
    assert client.attributes["gen_ai.operation.name"] == "embeddings"


def test_the_prompt_is_named(traced: Rolecall, receiver: Receiver) -> None:
    """As the conventions have it; what is not streamed says nothing of streams."""
    headers = {"x-prompt-id": "caption", "x-prompt-version": "v2"}
    _, client = spans_of(receiver, traced.line_of(ask(traced, "m", headers))["trace_id"], 2)
    assert (client.attributes["gen_ai.prompt.name"], client.attributes["gen_ai.prompt.version"]) == ("caption", "v2")
    assert "gen_ai.request.stream" not in client.attributes


def test_an_answer_that_breaks_off_has_ended_with_an_error(traced: Rolecall, receiver: Receiver) -> None:
    """The reason that it should have had is `error`, which is no reason of embeddings."""
    with traced.stream("m", CANARY, fake={"drop_after_tokens": 1}) as answer, suppress(httpx.HTTPError):
        answer.read()
    _, client = spans_of(receiver, traced.line_of(answer)["trace_id"], 2)
    assert client.attributes["gen_ai.response.finish_reasons"] == ["error"]
    answer = traced.http.post("/v1/embeddings", json={"model": "m", "input": "x", "fake": {"error_status": 500}})
    _, client = spans_of(receiver, traced.line_of(answer)["trace_id"], 2)
    assert client.is_error
    assert "gen_ai.response.finish_reasons" not in client.attributes


def test_the_last_spans_are_sent_at_the_end(tmp_path: Path, receiver: Receiver) -> None:
    """What was served right before the end is not lost; a name given to the service is taken."""
    variables = environ(receiver, OTEL_BSP_SCHEDULE_DELAY="60000", OTEL_SERVICE_NAME="mine")
    with Rolecall(tmp_path, [fake_entry("m")], settings={"otel_enabled": True}, environ=variables) as server:
        trace_id = server.line_of(ask(server, "m"))["trace_id"]
    assert {span.resource["service.name"] for span in receiver.of_trace(trace_id)} == {"mine"}


def test_prompts_are_in_spans_only_where_they_are_logged(tmp_path: Path, receiver: Receiver) -> None:
    """With `log_prompts` the CLIENT span has what was asked and answered."""
    settings = {"otel_enabled": True, "log_prompts": True}
    with Rolecall(tmp_path, [fake_entry("m")], settings=settings, environ=environ(receiver)) as server:
        server.http.post("/v1/models/m/load")
        line = server.line_of(ask(server, "m"))
        client = spans_of(receiver, line["trace_id"], 2)[-1]
    asked, answered = (json.loads(client.attributes[f"gen_ai.{way}.messages"]) for way in ("input", "output"))
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": CANARY}]}]
    assert answered == [{"role": "assistant", "parts": [{"type": "text", "content": line["response"]}]}]


def test_a_sampler_of_the_environment_is_asked(tmp_path: Path, receiver: Receiver) -> None:
    """With `always_off` no span is sent, and engines are told so."""
    variables = environ(receiver, OTEL_TRACES_SAMPLER="always_off")
    with Rolecall(tmp_path, [fake_entry("m")], settings={"otel_enabled": True}, environ=variables) as server:
        line = server.line_of(ask(server, "m"))
        assert told_engine(server, "m")["traceparent"].endswith("-00")
    assert receiver.of_trace(line["trace_id"]) == []


@pytest.mark.parametrize("status", [503, None])
def test_a_collector_that_fails_hurts_nobody(tmp_path: Path, status: int | None) -> None:
    """Requests are answered, one line on the terminal tells of it, and the server ends in time."""
    with Receiver(status or 200) as receiver:
        variables = environ(receiver, OTEL_EXPORTER_OTLP_TIMEOUT="2")
        if status is None:
            variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
        with Rolecall(tmp_path, [fake_entry("m")], settings={"otel_enabled": True}, environ=variables) as server:
            assert all(ask(server, "m").status_code == 200 for _ in range(20))
            eventually(lambda: "traces cannot be sent" in server.words())
            ask(server, "m")
            assert server.stop(within_s=8) == 0
        said = server.words()
        assert said.count("traces cannot be sent") == 1
        assert ("Connection refused" if status is None else "Service Unavailable") in said
        assert "Traceback" not in server.words()
        assert "etrying" not in server.words()


def test_a_collector_that_is_slow_loses_whole_requests_and_it_is_told(tmp_path: Path) -> None:
    """Those whose spans came and those that the terminal says are left out are all; nothing is told by halves."""
    with Receiver(delay_s=0.3) as receiver:
        variables = environ(receiver, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8", OTEL_BSP_MAX_QUEUE_SIZE="20")
        with Rolecall(tmp_path, [fake_entry("m")], settings={"otel_enabled": True}, environ=variables) as server:
            assert all(ask(server, "m").status_code == 200 for _ in range(100))
            told = re.search(r"rolecall_traces_dropped_total ([\d.]+)", server.http.get("/metrics").text)
            assert told is not None
            assert float(told[1]) > 0
            eventually(lambda: "the collector does not take them as fast" in server.words())
        kinds = Counter(span.kind for span in receiver.spans)
    lost = sum(map(int, re.findall(r"requests that are left out: (\d+)", server.words())))
    assert kinds["server"] == kinds["client"] < 100
    assert kinds["server"] + lost == 100


def test_a_wait_in_vain_is_a_span(tmp_path: Path, receiver: Receiver) -> None:
    """A request whose model does not start is told with the model's name."""
    entries = [fake_entry("bad", "--fail-start", "no")]
    with Rolecall(tmp_path, entries, settings={"otel_enabled": True}, environ=environ(receiver)) as server:
        line = server.line_of(ask(server, "bad"))
        assert (line["model"], line["wanted_model"]) == (None, "bad")
        found = spans_of(receiver, line["trace_id"], 2)
    assert {span.name for span in found} == {f"POST {CHAT}", "wait bad"}


def test_what_clients_send_is_not_on_the_terminal(traced: Rolecall) -> None:
    """A state that the recommendation forbids is dropped without a word."""
    for state in ("A=canary-state", "=,canary-state", ",".join(f"k{n}=canary-state" for n in range(40))):
        assert ask(traced, "m", {"traceparent": KEPT, "tracestate": state}).status_code == 200
        assert told_engine(traced, "m").keys() == {"traceparent"}
    assert "canary-state" not in traced.words()
    assert "WARNING" not in traced.words()


def test_two_parents_are_none(silent: Rolecall) -> None:
    """Of two headers none can be said to be right."""
    answer = silent.http.post(CHAT, json=prompt("m"), headers=[("traceparent", KEPT), ("traceparent", NOT_KEPT)])
    assert answer.status_code == 200
    assert told_engine(silent, "m") == {}


# -- what cannot work is told at the start


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: rolecall sends traces over http/protobuf",
        ),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: rolecall sends traces over otlp, not 'zipkin'"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: it is no URL such as"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:x"}, "OTEL_EXPORTER_OTLP_ENDPOINT: it is no URL such as"),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nope"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: there is no file /nope"),
        ({"OTEL_TRACES_SAMPLER": "bogus"}, "OTEL_TRACES_SAMPLER: 'bogus' is none of always_on"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG: '2' is no number from 0 to 1",
        ),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "OTEL_BSP_MAX_QUEUE_SIZE: '0' is no whole number above 0"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "-1"}, "OTEL_BSP_SCHEDULE_DELAY: '-1' is no whole number above 0"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "-1"},
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: '-1' is no number of seconds",
        ),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "abc"}, "OTEL_EXPORTER_OTLP_TIMEOUT: 'abc' is no number of seconds"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "OTEL_EXPORTER_OTLP_COMPRESSION: 'zip' is none of none, gzip"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": CANARY}, "OTEL_EXPORTER_OTLP_HEADERS: it is no list of name=value"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,c"}, "OTEL_RESOURCE_ATTRIBUTES: it is no list of name=value"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x"}, "OpenTelemetry's variables (OTEL_…) cannot be used: "),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, variables: dict[str, str], said: str) -> None:
    """A protocol or an exporter that rolecall does not have ends the start, with the way out."""
    done = Rolecall(tmp_path, settings={"otel_enabled": True}, environ=variables).run()
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stderr


def test_without_the_extra_the_way_out_is_told(tmp_path: Path) -> None:
    """Switched on without OpenTelemetry, the server says what to install, and does not start."""
    (tmp_path / "shadow" / "opentelemetry").mkdir(parents=True)
    (tmp_path / "shadow" / "opentelemetry" / "__init__.py").touch()
    shadow = {"PYTHONPATH": str(tmp_path / "shadow")}
    done = Rolecall(tmp_path / "run", settings={"otel_enabled": True}, environ=shadow).run()
    assert done.returncode != 0
    assert (
        "otel_enabled: traces need OpenTelemetry, which is not installed: pip install 'rolecall[otel]'" in done.stderr
    )


def test_attributes_of_the_resource_are_those_of_kubernetes_too(tmp_path: Path, receiver: Receiver) -> None:
    """Their names have slashes, and values are in any script, as the SDK takes them."""
    variables = environ(receiver, OTEL_RESOURCE_ATTRIBUTES="app.kubernetes.io/name=x,team=Büro,")
    with Rolecall(tmp_path, [fake_entry("m")], settings={"otel_enabled": True}, environ=variables) as server:
        trace_id = server.line_of(ask(server, "m"))["trace_id"]
    found = receiver.of_trace(trace_id)[0].resource
    assert (found["app.kubernetes.io/name"], found["team"]) == ("x", "Büro")


def test_switched_off_by_opentelemetrys_own_variable(tmp_path: Path) -> None:
    """`OTEL_SDK_DISABLED` goes before the setting."""
    off = {"OTEL_SDK_DISABLED": "true"}
    with Rolecall(tmp_path, [fake_entry("m")], settings={"otel_enabled": True}, environ=off) as server:
        assert "trace_id" not in server.line_of(ask(server, "m"))
