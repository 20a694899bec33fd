"""LiteLLM's configuration: deployments as entries, keys by name only, and what has no counterpart with its line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from elsewhere.reading import entries, entry, read, remarks, said
from rolecall.elsewhere.tree import SourceError


def litellm(model: str, info: Any = None, **params: Any) -> str:
    """A configuration with one deployment ``m``."""
    deployment = {"model_name": "m", "litellm_params": {"model": model, **params}}
    return json.dumps({"model_list": [deployment | ({"model_info": info} if info else {})]})


@pytest.mark.parametrize(
    ("model", "params", "backend", "config", "served"),
    [
        ("openai/x/y", {"api_base": "http://h:1/v1/"}, "openai", {"base_url": "http://h:1/v1"}, "x/y"),
        ("hosted_vllm/q", {"base_url": "http://h:1"}, "openai", {"base_url": "http://h:1"}, "q"),
        ("some/name", {"api_base": "http://h/v1"}, "openai", {"base_url": "http://h/v1"}, "some/name"),
        ("q", {"api_base": "http://h/v1", "custom_llm_provider": "openai"}, "openai", {"base_url": "http://h/v1"}, "q"),
        ("ollama/q:7b", {}, "ollama", {}, "q:7b"),
        ("ollama_chat/q", {"api_base": "http://h:11434/v1"}, "ollama", {"base_url": "http://h:11434"}, "q"),
        (
            "llamafile/q",
            {},
            "openai",
            {"base_url": "http://127.0.0.1:8080/v1", "api_key_env": "LLAMAFILE_API_KEY"},
            "q",
        ),
        ("gpt-5", {}, "openai", {"base_url": "https://api.openai.com/v1", "api_key_env": "OPENAI_API_KEY"}, "gpt-5"),
        (
            "openrouter/a/b",
            {"api_key": "os.environ/MY_KEY"},
            "openai",
            {"base_url": "https://openrouter.ai/api/v1", "api_key_env": "MY_KEY"},
            "a/b",
        ),
    ],
)
def test_a_deployment_is_an_entry(
    model: str, params: dict[str, Any], backend: str, config: dict[str, str], served: str
) -> None:
    """By its prefix a model is Ollama's or a server's with OpenAI's API, at its address and with its key's variable."""
    found = entry(litellm(model, **params))
    assert (found["backend"], found.get("backend_config", {}), found["served_model_id"]) == (backend, config, served)


@pytest.mark.parametrize(
    "model", ["azure/x", "bedrock/x", "anthropic/x", "claude-opus-4", "gemini/x", "vllm/x", "new/x"]
)
def test_other_apis_are_left_out(model: str) -> None:
    """A provider that does not speak OpenAI's API is left out with a way to go on, not half taken over."""
    outcome = read(litellm(model))
    assert entries(outcome) == []
    assert remarks(outcome) == [(1, "lost", "model_list.0.litellm_params.model")]
    assert "keep LiteLLM for it" in said(outcome)


@pytest.mark.parametrize("key", ["none", "sk-none", "EMPTY", "not-needed", "lm-studio", "no_key", ""])
def test_a_key_for_form_is_none(key: str) -> None:
    """What clients write where a server asks for no key is no key."""
    outcome = read(litellm("openai/x", api_base="http://h/v1", api_key=key))
    assert (entries(outcome)[0]["backend_config"], outcome.remarks) == ({"base_url": "http://h/v1"}, [])


def test_no_key_is_ever_copied() -> None:
    """Keys, passwords and variables stay where they are: a name stands for each, and a person is told."""
    text = """
        model_list:
          - model_name: gpt 4.1 (mine)
            litellm_params: {model: openai/x, api_key: sk-111secret, aws_secret_access_key: 222secret}
        general_settings: {master_key: sk-333secret, database_url: "postgres://u:444secret@h/d"}
        router_settings: {redis_password: 555secret}
        environment_variables: {A_KEY: 666secret}
        credential_list: [{credential_name: c, credential_values: {api_key: 777secret}}]
        """
    outcome = read(text)
    assert "secret" not in (said(outcome) + json.dumps(entries(outcome))).replace("aws_secret", "")
    assert entries(outcome)[0]["backend_config"]["api_key_env"] == "GPT_4_1_MINE_API_KEY"
    assert (3, "todo", "model_list.0.litellm_params.api_key") in remarks(outcome)


def test_parameters_and_information() -> None:
    """Parameters of requests become defaults, what is forced becomes request, what the model is its own fields."""
    params = {"temperature": 0, "max_tokens": 5, "extra_body": {"top_k": 1}, "additional_drop_params": ["n"]}
    info = {"mode": "embedding", "supports_vision": True, "supports_reasoning": False, "max_tokens": 64, "id": "7"}
    outcome = read(litellm("ollama/x", {**info, "cost": 1}, **params, rpm=3, weird=1, max_parallel_requests=2))
    (found,) = entries(outcome)
    assert found["generation_defaults"] == {"temperature": 0, "max_tokens": 5}
    assert found["request"] == {"strip": ["n"], "set": {"top_k": 1}}
    assert (found["capabilities"], found["context_length"]) == (["embedding", "vision"], 64)
    assert (found["metadata"], found["max_parallel"]) == ({"id": "7"}, 2)
    assert [subject.rpartition(".")[2] for _, kind, subject in remarks(outcome) if kind == "lost"] == [
        "cost",
        "rpm",
        "weird",
    ]


