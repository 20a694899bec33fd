"""What is set at /api/config: read, changed, and put in force where an entry says nothing itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import entry
from rolecall.core.api_config import DEFAULTS, SIZES, ApiConfig, LlmParams, configured_entry, read_config
from rolecall.errors import BadRequest

ALL = ApiConfig(backend="cli", llm_params=LlmParams.model_validate(dict(DEFAULTS)))


def config(backend: Any = None, **params: Any) -> ApiConfig:
    return read_config({"backend": backend, "llm_params": params})


def test_nothing_is_set_at_first() -> None:
    """The defaults are shown, and are set by nobody."""
    assert ApiConfig().llm_params.given == {}
    assert ApiConfig().sampling == {
        "temperature": 0.35,
        "top_p": 0.9,
        "top_k": 40,
        "presence_penalty": 0.2,
        "mirostat": 0,
    }


def test_what_was_set_goes_before_the_defaults() -> None:
    """A number that was set takes the place of its default; sizes are no fields of a request."""
    assert config(temp=0.1, ctx_size=4096).sampling == {**ApiConfig().sampling, "temperature": 0.1}


def test_a_patch_changes_what_it_names() -> None:
    """The rest stays; null takes a value back, one by one or all together."""
    first = ApiConfig().changed({"backend": "cli", "llm_params": {"temp": 0, "ctx_size": 4096}})
    assert first == config("cli", temp=0, ctx_size=4096)
    assert first.changed({"llm_params": {"temp": 0.5}}) == config("cli", temp=0.5, ctx_size=4096)
    assert first.changed({"llm_params": {"temp": None}}) == config("cli", ctx_size=4096)
    assert first.changed({"llm_params": None, "backend": None}) == ApiConfig()
    assert first.changed({}) == first


@pytest.mark.parametrize(
    ("patch", "param", "words"),
    [
        ([], None, "JSON object"),
        ({"backend": "docker"}, "backend", "'server' or 'cli'"),
        ({"temp": 1}, "temp", "There is no temp; there are backend, llm_params"),
        ({"llm_params": {"tmep": 1}}, "llm_params.tmep", "there are ctx_size, temp"),
        ({"llm_params": {"temp": "hot"}}, "llm_params.temp", "valid number"),
        ({"llm_params": {"temp": True}}, "llm_params.temp", "valid number"),
        ({"llm_params": {"temp": -1}}, "llm_params.temp", "greater than or equal to 0"),
        ({"llm_params": {"top_p": 0}}, "llm_params.top_p", "greater than 0"),
        ({"llm_params": {"top_p": float("nan")}}, "llm_params.top_p", "wrong"),
        ({"llm_params": {"mirostat": 3}}, "llm_params.mirostat", "less than or equal to 2"),
        ({"llm_params": {"ctx_size": 100}}, "llm_params.ctx_size", "256"),
        ({"llm_params": {"ctx_size": 4096.0}}, "llm_params.ctx_size", "integer"),
        ({"llm_params": {"batch_size": True}}, "llm_params.batch_size", "integer"),
        ({"llm_params": {"batch_size": 31}}, "llm_params.batch_size", "greater than or equal to 32"),
        ({"llm_params": {"ubatch_size": 1}}, "llm_params.ubatch_size", "greater than or equal to 32"),
        (
            {"llm_params": {"batch_size": 64, "ubatch_size": 99}},
            "llm_params",
            "llm_params is wrong: ubatch_size (99) must not be above batch_size (64).",
        ),
        ({"llm_params": [1]}, "llm_params", "wrong"),
    ],
)
def test_wrong_values_are_named(patch: Any, param: str | None, words: str) -> None:
    """400 with the field, and what is allowed."""
    with pytest.raises(BadRequest) as failure:
        ApiConfig().changed(patch)
    assert failure.value.param == param
    assert words in failure.value.message


def test_a_configuration_that_is_no_object() -> None:
    """What is read from a file may be anything."""
    with pytest.raises(BadRequest, match="The configuration is wrong"):
        read_config(3)


def test_it_fills_what_an_entry_leaves_out() -> None:
    """Sizes, numbers of requests and the mode of a llama.cpp entry that says nothing of them."""
    found = configured_entry(entry(), ALL)
    assert found.context_tokens == 12192
    assert found.sizes == {name: DEFAULTS[name] for name in SIZES}
    assert found.generation_defaults["temp"] == 0.35
    assert found.backend_config.mode == "cli"


def test_the_entrys_own_values_go_first() -> None:
    """By whatever name it gives them, and whether or not it gives them in its arguments."""
    own: dict[str, Any] = {"temperature": 0.9, "n_batch": 64, "num_ubatch": 32, "n_ubatch": 16, "top_k": 0}
    found = configured_entry(
        entry(generation_defaults=own, context_length=1000, backend_config={"mode": "server"}), ALL
    )
    assert found.context_tokens == 1000
    assert found.backend_config.mode == "server"
    assert found.generation_defaults == {**own, "top_p": 0.9, "presence_penalty": 0.2, "mirostat": 0}
    by_flag = entry(backend_config={"extra_args": ["--ctx-size", "2000"]})
    assert configured_entry(by_flag, ALL).context_tokens == 2000


def test_no_context_is_made_larger_than_the_models_own() -> None:
    """Its files say how much it can read."""
    assert configured_entry(entry(), config(ctx_size=8192), own_context=4096).context_tokens == 4096
    assert configured_entry(entry(), config(ctx_size=8192), own_context=32768).context_tokens == 8192


def test_models_that_write_nothing_keep_their_sizes() -> None:
    """A batch decides how long a text they can embed; and a process for each request has no embeddings."""
    embeds = entry(capabilities=["embedding"])
    assert configured_entry(embeds, config("cli", batch_size=64, ctx_size=512)) is embeds
    both = configured_entry(entry(capabilities=["text", "embedding"]), config("cli", ctx_size=512))
    assert (both.context_tokens, both.backend_config.mode) == (512, "server")


def test_entries_with_a_command_of_their_own() -> None:
    """Their command line is theirs; requests are filled all the same."""
    found = configured_entry(entry(backend_config={"command": ["x", "{port}"]}), ALL)
    assert (found.sizes, found.backend_config.mode) == ({}, "server")
    assert found.generation_defaults["top_k"] == 40


@pytest.mark.parametrize("backend", ["vllm", "ollama", "openai", "mine"])
def test_other_engines_are_left_alone(backend: str) -> None:
    """The names are llama.cpp's; other servers may refuse them."""
    other = entry(backend=backend)
    assert configured_entry(other, ALL) is other


