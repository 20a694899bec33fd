"""Answers are read the same however their bytes are split, and nothing but ``Malformed`` comes of any bytes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rolecall.gateway.http_answer import MAX_HEAD_BYTES, HttpAnswer, Malformed

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass
class Outcome:
    """What became of some bytes."""

    status: int = 0
    headers: dict[str, str] | None = None
    body: bytes = b""
    is_complete: bool = False
    keeps_alive: bool = False
    error: str = ""


def read(*pieces: bytes, has_body: bool = True) -> Outcome:
    """Read pieces, and then the end of the connection."""
    answer, error, body = HttpAnswer(has_body=has_body), "", b""
    try:
        for piece in pieces:
            try:
                answer.feed(piece)
            finally:
                body += answer.take()
        answer.end()
    except Malformed as reason:
        error = str(reason)
    headers = answer.headers if answer.has_head else None
    return Outcome(answer.status, headers, body, answer.is_complete, answer.keeps_alive, error)


def split(data: bytes, at: list[int]) -> list[bytes]:
    """Cut bytes at some places."""
    places = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[start:end] for start, end in pairwise(places) if end > start]


NAMES = st.text("abcdefghijklmnopqrstuvwxyzABC-", min_size=1, max_size=12).filter(
    lambda name: name.lower() not in {"te", "connection", "upgrade", "content-length", "transfer-encoding"}
)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=30)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
BODIES = st.lists(st.binary(min_size=1, max_size=50), max_size=6)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


def lines(headers: list[tuple[str, str]]) -> bytes:
    """Return headers as bytes."""
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, bytes]:
    """Return a good answer, its status and its body."""
    parts, status = draw(BODIES), draw(st.sampled_from([200, 201, 400, 429, 503]))
    body = b"".join(parts)
    head = b"HTTP/1.1 %d Any\r\n" % status + lines(draw(HEADERS))
    before = draw(
        st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" * 3])
    )
    match draw(st.sampled_from(["length", "chunked", "end"])):
        case "length":
            rest = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        case "chunked":
            chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts)
            rest = b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + lines(draw(HEADERS)) + b"\r\n"
        case _:
            rest = b"\r\n" + body
    return before + head + rest, status, body


@given(answers(), PLACES)
def test_splitting_changes_nothing(answer: tuple[bytes, int, bytes], at: list[int]) -> None:
    """A good answer is read to its end with its status and body, wherever it is split."""
    data, status, body = answer
    whole = read(data)
    assert (whole.status, whole.body, whole.is_complete, whole.error) == (status, body, True, "")
    assert read(*split(data, at)) == whole
    assert read(*(bytes([byte]) for byte in data)) == whole


@given(answers(), st.data(), PLACES)
def test_splitting_changes_nothing_of_hostile_bytes(
    answer: tuple[bytes, int, bytes], data: st.DataObject, at: list[int]
) -> None:
    """An answer that was cut, garbled, doubled or followed by others is read, or refused, in the same way."""
    hostile = bytearray(answer[0] * data.draw(st.integers(1, 2)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(hostile)))
        end = data.draw(st.integers(start, min(len(hostile), start + 20)))
        hostile[start:end] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"\r\n", b"0", b"ffffffffffffffffff", b": "])
        )
    assert read(*split(bytes(hostile), at)) == read(bytes(hostile))


@given(st.binary(max_size=200), PLACES)
@example(b"\x16\x03\x01\x02\x00", [1])
@example(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nabc", [3])
@example(b"HTTP/1.1 101 Switching\r\n\r\n", [3])
@example(b"HTTP/1.1 099 Odd\r\n\r\n", [3])
def test_any_bytes_at_all(data: bytes, at: list[int]) -> None:
    """What is no HTTP is refused, without a word of it in the reason."""
    outcome = read(*split(data, at))
    assert outcome == read(data)
    assert outcome.error
    assert not outcome.is_complete


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 5\r\n\r\nabc",
        CHUNKED + b"3\r\nabc\r\n",
        CHUNKED + b"3\r\nabc\r\n0\r\n",
        CHUNKED + b"5\r\nabc",
        CHUNKED + b"3\r\nabcd\r\n",
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        OK + b"Content-Length: -3\r\n\r\nabc",
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        OK,
        b"",
    ],
)
def test_what_is_cut_or_contradicts_itself_is_refused(data: bytes) -> None:
    """An answer that ends too early, or whose length is said twice, is never taken for a complete one."""
    outcome = read(data)
    assert outcome.error
    assert not outcome.is_complete


def test_a_reset_completes_nothing() -> None:
    """An answer without a length ends with its connection, but not with a connection that was reset."""
    answer = HttpAnswer()
    answer.feed(OK + b"\r\nabc")
    with pytest.raises(Malformed):
        answer.end(is_reset=True)
    answer.end()
    assert answer.is_complete


@pytest.mark.parametrize(
    ("data", "keeps_alive"),
    [
        (OK + b"Content-Length: 0\r\n\r\n", True),
        (OK + b"Content-Length: 0\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (OK + b"\r\n", False),
        (CHUNKED + b"0\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", True),
    ],
)
def test_whether_another_answer_may_follow(data: bytes, keeps_alive: bool) -> None:  # noqa: FBT001
    """That depends on the version, on what the engine says, and on whether the end can be told."""
    outcome = read(data)
    assert outcome.is_complete
    assert outcome.keeps_alive is keeps_alive


def test_an_answer_to_head_has_no_body() -> None:
    """Its length is that of another answer."""
    outcome = read(OK + b"Content-Length: 5\r\n\r\n", has_body=False)
    assert outcome.is_complete
    assert outcome.headers == {"content-length": "5"}


@pytest.mark.parametrize("rest", [b"HTTP/1.1 200 OK\r\n", b"junk", b"\0"])
@pytest.mark.parametrize("apart", [True, False])
def test_what_follows_an_answer_is_not_clean(rest: bytes, apart: bool) -> None:  # noqa: FBT001
    """The answer stands, but its connection must not be used again: what follows would be taken for the next one."""
    answer, whole = HttpAnswer(), OK + b"Content-Length: 2\r\n\r\nok"
    for piece in [whole, rest] if apart else [whole + rest]:
        answer.feed(piece)
    assert answer.take() == b"ok"
    assert answer.is_complete
    assert not answer.is_clean


@pytest.mark.parametrize("size", [1, 1000, 100_000])
@pytest.mark.parametrize(
    ("start", "more"),
    [
        (OK, b"x: y\r\n"),
        (OK + b"x: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (CHUNKED + b"0\r\n", b"x: y\r\n"),
        (CHUNKED + b"1;", b"y"),
    ],
)
def test_a_head_without_end(start: bytes, more: bytes, size: int) -> None:
    """A head, headers after the body, or words beside a chunk, of more than 64 KB are refused, whatever they are."""
    piece = more * (size // len(more) + 1)
    outcome = read(start, *[piece] * (2 * MAX_HEAD_BYTES // len(piece) + 2))
    assert "head has more than" in outcome.error


@given(st.integers(-3, 3), st.integers(1, 100_000))
def test_the_longest_head(more: int, size: int) -> None:
    """A head is refused by its length alone, not by what comes together with it."""
    head = OK + b"Content-Length: 4\r\nx: "
    data = head + b"y" * (MAX_HEAD_BYTES + more - len(head) - 4) + b"\r\n\r\nbody"
    outcome = read(*(data[at : at + size] for at in range(0, len(data), size)))
    assert outcome.is_complete is (more <= 0)
    assert outcome == read(data)


def test_headers_of_one_name_are_joined() -> None:
    """As HTTP has it; names are in small letters."""
    outcome = read(OK + b"Via: a\r\nvia: b\r\nContent-Length: 0\r\n\r\n")
    assert outcome.headers == {"via": "a, b", "content-length": "0"}
