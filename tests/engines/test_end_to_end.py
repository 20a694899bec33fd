"""From a client's socket through rolecall to llama.cpp itself, with the demo models."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from harness import CHAT, CONFIGS, Rolecall, eventually, fake_entry, is_running, rest_of, text_of
from rolecall.demo.script import Script
from rolecall.runtime.registry import CURATED

pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")

SHIPPED: list[dict[str, Any]] = json.loads((CONFIGS / CURATED).read_text())
ANSWER, CAPTION, THOUGHT = Script().answer, Script().caption, Script().thought
SETTINGS = {"llama_server": "embedded"}
DEMO = "${STATE_DIR}/demo/"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def real_entry(name: str, model_path: str, **fields: Any) -> dict[str, Any]:
    """Return an entry for llama.cpp."""
    config = {"model_path": model_path, **fields.pop("backend_config", {})}
    return {"name": name, "backend": "llama_cpp", "backend_config": config, "vram_estimate_mb": 100, **fields}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with the shipped registry on a fresh state folder, and some models that cannot work."""
    folder = tmp_path_factory.mktemp("end-to-end")
    os.mkfifo(folder / "hangs.gguf")
    (folder / "rubbish.gguf").write_bytes(b"GGUF" + b"\0" * 1000)
    entries = (
        *SHIPPED,
        real_entry("hangs", str(folder / "hangs.gguf"), load_timeout_s=1),
        real_entry("rubbish", str(folder / "rubbish.gguf")),
        real_entry("bad-flag", DEMO + "demo-chat.gguf", backend_config={"extra_args": ["--no-such-flag"]}),
        real_entry("small", DEMO + "demo-chat.gguf", context_length=256, max_parallel=1, model_aliases=["org/s:Q4"]),
        real_entry("killed", DEMO + "demo-chat.gguf"),
    )
    with Rolecall(folder, entries, settings=SETTINGS) as running:
        yield running
        assert "Traceback" not in running.words()


@pytest.fixture
def client(server: Rolecall) -> Iterator[openai.OpenAI]:
    """Return OpenAI's client, pointed to rolecall."""
    with openai.OpenAI(base_url=server.base_url + "/v1", api_key="none", max_retries=0) as each:
        yield each


def said(chunks: Any) -> str:
    """Return the text of a stream of OpenAI's chunks."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_fresh_start_has_the_demo_models(client: openai.OpenAI) -> None:
    """The demo models are made on the first start; models whose files are absent are not listed."""
    names = [model.id for model in client.models.list()]
    assert names[:4] == ["demo-chat", "demo-reasoning", "demo-vision", "demo-embedding"]
    assert "qwen3-vl-8b-instruct_(FP8)" not in names


def test_the_openai_client(client: openai.OpenAI, server: Rolecall) -> None:
    """A whole answer, by name and by role."""
    for model in ("demo-chat", "role:chat"):
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello?"}])
        assert answer.choices[0].message.content == ANSWER
        assert answer.model == "demo-chat"
        assert answer.usage is not None
        line = server.line(str(answer._request_id))
        assert line["completion_tokens"] == answer.usage.completion_tokens > 5
        assert (line["model"], line["finish_reason"]) == ("demo-chat", "stop")


@pytest.mark.parametrize("wants_usage", [False, True])
def test_the_openai_client_streams(client: openai.OpenAI, wants_usage: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A stream word by word, with the usage chunk for those who ask for it and no empty chunk for the others."""
    options: Any = {"stream_options": {"include_usage": True}} if wants_usage else {}
    chunks: list[ChatCompletionChunk] = list(
        client.chat.completions.create(
            model="demo-chat", messages=[{"role": "user", "content": "Hello?"}], stream=True, **options
        )
    )
    assert said(chunks) == ANSWER
    assert len(chunks) > 5
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [wants_usage]
    assert all(chunk.choices for chunk in chunks) != wants_usage


async def test_the_asynchronous_openai_client(server: Rolecall) -> None:
    """A dozen answers at once, streamed and not."""
    async with openai.AsyncOpenAI(base_url=server.base_url + "/v1", api_key="none", max_retries=0) as client:

        async def whole() -> str | None:
            answer = await client.chat.completions.create(
                model="role:chat", messages=[{"role": "user", "content": "x"}]
            )
            return answer.choices[0].message.content

        async def streamed() -> str:
            stream = await client.chat.completions.create(
                model="demo-chat", messages=[{"role": "user", "content": "x"}], stream=True
            )
            return said([chunk async for chunk in stream])

        answers = await asyncio.gather(*(each() for each in (whole, streamed) * 6))
    assert answers == [ANSWER] * 12