@given(
    st.sampled_from([None, 512, 4096]),
    st.dictionaries(st.sampled_from(["temp", "top_k", "ctx_size", "x"]), st.integers(1, 9)),
)
def test_with_nothing_set_every_entry_is_as_it_was(context: int | None, defaults: dict[str, int]) -> None:
    """A server on which nobody has set anything behaves as if there were no such endpoint."""
    known = entry(context_length=context, generation_defaults=defaults)
    assert configured_entry(known, ApiConfig()) is known
    assert configured_entry(known, config()) is known


params = st.fixed_dictionaries(
    {},
    optional={
        "ctx_size": st.none() | st.integers(256, 2**24),
        "temp": st.none() | st.floats(0, 10),
        "top_k": st.none() | st.integers(0, 100),
        "mirostat": st.none() | st.integers(0, 2),
    },
)


@given(st.lists(params, max_size=5))
def test_patches_add_up(patches: list[dict[str, Any]]) -> None:
    """After any number of changes each value is the last one that was given, or not set if that was null."""
    found = ApiConfig()
    expected: dict[str, Any] = {}
    for patch in patches:
        found = found.changed({"llm_params": patch})
        expected |= patch
    assert found.llm_params.given == {name: value for name, value in expected.items() if value is not None}
    assert read_config({"backend": found.backend, "llm_params": found.llm_params.given}) == found
