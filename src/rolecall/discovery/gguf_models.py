"""The GGUF files of a folder as models: parts as one, projectors with the models that they belong to.

Headers are read by `runtime.gguf_header`, not by the ``gguf`` package: that is an extra, makes an object of each token
of a vocabulary (seconds a file), and allocates what a hostile header claims.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any

from rolecall.core.discovery import Found
from rolecall.core.model_names import bare_name, label_bits, split_label, split_part
from rolecall.core.wording import some
from rolecall.discovery.found import Model, Yield, why
from rolecall.discovery.projectors import Pairing, Projector, best_projector
from rolecall.discovery.walk import Folder, Walk
from rolecall.runtime.fields import Fields
from rolecall.runtime.gguf_header import GgufHeader, read_gguf

_OLDER_TYPES = "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K"
_NEWER_TYPES = "IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - -"
_LATEST_TYPES = "TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0"
FILE_TYPES = dict(enumerate(f"{_OLDER_TYPES} {_NEWER_TYPES} {_LATEST_TYPES}".split()))
"""``general.file_type`` by llama.cpp's ``llama_ftype`` (include/llama.h); ``-`` is no type of today."""

LONGEST_TEXT = 200
"""Of what is written into the registry: a hostile header has megabytes."""
_MOST_NAMED = 5

_POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_GENERIC = frozenset(
    {"", "model", "ggml-model", "main", "weights", "unknown", "llm", "gguf", "default", "consolidated"}
)
_KINDS_OF_FILES = {"adapter": "an adapter (LoRA), not a model", "imatrix": "a matrix for quantizing, not a model"}
_UNFINISHED = (".aria2", ".part", ".downloadInProgress", ".incomplete")
"""What downloads that go on keep beside the file itself, after its name."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF that was read: the first part, all parts, and what its header says."""

    path: Path
    files: tuple[Path, ...]
    size_bytes: int
    header: GgufHeader

    @property
    def stem(self) -> str:
        """The file's name without ending and part."""
        stem = self.path.name[: -len(".gguf")] if self.path.suffix.lower() == ".gguf" else self.path.name
        part = split_part(stem)
        return part[0] if part else stem

    def text(self, key: str) -> str:
        """A short text of its metadata, empty for none."""
        value = self.header.metadata.get(key)
        return value[:LONGEST_TEXT] if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        """A number of its architecture, 0 for none and for nonsense."""
        fields = Fields(self.header.metadata, f"{self.architecture}.")
        try:
            return fields.number(key)
        except ValueError:
            return 0

    @property
    def architecture(self) -> str:
        """Its architecture, empty if it names none."""
        return self.text("general.architecture")

    @property
    def is_projector(self) -> bool:
        """Whether it belongs to a model, which sees or hears by it."""
        return self.architecture == "clip" or self.text("general.type") == "mmproj"


def gguf_models(
    folder: Folder, walk: Walk, out: Yield, provider: str, above: Sequence[Projector] = ()
) -> Sequence[Projector]:
    """Add the models among the files of a folder to ``out``; return the projectors that are in it.

    ``above`` are those of the folder above, which may belong to models that lie in folders of their own.
    """
    files = list(_readable(folder, walk, out))
    projectors = [Projector.of(file) for file in files if file.is_projector]
    models = [file for file in files if not file.is_projector and _is_model(file, out)]
    bases = {described(file)[0] for file in models}
    for file in models:
        pairing = best_projector(file, described(file)[0], projectors or above, alone=len(bases) == 1)
        out.models.append(gguf_model(file, provider, pairing))
    return projectors


def _readable(folder: Folder, walk: Walk, out: Yield) -> Iterator[GgufFile]:
    for first, names in _groups(folder.named(".gguf")).items():
        path = folder.path / first
        if not walk.is_new_file(folder.files[names[0]]):
            continue
        if reason := _unfinished(folder, first, names):
            out.skip(path, reason)
            continue
        size = sum(folder.files[name].st_size for name in names)
        if (file := read(path, [folder.path / name for name in names], size, out)) is not None:
            yield file


