"""Which endpoints engines have, how they are started for them, where they listen, and whose key they get.

As found by running llama.cpp b11549, and read in vLLM 0.32 (its routers) and Ollama 0.40 (its page on compatibility).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from builders import entry
from rolecall.backends.base import Backend, Launch, Places
from rolecall.backends.custom import CustomCommand
from rolecall.backends.external import OpenAIServer
from rolecall.backends.llama_server import KEY_VARIABLE, LlamaServer
from rolecall.backends.ollama import OllamaDaemon
from rolecall.backends.vllm import VllmServer
from rolecall.core.endpoints import HEARING, RANKING, WRITING, needs_of

PLACES = Places(Path("/etc/rolecall"), Path("/var/lib/rolecall"))
LLAMA = LlamaServer(PLACES, ("/usr/bin/llama-server",))
VLLM = VllmServer(PLACES, ("/opt/vllm/bin/vllm",), 180, 30)
OLLAMA = OllamaDaemon("http://127.0.0.1:11434")
CUSTOM = CustomCommand(PLACES, "sglang")
SERVER = OpenAIServer()
ALL = (*WRITING, "/v1/embeddings", *RANKING, *HEARING, "/tokenize", "/detokenize")
TOKENS = ("/tokenize", "/detokenize")


def lacking(backend: Backend, *capabilities: str, **config: Any) -> set[str]:
    """Return the endpoints that the engine of a model with these capabilities lacks."""
    model = entry("m", capabilities=list(capabilities), backend_config={"model_path": "/m", **config})
    reasons = {endpoint: backend.lacks(model, endpoint) for endpoint in ALL}
    assert all(reason is None or (endpoint in reason and reason.endswith(".")) for endpoint, reason in reasons.items())
    return {endpoint for endpoint, reason in reasons.items() if reason is not None}


def argv(backend: Backend, *capabilities: str, **fields: Any) -> list[str]:
    """Return the command line for a model with these capabilities."""
    config = {"model_path": "/m", **fields.pop("backend_config", {})}
    launch = backend.launch(entry("m", capabilities=list(capabilities), backend_config=config, **fields), 4711)
    assert isinstance(launch, Launch)
    return list(launch.argv)


def value(words: list[str], flag: str) -> str | None:
    """Return the word after a flag."""
    return dict(pairwise(words)).get(flag)


# -- what is not there


def test_what_llama_cpp_lacks() -> None:
    """No scores, no translations, no speech, whatever the model."""
    always = {"/v1/score", "/v1/audio/translations", "/v1/audio/speech"}
    assert lacking(LLAMA) == always
    assert lacking(LLAMA, "embedding") == always
    assert lacking(LLAMA, "text", "embedding") == always
    assert lacking(LLAMA, "rerank") == always


def test_a_llama_engine_embeds_or_ranks() -> None:
    """Of the two it can do one: embed, unless its arguments say otherwise."""
    assert {"/v1/rerank", "/v1/score"} <= lacking(LLAMA, "embedding", "rerank")
    assert "/v1/embeddings" not in lacking(LLAMA, "embedding", "rerank")
    ranking = lacking(LLAMA, "embedding", extra_args=["--reranking"])
    assert "/v1/embeddings" in ranking
    assert "/v1/rerank" not in ranking


def test_one_process_per_request_has_chat_only() -> None:
    """In mode cli there is nothing but chat completions."""
    assert lacking(LLAMA, mode="cli") == set(ALL) - {"/v1/chat/completions"}


def test_what_vllm_lacks() -> None:
    """No speech; and one engine either writes or embeds."""
    assert lacking(VLLM) == {"/v1/audio/speech", "/v1/embeddings", *RANKING}
    assert lacking(VLLM, "text", "embedding") == {"/v1/audio/speech", "/v1/embeddings", *RANKING}
    assert lacking(VLLM, "embedding") == {"/v1/audio/speech", *WRITING}
    assert lacking(VLLM, "rerank") == {"/v1/audio/speech", *WRITING}
    assert lacking(VLLM, "audio") == {"/v1/audio/speech", "/v1/embeddings", *RANKING}
    assert lacking(VLLM, "text", "embedding", extra_args=["--runner=pooling"]) == {"/v1/audio/speech", *WRITING}
    assert lacking(VLLM, extra_args=["--convert", "embed"]) == {"/v1/audio/speech", *WRITING}
    assert "/v1/chat/completions" not in lacking(VLLM, "embedding", extra_args=["--runner", "generate"])
    assert "/v1/chat/completions" not in lacking(VLLM, extra_args=["--convert", "none"])


def test_what_ollama_lacks() -> None:
    """No reranking and no tokens; what came with later versions it may have."""
    assert lacking(OLLAMA) == {*RANKING, *TOKENS, "/v1/messages/count_tokens", "/v1/audio/translations"}


@pytest.mark.parametrize("backend", [SERVER, CUSTOM], ids=["openai", "custom"])
def test_of_other_servers_nothing_is_known(backend: Backend) -> None:
    """They say themselves what they have not."""
    assert lacking(backend) == set()


@pytest.mark.parametrize("backend", [LLAMA, VLLM])
def test_of_commands_nothing_is_known(backend: Backend) -> None:
    """A command of one's own may start whatever there is."""
    assert lacking(backend, "text", "embedding", "rerank", command=["x", "{port}"], mode="cli") == set()


