"""What a look at a disk or a daemon yields, before any rule is applied."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolecall.core.discovery import Found
from rolecall.core.json_text import is_text


@dataclass(frozen=True, slots=True)
class Model:
    """One model, as it lies there.

    ``bare`` is its name without the quantization. ``owners`` tell it from another one of that name, the last of them
    for certain. ``path`` is the file or folder that an engine is given; None for a model of a daemon, which knows it as
    ``tag``. ``ids`` are further names by which people know it. ``notes`` say how something was found out.
    """

    found: Found
    bare: str
    quantization: str | None
    backend: str
    provider: str
    path: Path | None = None
    projector: Path | None = None
    files: tuple[Path, ...] = ()
    owners: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    tag: str | None = None
    context_tokens: int | None = None
    size_bytes: int = 0
    family: str | None = None
    license: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that looks like a model and is not offered, and why."""

    path: str
    reason: str


@dataclass
class Yield:
    """What one or several places yielded; ``looked_at`` are the folders, as they really are, and files of no use."""

    models: list[Model] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    looked_at: list[Path] = field(default_factory=list)
    headers: int = 0

    def skip(self, path: Path | str, reason: str) -> None:
        """Note that something is not offered."""
        self.skipped.append(Skipped(shown(path), reason))


def shown(path: Path | str) -> str:
    """Return a path as text that can be printed, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "replace")


def is_utf8(name: str) -> bool:
    """Whether a name of the file system is text; others hold lone surrogates, which no registry can."""
    return is_text(name)


def why(error: Exception) -> str:
    """Return what was wrong with a file without its path, which stands beside it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    _, separator, reason = str(error).partition(": ")
    return reason if separator and "/" in str(error).partition(": ")[0] else str(error)
