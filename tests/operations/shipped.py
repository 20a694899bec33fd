"""The example files of docs/operations, as text and taken apart."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "operations"
PROGRAM = Path(sys.executable).with_name("rolecall")
"""The command in the environment of the tests."""


def shipped(name: str) -> str:
    """Return the text of an example file."""
    return (FOLDER / name).read_text(encoding="utf-8")


def unit(name: str) -> dict[str, list[str]]:
    """Return the values of each directive of a unit, whatever its section."""
    found: dict[str, list[str]] = {}
    for line in shipped(name).splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found
