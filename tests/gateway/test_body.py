"""Bodies are parsed and written as orjson does it, in short steps where they are large; what takes long is refused."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.errors import BadRequest, BodyTooLarge
from rolecall.gateway import large_json
from rolecall.gateway.body import (
    MAX_JSON_CONTAINERS,
    MAX_JSON_DEPTH,
    MAX_JSON_NAMES,
    MAX_JSON_TEXTS,
    MAX_JSON_VALUES,
    BodyBuffer,
    parse_json,
    read_json,
    write_json,
)
from rolecall.gateway.large_json import LARGE_BYTES, LargeBody

MB = 2**20
LONG = "data:image/png;base64," + "QUJD" * (MB // 4)
CONTENTS = {
    "a picture": LONG,
    "with an escape": LONG + "\n" + LONG,
    "with a quotation mark": LONG + '"' + LONG,
    "with a backslash at its end": LONG + "\\",
    "beyond ASCII": "é" + LONG,
    "beyond the plane": LONG + "😀",
    "like the end of a text": "," + LONG,
    "short": "hi",
}


def body(*contents: Any) -> dict[str, Any]:
    """Return a chat of these contents."""
    return {"model": "m", "n": 2**64 - 1, "messages": [{"role": "user", "content": content} for content in contents]}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("spaces", [False, True])
def test_large_texts_are_read_and_written_unchanged(kind: str, *, spaces: bool) -> None:
    """Whatever stands in them, around them and between them."""
    value = body(CONTENTS[kind], [1.5, None, True, CONTENTS[kind]], LONG, "", CONTENTS[kind], {"a": {}})
    data = json.dumps(value, ensure_ascii=spaces, indent=2 if spaces else None).encode()
    assert large_json.in_blocks(data).parsed() == value
    assert bytes(large_json.dumps(value)) == orjson.dumps(value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": "x", "tokens": [%b1], "b": "y"}' % (b"1," * MB),
        b'{"a": "x"%b, "b": "y"}' % (b" " * 2 * MB),
        b'["%b", "\\"%b", "%b"]' % (LONG.encode(), LONG.encode(), LONG.encode()),
        b'"%b"' % LONG.encode(),
        b'  ["%b"]  ' % LONG.encode(),
        b"1" + b" " * 2 * MB,
    ],
    ids=["numbers", "spaces", "quoted", "text", "padded", "number"],
)
def test_what_only_looks_like_a_large_text_is_read_as_orjson_does(data: bytes) -> None:
    """Numbers and spaces between two texts, names of fields, escaped quotation marks."""
    assert large_json.in_blocks(data).parsed() == orjson.loads(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": "%b' % LONG.encode(), f"byte {len(LONG) + 7}"),
        (b'{"a": "%b",}' % LONG.encode(), f"byte {len(LONG) + 8}"),
        (b'{,"a": "%b"}' % LONG.encode(), "byte 1"),
        (b'{"a": "%b\n"}' % LONG.encode(), f"byte {len(LONG) + 7}"),
        (b'{"a": "%b\xff"}' % LONG.encode(), "byte "),
        (b'["%b" "%b"]' % (LONG.encode(), LONG.encode()), f"byte {len(LONG) + 4}"),
        (b'["%b", "%b", ]' % (LONG.encode(), LONG.encode()), f"byte {2 * len(LONG) + 7}"),
        (b'{"%b": 1}' % LONG.encode(), "name of a field"),
        (b"x" * 2 * MB, "byte 0"),
    ],
)
def test_what_is_no_json_is_said_with_its_place(data: bytes, words: str) -> None:
    """The place is that in the body, whatever was cut out before it."""
    with pytest.raises(large_json.NotJson) as caught:
        large_json.in_blocks(data).parsed()
    assert words in str(caught.value)
    with pytest.raises(BadRequest, match="not valid JSON"):
        parse_json(data)


@pytest.mark.parametrize("letters", ["\n", "é", "x", '"'])
def test_more_text_than_can_be_read_is_refused(letters: str) -> None:
    """Long texts that are not plain count, and so do many short ones; pictures do not."""
    text = letters * (20 * MB // len(letters.encode()))
    value = [text] if letters != "x" else [text[:1000]] * (20 * MB // 1000)
    with pytest.raises(BodyTooLarge, match=f"{large_json.MAX_REST_BYTES} can be read"):
        parse_json(orjson.dumps(value))
    assert parse_json(orjson.dumps([LONG] * 20)) == [LONG] * 20


@given(st.lists(st.tuples(st.text(st.sampled_from('"\\é\n,a')), st.booleans()), max_size=4))
def test_texts_of_any_letters(parts: list[tuple[str, bool]]) -> None:
    """Texts with long parts and with odd ones come through both ways."""
    value = [text + LONG if is_long else text for text, is_long in parts]
    assert large_json.in_blocks(orjson.dumps(value)).parsed() == value
    assert bytes(large_json.dumps(value)) == orjson.dumps(value)


@pytest.mark.parametrize(
    ("value", "large"),
    [
        ("x" * LARGE_BYTES, False),
        ("x" * (LARGE_BYTES + 1), True),
        ({"a": ["x" * LARGE_BYTES, {"b": "x"}]}, True),
        ([0] * 20_000, True),
        (1, False),
    ],
)
def test_large_is_what_takes_long_to_write(value: Any, *, large: bool) -> None:
    """Many letters, or many values."""
    assert large_json.is_large(value) is large


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" + b"[]," * MAX_JSON_CONTAINERS + b"1]", f"too many lists and objects; {MAX_JSON_CONTAINERS}"),
        (b"[" + b'"",' * (MAX_JSON_TEXTS + 1) + b"1]", f"too many texts; {MAX_JSON_TEXTS}"),
        (b"[" + b"1," * (MAX_JSON_VALUES + 1) + b"1]", f"too many values; {MAX_JSON_VALUES}"),
        (b"{" + b'"":1,' * MAX_JSON_NAMES + b'"":1}', f"too many names of fields; {MAX_JSON_NAMES}"),
        (b'["\\\\",' + b'"",' * (MAX_JSON_TEXTS + 1) + b"1]", "too many texts"),
        (b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1), "nested too deeply"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
    ],
)
def test_what_takes_long_to_read_is_refused(data: bytes, words: str) -> None:
    """Too many values, texts, lists or levels are a 400 with the number that can be read."""
    with pytest.raises(BadRequest, match=words):
        parse_json(data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"[]," * (MAX_JSON_CONTAINERS - 1) + b"1]",
        b"[" + b"1," * (MAX_JSON_VALUES - 1) + b"1]",
        b"{" + b'"":1,' * (MAX_JSON_NAMES - 1) + b'"":1}',
        b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH,
        orjson.dumps(["[" * 2 * MAX_JSON_CONTAINERS, '"' * 3 * MAX_JSON_TEXTS, ",:" * MAX_JSON_VALUES]),
        orjson.dumps(["\\" * 3 * MB + "[" * 2 * MAX_JSON_CONTAINERS, "x" * (MB - 10), '\\"[' * MAX_JSON_CONTAINERS]),
    ],
    ids=["lists", "values", "names", "levels", "in texts", "after backslashes"],
)
def test_what_stands_in_texts_is_not_counted(data: bytes) -> None:
    """At the limits everything is read, and a text may hold any number of brackets, commas and quotation marks."""
    assert parse_json(data) == orjson.loads(data)
    assert gc.isenabled()


def cost(work: Callable[[], object]) -> float:
    """Return the seconds of this thread's own work, the least of three times."""
    took = []
    for _ in range(3):
        start = time.thread_time()
        work()
        took.append(time.thread_time() - start)
    return min(took)