def test_a_context_is_that_of_the_input() -> None:
    """Of two limits that of the input is the context."""
    assert entry(litellm("ollama/x", {"max_tokens": 64, "max_input_tokens": 512}))["context_length"] == 512


def test_an_address_from_the_environment() -> None:
    """An address in a variable is filled in; one that is not set is told."""
    text = litellm("openai/x", api_base="os.environ/BASE")
    assert entry(text, BASE="http://h/v1")["backend_config"] == {"base_url": "http://h/v1"}
    with pytest.raises(SourceError, match="stands in the environment variable BASE, which is not set: set it"):
        read(text)


def test_other_names_and_fallbacks() -> None:
    """Names for groups become aliases, fallbacks of a name those of a role; what names nobody is told."""
    text = """
        model_list:
          - {model_name: A.b, litellm_params: {model: ollama/a}}
          - {model_name: c, litellm_params: {model: ollama/c}}
        router_settings:
          model_group_alias: {x: A.b, y: {model: c, hidden: true}, z: nobody, c: A.b}
          fallbacks:
            - A.b: [c, nobody]
            - nobody: [c]
        litellm_settings: {default_fallbacks: [c]}
        """
    outcome = read(text)
    first, second = entries(outcome)
    assert (first["model_aliases"], second["model_aliases"]) == (["x"], ["y"])
    assert first["role_priority"] == {"a.b": 50}
    assert outcome.settings == ['[roles."a.b"]\nfallback = ["c"]']
    assert remarks(outcome) == [
        (5, "lost", "router_settings.model_group_alias.z"),
        (7, "changed", "router_settings.fallbacks.A.b"),
        (8, "lost", "router_settings.fallbacks.nobody"),
        (9, "lost", "litellm_settings.default_fallbacks"),
    ]


def test_names_of_several_are_told_apart() -> None:
    """Deployments of one name get names of their own that nobody has, and a role of that name."""
    names = ["m", "m", "m-2", "m"]
    models = [{"model_name": name, "litellm_params": {"model": f"ollama/{at}"}} for at, name in enumerate(names)]
    found = entries(read(json.dumps({"model_list": models})))
    assert [each["name"] for each in found] == ["m", "m-3", "m-2", "m-4"]
    assert [each.get("role_priority") for each in found] == [{"m": 50}, {"m": 50}, None, {"m": 50}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_list: {a: 1}", "line 1: model_list must be a list, not a mapping"),
        ("model_list:\n- a", "line 2: model_list.0 must be a mapping, not a text"),
        ("model_list:\n- {litellm_params: {model: x}}", "line 2: model_list.0 has no model_name"),
        ("model_list:\n- {model_name: x}", "line 2: model_list.0 has no litellm_params"),
        ("model_list:\n- {model_name: x, litellm_params: {}}", "has no litellm_params.model"),
        ("model_list:\n- {model_name: [x], litellm_params: {model: x}}", "model_name must be a text, not a list"),
        (litellm("openai/x", api_base="h:1"), "api_base must begin with http:// or https://"),
        (litellm("ollama/x", extra_body=3), "extra_body must be a mapping, not a number"),
        (litellm("ollama/x", litellm_credential_name="c"), "names the credential 'c', which is not listed"),
        (litellm("ollama/x", max_parallel_requests=10**6), "gives no valid max_parallel"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, words: str) -> None:
    """A file that LiteLLM could not start with is refused with the line."""
    with pytest.raises(SourceError) as raised:
        read(text)
    assert words in str(raised.value)


def test_a_credential_without_a_name_is_nobodys() -> None:
    """Credentials are found by name; one that has none, or no values, is passed over."""
    text = """
        model_list: [{model_name: m, litellm_params: {model: openai/x, litellm_credential_name: c}}]
        credential_list:
          - {credential_values: {api_key: k}}
          - {credential_name: d}
          - {credential_name: c, credential_values: {api_base: "http://h/v1", api_key: os.environ/C_KEY}}
        """
    assert entry(text)["backend_config"] == {"base_url": "http://h/v1", "api_key_env": "C_KEY"}


def with_variables(name: str, **more: Any) -> str:
    """A configuration whose address is in a variable that it sets itself."""
    variables = {name: "http://own/v1", **more}
    return json.dumps(
        json.loads(litellm("openai/x", api_base=f"os.environ/{name}")) | {"environment_variables": variables}
    )


def test_variables_that_the_file_sets_itself() -> None:
    """An address in a variable of the same file is filled in; the environment's value goes before it."""
    text = with_variables("BASE", N=1)
    assert entry(text)["backend_config"] == {"base_url": "http://own/v1"}
    assert entry(text, BASE="http://h/v1")["backend_config"] == {"base_url": "http://h/v1"}


def test_a_secret_that_the_file_sets_is_not_used() -> None:
    """A variable whose name says that it is secret is not filled in: it would stand in the registry."""
    text = with_variables("A_TOKEN")
    with pytest.raises(SourceError, match="A_TOKEN, which is not set"):
        read(text)
