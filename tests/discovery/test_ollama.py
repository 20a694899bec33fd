"""Ollama's models: from its blobs where llama.cpp runs them, else by the daemon; and daemons that answer nonsense."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gguf_shapes import F16, write_gguf
from model_places import model_gguf, ollama_model, projector_gguf
from process.fake_ollama import FakeOllama
from rolecall.discovery.found import Model
from rolecall.discovery.ollama_models import Daemon, tag_name
from rolecall.discovery.places import Place
from rolecall.discovery.scan import Findings, scan


def look(store: Path, daemon: Daemon | None = None) -> Findings:
    """Scan a store of Ollama's, and ask a daemon."""
    return scan([Place("ollama", store)], daemon)


def tags(models: list[Model]) -> dict[str, str]:
    """Return the backend of each model by its first tag."""
    return {model.ids[0]: model.backend for model in models}


def test_a_blob_is_a_gguf(tmp_path: Path) -> None:
    """llama.cpp gets the blob; its name is the tag's, and the tag is a further name."""
    store = tmp_path / "models"
    blob = ollama_model(store, "llama3.2:3b-instruct-q4_K_M", model=model_gguf(tmp_path / "m", general__file_type=15))
    (model,) = look(store).models
    assert (model.bare, model.quantization, model.backend) == ("llama3.2-3b-instruct", "Q4_K_M", "llama_cpp")
    assert (model.path, model.ids, model.provider) == (blob, ("llama3.2:3b-instruct-q4_K_M",), "ollama")
    assert model.context_tokens == 40960


def test_a_blob_with_its_projector(tmp_path: Path) -> None:
    """The projector is a layer of the same manifest."""
    store = tmp_path / "models"
    ollama_model(store, "llava:7b", model=model_gguf(tmp_path / "m"), projector=projector_gguf(tmp_path / "p"))
    (model,) = look(store).models
    assert model.found.sees
    assert model.projector is not None
    assert model.projector.parent == store / "blobs"


def test_tags_of_one_blob_are_one_model(tmp_path: Path) -> None:
    """Called after the tag that says most."""
    store = tmp_path / "models"
    ollama_model(store, "gemma3:4b", model=model_gguf(tmp_path / "m"))
    same = (store / "manifests/registry.ollama.ai/library/gemma3/4b").read_bytes()
    (store / "manifests/registry.ollama.ai/library/gemma3/latest").write_bytes(same)
    (model,) = look(store).models
    assert (model.bare, model.ids) == ("gemma3-4b", ("gemma3:4b", "gemma3:latest"))


@pytest.mark.parametrize(
    ("tag", "bare", "label"),
    [
        ("pixtral-local:latest", "pixtral-local-latest", None),
        ("hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M", "llama-3.2-3b-instruct", "Q4_K_M"),
        ("hf.co/org/m-GGUF:latest", "m", None),
        ("me/mine:q8_0", "mine", "Q8_0"),
    ],
)
def test_names_of_tags(tag: str, bare: str, label: str | None) -> None:
    """The model and what the tag says, its quantization apart."""
    assert tag_name(tag) == (bare, label)


def bundled(path: Path) -> Path:
    """Write a model with its vision tower in one file, as Ollama's own engine has them."""
    known = {"general.architecture": "gemma3", "tokenizer.chat_template": "x"}
    return write_gguf(path, known, [("token_embd.weight", (256, 32), F16), ("v.patch_embd.weight", (64, 32), F16)])


