"""What a request about one picture brings: a JSON object, or a form with a file; and the picture in it."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from rolecall.errors import BadRequest, BodyTooLarge, InvalidImage, UnsupportedMediaType
from rolecall.gateway.body import check_is_plain, discard_body, read_json, receive_body, receive_chunks
from rolecall.gateway.multipart import MULTIPART, Form
from rolecall.vision.decoding import Decoding
from rolecall.vision.photos import Photo, PhotoError, prepare

MAX_WORDS = 100_000
"""Characters of a prompt: more than most models can read, and what a request is told before any is loaded."""

_DATA_URL = re.compile(r"data:[\w.+/-]{0,100}(?:;[\w=.+-]{1,100}){0,4};base64,", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Input:
    """The fields of a request. ``file`` is the file of a form, ``where`` the name of the field that holds a picture."""

    fields: Mapping[str, Any]
    file: bytes | None = None
    is_form: bool = False

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; raises ``BadRequest`` where it is missing, without a default, or is none, or too long."""
        value = self.fields.get(name)
        if value is None or value == "":
            if default is None:
                raise BadRequest(f"The field {name!r} is missing; it takes a text.", param=name)
            return default
        if not isinstance(value, str):
            raise BadRequest(f"The field {name!r} must be a text.", param=name)
        if not value.strip() and default is None:
            raise BadRequest(f"The field {name!r} is empty; it takes a text.", param=name)
        check_length(value, name)
        return value

    def options(self) -> dict[str, Any]:
        """Return the parameters of the request's own: ``options``, or ``llm_params``, under their names in a request.

        Sizes are left out: they are those of the engine, which others use as well.
        """
        found: dict[str, Any] = {}
        for name in ("options", "llm_params"):
            value = self.fields.get(name)
            if value is None or self.is_form:
                continue
            if not isinstance(value, Mapping):
                raise BadRequest(f"The field {name!r} must be an object.", param=name)
            kept = {str(key): each for key, each in value.items() if key not in _NOT_OF_A_REQUEST}
            found |= {_OPTION_NAMES.get(key, key): each for key, each in kept.items()}
        return found


_OPTION_NAMES = {"temp": "temperature", "num_predict": "max_tokens", "n_predict": "max_tokens"}
_NOT_OF_A_REQUEST = frozenset(
    {"ctx_size", "num_ctx", "n_ctx", "batch_size", "num_batch", "n_batch", "ubatch_size", "n_ubatch"}
    | {"num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "numa", "num_keep"}
    | {"model", "messages", "stream", "stream_options", "response_format", "n", "tools", "metadata"}
)
"""Sizes of engines, by llama.cpp's and Ollama's names; and what the endpoints decide themselves."""


def check_length(text: str, name: str) -> None:
    """Raise ``BadRequest`` for words that are more than a model is asked."""
    if len(text) > MAX_WORDS:
        raise BadRequest(f"The field {name!r} has {len(text)} characters; {MAX_WORDS} are the most.", param=name)


async def read_input(request: Request, max_bytes: int, *, form_only: bool = False) -> Input:
    """Return what came, as JSON or as a form; raises ``BadRequest`` and its kin, ``ClientGone`` if the client left."""
    headers = dict(request.scope["headers"])
    if headers.get(b"content-type", b"").lower().startswith(MULTIPART.encode()):
        return await _read_form(request, headers, max_bytes)
    if form_only:
        await discard_body(headers, request.receive)
        raise UnsupportedMediaType(f"{request.scope['path']} takes multipart/form-data with the field file.")
    raw = await receive_body(headers, request.receive, max_bytes)
    body = await read_json(raw)
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return Input(body)


async def _read_form(request: Request, headers: Mapping[bytes, bytes], max_bytes: int) -> Input:
    check_is_plain(headers)
    file, size = io.BytesIO(), 0
    form = Form(headers[b"content-type"], file)
    async for chunk in receive_chunks(request.receive):
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(f"The upload has more than {max_bytes} bytes (setting max_body_bytes).", param="file")
        await form.feed(chunk)
    await form.close()
    fields: dict[str, Any] = {}
    found: bytes | None = None
    for part in form.parts:
        name = part.name[:100]
        if part.is_file and part.name not in {"file", "image"}:
            raise BadRequest(f"There is no file {name!r} here; the picture is the field 'file'.", param=name)
        if part.is_file and found is not None:
            raise BadRequest("There is more than one file; each picture takes a request of its own.", param=name)
        if part.is_file:
            found = file.getvalue()[part.start : part.start + part.size]
        elif part.name in fields:
            raise BadRequest(f"The field {name!r} is there more than once.", param=name)
        else:
            fields[part.name] = part.content.decode("utf-8", "replace")
    return Input(fields, found, is_form=True)


def picture_bytes(given: Input) -> tuple[bytes, str]:
    """Return the picture of a request, and the field that it stood in; raises ``BadRequest``."""
    if given.is_form:
        if given.file is None:
            raise BadRequest(
                "The field 'file' is missing; it takes the picture (with curl: -F file=@NAME).", param="file"
            )
        return given.file, "file"
    name = next((name for name in ("image", "file") if given.fields.get(name) is not None), None)
    if name is None:
        raise BadRequest("The field 'image' is missing; it takes a picture as base64 or as a data URL.", param="image")
    return decoded(given.fields[name], name), name


def decoded(value: object, name: str) -> bytes:
    """Return the bytes of base64 or of a data URL; raises ``BadRequest`` naming the field."""
    if not isinstance(value, str):
        raise BadRequest(f"The field {name!r} must be a picture as base64, or as a data URL.", param=name)
    if value[:8].lower().startswith(("http://", "https://")):
        raise BadRequest(
            f"The field {name!r} is an address; it takes the picture itself, as base64 or as a data URL. "
            "/v1/chat/completions takes addresses.",
            param=name,
        )
    start = _DATA_URL.match(value)
    text = _SPACE.sub("", value[start.end() if start else 0 :]).translate(_URL_SAFE)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"The field {name!r} holds no valid base64.", param=name) from None


class Pictures:
    """Prepares pictures, few at a time."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding

    async def prepared(self, data: bytes, name: str, *, max_side: int, jpeg_quality: int) -> Photo:
        """Return a picture as a model gets it; raises ``InvalidImage`` (400) with the reason and the field."""
        try:
            return await self._decoding.run(lambda: prepare(data, max_side=max_side, jpeg_quality=jpeg_quality))
        except PhotoError as error:
            raise InvalidImage(f"The picture cannot be used: {error}.", param=name) from None