def test_tools_reasoning_and_schemas(client: openai.OpenAI) -> None:
    """Tool calls, thoughts and structured output come through as the engine gives them."""
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = client.chat.completions.create(model="demo-chat", messages=question, tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    thinking = client.chat.completions.create(model="role:reasoning", messages=[{"role": "user", "content": "Why?"}])
    assert thinking.choices[0].message.content == ANSWER
    assert THOUGHT in str(thinking.choices[0].message.model_extra)
    schema: Any = {"name": "s", "schema": {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}}
    structured = client.chat.completions.create(
        model="demo-chat",
        messages=[{"role": "user", "content": "x"}],
        response_format={"type": "json_schema", "json_schema": schema},
        max_tokens=40,
    )
    assert json.loads(str(structured.choices[0].message.content)) == {"a": 7}


def test_a_picture_to_a_role(server: Rolecall, picture: dict[str, Any]) -> None:
    """A picture sent to role:caption streams a caption of the vision model, and the line tells how it went."""
    content = [{"type": "text", "text": "what is it?"}, picture]
    body = {"model": "role:caption", "stream": True, "messages": [{"role": "user", "content": content}]}
    with server.http.stream("POST", CHAT, json=body) as answer:
        assert answer.headers["x-rolecall-model"] == "demo-vision"
        rest, is_whole = rest_of(answer.iter_lines())
    assert (rest[-1], text_of(rest), is_whole) == ("[DONE]", CAPTION, True)
    line = server.line_of(answer)
    assert (line["role"], line["model"], line["images"], line["status"]) == ("caption", "demo-vision", 1, 200)
    assert 0 < line["ttft_ms"] <= line["duration_ms"]
    assert line["completion_tokens"] > 5
    assert line["prompt_tokens"] > 5


def test_embeddings(client: openai.OpenAI, server: Rolecall) -> None:
    """Texts are embedded, by name and by role, also one that is longer than llama.cpp takes unless told to."""
    texts = ["a cat", "a cat", "two dogs", "x" * 3000]
    for model in ("demo-embedding", "role:embedding"):
        answer = client.embeddings.with_raw_response.create(model=model, input=texts)
        rows = answer.parse().data
        first, same, other, _ = (row.embedding for row in rows)
        assert [len(row.embedding) for row in rows] == [256] * 4
        assert first == pytest.approx(same)
        assert first != pytest.approx(other, abs=1e-3)
        line = server.line(answer.headers["x-request-id"])
        assert (line["requested_model"], line["model"], line["status"]) == (model, "demo-embedding", 200)


def test_a_model_of_another_kind(client: openai.OpenAI) -> None:
    """A model that writes makes no vectors, one that embeds does not write, and the answer says which model to ask."""
    with pytest.raises(openai.BadRequestError, match=r"lacks embedding\. GET /v1/models lists") as no_vectors:
        client.embeddings.create(model="demo-chat", input="x")
    assert (no_vectors.value.param, no_vectors.value.code) == ("model", "unsupported_input")
    hello: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.BadRequestError, match="lacks text"):
        client.chat.completions.create(model="demo-embedding", messages=hello)


def test_engines_let_nobody_else_in(server: Rolecall, client: openai.OpenAI) -> None:
    """A real engine answers rolecall and refuses everybody else on the machine; no command line tells the key."""
    client.embeddings.create(model="demo-embedding", input="x")
    port = server.row("demo-embedding")["port"]
    for path in ("/v1/embeddings", "/tokenize", "/props", "/slots", "/v1/models", "/metrics"):
        assert httpx.post(f"http://127.0.0.1:{port}{path}", json={"input": "x"}).status_code == 401
        assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 401
    key = json.loads((server.state / "engines" / f"{server.process.pid}.json").read_text())
    key = key["engines"]["demo-embedding"]["key"]
    asked = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"authorization": f"Bearer {key}"})
    assert asked.status_code == 200
    assert all(key not in " ".join(process.cmdline()) for process in server.engine_processes())
    logs = [path.read_text(errors="replace") for path in (server.state / "engine-logs").glob("*.log")]
    assert logs
    assert all(key not in text for text in [*logs, server.words()])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Rolecall, picture: dict[str, Any], tmp_path: Path) -> None:
    """The command of the first page: curl -N with a picture shows events as they come."""
    body = {
        "model": "role:caption",
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture]}],
    }
    (tmp_path / "body").write_text(json.dumps(body))
    argv = ["curl", "-sSN", server.base_url + CHAT, "-H", "content-type: application/json", "-d", f"@{tmp_path}/body"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.endswith("data: [DONE]\n\n")
    assert '"content":"A ' in done.stdout.replace('": "', '":"')


def test_errors_are_those_of_the_openai_client(client: openai.OpenAI, picture: Any) -> None:
    """Each kind of mistake is raised as the class that programs catch."""
    hello: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError, match=r"Did you mean 'demo-chat'") as unknown:
        client.chat.completions.create(model="demo-chatt", messages=hello)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="lacks vision"):
        client.chat.completions.create(model="demo-chat", messages=[{"role": "user", "content": [picture]}])
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "x" * 1000}])
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="rubbish", messages=hello)
    assert (failed.value.status_code, failed.value.code) == (503, "model_start_failed")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/nothing")
    assert client.models.retrieve("org/s:Q4").id == "org/s:Q4"


