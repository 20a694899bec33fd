"""Engines that run out of memory are started smaller: less context, the next model of the role, the CPU.

rolecall builds the command lines itself, of a llama-server that is the fake engine on simulated GPUs.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import FAKE_ENGINE, Gpus, Rolecall, eventually, words
from simulator import nvml
from simulator.nvml import Machine

MakeGpus = Callable[[Machine], Gpus]
Bench = Callable[..., Rolecall]


@pytest.fixture
def gpus(nvml_library: Path, tmp_path: Path) -> Gpus:
    """Return one simulated GPU of 16 GB, of which models may take 14 GB."""
    return Gpus(nvml_library, tmp_path, nvml.ONE_16GB)


@pytest.fixture
def bench(gpus: Gpus, tmp_path: Path) -> Bench:
    """Return a maker of rolecalls whose llama-server is the fake engine."""
    engine = tmp_path / "llama-server"
    engine.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE_ENGINE))} "$@"\n')
    engine.chmod(0o755)

    def make(*entries: dict[str, Any], **settings: Any) -> Rolecall:
        return gpus.rolecall(*entries, settings={"llama_server": str(engine), **settings})

    return make


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a maker of entries that take ``mb`` and ``per_1k_mb`` for each 1024 tokens of 32768."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no model")

    def make(name: str, mb: int, per_1k_mb: int = 0, *flags: str, **fields: Any) -> dict[str, Any]:
        arguments = ["--gpu-mb", str(mb), "--gpu-mb-per-1k-ctx", str(per_1k_mb)]
        arguments += ["--starts-log", str(tmp_path / f"{name}.starts"), *flags]
        config = {"model_path": str(path), "extra_args": arguments}
        defaults = {"backend": "llama_cpp", "vram_estimate_mb": 3000, "context_length": 32768}
        return {"name": name, "backend_config": config, **defaults, **fields}

    return make


def starts(gpus: Gpus, name: str) -> int:
    """Return how often the engine of a model was started."""
    path = gpus.folder / f"{name}.starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def said(answer: httpx.Response) -> str:
    """Return what the model said."""
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def argv(server: Rolecall, name: str) -> list[str]:
    """Return the command line of a loaded model's engine."""
    return list(server.stats(name)["argv"])


class TestLessContext:
    def test_a_model_is_loaded_with_the_context_that_fits(
        self, bench: Bench, gpus: Gpus, model: Callable[..., dict[str, Any]]
    ) -> None:
        """32768 tokens do not fit, alone neither, 16384 do: the answer, its line and the terminal say so."""
        with bench(model("m", 4000, 512)) as server:
            answer = server.chat("m")
            assert said(answer) == words(8)
            assert answer.headers["x-rolecall-memory"] == "context=16384"
            assert server.line_of(answer)["memory"] == "context=16384"
            assert "m lacks memory, and is started with a context of 16384 tokens" in server.words()
            assert starts(gpus, "m") == 3
            assert argv(server, "m")[argv(server, "m").index("--ctx-size") + 1] == "16384"
            again = server.chat("m")
            assert again.headers["x-rolecall-memory"] == "context=16384"
            eventually(lambda: server.row("m")["vram_reserved_mb"] == 4000 + 16 * 512)
        assert gpus.lost_mb() == 0

    def test_it_runs_out_while_it_answers(self, bench: Bench, gpus: Gpus, model: Callable[..., dict[str, Any]]) -> None:
        """A model that loads and aborts with its first answer answers with less context; the client sees only that."""
        with bench(model("m", 1000, 300, "--gpu-grow-mb", "6000")) as server:
            answer = server.chat("m")
            assert said(answer) == words(8)
            assert answer.headers["x-rolecall-memory"] == "context=16384"
            assert starts(gpus, "m") == 3
        assert gpus.lost_mb() == 0

    def test_an_unload_begins_anew(self, bench: Bench, gpus: Gpus, model: Callable[..., dict[str, Any]]) -> None:
        """After an unload by hand the whole context is tried again: others may have held the memory."""
        with bench(model("m", 4000, 512)) as server:
            assert said(server.chat("m")) == words(8)
            server.http.post("/v1/models/m/unload")
            server.await_state("m", "stopped")
            before = starts(gpus, "m")
            answer = server.chat("m")
            assert answer.headers["x-rolecall-memory"] == "context=16384"
            assert starts(gpus, "m") > before + 1


