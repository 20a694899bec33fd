"""Real engines for tests: the embedded llama.cpp server as a process, with the demo models."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from rolecall.demo.gguf import make_demo_models
from unused_ports import unused_port

DEADLINE_S = 20


@dataclass(frozen=True)
class Engine:
    """A started process and the address that it was given."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def health(self) -> int:
        """The status of ``/health``; 0 while connections are refused."""
        try:
            return httpx.get(f"{self.url}/health", timeout=DEADLINE_S).status_code
        except httpx.ConnectError:
            return 0

    def wait_for(self, status: int) -> None:
        """Wait until ``/health`` answers with `status`."""
        deadline = time.monotonic() + DEADLINE_S
        while (seen := self.health()) != status:
            assert self.process.poll() is None, self.stderr()
            assert time.monotonic() < deadline, f"{seen}\n{self.stderr()}"
            time.sleep(0.01)

    def stderr(self) -> str:
        """What the process has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """Send a signal; return the exit status and the seconds until it came."""
        start = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S), time.monotonic() - start

    def get(self, path: str) -> Any:
        """The JSON of a page that is there."""
        return httpx.get(f"{self.url}{path}", timeout=DEADLINE_S).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """The answer to a JSON body."""
        return httpx.post(f"{self.url}{path}", json=body, timeout=DEADLINE_S)

    def chat(self, content: object, **options: Any) -> dict[str, Any]:
        """The parsed completion of one user message."""
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 300, **options}
        answer = self.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        parsed: dict[str, Any] = answer.json()
        return parsed

    def message(self, content: object, **options: Any) -> dict[str, Any]:
        """The message that answers one user message."""
        message: dict[str, Any] = self.chat(content, **options)["choices"][0]["message"]
        return message

    @contextmanager
    def stream(self, content: object, **options: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """The chunks of a streamed completion of one user message."""
        body = {"messages": [{"role": "user", "content": content}], "stream": True, **options}
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=DEADLINE_S) as answer:
            assert answer.status_code == 200
            data = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
            yield (json.loads(item) for item in data if item != "[DONE]")


Start = Callable[..., Engine]


@contextmanager
def _engines(folder: Path) -> Iterator[Start]:
    started: list[Engine] = []

    def start(*flags: str, env: dict[str, str] | None = None, ready: bool = True) -> Engine:
        port = unused_port()
        log = folder / f"engine-{len(started)}.log"
        # One thread: on a busy machine, several wait for each other longer than such small models take.
        command = [sys.executable, "-m", "rolecall.backends.embedded", "-t", "1", *flags, "--port", str(port)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL, env=env)
        engine = Engine(process, f"http://127.0.0.1:{port}", log)
        started.append(engine)
        if ready:
            engine.wait_for(200)
        return engine

    try:
        yield start
    finally:
        for engine in started:
            engine.process.kill()
            engine.process.wait()


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[Start]:
    """Start the embedded server with some options; it ends with the test."""
    with _engines(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo models."""
    pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")
    folder = tmp_path_factory.mktemp("demo")
    make_demo_models(folder)
    return folder


@pytest.fixture(scope="session")
def chat_engine(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The demo chat model, served with llama-server's defaults."""
    with _engines(tmp_path_factory.mktemp("chat")) as start:
        yield start("--model", str(demo_models / "demo-chat.gguf"), "--metrics")


@pytest.fixture(scope="session")
def small_engine(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The demo chat model with a context of 512 tokens that four requests share."""
    with _engines(tmp_path_factory.mktemp("small")) as start:
        flags = ("--ctx-size", "512", "--parallel", "4", "--kv-unified")
        yield start("--model", str(demo_models / "demo-chat.gguf"), *flags)


@pytest.fixture(scope="session")
def vision_engine(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The demo vision model with its projector."""
    with _engines(tmp_path_factory.mktemp("vision")) as start:
        model, projector = demo_models / "demo-vision.gguf", demo_models / "mmproj-demo-vision.gguf"
        yield start("--model", str(model), "--mmproj", str(projector))


@pytest.fixture(scope="session")
def picture() -> dict[str, Any]:
    """A small red PNG as the content part that OpenAI's API has for images."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