def test_what_llama_cpp_cannot_run_is_left_to_the_daemon(tmp_path: Path) -> None:
    """Files in a form of Ollama's own, without a template, with an adapter or unreadable; each with the reason."""
    store = tmp_path / "models"
    template = tmp_path / "t"
    ollama_model(store, "good:1b", model=model_gguf(tmp_path / "m"))
    ollama_model(store, "gemma3:4b", model=bundled(tmp_path / "m"))
    template.write_text("{{ .Prompt }}")
    ollama_model(store, "bare:1b", model=model_gguf(tmp_path / "m", template=None), template=template)
    template.write_text("lora")
    ollama_model(store, "tuned:1b", model=model_gguf(tmp_path / "m"), adapter=template)
    sections = {"qwen35__rope__dimension_sections": [11, 11, 10]}
    ollama_model(store, "qwen3.5:4b", model=model_gguf(tmp_path / "m", "qwen35", **sections))
    ollama_model(store, "gone:1b", model=model_gguf(tmp_path / "m")).unlink()
    os.truncate(ollama_model(store, "cut:1b", model=model_gguf(tmp_path / "m")), 50)
    ollama_model(store, "empty:1b")
    every = ("good:1b", "gemma3:4b", "bare:1b", "tuned:1b", "qwen3.5:4b", "gone:1b", "cut:1b", "empty:1b")
    with FakeOllama(*every) as ollama:
        findings = look(store, Daemon(ollama.base_url))
    assert findings.skipped == []
    assert tags(findings.models) == {tag: "llama_cpp" if tag == "good:1b" else "ollama" for tag in every}
    assert {model.ids[0]: model.notes[0] for model in findings.models if model.tag} == {
        "gemma3:4b": "left to Ollama: its blob holds a vision tower too, which llama.cpp refuses",
        "bare:1b": "left to Ollama: its blob has no chat template, which Ollama keeps in a form of its own",
        "tuned:1b": "left to Ollama: it has an adapter, which Ollama applies",
        "qwen3.5:4b": "left to Ollama: its blob is in a form of Ollama's own (rope.dimension_sections)",
        "gone:1b": "left to Ollama: its blob cannot be read: No such file or directory",
        "cut:1b": "left to Ollama: its blob cannot be used: it is cut short in its header",
        "empty:1b": "left to Ollama: its manifest names no GGUF",
    }
    alone = look(store)
    assert tags(alone.models) == {"good:1b": "llama_cpp"}
    assert all(each.reason.endswith("and Ollama was not asked") for each in alone.skipped)
    silent = look(store, Daemon("http://127.0.0.1:9", 0.5))
    assert len(silent.skipped) == len(alone.skipped) == 7
    assert all(each.reason.endswith("and Ollama, which could serve it, does not answer") for each in silent.skipped)


def test_a_daemon_tells_of_its_models(tmp_path: Path) -> None:
    """What it lists and shows: quantization, size, context, what it can do; of two tags of one model the fuller."""
    with FakeOllama("qwen2.5vl:latest", "qwen2.5vl:7b", "gpt-oss:120b-cloud", "nomic-embed-text:latest") as ollama:
        details = {"family": "qwen25vl", "parameter_size": "8.3B", "quantization_level": "Q4_K_M"}
        ollama.listed = {
            "qwen2.5vl:7b": {"digest": "d1", "size": 6 * 2**30, "details": details},
            "qwen2.5vl:latest": {"digest": "d1", "details": details},
            "gpt-oss:120b-cloud": {"remote_host": "https://ollama.com:443", "remote_model": "gpt-oss:120b"},
        }
        info = {"qwen25vl.context_length": 128000, "general.architecture": "qwen25vl"}
        ollama.shown = {"qwen2.5vl:7b": {"capabilities": ["completion", "vision", 7], "model_info": info}}
        findings = look(tmp_path, Daemon(ollama.base_url))
    model, other = sorted(findings.models, key=lambda each: -len(each.ids))
    assert (model.bare, model.quantization, model.tag) == ("qwen2.5vl-7b", "Q4_K_M", "qwen2.5vl:7b")
    assert model.ids == ("qwen2.5vl:7b", "qwen2.5vl:latest")
    assert (model.context_tokens, model.size_bytes, model.found.parameters_b) == (128000, 6 * 2**30, 8.3)
    assert (model.found.declares, model.found.sees) == (("completion", "vision"), True)
    assert (other.bare, other.quantization, other.found.declares) == ("nomic-embed-text-latest", None, ())
    assert [(each.path, "another machine" in each.reason) for each in findings.skipped] == [
        ("ollama gpt-oss:120b-cloud", True)
    ]
    assert findings.daemon == f"{ollama.base_url} serves 2 of its models itself"


def test_a_model_that_the_daemon_does_not_list(tmp_path: Path) -> None:
    """A manifest of which Ollama knows nothing: both say no."""
    ollama_model(tmp_path / "s", "gemma3:4b", model=bundled(tmp_path / "m"))
    with FakeOllama() as ollama:
        (skipped,) = look(tmp_path / "s", Daemon(ollama.base_url)).skipped
    assert skipped.path == "ollama gemma3:4b"
    assert skipped.reason.endswith("and Ollama does not list it")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "{}",
        json.dumps({"layers": 7}),
        json.dumps({"layers": [7, {"mediaType": 7, "digest": []}, {"digest": "sha256:../../x"}]}),
        " " * (2**20 + 1),
    ],
)
def test_manifests_with_surprises(tmp_path: Path, content: str) -> None:
    """One that makes no sense is named, and the others are found; no path outside of the store comes of it."""
    store = tmp_path / "models"
    ollama_model(store, "good:1b", model=model_gguf(tmp_path / "m"))
    (store / "manifests/registry.ollama.ai/library/good/bad").write_text(content)
    os.mkfifo(store / "manifests/registry.ollama.ai/library/good/pipe")
    (store / "manifests/registry.ollama.ai/library/good/dir").mkdir()
    strange = os.fsencode(store) + b"/manifests/registry.ollama.ai/library/good/\xff"
    Path(os.fsdecode(strange)).write_text("{}")
    findings = look(store)
    assert tags(findings.models) == {"good:1b": "llama_cpp"}
    assert {Path(each.path).name for each in findings.skipped} >= {"pipe", "dir", "\ufffd"}
    assert ("bad" in {Path(each.path).name for each in findings.skipped}) == ('layers": [' not in content)


