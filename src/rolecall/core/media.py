"""Where in a body an engine takes media or would fetch it: images, audio, video, files, in each API's form.

vLLM and llama.cpp fetch what a part names by address, llama.cpp reads ``file://`` too, and vLLM looks for ``image_url``
in a part of any type. So the search goes by the names of the keys, through the whole body but for what is data or a
schema to every engine, and an address that stands where no known part has one counts all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rolecall.core.long_text import TEXTS, LongText
from rolecall.errors import BadRequest, ImageTooLarge, TooManyImages

Kind = Literal["image", "audio", "video", "file"]
Path = tuple[str | int, ...]
"""Keys and positions that lead to a value of the body."""

MAX_DEPTH = 64
"""Levels of objects and lists; engines' parts end at about ten."""
_SHOWN = 200
_URI_HEAD = 2**16
"""Characters of a data URI within which its data begin."""

_KINDS: tuple[Kind, ...] = ("image", "video", "audio")
_IMAGE_PARTS = frozenset({"image_url", "input_image", "image", "image_embeds", "image_file", "image_pil"})
"""Types of parts that are an image even if nothing in them says which, such as one that vLLM knows by its ``uuid``."""

_SLOTS: Mapping[str, Kind] = {
    "image": "image",
    "images": "image",
    "image_url": "image",
    "image_data": "image",
    "input_image": "image",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
    "data": "file",
    "file_data": "file",
    "file_url": "file",
    "multimodal_data": "file",
    "url": "file",
    "uri": "file",
}
"""Keys that hold media in any form, base64 included; ``file``: what it is depends on where it stands."""

_POINTERS = frozenset({"file", "href", "link", "location", "path", "source", "src"})
_POINTING = ("url", "urls", "uri", "uris")
"""Further keys, and endings of keys, under which somebody might fetch what looks like an address."""
_ADDRESS = re.compile(r"[\s\x00-\x1f]*(?:[A-Za-z][A-Za-z0-9+.\-]*:\S|//|\\\\)")
"""What looks like one in a place that may as well hold words: ``Fig. 1: a cat`` does not."""

_EMBEDDED = frozenset({"data", "file_data", "multimodal_data"})
"""Keys that hold no address in any API; some engine may take one all the same."""

_OPAQUE = frozenset(
    {
        "action",
        "actions",
        "annotations",
        "arguments",
        "chat_template_kwargs",
        "citations",
        "function",
        "function_call",
        "functions",
        "guided_json",
        "input_schema",
        "json_schema",
        "logit_bias",
        "metadata",
        "output_schema",
        "parameters",
        "response_format",
        "results",
        "schema",
        "structured_outputs",
        "tool_calls",
    }
)
"""Keys of data, schemas and quotations: every engine reads them as text or not at all."""

_WORDS = frozenset({"content", "detail", "id", "model", "name", "role", "stop", "text", "tool_call_id", "type", "user"})
"""Keys that most strings have and no medium, so that they need no closer look."""

_CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
"""Types of parts whose ``input`` is what a model wrote."""

_PASSAGE = "passage"
"""What a text without a type is called here, such as one of the ``documents`` that an answer is to be based on."""
_QUOTING = frozenset(
    {_PASSAGE, "search_result", "web_search_result", "web_search_call", "web_fetch_result", "url_citation", "mcp_call"}
)
_QUOTED = frozenset({"url", "uri", "source", "link"})
"""Keys of the ``_QUOTING`` types that tell where a text came from."""


@dataclass(frozen=True, slots=True)
class Medium:
    """One medium of a body.

    ``path`` leads to the string that holds it, or to its part where there is none. ``is_address`` tells that somebody
    would have to fetch it; ``size`` is in bytes, 0 for an address.
    """

    kind: Kind
    path: Path
    is_address: bool = False
    size: int = 0

    @property
    def param(self) -> str:
        """The part, as errors name it: ``messages[3].content[1]``."""
        numbers = [place for place, step in enumerate(self.path) if isinstance(step, int)]
        return shown(self.path[: numbers[-1] + 1] if numbers else self.path)

    @property
    def can_be_fetched(self) -> bool:
        """Whether it is an image that stands where an address may stand."""
        return self.kind == "image" and self.is_address and _EMBEDDED.isdisjoint(self.path[-2:])


