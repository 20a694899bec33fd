"""Where a body holds media, which of them somebody would have to fetch, and how many of which size there may be."""

from __future__ import annotations

import base64
import copy
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.media import (
    MAX_DEPTH,
    Medium,
    Path,
    Places,
    check_images,
    find_media,
    images,
    inlined,
    shown,
    shrunk_in_place,
    value_at,
    with_changes,
)
from rolecall.errors import BadRequest, BodyTooLarge, ImageTooLarge, TooManyImages

WEB = "https://example.org/cat.png"
DATA = "data:image/png;base64,eHh4"
RAW = "eHh4"


def said(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("item", "count"),
    [
        ({"role": "user", "content": WEB}, 0),
        ({"type": "text", "text": WEB}, 0),
        ({"type": "text", "url": WEB}, 1),
        ({"role": {"url": WEB}, "content": "hi"}, 1),
        ({"role": "user", "content": {"url": WEB}}, 1),
        ({"role": "user", "content": "hi", "images": [DATA]}, 1),
        ({"type": "text", "text": {"url": WEB}}, 1),
        ({"type": "image", "text": "hi"}, 1),
        ({"type": "text", "text": "hi", "image_url": WEB}, 1),
        ([WEB, WEB], 2),
    ],
)
def test_words_are_passed_over_and_nothing_beside_them(item: Any, count: int) -> None:
    """A message or a part of two fields that says something holds nothing else; any other shape is looked into."""
    assert len(find_media({"images": [item, item]})) == 2 * count


def only(body: dict[str, Any]) -> Medium:
    (medium,) = find_media(body)
    return medium


PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "chat": ({"type": "image_url", "image_url": {"url": "X", "detail": "auto"}}, "image"),
    "chat, bare": ({"type": "image_url", "image_url": "X"}, "image"),
    "vLLM, no type": ({"image_url": "X"}, "image"),
    "vLLM, any type beside a uuid": ({"type": "text", "text": "hi", "uuid": "1", "image_url": {"url": "X"}}, "image"),
    "responses": ({"type": "input_image", "image_url": "X", "detail": "low"}, "image"),
    "screenshot": ({"type": "computer_call_output", "output": {"type": "screenshot", "image_url": "X"}}, "image"),
    "anthropic": ({"type": "image", "source": {"type": "url", "url": "X"}}, "image"),
    "anthropic, no type of source": ({"type": "image", "source": {"url": "X"}}, "image"),
    "anthropic, of a tool": (
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "X"}}]},
        "image",
    ),
    "anthropic, document": ({"type": "document", "source": {"type": "url", "url": "X"}}, "file"),
    "transformers": ({"type": "image", "image": "X"}, "image"),
    "transformers, url": ({"type": "image", "url": "X"}, "image"),
    "ollama": ({"role": "user", "images": ["X"]}, "image"),
    "audio": ({"type": "audio_url", "audio_url": {"url": "X"}}, "audio"),
    "llama.cpp, audio": ({"type": "input_audio", "input_audio": {"data": "X", "format": "wav"}}, "audio"),
    "llama.cpp, audio url": ({"type": "input_audio", "input_audio": {"url": "X"}}, "audio"),
    "video": ({"type": "video_url", "video_url": {"url": "X"}}, "video"),
    "llama.cpp, video": ({"type": "input_video", "input_video": {"data": "X"}}, "video"),
    "file": ({"type": "input_file", "file_url": "X", "filename": "a.pdf"}, "file"),
    "file data": ({"type": "file", "file": {"file_data": "X"}}, "file"),
    "unknown": ({"type": "hologram", "hologram_url": {"url": "X"}}, "file"),
}


def filled(part: Any, value: str) -> Any:
    if isinstance(part, dict):
        return {key: filled(inner, value) for key, inner in part.items()}
    if isinstance(part, list):
        return [filled(inner, value) for inner in part]
    return value if part == "X" else part


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    "address", [WEB, "file:///etc/passwd", "FILE:x", "//example.org/x", "\\\\host\\x", " http://x"]
)
def test_an_address_is_found_in_every_form(name: str, address: str) -> None:
    """Whatever part holds it: an engine would fetch it, so it is found, with its kind and its place."""
    part, kind = PARTS[name]
    body = said({"type": "text", "text": "look"}, filled(part, address))
    medium = only(body)
    assert (medium.kind, medium.is_address, medium.size) == (kind, True, 0)
    assert medium.param.startswith("messages[1].content[1]")
    assert value_at(body, medium.path) == address


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("inline", [DATA, DATA.replace("data", "DATA")])
def test_what_is_inline_is_no_address(name: str, inline: str) -> None:
    """A data URI holds its medium itself; the size is that of the medium."""
    part, kind = PARTS[name]
    medium = only(said(filled(part, inline)))
    assert (medium.kind, medium.is_address, medium.size) == (kind, False, 3)