def test_a_store_that_may_not_be_read(ordinary: Path) -> None:
    """As that of a service often is: it is told of, with the blobs too that only Ollama may read."""
    store = ordinary / "models"
    ollama_model(store, "m:1b", model=model_gguf(ordinary / "m")).chmod(0)
    (skipped,) = look(store).skipped
    assert skipped.reason == "its blob cannot be used: Permission denied, and Ollama was not asked"
    (store / "manifests").chmod(0)
    (skipped,) = look(store).skipped
    assert skipped.reason == "this folder cannot be read: Permission denied"
    (store / "manifests").chmod(0o700)


# --- daemons that answer nonsense


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server that does the same with each connection; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    with suppress(OSError):  # the client has left
                        answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def body(content: bytes, status: bytes = b"200 OK") -> Callable[[socket.socket], None]:
    """Return how to answer with a body until the end of the connection."""
    return lambda connection: connection.sendall(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\n\r\n" + content)


def endless(connection: socket.socket) -> None:
    """Send without end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b" " * 2**20)


def dripping(connection: socket.socket) -> None:
    """Send a little now and then, without end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def silent(connection: socket.socket) -> None:
    """Say nothing until the client leaves."""
    connection.recv(1)


ROWS: list[Any] = [
    7,
    {},
    {"model": 7, "name": None},
    {"model": ""},
    {"model": "bad\nname"},
    {"model": "x" * 300},
    {"model": "\ud800"},
    {"model": "ok:1b", "details": 7, "size": "many", "digest": 7},
    {"model": "too:1b", "details": {"family": 7, "quantization_level": [], "parameter_size": 8}, "size": -5},
]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (body(b"<html>"), "no JSON object"),
        (body(b"[]"), "no JSON object"),
        (body(b"{}"), "no list of models"),
        (body(json.dumps({"models": 7}).encode()), "no list of models"),
        (body(b"[" * 100_000), "no JSON object"),
        (body(b"\xff\xfe"), "no JSON object"),
        (body(b"not found", b"404 Not Found"), "it answered 404"),
        (body(b"", b"302 Found\r\nlocation: http://127.0.0.1:1/"), "it answered 302"),
        (lambda connection: connection.sendall(b"SSH-2.0-x\r\n"), ""),
        (lambda connection: connection.sendall(b""), ""),
        (endless, "too much"),
        (dripping, "too much"),
        (silent, "timed out"),
    ],
)
def test_an_ollama_that_answers_nonsense(tmp_path: Path, answer: Callable[[socket.socket], None], said: str) -> None:
    """Or nothing at all: it says so, and the models on the disk are found."""
    ollama_model(tmp_path / "s", "good:1b", model=model_gguf(tmp_path / "m"))
    with answering(answer) as url:
        findings = look(tmp_path / "s", Daemon(url, 0.3))
    assert tags(findings.models) == {"good:1b": "llama_cpp"}
    assert findings.daemon
    assert said in findings.daemon
    assert not findings.has_answered


def test_rows_that_make_no_sense(tmp_path: Path) -> None:
    """A list with nonsense in it yields what there is in it of sense."""
    with answering(body(json.dumps({"models": ROWS}).encode())) as url:
        findings = look(tmp_path, Daemon(url, 1))
    assert [(model.tag, model.quantization, model.size_bytes, model.family) for model in findings.models] == [
        ("ok:1b", None, 0, None),
        ("too:1b", None, 0, None),
    ]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[", "http://256.1.1.1:99999", "http://\u0000/"])
def test_no_ollama(tmp_path: Path, url: str) -> None:
    """Nobody there, or an address that is none."""
    findings = look(tmp_path, Daemon(url, 0.3))
    assert findings.models == []
    assert findings.daemon
    assert not findings.has_answered
