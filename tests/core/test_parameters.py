"""What of a body an engine gets, but for messages and images."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import entry
from rolecall.core.endpoints import CHAT, COUNT_TOKENS, MESSAGES, RESPONSES
from rolecall.core.models import SIZE_DEFAULTS
from rolecall.core.parameters import NOT_FOR_CLIENTS, adapt
from rolecall.core.traits import Traits
from rolecall.core.transforms import GENERATING, read_facts

COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
HELLO = {"role": "user", "content": "hello"}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages) or [HELLO], **fields}


def adapted(
    body: dict[str, Any], endpoint: str = CHAT, *, traits: Traits | None = None, **fields: Any
) -> dict[str, Any]:
    complete = {"prompt": "x", "input": "x", **body}
    return adapt(body, read_facts(complete, endpoint, max_image_bytes=1000), entry(**fields), "served", traits)


values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
MEANINGFUL = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
SIZES = SIZE_DEFAULTS | {"temp", "temperature"}
other_names = st.sampled_from(["seed", "top_p", "x"]) | st.text(max_size=8).filter(
    lambda n: n not in MEANINGFUL | SIZES | NOT_FOR_CLIENTS | {"prompt", "input"}
)
other_fields = st.dictionaries(other_names, values, max_size=5)


@given(fields=other_fields, endpoint=st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]))
def test_unknown_fields_pass(fields: dict[str, Any], endpoint: str) -> None:
    """Without rules an engine gets what the client sent, but for its own name of the model."""
    body = chat(**fields)
    before = copy.deepcopy(body)
    after = adapted(body, endpoint)
    assert after == {**before, "model": "served"}
    assert list(after) == list(before)
    assert body == before


@given(fields=other_fields, defaults=other_fields)
def test_defaults_fill_only_what_is_silent(fields: dict[str, Any], defaults: dict[str, Any]) -> None:
    """A default fills what is left out or null; nothing that was sent is changed."""
    after = adapted(chat(**fields), generation_defaults=defaults)
    for name in fields.keys() | defaults.keys():
        sent = fields.get(name)
        assert after.get(name) == (defaults.get(name) if sent is None else sent)


@pytest.mark.parametrize(
    ("sent", "after"),
    [
        ({}, {"max_tokens": 100, "temperature": 0.2}),
        ({"temperature": 0}, {"max_tokens": 100, "temperature": 0}),
        ({"temperature": None}, {"max_tokens": 100, "temperature": 0.2}),
        ({"max_tokens": 5}, {"max_tokens": 5, "temperature": 0.2}),
        ({"max_completion_tokens": 5}, {"max_completion_tokens": 5, "temperature": 0.2}),
        ({"n_predict": 5}, {"n_predict": 5, "temperature": 0.2}),
        (
            {"max_completion_tokens": None},
            {"max_completion_tokens": None, "max_tokens": 100, "temperature": 0.2},
        ),
    ],
)
def test_defaults(sent: dict[str, Any], after: dict[str, Any]) -> None:
    """A limit under either of its two names is a limit; sizes of the engine are no request fields."""
    defaults = {"temperature": 0.2, "max_tokens": 100, "context_window": 8192, "num_ctx": 1, "top_p": None}
    after = chat(**after) | {"model": "served"}
    assert adapted(chat(**sent), backend="openai", generation_defaults=defaults) == after


def test_default_of_the_newer_name_gives_way_to_the_older() -> None:
    """A default max_completion_tokens does not stand beside a max_tokens that was sent."""
    after = adapted(chat(max_tokens=5), generation_defaults={"max_completion_tokens": 100})
    assert "max_completion_tokens" not in after


def test_defaults_are_for_generating_endpoints() -> None:
    """An embedding has no temperature."""
    assert adapted({"model": "m"}, EMBEDDINGS, generation_defaults={"temperature": 0.2}) == {"model": "served"}


def test_registry_has_the_last_word() -> None:
    """Stripped keys go and set keys stand, over defaults and over what was sent, on every endpoint."""
    rules = {"strip": ["seed", "user", "absent"], "set": {"user": "proxy", "top_k": 1}}
    body = chat(seed=1, user="me", top_k=5)
    after = chat(user="proxy", top_k=1) | {"model": "served"}
    assert adapted(body, request=rules, generation_defaults={"seed": 3}) == after
    assert adapted(body, EMBEDDINGS, request=rules) == after


@pytest.mark.parametrize("endpoint", sorted(GENERATING))
def test_usage_is_asked_for_on_our_account(endpoint: str) -> None:
    """Of a stream the usage is asked for, beside whatever other options the client gave."""
    body = chat(stream=True, stream_options={"include_usage": False, "other": 1})
    assert adapted(body, endpoint)["stream_options"] == {"include_usage": True, "other": 1}
    assert body["stream_options"] == {"include_usage": False, "other": 1}
    assert adapted(chat(stream=True, stream_options=None), endpoint)["stream_options"] == {"include_usage": True}


def test_usage_that_the_client_asked_for_is_left_alone() -> None:
    """A client's own wish is forwarded as it stands; a whole answer carries its usage anyway."""
    wish = {"include_usage": True}
    assert adapted(chat(stream=True, stream_options=wish))["stream_options"] is wish
    assert "stream_options" not in adapted(chat())


