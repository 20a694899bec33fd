"""Where traces come from: the descriptions that are shipped, files, and request logs. The only I/O of a simulation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson

from rolecall.errors import ConfigurationError
from rolecall.simulation.spec import parse_spec
from rolecall.simulation.workload import Workload

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPEC_SUFFIXES = (".toml", ".json")
"""Files that describe a workload; all others are request logs."""


def shipped_specs() -> dict[str, Path]:
    """Return the descriptions that come with rolecall, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "specs").glob("*.toml"))}


def find_spec(trace: str) -> Path | None:
    """Return the description that ``trace`` means, by its path or shipped name; None for a request log.

    Raises ``ConfigurationError`` if there is neither.
    """
    path, shipped = Path(trace), shipped_specs()
    if path.is_file():
        return path if path.suffix in SPEC_SUFFIXES else None
    if trace in shipped:
        return shipped[trace]
    raise ConfigurationError(f"{trace}: there is no such file, and no such trace is shipped: {', '.join(shipped)}")


def read_spec(source: Path, seed: int | None = None) -> Workload:
    """Read a description and draw its requests; raises ``ConfigurationError`` with the file and the place."""
    parse = _json if source.name.endswith(".json") else _toml
    return parse_spec(parse(source.read_bytes(), source.name), source.name, seed)


def _json(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"{name}, line {error.lineno}: {error.msg}") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{name}: it is no JSON object")
    return value


def _toml(data: bytes, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}") from None
