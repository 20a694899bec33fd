"""The npm package openai, beyond what each client is asked."""

from __future__ import annotations

from typing import Any

import pytest

from clients.adapters import Npm, needs_node
from clients.entries import ANSWER, CAPTION, ODD_NAMES
from harness import Rolecall

pytestmark = needs_node


@pytest.fixture
def npm(base_url: str) -> Npm:
    """The client."""
    return Npm(base_url)


@pytest.mark.parametrize(
    ("mode", "model", "found"),
    [
        ("tools", "demo-chat", [["get_weather", {"city": "Paris"}]]),
        ("schema", "demo-chat", {"city": "Paris"}),
        ("picture", "role:caption", CAPTION),
        ("responses", "role:chat", ANSWER),
    ],
)
def test_calls(npm: Npm, mode: str, model: str, found: Any) -> None:
    """Tools, structured output, pictures as data URIs, the Responses endpoint."""
    assert npm.call(mode, model) == found


def test_usage_of_a_stream(npm: Npm) -> None:
    """Who asks for usage has it in the last chunk."""
    *others, last = npm.call("usage", "demo-chat")
    assert set(others) == {None}
    assert last["completion_tokens"] > 5


def test_embeddings(npm: Npm) -> None:
    """One vector for each text; this client asks for base64 as well."""
    first, second, third = npm.call("embeddings", "demo-embed")
    assert first == pytest.approx(third, abs=1e-5)
    assert first != pytest.approx(second, abs=1e-5)


@pytest.mark.parametrize("name", [*ODD_NAMES, "role:caption"])
def test_ids_in_paths(npm: Npm, name: str) -> None:
    """A model is found by its id, whatever the id holds and however the client spells it in a path."""
    assert npm.call("retrieve", name) == name


def test_the_list_of_models(npm: Npm) -> None:
    """All installed models."""
    assert {"demo-chat", *ODD_NAMES} <= {*npm.call("list", "")}


def test_headers_of_the_answer(npm: Npm, server: Rolecall) -> None:
    """``withResponse`` shows which model answered, and the id that the log has."""
    model, header, request_id = npm.call("headers", "role:chat")
    assert (model, header) == ("demo-chat", "demo-chat")
    assert server.line(request_id)["status"] == 200


def test_errors_have_their_classes(npm: Npm) -> None:
    """The class, the status and the code that programs look at."""
    with pytest.raises(RuntimeError, match="NotFoundError 404 model_not_found: 404 The model 'demo-chatt'"):
        npm.call("whole", "demo-chatt")
    with pytest.raises(RuntimeError, match=r"BadRequestError 400 unsupported_input: 400 .*lacks vision"):
        npm.call("picture", "demo-chat")
