"""Models that nobody registered: found in a folder, taken up by a running rolecall, and answering by their roles."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import generated_models
from cli.invoke import rolecall as run
from harness import CHAT, Rolecall, eventually, prompt
from model_places import ollama_model
from rolecall.demo.script import Script

pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
pytest.importorskip("gguf", reason="the models are written by an extra: rolecall[llama]")

SCRIPT = Script()
NAMES = sorted([*generated_models.NAMES, "tiny-pulled-1b_(F16)"])


@pytest.fixture(scope="module")
def models(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as people have them: some that chat, one that sees, an embedder, one in parts, rubbish."""
    folder = generated_models.write_models(tmp_path_factory.mktemp("models"), demo_models)
    assert len(list((folder / "coder").iterdir())) == 3
    shutil.copyfile(demo_models / "demo-chat.gguf", folder / "pulled")
    ollama_model(folder / "ollama", "tiny-pulled:1b", model=folder / "pulled")
    (folder / "chat" / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run a rolecall without any model, and have the folder scanned while it runs."""
    folder = tmp_path_factory.mktemp("discovered")
    with Rolecall(folder, settings={"llama_server": "embedded"}) as running:
        assert running.http.get("/v1/models").json()["data"] == []
        here = ("--config-dir", running.config_dir, "--state-dir", running.state)
        done = run("models", "scan", models, "--only", *here)
        assert done.returncode == 0, done.stderr
        assert "broken.gguf: its version 0 is not known here" in done.stderr
        assert eventually(lambda: sorted(names_of(running))) == NAMES
        yield running
        assert "Traceback" not in running.words()


def names_of(running: Rolecall) -> list[str]:
    """Return the models that it lists."""
    return [model["id"] for model in running.http.get("/v1/models").json()["data"]]


def said(answer: Any) -> str:
    """Return the text of an answer."""
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(("model", "answers"), [("role:chat", NAMES), ("tiny-chat_(F16)", NAMES[:1])])
def test_the_chat_model_answers(server: Rolecall, model: str, answers: list[str]) -> None:
    """By its role, which all that write share, and by its name."""
    answer = server.http.post(CHAT, json=prompt(model))
    assert said(answer) == SCRIPT.answer
    assert answer.headers["x-rolecall-model"] in answers


def test_the_model_in_parts_answers(server: Rolecall) -> None:
    """By the role that its name suggests."""
    answer = server.http.post(CHAT, json=prompt("role:code"))
    assert said(answer) == SCRIPT.answer
    assert answer.headers["x-rolecall-model"] == "tiny-coder_(F16)"


def test_the_model_that_sees_answers(server: Rolecall, picture: dict[str, Any]) -> None:
    """It has its projector: it describes a picture."""
    content = [{"type": "text", "text": "what is it?"}, picture]
    answer = server.http.post(CHAT, json={"model": "role:caption", "messages": [{"role": "user", "content": content}]})
    assert said(answer) == SCRIPT.caption
    assert answer.headers["x-rolecall-model"] == "tiny-vl_(F16)"


def test_a_blob_of_ollama_answers_without_ollama(server: Rolecall) -> None:
    """By its tag."""
    answer = server.http.post(CHAT, json=prompt("tiny-pulled:1b"))
    assert said(answer) == SCRIPT.answer
    assert answer.headers["x-rolecall-model"] == "tiny-pulled-1b_(F16)"


def test_the_embedder_embeds(server: Rolecall) -> None:
    """Equal texts have equal vectors."""
    answer = server.http.post("/v1/embeddings", json={"model": "role:embedding", "input": ["a cat", "a cat", "dogs"]})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-rolecall-model"] == "tiny-embed_(F16)"
    first, same, other = (row["embedding"] for row in answer.json()["data"])
    assert first == pytest.approx(same)
    assert first != pytest.approx(other, abs=1e-3)


def test_a_second_scan_disturbs_nobody(server: Rolecall, models: Path) -> None:
    """The file stays as it is to the byte, so that nothing is read again."""
    file = server.config_dir / "model_registry.discovered.json"
    before = file.read_bytes(), file.stat().st_mtime_ns
    done = run("models", "scan", models, "--only", "--config-dir", server.config_dir, "--state-dir", server.state)
    assert done.returncode == 0, done.stderr
    assert "5 models: 5 known" in done.stdout
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def test_a_file_that_is_gone_is_not_installed(server: Rolecall, models: Path) -> None:
    """The running rolecall notices, and a scan leaves the entry for when it comes back."""
    file = models / "chat" / "Tiny-Chat-F16.gguf"
    file.rename(models / "chat" / "away")
    eventually(lambda: "tiny-chat_(F16)" not in names_of(server))
    answer = server.http.post(CHAT, json=prompt("tiny-chat_(F16)"))
    assert (answer.status_code, "does not exist" in answer.text) == (404, True)
    done = run("models", "scan", models, "--only", "--config-dir", server.config_dir, "--state-dir", server.state)
    assert "1 vanished" in done.stdout
    (models / "chat" / "away").rename(file)
    eventually(lambda: "tiny-chat_(F16)" in names_of(server))
