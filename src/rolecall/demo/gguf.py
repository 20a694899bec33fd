"""The demo models as files: made on the first run, kept, made again when a new version says something else."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from rolecall.errors import naming

VERSION = 3
"""Raise it with every change to what the files hold: existing ones are then replaced."""

FILES = ("demo-chat.gguf", "demo-reasoning.gguf", "demo-vision.gguf", "mmproj-demo-vision.gguf")
STAMP = "demo-models.json"

Writer: TypeAlias = Callable[[Path], None]


def make_demo_models(folder: Path, *, progress: Callable[[str], None] | None = None) -> list[Path]:
    """Make sure that `folder` holds the demo models of this version; return their paths in the order of `FILES`.

    `progress` is called with a sentence before each file that is written (about 5 MB in all, well under a second).
    Each file appears under its name only when it is complete, and a stamp with the version and the sizes comes last,
    so that whatever an interrupted run leaves is made again. Raises RuntimeError when the `gguf` package is missing
    and OSError when the folder cannot be written.
    """
    paths = [folder / name for name in FILES]
    if _are_current(folder, paths):
        return paths
    writers = _writers()
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        if progress is not None:
            progress(f"making the demo model file {path.name}")
        _replace(path, writers[path.name])
    _replace(folder / STAMP, lambda path: _write_text(path, _stamp(paths)))
    return paths


def _are_current(folder: Path, paths: list[Path]) -> bool:
    try:
        return (folder / STAMP).read_text(encoding="utf-8") == _stamp(paths)
    except (OSError, UnicodeDecodeError):
        return False


def _stamp(paths: list[Path]) -> str:
    sizes = {path.name: path.stat().st_size for path in paths}
    return json.dumps({"version": VERSION, "bytes": sizes}, indent=2) + "\n"


def _writers() -> dict[str, Writer]:
    from rolecall.demo.script import Script  # noqa: PLC0415 - a server that finds the models in place does without

    try:
        from rolecall.demo.weights import write_chat, write_vision_projector  # noqa: PLC0415 - gguf is an extra
    except ImportError as error:
        raise RuntimeError(f"making the demo models needs {error.name}: pip install 'rolecall[llama]'") from error
    return {
        "demo-chat.gguf": lambda path: write_chat(path, name="demo-chat"),
        "demo-reasoning.gguf": lambda path: write_chat(path, name="demo-reasoning", script=Script(always_thinks=True)),
        "demo-vision.gguf": lambda path: write_chat(path, name="demo-vision"),
        "mmproj-demo-vision.gguf": lambda path: write_vision_projector(path, name="demo-vision"),
    }


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _replace(path: Path, write: Writer) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        with naming(path):
            write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
