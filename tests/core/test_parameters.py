"""What of a body an engine gets, but for messages and images."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import entry
from rolecall.core.endpoints import CHAT
from rolecall.core.models import SIZE_DEFAULTS
from rolecall.core.parameters import adapt
from rolecall.core.transforms import GENERATING, read_facts

COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
HELLO = {"role": "user", "content": "hello"}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages) or [HELLO], **fields}


def adapted(body: dict[str, Any], endpoint: str = CHAT, **fields: Any) -> dict[str, Any]:
    return adapt(body, read_facts(body, endpoint, max_image_bytes=1000), entry(**fields), "served")


values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
MEANINGFUL = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
SIZES = SIZE_DEFAULTS | {"temp", "temperature"}
other_names = st.sampled_from(["seed", "top_p", "x"]) | st.text(max_size=8).filter(
    lambda n: n not in MEANINGFUL | SIZES
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
        (
            {"max_completion_tokens": None},
            {"max_completion_tokens": None, "max_tokens": 100, "temperature": 0.2},
        ),
    ],
)
def test_defaults(sent: dict[str, Any], after: dict[str, Any]) -> None:
    """A limit under either of its two names is a limit; sizes of the engine are no request fields."""
    defaults = {"temperature": 0.2, "max_tokens": 100, "context_window": 8192, "num_ctx": 1, "top_p": None}
    assert adapted(chat(**sent), generation_defaults=defaults) == chat(**after) | {"model": "served"}


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
