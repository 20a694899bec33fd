"""Ollama's models: its blobs as GGUF files where they can be read and llama.cpp can run them, else by the daemon.

On its disk ``manifests/HOST/NAMESPACE/MODEL/TAG`` is a JSON object whose layers name files in ``blobs``. Ollama has
engines of its own beside llama.cpp, for which it packs a model and its vision tower into one file; llama.cpp refuses
such ("wrong number of tensors", ggml-org/llama.cpp#27349, #25334), so these are left to the daemon.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from rolecall.backends.ollama import full_tag
from rolecall.core.discovery import Found
from rolecall.core.model_names import bare_name, size_b, split_label
from rolecall.discovery.found import Model, Yield, is_utf8, why
from rolecall.discovery.gguf_models import GgufFile, gguf_model, read
from rolecall.discovery.projectors import Pairing, Projector
from rolecall.runtime.gguf_header import GgufHeader
from rolecall.runtime.json_file import parse_object, read_object

MOST_ANSWER_BYTES = 8 * 2**20
TIMEOUT_S = 3.0
_MOST_MANIFEST_BYTES = 2**20
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})$")
_LAYER = "application/vnd.ollama.image."
_CAPABILITIES = frozenset({"completion", "embedding", "vision", "tools", "thinking", "audio", "insert", "image"})


# --- on the disk


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model in Ollama's folders: its tag, and the files of its layers by their kind (model, projector, template)."""

    tag: str
    layers: Mapping[str, Path]


def manifests(folder: Path, out: Yield) -> list[Manifest]:
    """Return the models that a folder of Ollama's lists, by tag; what cannot be read is noted in ``out``."""
    found = []
    root = folder / "manifests"
    try:
        files = sorted(root.glob("*/*/*/*")) if any(root.iterdir()) else []  # glob tells of nothing that is closed
    except OSError as error:
        out.skip(root, f"this folder cannot be read: {why(error)}")
        return []
    for file in files:
        if not is_utf8(str(file)):
            out.skip(file, "its name is not UTF-8, which a registry cannot hold: rename it")
            continue
        try:
            found.append(_manifest(file, root, folder / "blobs"))
        except (OSError, ValueError) as error:
            out.skip(file, f"this manifest of Ollama's makes no sense: {why(error)}")
    return found


def _manifest(file: Path, root: Path, blobs: Path) -> Manifest:
    host, namespace, model, tag = file.relative_to(root).parts
    listed = read_object(file, _MOST_MANIFEST_BYTES).get("layers")
    if not isinstance(listed, list):
        raise ValueError("it has no list of layers")  # noqa: TRY004 - the file's fault
    layers: dict[str, Path] = {}
    for layer in listed:
        kind, digest = (layer.get(key) if isinstance(layer, dict) else None for key in ("mediaType", "digest"))
        name = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if isinstance(kind, str) and kind.startswith(_LAYER) and name:
            layers.setdefault(kind.removeprefix(_LAYER).partition(";")[0], blobs / f"sha256-{name[1]}")
    return Manifest(_short(f"{host}/{namespace}/{model}:{tag}"), layers)


def _short(tag: str) -> str:
    return tag.removeprefix("registry.ollama.ai/").removeprefix("library/")


def disk_model(manifest: Manifest, out: Yield) -> Model | str:
    """Return a model that llama.cpp can run from Ollama's blobs, or why it is left to the daemon."""
    path = manifest.layers.get("model")
    if path is None:
        return "its manifest names no GGUF"
    file, projector = (_read(manifest.layers.get(kind), out) for kind in ("model", "projector"))
    if not isinstance(file, GgufFile):
        return file or "its manifest names no GGUF"
    if isinstance(projector, str):
        return projector
    if reason := _only_for_ollama(file, manifest):
        return reason
    pairing = Pairing(Projector.of(projector), "projector: a layer of its manifest") if projector else None
    model = gguf_model(file, "ollama", pairing)
    bare, quantization = tag_name(manifest.tag)
    return replace(
        model,
        found=replace(model.found, name=bare),
        bare=bare,
        quantization=model.quantization or quantization,
        owners=(*_owner(manifest.tag), "ollama", *model.owners[-1:]),
        ids=(manifest.tag,),
        extra={"ollama_tag": manifest.tag},
        notes=tuple(note for note in model.notes if not note.startswith("named")),
    )


