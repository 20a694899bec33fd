"""Requests that are nearly right, and ones that are nothing at all, for hypothesis to make up."""

from __future__ import annotations

import json

from hypothesis import strategies as st

MODEL = "text-only"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/tokenize")

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["", "\0", "é", "😀" * 50, "a" * 5000, "data:image/png;base64,AAAA", "http://127.0.0.1/", "../x"]),
)
JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_URLS = st.sampled_from(
    ["data:image/png;base64,AAAA", "data:,", "data:image/png;base64,%%%", "http://10.0.0.1/x", "file:///x", "x"]
)
_PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=20)}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": _URLS | JSON})}),
    st.fixed_dictionaries({"type": JSON}),
    JSON,
)
_MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "x"]),
        "content": st.text(max_size=30) | st.text(max_size=30) | st.lists(_PARTS, max_size=3),
    },
    optional=dict.fromkeys(("tool_calls", "tool_call_id", "name", "reasoning_content"), JSON),
)
_COUNTS = ("max_tokens", "n", "top_k", "seed", "n_discard", "temperature", "logprobs", "top_logprobs", "id_slot")
_STRANGE = st.one_of(
    *(st.fixed_dictionaries({name: st.integers(-3, 2**40) | JSON}) for name in _COUNTS),
    *(
        st.fixed_dictionaries({name: JSON})
        for name in ("metadata", "tools", "response_format", "stop", "thinking", "x")
    ),
    *(st.fixed_dictionaries({name: JSON}) for name in ("stream", "stream_options", "messages", "model")),
    st.fixed_dictionaries({"messages": st.lists(_MESSAGES | JSON, max_size=3)}),
    st.fixed_dictionaries({"model": st.sampled_from([f"{MODEL} ", "role:chat", "role:", "nobody", "x" * 1000])}),
    st.just({}),
)
_PROPER = st.fixed_dictionaries(
    {
        "model": st.just(MODEL),
        "messages": st.lists(_MESSAGES, min_size=1, max_size=4),
        "prompt": st.text(max_size=20),
        "input": st.text(max_size=20) | st.lists(st.text(max_size=9), max_size=3),
    },
    optional={
        "stream": st.booleans(),
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
        "max_tokens": st.integers(1, 9),
    },
)
_BODIES = st.tuples(_PROPER, _STRANGE, _STRANGE).map(lambda parts: parts[0] | parts[1] | parts[2])


def _spoilt(parts: tuple[bytes, list[tuple[int, bytes]]]) -> bytes:
    """Return bytes with some of them replaced: places are counted round."""
    data = bytearray(parts[0])
    for place, instead in parts[1]:
        at = place % (len(data) + 1)
        data[at : at + len(instead) // 2] = instead
    return bytes(data)


_SPOILT = st.sampled_from([b"", b"\0", b"\xff", b'"', b"\\u", b"{", b"]", b",", b"NaN", b"1e999"])
_SPOILS = st.lists(st.tuples(st.integers(0, 5000), _SPOILT), min_size=1, max_size=3)
_WRITTEN = _BODIES.map(lambda body: json.dumps(body).encode())
BODIES = st.one_of(
    _WRITTEN,
    _WRITTEN,
    st.tuples(_WRITTEN, _SPOILS).map(_spoilt),
    st.binary(max_size=100),
    st.tuples(st.sampled_from([b"[", b'{"a":', b'"', b"1", b"\\"]), st.integers(1, 2000)).map(lambda it: it[0] * it[1]),
)
"""Bodies: objects that are nearly requests, the same with some bytes spoilt, garbage, and one thing again and again."""

PIECES = (
    *(b"\r\n", b"\r", b"\n", b"\0", b" ", b":", b"\t", b"\xff", b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1", b"HTTP/0.9"),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n"),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"ffffffffffffffff\r\n",
        b"5;x=y\r\nhello\r\n",
    ),
    *(b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n"),
    *(b"Expect: 100-continue\r\n", b"Host: evil.example\r\n", b"Host: a/b?c#d\r\n", b"Authorization: Bearer \xff\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Content-Type: text/plain\r\n", b"X: " + b"a" * 5000 + b"\r\n", b" folded\r\n"),
    *(
        b"GET ",
        b"POST ",
        b"CONNECT ",
        b"OPTIONS * ",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ),
    *(b"/v1/models/%2F%2e%2e/", b"/%00", b"http://evil.example/", b"?a=b&&=#x", b"//", b"GET /health HTTP/1.1\r\n\r\n"),
)
_PATHS = st.sampled_from([*ENDPOINTS, "/health", "/v1/models", "/v1/models/x/load", "/v1/config/proxy", "/", "*", "/é"])


def _request(parts: tuple[str, str, bytes, bool]) -> bytes:
    """Return a proper request."""
    method, path, body, is_chunked = parts
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    if is_chunked:
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


_REQUESTS = st.tuples(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "PATCH"]),
    _PATHS,
    st.sampled_from(
        [b"", b"{}", json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()]
    ),
    st.booleans(),
).map(_request)
_CUTS = st.lists(st.tuples(st.integers(0, 400), st.sampled_from(PIECES)), max_size=4)
SOCKETS = st.one_of(
    st.tuples(_REQUESTS, _CUTS).map(_spoilt),
    st.tuples(_REQUESTS, _REQUESTS, _CUTS).map(lambda it: _spoilt((it[0] + it[1], it[2]))),
    st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join),
    st.binary(max_size=200),
)
"""What is sent on a connection: one or two requests with pieces of others in them, pieces alone, garbage."""