class Places:
    """Where the media of a request stood when it came: index and param as its client knows them.

    Cutting a history moves media, and those that are fetched become others. So each is known by its very string.
    """

    def __init__(self) -> None:
        # The text is kept, so that its identity stays its own.
        self._known: dict[int, tuple[str | LongText, int, str]] = {}

    @classmethod
    def of(cls, body: Mapping[str, Any], media: Sequence[Medium]) -> Places:
        """Return the places of a body's media."""
        places, numbers = cls(), {image.path: index for index, image in enumerate(images(media))}
        for medium in media:
            text = value_at(body, medium.path)
            if isinstance(text, TEXTS):
                places._known.setdefault(id(text), (text, numbers.get(medium.path, 0), medium.param))
        return places

    def place(self, text: Any, index: int, param: str) -> tuple[int, str]:
        """Return where a medium stood; for one that did not come with the request, what is given."""
        return self._known.get(id(text), (text, index, param))[1:]

    def replace(self, text: str | LongText, other: str) -> None:
        """Take in that a medium's string has become another."""
        if (known := self._known.get(id(text))) is not None:
            self._known.setdefault(id(other), (other, *known[1:]))

    def keep(self, body: Mapping[str, Any]) -> None:
        """Forget the media that a body does not have."""
        left = {id(value_at(body, medium.path)) for medium in find_media(body)}
        self._known = {key: known for key, known in self._known.items() if key in left}


def shown(path: Path) -> str:
    """Return a path as it is written: ``messages[3].content``."""
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return words.removeprefix(".")[:_SHOWN]


def find_media(body: Mapping[str, Any]) -> list[Medium]:
    """Return the media of a body in the order in which they stand; raises ``BadRequest`` for one nested too deeply."""
    found: list[Medium] = []
    _search_object(body, (), None, found)
    return found


def images(media: Iterable[Medium]) -> list[Medium]:
    """Return the images; the position in the list is the index that errors name."""
    return [medium for medium in media if medium.kind == "image"]


def check_images(media: Sequence[Medium], *, max_images: int, max_image_bytes: int) -> int:
    """Return how many images there are; raises ``TooManyImages``, or ``ImageTooLarge`` for the first that is."""
    if not media:
        return 0
    found = images(media)
    if len(found) > max_images:
        raise TooManyImages(
            f"The request has {len(found)} images; the limit is {max_images} (setting max_images). "
            f"Image {max_images} at {found[max_images].param} is the first above it, counted from 0.",
            param=found[max_images].param,
        )
    for index, image in enumerate(found):
        check_image_size(image.size, index, image.param, max_image_bytes)
    return len(found)


def check_image_size(size: int, index: int, param: str, max_image_bytes: int) -> None:
    """Raise ``ImageTooLarge`` for an image of more than ``max_image_bytes``."""
    if size > max_image_bytes:
        raise ImageTooLarge(
            f"Image {index} at {param} has {size} bytes; the limit is {max_image_bytes} (setting max_image_bytes).",
            param=param,
        )


def value_at(body: Any, path: Path) -> Any:
    """Return what a path leads to."""
    for step in path:
        body = body[step]
    return body


def with_changes(body: Mapping[str, Any], changes: Mapping[Path, Any]) -> dict[str, Any]:
    """Return the body with other values at some paths. What lies on no path is shared, not copied."""
    changed = dict(body)
    copied: dict[Path, Any] = {(): changed}
    for path, value in changes.items():
        node = changed
        for depth, step in enumerate(path[:-1], 1):
            if path[:depth] not in copied:
                copied[path[:depth]] = node[step] = node[step].copy()  # type: ignore[index] # a list's step is a number
            node = copied[path[:depth]]
        node[path[-1]] = value  # type: ignore[index] # as above
    return changed


def inlined(body: Mapping[str, Any], medium: Medium, media_type: str, base64: str) -> tuple[Path, Any]:
    """Return what is to stand where for an image that was named by its address: ``with_changes`` takes it."""
    source = value_at(body, medium.path[:-1])
    if medium.path[-2:] == ("source", "url") and source.get("type") == "url":
        return medium.path[:-1], {"type": "base64", "media_type": media_type, "data": base64}
    return medium.path, f"data:{media_type};base64,{base64}"


def shrunk_in_place(body: Mapping[str, Any], image: Medium, media_type: str, base64: str) -> dict[Path, Any]:
    """Return what is to stand where for an image that was inline already: ``with_changes`` takes it."""
    if is_data_uri(value_at(body, image.path)):
        return {image.path: f"data:{media_type};base64,{base64}"}
    changes: dict[Path, Any] = {image.path: base64}
    holder = value_at(body, image.path[:-1])
    if isinstance(holder, dict) and "media_type" in holder:
        changes[(*image.path[:-1], "media_type")] = media_type
    return changes