def test_a_model_has_what_its_capabilities_are_for() -> None:
    """Whoever has the one capability that an endpoint needs is not told that its engine lacks the endpoint."""
    for endpoint in set(ALL) - {"/v1/score", "/v1/audio/translations", "/v1/audio/speech"}:
        for backend in (LLAMA, VLLM):
            assert endpoint not in lacking(backend, *needs_of(endpoint)), (backend, endpoint)


# -- how they are started


@pytest.mark.parametrize(
    ("capabilities", "flags"),
    [
        ([], set()),
        (["text", "vision", "audio"], set()),
        (["embedding"], {"--embeddings"}),
        (["text", "embedding"], {"--embeddings"}),
        (["rerank"], {"--reranking"}),
        (["embedding", "rerank"], {"--embeddings"}),
    ],
)
def test_what_llama_cpp_is_started_for(capabilities: list[str], flags: set[str]) -> None:
    """A model that embeds or ranks is started so."""
    assert {"--embeddings", "--reranking"} & set(argv(LLAMA, *capabilities)) == flags


@pytest.mark.parametrize("flag", ["--embedding", "--embeddings", "--rerank", "--reranking"])
def test_flags_of_the_entry_need_no_capability(flag: str) -> None:
    """An engine that is told by its arguments is not told twice, and its model can do what they say."""
    words = argv(LLAMA, backend_config={"extra_args": [flag]})
    assert {"--embedding", "--embeddings", "--rerank", "--reranking"} & set(words) == {flag}
    capability = "embedding" if "embed" in flag else "rerank"
    assert entry(backend_config={"extra_args": [flag]}).all_capabilities == {"text", capability}
    assert entry(backend_config={"command": ["x", flag]}).all_capabilities == {"text", capability}


@pytest.mark.parametrize(
    ("capabilities", "fields", "batch", "micro"),
    [
        (["embedding"], {}, "2048", "2048"),
        (["rerank"], {"context_length": 512}, "512", "512"),
        (["embedding"], {"context_length": 32768}, "8192", "8192"),
        (["embedding"], {"generation_defaults": {"ubatch_size": 256}}, "2048", "256"),
        (["embedding"], {"backend_config": {"extra_args": ["-ub", "1024"]}}, "2048", None),
        (["text", "embedding"], {}, None, None),
        (["text"], {}, None, None),
        (["audio"], {}, None, None),
    ],
)
def test_long_texts_are_embedded_in_one_piece(
    capabilities: list[str], fields: dict[str, Any], batch: str | None, micro: str | None
) -> None:
    """A model that only embeds or ranks takes texts of its context, not of 512 tokens, beyond which llama.cpp fails."""
    words = argv(LLAMA, *capabilities, **fields)
    assert (value(words, "--batch-size"), value(words, "--ubatch-size")) == (batch, micro)


