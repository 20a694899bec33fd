"""What the Ollama driver makes of an entry: addresses, calls, and what it reads from ``/api/ps``."""

from __future__ import annotations

from typing import Any

import pytest

from builders import entry
from rolecall.backends.base import Call, Spread, Upstream
from rolecall.backends.ollama import OllamaDaemon, full_tag, held_mb

OLLAMA = OllamaDaemon("http://127.0.0.1:11434")
MB = 2**20


def model(tag: str = "llama3.2", **fields: Any) -> Any:
    """Return an entry of Ollama's."""
    return entry(tag, backend="ollama", **fields)


@pytest.mark.parametrize(
    ("config", "address"),
    [
        ({}, "http://127.0.0.1:11434"),
        ({"base_url": "http://gpu.lan:11434"}, "http://gpu.lan:11434"),
        ({"base_url": "http://gpu.lan:11434/"}, "http://gpu.lan:11434"),
        ({"base_url": "http://gpu.lan:11434/v1"}, "http://gpu.lan:11434"),
        ({"base_url": "http://gpu.lan/ollama/v1/"}, "http://gpu.lan/ollama"),
        ({"port": 9000}, "http://127.0.0.1:9000"),
        ({"host": "gpu.lan"}, "http://gpu.lan:11434"),
        ({"host": "gpu.lan", "port": 9000}, "http://gpu.lan:9000"),
    ],
)
def test_where_the_daemon_is(config: dict[str, Any], address: str) -> None:
    """The entry's address goes before that of the settings; requests go to /v1, loads beside it."""
    own = model(backend_config=config)
    load = OLLAMA.launch(own, 0)
    assert OLLAMA.unavailable(own) is None
    assert OLLAMA.upstream(own, 0) == Upstream(f"{address}/v1")
    assert load.base_url == f"{address}/v1"
    assert [call.url for call in (load.load, load.unload, load.list_loaded)] == [
        f"{address}/api/generate",
        f"{address}/api/generate",
        f"{address}/api/ps",
    ]


@pytest.mark.parametrize("address", ["http://", "http://host:99999", "http://[::1"])
def test_an_address_that_is_none(address: str) -> None:
    """An entry that can never be reached says so."""
    assert "is no address" in (OLLAMA.unavailable(model(backend_config={"base_url": address})) or "")


def test_a_load_is_for_good_and_brings_no_options() -> None:
    """Ollama must not unload it by itself; options that later requests lack would make it load the model again."""
    sized = model(context_length=8192, generation_defaults={"num_ctx": 8192, "temperature": 0})
    load = OLLAMA.launch(sized, 0)
    assert load.load.json == {"model": "llama3.2", "keep_alive": -1, "stream": False}
    assert load.unload.json == {"model": "llama3.2", "keep_alive": 0, "stream": False}
    assert (load.load.method, load.unload.method, load.list_loaded.method) == ("POST", "POST", "GET")


@pytest.mark.parametrize(
    ("capabilities", "path"),
    [(["embedding"], "/api/embed"), (["text", "embedding"], "/api/generate"), ([], "/api/generate")],
)
def test_how_a_model_that_embeds_is_loaded(capabilities: list[str], path: str) -> None:
    """A model that only embeds refuses /api/generate, for loading but not for unloading."""
    load = OLLAMA.launch(model(capabilities=capabilities), 0)
    assert load.load.url.endswith(path)
    assert load.unload.url.endswith("/api/generate")


def test_the_tag_is_the_served_id() -> None:
    """The tag is served_model_id where it differs from the name."""
    other = model("small", served_model_id="llama3.2:1b")
    assert OLLAMA.served_id(other) == "llama3.2:1b"
    assert (OLLAMA.launch(other, 0).load.json or {})["model"] == "llama3.2:1b"
    assert OLLAMA.served_id(model("llama3.2")) == "llama3.2"


@pytest.mark.parametrize(
    ("asked", "listed"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("llama3.2:latest", "llama3.2:latest"),
        ("llama3.2:latest", "llama3.2"),
        ("Llama3.2", "llama3.2:latest"),
        ("library/llama3.2:1b", "llama3.2:1b"),
        ("registry.ollama.ai/library/llama3.2:1b", "llama3.2:1b"),
        ("someone/model", "someone/model:latest"),
        ("localhost:5000/someone/model", "localhost:5000/someone/model:latest"),
        ("hf.co/Org/Repo-GGUF:Q4_K_M", "hf.co/Org/Repo-GGUF:Q4_K_M"),
    ],
)
def test_two_spellings_of_one_tag(asked: str, listed: str) -> None:
    """A tag that is left out is latest; the default registry and namespace may stand or not."""
    assert held_mb({"models": [{"model": listed, "name": listed, "size_vram": 7 * MB}]}, asked) == 7


@pytest.mark.parametrize("other", ["llama3.2:1b", "llama3", "someone/llama3.2", "llama3.2-vision:latest"])
def test_another_model_is_not_ours(other: str) -> None:
    """Models that are only called alike are not confused."""
    assert full_tag(other) != full_tag("llama3.2")
    assert held_mb({"models": [{"model": other, "size_vram": MB}]}, "llama3.2") is None


@pytest.mark.parametrize(
    ("sizes", "mb"),
    [
        ({"size": 9 * MB, "size_vram": 7 * MB}, 7),
        ({"size": 9 * MB, "size_vram": 0}, 9),
        ({"size": 9 * MB}, 9),
        ({}, 0),
        ({"size_vram": "much"}, 0),
    ],
)
def test_what_a_loaded_model_holds(sizes: dict[str, Any], mb: int) -> None:
    """VRAM counts; a model that runs on the CPU holds its size in RAM; without figures it is loaded all the same."""
    assert held_mb({"models": [{"name": "llama3.2:latest", **sizes}]}, "llama3.2") == mb


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"models": None}, {"models": {}}, {"models": [None, 1, {}]}])
def test_answers_that_are_no_list_of_models(answer: Any) -> None:
    """Whatever comes, a model that is not listed is not loaded."""
    assert held_mb(answer, "llama3.2") is None


def test_facts_about_the_daemon() -> None:
    """Its models are ours to load; it has its own port, files, layout, and OLLAMA_NUM_PARALLEL's default."""
    assert (OLLAMA.name, OLLAMA.managed, OLLAMA.has_port, OLLAMA.takes_share, OLLAMA.ports) == (
        "ollama",
        True,
        False,
        False,
        None,
    )
    assert [OLLAMA.parallel(model()), OLLAMA.parallel(model(max_parallel=3))] == [1, 3]
    assert OLLAMA.files(model()) == ()
    assert OLLAMA.spread(model()) == Spread(possible=tuple(range(1, 17)))
    assert OLLAMA.build() == "ollama"


def test_what_ollama_has() -> None:
    """A model that was not pulled is missing, with the command that pulls it; tags are compared in one spelling."""
    load = OllamaDaemon("http://127.0.0.1:11434").launch(model("llava"), 0)
    assert load.list_installed == Call("GET", "http://127.0.0.1:11434/api/tags")
    assert load.has_model({"models": [{"name": "other:latest"}, {"name": "llava:latest"}]})
    assert not load.has_model({"models": [{"name": "other:latest"}]})
    assert not load.has_model("rubbish")
    assert "ollama pull llava" in load.missing
