"""What a real llama.cpp takes of host RAM: what it prints of its buffers, and what the process then holds.

Measured is the resident set (`psutil`) after a prompt of four micro-batches, which is what touches the buffers; the
cache was filled with zeros at the start. The weights are read into memory of its own (``--no-mmap``), and the server
stores nothing of old prompts (``--cache-ram 0 --ctx-checkpoints 0``), which grows with use. The unique set size would
be less by the libraries wherever another engine runs, and would differ from one look to the next.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from PIL import Image

from rolecall.backends.base import Places
from rolecall.backends.llama_server import LlamaServer
from rolecall.core.footprint import MB, Estimate
from rolecall.core.models import ModelEntry
from rolecall.runtime.model_files import ModelFiles
from unused_ports import unused_port

DEADLINE_S = 200
PROMPT_TOKENS = 2040
PLAIN = ("--no-mmap", "--cache-ram", "0", "--ctx-checkpoints", "0", "-t", "1", "-v")

_BUFFERS = re.compile(r"(model|KV|RS|compute) buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Case:
    """A model, how it is served, and what is asked of it: to go on with a text, to embed one, to look at a picture."""

    model: Path
    arguments: tuple[str, ...]
    projector: Path | None = None
    embeds: bool = False

    @property
    def entry(self) -> ModelEntry:
        """The entry of the registry that would start it so."""
        config = {"model_path": str(self.model), "extra_args": list(self.arguments)}
        if self.projector:
            config["mmproj_path"] = self.projector.name
        does = ["embedding"] if self.embeds else []
        return ModelEntry.model_validate(
            {"name": "m", "backend": "llama_cpp", "backend_config": config, "capabilities": does}
        )

    def number(self, flag: str, default: int = 1) -> int:
        """The value of one of the arguments."""
        return int(self.arguments[self.arguments.index(flag) + 1]) if flag in self.arguments else default


@dataclass
class Measured:
    """MB of the buffers that llama.cpp printed, and of the process after its first long answer."""

    printed: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("model", "KV", "RS", "compute"), 0.0))
    resident_mb: float = 0.0

    @property
    def buffers_mb(self) -> float:
        """All buffers together."""
        return sum(self.printed.values())


def computed(case: Case) -> Estimate:
    """Return rolecall's figures for host RAM."""
    backend = LlamaServer(Places(Path("/"), Path("/")), ("llama-server",))
    found = ModelFiles().estimate_mb(case.entry, backend, on_gpu=False)
    assert found is not None, ModelFiles().problem(case.entry, backend)
    return found


def measure(case: Case, more: Sequence[str] = PLAIN) -> Measured:
    """Start the embedded engine, ask it once, and return what it took; ``AssertionError`` has its last lines."""
    port = unused_port()
    command = [sys.executable, "-m", "rolecall.backends.embedded", "-m", str(case.model), "--port", str(port)]
    command += [*case.arguments, *more, *(["--mmproj", str(case.projector)] if case.projector else [])]
    command += ["--embeddings"] if case.embeds else []
    lines: list[str] = []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, lines)
        _ask(url, case)
        found = Measured(resident_mb=psutil.Process(process.pid).memory_info().rss / MB)
    finally:
        process.kill()
        process.wait()
        reader.join()
    laid_out = max((at for at, line in enumerate(lines) if "memory breakdown" in line), default=0)
    for line in lines[laid_out:]:  # before that, llama.cpp lays everything out without loading it
        if (match := _BUFFERS.search(line)) and "clip" not in line:
            found.printed[match[1]] += float(match[2])
    return found


def _wait(url: str, process: subprocess.Popen[str], lines: Sequence[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "".join(lines[-20:])
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        time.sleep(0.02)
    raise AssertionError("it did not become ready")


def _ask(url: str, case: Case) -> None:
    if case.embeds:
        answer = httpx.post(f"{url}/embeddings", json={"content": "a" * (case.number("-c") - 12)}, timeout=DEADLINE_S)
    else:
        whole = case.number("-c") if "-kvu" in case.arguments else case.number("-c") // case.number("-np")
        prompt = [5 + number % 250 for number in range(min(PROMPT_TOKENS, whole - 8))]
        asked = {"prompt": prompt, "n_predict": 4, "cache_prompt": False}
        answer = httpx.post(f"{url}/completion", json=asked, timeout=DEADLINE_S)
    assert answer.status_code == 200, answer.text
    if case.projector:
        answer = httpx.post(f"{url}/v1/chat/completions", json=_picture(), timeout=DEADLINE_S)
        assert answer.status_code == 200, answer.text


def _picture() -> dict[str, object]:
    file = io.BytesIO()
    Image.new("RGB", (640, 480), "red").save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