def test_an_engine_option_goes_by_its_name_in_requests() -> None:
    """``temp`` is the request's temperature; a client's own goes before it."""
    after = adapted(chat(), generation_defaults={"temp": 0.2})
    assert after["temperature"] == 0.2
    assert "temp" not in after
    assert adapted(chat(temperature=0.9), generation_defaults={"temp": 0.2})["temperature"] == 0.9


def test_sizes_never_travel_in_a_request() -> None:
    """What an engine is started with is no field of a request."""
    sizes = {"ctx_size": 1, "batch_size": 2, "ubatch_size": 3, "num_ctx": 4, "n_batch": 5}
    after = adapted(chat(), generation_defaults={**sizes, "top_k": 7})
    assert after["top_k"] == 7
    assert sizes.keys().isdisjoint(after)


# -- the limit of an answer under the engine's name for it


@pytest.mark.parametrize(
    ("endpoint", "backend", "sent", "after"),
    [
        (CHAT, "llama_cpp", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (CHAT, "ollama", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (CHAT, "ollama", {"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        (CHAT, "ollama", {"max_completion_tokens": None, "max_tokens": 9}, {"max_tokens": 9}),
        (CHAT, "ollama", {"max_tokens": 9}, {"max_tokens": 9}),
        (CHAT, "vllm", {"max_completion_tokens": 5, "max_tokens": 9}, {"max_completion_tokens": 5, "max_tokens": 9}),
        (CHAT, "openai", {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        (COMPLETIONS, "vllm", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (MESSAGES, "vllm", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (RESPONSES, "vllm", {"max_tokens": 5}, {"max_output_tokens": 5}),
        (RESPONSES, "vllm", {"max_tokens": 5, "max_output_tokens": 7}, {"max_tokens": 5, "max_output_tokens": 7}),
        (RESPONSES, "vllm", {"max_output_tokens": 7}, {"max_output_tokens": 7}),
        (EMBEDDINGS, "ollama", {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        (CHAT, "ollama", {}, {}),
    ],
)
def test_the_limit_has_the_name_that_the_engine_knows(
    endpoint: str, backend: str, sent: dict[str, Any], after: dict[str, Any]
) -> None:
    """Where an engine knows one name only, that is the one; the newer of OpenAI's two counts where both were sent."""
    assert adapted(chat(**sent), endpoint, backend=backend) == chat(**after) | {"model": "served"}


@pytest.mark.parametrize(
    ("endpoint", "after"),
    [
        (CHAT, {"max_tokens": 100, "temperature": 0.2}),
        (COMPLETIONS, {"max_tokens": 100, "temperature": 0.2}),
        (RESPONSES, {"max_output_tokens": 100, "temperature": 0.2}),
        (MESSAGES, {"max_tokens": 100, "temperature": 0.2}),
        (COUNT_TOKENS, {}),
    ],
)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_a_default_limit_has_the_endpoints_name(endpoint: str, name: str, after: dict[str, Any]) -> None:
    """Whatever the registry calls it, it is the limit of each endpoint that writes."""
    body = chat()
    got = adapted(body, endpoint, backend="vllm", generation_defaults={name: 100, "temperature": 0.2})
    if endpoint == CHAT:
        after = {name: 100, "temperature": 0.2}
    assert got == body | after | {"model": "served"}


# -- what is not for clients


def test_fields_that_act_on_engines_do_not_reach_them() -> None:
    """What would reload a model, take a slot, run a template or fetch from a host stays out; the rest passes."""
    body = chat(
        num_ctx=4096,
        keep_alive=0,
        id_slot=3,
        sse_ping_interval=0,
        chat_template="{{ 1 }}",
        kv_transfer_params={"remote_host": "10.0.0.1"},
        prompt_embeds="AAAA",
        options={"num_ctx": 4096, "num_gpu": 1, "temperature": 0.1},
        chat_template_kwargs={"chat_template": "x", "tokenize": True, "enable_thinking": False},
        cache_prompt=True,
        lora=[{"id": 0, "scale": 1}],
        x_unknown=1,
    )
    before = copy.deepcopy(body)
    assert adapted(body) == chat(
        options={"temperature": 0.1},
        chat_template_kwargs={"enable_thinking": False},
        cache_prompt=True,
        lora=[{"id": 0, "scale": 1}],
        x_unknown=1,
    ) | {"model": "served"}
    assert body == before


def test_the_registry_may_set_what_clients_may_not() -> None:
    """The rule is for clients: who writes the registry owns the engine."""
    after = adapted(chat(id_slot=1), request={"set": {"id_slot": 2}}, generation_defaults={"chat_template": "x"})
    assert (after["id_slot"], after["chat_template"]) == (2, "x")


@pytest.mark.parametrize("value", [None, 5, "x", {"temperature": 1}, []])
def test_options_of_any_form_pass(value: Any) -> None:
    """What holds nothing of the kind is the very same object."""
    assert adapted(chat(options=value))["options"] is value


# -- instructions


def test_developers_become_systems_where_the_traits_say_so() -> None:
    """The traits decide; without any, roles are left alone."""
    body = chat({"role": "developer", "content": "be brief"}, HELLO)
    assert adapted(body)["messages"] is body["messages"]
    assert adapted(body, traits=Traits(knows_developer=True))["messages"] is body["messages"]
    assert adapted(body, traits=Traits())["messages"] == [{"role": "system", "content": "be brief"}, HELLO]
    assert body["messages"][0]["role"] == "developer"


def test_responses_for_llama_cpp_are_put_into_its_words() -> None:
    """What only OpenAI could read goes, and a wanted format gets the name that llama.cpp knows."""
    body = {"model": "m", "input": [{"type": "reasoning", "summary": []}], "text": {"format": {"type": "json_object"}}}
    facts = read_facts(body, "/v1/responses", max_image_bytes=1)
    fitted = adapt(body, facts, entry(backend="llama_cpp"), "m")
    assert (fitted["input"], fitted["response_format"]) == ([], {"type": "json_object"})
    assert adapt(body, facts, entry(backend="vllm"), "m")["input"] == body["input"]


STAND_IN = {"rolecall_defaults": {"temperature": 0.35, "top_k": 40, "n": 5, "mirostat": 2**40, "top_p": "x"}}


def test_numbers_that_come_last() -> None:
    """Those of our own field fill what neither the request nor the entry gives, by known names and within bounds."""
    after = adapted(chat(**STAND_IN, temperature=None), generation_defaults={"top_k": 7})
    assert after == chat(model="served", temperature=0.35, top_k=7)
    assert adapted(chat(**STAND_IN, temperature=1))["temperature"] == 1
    assert adapted(chat(rolecall_defaults=3)) == chat(model="served")


def test_numbers_that_come_last_are_for_llama_cpp() -> None:
    """No other engine gets them, nor the field."""
    assert adapted(chat(**STAND_IN), backend="openai") == chat(model="served")
    assert adapted(chat(**STAND_IN), EMBEDDINGS) == chat(model="served")


SEEN = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}


def test_pictures_take_any_slot() -> None:
    """Of llama.cpp they never take the one that an entry keeps for its conversations; nor the one a client names."""
    own = {"id_slot": 3}
    assert adapted(chat(SEEN, id_slot=2), generation_defaults=own)["id_slot"] == -1
    assert adapted(chat(), generation_defaults=own)["id_slot"] == 3
    assert adapted(chat(SEEN), request={"set": {"id_slot": 1}})["id_slot"] == 1
    assert "id_slot" not in adapted(chat(SEEN), backend="openai")