@pytest.mark.parametrize(
    ("body", "param", "kind"),
    [
        ({"query": {"content": [{"type": "image_url", "image_url": {"url": WEB}}]}}, "query.content[0]", "image"),
        (
            {"documents": ["http://a", {"content": [{"type": "image_url", "image_url": {"url": WEB}}]}]},
            "documents[1].content[0]",
            "image",
        ),
        ({"documents": {"content": [{"type": "video_url", "video_url": WEB}]}}, "documents.content[0]", "video"),
        ({"text_1": {"content": [{"image_url": WEB}]}, "text_2": "https://b"}, "text_1.content[0]", "image"),
        ({"input": [{"text": "x", "image": WEB}]}, "input[0]", "image"),
        ({"input": [WEB], "modality": "image"}, "input[0]", "image"),
        ({"prompt": {"prompt_string": "x", "multimodal_data": [WEB]}}, "prompt.multimodal_data[0]", "file"),
        ({"input": {"image_url": WEB}}, "input.image_url", "image"),
        ({"tools": [{"type": "mcp", "server_url": "http://127.0.0.1"}]}, "tools[0]", "file"),
        ({"tools": [{"type": "x", "input_image_mask": {"image_url": WEB}}]}, "tools[0]", "image"),
    ],
)
def test_addresses_of_the_other_endpoints_are_found(body: dict[str, Any], param: str, kind: str) -> None:
    """Reranking, scoring, embeddings, completions and tools have places of their own for media."""
    medium = only(body)
    assert (medium.param, medium.kind, medium.is_address) == (param, kind, True)


@pytest.mark.parametrize(
    "body",
    [
        said({"type": "text", "text": WEB}, {"type": "input_text", "text": DATA}, WEB),
        {"messages": [{"role": "user", "content": WEB, "name": "http://x"}]},
        {"prompt": WEB, "suffix": WEB},
        {"prompt": [WEB, WEB]},
        {"input": [WEB, "file:///x"]},
        {"input": [WEB], "modality": "text"},
        {"query": WEB, "documents": [WEB, "file:///x"]},
        {"metadata": {"url": WEB}, "user": WEB},
        {"tools": [{"type": "function", "function": {"parameters": {"properties": {"url": {"default": WEB}}}}}]},
        {"tools": [{"name": "open", "input_schema": {"$id": WEB, "properties": {"image_url": {"enum": [WEB]}}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"uri": WEB}}}},
        {"text": {"format": {"type": "json_schema", "schema": {"uri": WEB}}}},
        said({"type": "tool_use", "name": "open", "input": {"url": WEB}}),
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"url": WEB}}}]}]},
        said({"type": "output_text", "text": "x", "annotations": [{"type": "url_citation", "url": WEB}]}),
        said({"type": "search_result", "source": WEB, "title": "x", "content": [{"type": "text", "text": "y"}]}),
        {"input": [{"type": "web_search_call", "action": {"type": "open_page", "url": WEB}}]},
        said({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a: http://b"}}),
        said({"type": "text", "text": "x", "image_caption": "Fig. 1: a cat", "source": "Reuters: a cat"}),
        {"input": [{"type": "image_generation_call", "result": RAW}]},
        {"documents": [{"title": "x", "text": "y", "url": WEB, "source": "file:///x"}]},
        {"audio": {"voice": "alloy", "format": "wav"}, "modalities": ["text", "audio"], "image_size": "10x10"},
        {"seed": 1, "stop": [WEB], "logit_bias": {"url": 1}, "x": None},
    ],
)
def test_words_are_no_media(body: dict[str, Any]) -> None:
    """Texts, schemas, what models wrote and where texts came from may name any address."""
    assert find_media(body) == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": None}},
        {"type": "image_url", "image_url": None, "uuid": "seen-before"},
        {"type": "image_url", "image_url": {"url": ""}},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "image"},
        {"type": "image_embeds", "image_embeds": "AAAA"},
    ],
)
def test_a_part_that_is_an_image_counts_without_one(part: dict[str, Any]) -> None:
    """An image that the part does not hold is an image to the model all the same."""
    assert find_media(said(part)) == [Medium("image", ("messages", 1, "content", 0))]


