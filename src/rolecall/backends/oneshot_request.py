"""What a chat completion asks of a one-shot program: messages, images, numbers. No word of it becomes an option."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rolecall.errors import BadRequest, UnsupportedInput

MEDIA_MARKER = "<__media__>"
"""Where llama.cpp's mtmd library puts the next image into a prompt."""

UNMARKED = "<media>"
"""What becomes of a marker that somebody wrote: it would stand for an image that is not there."""

_OPTIONS: dict[str, tuple[str, ...]] = {
    "--temp": ("temperature", "temp"),
    "--top-p": ("top_p",),
    "--top-k": ("top_k",),
    "--min-p": ("min_p",),
    "--typical": ("typical_p",),
    "--presence-penalty": ("presence_penalty",),
    "--frequency-penalty": ("frequency_penalty",),
    "--repeat-penalty": ("repeat_penalty", "repetition_penalty"),
    "--repeat-last-n": ("repeat_last_n",),
    "--mirostat": ("mirostat",),
    "--mirostat-ent": ("mirostat_tau",),
    "--mirostat-lr": ("mirostat_eta",),
    "--seed": ("seed",),
}
_WHOLE = frozenset({"--top-k", "--repeat-last-n", "--mirostat", "--seed"})
_LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")


@dataclass(frozen=True, slots=True)
class Order:
    """One request as a program is to be started for it. ``schema`` is a JSON schema that the answer follows.

    ``max_tokens`` None is no limit; 0 is an answer without words, for which no program is started.
    """

    roles: tuple[str, ...]
    texts: tuple[str, ...]
    images: tuple[bytes, ...] = ()
    options: tuple[str, ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    wants_usage: bool = False
    schema: Any = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def read(body: Any) -> Order:
    """Return what a parsed body asks for; raises ``BadRequest`` naming the field for what cannot be done."""
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    if body.get("n") not in (None, 1):
        raise BadRequest("One answer at a time: 'n' must be 1.", param="n")
    if body.get("tools") and body.get("tool_choice") != "none":
        raise UnsupportedInput("Tools need llama-server; this model runs in mode 'cli'.", param="tools")
    images: list[bytes] = []
    messages = list(_messages(body.get("messages"), images))
    stream_options = body.get("stream_options")
    variables = body.get("chat_template_kwargs")
    return Order(
        roles=tuple(role for role, _ in messages),
        texts=tuple(text for _, text in messages),
        images=tuple(images),
        options=tuple(_options(body)),
        max_tokens=_limit(body),
        stop=_stop(body.get("stop")),
        stream=bool(body.get("stream")),
        wants_usage=bool(isinstance(stream_options, dict) and stream_options.get("include_usage")),
        schema=_schema(body.get("response_format")),
        variables=variables if isinstance(variables, dict) else {},
    )


def _messages(messages: Any, images: list[bytes]) -> Iterator[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("The field 'messages' must be a non-empty list.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("Each message must be an object with a 'role'.", param=f"messages[{index}]")
        role = "system" if message["role"] == "developer" else message["role"]
        yield role, _content(message.get("content"), images, f"messages[{index}]")


def _content(content: Any, images: list[bytes], where: str) -> str:
    """Return a content as one string: texts on lines of their own, each image as a marker where it stood."""
    parts = content if isinstance(content, list) else [content or ""]
    whole, last_was_text = "", False
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            # NULs do not reach the program, so they must not hide a marker either.
            whole += ("\n" if last_was_text else "") + text.replace("\0", "").replace(MEDIA_MARKER, UNMARKED)
            last_was_text = True
        elif isinstance(part, dict) and isinstance(part.get("type"), str) and "image" in part["type"]:
            images.append(_image(part, where))
            whole, last_was_text = whole + MEDIA_MARKER, False
        else:
            raise UnsupportedInput("A part of a content must be text or an image.", param=where)
    return whole


def _image(part: Mapping[str, Any], where: str) -> bytes:
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str) or not url[:5].lower() == "data:" or ";base64," not in url[:200]:
        raise BadRequest("An image must come as a base64 data URL; nothing is fetched.", param=where)
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("An image is no valid base64.", param=where) from None


def _options(body: Mapping[str, Any]) -> Iterator[str]:
    """Return options and their values in turn; only numbers are values."""
    for option, names in _OPTIONS.items():
        name = next((name for name in names if body.get(name) is not None), None)
        if name is not None:
            yield option
            yield str(_number(body[name], name, whole=option in _WHOLE))


def _number(value: Any, name: str, *, whole: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequest(f"The field {name!r} must be a number.", param=name)
    if abs(value) > 2**32:
        raise BadRequest(f"The field {name!r} is out of range.", param=name)
    return int(value) if whole else value


def _limit(body: Mapping[str, Any]) -> int | None:
    name = next((name for name in _LIMITS if body.get(name) is not None), None)
    if name is None:
        return None
    limit = int(_number(body[name], name, whole=True))
    return limit if limit >= 0 else None


def _stop(stop: Any) -> tuple[str, ...]:
    words = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadRequest("The field 'stop' must be a string or a list of strings.", param="stop")
    return tuple(word for word in words if word)


def _schema(response_format: Any) -> Any:
    if not isinstance(response_format, dict):
        return None
    match response_format.get("type"):
        case "json_object":
            return response_format.get("schema") or {"type": "object"}
        case "json_schema":
            named = response_format.get("json_schema")
            return named.get("schema") if isinstance(named, dict) else None
        case _:
            return None
