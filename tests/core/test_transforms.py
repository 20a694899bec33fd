"""What is read from a body."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from rolecall.core.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RERANK, RESPONSES
from rolecall.core.media import Medium
from rolecall.core.transforms import RequestFacts, read_facts
from rolecall.errors import BadRequest, BodyTooLarge

LIMIT = 1000
HELLO = {"role": "user", "content": "hello"}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages) or [HELLO], **fields}


def picture(size: int, *, scheme: str = "data:image/png;base64,", flat: bool = False) -> dict[str, Any]:
    """Return an image part whose picture has ``size`` bytes."""
    url = scheme + base64.b64encode(b"x" * size).decode()
    return {"type": "input_image", "image_url": url} if flat else {"type": "image_url", "image_url": {"url": url}}


def said(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def facts(body: Any, endpoint: str = CHAT) -> RequestFacts:
    return read_facts(body, endpoint, max_image_bytes=LIMIT)


# -- facts


ODD: list[Any] = ["false", "true", 0, 1, [], {}]


def test_facts_of_a_small_request() -> None:
    """A request that says nothing special is a whole answer to words."""
    read = facts(chat())
    assert read == RequestFacts(endpoint=CHAT, model="m", messages=1, in_words=True)
    assert read.needs == {"text"}
    assert not read.hides_usage


@pytest.mark.parametrize(
    ("message", "in_words"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, True),
        ({"role": "user", "content": {"text": "x"}}, True),
        ({"role": "user"}, True),
        (said(picture(3)), False),
        (said({"type": "text", "text": "what is it?"}), True),
        (said({"type": "text", "text": "what is it?", "image_url": None}), False),
    ],
)
def test_a_chat_without_pictures_is_in_words(message: dict[str, Any], in_words: bool) -> None:  # noqa: FBT001
    """One is enough to make it another one, whatever it is worth; nothing is said of other endpoints."""
    body = chat({"role": "user", "content": "hi"}, message)
    assert facts(body).in_words is in_words
    assert not facts(body, "/v1/messages").in_words


def test_facts_of_a_rich_request() -> None:
    """Stream, counts, usage and the prompt's identity are read; ids of any kind become short words."""
    body = chat(
        {"role": "system", "content": "be brief"},
        said({"type": "text", "text": "what is it?"}, picture(3), picture(3, flat=True), "odd", {"type": "text"}),
        {"role": "assistant", "content": None},
        stream=True,
        stream_options={"include_usage": True},
        metadata={"prompt_id": 7, "prompt_version": "v" * 300},
    )
    assert facts(body) == RequestFacts(
        endpoint=CHAT,
        model="m",
        stream=True,
        messages=3,
        images=2,
        wants_usage=True,
        prompt_id="7",
        prompt_version="v" * 200,
        media=(
            Medium("image", ("messages", 1, "content", 1, "image_url", "url"), size=3),
            Medium("image", ("messages", 1, "content", 2, "image_url"), size=3),
        ),
    )
    assert facts(body).needs == {"text", "vision"}


def test_nulls_are_silence() -> None:
    """Optional fields given as null say nothing."""
    read = facts(chat(stream=None, stream_options=None, metadata=None))
    assert read == facts(chat())
    assert facts(chat(stream_options={"include_usage": None})) == facts(chat())
    assert facts(chat(metadata={"prompt_id": None})).prompt_id is None


def test_ids_of_other_kinds_are_written_as_json_has_them() -> None:
    """Who finds an id in the log finds what was sent."""
    written = [facts(chat(metadata={"prompt_id": sent})).prompt_id for sent in (True, 1.5, "True", ["x"])]
    assert written == ["true", "1.5", "True", None]


def test_not_all_endpoints_need_messages() -> None:
    """What holds no conversation has none to count."""
    assert facts({"model": "m", "input": ["a"]}, EMBEDDINGS) == RequestFacts(endpoint=EMBEDDINGS, model="m")


