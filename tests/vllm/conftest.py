"""A real vLLM on the CPU behind rolecall, with a tiny model: ``make test-vllm`` installs it and runs these tests."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness import Rolecall, eventually
from unused_ports import unused_port
from vllm.group import LOAD_WITHIN_S, MODEL, PROGRAM_VARIABLE, engine_group
from vllm.tiny_model import write_model


@pytest.fixture(scope="session")
def vllm_program() -> str:
    """The vLLM that ``make test-vllm`` installed."""
    return os.environ[PROGRAM_VARIABLE]


@pytest.fixture(scope="session")
def vllm_entry(vllm_program: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A registry entry for a tiny model that talks, calls tools and sees."""
    flags = ["--enforce-eager", "--kv-cache-memory-bytes", "64M", "--seed", "0"]
    tools = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny", sees=True)
    return {
        "name": MODEL,
        "backend": "vllm",
        "backend_config": {"model_path": str(folder), "extra_args": [*flags, *tools]},
        "capabilities": ["text", "vision", "tools"],
        "roles": ["caption"],
        "vram_estimate_mb": 3000,
        "context_length": 16384,
        "max_parallel": 4,
    }


@pytest.fixture(scope="session")
def vllm_settings(vllm_program: str) -> dict[str, Any]:
    """Settings under which rolecall uses that vLLM."""
    return {"vllm_command": vllm_program, "demo_models": False}


@pytest.fixture
def loading(tmp_path: Path, vllm_entry: dict[str, Any], vllm_settings: dict[str, Any]) -> Iterator[Rolecall]:
    """A rolecall of its own, whose engine has started its EngineCore and is not ready yet."""
    # vLLM binds its port at once and listens when it is ready: on a port of the range, another test's engine could
    # listen in the meantime.
    config = {**vllm_entry["backend_config"], "port": unused_port()}
    entry = {**vllm_entry, "backend_config": config, "preload": True}
    with Rolecall(tmp_path, [entry], settings=vllm_settings) as server:
        eventually(lambda: engine_group(server).has("multiprocessing.spawn"), within_s=LOAD_WITHIN_S)
        assert server.state_of(MODEL) == "starting", server.words()
        yield server


@pytest.fixture(scope="session")
def picture() -> dict[str, Any]:
    """A small red PNG as a part of a message."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
