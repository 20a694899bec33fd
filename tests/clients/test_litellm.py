"""litellm as a client: what it makes of tools, pictures, thoughts, embeddings and errors."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest

from clients.entries import ANSWER, CAPTION, HELLO, PICTURE, THOUGHT, WEATHER, Place


@pytest.fixture
def here(base_url: str) -> dict[str, Any]:
    """What every call takes."""
    return {"api_base": base_url, "api_key": "none"}


def test_tools(here: dict[str, Any]) -> None:
    """A tool call comes through."""
    answer = litellm.completion(model="openai/demo-chat", messages=HELLO, tools=[WEATHER], **here)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})


def test_structured_output(here: dict[str, Any]) -> None:
    """A class as the response format becomes a schema for the answer."""
    answer = litellm.completion(model="openai/demo-chat", messages=HELLO, response_format=Place, max_tokens=60, **here)
    assert Place.model_validate_json(answer.choices[0].message.content) == Place(city="Paris", size=7)


def test_usage_of_a_stream(here: dict[str, Any]) -> None:
    """The usage is in the last chunk for who asks for it."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = litellm.completion(model="openai/role:chat", messages=HELLO, **options, **here)
    assert last.usage.completion_tokens > 5


def test_thoughts_and_pictures(here: dict[str, Any]) -> None:
    """Thoughts come in the field that litellm has for them; a picture is seen."""
    message = litellm.completion(model="openai/role:reasoning", messages=HELLO, **here).choices[0].message
    assert (message.content, message.reasoning_content) == (ANSWER, THOUGHT)
    looked = [{"role": "user", "content": PICTURE}]
    assert (
        litellm.completion(model="openai/role:caption", messages=looked, **here).choices[0].message.content == CAPTION
    )


def test_other_endpoints(here: dict[str, Any]) -> None:
    """Embeddings, plain completions and Responses."""
    rows = litellm.embedding(model="openai/demo-embed", input=["one", "two"], **here).data
    assert [len(row["embedding"]) for row in rows] == [len(rows[0]["embedding"])] * 2
    assert litellm.text_completion(model="openai/demo-chat", prompt="Hello?", **here).choices[0].text == ANSWER
    assert litellm.responses(model="openai/demo-chat", input="Hello?", **here).output[0].content[0].text == ANSWER


def test_by_the_protocol_of_anthropic(base_url: str) -> None:
    """Its provider for Anthropic reaches the Messages endpoint."""
    where = {"api_base": base_url.removesuffix("/v1"), "api_key": "none"}
    answer = litellm.completion(model="anthropic/demo-chat", messages=HELLO, **where)
    assert answer.choices[0].message.content == ANSWER


def test_errors_are_told_apart(here: dict[str, Any]) -> None:
    """An unknown model, a prompt that is too long and a picture for the blind each raise the class of their kind."""
    with pytest.raises(litellm.NotFoundError, match="Did you mean"):
        litellm.completion(model="openai/demo-chatt", messages=HELLO, **here)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model="openai/org/s:Q4", messages=[{"role": "user", "content": "x" * 1000}], **here)
    with pytest.raises(litellm.BadRequestError, match="lacks vision"):
        litellm.completion(model="openai/demo-chat", messages=[{"role": "user", "content": PICTURE}], **here)
