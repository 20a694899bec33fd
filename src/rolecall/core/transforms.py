"""What is read from a request's body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rolecall.errors import BadRequest, BodyTooLarge

CHAT = "/v1/chat/completions"
GENERATING = frozenset({CHAT, "/v1/completions"})
"""The endpoints that take sampling parameters and stream with ``stream_options``."""

_IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What routing and the log need to know of a body. ``messages`` and ``images`` are counts."""

    endpoint: str
    model: str
    stream: bool = False
    messages: int = 0
    images: int = 0
    wants_usage: bool = False
    prompt_id: str | None = None
    prompt_version: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The capabilities that a model must have to answer."""
        return frozenset({"vision"}) if self.images else frozenset()

    @property
    def hides_usage(self) -> bool:
        """Whether the usage chunk is asked for on our own account and kept from the client."""
        return self.stream and not self.wants_usage and self.endpoint in GENERATING


def read_facts(body: Any, endpoint: str, *, max_image_bytes: int) -> RequestFacts:
    """Return the facts of a parsed body; raises ``BadRequest`` naming the field, ``BodyTooLarge`` naming the image."""
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
    messages = _messages(body) if endpoint == CHAT else _turns(body)
    metadata = body.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    return RequestFacts(
        endpoint=endpoint,
        model=model,
        stream=bool(stream),
        messages=len(messages),
        images=_count_images(messages, max_image_bytes),
        wants_usage=bool((options or {}).get("include_usage")),
        prompt_id=_text(named.get("prompt_id")),
        prompt_version=_text(named.get("prompt_version")),
    )


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        problem = "is missing" if messages is None else "must be a non-empty list"
        raise BadRequest(f"The field 'messages' {problem}.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("Each message must be an object with a 'role'.", param=f"messages[{index}]")
    return messages


def _turns(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what holds images on the other endpoints: ``messages`` of /v1/messages, ``input`` of /v1/responses."""
    turns = body.get("messages", body.get("input"))
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def _count_images(messages: list[dict[str, Any]], max_image_bytes: int) -> int:
    count = 0
    for part in _image_parts(messages):
        count += 1
        size = _image_bytes(part)
        if size > max_image_bytes:
            raise BodyTooLarge(
                f"Image {count} has {size} bytes; the limit is {max_image_bytes} (setting max_image_bytes).",
                param="messages",
            )
    return count


def _image_parts(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and isinstance(kind := part.get("type"), str) and kind in _IMAGE_PARTS:
                yield part


def _image_bytes(part: Mapping[str, Any]) -> int:
    """Return the decoded size of an image that came as base64, 0 for one that is elsewhere."""
    source = part.get("source")
    if isinstance(source, dict) and isinstance(source.get("data"), str):
        return _decoded_bytes(source["data"])
    url = part.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")
    if not isinstance(url, str) or url[:5].lower() != "data:":
        return 0
    return _decoded_bytes(url, url.find(",") + 1)


def _decoded_bytes(base64: str, start: int = 0) -> int:
    """Three bytes for four characters, less the padding."""
    return (len(base64) - start) * 3 // 4 - base64[-2:].count("=")


def _text(value: Any) -> str | None:
    return str(value)[:200] if isinstance(value, str | int | float) else None


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
