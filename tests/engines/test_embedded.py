"""The embedded engine as a process: readiness, answers, limits, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("xllamacpp", reason="the embedded engine is an extra: rolecall[llama]")

AT_ONCE_S = 0.5
ENDING_SIGNALS = [signal.SIGTERM, signal.SIGINT]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the engine where it is to end by itself."""
    command = [sys.executable, "-m", "rolecall.backends.embedded", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture
def chat_model(demo_models: Path) -> str:
    return str(demo_models / "demo-chat.gguf")


@pytest.fixture
def hanging_model(tmp_path: Path) -> str:
    """A model file that never yields a byte."""
    os.mkfifo(tmp_path / "hangs.gguf")
    return str(tmp_path / "hangs.gguf")


def test_it_answers_with_usage(chat_engine: Any) -> None:
    """A completion has OpenAI's form, with the tokens counted."""
    answer = chat_engine.chat("hi")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_it_streams(chat_engine: Any) -> None:
    """A stream brings the same text in pieces and, where asked for, the usage at its end."""
    with chat_engine.stream("hi", stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    pieces = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    text = "".join(filter(None, pieces))
    assert text == chat_engine.message("hi")["content"]
    assert len(pieces) > 10
    assert chunks[-1]["usage"]["completion_tokens"] > 10


def test_it_sees_images_with_a_projector(vision_engine: Any, picture: dict[str, Any]) -> None:
    """``--mmproj`` makes the model take images as data URIs."""
    assert vision_engine.get("/props")["modalities"]["vision"]
    assert vision_engine.message([{"type": "text", "text": "what is it?"}, picture])["content"]


def test_it_says_so_while_loading(start_engine: Callable[..., Any], hanging_model: str) -> None:
    """While the model loads, /health is 503, as with llama-server."""
    engine = start_engine("--model", hanging_model, ready=False)
    engine.wait_for(503)
    assert "Loading model" in httpx.get(f"{engine.url}/health").text


@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_signal_ends_it_while_loading(
    start_engine: Callable[..., Any], hanging_model: str, number: signal.Signals
) -> None:
    """A load that hangs in C++ can be ended, at once and without a traceback."""
    engine = start_engine("--model", hanging_model, ready=False)
    engine.wait_for(503)
    status, seconds = engine.end(number)
    assert status == -number
    assert seconds < AT_ONCE_S
    assert "Traceback" not in engine.stderr()


@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_signal_ends_it_when_idle(start_engine: Callable[..., Any], chat_model: str, number: signal.Signals) -> None:
    """An idle engine ends at once."""
    engine = start_engine("--model", chat_model)
    status, seconds = engine.end(number)
    assert status == -number
    assert seconds < AT_ONCE_S
    assert "Traceback" not in engine.stderr()


def test_a_signal_ends_it_during_a_stream(start_engine: Callable[..., Any], chat_model: str) -> None:
    """A client that is being answered does not hold the engine up; it sees the connection break."""
    engine = start_engine("--model", chat_model)
    with engine.stream("LOOP", max_tokens=30000) as chunks:
        next(chunks)
        status, seconds = engine.end(signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            list(chunks)
    assert status == -signal.SIGTERM
    assert seconds < AT_ONCE_S


@pytest.mark.parametrize(
    ("flags", "slots", "context"),
    [
        ([], 4, 32768),
        (["--parallel", "4", "--kv-unified", "--ctx-size", "8192"], 4, 8192),
        (["--parallel", "4", "--ctx-size", "8192"], 4, 2048),
        (["--parallel", "1", "--ctx-size", "8192"], 1, 8192),
    ],
    ids=["defaults", "unified", "split", "single"],
)
def test_the_context_of_a_slot(
    start_engine: Callable[..., Any], chat_model: str, flags: list[str], slots: int, context: int
) -> None:
    """A unified KV cache gives each slot the whole context; without it, the slots share it out."""
    engine = start_engine("--model", chat_model, *flags)
    assert [slot["n_ctx"] for slot in engine.get("/slots")] == [context] * slots
    assert engine.get("/props")["default_generation_settings"]["n_ctx"] == context


def test_the_context_is_a_limit(start_engine: Callable[..., Any], chat_model: str) -> None:
    """A prompt longer than the context is refused with the figures."""
    engine = start_engine("--model", chat_model, "--ctx-size", "256")
    body = {"messages": [{"role": "user", "content": "x" * 1000}]}
    answer = engine.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "exceed_context_size_error"
    assert answer.json()["error"]["n_ctx"] == 256


def test_sampling_options_are_the_defaults_of_requests(start_engine: Callable[..., Any], chat_model: str) -> None:
    """What the command line says about sampling holds where a request is silent."""
    engine = start_engine("--model", chat_model, "--temp", "0.25", "--top-k", "7", "--mirostat", "2")
    params = engine.get("/props")["default_generation_settings"]["params"]
    assert (params["temperature"], params["top_k"], params["mirostat"]) == (0.25, 7, 2)


def test_the_length_of_answers_has_a_default(start_engine: Callable[..., Any], chat_model: str) -> None:
    """``--n-predict`` limits answers to requests that set no limit themselves."""
    engine = start_engine("--model", chat_model, "-n", "3")
    assert engine.chat("hi", max_tokens=None)["usage"]["completion_tokens"] == 3


def test_the_alias_is_the_models_name(start_engine: Callable[..., Any], chat_model: str) -> None:
    """``--alias`` is what /v1/models and answers call the model."""
    engine = start_engine("--model", chat_model, "--alias", "a name (Q4)")
    assert engine.get("/v1/models")["data"][0]["id"] == "a name (Q4)"
    assert engine.chat("hi")["model"] == "a name (Q4)"


def test_endpoints_are_switched_on_and_off(start_engine: Callable[..., Any], chat_engine: Any, chat_model: str) -> None:
    """Metrics only where asked for, slots unless refused, embeddings only where asked for."""
    engine = start_engine("--model", chat_model, "--no-slots")
    assert httpx.get(f"{chat_engine.url}/metrics").status_code == 200
    assert httpx.get(f"{engine.url}/metrics").status_code == 501
    assert httpx.get(f"{engine.url}/slots").status_code == 501
    assert engine.post("/v1/embeddings", {"input": "x"}).status_code == 501


def test_it_embeds(start_engine: Callable[..., Any], chat_model: str) -> None:
    """``--embeddings`` serves /v1/embeddings, also for a text longer than a batch may be by default."""
    engine = start_engine("--model", chat_model, "--embeddings", "--ubatch-size", "2048")
    answer = engine.post("/v1/embeddings", {"input": ["short", "x" * 1500]}).json()
    assert [len(item["embedding"]) for item in answer["data"]] == [256, 256]


def test_an_api_key_is_asked_for(start_engine: Callable[..., Any], chat_model: str) -> None:
    """With ``--api-key``, requests need it."""
    engine = start_engine("--model", chat_model, "--api-key", "secret")
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert engine.post("/v1/chat/completions", body).status_code == 401
    with_key = httpx.post(
        f"{engine.url}/v1/chat/completions", json=body, headers={"authorization": "Bearer secret"}, timeout=20
    )
    assert with_key.status_code == 200


def test_a_key_of_the_environment_is_asked_for(start_engine: Callable[..., Any], chat_model: str) -> None:
    """``LLAMA_API_KEY`` is a key as for llama-server: for all but the health page, whatever is asked."""
    engine = start_engine("--model", chat_model, env={**os.environ, "LLAMA_API_KEY": "canary-key"})
    paths = ["/v1/models", "/props", "/slots", "/metrics", "/tokenize", "/v1/embeddings", "/v1/chat/completions"]
    for headers, expected in (({}, True), ({"authorization": "Bearer x"}, True), ({"x-api-key": "canary-key"}, False)):
        statuses = {httpx.post(f"{engine.url}{path}", json={}, headers=headers).status_code for path in paths}
        statuses |= {httpx.get(f"{engine.url}{path}", headers=headers).status_code for path in paths}
        assert (statuses == {401}) is expected, statuses
    assert engine.health() == 200
    assert "canary-key" not in engine.stderr()


def test_what_an_embedder_can_do_besides(start_engine: Callable[..., Any], chat_model: str) -> None:
    """With ``--embeddings`` it goes on writing; what is longer than the micro-batch fails, and is taken by a larger."""
    engine = start_engine("--model", chat_model, "--embeddings")
    assert engine.chat("hi")["choices"][0]["finish_reason"] == "stop"
    assert engine.post("/v1/embeddings", {"input": "x" * 600}).status_code == 500
    assert engine.post("/v1/rerank", {"query": "a", "documents": ["b"]}).status_code == 501


def test_it_ranks(start_engine: Callable[..., Any], chat_model: str) -> None:
    """With ``--reranking`` documents are ranked; vectors of such an engine mean nothing, for it pools in one way."""
    engine = start_engine("--model", chat_model, "--reranking")
    ranked = engine.post("/v1/rerank", {"query": "a", "documents": ["b", "c"]}).json()["results"]
    assert sorted(result["index"] for result in ranked) == [0, 1]


@pytest.mark.parametrize("path", ["/v1/score", "/v1/audio/translations", "/v1/audio/speech"])
def test_pages_that_are_not_there(chat_engine: Any, path: str) -> None:
    """What the driver says that llama.cpp lacks, it lacks."""
    assert chat_engine.post(path, {}).status_code == 404


def test_web_pages_are_kept_out(chat_engine: Any) -> None:
    """There is no page of its own, and pages from elsewhere may not read its answers."""
    assert httpx.get(f"{chat_engine.url}/").status_code == 404
    answer = httpx.get(f"{chat_engine.url}/health", headers={"origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_only_the_given_host_listens(start_engine: Callable[..., Any], chat_model: str) -> None:
    """``--host`` is the only address that is bound."""
    engine = start_engine("--model", chat_model, "--host", "127.0.0.2", ready=False)
    port = httpx.URL(engine.url).port
    elsewhere = type(engine)(engine.process, f"http://127.0.0.2:{port}", engine.log)
    elsewhere.wait_for(200)
    assert engine.health() == 0


def test_old_spellings_start_it(start_engine: Callable[..., Any], chat_model: str) -> None:
    """Options as entries have had them for years: a bare -fa, --no-mmap, --no-webui."""
    flags = ["-ngl", "99", "-fa", "--no-mmap", "--no-webui", "-ctk", "q8_0", "-ctv", "q8_0", "--log-disable"]
    assert start_engine("--model", chat_model, *flags).message("hi")["content"].startswith("Hello!")


def test_a_draft_model_speeds_it_up(start_engine: Callable[..., Any], chat_model: str) -> None:
    """Speculative decoding works: the slots say so, and the answer stays the same."""
    engine = start_engine("--model", chat_model, "-md", chat_model, "--spec-type", "draft-simple")
    assert all(slot["speculative"] for slot in engine.get("/slots"))
    assert engine.message("LOOP", max_tokens=5)["content"].split() == ["w00", "w01", "w02", "w03", "w04"]


def test_environment_variables_of_llama_server_are_mentioned(start_engine: Callable[..., Any], chat_model: str) -> None:
    """llama-server would read LLAMA_ARG_…; the embedded engine says that it does not."""
    engine = start_engine("--model", chat_model, env={**os.environ, "LLAMA_ARG_CTX_SIZE": "64"})
    assert "does not read LLAMA_ARG_CTX_SIZE" in engine.stderr()


def test_a_missing_model_is_exit_code_one() -> None:
    """A path without a file ends it with the reason, in words."""
    ended = run("--model", "/nowhere/model.gguf")
    assert ended.returncode == 1
    assert ended.stderr == "error: no such file: /nowhere/model.gguf\n"


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"GGUF\x03\x00\x00\x00" + b"\xff" * 200], ids=["empty", "text", "cut"]
)
def test_a_corrupt_model_is_exit_code_one(tmp_path: Path, content: bytes) -> None:
    """A file that is no model ends it; llama.cpp's reason stands among the last lines."""
    model = tmp_path / "corrupt.gguf"
    model.write_bytes(content)
    ended = run("--model", str(model))
    lines = ended.stderr.splitlines()[-9:]
    assert ended.returncode == 1
    assert any("gguf_init" in line for line in lines)
    assert lines[-1].startswith("error: the engine did not start, for the reason in the lines above")
    assert "Traceback" not in ended.stderr


def test_a_cut_model_is_exit_code_one(tmp_path: Path, chat_model: str) -> None:
    """A file that ends too early, as an interrupted download does, ends it."""
    model = tmp_path / "cut.gguf"
    model.write_bytes(Path(chat_model).read_bytes()[:500_000])
    ended = run("--model", str(model))
    assert ended.returncode == 1
    assert "not within the file bounds" in ended.stderr


def test_a_missing_projector_is_exit_code_one(chat_model: str) -> None:
    """A bad --mmproj is an error at the start, not at the first image."""
    ended = run("--model", chat_model, "--mmproj", "/nowhere/mmproj.gguf")
    assert ended.returncode == 1
    assert ended.stderr == "error: no such file: /nowhere/mmproj.gguf\n"


def test_a_corrupt_projector_is_exit_code_one(tmp_path: Path, chat_model: str) -> None:
    """So is a projector that is none."""
    projector = tmp_path / "mmproj.gguf"
    projector.write_text("hello", encoding="utf-8")
    ended = run("--model", chat_model, "--mmproj", str(projector))
    assert ended.returncode == 1
    assert "failed to load multimodal model" in ended.stderr


def test_a_taken_port_is_exit_code_one(chat_model: str) -> None:
    """A port that somebody listens on ends it with llama-server's words."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ended = run("--model", chat_model, "--port", str(other.getsockname()[1]))
    assert ended.returncode == 1
    assert "couldn't bind HTTP server socket" in "".join(ended.stderr.splitlines()[-4:])


def test_an_unknown_option_is_exit_code_one() -> None:
    """llama-server's own message, and the way out."""
    ended = run("--model", "m.gguf", "--no-such-option", "1")
    first, second = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert first == "error: invalid argument: --no-such-option"
    assert "a llama-server binary" in second


def test_help_lists_the_options() -> None:
    """``--help`` goes to stdout and names options with all their spellings."""
    ended = run("--help")
    assert ended.returncode == 0
    assert "  -c, --ctx-size N" in ended.stdout.splitlines()


def test_the_version_is_printed() -> None:
    """``--version`` says which llama.cpp it is."""
    ended = run("--version")
    assert ended.returncode == 0
    assert ended.stdout.startswith("version: ")
    assert "xllamacpp" in ended.stdout


def test_it_says_what_to_install_when_the_engine_is_missing() -> None:
    """Without xllamacpp it names the extra."""
    code = (
        "import sys; sys.modules['xllamacpp'] = None; from rolecall.backends.embedded import main; sys.exit(main([]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "pip install 'rolecall[llama]'" in ended.stderr


def test_it_starts_without_the_gateways_packages() -> None:
    """Nothing that only the gateway needs is imported: that would cost each start half a second."""
    code = (
        "import sys, rolecall.backends.embedded, rolecall.backends.embedded_flags\n"
        "print({name.partition('.')[0] for name in sys.modules})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert "xllamacpp" in ended.stdout
    for heavy in ("pydantic", "starlette", "httpx", "uvicorn", "numpy", "gguf", "asyncio", "argparse"):
        assert f"'{heavy}'" not in ended.stdout
