"""The registry's files: reading, merging, watching, and the snapshot that others may read."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from rolecall.backends.base import Backend, Launch
from rolecall.core.models import ModelEntry
from rolecall.core.registry import Registry, RegistryError, read_registry, registry_schema
from rolecall.errors import naming
from rolecall.runtime.gguf_header import gguf_parts
from rolecall.settings import standing

CURATED = "model_registry.curated.json"
DISCOVERED = "model_registry.discovered.json"
SNAPSHOT = "model_registry.json"
SCHEMA = "model_registry.schema.json"

log = logging.getLogger(__name__)


def load_registry(config_dir: Path) -> Registry:
    """Read and merge the curated and the discovered registry; a missing file is an empty list.

    While the user's own folder is yet to be filled, the shipped registry stands for the curated one.

    Raises ``RegistryError`` that names the file and, for each problem, the entry and the field.
    """
    curated, discovered = read_list(standing(config_dir / CURATED)), read_list(config_dir / DISCOVERED)
    try:
        return read_registry(curated, discovered)
    except RegistryError as error:
        raise RegistryError([f"{_source(config_dir, problem)}: {problem}" for problem in error.problems]) from None


def missing(config_dir: Path) -> str | None:
    """Return that there is no registry: neither file is there; None if there is one."""
    if any((config_dir / name).exists() for name in (CURATED, DISCOVERED)):
        return None
    return f"{config_dir / CURATED} does not exist"


def _source(config_dir: Path, problem: str) -> Path:
    return config_dir / (DISCOVERED if problem.startswith("the discovered registry") else CURATED)


def read_list(path: Path) -> Any:
    """Return a registry file as it stands, an empty list if there is none; raises ``RegistryError``."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError([f"{path}: cannot be read: {error}"]) from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        raise RegistryError([f"{path}: is not JSON: {error}"]) from None


def write_snapshot(config_dir: Path, registry: Registry) -> None:
    """Write the merged registry beside its sources; a folder that cannot be written is no reason to stop."""
    path = config_dir / SNAPSHOT
    text = json.dumps(registry.merged, indent=2, ensure_ascii=False) + "\n"
    try:
        if not path.exists() or path.read_bytes() != _encoded(text):
            write_atomically(path, text)
    except OSError as error:
        log.warning("the merged registry cannot be written to %s: %s", path, error)


def write_schema(config_dir: Path) -> Path:
    """Write the JSON Schema of the registry and return its path."""
    path = config_dir / SCHEMA
    write_atomically(path, json.dumps(registry_schema(), indent=2, ensure_ascii=False) + "\n")
    return path


def write_atomically(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file so that readers see the old or the new content, never a part of it.

    A ``private`` one can be read by its owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if private:
            temporary.unlink(missing_ok=True)
            temporary.touch(0o600)
        with naming(path):
            temporary.write_bytes(_encoded(text))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _encoded(text: str) -> bytes:
    # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes the escape that it came as.
    return text.encode("utf-8", "backslashreplace")


def registry_state(config_dir: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """Return what tells one state of the two source files from another; None for a file that is not there."""
    return tuple(_file_state(config_dir / name) for name in (CURATED, DISCOVERED))


def _file_state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def why_unavailable(entry: ModelEntry, backend: Backend) -> str | None:
    """Return why this entry cannot be served here; None if it can."""
    if not entry.enabled:
        return f"disabled in the registry; `rolecall models enable {shlex.quote(entry.name)}` takes it back"
    reason = backend.unavailable(entry)
    if reason is not None:
        return reason
    if (problem := missing_program(entry, backend)) is not None:
        return f"not installed: {problem}"
    return next((problem for problem in map(_absence, backend.files(entry)) if problem), None)


def missing_program(entry: ModelEntry, backend: Backend) -> str | None:
    """Return that the program of an entry's own command is not there; what the command itself needs nobody knows."""
    launch = backend.launch(entry, 0) if entry.backend_config.command and backend.has_port else None
    if not isinstance(launch, Launch) or shutil.which(launch.argv[0], path=launch.env.get("PATH")):
        return None
    program = launch.argv[0]
    is_there = "/" in program and Path(program).exists()
    return f"command {program} is no program that this user may run" if is_there else f"command {program} is not there"


def _absence(path: Path) -> str | None:
    try:
        path.stat()
    except FileNotFoundError:
        return f"not installed: {path} does not exist"
    except (OSError, ValueError) as error:  # no permission, a name that no file can have
        return f"not installed: {path} cannot be reached ({error})"
    return None


def files_mb(entry: ModelEntry, backend: Backend) -> int | None:
    """Return the size of the entry's files in MB: what its weights take at the least; None if there are none.

    The first part of a split GGUF (``x-00001-of-00003.gguf``) stands for all of them, as it does for llama.cpp.
    """
    sizes = []
    for path in (part for file in backend.files(entry) for part in gguf_parts(file)):
        with suppress(OSError, ValueError):  # it may go at any moment
            status = path.stat()
            sizes += [status.st_size] if stat.S_ISREG(status.st_mode) else []
    return -(-sum(sizes) // 2**20) if sizes else None