@pytest.mark.parametrize(
    "body",
    [
        {"type": "tool_use", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": WEB}]}]},
        {"type": "text", "data": WEB},
        {"type": "search_result", "url": WEB},
        said({"type": "image_url", "image_url": {"type": "search_result", "url": WEB}}),
        said({"type": "image_url", "image_url": {"text": "x", "url": WEB}}),
        said({"image_url": {"type": "web_search_call", "url": WEB}}),
        said({"type": "input_audio", "input_audio": {"type": "text", "data": WEB}}),
        said({"type": "image", "source": {"type": "text", "data": WEB}}),
        said({"type": "image", "source": {"type": "search_result", "url": WEB}}),
        said({"type": "video_url", "video_url": {"type": "url_citation", "url": WEB}}),
        said({"type": "input_file", "file_url": {"type": "search_result", "url": WEB}}),
        said({"type": "search_result", "source": WEB, "uuid": "1", "image_url": WEB}),
        said({"text": "x", "url": WEB, "uuid": "1", "image_url": WEB}),
        said({"type": "tool_use", "uuid": "1", "input": {"url": WEB}, "image_url": {"url": WEB}}),
    ],
)
def test_no_type_hides_an_address(body: dict[str, Any]) -> None:
    """Engines read the keys of a medium whatever type it says of itself; what exempts a text exempts no medium."""
    assert only(body).is_address


@pytest.mark.parametrize("named", [None, 7, ["image"], {"image": 1}])
def test_a_type_that_is_no_word_names_nothing(named: Any) -> None:
    """A part with such a type is searched like any other."""
    assert only(said({"type": named, "video_url": WEB})).kind == "video"


def test_base64_without_a_scheme_is_inline() -> None:
    """A long base64 without data: is measured as such; llama.cpp's own completions take it."""
    body = {"prompt": {"prompt_string": "x", "multimodal_data": ["http" + "A" * 396, "QQ=="]}}
    assert [(medium.size, medium.is_address) for medium in find_media(body)] == [(300, False), (1, False)]
    assert only(said({"type": "image", "source": {"type": "base64", "data": "eHg="}})).size == 2


@pytest.mark.parametrize(
    ("part", "fetched"),
    [
        ({"type": "image_url", "image_url": {"url": WEB}}, True),
        ({"type": "image", "images": [WEB]}, True),
        ({"type": "image_url", "image_url": {"url": DATA}}, False),
        ({"type": "image", "source": {"type": "base64", "data": WEB}}, False),
        ({"type": "image", "multimodal_data": [WEB]}, False),
        ({"type": "audio_url", "audio_url": {"url": WEB}}, False),
        ({"type": "file", "file_url": WEB}, False),
    ],
)
def test_only_images_in_the_place_of_an_address_can_be_fetched(part: dict[str, Any], *, fetched: bool) -> None:
    """Audio, video and files cannot, nor an address where base64 belongs."""
    assert only(said(part)).can_be_fetched is fetched


@pytest.mark.parametrize("bracket", ["list", "object"])
def test_depth_is_bounded(bracket: str) -> None:
    """What is nested deeper than the search goes is refused, not passed unseen."""
    deep: Any = {"image_url": WEB}
    for _ in range(MAX_DEPTH - 2):
        deep = [deep] if bracket == "list" else {"x": deep}
    assert only({"x": deep}).is_address
    innermost: tuple[Any, ...] = (deep, [], {})
    for inner in innermost:
        nested = inner
        for _ in range(MAX_DEPTH):
            nested = [nested] if bracket == "list" else {"x": nested}
        with pytest.raises(BadRequest, match="nested too deeply; 64 levels"):
            find_media({"x": nested})


# -- limits


def pictures(*sizes: int) -> dict[str, Any]:
    """Return a request with one picture in a message, of so many bytes each."""
    coded = [f"data:image/png;base64,{base64.b64encode(b'x' * size).decode()}" for size in sizes]
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]} for url in coded]}


