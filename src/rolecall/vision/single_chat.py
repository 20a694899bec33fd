"""A chat as `/api/chat` takes it, in Ollama's form or as a single prompt, and its answer in the same form."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timezone
from typing import Any

from rolecall.errors import BadRequest
from rolecall.vision.ask import Reply
from rolecall.vision.photos import Photo
from rolecall.vision.single_input import Input, check_length, decoded

Prepare = Callable[[bytes, str], Coroutine[Any, Any, Photo]]
"""Makes a picture ready for a model; the second argument is the field that it stood in."""

_MOST_MESSAGES = 1000
_MOST_PICTURES = 20


class Conversation:
    """The messages of a request, as a chat completion has them; ``sees`` says whether there are pictures."""

    def __init__(self, prepare: Prepare) -> None:
        self.messages: list[dict[str, Any]] = []
        self.sees = False
        self._prepare = prepare
        self._count = 0

    async def read(self, given: Input) -> None:
        """Take in ``messages``, or ``prompt`` with ``system`` and pictures; raises ``BadRequest`` with the place."""
        messages = given.fields.get("messages")
        if messages is not None and not given.is_form:
            await self._read_messages(messages)
            return
        name = "message" if given.fields.get("prompt") is None and "message" in given.fields else "prompt"
        prompt = given.text(name)
        if system := given.text("system", ""):
            self.messages.append({"role": "system", "content": system})
        self.messages.append(await self._message("user", prompt, self._pictures(given)))

    def _pictures(self, given: Input) -> list[tuple[bytes, str]]:
        if given.is_form:
            return [] if given.file is None else [(given.file, "file")]
        listed = given.fields.get("images")
        found = [] if listed is None else _decoded_list(listed, "images")
        single = given.fields.get("image")
        return found if single is None else [(decoded(single, "image"), "image"), *found]

    async def _read_messages(self, messages: object) -> None:
        if not isinstance(messages, list) or not messages:
            raise BadRequest("The field 'messages' must be a list of messages.", param="messages")
        if len(messages) > _MOST_MESSAGES:
            raise BadRequest(f"There are {len(messages)} messages; {_MOST_MESSAGES} are the most.", param="messages")
        for at, message in enumerate(messages):
            place = f"messages[{at}]"
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise BadRequest(f"{place} must be an object with role and content.", param=place)
            content, images = message.get("content"), message.get("images")
            if images is None and not isinstance(content, str):  # OpenAI's parts: the request is checked as any other
                self.sees |= isinstance(content, list) and any(map(_is_picture, content))
                self.messages.append(dict(message))
                continue
            check_length(str(content or ""), f"{place}.content")
            pictures = [] if images is None else _decoded_list(images, f"{place}.images")
            self.messages.append(await self._message(message["role"], str(content or ""), pictures))

    async def _message(self, role: str, words: str, pictures: list[tuple[bytes, str]]) -> dict[str, Any]:
        if not pictures:
            return {"role": role, "content": words}
        self.sees = True
        self._count += len(pictures)
        if self._count > _MOST_PICTURES:
            raise BadRequest(f"There are more than {_MOST_PICTURES} pictures.", param=pictures[0][1])
        photos = [await self._prepare(data, name) for data, name in pictures]
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": each.data_url}} for each in photos]
        return {"role": role, "content": [*parts, {"type": "text", "text": words}]}


def _decoded_list(images: object, name: str) -> list[tuple[bytes, str]]:
    if not isinstance(images, list):
        raise BadRequest(f"The field {name!r} must be a list of pictures as base64.", param=name)
    return [(decoded(image, f"{name}[{at}]"), f"{name}[{at}]") for at, image in enumerate(images)]


def _is_picture(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") in {"image_url", "input_image"}


def response_format(given: Input) -> dict[str, Any]:
    """Return the form that ``format`` asks for: ``json``, or a JSON schema; raises ``BadRequest``."""
    wanted = given.fields.get("format")
    if wanted is None or wanted == "":
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(wanted, Mapping):
        schema = {"name": "answer", "schema": dict(wanted), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    raise BadRequest("The field 'format' must be json, or a JSON schema.", param="format")


def chat_answer(reply: Reply) -> dict[str, Any]:
    """Return a reply as Ollama has it, whole; ``response`` is the text once more."""
    return {
        "model": reply.model,
        "created_at": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "message": {"role": "assistant", "content": reply.text},
        "response": reply.text,
        "done": True,
        "done_reason": reply.finish_reason or "stop",
        "total_duration": round(reply.ms * 1_000_000),
        "prompt_eval_count": reply.usage.get("prompt_tokens"),
        "eval_count": reply.usage.get("completion_tokens"),
    }
