"""Engines' own metrics on `/metrics`: fetched when somebody scrapes, seldom, and never at the cost of the page."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness import FAKE_ENGINE, Rolecall, eventually, fake_entry
from rolecall.insight.engine_metrics import LIMIT_S, MAX_BYTES
from rolecall.insight.scrapes import FRESH_S


def page(server: Rolecall) -> dict[tuple[str, str | None], float]:
    """Return the values of a page by name and model, summed up by all else."""
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    sums: dict[tuple[str, str | None], float] = {}
    for each in (sample for family in families for sample in family.samples):
        key = each.name, each.labels.get("model")
        sums[key] = sums.get(key, 0) + each.value
    return sums


def asked(server: Rolecall, model: str) -> int:
    """Return how often an engine was asked for its metrics."""
    return int(server.stats(model)["gets"].get("/metrics", 0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with what engines say: nothing for ever, too much, and nonsense."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"# TYPE x:n gauge\nx:n 1\n" + b"#" * MAX_BYTES)
    (tmp_path / "rubbish").write_bytes(b"x:before 1\n\xff\xfe}{\nrolecall_requests_total 9e9\n")
    return tmp_path


def test_engines_that_tell_and_engines_that_do_not(folder: Path) -> None:
    """Each tells its own; one that hangs, says too much or nonsense, or has no page takes nothing from the rest."""
    names = ("pipe", "large", "rubbish")
    entries = [
        fake_entry("good", "--metrics"),
        fake_entry("none"),
        *(fake_entry(name, "--metrics-file", str(folder / name)) for name in names),
        fake_entry("unloaded", "--metrics"),
    ]
    with Rolecall(folder / "run", entries) as server:
        for name in ("good", "none", *names):
            assert server.chat(name).status_code == 200
        begun = time.monotonic()
        found = page(server)
        assert time.monotonic() - begun < 2 * LIMIT_S + 2
        up = {model: value for (name, model), value in found.items() if name == "rolecall_engine_metrics_up"}
        assert up == {"good": 1, "pipe": 0, "large": 0, "rubbish": 1}
        assert found["fake:posts_total", "good"] == 1
        assert found["x:before", "rubbish"] == 1
        assert found["rolecall_engine_metrics_rejected_samples", "rubbish"] >= 1
        assert found["rolecall_requests_total", "good"] == 1
        assert ("x:n", "large") not in found
        assert asked(server, "none") == asked(server, "good") == 1
        eventually(lambda: time.monotonic() - begun > LIMIT_S + FRESH_S + 1)
        assert page(server)["fake:posts_total", "good"] == 1  # said again, and not asked for
        assert asked(server, "good") == 1


def test_engines_that_are_not_loaded_are_left_alone(tmp_path: Path) -> None:
    """Nothing is asked of a model that is stopped, and its metrics are gone from the page; nor without a scrape."""
    entries = [fake_entry("a", "--metrics")]
    with Rolecall(tmp_path, entries) as server:
        server.chat("a")
        assert asked(server, "a") == 0
        assert page(server)["fake:posts_total", "a"] == 1
        server.http.post("/v1/models/a/unload")
        eventually(lambda: ("fake:posts_total", "a") not in page(server))
        assert server.state_of("a") == "stopped"


def test_llama_server_is_told_to_tell(tmp_path: Path) -> None:
    """An entry without a command starts llama-server so that it has the page; its key is shown."""
    wrapper = tmp_path / "llama-server"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_ENGINE} "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "m.gguf").touch()
    entry = {
        "name": "m",
        "backend": "llama_cpp",
        "backend_config": {"model_path": str(tmp_path / "m.gguf")},
        "vram_estimate_mb": 10,
    }
    with Rolecall(tmp_path / "run", [entry], settings={"llama_server": str(wrapper)}) as server:
        assert server.chat("m").status_code == 200
        assert page(server)["fake:posts_total", "m"] == 1
        port = server.row("m")["port"]
        assert httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).status_code == 401