@pytest.mark.parametrize("size", [98, 99, 100])
def test_an_image_of_the_limit_passes(size: int) -> None:
    """However its base64 is padded."""
    assert check_images(find_media(pictures(size, 3)), max_images=2, max_image_bytes=100) == 2


@pytest.mark.parametrize("size", [101, 102, 103])
def test_an_image_above_the_limit_is_named(size: int) -> None:
    """The error says which image, where it is, its size, the limit and the setting, and is a 413."""
    with pytest.raises(ImageTooLarge) as caught:
        check_images(find_media(pictures(5, 100, size, 200)), max_images=9, max_image_bytes=100)
    error = caught.value
    assert error.message == (
        f"Image 2 at messages[2].content[0] has {size} bytes; the limit is 100 (setting max_image_bytes)."
    )
    assert (error.status, error.param) == (413, "messages[2].content[0]")
    assert isinstance(error, BodyTooLarge)


def test_too_many_images_are_counted() -> None:
    """The error says how many there are, the limit, and which is the first above it, and is a 400."""
    with pytest.raises(TooManyImages) as caught:
        check_images(find_media(pictures(1, 1, 1, 1)), max_images=2, max_image_bytes=100)
    error = caught.value
    assert error.message == (
        "The request has 4 images; the limit is 2 (setting max_images). "
        "Image 2 at messages[2].content[0] is the first above it, counted from 0."
    )
    assert (error.status, error.param) == (400, "messages[2].content[0]")


def test_audio_is_no_image() -> None:
    """Limits of images are not those of other media."""
    body = said({"type": "input_audio", "input_audio": {"data": RAW * 100}})
    assert check_images(find_media(body), max_images=0, max_image_bytes=1) == 0
    assert images(find_media(body)) == []


# -- changes


def test_a_fetched_image_takes_the_place_of_its_address() -> None:
    """A data URI stands where the address stood; in Anthropic's form the source becomes a base64 one."""
    body = said(
        {"type": "image_url", "image_url": {"url": WEB, "detail": "low"}},
        {"type": "image", "source": {"type": "url", "url": WEB}, "cache_control": {}},
        {"type": "image", "images": [WEB]},
        {"type": "image", "source": {"url": WEB}},
    )
    before = copy.deepcopy(body)
    changes = dict(inlined(body, medium, "image/png", RAW) for medium in find_media(body))
    after = with_changes(body, changes)
    assert after["messages"][1]["content"] == [
        {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": RAW},
            "cache_control": {},
        },
        {"type": "image", "images": [DATA]},
        {"type": "image", "source": {"url": DATA}},
    ]
    assert body == before
    assert after["messages"][0] is body["messages"][0]


def test_a_smaller_image_takes_the_place_of_a_larger() -> None:
    """In the form in which it came: a data URI, or base64 with its media type where one is said."""
    body = said(
        {"type": "image_url", "image_url": DATA},
        {"type": "image", "source": {"type": "base64", "media_type": "image/webp", "data": RAW}},
        {"type": "image", "source": {"type": "base64", "data": RAW}},
        {"type": "image", "images": [RAW]},
    )
    changes: dict[Path, Any] = {}
    for medium in find_media(body):
        changes.update(shrunk_in_place(body, medium, "image/jpeg", "QUJD"))
    assert with_changes(body, changes)["messages"][1]["content"] == [
        {"type": "image_url", "image_url": "data:image/jpeg;base64,QUJD"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "QUJD"}},
        {"type": "image", "source": {"type": "base64", "data": "QUJD"}},
        {"type": "image", "images": ["QUJD"]},
    ]


def test_a_long_path_is_cut() -> None:
    """Errors do not repeat keys of any length."""
    assert shown(("a", 0, "b")) == "a[0].b"
    assert len(shown(("x" * 1000, 1))) == 200


keys = st.sampled_from(["messages", "content", "image_url", "url", "source", "type", "images", "data", "text", "x"])
words = st.sampled_from(["image", "text", "tool_use", "image_url", WEB, DATA, RAW, "file:///x", ""]) | st.text(
    max_size=4
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=25,
)
bodies = st.dictionaries(keys, values, max_size=4)