def _read(path: Path | None, out: Yield) -> GgufFile | str | None:
    """Return a blob's header, or why there is none; None for a layer that the manifest does not have."""
    if path is None:
        return None
    noted = Yield()
    try:
        file = read(path, [path], path.stat().st_size, noted)
    except OSError as error:
        return f"its blob cannot be read: {why(error)}"
    out.headers += 1
    return file or f"its blob cannot be used: {noted.skipped[0].reason}"


def _only_for_ollama(file: GgufFile, manifest: Manifest) -> str | None:
    if _has_tower(file.header):
        return "its blob holds a vision tower too, which llama.cpp refuses"
    if "adapter" in manifest.layers:
        return "it has an adapter, which Ollama applies"
    pools = isinstance(file.header.metadata.get(f"{file.architecture}.pooling_type"), int)
    if "template" in manifest.layers and not pools and "tokenizer.chat_template" not in file.header.metadata:
        return "its blob has no chat template, which Ollama keeps in a form of its own"
    sections = file.header.metadata.get(f"{file.architecture}.rope.dimension_sections")
    if isinstance(sections, tuple) and len(sections) == 3:
        return "its blob is in a form of Ollama's own (rope.dimension_sections)"
    return None


def _has_tower(header: GgufHeader) -> bool:
    return any(name.startswith(("v.", "mm.", "a.", "mtp.")) for name in header.tensors)


def tag_name(tag: str) -> tuple[str, str | None]:
    """Return the bare name and the quantization that a tag states: ``llama3.2-3b-instruct`` and ``Q4_K_M``."""
    model, _, version = tag.rpartition("/")[2].partition(":")
    stem, label = split_label(version)
    is_hub = tag.startswith(("hf.co/", "huggingface.co/"))
    parts = (bare_name(model), "" if is_hub and stem == "latest" else bare_name(stem))
    return "-".join(filter(None, parts)) or "model", label


def _owner(tag: str) -> tuple[str, ...]:
    parts = tag.split("/")
    return (parts[-2],) if len(parts) > 1 else ()


# --- by the daemon


@dataclass
class Daemon:
    """An Ollama that may or may not answer. ``problem`` says why it does not, once it was asked."""

    base_url: str
    timeout_s: float = TIMEOUT_S
    problem: str | None = None
    has_listed: bool = False

    def tags(self) -> list[dict[str, Any]] | None:
        """Return what it lists; None if it gives no answer, or one without sense."""
        answer = self._ask("GET", "/api/tags")
        if answer is None:
            return None
        models = answer.get("models")
        if not isinstance(models, list):
            self.problem = "its answer has no list of models"
            return None
        self.has_listed = True
        return [model for model in models if isinstance(model, dict) and _tag(model)]

    def show(self, tag: str) -> dict[str, Any]:
        """Return what it tells of one model, nothing if it gives no answer; after that it is not asked again."""
        return {} if self.problem else self._ask("POST", "/api/show", {"model": tag}) or {}

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        url = self.base_url.rstrip("/").removesuffix("/v1") + path
        try:
            with (
                httpx.Client(timeout=self.timeout_s, trust_env=False) as http,
                http.stream(method, url, json=body) as response,
            ):
                response.raise_for_status()
                return parse_object(Path("answer"), self._limited(response))
        except httpx.HTTPStatusError as error:
            self.problem = f"it answered {error.response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self.problem = str(error) or type(error).__name__
        except ValueError:
            self.problem = "it answered something that is no JSON object, or too much"
        return None

    def _limited(self, response: httpx.Response) -> bytes:
        """Return an answer that is neither endless nor slow without end."""
        data = bytearray()
        end = time.monotonic() + 2 * self.timeout_s
        for part in response.iter_bytes():
            data += part
            if len(data) > MOST_ANSWER_BYTES or time.monotonic() > end:
                raise ValueError("too much")
        return bytes(data)


