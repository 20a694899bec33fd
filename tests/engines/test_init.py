"""From an empty home to answers: ``rolecall init`` over a folder of models, and the real engine behind each role."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.invoke import environment
from engines.record_quickstart import BEGIN, END, PAGE
from generated_models import NAMES, write_models
from harness import CHAT, DEADLINE_S, eventually, prompt
from rolecall.demo.script import Script
from unused_ports import unused_port

pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
pytest.importorskip("gguf", reason="the models are written by an extra: rolecall[llama]")

SCRIPT = Script()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty home."""
    return tmp_path_factory.mktemp("home")


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as somebody who has nothing but this home, and is in it."""
    argv = [sys.executable, "-m", "rolecall", *arguments]
    variables = of_home(home)
    return subprocess.run(argv, env=variables, cwd=home, capture_output=True, text=True, timeout=120, check=False)


def of_home(home: Path) -> dict[str, str]:
    """Return the environment of that home; no Ollama answers."""
    dropped = ("HF_", "XDG_", "LLAMA_CACHE", "OLLAMA_", "HUGGINGFACE_")
    kept = {name: value for name, value in environment().items() if not name.startswith(dropped)}
    return {**kept, "HOME": str(home), "OLLAMA_HOST": "127.0.0.1:9", "CHAT_PROXY_LLAMA_SERVER": "embedded"}


@pytest.fixture(scope="module")
def found(home: Path, demo_models: Path) -> Any:
    """Return what ``rolecall init --yes`` said and did."""
    write_models(home / "models", demo_models)
    done = run(home, "init", "--yes", "--json", "--port", str(unused_port()), "models")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def server(home: Path, found: Any) -> Iterator[httpx.Client]:
    """Start what it says is to be started, and yield a client for it."""
    words = found["run"].split()
    assert words[-1] == "serve"
    with (home / "terminal.txt").open("wb") as terminal:
        argv = [sys.executable, "-m", "rolecall", "serve"]
        process = subprocess.Popen(argv, env=of_home(home), cwd=home, stdout=terminal, stderr=terminal)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{found['port']['number']}", timeout=60) as client:
            eventually(lambda: _is_ready(client))
            yield client
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
    assert "Traceback" not in (home / "terminal.txt").read_text()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def said(client: httpx.Client, role: str, content: object = "hello") -> tuple[str, str]:
    """Return what a role answered, and which model it was."""
    answer = client.post(CHAT, json={**prompt(f"role:{role}"), "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"], answer.headers["x-rolecall-model"]


def test_all_models_are_found_and_the_first_answer_came(found: Any) -> None:
    """Nothing was there but the folder; each model is registered, none is a demo model, and one has answered."""
    assert sorted(each["name"] for each in found["models"] if each["unavailable"] is None) == NAMES
    assert not any(each["demo"] for each in found["models"])
    assert {"chat", "code", "caption", "embedding"} <= set(found["roles"])
    assert found["answer"]["text"] == SCRIPT.answer
    assert found["answer"]["role"] == "chat"


def test_the_chat_model_answers(server: httpx.Client) -> None:
    """By its role."""
    assert said(server, "chat")[0] == SCRIPT.answer


def test_the_model_in_parts_answers(server: httpx.Client) -> None:
    """It is named after code, and is asked by that role."""
    assert said(server, "code") == (SCRIPT.answer, "tiny-coder_(F16)")


def test_the_model_that_sees_answers(server: httpx.Client, picture: dict[str, Any]) -> None:
    """Its projector was found beside it."""
    assert said(server, "caption", [{"type": "text", "text": "what is it?"}, picture]) == (
        SCRIPT.caption,
        "tiny-vl_(F16)",
    )


def test_the_embedder_embeds(server: httpx.Client) -> None:
    """A vector for a text."""
    answer = server.post("/v1/embeddings", json={"model": "role:embedding", "input": "a cat"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-rolecall-model"] == "tiny-embed_(F16)"
    assert len(answer.json()["data"][0]["embedding"]) == 256


def test_the_doctor_agrees(server: httpx.Client, home: Path) -> None:
    """All models are installed, the roles have them, and the port is rolecall's own."""
    done = run(home, "doctor", "--json")
    rows = {row["check"]: row for row in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, rows
    assert rows["models"]["finding"].startswith("4 of ")
    assert {rows[name]["level"] for name in ("models", "roles", "permissions", "port", "llama.cpp")} == {"ok"}
    assert "is running at" in rows["port"]["finding"]


def test_a_second_run_finds_all_as_it_should_be(server: httpx.Client, home: Path) -> None:
    """It asks the server that runs, and writes nothing."""
    done = run(home, "init", "--yes", "--json", "models")
    again = json.loads(done.stdout)
    assert (done.returncode, again["written"], again["port"]["running"]) == (0, False, True)
    assert again["answer"]["text"] == SCRIPT.answer


def test_the_recorded_session_is_of_this_kind() -> None:
    """The page shows such a run, with an answer of each model and no path of the machine that it was recorded on."""
    page = PAGE.read_text(encoding="utf-8")
    session = page[page.index(BEGIN) : page.index(END)]
    assert "$ rolecall init --yes ~/models" in session
    assert session.count(f'"content":"{SCRIPT.answer}"') == 2
    assert SCRIPT.caption in session
    assert '"embedding":[' in session
    assert not re.search(r"/(?:tmp|root|work|usr/local)\b", session)