@pytest.mark.parametrize(
    ("endpoint", "stream", "wants", "hides"),
    [
        (CHAT, True, False, True),
        (COMPLETIONS, True, False, True),
        (CHAT, True, True, False),
        (CHAT, False, False, False),
        (EMBEDDINGS, True, False, False),
    ],
)
def test_usage_is_hidden_from_who_did_not_ask(endpoint: str, *, stream: bool, wants: bool, hides: bool) -> None:
    """The usage chunk is ours alone in a generating stream whose client did not ask for it."""
    body = chat(stream=stream, stream_options={"include_usage": wants}, prompt="x", input="x")
    assert facts(body, endpoint).hides_usage is hides


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ([], None, "The body must be a JSON object, not a list."),
        ("x", None, "The body must be a JSON object, not a string."),
        (None, None, "The body must be a JSON object, not null."),
        (True, None, "The body must be a JSON object, not a boolean."),
        (1.5, None, "The body must be a JSON object, not a number."),
        ({}, "model", "The field 'model' is missing; it takes a model's name, an alias or role:NAME."),
        ({"model": None}, "model", "The field 'model' is missing; it takes a model's name, an alias or role:NAME."),
        ({"model": 5}, "model", "The field 'model' must be a non-empty string; it takes"),
        ({"model": ""}, "model", "The field 'model' must be a non-empty string; it takes"),
        (chat(stream="yes"), "stream", "The field 'stream' must be true or false."),
        (chat(stream=1), "stream", "The field 'stream' must be true or false."),
        (chat(stream_options=True), "stream_options", "The field 'stream_options' must be an object."),
        *(
            (
                chat(stream_options={"include_usage": odd}),
                "stream_options.include_usage",
                "The field 'stream_options.inc",
            )
            for odd in ODD
        ),
        ({"model": "m"}, "messages", "The field 'messages' is missing."),
        ({"model": "m", "messages": []}, "messages", "The field 'messages' must be a non-empty list."),
        ({"model": "m", "messages": HELLO}, "messages", "The field 'messages' must be a non-empty list."),
        (chat(HELLO, "hi"), "messages[1]", "Each message must be an object with a 'role'."),
        (chat({"content": "hi"}), "messages[0]", "Each message must be an object with a 'role'."),
        (chat({"role": 1}), "messages[0]", "Each message must be an object with a 'role'."),
    ],
)
def test_wrong_body_is_named(body: Any, param: str | None, message: str) -> None:
    """A body that cannot be routed is refused with the field that is wrong."""
    with pytest.raises(BadRequest) as caught:
        facts(body)
    assert caught.value.message.startswith(message)
    assert caught.value.param == param


# -- images


