"""Where programs keep models on this machine.

The folders are those that the programs themselves would take: huggingface_hub's `constants.py`, llama.cpp's
`common/hf-cache.cpp` (since March 2026 it shares the hub's cache) and `common/common.cpp` (before), LM Studio's
`findLMStudioHome` and Ollama's `envconfig/config.go`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MOST_SETTINGS_BYTES = 2**20
OLLAMA_PORT = 11434
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where Ollama listens, not we


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with models, and whose it is: huggingface, llama.cpp, lmstudio, ollama or folder."""

    provider: str
    path: Path


def known_places(environ: Mapping[str, str], home: Path) -> list[Place]:
    """Return the folders of the programs that exist, each once, in the order of their providers."""
    places: dict[Path, Place] = {}
    for provider, path in _candidates(environ, home):
        with suppress(OSError, RuntimeError):
            real = path.resolve()
            if real.is_dir():
                places.setdefault(real, Place(provider, path))
    return list(places.values())


def _candidates(environ: Mapping[str, str], home: Path) -> Iterator[tuple[str, Path]]:
    cache = _folder(environ, "XDG_CACHE_HOME") or home / ".cache"
    hub = _folder(environ, "HF_HOME") or cache / "huggingface"
    yield "huggingface", _folder(environ, "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") or hub / "hub"
    if own := _folder(environ, "LLAMA_CACHE"):
        yield "llama.cpp", own
    yield "llama.cpp", cache / "llama.cpp"
    yield "llama.cpp", home / "Library" / "Caches" / "llama.cpp"
    for folder in _lm_studio(home):
        yield "lmstudio", folder
    if own := _folder(environ, "OLLAMA_MODELS"):
        yield "ollama", own
    yield "ollama", home / ".ollama" / "models"
    yield "ollama", Path("/usr/share/ollama/.ollama/models")


def _folder(environ: Mapping[str, str], *variables: str) -> Path | None:
    """Return the folder that the first of the variables names that is set."""
    given = next((value for name in variables if (value := environ.get(name, "").strip("\"' "))), None)
    return None if given is None else Path(os.path.expanduser(given))  # noqa: PTH111 - Path.expanduser raises without a home


def _lm_studio(home: Path) -> Iterator[Path]:
    """Both generations of its home, that which its pointer names, and the folder that a person chose in each."""
    homes = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    pointed = _small_text(home / ".lmstudio-home-pointer").strip()
    homes = ([Path(pointed)] if pointed and "\0" not in pointed else []) + homes
    for folder in dict.fromkeys(homes):
        yield folder / "models"
        with suppress(ValueError, RecursionError):
            settings = json.loads(_small_text(folder / "settings.json"))
            chosen = settings.get("downloadsFolder") if isinstance(settings, dict) else None
            if isinstance(chosen, str) and chosen and "\0" not in chosen:
                yield Path(chosen)


def _small_text(path: Path) -> str:
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= MOST_SETTINGS_BYTES:
            return path.read_text(encoding="utf-8", errors="replace")
    return ""


def ollama_address(environ: Mapping[str, str], setting: str, *, is_given: bool) -> str:
    """Return where Ollama answers: the setting where a person gave it, else ``OLLAMA_HOST``, else the default.

    ``OLLAMA_HOST`` is where it listens: an address, with or without scheme and port; all addresses mean this machine.
    """
    host = environ.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    if is_given or not host:
        return setting
    scheme, separator, rest = host.rpartition("://")
    port = {"http": 80, "https": 443}.get(scheme, OLLAMA_PORT)
    try:
        parts = urlsplit(f"//{rest.strip('/')}" if rest.count(":") < 2 or "[" in rest else f"//[{rest.strip('/')}]")
        name, port = parts.hostname or "127.0.0.1", parts.port or port
    except ValueError:
        return setting
    name = _ANYWHERE.get(name, name)
    return f"{scheme if separator else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"