@pytest.mark.parametrize(
    ("capabilities", "extra", "runner"),
    [
        (["embedding"], [], "pooling"),
        (["rerank"], [], "pooling"),
        (["text"], [], None),
        (["text", "embedding"], [], None),
        (["audio"], [], None),
        ([], [], None),
        (["embedding"], ["--convert", "embed"], None),
        (["embedding"], ["--task", "embed"], None),
    ],
)
def test_what_vllm_is_started_for(capabilities: list[str], extra: list[str], runner: str | None) -> None:
    """A model that only embeds or ranks is started to pool, unless the entry says how."""
    assert value(argv(VLLM, *capabilities, backend_config={"extra_args": extra}), "--runner") == runner


# -- where they listen


@pytest.mark.parametrize(
    "extra",
    [["--host", "0.0.0.0"], ["--host=0.0.0.0"], ["--port", "80", "--host", "::"], ["--host", "/tmp/engine.sock"]],
    ids=" ".join,
)
@pytest.mark.parametrize("backend", [LLAMA, VLLM], ids=["llama_cpp", "vllm"])
def test_engines_listen_on_loopback_alone(backend: Backend, extra: list[str]) -> None:
    """Whatever the arguments say, an engine is reached by this machine alone, on the port that it was given."""
    words = argv(backend, backend_config={"extra_args": [*extra, "-x"]})
    assert words[-5:] == ["-x", "--host", "127.0.0.1", "--port", "4711"]
    assert words.count("--host") == words.count("--port") == 1
    assert not set(extra[1::2]) & set(words)


def test_vllm_listens_on_no_socket_of_its_own() -> None:
    """With a socket file it would look at neither host nor port."""
    words = argv(VLLM, backend_config={"extra_args": ["--uds", "/tmp/x.sock", "--seed", "1"]})
    assert words[-6:] == ["--seed", "1", "--host", "127.0.0.1", "--port", "4711"]
    assert "--uds" not in words


# -- keys


@pytest.mark.parametrize(("backend", "variable"), [(LLAMA, "LLAMA_API_KEY"), (VLLM, "VLLM_API_KEY")])
@pytest.mark.parametrize(
    ("config", "key", "takes"),
    [
        ({}, None, True),
        ({"command": ["x", "{port}"]}, None, True),
        ({"extra_args": ["--api-key", "mine"]}, "mine", False),
        ({"command": ["x", "--api-key=mine", "{port}"]}, "mine", False),
        ({"env": {"VARIABLE": "mine"}}, "mine", False),
        ({"env": {"VARIABLE": ""}}, None, False),
        ({"env": {"OTHER": "x"}}, None, True),
    ],
)
def test_whose_key_an_engine_gets(
    backend: Backend,
    variable: str,
    config: dict[str, Any],
    key: str | None,
    takes: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """One of ours by a variable, unless the entry gives it one, or says by an empty one that it wants none."""
    env = {name.replace("VARIABLE", variable): word for name, word in config.get("env", {}).items()}
    launch = backend.launch(entry(backend_config={"model_path": "/m", **config, "env": env}), 4711)
    assert isinstance(launch, Launch)
    assert (launch.key, launch.key_variable) == (key, variable if takes else None)


def test_several_keys_of_an_entry() -> None:
    """llama-server takes a list between commas; for vLLM a comma is part of the key, and further keys are words."""
    llama = LLAMA.launch(entry(backend_config={"model_path": "/m", "extra_args": ["--api-key", " one , two"]}), 1)
    vllm = VLLM.launch(entry(backend_config={"model_path": "/m", "extra_args": ["--api-key", "one,two", "three"]}), 1)
    assert (llama.key, vllm.key) == ("one", "one,two")


def test_one_process_per_request_gets_a_key() -> None:
    """The server in front of the programs is ours, and takes the key as llama-server does."""
    launch = LLAMA.launch(entry(backend_config={"model_path": "/m", "mode": "cli"}), 4711)
    assert launch.key_variable == KEY_VARIABLE


def test_unknown_engines_get_no_key() -> None:
    """Nobody knows how they would take one."""
    launch = CUSTOM.launch(entry(backend_config={"command": ["x", "{port}"]}), 4711)
    assert (launch.key, launch.key_variable) == (None, None)