def is_data_uri(text: str | LongText) -> bool:
    """Whether a string holds its medium itself."""
    return text[:5].lower() == "data:"


def _search_object(node: Mapping[str, Any], path: Path, inherited: Kind | None, found: list[Medium]) -> None:
    _check_depth(path)
    part = _type_of(node)
    # What the body itself, or something inside a medium, says of its type is read by nobody, and exempts from nothing.
    role = part if path and inherited is None else ""
    if part:
        inherited = _kind_in(part) or inherited
    before = len(found)
    for key, value in node.items():
        kind = type(value)
        if kind is str or kind is LongText:
            if key not in _WORDS and _may_hold_media(key) and not _is_read_as_text(key, role):
                _judge(value, (*path, key), key, inherited, found)
        elif (kind is list or kind is dict) and not _is_read_as_text(key, role):
            _search(value, (*path, key), (key == "input" and _modality(node, path)) or key, inherited, found)
    if path and part in _IMAGE_PARTS and not any(medium.kind == "image" for medium in found[before:]):
        found.append(Medium("image", path))


def _type_of(node: Mapping[str, Any]) -> str:
    named = node.get("type")
    if named is None and isinstance(node.get("text"), str):
        return _PASSAGE
    return named if isinstance(named, str) else ""


def _search(value: Any, path: Path, key: str, inherited: Kind | None, found: list[Medium]) -> None:
    if type(value) is dict:
        _search_object(value, path, _kind_in(key) or inherited or _SLOTS.get(key), found)
        return
    _check_depth(path)
    for index, item in enumerate(value):
        kind = type(item)
        if kind is dict and len(item) == 2 and _is_in_words(item):
            continue
        if kind is dict or kind is list:
            _search(item, (*path, index), key, inherited, found)
        elif (kind is str or kind is LongText) and _may_hold_media(key):
            _judge(item, (*path, index), key, inherited, found)


def _is_in_words(item: Mapping[str, Any]) -> bool:
    """Whether an object of two fields is what most lists hold, a message or a part in words: it holds no medium."""
    if type(item.get("content")) is str:
        return type(item.get("role")) is str
    return item.get("type") == "text" and type(item.get("text")) is str


def _check_depth(path: Path) -> None:
    if len(path) >= MAX_DEPTH:
        raise BadRequest(f"The body is nested too deeply; {MAX_DEPTH} levels are read.", param=shown(path[:8]))


def _modality(node: Mapping[str, Any], path: Path) -> Kind | None:
    """Infinity's embeddings: ``modality`` says what the addresses in ``input`` are."""
    named = None if path else node.get("modality")
    return next((kind for kind in _KINDS if kind == named), None)


def _is_read_as_text(key: str, part: str) -> bool:
    """Whether no engine looks for media there; ``part`` is the type, where it counts."""
    if key in _OPAQUE:
        return True
    if key == "input":
        return part in _CALLS
    if key == "data":
        return part == "text"
    return key in _QUOTED and part in _QUOTING


def _judge(text: str | LongText, path: Path, key: str, inherited: Kind | None, found: list[Medium]) -> None:
    slot = _SLOTS.get(key)
    kind = _kind_in(key) or inherited or slot or "file"
    if is_data_uri(text):
        found.append(Medium(kind, path, size=_decoded_bytes(text, text[:_URI_HEAD].find(",") + 1)))
    elif type(text) is str and (_is_address(text) if slot else _ADDRESS.match(text)):
        found.append(Medium(kind, path, is_address=True))
    elif slot and text:
        found.append(Medium(kind, path, size=_decoded_bytes(text)))


def _is_address(text: str) -> bool:
    """Whether what stands in a place for media is no base64, which has no colon; addresses have one, or two slashes."""
    return ":" in text or text.startswith(("//", "\\"))


def is_slot(key: str) -> bool:
    """Whether texts under a key are media in any form: only there a ``LongText`` may stand."""
    return key in _SLOTS


def _may_hold_media(key: str) -> bool:
    if key in _SLOTS:
        return True
    name = key.lower()
    return name in _POINTERS or name.endswith(_POINTING) or _kind_in(name) is not None


def _kind_in(name: str) -> Kind | None:
    if "image" in name:
        return "image"
    if "video" in name:
        return "video"
    return "audio" if "audio" in name else None


def _decoded_bytes(base64: str | LongText, start: int = 0) -> int:
    """Three bytes for four characters, less the padding."""
    return max(0, (len(base64) - start) * 3 // 4 - base64[-2:].count("="))
