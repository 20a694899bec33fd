"""What is read from a request's body."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from rolecall.core.conversation import image_positions
from rolecall.core.endpoints import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    RERANK,
    RESPONSES,
    needs_of,
)
from rolecall.core.image_parts import check_parts
from rolecall.core.media import Medium, check_images, find_media
from rolecall.core.ranges import NUMBERS
from rolecall.errors import BadRequest

GENERATING = frozenset({CHAT, COMPLETIONS})
"""The endpoints that take sampling parameters and stream with ``stream_options``."""

_PLAIN = NUMBERS | {"model", "messages", "stream", "stream_options"}
"""Fields in which nobody looks for media, but for ``messages``."""
_CONVERSATIONS = frozenset({CHAT, MESSAGES, COUNT_TOKENS})


class _Required(NamedTuple):
    """A field that an endpoint needs: one of its other names will do, and so will what stands in for it."""

    name: str
    kinds: str
    types: tuple[type, ...]
    others: tuple[str, ...] = ()


_REQUIRED = {
    # vLLM embeds conversations, too, and llama.cpp calls its own form "content".
    EMBEDDINGS: [_Required("input", "a string or a list", (str, list), ("messages", "content"))],
    # OpenAI: what goes on with an answer, or names a prompt that is kept there, needs no more.
    RESPONSES: [
        _Required("input", "a string or a list", (str, list), ("previous_response_id", "conversation", "prompt"))
    ],
    # llama.cpp: an object holds text and pictures.
    COMPLETIONS: [_Required("prompt", "a string or a list", (str, list, dict))],
    # vLLM: objects hold pictures; llama.cpp: "texts" is what Hugging Face's server calls them.
    RERANK: [
        _Required("query", "a string", (str, list, dict)),
        _Required("documents", "a list", (str, list, dict), ("texts",)),
    ],
}
"""The fields without which an engine can do nothing, in the widest form in which one of them takes them."""


class RequestFacts(NamedTuple):
    """What routing and the log need to know of a body.

    ``messages``, ``images`` and ``addresses`` are counts; the last one is of media that are named by their address.
    ``media`` are these and the images, as they stand in the body. ``in_words`` is said of a chat of whose messages none
    holds a picture, as ``core.conversation`` tells them.
    """

    endpoint: str
    model: str
    stream: bool = False
    messages: int = 0
    images: int = 0
    addresses: int = 0
    wants_usage: bool = False
    prompt_id: str | None = None
    prompt_version: str | None = None
    media: tuple[Medium, ...] = ()
    in_words: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """The capabilities that a model must have to answer."""
        needs = needs_of(self.endpoint)
        return needs | {"vision"} if self.images else needs

    @property
    def hides_usage(self) -> bool:
        """Whether the usage chunk is asked for on our own account and kept from the client."""
        return self.stream and not self.wants_usage and self.endpoint in GENERATING


def read_facts(body: Any, endpoint: str, *, max_image_bytes: int, max_images: int = 500) -> RequestFacts:
    """Return the facts of a parsed body; raises ``BadRequest`` naming the field or image."""
    if not isinstance(body, dict):
        raise BadRequest(f"The body must be a JSON object, not {_kind(body)}.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        problem = "is missing" if model is None else "must be a non-empty string"
        raise BadRequest(f"The field 'model' {problem}; it takes a model's name, an alias or role:NAME.", param="model")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest("The field 'stream' must be true or false.", param="stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequest("The field 'stream_options' must be an object.", param="stream_options")
    wants_usage = (options or {}).get("include_usage")
    if wants_usage is not None and not isinstance(wants_usage, bool):
        problem = "The field 'stream_options.include_usage' must be true or false."
        raise BadRequest(problem, param="stream_options.include_usage")
    messages, in_words, is_plain = _messages(body) if endpoint in _CONVERSATIONS else (_turns(body), False, False)
    for required in _REQUIRED.get(endpoint, ()):
        _check_required(body, required)
    is_plain = is_plain and body.keys() <= _PLAIN and not (options and options.keys() - {"include_usage"})
    media = [] if is_plain else find_media(body)
    count = check_images(media, max_images=max_images, max_image_bytes=max_image_bytes)
    if media:
        check_parts(body, media)
    metadata = body.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    return RequestFacts(
        endpoint=endpoint,
        model=model,
        stream=bool(stream),
        messages=len(messages),
        images=count,
        addresses=sum(medium.is_address for medium in media) if media else 0,
        wants_usage=bool(wants_usage),
        prompt_id=_text(named.get("prompt_id")),
        prompt_version=_text(named.get("prompt_version")),
        media=tuple(medium for medium in media if medium.kind == "image" or medium.is_address) if media else (),
        in_words=in_words and endpoint == CHAT,
    )


def _messages(body: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool, bool]:
    """Return the messages, whether none of them holds a picture, and whether all are a role and a text, no more."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        problem = "is missing" if messages is None else "must be a non-empty list"
        raise BadRequest(f"The field 'messages' {problem}.", param="messages")
    in_words = is_plain = True
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("Each message must be an object with a 'role'.", param=f"messages[{index}]")
        content = message.get("content")
        if len(message) > 2 or type(content) is not str:
            is_plain = False
            if isinstance(content, list) and image_positions(message):
                in_words = False
    return messages, in_words, is_plain


def _check_required(body: Mapping[str, Any], required: _Required) -> None:
    value = body.get(required.name)
    if value is None and any(body.get(name) is not None for name in required.others):
        return
    if isinstance(value, required.types) and value != []:
        return
    problem = "is missing" if value is None else f"must be {required.kinds}" + " that is not empty" * (value == [])
    raise BadRequest(f"The field {required.name!r} {problem}.", param=required.name)


def _turns(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the turns of the other endpoints, such as the ``input`` of /v1/responses."""
    turns = body.get("messages", body.get("input"))
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def _text(value: Any) -> str | None:
    """Return an id; a number or a truth value is one as JSON writes it."""
    if isinstance(value, int | float):
        value = json.dumps(value)
    return value[:200] if isinstance(value, str) else None


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
