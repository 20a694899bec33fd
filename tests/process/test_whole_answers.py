"""Answers that are no streams over real sockets: sound, subtitles, large ones, and those that break off."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator

import httpx
import pytest

from harness import CHAT, Rolecall, http_request, new_agent, unchunked, upstream, upstream_entry

SPEECH, TRANSCRIPTIONS, EMBEDDINGS = "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/embeddings"
SOUND = bytes(range(256)) * 1000
SUBTITLES = "1\n00:00:00,000 --> 00:00:02,000\nGrüße!\n\n".encode()
NUMBERS = random.Random(1)
VECTORS = [{"index": at, "embedding": [NUMBERS.random() for _ in range(4096)]} for at in range(40)]
USAGE = {"prompt_tokens": 99, "total_tokens": 99}
LARGE = json.dumps({"object": "list", "data": VECTORS, "model": "x", "usage": USAGE}).encode()
CHUNKED = "Transfer-Encoding: chunked"


def head(kind: str, *fields: str, status: int = 200) -> bytes:
    """Return the head of an answer."""
    return "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Type: {kind}", *fields, "", ""]).encode()


def sized(kind: str, body: bytes, *fields: str, status: int = 200, missing: int = 0) -> bytes:
    """Return an answer with its length, of which ``missing`` bytes never come."""
    length = f"Content-Length: {len(body)}"
    return head(kind, length, *fields, status=status) + body[: len(body) - missing]


def chunk(data: bytes) -> bytes:
    """Return data as one chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


SCRIPTS = {
    "sound": sized("audio/mpeg", SOUND),
    "sound in chunks": head("audio/mpeg", CHUNKED) + chunk(SOUND[:1000]) + chunk(SOUND[1000:]) + chunk(b""),
    "empty": sized("audio/mpeg", b""),
    "srt": sized("text/plain; charset=utf-8", SUBTITLES),
    "vtt": sized("text/vtt", b"WEBVTT\n\n"),
    "json": sized("application/json", b'{"text":"hi","usage":{"prompt_tokens":3,"completion_tokens":2}}'),
    "bytes": sized("application/octet-stream", SOUND),
    "short of its length": sized("audio/mpeg", SOUND, missing=100),
    "without an end": head("audio/mpeg", CHUNKED) + chunk(SOUND),
    "no byte": sized("audio/mpeg", SOUND, missing=len(SOUND)),
    "page": sized("text/html", b"<html>Bad gateway</html>"),
    "text": sized("text/plain", b"hello"),
    "refusal": sized("text/plain", b"no such voice", status=400),
    "busy for ever": sized("text/plain", b"busy", f"Retry-After: {'9' * 400}", status=503),
    "large": sized("application/json", LARGE),
    "large and cut": sized("application/json", LARGE, missing=1),
    "large and broken": sized("application/json", LARGE[:-1] + b"x"),
}


def play(connection: socket.socket, request: bytes) -> None:
    """Answer with the script that the request names in ``script``, if it is JSON, or in the language of an upload."""
    text = request.partition(b"\r\n\r\n")[2]
    script = next(name for name in sorted(SCRIPTS, key=len, reverse=True) if f"script-{name}".encode() in text)
    connection.sendall(SCRIPTS[script])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run a rolecall before the scripted server."""
    with upstream(play) as far:
        entry = upstream_entry("far", far.base_url, capabilities=["text", "audio", "embedding"])
        with Rolecall(tmp_path_factory.mktemp("whole"), [entry]) as running:
            yield running


def ask(server: Rolecall, script: str, path: str = SPEECH) -> httpx.Response:
    """Ask for an answer by its script."""
    if path == TRANSCRIPTIONS:
        return server.http.post(
            path, files={"file": ("a.wav", b"RIFF")}, data={"model": "far", "x": f"script-{script}"}
        )
    if path == CHAT:
        return server.chat("far", f"script-{script}")
    return server.http.post(path, json={"model": "far", "input": f"script-{script}"})


@pytest.mark.parametrize(
    ("script", "path", "body", "kind"),
    [
        ("sound", SPEECH, SOUND, "audio/mpeg"),
        ("sound in chunks", SPEECH, SOUND, "audio/mpeg"),
        ("empty", SPEECH, b"", "audio/mpeg"),
        ("srt", TRANSCRIPTIONS, SUBTITLES, "text/plain; charset=utf-8"),
        ("vtt", TRANSCRIPTIONS, b"WEBVTT\n\n", "text/vtt"),
        ("bytes", EMBEDDINGS, SOUND, "application/octet-stream"),
    ],
)
def test_what_is_no_json_passes(server: Rolecall, script: str, path: str, body: bytes, kind: str) -> None:
    """Sound, subtitles and bytes are the engine's, with its type, and its length where it gave one."""
    answer = ask(server, script, path)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, body, kind)
    assert answer.headers.get("content-length") == (None if "chunks" in script else str(len(body)))
    assert answer.headers["x-rolecall-model"] == "far"
    line = server.line_of(answer)
    assert (line["status"], line["error"], line["bytes_out"]) == (200, None, len(body))


def test_json_of_the_same_endpoint_is_read(server: Rolecall) -> None:
    """A transcript in JSON has a usage, which the line tells."""
    answer = ask(server, "json", TRANSCRIPTIONS)
    assert answer.json()["text"] == "hi"
    line = server.line_of(answer)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 2)


@pytest.mark.parametrize("script", ["short of its length", "without an end"])
def test_sound_that_breaks_off_does_not_look_whole(server: Rolecall, script: str) -> None:
    """The client gets what there was, no word of an error in it, and sees by HTTP's own rules that more was to come."""
    agent = new_agent()
    request = http_request({"model": "far", "input": f"script-{script}"}, path=SPEECH, headers={"User-Agent": agent})
    status, headers, content = server.exchange(request)
    whole = int(headers.get("content-length", -1)) == len(content)
    if "content-length" not in headers:
        content, whole = unchunked(content)
    assert (status, whole) == (200, False)
    assert SOUND.startswith(content)
    assert len(content) > 100_000
    line = server.line_by(agent)
    assert (line["status"], line["error"].partition(":")[0]) == (200, "engine_error")


@pytest.mark.parametrize(
    ("script", "path", "status", "words"),
    [
        ("no byte", SPEECH, 502, "broke off"),
        ("page", SPEECH, 502, "is not JSON: <html>Bad gateway"),
        ("page", EMBEDDINGS, 502, "is not JSON: <html>Bad gateway"),
        ("text", CHAT, 502, "is not JSON: hello"),
        ("refusal", SPEECH, 400, "no such voice"),
        ("busy for ever", SPEECH, 503, "busy"),
        ("large and cut", EMBEDDINGS, 502, "broke off"),
        ("large and broken", EMBEDDINGS, 502, "is not JSON: {"),
    ],
)
def test_errors_are_told_as_ever(server: Rolecall, script: str, path: str, status: int, words: str) -> None:
    """As long as nothing has gone to the client, an answer that is none becomes an error in OpenAI's shape."""
    answer = ask(server, script, path)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert int(answer.headers.get("retry-after", 120)) == 120


def test_a_large_answer_passes_and_its_usage_is_read(server: Rolecall) -> None:
    """Megabytes of embeddings come through byte by byte, and the line knows the tokens."""
    assert len(LARGE) > 2**20
    answer = ask(server, "large", EMBEDDINGS)
    assert answer.content == LARGE
    assert answer.headers["content-length"] == str(len(LARGE))
    line = server.line_of(answer)
    assert (line["status"], line["prompt_tokens"], line["bytes_out"]) == (200, 99, len(LARGE))
