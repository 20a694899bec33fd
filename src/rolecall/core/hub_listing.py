"""What a repository of models offers, by the names and sizes of its files: nothing is downloaded to know that."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rolecall.core.model_names import (
    bare_name,
    is_named_after,
    is_projector_name,
    projector_rank,
    split_label,
    split_part,
    without_mark,
)

Format = Literal["gguf", "safetensors"]

WHOLE = "safetensors"
"""The label of the one choice that is a folder, as vLLM takes it."""
_NO_MODEL = re.compile(r"(?:^|[-_.])(?:imatrix|lora|adapter)(?=$|[-_.])", re.IGNORECASE)
_GENERIC = frozenset({"", "model", "ggml-model", "f16"})
_OF_A_FOLDER = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")
_LONGEST_PATH = 400


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its path there and bytes, with the digest that its content must have.

    ``sha256`` is known of large files, ``git_sha1`` (of the content with git's head for a blob) of small ones.
    """

    path: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def key(self) -> str:
        """What the content is known by; empty if nobody said."""
        return self.sha256 or self.git_sha1 or ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the models of a repository: a GGUF with all its parts and its projector, or a folder."""

    label: str
    format: Format
    files: tuple[HubFile, ...]
    projector: HubFile | None = None
    bare: str = ""

    @property
    def all_files(self) -> tuple[HubFile, ...]:
        """What is fetched."""
        return (*self.files, self.projector) if self.projector else self.files

    @property
    def model_bytes(self) -> int:
        """The bytes of the model alone; of a folder those of its weights."""
        return sum(file.size_bytes for file in self.files if file.path.endswith((".gguf", ".safetensors")))

    @property
    def size_bytes(self) -> int:
        """The bytes of all that is fetched."""
        return sum(file.size_bytes for file in self.all_files)

    @property
    def first(self) -> HubFile:
        """The file that an engine is given, of a folder the first of its files."""
        return self.files[0]


class NoSuchChoice(ValueError):
    """The repository has nothing of that name; the message says what it has."""


def unsafe(path: str) -> str | None:
    """Return why a file of that name is not written to this disk; None for a good name.

    A repository says what its files are called, so a name could lead out of the folder, or to a file of ours.
    """
    parts = path.split("/")
    if not path.isprintable() or "\\" in path:  # lone surrogates are not printable either
        return "has characters that no file here is given"
    if not path or len(path) > _LONGEST_PATH or any(len(part.encode()) > 255 for part in parts):
        return "is empty or too long"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "is an absolute path"
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of the folder"
    return None


def choices(files: Iterable[HubFile]) -> tuple[Choice, ...]:
    """Return what may be pulled, the smallest first: each GGUF that is complete, and the folder for vLLM."""
    listed = sorted((file for file in files if not _is_hidden(file.path)), key=lambda file: file.path)
    gguf = [file for file in listed if file.path.lower().endswith(".gguf") and not _NO_MODEL.search(_stem(file.path))]
    projectors = [file for file in gguf if is_projector_name(_stem(file.path))]
    groups = _complete(file for file in gguf if file not in projectors)
    bases = {bare_name(split_label(stem)[0]) for stem in map(_whole_stem, groups)}
    found = [_gguf_choice(first, parts, projectors, alone=len(bases) == 1) for first, parts in groups.items()]
    found += _folder(listed)
    return tuple(sorted(found, key=lambda choice: (choice.size_bytes, choice.first.path)))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _whole_stem(path: str) -> str:
    stem = _stem(path)
    part = split_part(stem)
    return part[0] if part else stem


def _complete(files: Iterable[HubFile]) -> Mapping[str, tuple[HubFile, ...]]:
    """Return the parts of each model by the path of its first; a model that lacks parts is none."""
    groups: dict[str, dict[int, HubFile]] = {}
    counts: dict[str, int] = {}
    for file in files:
        name, number, count = split_part(file.path[: -len(".gguf")]) or (file.path, 1, 1)
        key = f"{name}-of-{count}"
        groups.setdefault(key, {})[number] = file
        counts[key] = count
    whole = [parts for key, parts in groups.items() if set(parts) == set(range(1, counts[key] + 1))]
    return {parts[1].path: tuple(parts[number] for number in sorted(parts)) for parts in whole}


def _gguf_choice(first: str, parts: tuple[HubFile, ...], projectors: Sequence[HubFile], *, alone: bool) -> Choice:
    stem, label = split_label(_whole_stem(first))
    bare = bare_name(stem)
    return Choice(label or _whole_stem(first), "gguf", parts, _projector(bare, projectors, alone=alone), bare)


def _projector(bare: str, projectors: Sequence[HubFile], *, alone: bool) -> HubFile | None:
    """Return the projector that belongs to a model by the names; one that is named after another model is never it."""
    ranked = []
    for file in projectors:
        stem, precision = split_label(_stem(file.path))
        own = bare_name(without_mark(stem))
        rank = 1 if own in _GENERIC else 0 if is_named_after(own, bare) else 2
        if rank == 0 or alone:
            ranked.append((rank, projector_rank(precision), file.path, file))
    return min(ranked)[3] if ranked else None


def _folder(files: Sequence[HubFile]) -> list[Choice]:
    """Return the folder for vLLM: configuration, tokenizer and weights, without the same in other forms."""
    by_path = {file.path: file for file in files}
    at_top = [path for path in by_path if "/" not in path]
    weights = [path for path in at_top if path.endswith(".safetensors")]
    if "config.json" not in by_path or not weights:
        return []
    own = [path for path in weights if path.startswith("model")] or weights
    rest = [path for path in at_top if path.endswith(_OF_A_FOLDER) and path not in weights]
    pooling = [path for path in by_path if re.fullmatch(r"\d+_\w+/config\.json", path)]
    return [Choice(WHOLE, "safetensors", tuple(by_path[path] for path in sorted((*own, *rest, *pooling))))]


def wanted(found: Sequence[Choice], name: str) -> Choice:
    """Return the choice of that quantization or file, in any case; ``UD-Q4_K_XL`` is also ``Q4_K_XL``.

    Raises `NoSuchChoice` where there is none, or several.
    """
    folded = name.casefold()
    by_file = [choice for choice in found if any(folded in _names(file.path) for file in choice.files)]
    by_label = [choice for choice in found if choice.label.casefold() == folded]
    by_end = [choice for choice in found if choice.label.casefold().removeprefix("ud-") == folded]
    matching = by_file or by_label or by_end
    if len(matching) == 1:
        return matching[0]
    if matching:
        listed = ", ".join(choice.first.path for choice in matching)
        raise NoSuchChoice(f"{name} may be each of {listed}: name the file")
    if is_projector_name(_stem(name)):
        raise NoSuchChoice(f"{name} is a projector, which comes with its model: name the model")
    labels = ", ".join(dict.fromkeys(choice.label for choice in found)) or "nothing that is run here"
    raise NoSuchChoice(f"there is no {name}; it has {labels}")


def _names(path: str) -> tuple[str, str]:
    return path.casefold(), posixpath.basename(path).casefold()


def spec(text: str) -> tuple[str, str | None]:
    """Return the repository and what is wanted of it: ``ORG/NAME``, ``ORG/NAME:Q4_K_M``, ``ORG/NAME:FILE``.

    The address of a repository's page does as well.
    """
    plain = re.sub(r"^(?:https?://[^/]+/|hf\.co/|huggingface\.co/|hf://(?:models/)?)", "", text.strip())
    repository, _, name = plain.partition(":")
    repository = "/".join(repository.strip("/").split("/")[:2])
    return repository, name.strip() or None
