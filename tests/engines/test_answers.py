"""What the real llama.cpp answers, read and shaped: errors, thoughts, the streams of Responses and Messages."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rolecall.core.answer import Answer
from rolecall.core.answer_shape import AnswerShape
from rolecall.core.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RERANK, RESPONSES
from rolecall.core.engine_errors import Asked, read_error
from rolecall.core.instructions import fit_instructions
from rolecall.core.sse import StreamWatch
from rolecall.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineBusy,
    ModelLoading,
    NotImplementedByEngine,
    RolecallError,
    UnsupportedInput,
    UpstreamRefused,
)

pytest.importorskip("xllamacpp", reason="the embedded engine is an extra: rolecall[llama]")

HELLO = [{"role": "user", "content": "hi"}]
LOOP = [{"role": "user", "content": "LOOP"}]
STRICT = """{%- for message in messages -%}
{%- if message['role'] == 'system' and not loop.first -%}
{{ raise_exception('System message must be at the beginning.') }}{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<|say|>' }}{%- endif -%}
"""
"""A second system message is refused, as by Qwen 3.5's template."""


def said(answer: httpx.Response, endpoint: str = CHAT) -> RolecallError:
    """The error that a client is told."""
    return read_error(answer.status_code, answer.json(), Asked(endpoint, "m"))


def watched(engine: Any, endpoint: str, body: dict[str, Any], form: Any = "as_is") -> tuple[Answer, bytes, list[bool]]:
    """Stream an answer through a watch: what it says, what a client gets, and whether it was over, chunk by chunk."""
    watch = StreamWatch(Answer(keeps_text=True), hide_usage=True, rewriter=AnswerShape(Asked(endpoint, "m"), form))
    passed, over = b"", []
    with httpx.stream("POST", f"{engine.url}{endpoint}", json={**body, "stream": True}, timeout=20) as answer:
        for chunk in answer.iter_raw():
            passed += watch.feed(chunk)
            over.append(watch.answer.is_over)
    return watch.answer, passed + watch.close(), over


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 1000}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 1000}], "stream": True}),
        (COMPLETIONS, {"prompt": "x" * 1000}),
        (RESPONSES, {"input": "x" * 1000, "stream": True}),
        (MESSAGES, {"messages": [{"role": "user", "content": "x" * 1000}], "max_tokens": 5, "stream": True}),
    ],
)
def test_too_long_a_prompt(small_engine: Any, endpoint: str, body: dict[str, Any]) -> None:
    """Streamed or not, it is refused before the answer begins, with the numbers."""
    error = said(small_engine.post(endpoint, body), endpoint)
    assert isinstance(error, ContextLengthExceeded)
    assert error.context_tokens == 512
    assert error.needed_tokens is not None
    assert 1000 <= error.needed_tokens <= 1040


def test_too_long_a_text_to_embed(start_engine: Callable[..., Any], demo_models: Path) -> None:
    """A text that fits into no batch is a 500 of llama.cpp that no retry mends, and the client's 400 with numbers."""
    model = str(demo_models / "demo-chat.gguf")
    engine = start_engine("--model", model, "--embeddings", "--batch-size", "64", "--ubatch-size", "64")
    error = said(engine.post(EMBEDDINGS, {"input": "x" * 500}), EMBEDDINGS)
    assert isinstance(error, ContextLengthExceeded)
    assert (error.needed_tokens, error.context_tokens) == (501, 64)


