"""Anthropic's Python client at the Messages endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from clients.entries import ANSWER, CAPTION, HELLO, ODD_NAMES, PIXEL, THOUGHT, WEATHER, WEATHER_PARAMETERS
from harness import Rolecall

TOOL: Any = {**WEATHER["function"], "input_schema": WEATHER_PARAMETERS}
del TOOL["parameters"]
IMAGE: Any = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": PIXEL.partition(",")[2]},
}


@pytest.fixture
def client(server: Rolecall) -> Iterator[Any]:
    """The client; its base URL has no /v1."""
    with anthropic.Anthropic(base_url=server.base_url, api_key="none") as each:
        yield each


def ask(model: str = "role:chat", **options: Any) -> dict[str, Any]:
    """Return the arguments of a call."""
    return {"model": model, "max_tokens": 100, "messages": HELLO, **options}


@pytest.mark.parametrize("model", ["role:chat", *ODD_NAMES])
def test_a_message(client: Any, model: str) -> None:
    """A whole answer, by role and by names of any kind."""
    answer = client.messages.create(**ask(model, system="Be short."))
    assert [block.text for block in answer.content] == [ANSWER]
    assert (answer.stop_reason, answer.usage.output_tokens > 5) == ("end_turn", True)


def test_streams(client: Any, server: Rolecall) -> None:
    """A stream as events, and put together by the client's helper; its line in the log is complete."""
    kinds = [event.type for event in client.messages.create(**ask(stream=True))]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    with client.messages.stream(**ask()) as stream:
        assert stream.get_final_text() == ANSWER
        line = server.line(stream.response.headers["x-request-id"])
    assert (line["endpoint"], line["status"], line["stream"]) == ("/v1/messages", 200, True)


async def test_the_asynchronous_client(server: Rolecall) -> None:
    """A stream in a task."""
    async with (
        anthropic.AsyncAnthropic(base_url=server.base_url, api_key="none") as client,
        client.messages.stream(**ask()) as stream,
    ):
        assert "".join([text async for text in stream.text_stream]) == ANSWER


def test_the_count_of_tokens(client: Any) -> None:
    """The count of a prompt is what the answer's usage says, and grows with the text: one token a byte here."""
    count = client.messages.count_tokens(model="role:chat", messages=HELLO).input_tokens
    longer = [{"role": "user", "content": HELLO[0]["content"] + "x" * 10}]
    assert client.messages.count_tokens(model="role:chat", messages=longer).input_tokens == count + 10
    usage = client.messages.create(**ask()).usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == count


def test_tools(client: Any) -> None:
    """A tool is used, and its result taken into the conversation."""
    answer = client.messages.create(**ask(tools=[TOOL]))
    (block,) = [block for block in answer.content if block.type == "tool_use"]
    assert (block.name, block.input, answer.stop_reason) == ("get_weather", {"city": "Paris"}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
    used = {"role": "assistant", "content": [block.model_dump(include={"type", "id", "name", "input"})]}
    after = client.messages.create(**ask(messages=[*HELLO, used, {"role": "user", "content": [result]}]))
    assert after.content[0].text == ANSWER


def test_a_picture(client: Any) -> None:
    """A picture in Anthropic's shape is seen; for a model that cannot see it is a BadRequestError."""
    looked = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, IMAGE]}]
    assert client.messages.create(**ask("role:caption", messages=looked)).content[0].text == CAPTION
    with pytest.raises(anthropic.BadRequestError, match="lacks vision"):
        client.messages.create(**ask("demo-chat", messages=looked))


def test_thoughts(client: Any) -> None:
    """Thoughts are blocks of their own."""
    thinking, text = client.messages.create(**ask("role:reasoning")).content
    assert (thinking.thinking, text.text) == (THOUGHT, ANSWER)


def test_models_and_errors(client: Any) -> None:
    """Models are listed and found; an unknown one is a NotFoundError with the nearest names."""
    assert {"demo-chat", *ODD_NAMES} <= {model.id for model in client.models.list()}
    assert [client.models.retrieve(name).id for name in ODD_NAMES] == list(ODD_NAMES)
    with pytest.raises(anthropic.NotFoundError, match="Did you mean 'demo-chat'"):
        client.messages.create(**ask("demo-chatt"))


def test_who_stops_reading(client: Any, server: Rolecall) -> None:
    """The engine's work ends with the stream; the line says 499."""
    loop = [{"role": "user", "content": "LOOP"}]
    with client.messages.stream(**ask("demo-chat", messages=loop) | {"max_tokens": 8000}) as stream:
        assert next(iter(stream.text_stream))
    assert server.line(stream.response.headers["x-request-id"])["status"] == 499
    server.await_in_flight("demo-chat", 0)
