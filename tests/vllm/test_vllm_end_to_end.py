"""Rolecall in front of a real vLLM: what it answers, what happens when parts of it are killed, what is left of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from harness import CHAT, Rolecall, eventually, rest_of, text_of
from vllm.group import LOAD_WITHIN_S, MODEL, PROGRAM_VARIABLE, Group, engine_group
from vllm.tiny_model import ANSWER, CAPTION

if PROGRAM_VARIABLE not in os.environ:
    pytest.skip("needs a vLLM: make test-vllm", allow_module_level=True)

HELLO: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def server(
    vllm_entry: dict[str, Any], vllm_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rolecall]:
    """A rolecall whose engine is started by the first request and again after each test that kills it."""
    with Rolecall(tmp_path_factory.mktemp("vllm"), [vllm_entry], settings=vllm_settings) as running:
        running.http.timeout = LOAD_WITHIN_S
        yield running


@pytest.fixture
def group(server: Rolecall) -> Group:
    """The processes of the engine, which is ready."""
    answer = eventually(lambda: _answer(server), within_s=LOAD_WITHIN_S)
    assert answer == ANSWER
    return engine_group(server)


def _answer(server: Rolecall) -> str | None:
    """Return what the model says; None while it is held back after a crash."""
    answer = server.chat(MODEL)
    if answer.status_code == 503:
        time.sleep(0.2)  # for the next try
        return None
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


# -- what it answers


def test_the_engine_is_started_by_the_first_request(server: Rolecall, group: Group) -> None:
    """It runs on a port of its own range, with all that the entry says, and under the name that requests give."""
    words = group.named("serve").cmdline()
    assert 24001 <= server.row(MODEL)["port"] <= 24010
    assert words[words.index("--port") + 1] == str(server.row(MODEL)["port"])
    assert words[words.index("--served-model-name") + 1] == MODEL
    assert words[words.index("--max-num-seqs") + 1] == "4"
    assert server.state_of(MODEL) == "ready"


def test_the_openai_client(server: Rolecall, group: Group) -> None:
    """Answers whole and streamed, tool calls and errors come through rolecall as the client expects them."""
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)
    whole = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert whole.choices[0].message.content == ANSWER
    chunks = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    called = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER])
    assert called.choices[0].finish_reason == "tool_calls"
    calls: Any = called.choices[0].message.tool_calls
    call = calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 20000}])


def test_a_streamed_tool_call(server: Rolecall, group: Group) -> None:
    """The arguments arrive in pieces that make one JSON object."""
    with server.stream(MODEL, tools=[WEATHER]) as answer:
        rest, is_whole = rest_of(answer.iter_lines())
    calls = [
        call for event in rest[:-1] for choice in event["choices"] for call in choice["delta"].get("tool_calls", ())
    ]
    assert json.loads("".join(call["function"].get("arguments") or "" for call in calls)) == {"city": "Paris"}
    assert (rest[-1], is_whole) == ("[DONE]", True)


def test_a_picture_to_a_role(server: Rolecall, group: Group, picture: dict[str, Any]) -> None:
    """A picture sent to role:caption is seen by the model, and the log line tells how it went."""
    content = [{"type": "text", "text": "what is it?"}, picture]
    answer = server.http.post(CHAT, json={"model": "role:caption", "messages": [{"role": "user", "content": content}]})
    assert answer.json()["choices"][0]["message"]["content"] == CAPTION
    line = server.line_of(answer)
    assert (line["role"], line["model"], line["backend"], line["images"]) == ("caption", MODEL, "vllm", 1)
    assert line["completion_tokens"] > 0


def test_a_client_that_leaves_ends_its_answer(server: Rolecall, group: Group) -> None:
    """VLLM stops writing for it: its next report counts no request as running."""
    with server.stream(MODEL, "LOOP", max_tokens=16000) as answer:
        next(answer.iter_lines())
    server.await_in_flight(MODEL, 0)
    assert server.line_of(answer)["status"] == 499
    metrics = f"http://127.0.0.1:{server.row(MODEL)['port']}/metrics"

    def running() -> list[str]:
        return [line for line in server.http.get(metrics).text.splitlines() if line.startswith("vllm:num_requests_run")]

    eventually(lambda: running() and all(line.endswith(" 0.0") for line in running()))


# -- parts of it are killed


@pytest.mark.parametrize("part", ["VLLM::EngineCore", "VLLM::Worker"])
def test_a_part_that_is_killed_in_a_stream(server: Rolecall, group: Group, part: str) -> None:
    """The client is told that its answer was cut, the exit is a crash though the code is 0, and nothing is left."""
    victim = group.named(part)  # looked up before: on a busy machine the answer could be over meanwhile
    with server.stream(MODEL, "LOOP", max_tokens=16000) as answer:
        lines = answer.iter_lines()
        next(lines)
        victim.kill()
        rest, _ = rest_of(lines)
    errors = [event["error"] for event in rest if event != "[DONE]" and "error" in event]
    assert len(errors) == 1, rest[-3:]
    assert server.line_of(answer)["error"].startswith("upstream_error: The engine failed (500): EngineCore")
    eventually(lambda: server.state_of(MODEL) == "failed")
    assert server.row(MODEL)["error"].startswith("exit code 0. ")
    group.assert_gone()


def test_the_parent_is_killed_in_a_stream(server: Rolecall, group: Group) -> None:
    """Its EngineCore would hold the memory for ever: it goes with it, and the client is told."""
    pid = server.row(MODEL)["pid"]  # asked for before: on a busy machine the answer could be over meanwhile
    with server.stream(MODEL, "LOOP", max_tokens=16000) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(pid, signal.SIGKILL)
        rest, is_whole = rest_of(lines)
    assert not is_whole
    assert rest[-1]["error"]["code"] == "engine_error"
    group.assert_gone()


# -- it is stopped


def test_unload_waits_for_the_answer(server: Rolecall, group: Group) -> None:
    """A stream that runs is finished, then all parts of the engine end by themselves."""
    with ThreadPoolExecutor(1) as pool, server.stream(MODEL, "LOOP", max_tokens=500) as answer:
        lines = answer.iter_lines()
        next(lines)
        pool.submit(server.http.post, f"/v1/models/{MODEL}/unload")
        rest, is_whole = rest_of(lines)
    assert (rest[-1], is_whole) == ("[DONE]", True)
    assert text_of(rest).endswith(" w19")
    eventually(lambda: server.state_of(MODEL) == "stopped")
    group.assert_gone()


def test_rolecall_ends_while_the_engine_loads(loading: Rolecall) -> None:
    """VLLM hangs on a SIGTERM in this state; all parts are gone soon after all the same."""
    group = engine_group(loading)
    started = time.monotonic()
    assert loading.stop(within_s=15) == 0
    assert time.monotonic() - started < 10
    group.assert_gone()


def test_rolecall_is_killed_while_the_engine_loads(loading: Rolecall) -> None:
    """Nobody is left to stop it, and yet all its parts end within five seconds."""
    group = engine_group(loading)
    loading.process.kill()
    loading.process.wait()
    group.assert_gone(within_s=5)


def test_rolecall_is_killed_in_a_stream(
    vllm_entry: dict[str, Any], vllm_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same with an engine that is ready and busy."""
    with Rolecall(tmp_path_factory.mktemp("killed"), [vllm_entry], settings=vllm_settings) as server:
        server.http.timeout = LOAD_WITHIN_S
        with server.stream(MODEL, "LOOP", max_tokens=16000) as answer:
            next(answer.iter_lines())
            group = engine_group(server)
            server.process.kill()
            server.process.wait()
        group.assert_gone(within_s=5)
