"""JSON objects in the files of models, of which any may be huge or make no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path, most_bytes: int) -> dict[str, Any]:
    """Return the object in a file; raises ``OSError``, or ``ValueError`` if it is larger or holds anything else."""
    if not path.is_file() or path.stat().st_size > most_bytes:
        raise ValueError(f"{path} is missing, or too large")
    return parse_object(path, path.read_bytes())


def parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """Return the object in a part of a file; raises ``ValueError`` if it holds anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: what should be JSON is none") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: what should be a JSON object is none")  # noqa: TRY004 - the file's fault
    return value