def _tag(row: Mapping[str, Any]) -> str:
    name = row.get("model") or row.get("name")
    is_fit = isinstance(name, str) and len(name) <= 200 and name.isprintable() and is_utf8(name)
    return name if is_fit and isinstance(name, str) else ""


def daemon_models(daemon: Daemon, reasons: Mapping[str, str], there: set[str], out: Yield) -> list[Model]:
    """Return the models of a daemon that are not ``there`` from its disk; ``reasons`` say why not, by tag."""
    models: dict[str, Model] = {}
    for row in sorted(daemon.tags() or [], key=lambda row: (_tag(row).endswith(":latest"), _tag(row))):
        tag, key = _tag(row), full_tag(_tag(row))
        digest = row.get("digest")
        same = digest if isinstance(digest, str) and digest else key
        if key in there:
            continue
        if row.get("remote_host") or row.get("remote_model"):
            out.skip(f"ollama {tag}", "it runs on another machine (Ollama's cloud), not here")
        elif same in models:
            models[same] = _also(models[same], (tag,))
        else:
            models[same] = _daemon_model(tag, row, daemon.show(tag), reasons.get(key))
    return list(models.values())


def _also(model: Model, ids: tuple[str, ...]) -> Model:
    return replace(model, ids=tuple(dict.fromkeys((*model.ids, *ids))))


def _daemon_model(tag: str, row: Mapping[str, Any], shown: Mapping[str, Any], reason: str | None) -> Model:
    details = row.get("details")
    known: Mapping[str, Any] = details if isinstance(details, dict) else {}
    bare, label = tag_name(tag)
    level = known.get("quantization_level")
    quantization = level.upper() if isinstance(level, str) and re.fullmatch(r"[\w-]{2,16}", level) else label
    declared = shown.get("capabilities")
    family = known.get("family")
    info = shown.get("model_info")
    size = row.get("size")
    states = known.get("parameter_size")
    return Model(
        found=Found(
            name=bare,
            format="ollama",
            architecture=family if isinstance(family, str) else "",
            sees=isinstance(declared, list) and "vision" in declared,
            declares=tuple(word for word in declared if word in _CAPABILITIES) if isinstance(declared, list) else (),
            quantization=quantization or "",
            parameters_b=(size_b(states) if isinstance(states, str) else None) or size_b(bare),
        ),
        bare=bare,
        quantization=quantization,
        backend="ollama",
        provider="ollama",
        owners=(*_owner(tag), "ollama"),
        ids=(tag,),
        tag=tag,
        context_tokens=_context(info) if isinstance(info, dict) else None,
        size_bytes=size if isinstance(size, int) and 0 < size < 2**50 else 0,
        family=family if isinstance(family, str) else None,
        notes=(f"left to Ollama: {reason}",) if reason else ("left to Ollama: its files are not readable here",),
    )


def _context(info: Mapping[str, Any]) -> int | None:
    numbers: Iterator[Any] = (value for key, value in info.items() if key.endswith(".context_length"))
    return next((number for number in numbers if isinstance(number, int) and 0 < number < 2**30), None)


def disk_models(folder: Path, out: Yield) -> tuple[list[Model], dict[str, str]]:
    """Return the models of a folder of Ollama's that llama.cpp can run, and by tag why the others are not among them.

    Tags are often names of one blob: such is one model, which is called after the one that says most.
    """
    models: dict[Path | None, Model] = {}
    reasons = {}
    for manifest in sorted(manifests(folder, out), key=lambda each: (each.tag.endswith(":latest"), each.tag)):
        model = disk_model(manifest, out)
        if isinstance(model, str):
            reasons[full_tag(manifest.tag)] = model
        else:
            models[model.path] = _also(models[model.path], model.ids) if model.path in models else model
    return list(models.values()), reasons
