"""Large bodies that come in blocks: however they are cut, they are read as a whole and sent as they were meant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rolecall.core.long_text import LongText
from rolecall.core.media import find_media
from rolecall.gateway import large_json
from rolecall.gateway.http_request import Pieces
from rolecall.gateway.large_json import LargeBody, NotJson

DATA = "QUJD" * 3000
URI = "data:image/png;base64," + DATA

odd = st.sampled_from(["", '"', "\\", "\\u0041", "é", "😀", "\n", "/", ",", ":", "data:,", "\\" * 7, "ab" * 3000, DATA])
texts = st.lists(odd, max_size=4).map("".join)
names = st.sampled_from(["url", "data", "content", "image_url", "text", "é"])
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts | texts.map(URI.__add__),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


def came(data: bytes, *sizes: int) -> LargeBody:
    """Return a body that comes in blocks of these sizes, again and again."""
    large, at, turn = LargeBody(), 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        large.add(data[at : at + size])
        at, turn = at + size, turn + 1
    return large


def full(value: Any) -> Any:
    """Return a value with strings in the place of long texts."""
    if isinstance(value, dict):
        return {name: full(each) for name, each in value.items()}
    if isinstance(value, list):
        return [full(each) for each in value]
    return str(value) if isinstance(value, LongText) else value


def long_texts(value: Any) -> Iterator[LongText]:
    """Yield the long texts of a value."""
    if isinstance(value, LongText):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from long_texts(each)


blocks = st.lists(st.integers(1, 20_000) | st.integers(4000, 9000), min_size=1, max_size=4)


@given(values, blocks, st.booleans())
@example({"url": URI}, [6000], False)  # noqa: FBT003
@example({"url": "é" + URI}, [6000], False)  # noqa: FBT003
@example({"url": "data:," + DATA + '"' + DATA}, [5000], True)  # noqa: FBT003
def test_blocks_of_any_size_are_read_as_the_whole(value: Any, sizes: list[int], ascii_only: bool) -> None:  # noqa: FBT001
    """What comes out is what orjson reads, and what is written what it would write, to the byte."""
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    large = came(data, *sizes)
    assert len(large) == len(data)
    parsed = large.parsed()
    assert full(parsed) == value
    assert bytes(large_json.dumps(parsed)) == orjson.dumps(value)
    assert full(find_media({"b": parsed})) == find_media({"b": value})
    in_full = came(data, *sizes).parsed(in_full=True)
    assert in_full == value
    assert not list(long_texts(in_full))


@given(values, blocks, st.data())
def test_what_is_no_json_is_found_out(value: Any, sizes: list[int], drawn: st.DataObject) -> None:
    """A byte that is another one anywhere, or a piece that is missing: it is read exactly if orjson reads it."""
    data = bytearray(json.dumps(value, ensure_ascii=False).encode())
    at = drawn.draw(st.integers(0, len(data) - 1))
    if drawn.draw(st.booleans()):
        data[at] = drawn.draw(st.sampled_from(b'"\\\n,:{}[]u0 \xff\xc3\x80'))
    else:
        del data[at : at + drawn.draw(st.integers(1, 5000))]
    large = came(bytes(data), *sizes)
    try:
        expected = orjson.loads(data)
    except orjson.JSONDecodeError:
        with pytest.raises(NotJson):
            large.parsed()
    else:
        assert full(large.parsed()) == expected


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}]}]}, 1),
        ({"image_url": URI}, 1),
        ({"images": [DATA, DATA]}, 2),
        ({"input_audio": {"data": DATA, "format": "wav"}}, 1),
        ({"content": URI}, 0),
        ({"url": "https://example.org/" + DATA}, 0),
        ({"url": "//" + DATA}, 0),
        ({"url": "data:" + DATA}, 0),
        ({"url": "é" + DATA}, 0),
        ({"tools": [DATA]}, 0),
    ],
)
def test_only_media_stay_in_pieces(value: Any, count: int) -> None:
    """Data URIs and base64 where media stand; whatever could be an address, or is read as a text, is a string."""
    parsed = came(orjson.dumps(value), 5000).parsed()
    assert len(list(long_texts(parsed))) == count
    assert full(parsed) == value


def test_a_picture_is_sent_as_the_very_bytes_that_came() -> None:
    """Nothing of it is copied, neither when it is read nor when it is written."""
    data, large = orjson.dumps({"model": "m", "image_url": URI}), LargeBody()
    blocks = [data[at : at + 6000] for at in range(0, len(data), 6000)]
    for block in blocks:
        large.add(block)
    parsed = large.parsed()
    parsed["model"] = "other"
    written = large_json.dumps(parsed)
    assert isinstance(written, Pieces)
    assert bytes(written) == orjson.dumps({"model": "other", "image_url": URI})
    assert sum(len(part) for part in written if any(part.obj is block for block in blocks)) > len(DATA) - 2000


def test_of_names_that_are_there_twice_the_last_one_counts() -> None:
    """For the engine, too: it gets the value once, however long the other one was."""
    data = b'{"url": "%b", "model": "m", "url": "data:,%b"}' % (URI.encode(), DATA.encode())
    parsed = came(data, 5000).parsed()
    assert full(parsed) == {"url": "data:," + DATA, "model": "m"}
    assert bytes(large_json.dumps(parsed)) == orjson.dumps({"url": "data:," + DATA, "model": "m"})


def test_a_text_that_looks_like_a_mark_is_none() -> None:
    """Marks are drawn for each body: nobody can put one there."""
    large = came(orjson.dumps({"url": URI, "text": f"~{'0' * 32}000000"}), 5000)
    assert full(large.parsed()) == {"url": URI, "text": f"~{'0' * 32}000000"}


def test_bytes_of_a_mark_of_order_are_no_part_of_the_body() -> None:
    """Some editors write them before a file."""
    data = b"\xef\xbb\xbf" + orjson.dumps({"url": URI})
    assert full(came(data, 5000).parsed()) == {"url": URI}