@pytest.mark.parametrize(("model", "words"), [("rubbish", "rubbish.gguf"), ("bad-flag", "--no-such-flag")])
def test_a_model_that_cannot_be_loaded_shows_what_the_engine_says(server: Rolecall, model: str, words: str) -> None:
    """A corrupt file and a flag that nobody knows are 503 with exit code and last lines."""
    eventually(lambda: server.row(model)["retry_in_s"] in {None, 0})
    answer = server.chat(model)
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert "exit code 1. The engine's last lines:" in message
    assert words in message


def test_a_model_file_that_never_ends_is_given_up(server: Rolecall) -> None:
    """A FIFO in place of the model keeps the engine loading for ever: 503 after the time limit, and it is gone."""
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(server.chat, "hangs")
        pid = eventually(lambda: server.row("hangs")["pid"])
        answer = asking.result()
    assert answer.status_code == 503
    assert "not ready after 1 s (load_timeout_s)" in answer.json()["error"]["message"]
    assert time.monotonic() - started < 8
    assert not is_running(pid)


def test_an_engine_that_is_killed_in_a_stream(server: Rolecall) -> None:
    """The client gets an error event and no proper end; the next request starts the engine again."""
    server.chat("killed")
    pid = server.row("killed")["pid"]  # asked for before: on a busy machine the answer could be over meanwhile
    with server.stream("killed", "LOOP", max_tokens=8000) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(pid, signal.SIGKILL)
        rest, is_whole = rest_of(lines)
    assert not is_whole
    assert rest[-1]["error"]["code"] == "engine_error"
    assert server.line_of(answer)["error"].startswith("engine_error: ")
    server.await_state("killed", "failed")
    assert server.chat("killed").json()["choices"][0]["message"]["content"] == ANSWER


def test_a_client_that_stops_reading_frees_the_only_slot(server: Rolecall, client: openai.OpenAI) -> None:
    """Breaking out of a stream ends the engine's work: the next request does not wait for it."""
    hello: Any = [{"role": "user", "content": "LOOP"}]
    stream = client.chat.completions.create(model="demo-chat", messages=hello, stream=True, max_tokens=8000)
    for chunk in stream:
        if "w03" in said([chunk]):
            break
    stream.close()
    line = server.line(stream.response.headers["x-request-id"])
    assert (line["status"], line["model"]) == (499, "demo-chat")
    server.await_in_flight("demo-chat", 0)
    assert server.chat("demo-chat").json()["choices"][0]["message"]["content"] == ANSWER


def test_models_take_turns_where_one_fits(server: Rolecall, tmp_path: Path, picture: dict[str, Any]) -> None:
    """Under a profile for one model, chat and vision are swapped as they are asked for, and streams are not cut."""
    state = server.state
    with Rolecall(tmp_path, SHIPPED, profile="development", settings=SETTINGS, state_dir=state) as small:
        with ThreadPoolExecutor(1) as pool, small.stream("role:chat", "LOOP", max_tokens=2000) as answer:
            lines = answer.iter_lines()
            next(lines)
            body = {"model": "role:caption", "messages": [{"role": "user", "content": [picture]}]}
            vision = pool.submit(small.http.post, CHAT, json=body)
            rest, is_whole = rest_of(lines)
            assert (rest[-1], rest[-2]["choices"][0]["finish_reason"], is_whole) == ("[DONE]", "length", True)
            assert vision.result().json()["choices"][0]["message"]["content"] == CAPTION
        states = {row["model"]: row["state"] for row in small.get("/v1/models/health")["data"]}
        assert (states["demo-chat"], states["demo-vision"]) == ("stopped", "ready")
        with small.stream("role:chat", "LOOP", max_tokens=3000) as answer:
            lines = answer.iter_lines()
            next(lines)
            small.terminate()
            rest, is_whole = rest_of(lines)
        assert (rest[-1], is_whole) == ("[DONE]", True)
        assert small.ended(10) == 0
        assert len(small.log_lines()) == 3


def test_no_demo_models_for_those_who_want_none(tmp_path: Path) -> None:
    """With demo_models off nothing is made, and nothing of them is listed."""
    settings = {**SETTINGS, "demo_models": False}
    with Rolecall(tmp_path, [*SHIPPED, fake_entry("own")], settings=settings) as server:
        assert [card["id"] for card in server.get("/v1/models")["data"]] == ["own"]
        assert not (server.state / "demo").exists()