def read(path: Path, files: Iterable[Path], size_bytes: int, out: Yield) -> GgufFile | None:
    """Read a header; None and a note in ``out`` if that is not possible."""
    out.headers += 1
    try:
        return GgufFile(path, tuple(files), size_bytes, read_gguf(path))
    except (OSError, ValueError) as error:
        out.skip(path, why(error))
        return None


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the files by the name of the first part, whether or not that is there."""
    groups: dict[str, list[str]] = {}
    for name in names:
        part = split_part(name[: -len(".gguf")])
        first = f"{part[0]}-00001-of-{part[2]:05}{name[-len('.gguf') :]}" if part else name
        groups.setdefault(first, []).append(name)
    return groups


def _unfinished(folder: Folder, first: str, names: Sequence[str]) -> str | None:
    """Why a file is not all there yet, by what lies beside it."""
    part = split_part(first[: -len(".gguf")])
    if part is not None and not first.endswith(".gguf"):
        return "llama.cpp finds the parts of a split model by names in .gguf alone: rename them so, in small letters"
    if part is not None and len(names) < part[2]:
        there = {split_part(name[: -len(".gguf")]) for name in names}
        missing = [str(number) for number in range(1, part[2] + 1) if (part[0], number, part[2]) not in there]
        verb = "is" if len(missing) == 1 else "are"
        return f"incomplete: of its {part[2]} parts {some(missing, _MOST_NAMED)} {verb} missing"
    busy = next((name + end for name in names for end in _UNFINISHED if name + end in folder.files), None)
    return f"incomplete: {busy} says that its download is not finished" if busy else None


def _is_model(file: GgufFile, out: Yield) -> bool:
    reason = _KINDS_OF_FILES.get(file.text("general.type"))
    if not file.architecture:
        reason = reason or "it names no architecture"
    elif not file.header.tensors:
        reason = reason or "it has no weights, only a vocabulary"
    if reason:
        out.skip(file.path, reason)
    return reason is None


def gguf_model(file: GgufFile, provider: str, pairing: Pairing | None) -> Model:
    """Return a model with the projector that belongs to it."""
    bare, quantization, notes = described(file)
    projector = pairing.projector if pairing else None
    size_bytes = file.size_bytes + (projector.file.size_bytes if projector else 0)
    return Model(
        found=Found(
            name=bare,
            format="gguf",
            architecture=file.architecture,
            pooling=_pooling(file),
            template="\n".join(_templates(file.header.metadata)),
            sees=projector is not None and projector.sees,
            hears=projector is not None and projector.hears,
            quantization=quantization or "",
            parameters_b=parameters(file.header) / 1e9,
        ),
        bare=bare,
        quantization=quantization,
        backend="llama_cpp",
        provider=provider,
        path=file.path,
        projector=projector.file.path if projector else None,
        files=(*file.files, *(projector.file.files if projector else ())),
        owners=(_organization(file, provider), *_folders(file.path), path_mark(file.path)),
        context_tokens=file.number("context_length") or None,
        size_bytes=size_bytes,
        family=file.architecture,
        license=file.text("general.license") or None,
        notes=(*notes, *([pairing.reason] if pairing else [])),
    )


def _folders(path: Path) -> tuple[str, str]:
    return path.parent.name, path.parent.parent.name


def _organization(file: GgufFile, provider: str) -> str:
    """Who it is from: in LM Studio's folders the publisher is above the model; else as the file says."""
    return file.path.parent.parent.name if provider == "lmstudio" else file.text("general.organization")


def path_mark(path: Path) -> str:
    """Return letters by which a path is known from others, the same every time."""
    return blake2b(os.fsencode(path), digest_size=3).hexdigest()


def described(file: GgufFile) -> tuple[str, str | None, tuple[str, ...]]:
    """Return a file's bare name, its quantization, and how both were found."""
    stem, label = split_label(_without_repository(file.stem))
    kind = FILE_TYPES.get(_file_type(file.header.metadata), "-")
    quantization, by = _quantization(label, kind)
    bare = bare_name(stem)
    if bare not in _GENERIC and not bare.startswith("sha256-"):
        return bare, quantization, (f"quantization {by}",)
    for text, what in ((file.text("general.name") or _composed(file), "metadata"), (file.path.parent.name, "folder")):
        if (other := bare_name(split_label(text)[0])) not in _GENERIC:
            return other, quantization, (f"named by its {what}, for its file's name says nothing", f"quantization {by}")
    return "model", quantization, (f"quantization {by}",)


def _without_repository(stem: str) -> str:
    """Older llama.cpp put the repository before the file: ``org_repo-GGUF_file``."""
    before, separator, rest = stem.partition("-GGUF_")
    return rest if separator and "_" in before else stem


def _composed(file: GgufFile) -> str:
    return "-".join(filter(None, (file.text(f"general.{key}") for key in ("basename", "size_label", "finetune"))))


def _file_type(metadata: Mapping[str, Any]) -> int:
    kind = metadata.get("general.file_type")
    return kind & ~1024 if isinstance(kind, int) and kind >= 0 else -1  # this bit says that the converter guessed


def _quantization(label: str | None, kind: str) -> tuple[str | None, str]:
    """The header's word counts, unless the name says more of the same: ``UD-Q4_K_XL`` is recorded as ``Q4_K_M``."""
    if label is None:
        return (kind, "by its metadata") if kind != "-" else (None, "unknown")
    if kind == "-":
        return label, "by the file's name"
    if label_bits(label) == label_bits(kind):
        return label, "by the file's name and its metadata"
    return kind, f"by its metadata, although the file's name says {label}"


def _pooling(file: GgufFile) -> str:
    kind = file.header.metadata.get(f"{file.architecture}.pooling_type")
    return _POOLING.get(kind, "") if isinstance(kind, int) else ""


def _templates(metadata: Mapping[str, Any]) -> list[str]:
    known = (text for key, text in metadata.items() if key.startswith("tokenizer.chat_template"))
    return [text for text in known if isinstance(text, str)]


def parameters(header: GgufHeader) -> int:
    """Return how many numbers the tensors of a model have."""
    return sum(prod(shape) for shape, _ in header.tensors.values())
