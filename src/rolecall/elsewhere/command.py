"""A command line on its way to the fields of an entry, and what words of it may be."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from rolecall.core.model_names import split_label, split_part

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
OWN_KEY = "rolecall gives each engine a key of its own, new with each start"
PLAIN_HTTP = "rolecall speaks plain HTTP with the engines of this machine"

_METHOD = re.compile(r"(?<![A-Za-z0-9])(AWQ|GPTQ)(?![A-Za-z0-9])", re.IGNORECASE)
"""What the folders of quantized models are called by, where the files of others have a label."""


@dataclass(slots=True)
class Part:
    """What is said of a word of a command line: ``kind`` as in ``outcome.Remark``."""

    word: str
    kind: str
    text: str


@dataclass(slots=True)
class Command:
    """A command line as fields of an entry; ``program`` is what the entry counts on the settings to start."""

    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)
    program: str | None = None
    parts: list[Part] = field(default_factory=list)

    def note(self, word: str, kind: str, text: str) -> None:
        """Remark something about a word."""
        self.parts.append(Part(word, kind, text))


def put_count(
    fields: dict[str, Any], name: str, value: str, suffixes: Mapping[str, int] = MappingProxyType({})
) -> bool:
    """Put a number above 0 into a field; ``suffixes`` are the letters that may follow it, with what they stand for."""
    found = re.fullmatch(r"(\d+)([a-zA-Z]?)", value)
    count = int(found[1]) * {"": 1, **suffixes}.get(found[2], 0) if found else 0
    if count:
        fields[name] = count
    return bool(count)


def as_number(value: str) -> float | None:
    if re.fullmatch(r"[-+]?\d+", value):
        return int(value)
    return float(value) if re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+)", value) else None


def is_path(word: str) -> bool:
    return word.startswith(("/", "~", ".")) or word.lower().endswith(".gguf")


def whole_path(path: str, folder: str, command: Command) -> str:
    """Return a path from the root on: rolecall reads relative ones from its own config folder."""
    if path.startswith(("/", "~")):
        return path
    whole = posixpath.normpath(posixpath.join(folder, path))
    command.note(path, "changed", f"the relative path {path} became {whole}: rolecall runs in another folder")
    return whole


def note_quantization(path: str, command: Command) -> None:
    name = posixpath.basename(path.rstrip("/"))
    stem = name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
    part = split_part(stem)
    _, label = split_label(part[0] if part else stem)
    found = label or next(iter(_METHOD.findall(stem)), None)
    if found:
        command.fields["quantization"] = found.lower().removeprefix("ud-")


def leave_out(flag: str, value: str, why: str, command: Command) -> None:
    if why:
        command.note(flag, "changed", f"{flag} was left out: {why}")
    elif flag == "--host" and value not in (*LOOPBACK, "0.0.0.0", "::", "[::]"):  # noqa: S104 - what others listen on
        command.note(value, "changed", f"--host {value} was left out: engines listen on 127.0.0.1")
