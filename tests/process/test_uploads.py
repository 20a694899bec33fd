"""Uploads over real sockets: what the engine gets of a multipart request, and what is refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import Rolecall, fake_entry

PATH = "/v1/audio/transcriptions"
NOBODY = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nnobody'
AUDIO = b"RIFF\r\n--not-a-boundary\r\n" + bytes(range(256)) * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """A rolecall with a model that hears, under a name that its engine does not know."""
    folder = tmp_path_factory.mktemp("uploads")
    entries = [
        fake_entry("ears", served_model_id="whisper/large:v3", roles=["hear"], capabilities=["audio"]),
        fake_entry("reader", capabilities=["text"]),
    ]
    with Rolecall(folder, entries, settings={"max_upload_bytes": 40_000_000}) as running:
        yield running


def heard(audio: bytes, name: str) -> dict[str, Any]:
    """Return what the fake engine tells of a file."""
    return {"name": name, "bytes": len(audio), "sha256": hashlib.sha256(audio).hexdigest()}


def test_the_engine_gets_the_file_and_its_own_name_for_the_model(server: Rolecall) -> None:
    """Files and fields come through as they were; ``model`` is what the engine calls it, and the line says all."""
    answer = server.http.post(
        PATH, files={"file": ("a b.wav", AUDIO, "audio/wav")}, data={"model": "role:hear", "language": "de"}
    )
    assert answer.status_code == 200, answer.text
    form = {"model": "whisper/large:v3", "language": "de", "file": heard(AUDIO, "a b.wav")}
    assert answer.json()["form"] == form
    assert answer.headers["x-rolecall-model"] == "ears"
    line = server.line_of(answer)
    assert (line["requested_model"], line["role"], line["model"], line["status"]) == ("role:hear", "hear", "ears", 200)
    assert line["bytes_in"] > len(AUDIO)


def test_the_model_may_stand_behind_the_file(server: Rolecall) -> None:
    """Curl sends the parts in the order of its options: the model's name is found wherever it is."""
    parts: Any = [("file", ("a.wav", AUDIO)), ("model", (None, "ears"))]
    answer = server.http.post(PATH, files=parts)
    assert answer.json()["form"] == {"model": "whisper/large:v3", "file": heard(AUDIO, "a.wav")}


def test_a_large_file_is_not_held_in_memory(server: Rolecall) -> None:
    """An upload of 32 MB comes through whole, leaves no file behind, and costs rolecall no such memory."""
    audio = os.urandom(32 * 2**20)
    before = psutil.Process(server.process.pid).memory_info().rss
    answer = server.http.post(PATH, files={"file": ("long.wav", audio)}, data={"model": "ears"})
    assert answer.json()["form"]["file"] == heard(audio, "long.wav")
    assert psutil.Process(server.process.pid).memory_info().rss - before < 16 * 2**20
    assert not [path for path in server.state.iterdir() if path.name.startswith("tmp")]


@pytest.mark.parametrize(
    ("data", "problem", "status"),
    [
        (b"", "ends within a part", 400),
        (b"--x\r\nno header\r\n", "not valid multipart", 400),
        (b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc', "ends within a part", 400),
        (b'--x\r\nContent-Disposition: form-data; name="n"\r\n\r\nabc\r\n--x--\r\n', "'model'", 400),
        (
            NOBODY + b'\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n',
            "nobody",
            404,
        ),
        (b"--x\r\nA: b\r\n\r\n\r\n" * 101 + b"--x--\r\n", "more than 100 parts", 400),
        (b"--x\r\nA: " + b"b" * 20_000 + b"\r\n\r\n\r\n--x--\r\n", "Maximum header size", 400),
        (b'--x\r\nContent-Disposition: form-data; name="n"\r\n\r\n' + b"a" * 2**21, "field 'n'", 400),
    ],
)
def test_a_broken_upload_is_told_what_is_wrong(server: Rolecall, data: bytes, problem: str, status: int) -> None:
    """Each is an error in OpenAI's shape that names the problem."""
    answer = server.http.post(PATH, content=data, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == status, answer.text
    assert problem in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"language": (None, "de")}, "is missing"),
        ({"file": (None, AUDIO)}, "has no filename"),
        ({"file": ("", AUDIO)}, "has no filename"),
        ({"file": ("a.wav", b"")}, "is empty"),
    ],
)
def test_an_upload_without_a_file_is_refused(server: Rolecall, parts: Any, problem: str) -> None:
    """It is told so before a model is chosen: the one that is named is never looked for."""
    answer = server.http.post(PATH, files={"model": (None, "nobody"), **parts})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "file")
    assert f"'file' of the upload {problem}" in error["message"]
    assert server.line_of(answer)["status"] == 400


def test_an_upload_over_the_limit_is_refused(server: Rolecall) -> None:
    """The answer is 413 and names the setting."""
    answer = server.http.post(PATH, files={"file": ("a", bytes(41_000_000))}, data={"model": "ears"})
    assert answer.status_code == 413
    assert "max_upload_bytes" in answer.json()["error"]["message"]


def test_a_disk_without_room_refuses_uploads_alone(tmp_path: Path) -> None:
    """With less than the limit free it is a 503 that says when to come back; the client is heard out."""
    entries = [fake_entry("ears", capabilities=["audio", "text"])]
    with Rolecall(tmp_path, entries, settings={"max_upload_bytes": 2**60}) as full:
        answer = full.http.post(PATH, files={"file": ("a", bytes(8 * 2**20))}, data={"model": "ears"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        assert answer.json()["error"]["code"] == "disk_full"
        assert full.line_of(answer)["status"] == 503
        assert full.chat("ears").status_code == 200


def test_no_boundary_is_told(server: Rolecall) -> None:
    """A content type without a boundary cannot be taken apart."""
    answer = server.http.post(PATH, content=b"x", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400
    assert "boundary" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "audio/wav"])
def test_what_is_no_upload_is_told_what_the_endpoint_takes(server: Rolecall, kind: str) -> None:
    """JSON, and a file as it is, are 415."""
    answer = server.http.post(PATH, content=b"{}", headers={"content-type": kind})
    assert answer.status_code == 415
    assert "multipart/form-data" in answer.json()["error"]["message"]