def refuse(data: LargeBody) -> None:
    """Have a body refused."""
    with pytest.raises(BadRequest, match="too many"):
        parse_json(data)


@pytest.mark.parametrize("unit", [b"[],", b'"a",', b"1,", b'"a":1,'])
def test_what_takes_long_is_refused_before_it_is_counted_to_the_end(unit: bytes) -> None:
    """A body ten times as long costs no more: it ends where the limit is exceeded."""
    short, long = (large_json.in_blocks(b"[" + unit * count) for count in (1_100_000, 11_000_000))
    assert cost(lambda: refuse(long)) < 3 * cost(lambda: refuse(short))


def test_many_backslashes_are_counted_as_fast_as_other_letters() -> None:
    """What is escaped stays with what escapes it, also where the first letter of that is far away."""
    marks = b'["' + b"[" * 2 * MAX_JSON_CONTAINERS
    data, plain = marks + b"\\" * 8 * MB + b'"]', marks + "é".encode() * 4 * MB + b'"]'
    assert parse_json(data) == orjson.loads(data)
    assert cost(lambda: parse_json(data)) < 20 * cost(lambda: parse_json(plain))


async def test_others_run_while_a_large_body_is_read_and_written() -> None:
    """Reading and writing 32 MB of pictures gives the loop its turn many times."""
    value = body(*[LONG] * 32)
    data = orjson.dumps(value)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    counting = asyncio.create_task(count())
    assert await read_json(data) == value
    read_turns = turns
    assert bytes(await write_json(value)) == data
    counting.cancel()
    assert read_turns > 5
    assert turns - read_turns > 5


@pytest.mark.parametrize("part", [1, 1000, 70_000, 2 * MB])
@pytest.mark.parametrize("size", [0, 1, 1000, LARGE_BYTES, 2 * MB])
def test_a_body_is_taken_in_whatever_its_parts(size: int, part: int) -> None:
    """A small one comes out as it is, a large one in pieces; both are read alike."""
    data = orjson.dumps({"text": "x" * size}) if size else b""
    buffer = BodyBuffer(len(data))
    for at in range(0, min(len(data), 300 * part), part):
        buffer.add(data[at : at + part])
    buffer.add(data[300 * part :])
    taken = buffer.take()
    assert len(taken) == len(data)
    if size:
        assert parse_json(taken) == {"text": "x" * size}
    if len(data) < LARGE_BYTES:
        assert taken == data


@pytest.mark.parametrize("limit", [5, 2 * MB])
def test_a_body_above_the_limit_is_not_kept(limit: int) -> None:
    """Whatever has come of it is let go at once."""
    buffer = BodyBuffer(limit)
    buffer.add(b"x" * limit)
    with pytest.raises(BodyTooLarge, match=f"The body has {limit + 1} bytes or more; the limit is {limit}"):
        buffer.add(b"x")
    assert len(buffer.take()) == 0


async def test_small_bodies_take_no_detour() -> None:
    """They are read and written as they are."""
    assert await read_json(b'\xef\xbb\xbf{"a":1}') == {"a": 1}
    assert await write_json({"a": 1}) == b'{"a":1}'
    with pytest.raises(BadRequest, match="is empty"):
        await read_json(b"\xef\xbb\xbf")