@given(body=bodies)
def test_any_body_can_be_searched(body: dict[str, Any]) -> None:
    """Each medium lies where its path says, in order, none twice, and the body stays as it was."""
    before = copy.deepcopy(body)
    media = find_media(body)
    assert body == before
    assert len({medium.path for medium in media}) == len(media)
    for medium in media:
        value = value_at(body, medium.path)
        assert isinstance(value, str | dict)
        assert medium.size == 0 or not medium.is_address
        assert not (medium.is_address and value[:5].lower() == "data:")


@given(body=bodies)
def test_nothing_is_left_to_fetch_once_addresses_are_replaced(body: dict[str, Any]) -> None:
    """With each address replaced, a second search finds the same places and no address."""
    media = find_media(body)
    changes = {medium.path: DATA for medium in media if medium.is_address}
    after = with_changes(body, changes)
    found = find_media(after)
    assert [medium.path for medium in found] == [medium.path for medium in media]
    assert not any(medium.is_address for medium in found)
    assert (after == body) is (not changes)


@given(body=bodies)
def test_what_is_not_changed_is_shared(body: dict[str, Any]) -> None:
    """Without a change every value is the very same object, so that large bodies cost nothing."""
    after = with_changes(body, {})
    assert after == body
    assert all(after[key] is body[key] for key in body)


@given(part=st.sampled_from(list(PARTS)), others=bodies, position=st.integers(0, 3))
def test_an_address_is_found_among_anything(part: str, others: dict[str, Any], position: int) -> None:
    """Whatever stands around a part, its address is found."""
    content: list[Any] = [{"type": "text", "text": "x"}, others, "y"]
    content.insert(position, filled(PARTS[part][0], WEB))
    body = {**others, "messages": [{"role": "user", "content": content}]}
    assert any(m.path[:4] == ("messages", 0, "content", position) and m.is_address for m in find_media(body))


# -- places


def test_media_keep_the_places_in_which_they_came() -> None:
    """Whatever goes before them, and whatever they become; of the same string the first place counts."""
    body = said(
        PARTS["chat"][0],
        {"type": "image_url", "image_url": {"url": WEB + "?1"}},
        {"file": WEB + "?2"},
        PARTS["chat"][0],
    )
    media = find_media(body)
    texts = [value_at(body, medium.path) for medium in media]
    places = Places.of(body, media)
    names = [(0, "messages[1].content[0]"), (1, "messages[1].content[1]"), (0, "messages[1].content[2]")]
    names.append(names[0])
    assert [places.place(text, 7, "elsewhere") for text in texts] == names
    places.replace(texts[1], inline := "data:," + WEB)
    assert places.place(inline, 7, "elsewhere") == names[1]
    assert places.place(texts[1], 7, "elsewhere") == names[1]


def test_what_did_not_come_with_the_request_has_no_such_place() -> None:
    """Then it is where it stands; so it is with a picture that is no string, and with what was forgotten."""
    body = said({"type": "image", "uuid": "1"}, {"type": "image_url", "image_url": {"url": WEB + "?1"}})
    text = body["messages"][1]["content"][1]["image_url"]["url"]
    places = Places.of(body, find_media(body))
    places.replace("a stranger", other := "a cat")
    for stranger in (other, 7, None):
        assert places.place(stranger, 7, "elsewhere") == (7, "elsewhere")
    places.keep(body)
    assert places.place(text, 7, "elsewhere") == (1, "messages[1].content[1]")
    places.keep(said())
    assert places.place(text, 7, "elsewhere") == (7, "elsewhere")


@pytest.mark.parametrize("piece", [" ", "a", "a:", "\x00 ", "//", "\\", "a: ", " a", "data:"])
@pytest.mark.parametrize("key", ["path", "image_url", "text", "my_urls"])
def test_long_texts_take_no_time(key: str, piece: str) -> None:
    """Whether a megabyte is an address is known at once, whatever stands in it."""
    began = time.process_time()
    find_media({"messages": [{"content": [{key: piece * (2**20 // len(piece))}]}]})
    assert time.process_time() - began < 0.5  # it takes some milliseconds


def test_a_body_is_no_part() -> None:
    """What it says of its own type makes no image of it."""
    assert find_media({"type": "image_url", "messages": []}) == []