class TestTheNextModel:
    def test_the_next_model_of_the_role_answers(
        self, bench: Bench, gpus: Gpus, model: Callable[..., dict[str, Any]]
    ) -> None:
        """A model that fits with no context gives way to the next of its role; header, line and terminal name it."""
        entries = [
            model("big", 20000, role_priority={"caption": 90}),
            model("small", 2000, role_priority={"caption": 50}),
        ]
        with bench(*entries) as server:
            answer = server.chat("role:caption")
            assert said(answer) == words(8)
            assert answer.headers["x-rolecall-model"] == "small"
            assert answer.headers["x-rolecall-memory"] == "instead-of=big"
            line = server.line_of(answer)
            assert (line["model"], line["memory"]) == ("small", "instead-of=big")
            assert "big cannot start now" in line["role_selector"]
            assert "big ran out of memory; small answers instead" in server.words()
            assert starts(gpus, "big") == 5  # as it is, alone, and with 16384, 4096 and 2048 tokens
        assert gpus.lost_mb() == 0


class TestTheCpu:
    def test_a_model_that_may_runs_on_the_cpu(
        self, bench: Bench, gpus: Gpus, model: Callable[..., dict[str, Any]]
    ) -> None:
        """With allow_cpu a model that fits on no GPU is started without layers there, and takes no memory of theirs."""
        with bench(model("big", 20000, allow_cpu=True, context_length=2048), model("small", 2000)) as server:
            answer = server.chat("big")
            assert said(answer) == words(8)
            assert answer.headers["x-rolecall-memory"] == "cpu"
            assert server.line_of(answer)["memory"] == "cpu"
            assert "big lacks memory, and is started on the CPU" in server.words()
            row = server.row("big")
            assert (row["vram_reserved_mb"], row["devices"], row["reduced"]) == (0, [], "cpu")
            stats = server.stats("big")
            assert stats["argv"][stats["argv"].index("--n-gpu-layers") + 1] == "0"
            assert "CUDA_VISIBLE_DEVICES" in stats["env"]
            assert stats["gpu_mb"] == 0
            assert said(server.chat("small")) == words(8)
            assert server.row("big")["state"] == "ready"
        assert gpus.lost_mb() == 0

    def test_a_model_that_no_gpu_could_hold(
        self, bench: Bench, gpus: Gpus, model: Callable[..., dict[str, Any]]
    ) -> None:
        """One that says so itself is started on the CPU at once; without leave it is refused, as ever."""
        entries = [model("may", 2000, allow_cpu=True, vram_estimate_mb=2000), model("not", 2000, vram_estimate_mb=2000)]
        with bench(*entries, max_vram_mb=1500) as server:
            answer = server.chat("may")
            assert said(answer) == words(8)
            assert answer.headers["x-rolecall-memory"] == "cpu"
            assert starts(gpus, "may") == 1
            assert server.chat("not").json()["error"]["code"] == "model_too_large"
        assert gpus.lost_mb() == 0

    def test_the_profile_may_allow_it(self, bench: Bench, gpus: Gpus, model: Callable[..., dict[str, Any]]) -> None:
        """A profile's allow_cpu holds for the entries that say nothing of it."""
        server = bench(
            model("big", 20000, context_length=2048), model("never", 20000, context_length=2048, allow_cpu=False)
        )
        profiles = server.config_dir / "profiles.toml"
        profiles.write_text(profiles.read_text().replace("[profiles.roomy]", "[profiles.roomy]\nallow_cpu = true"))
        with server:
            assert server.chat("big").headers["x-rolecall-memory"] == "cpu"
            refused = server.chat("never")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "model_start_failed"
        assert gpus.lost_mb() == 0

    def test_without_leave_it_is_refused(self, bench: Bench, gpus: Gpus, model: Callable[..., dict[str, Any]]) -> None:
        """Where nothing is left to be made smaller the client is told what the engine said, and nothing is held."""
        with bench(model("big", 20000)) as server:
            refused = server.chat("big")
            assert refused.status_code == 503
            assert "unable to allocate CUDA0 buffer" in json.dumps(refused.json())
            assert starts(gpus, "big") == 5
            eventually(lambda: server.get("/health")["reserved_mb"] == 0)
        assert gpus.lost_mb() == 0


def test_an_entry_that_needs_a_gpu_is_not_there_without_one(
    tmp_path: Path, model: Callable[..., dict[str, Any]]
) -> None:
    """On a machine without GPUs engines run on the CPU, but for entries with allow_cpu false."""
    engine = tmp_path / "llama-server"
    engine.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE_ENGINE))} "$@"\n')
    engine.chmod(0o755)
    entries = [model("any", 100), model("gpu-only", 100, allow_cpu=False)]
    with Rolecall(tmp_path / "none", entries, settings={"llama_server": str(engine)}) as server:
        assert said(server.chat("any")) == words(8)
        refused = server.chat("gpu-only")
        assert refused.status_code == 404
        assert "may not run on the CPU (allow_cpu is false), and there is no GPU" in refused.json()["error"]["message"]