@pytest.mark.parametrize("size", [LIMIT - 2, LIMIT - 1, LIMIT])
@pytest.mark.parametrize("flat", [False, True])
def test_picture_at_the_limit_passes(size: int, *, flat: bool) -> None:
    """A picture of just the allowed size passes, however its base64 is padded."""
    assert facts(chat(said(picture(size, flat=flat)))).images == 1


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/responses", {"model": "m", "input": [said(picture(5, flat=True)), "more"]}),
        ("/v1/messages", {"model": "m", "messages": [said({"type": "image", "source": {"data": "eHh4"}})]}),
    ],
)
def test_pictures_of_the_other_endpoints_count(endpoint: str, body: dict[str, Any]) -> None:
    """A picture asks for a model that can see, in whichever form of the API it comes."""
    assert facts(body, endpoint).images == 1
    assert facts(body, endpoint).needs == {"text", "vision"}


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        (EMBEDDINGS, {}, "input"),
        (EMBEDDINGS, {"input": None}, "input"),
        (EMBEDDINGS, {"input": []}, "input"),
        (EMBEDDINGS, {"input": 5}, "input"),
        (RESPONSES, {"messages": [HELLO]}, "input"),
        (RESPONSES, {"input": {"role": "user"}}, "input"),
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": True}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (RERANK, {"documents": ["a"]}, "query"),
        (RERANK, {"query": "a"}, "documents"),
        (RERANK, {"query": "a", "documents": []}, "documents"),
        (RERANK, {"query": 1, "documents": ["a"]}, "query"),
        (MESSAGES, {}, "messages"),
        (MESSAGES, {"messages": "hi"}, "messages"),
        (COUNT_TOKENS, {"messages": ["hi"]}, "messages[0]"),
    ],
)
def test_the_field_that_an_endpoint_needs_is_named(endpoint: str, fields: dict[str, Any], param: str) -> None:
    """Without what it is to read no model can do anything, so none is loaded."""
    with pytest.raises(BadRequest) as caught:
        facts({"model": "m", **fields}, endpoint)
    assert caught.value.param == param
    if "[" not in param:
        assert caught.value.message.startswith(f"The field {param!r} ")


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (EMBEDDINGS, {"input": ""}),
        (EMBEDDINGS, {"input": [1, 2]}),
        (EMBEDDINGS, {"messages": [HELLO]}),
        (EMBEDDINGS, {"content": "llama.cpp's own"}),
        (RESPONSES, {"input": "a text"}),
        (RESPONSES, {"previous_response_id": "resp_1"}),
        (COMPLETIONS, {"prompt": ""}),
        (COMPLETIONS, {"prompt": {"prompt_string": "x", "multimodal_data": ["eHh4"]}}),
        (RERANK, {"query": "a", "texts": ["b"]}),
        (RERANK, {"query": {"content": []}, "documents": {"content": []}}),
        ("/tokenize", {}),
    ],
)
def test_what_some_engine_takes_in_its_place_passes(endpoint: str, fields: dict[str, Any]) -> None:
    """Each form that an engine knows is left to the engines."""
    assert facts({"model": "m", **fields}, endpoint).images == 0


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 2, LIMIT + 3])
@pytest.mark.parametrize("scheme", ["data:image/png;base64,", "DATA:image/png;base64,"])
def test_picture_over_the_limit_is_refused_by_number(size: int, scheme: str) -> None:
    """The refusal says which picture, its size and the limit, and the setting that holds it."""
    body = chat(said(picture(5)), HELLO, said(picture(5), picture(size, scheme=scheme)))
    with pytest.raises(BodyTooLarge) as caught:
        facts(body)
    assert caught.value.message.startswith(f"Image 2 at messages[2].content[1] has {size} bytes; the limit is {LIMIT} ")
    assert caught.value.param == "messages[2].content[1]"
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/" + "x" * 5000}},
        {"type": "image_url", "image_url": {"url": None}, "uuid": "1"},
        {"type": "image_url", "image_url": None, "uuid": "1"},
        {"type": "image_url", "uuid": "1"},
        {"type": "input_image", "file_id": "file-1"},
    ],
)
def test_pictures_without_a_size_are_counted(part: dict[str, Any]) -> None:
    """A picture that is an address, or that the engine has, has no size here; it is a picture all the same."""
    assert facts(chat(said(part, part))).images == 2
    assert read_facts(chat(said(part)), CHAT, max_image_bytes=0).images == 1


def test_more_pictures_than_the_limit_are_refused() -> None:
    """The limit of pictures is for the whole request."""
    body = chat(said(picture(5)), said(picture(5), picture(5)))
    assert read_facts(body, CHAT, max_image_bytes=LIMIT, max_images=3).images == 3
    with pytest.raises(BadRequest, match="has 3 images; the limit is 2"):
        read_facts(body, CHAT, max_image_bytes=LIMIT, max_images=2)


def test_what_would_have_to_be_fetched_is_counted() -> None:
    """Media that are named by their address count, whatever they are; a data URI is none."""
    part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    sound = {"type": "audio_url", "audio_url": {"url": "file:///x"}}
    read = facts(chat(said(picture(3), part, sound), said(part)))
    assert (read.images, read.addresses) == (3, 3)