def test_requests_that_together_fill_the_context(small_engine: Any) -> None:
    """Requests that share a context break each other off once it is full: each fits alone, so it may come again."""
    body = {"messages": LOOP, "max_tokens": 400}
    errors: list[RolecallError] = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):  # they have to meet, and each takes a few hundredths of a second
            answers = list(pool.map(lambda _: small_engine.post(CHAT, body), range(4)))
            errors = [said(answer) for answer in answers if answer.status_code != 200]
            if errors:
                break
    assert errors
    assert {type(error) for error in errors} == {EngineBusy}
    assert small_engine.post(CHAT, body).status_code == 200


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        (EMBEDDINGS, {"input": "x"}, NotImplementedByEngine),
        (RERANK, {"query": "x", "documents": ["a"]}, NotImplementedByEngine),
        ("/v1/nothing", {}, NotImplementedByEngine),
        (CHAT, {"messages": HELLO, "grammar": "root ::= ("}, BadRequest),
        (CHAT, {"messages": HELLO, "tools": "x"}, BadRequest),
        (CHAT, {"messages": HELLO, "temperature": "hot"}, BadRequest),
        (CHAT, {"messages": HELLO, "response_format": {"type": "xx"}}, BadRequest),
        (
            CHAT,
            {
                "messages": HELLO,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                },
            },
            BadRequest,
        ),
    ],
)
def test_what_the_request_is_to_blame_for(
    small_engine: Any, endpoint: str, body: dict[str, Any], kind: type[Any]
) -> None:
    """It is told once, for good: 400, or 501 for an endpoint that the engine was not started for."""
    assert type(said(small_engine.post(endpoint, body), endpoint)) is kind


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_input_that_the_model_cannot_take(small_engine: Any, picture: dict[str, Any], kind: str) -> None:
    """A picture without a projector is a 500 of llama.cpp, and the client's 400."""
    sound = {"type": "input_audio", "input_audio": {"format": "wav", "data": "AAAA"}}
    part = picture if kind == "image" else sound
    error = said(small_engine.post(CHAT, {"messages": [{"role": "user", "content": [part]}]}))
    assert type(error) is UnsupportedInput
    assert f"{kind} input is not supported" in error.message


def test_a_key_that_is_not_ours(start_engine: Callable[..., Any], demo_models: Path) -> None:
    """An engine that does not know our key: 502, for the client has done nothing wrong."""
    engine = start_engine("--model", str(demo_models / "demo-chat.gguf"), "--api-key", "secret")
    error = said(engine.post(CHAT, {"messages": HELLO}))
    assert type(error) is UpstreamRefused
    assert error.status == 502


def test_a_model_that_is_still_loading(start_engine: Callable[..., Any], tmp_path: Path) -> None:
    """503 with a time to come back."""
    os.mkfifo(tmp_path / "hangs.gguf")
    engine = start_engine("--model", str(tmp_path / "hangs.gguf"), ready=False)
    engine.wait_for(503)
    error = said(engine.post(CHAT, {"messages": HELLO}))
    assert type(error) is ModelLoading
    assert error.headers()["retry-after"] == "5"


@pytest.mark.parametrize(
    ("endpoint", "body", "reason"),
    [
        (CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}, "stop"),
        (RESPONSES, {"input": "hi"}, "completed"),
        (MESSAGES, {"messages": HELLO, "max_tokens": 100}, "end_turn"),
    ],
)
def test_streams_are_read_to_their_end(chat_engine: Any, endpoint: str, body: dict[str, Any], reason: str) -> None:
    """Tokens, the reason for the end, the text and the last mark are known for each kind of stream, and all agree."""
    answer, _, over = watched(chat_engine, endpoint, body)
    whole = chat_engine.chat("hi")
    assert "".join(answer.text) == whole["choices"][0]["message"]["content"]
    assert answer.prompt_tokens == whole["usage"]["prompt_tokens"]
    assert answer.completion_tokens == whole["usage"]["completion_tokens"]
    assert answer.finish_reason == reason
    assert answer.is_complete
    assert over[-1]
    assert not over[0] or len(over) == 1


