"""Engines that are on the machine and not on the PATH: where their documentation and common habit put them.

llama.cpp's `docs/build.md` builds into ``build/bin`` of its clone, its Docker images hold ``/app/llama-server``,
Homebrew links into its prefix; vLLM's documentation installs into a virtual environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_CLONES = ("llama.cpp", "src/llama.cpp", "git/llama.cpp", "code/llama.cpp", "repos/llama.cpp", "projects/llama.cpp")
_VLLM_ENVIRONMENTS = ("vllm", ".vllm", "vllm/.venv", "vllm/venv", "venvs/vllm", ".venvs/vllm", "envs/vllm", "vllm-env")
_CONDAS = ("miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba")


def llama_servers(home: Path) -> list[Path]:
    """Return the programs llama-server at usual places, each once."""
    return _programs(_llama_candidates(home))


def vllm_programs(home: Path) -> list[Path]:
    """Return the programs vllm at usual places, each once."""
    return _programs(_vllm_candidates(home))


def _llama_candidates(home: Path) -> Iterator[Path]:
    clones = [*(home / name for name in _CLONES), Path("/opt/llama.cpp"), Path("/usr/local/llama.cpp")]
    for clone in clones:
        yield clone / "build" / "bin" / "llama-server"
        yield clone / "bin" / "llama-server"
        yield clone / "llama-server"
    for folder in (
        home / ".local/bin",
        Path("/home/linuxbrew/.linuxbrew/bin"),
        Path("/opt/homebrew/bin"),
        Path("/app"),
    ):
        yield folder / "llama-server"
    for conda in _CONDAS:
        yield home / conda / "bin" / "llama-server"


def _vllm_candidates(home: Path) -> Iterator[Path]:
    for environment in (*(home / name for name in _VLLM_ENVIRONMENTS), Path("/opt/vllm"), Path("/opt/vllm/.venv")):
        yield environment / "bin" / "vllm"
    yield home / ".local" / "bin" / "vllm"
    for conda in _CONDAS:
        yield home / conda / "envs" / "vllm" / "bin" / "vllm"


def _programs(paths: Iterable[Path]) -> list[Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_file() and os.access(path, os.X_OK):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())
