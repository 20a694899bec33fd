"""Ten configurations of real shapes, imported into a running rolecall: an answer through each name and alias."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.invoke import answer
from harness import DEADLINE_S, FAKE_ENGINE, Rolecall, eventually
from process.fake_ollama import FakeOllama
from unused_ports import unused_port

IMPORTS = Path(__file__).parent / "imports"

NAMES = {
    "swap_minimal.yaml": {"qwen-small", "llama-3.1:8b", "gpt-3.5-turbo", "gpt-4o-mini"},
    "swap_macros.yaml": {"coder", "code-coder", "vision"},
    "swap_groups_vllm.yaml": {"awq", "qwen", "always", "sometimes"},
    "swap_docker.yaml": {
        *("in-a-container", "container-vllm", "hears", "from-the-hub", "other-build", "this-build", "that-build"),
    },
    "swap_routing.yaml": {
        *("big", "big:high", "small", "plan", "role:coding", "role:many", "other/remote-a", "other/org/remote-b"),
        *("org/remote-b", "keyed/remote-c", "remote-c", "keyed/remote-a"),
    },
    "swap_anchors.yaml": {"first", "second"},
    "litellm_local.yaml": {"served", "gpt-4", "studio", "llama3.2"},
    "litellm_balanced.yaml": {"zephyr-beta", "zephyr-beta-2", "role:zephyr-beta", "backup"},
    "litellm_clouds.yaml": {"house"},
    "imageworks.json": {
        *("llava_7b_(Q4_K_M)", "llava", "qwen3-vl-8b-instruct_(FP8)", "Qwen/Qwen3-VL-8B-Instruct-FP8"),
        *("role:caption", "role:description"),
    },
    "rolecall_other.json": {"captioner", "cap", "role:caption", "house", "big", "larger"},
}
"""What is asked for a chat."""
VECTORS = {"swap_minimal.yaml": {"embedder", "text-embedding-3-small"}, "litellm_local.yaml": {"embed", "hidden-one"}}
RANKINGS = {"swap_groups_vllm.yaml": {"reranker"}}
ELSEWHERE = {"litellm_clouds.yaml": {"groq-llama", "own"}, "imageworks.json": {"tagger"}}
"""What is carried over, and would be answered by somebody who is not here."""

ENGINE = f'#!/bin/sh\nexec "{sys.executable}" "{FAKE_ENGINE}" "$@"\n'
DOCKER = f"""#!/bin/sh
for word in "$@"; do case "$word" in 127.0.0.1:*:*) port=${{word#*:}};; esac; done
exec "{sys.executable}" "{FAKE_ENGINE}" --port "${{port%%:*}}"
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The folder of the programs that the configurations start: each is the fake engine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("llama-server", "vllm", "whisper-server"):
        (folder / name).write_text(ENGINE)
    (folder / "docker").write_text(DOCKER)
    for program in folder.iterdir():
        program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of an OpenAI-compatible server that somebody else runs."""
    port = unused_port()
    process = subprocess.Popen([sys.executable, str(FAKE_ENGINE), "--port", str(port), "--embeddings"])
    try:
        eventually(lambda: is_up(f"http://127.0.0.1:{port}/health"))
        yield port
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def is_up(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("llama3.2:latest", "llava:7b") as daemon:
        yield daemon


def local_copy(name: str, folder: Path, programs: Path, server: int, ollama: FakeOllama) -> Path:
    """Write a configuration with the addresses and folders of this test, and the models that it names."""
    text = (IMPORTS / name).read_text(encoding="utf-8")
    port = ollama.base_url.rpartition(":")[2]
    here = {
        "/srv/models": str(folder / "models"),
        "/opt/ik_llama/bin": str(programs),
        "127.0.0.1:8001": f"127.0.0.1:{server}",
        "127.0.0.1:11434": f"127.0.0.1:{port}",
        "imageworks-ollama": "127.0.0.1",
        '"port": 11434': f'"port": {port}',
    }
    for there, ours in here.items():
        text = text.replace(there, ours)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def make_files(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        config = entry.get("backend_config", {})
        if model := config.get("model_path"):
            path = Path(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
            if "mmproj_path" in config:
                (path.parent / config["mmproj_path"]).touch()


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.name for path in IMPORTS.iterdir()))
def test_every_name_answers(name: str, tmp_path: Path, programs: Path, server: int, ollama: FakeOllama) -> None:
    """Imported while rolecall runs: every name, alias and role of the file gets an answer, from its own model."""
    source = local_copy(name, tmp_path, programs, server, ollama)
    environ = {"PATH": f"{programs}:/usr/bin:/bin", "STUDIO_BASE": f"http://127.0.0.1:{server}/v1"}
    with Rolecall(tmp_path / "rolecall", environ=environ, settings={"max_vram_mb": 100_000}) as running:
        told = answer("import", source, "--config-dir", running.config_dir, env=environ)
        registry = running.config_dir / "model_registry.curated.json"
        make_files(read(registry))
        ids = {id_ for row in read(registry) for id_ in (row["name"], *aliases(row))}
        roles = {f"role:{role.lower()}" for row in read(registry) for role in row.get("role_priority", {})}
        asked = NAMES[name] | VECTORS.get(name, set()) | RANKINGS.get(name, set()) | ELSEWHERE.get(name, set())
        assert asked == ids | roles
        assert told["added"] == [row["name"] for row in read(registry)]
        for row in read(registry):
            if "gpus" in row:  # of a machine that has some
                answer("models", "set", row["name"], "gpus=", "--config-dir", running.config_dir)
        for id_ in sorted(NAMES[name]):
            reply = eventually(lambda id_=id_: answered(running.chat(id_)))  # type: ignore[misc]
            chosen = reply.headers["x-rolecall-model"]
            owner = next((row for row in read(registry) if id_ in (row["name"], *aliases(row))), None)
            assert owner is None or chosen == owner["name"]
        for id_ in VECTORS.get(name, ()):
            reply = running.http.post("/v1/embeddings", json={"model": id_, "input": "x"})
            assert reply.json().get("data"), reply.text
        for id_ in RANKINGS.get(name, ()):
            reply = running.http.post("/v1/rerank", json={"model": id_, "query": "x", "documents": ["a", "b"]})
            assert f"The engine of {id_!r}" in reply.text  # the fake one ranks nothing: it was asked, and says so


def answered(reply: httpx.Response) -> httpx.Response | None:
    """The reply, or None while the registry, or the file of a model, was not looked at yet."""
    if reply.status_code == 404:
        return None
    assert reply.status_code == 200, reply.text
    return reply


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def aliases(row: dict[str, Any]) -> list[str]:
    found = row.get("model_aliases", [])
    return [found] if isinstance(found, str) else found