@pytest.mark.parametrize(("endpoint", "body"), [(RESPONSES, {"input": "hi"}), (MESSAGES, {"messages": HELLO})])
def test_whole_answers_are_read(chat_engine: Any, endpoint: str, body: dict[str, Any]) -> None:
    """The same is known of those that are not streamed."""
    answer = Answer(keeps_text=True)
    answer.read(chat_engine.post(endpoint, body).json())
    usage = chat_engine.chat("hi")["usage"]
    assert (answer.prompt_tokens, answer.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert "".join(answer.text).startswith("Hello!")
    assert answer.finish_reason in {"completed", "end_turn"}


@pytest.mark.parametrize("endpoint", [RESPONSES, MESSAGES])
def test_streams_without_changes_pass_byte_for_byte(chat_engine: Any, endpoint: str) -> None:
    """Through the shape of an answer without thoughts, Responses and Messages are what the engine sent."""
    body = {"messages": HELLO, "max_tokens": 100, "input": "hi", "stream": True}
    body.pop("messages" if endpoint == RESPONSES else "input")
    watch = StreamWatch(Answer(), hide_usage=True, rewriter=AnswerShape(Asked(endpoint, "m"), "drop"))
    with httpx.stream("POST", f"{chat_engine.url}{endpoint}", json=body, timeout=20) as answer:
        came = list(answer.iter_raw())
    assert b"".join(map(watch.feed, came)) + watch.close() == b"".join(came)


def test_thoughts_left_in_the_content(start_engine: Callable[..., Any], demo_models: Path) -> None:
    """What llama.cpp leaves in the content is told apart as llama.cpp itself would, streamed and whole."""
    model = str(demo_models / "demo-reasoning.gguf")
    raw, own = start_engine("--model", model, "--reasoning-format", "none"), start_engine("--model", model)
    expected = own.message("hi")
    assert expected["reasoning_content"]
    shape = AnswerShape(Asked(CHAT, "m"), "reasoning_content")
    message = shape.whole(raw.chat("hi"))["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (expected["content"], expected["reasoning_content"])
    answer, passed, _ = watched(raw, CHAT, {"messages": HELLO}, "reasoning_content")
    assert "".join(answer.text) == expected["content"]
    assert b"think>" not in passed
    assert b'"reasoning_content":' in passed


@pytest.mark.parametrize("form", ["reasoning_content", "reasoning", "think", "drop"])
def test_each_form_of_thoughts(start_engine: Callable[..., Any], demo_models: Path, form: str) -> None:
    """A stream of llama.cpp's own form becomes any other, and stays as it is where it has the form already."""
    engine = start_engine("--model", str(demo_models / "demo-reasoning.gguf"))
    thought = engine.message("hi")["reasoning_content"]
    answer, passed, _ = watched(engine, CHAT, {"messages": HELLO}, form)
    text = "".join(answer.text)
    assert text.endswith("Put a real model in my place.")
    assert (f"<think>\n{thought}\n</think>\n\n" in text) is (form == "think")
    assert (b'"reasoning_content":' in passed) is (form == "reasoning_content")
    assert (b'"reasoning":' in passed) is (form == "reasoning")


def test_a_second_system_message(start_engine: Callable[..., Any], demo_models: Path, tmp_path: Path) -> None:
    """A template that refuses one gets them as one; what it says of a late one is a 400 with its words."""
    template = tmp_path / "strict.jinja"
    template.write_text(STRICT, encoding="utf-8")
    engine = start_engine(
        "--model", str(demo_models / "demo-chat.gguf"), "--jinja", "--chat-template-file", str(template)
    )
    both = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]
    refused = engine.post(CHAT, {"messages": [*both, *HELLO]})
    assert refused.status_code >= 400
    assert type(said(refused)) is BadRequest
    assert "System message must be at the beginning" in said(refused).message
    for endpoint, body in (
        (CHAT, {"messages": [*both, *HELLO]}),
        (RESPONSES, {"instructions": "a", "input": [*both, *HELLO]}),
    ):
        fit_instructions(body, endpoint, knows_developer=False, backend="llama_cpp")
        assert engine.post(endpoint, body).status_code == 200
