"""One object that shapes an answer: thoughts and errors, as its endpoint has them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from builders import entry
from rolecall.core.answer_shape import AnswerShape, reasoning_form, starts_in_thought
from rolecall.core.engine_errors import Asked
from rolecall.core.sse import Answer, StreamWatch

CHAT = Asked("/v1/chat/completions", "m")
THINKS = {"choices": [{"index": 0, "message": {"content": "<think>a</think>b"}, "finish_reason": "stop"}]}
CHUNK = {"choices": [{"index": 0, "delta": {"content": "<think>a</think>b"}, "finish_reason": None}]}
OVERFLOW = {
    "error": {"code": 400, "message": "request (30 tokens) exceeds …", "n_prompt_tokens": 30, "n_ctx": 20, "type": "x"}
}


@pytest.mark.parametrize(
    ("fields", "thinks", "form"),
    [
        ({}, False, "as_is"),
        ({}, True, "reasoning"),
        ({"capabilities": ["thinking"]}, False, "reasoning"),
        ({"capabilities": ["text"]}, False, "as_is"),
        ({"reasoning_field": "drop"}, False, "drop"),
        ({"reasoning_field": "as_is", "capabilities": ["reasoning"]}, True, "as_is"),
    ],
)
def test_who_is_shaped(fields: dict[str, Any], form: str, *, thinks: bool) -> None:
    """Answers of models that think, by the setting; an entry's own field goes before it."""
    assert reasoning_form("reasoning", entry(**fields), thinks=thinks) == form


@pytest.mark.parametrize(
    ("backend", "extra_args", "begins"),
    [
        ("llama_cpp", [], False),
        ("llama_cpp", ["--reasoning-format", "none"], True),
        ("llama_cpp", ["--reasoning-format", "deepseek"], False),
        ("vllm", [], True),
        ("vllm", ["--reasoning_parser=qwen3"], False),
        ("openai", [], True),
    ],
)
def test_who_leaves_a_thought_that_the_template_opened(backend: str, extra_args: list[str], *, begins: bool) -> None:
    """Engines that tell thoughts by themselves never begin an answer's content within one."""
    model = entry(backend=backend, backend_config={"extra_args": extra_args})
    assert starts_in_thought(model, template_opens=True) is begins
    assert not starts_in_thought(model, template_opens=False)


def test_chat_is_shaped() -> None:
    """Whole answers and chunks of a chat get the chosen form."""
    shape = AnswerShape(CHAT, "reasoning_content")
    message = orjson.loads(shape.whole_bytes(b"as it came", THINKS))["choices"][0]["message"]
    assert message == {"content": "b", "reasoning_content": "a"}
    assert shape.rewrite(CHUNK)["choices"][0]["delta"] == {"content": "b", "reasoning_content": "a"}
    assert shape.flush() is None


@pytest.mark.parametrize(
    ("asked", "form"), [(CHAT, "as_is"), (Asked("/v1/completions"), "drop"), (Asked("/v1/messages"), "drop")]
)
def test_others_pass_byte_for_byte(asked: Asked, form: Any) -> None:
    """With ``as_is``, and at other endpoints, everything is what came."""
    shape = AnswerShape(asked, form)
    assert shape.rewrite(CHUNK) is CHUNK
    assert shape.flush() is None
    assert shape.whole(THINKS) is THINKS
    assert shape.whole_bytes(b"as it came", THINKS) == b"as it came"


def test_what_is_no_object_passes() -> None:
    """An answer that is no JSON object is nobody's thought."""
    assert AnswerShape(CHAT, "drop").whole_bytes(b"[1]", [1]) == b"[1]"


@pytest.mark.parametrize(
    ("endpoint", "start"),
    [
        ("/v1/chat/completions", b'data: {"error":{"message":"This model\'s maximum context length is 20 tokens.'),
        (
            "/v1/messages",
            b'event: error\ndata: {"type":"error","error":{"type":"invalid_request_error","message":"prompt is',
        ),
        ("/v1/responses", b'event: error\ndata: {"type":"error","code":"context_length_exceeded"'),
    ],
)
def test_errors_within_streams_get_the_endpoints_form(endpoint: str, start: bytes) -> None:
    """An engine's error within a stream reaches the client in the form that it knows, and is read for the log."""
    watch = StreamWatch(Answer(), hide_usage=True, rewriter=AnswerShape(Asked(endpoint, "m")))
    assert watch.feed(b"data: " + orjson.dumps(OVERFLOW) + b"\n\n").startswith(start)
    assert "maximum context length is 20 tokens" in (watch.answer.error or "")
    assert watch.answer.is_complete


def test_a_stream_from_tags_to_fields() -> None:
    """Through the watch, events that need no change pass byte for byte, and the log's text is without the thought."""
    watch = StreamWatch(Answer(keeps_text=True), hide_usage=True, rewriter=AnswerShape(CHAT, "reasoning_content"))
    plain = b'data: {"choices":[{"index":0, "delta":{"content":"c"}}]}\n\n'
    passed = watch.feed(b"data: " + orjson.dumps(CHUNK) + b"\n\n" + plain + b"data: [DONE]\n\n")
    assert passed.endswith(plain + b"data: [DONE]\n\n")
    assert watch.answer.text == ["b", "c"]
    assert watch.answer.is_over


def test_events_of_llama_cpps_responses_get_what_they_lack() -> None:
    """OpenAI's clients put a stream together by these fields; other engines' events have them."""
    came = {"type": "response.output_text.delta", "item_id": "m", "delta": "a"}
    shape = AnswerShape(Asked("/v1/responses", "m"), backend="llama_cpp")
    assert shape.rewrite(came)["sequence_number"] == 0
    assert shape.rewrite(came)["sequence_number"] == 1
    for other in (AnswerShape(Asked("/v1/responses"), backend="vllm"), AnswerShape(Asked(), backend="llama_cpp")):
        assert other.rewrite(came) is came
