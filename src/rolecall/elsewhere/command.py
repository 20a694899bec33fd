"""A command line on its way to the fields of an entry, and what words of it may be."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
OWN_KEY = "rolecall gives each engine a key of its own, new with each start"
PLAIN_HTTP = "rolecall speaks plain HTTP with the engines of this machine"

_QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])(I?Q[1-8]_[A-Z0-9]+(?:_[A-Z0-9]+)*|BF16|F16|F32|MXFP4|FP8|AWQ|GPTQ)(?![A-Za-z0-9])", re.IGNORECASE
)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")


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


def put_count(fields: dict[str, Any], name: str, value: str) -> bool:
    """Put a number above 0 into a field; ``32k`` and ``32K`` are vLLM's 32,000 and 32,768."""
    found = re.fullmatch(r"(\d+)([kK]?)", value)
    count = int(found[1]) * {"": 1, "k": 1000, "K": 1024}[found[2]] if found else 0
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
    stem = _SPLIT.sub("", posixpath.basename(path.rstrip("/")).removesuffix(".gguf"))
    found = _QUANTIZATION.findall(stem)
    if found:
        command.fields["quantization"] = found[-1].lower()


def leave_out(flag: str, value: str, why: str, command: Command) -> None:
    if why:
        command.note(flag, "changed", f"{flag} was left out: {why}")
    elif flag == "--host" and value not in (*LOOPBACK, "0.0.0.0", "::", "[::]"):  # noqa: S104 - what others listen on
        command.note(value, "changed", f"--host {value} was left out: engines listen on 127.0.0.1")
