"""From a repository of a hub to an answer: pulled by command while rolecall runs, served by llama.cpp itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import CHAT, DEADLINE_S, Rolecall, eventually
from hub_server import HubServer, Repo, running_hub
from rolecall.demo.script import Script

pytest.importorskip("huggingface_hub", reason="pulling needs an extra: rolecall[hub]")
pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")

CHATS, EYES = "acme/Tiny-Chat-GGUF", "acme/Tiny-Vision-GGUF"


@pytest.fixture
def hub(demo_models: Path) -> Iterator[HubServer]:
    """A hub that has the demo models."""
    chat, vision, projector = (
        (demo_models / name).read_bytes() for name in ("demo-chat.gguf", "demo-vision.gguf", "mmproj-demo-vision.gguf")
    )
    with running_hub() as server:
        server.repos[CHATS] = Repo({"Tiny-Chat-F16.gguf": chat})
        server.repos[EYES] = Repo({"Tiny-Vision-F16.gguf": vision, "mmproj-Tiny-Vision-F16.gguf": projector})
        yield server


def pull(server: Rolecall, hub: HubServer, repository: str) -> None:
    argv = [sys.executable, "-m", "rolecall", "models", "pull", repository]
    folders = ["--config-dir", str(server.config_dir), "--state-dir", str(server.state)]
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good"}
    done = subprocess.run(
        [*argv, *folders], env=environ, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr


def answer(server: Rolecall, model: str, content: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    response = httpx.post(server.base_url + CHAT, json=body, timeout=60)
    assert response.status_code == 200, response.text
    value: dict[str, Any] = response.json()
    return value


def test_pulled_models_answer(hub: HubServer, picture: dict[str, Any], tmp_path: Path) -> None:
    """A running rolecall serves what was pulled: by name, by repository, by role; pictures through the projector."""
    with Rolecall(tmp_path, [], settings={"llama_server": "embedded"}) as server:

        def has(name: str) -> bool:
            listed = httpx.get(server.base_url + "/v1/models", timeout=DEADLINE_S).json()
            return name in [model["id"] for model in listed["data"]]

        pull(server, hub, CHATS)
        eventually(lambda: has("tiny-chat_(F16)"))
        for model in ("tiny-chat_(F16)", f"{CHATS}:F16", "role:chat"):
            given = answer(server, model, "Hello?")
            assert given["choices"][0]["message"]["content"] == Script().answer
            assert given["model"] == "tiny-chat_(F16)"
        pull(server, hub, EYES)
        eventually(lambda: has("tiny-vision_(F16)"))
        seen = answer(server, "role:caption", [{"type": "text", "text": "What is it?"}, picture])
        assert seen["model"] == "tiny-vision_(F16)"
        assert seen["choices"][0]["message"]["content"]
        assert seen["choices"][0]["message"]["content"] != Script().answer
