"""OpenAI's Python client, synchronous and asynchronous, against the real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from clients.entries import ANSWER, CAPTION, HELLO, ODD_NAMES, PICTURE, THOUGHT, WEATHER, Place, statuses
from harness import Rolecall, eventually


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The client with its defaults."""
    with openai.OpenAI(base_url=base_url, api_key="none") as each:
        yield each


@pytest_asyncio.fixture
async def async_client(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The asynchronous client with its defaults."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as each:
        yield each


def said(chunks: Any) -> str:
    """Return the text of a stream of chunks."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# -- chat


@pytest.mark.parametrize("model", ["demo-chat", "role:chat"])
def test_chat(client: openai.OpenAI, server: Rolecall, model: str) -> None:
    """A whole answer, by name and by role, with usage and with a line in the log that the answer's id names."""
    answer = client.chat.completions.create(model=model, messages=HELLO)
    assert answer.choices[0].message.content == ANSWER
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "demo-chat")
    assert answer.usage is not None
    line = server.line(str(answer._request_id))
    assert line["completion_tokens"] == answer.usage.completion_tokens > 5
    assert (line["requested_model"], line["model"]) == (model, "demo-chat")


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}], ids=["silent", "declined"])
def test_a_stream_without_usage(client: openai.OpenAI, options: dict[str, Any]) -> None:
    """Whoever does not ask for usage gets no chunk with it, and none without choices."""
    chunks: Any = [*client.chat.completions.create(model="demo-chat", messages=HELLO, stream=True, **options)]
    assert said(chunks) == ANSWER
    assert len(chunks) > 5
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert all(chunk.choices for chunk in chunks)


def test_a_stream_with_usage(client: openai.OpenAI) -> None:
    """Whoever asks for usage gets one last chunk with it and without choices."""
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks: Any = [*client.chat.completions.create(model="demo-chat", messages=HELLO, **options)]
    assert said(chunks) == ANSWER
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens


def test_the_stream_helper(client: openai.OpenAI) -> None:
    """The client's own accumulation of a stream ends with the whole message."""
    with client.chat.completions.stream(model="demo-chat", messages=HELLO) as stream:
        kinds = {event.type for event in stream}
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == ANSWER
    assert kinds >= {"chunk", "content.delta", "content.done"}


async def test_many_at_once(async_client: openai.AsyncOpenAI) -> None:
    """A dozen answers at once, streamed and not."""

    async def whole() -> str | None:
        answer = await async_client.chat.completions.create(model="role:chat", messages=HELLO)
        return answer.choices[0].message.content

    async def streamed() -> str:
        chunks = await async_client.chat.completions.create(model="demo-chat", messages=HELLO, stream=True)
        return said([chunk async for chunk in chunks])

    assert await asyncio.gather(*(each() for each in (whole, streamed) * 6)) == [ANSWER] * 12


def test_thoughts(client: openai.OpenAI) -> None:
    """A model that reasons says so in a field of its own, streamed and not."""
    answer = client.chat.completions.create(model="role:reasoning", messages=HELLO)
    message = answer.choices[0].message
    assert (message.content, (message.model_extra or {})["reasoning_content"]) == (ANSWER, THOUGHT)
    chunks = [*client.chat.completions.create(model="role:reasoning", messages=HELLO, stream=True)]
    thoughts = [(chunk.choices[0].delta.model_extra or {}).get("reasoning_content") or "" for chunk in chunks]
    assert (said(chunks), "".join(thoughts)) == (ANSWER, THOUGHT)


