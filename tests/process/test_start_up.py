"""What a server has in memory before anybody needs it. How fast it starts is for ``tests/bench``."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Rolecall, fake_entry
from simulator import nvml

NOT_NEEDED = {
    "PIL": "2 MB; comes with the first image that is looked at",
    "pynvml": "2 MB; for machines with NVIDIA's driver",
    "rich": "2 MB; tables of other commands, and httpx's own command line",
    "pygments": "1 MB; httpx's own command line",
    "click": "1 MB; uvicorn's own command line",
    "multiprocessing": "for uvicorn's reloader",
    "trio._core": "4 MB; another event loop, which httpcore takes along where it is installed",
    "duckdb": "40 MB; datasets, and reports of other commands",
    "prometheus_client": "comes with the first scrape",
    "opentelemetry": "an extra",
    "gguf": "with numpy; makes the demo models, once",
    "numpy": "20 MB",
    "xllamacpp": "hundreds of MB; belongs to the engine's process",
    "rolecall.simulation": "of other commands",
}
"""Modules that a server of texts does without, and what they would take or what they are for."""


def imported(terminal: Path) -> set[str]:
    """Return the modules that a server and what it started have imported, as Python tells them."""
    lines = terminal.read_text(encoding="utf-8").splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


@pytest.mark.parametrize("name", NOT_NEEDED)
def test_a_server_of_texts_has_not_imported(name: str, modules: set[str]) -> None:
    """It has started, found no GPU, started an engine and answered a chat and the lists without it."""
    assert not {module for module in modules if module == name or module.startswith(f"{name}.")}


def test_imports_are_seen(modules: set[str]) -> None:
    """What the server cannot do without is among the modules that are looked through."""
    assert {"rolecall.gateway.server", "httpx", "uvloop", "pydantic"} <= modules


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> set[str]:
    folder = tmp_path_factory.mktemp("start")
    environ = {"PYTHONPROFILEIMPORTTIME": "1", **nvml.variables(nvml_library, nvml.NO_DRIVER, folder)}
    with Rolecall(folder, [fake_entry("one", roles=["chat"])], environ=environ) as rolecall:
        assert rolecall.chat("role:chat").status_code == 200
        assert rolecall.get("/health")["status"] == "ok"
        assert rolecall.get("/v1/models")["data"]
        assert rolecall.get("/v1/models/select_by_role", role="chat")
    return imported(rolecall.terminal)