def test_unknown_fields_pass(client: openai.OpenAI) -> None:
    """What only the engine knows reaches it: here a stop word of ours and llama.cpp's own token limit."""
    answer = client.chat.completions.create(model="demo-chat", messages=HELLO, extra_body={"n_predict": 2})
    assert (answer.choices[0].finish_reason, len(answer.choices[0].message.content or "") < 12) == ("length", True)
    answer = client.chat.completions.create(model="demo-chat", messages=HELLO, stop=["demo"])
    assert answer.choices[0].message.content == ANSWER.partition("demo")[0]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_token_limit(client: openai.OpenAI, name: str) -> None:
    """The older and the newer name of the limit both cut the answer."""
    answer = client.chat.completions.create(model="demo-chat", messages=HELLO, **{name: 3})  # type: ignore[call-overload]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_a_developer_speaks(client: openai.OpenAI) -> None:
    """The newer name of the system's role is taken."""
    messages: Any = [{"role": "developer", "content": "Be short."}, *HELLO]
    assert client.chat.completions.create(model="demo-chat", messages=messages).choices[0].message.content == ANSWER


# -- tools and structured output


def test_a_tool_is_called_and_answered(client: openai.OpenAI) -> None:
    """The model calls the tool; with the tool's result in the conversation, and no tool on offer, it answers."""
    answer = client.chat.completions.create(model="demo-chat", messages=HELLO, tools=[WEATHER])
    message = answer.choices[0].message
    (call,) = message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    assert answer.choices[0].finish_reason == "tool_calls"
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    conversation: Any = [*HELLO, message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(model="demo-chat", messages=conversation)
    assert after.choices[0].message.content == ANSWER


def test_a_streamed_tool_call(client: openai.OpenAI) -> None:
    """The pieces of a call, put together by the client, are the call."""
    with client.chat.completions.stream(model="demo-chat", messages=HELLO, tools=[WEATHER]) as stream:
        stream.until_done()
        whole = stream.get_final_completion()
    (call,) = whole.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    assert whole.choices[0].finish_reason == "tool_calls"


def test_structured_output(client: openai.OpenAI) -> None:
    """A JSON schema holds the model to it."""
    schema: Any = {"name": "place", "schema": Place.model_json_schema(), "strict": True}
    answer = client.chat.completions.create(
        model="demo-chat", messages=HELLO, response_format={"type": "json_schema", "json_schema": schema}, max_tokens=60
    )
    assert Place.model_validate_json(answer.choices[0].message.content or "") == Place(city="Paris", size=7)


def test_json_of_any_shape(client: openai.OpenAI) -> None:
    """JSON mode without a schema gives some JSON."""
    options: Any = {"response_format": {"type": "json_object"}, "max_tokens": 100}
    answer = client.chat.completions.create(model="demo-chat", messages=HELLO, **options)
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_parsed_output(client: openai.OpenAI) -> None:
    """The client's ``parse`` gives an object of the class."""
    answer = client.chat.completions.parse(model="demo-chat", messages=HELLO, response_format=Place, max_tokens=60)
    assert answer.choices[0].message.parsed == Place(city="Paris", size=7)


# -- pictures


@pytest.mark.parametrize("model", ["demo-vision", "role:caption"])
def test_a_picture(client: openai.OpenAI, model: str) -> None:
    """A picture as a data URI is seen, streamed and not."""
    messages: Any = [{"role": "user", "content": PICTURE}]
    answer = client.chat.completions.create(model=model, messages=messages)
    assert (answer.choices[0].message.content, answer.model) == (CAPTION, "demo-vision")
    assert said(client.chat.completions.create(model=model, messages=messages, stream=True)) == CAPTION


# -- other endpoints


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_embeddings(client: openai.OpenAI, encoding: Any) -> None:
    """One vector for each text, in its order, however they are encoded (the client asks for base64 by itself)."""
    options = {"encoding_format": encoding} if encoding else {}
    texts = ["one", "two", "one"]
    answer = client.embeddings.create(model="demo-embed", input=texts, **options)
    assert [row.index for row in answer.data] == [0, 1, 2]
    first, second, third = (row.embedding for row in answer.data)
    assert len(first) == len(second) == len(third) > 0
    assert answer.usage.prompt_tokens > 0
    if encoding != "base64":  # which the client leaves to whoever asked for it
        assert first == pytest.approx(third, abs=1e-5)
        assert first != pytest.approx(second, abs=1e-5)


def test_completions(client: openai.OpenAI) -> None:
    """The older endpoint for plain text, whole and streamed."""
    assert client.completions.create(model="demo-chat", prompt="Hello?").choices[0].text == ANSWER
    chunks = client.completions.create(model="demo-chat", prompt="Hello?", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == ANSWER


def test_responses(client: openai.OpenAI) -> None:
    """The Responses endpoint, whole, with a tool, and with a picture."""
    answer = client.responses.create(model="role:chat", input="Hello?")
    assert (answer.output_text, answer.status) == (ANSWER, "completed")
    tool: Any = {"type": "function", **WEATHER["function"], "strict": False}
    (call,) = client.responses.create(model="demo-chat", input="Hello?", tools=[tool]).output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    parts = [
        {"type": "input_text", "text": "what is it?"},
        {"type": "input_image", "image_url": PICTURE[1]["image_url"]["url"], "detail": "auto"},
    ]
    seen: Any = [{"role": "user", "content": parts}]
    assert client.responses.create(model="role:caption", input=seen).output_text == CAPTION


def test_streamed_responses(client: openai.OpenAI) -> None:
    """A stream of the Responses endpoint has its deltas, and ends with the whole answer."""
    events: Any = [*client.responses.create(model="demo-chat", input="Hello?", stream=True)]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert events[-1].type == "response.completed"
    assert events[-1].response.output[0].content[0].text == ANSWER


def test_the_stream_helper_of_responses(client: openai.OpenAI) -> None:
    """The client's own accumulation of a stream, with thoughts before the answer, ends with the whole."""
    with client.responses.stream(model="role:reasoning", input="Hello?") as stream:
        numbers = [event.sequence_number for event in stream]
        whole = stream.get_final_response()
    assert whole.output_text == ANSWER
    assert numbers == sorted(numbers)
    assert [item.type for item in whole.output] == ["reasoning", "message"]


def test_parsed_responses(client: openai.OpenAI) -> None:
    """A class as the format of a response is held to, and parsed."""
    answer = client.responses.parse(model="demo-chat", input="Hello?", text_format=Place, max_output_tokens=60)
    assert answer.output_parsed == Place(city="Paris", size=7)


def test_a_conversation_in_responses(client: openai.OpenAI) -> None:
    """Past answers may be given in the short form, or as the items that came."""
    short: Any = [*HELLO, {"role": "assistant", "content": ANSWER}, *HELLO]
    assert client.responses.create(model="demo-chat", input=short).output_text == ANSWER
    thought = client.responses.create(model="role:reasoning", input="Hello?").output
    whole: Any = [*HELLO, *thought, *HELLO]
    assert client.responses.create(model="role:reasoning", input=whole).output_text == ANSWER


def test_several_answers(client: openai.OpenAI) -> None:
    """More than one answer to a request, and the probabilities of its tokens, come through."""
    options: Any = {"model": "demo-chat", "messages": HELLO, "n": 2}
    assert [choice.index for choice in client.chat.completions.create(**options).choices] == [0, 1]
    chunks = client.chat.completions.create(**options, stream=True)
    assert {chunk.choices[0].index for chunk in chunks if chunk.choices} == {0, 1}
    sure = client.chat.completions.create(model="demo-chat", messages=HELLO, logprobs=True, top_logprobs=1)
    assert sure.choices[0].logprobs is not None
    assert sure.choices[0].logprobs.content


def test_what_is_not_there(client: openai.OpenAI, server: Rolecall) -> None:
    """Endpoints that do not exist, or that the engine or the model lacks, are told apart, and none is asked again."""
    with pytest.raises(openai.NotFoundError, match="There is nothing at /v1/moderations"):
        client.moderations.create(input="Hello?")
    with pytest.raises(openai.InternalServerError, match=r"llama\.cpp has no /v1/audio/speech") as silent:
        client.audio.speech.create(model="demo-chat", input="Hello?", voice="alloy")
    assert (silent.value.status_code, silent.value.code) == (501, "not_supported")
    with pytest.raises(openai.BadRequestError, match="lacks audio"):
        client.audio.transcriptions.create(model="demo-chat", file=("a.wav", b"RIFF"))
    with pytest.raises(openai.BadRequestError, match="lacks embedding"):
        client.embeddings.create(model="role:chat", input="Hello?")
    assert len(eventually(lambda: _lines_of(server, "/v1/audio/speech"))) == 1


def _lines_of(server: Rolecall, endpoint: str) -> list[dict[str, Any]]:
    return [line for line in server.log_lines() if line["endpoint"] == endpoint]


# -- headers and ids


def test_headers_of_the_answer(client: openai.OpenAI, server: Rolecall) -> None:
    """Raw responses show the request's id, which the log has, and which model answered."""
    raw = client.chat.completions.with_raw_response.create(model="role:chat", messages=HELLO)
    assert raw.headers["x-rolecall-model"] == "demo-chat"
    assert raw.parse().choices[0].message.content == ANSWER
    assert server.line(raw.headers["x-request-id"])["status"] == 200
    chunks = client.chat.completions.create(model="demo-chat", messages=HELLO, stream=True)
    with chunks:
        assert chunks.response.headers["x-rolecall-model"] == "demo-chat"
        assert server.line(chunks.response.headers["x-request-id"])["stream"]


def test_organization_and_project_are_accepted(base_url: str) -> None:
    """The headers that name an organization and a project change nothing."""
    with openai.OpenAI(base_url=base_url, api_key="none", organization="org-1", project="proj-1") as client:
        answer = client.chat.completions.create(model="demo-chat", messages=HELLO)
    assert answer.choices[0].message.content == ANSWER


def test_the_list_of_models(client: openai.OpenAI, server: Rolecall) -> None:
    """All installed models, typed as OpenAI's; to list them loads none."""
    before = {row["model"]: row["state"] for row in server.get("/v1/models/health")["data"]}
    page = client.models.list()
    models = {model.id: model for model in page}
    assert page.object == "list"
    assert models.keys() >= {"demo-chat", "demo-vision", *ODD_NAMES}
    assert {(model.object, type(model.created)) for model in models.values()} == {("model", int)}
    assert all(model.owned_by for model in models.values())
    assert {row["model"]: row["state"] for row in server.get("/v1/models/health")["data"]} == before


@pytest.mark.parametrize("name", [*ODD_NAMES, "org/s:Q4", "role:caption"])
def test_ids_in_paths(client: openai.OpenAI, name: str) -> None:
    """A model is found by its id, whatever the id holds and however the client spells it in a path."""
    assert client.models.retrieve(name).id == name


@pytest.mark.parametrize("name", ODD_NAMES)
def test_ids_in_bodies(client: openai.OpenAI, name: str) -> None:
    """A model of any name is started by the real engine and answers by it."""
    raw = client.chat.completions.with_raw_response.create(model=name, messages=HELLO)
    assert raw.parse().choices[0].message.content == ANSWER
    assert raw.parse().model == name


# -- errors


def test_an_unknown_model(client: openai.OpenAI) -> None:
    """It is a NotFoundError that names the nearest ones."""
    for attempt in (client.models.retrieve, lambda name: client.chat.completions.create(model=name, messages=HELLO)):
        with pytest.raises(openai.NotFoundError, match=r"Did you mean 'demo-chat'") as unknown:
            attempt("demo-chatt")
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        assert unknown.value.request_id


def test_what_no_retry_can_mend(client: openai.OpenAI, server: Rolecall) -> None:
    """A picture for a model that cannot see, and a prompt that is too long, are BadRequestErrors, sent once."""
    with pytest.raises(openai.BadRequestError, match="lacks vision") as blind:
        client.chat.completions.create(model="demo-chat", messages=[{"role": "user", "content": PICTURE}])
    assert server.line(str(blind.value.request_id))["status"] == 400
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size") as long:
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "x" * 1000}])
    assert statuses(server, "small", long.value.request_id) == [400]
    no_list: Any = "no list"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="demo-chat", messages=no_list)
