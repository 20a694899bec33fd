"""Models as they lie on people's disks, for tests: folders of Hugging Face, its cache, Ollama's store; no weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf_shapes import F16, Q8_0, Tensor, text, value, write_gguf

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
WIDTH = 256


def model_gguf(path: Path, architecture: str = "llama", **metadata: Any) -> Path:
    """Write a small GGUF; a double underscore in a key stands for a dot, and ``template=None`` leaves that out."""
    template = metadata.pop("template", TEMPLATE)
    known: dict[str, object] = {
        "general.architecture": architecture,
        f"{architecture}.context_length": 40960,
        f"{architecture}.embedding_length": WIDTH,
        **({"tokenizer.chat_template": template} if template else {}),
        **{key.replace("__", "."): content for key, content in metadata.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: list[Tensor] = [("token_embd.weight", (WIDTH, 32), F16), ("blk.0.ffn_up.weight", (WIDTH, WIDTH), Q8_0)]
    return write_gguf(path, known, tensors)


def projector_gguf(path: Path, width: int = WIDTH, **metadata: Any) -> Path:
    """Write a projector that makes embeddings of a width."""
    known: dict[str, object] = {"general.architecture": "clip", "clip.has_vision_encoder": True}
    known |= {key.replace("__", "."): content for key, content in metadata.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_gguf(path, known, [("v.patch_embd.weight", (64, 32), F16), ("mm.0.weight", (64, width), F16)])


def split_gguf(path: Path, count: int, **metadata: Any) -> list[Path]:
    """Write a model in parts; ``path`` is the name that it would have in one."""
    names = [path.with_name(f"{path.stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    model_gguf(names[0], split__count=count, **metadata)
    for number, part in enumerate(names[1:], 2):
        write_gguf(part, {"split.no": number - 1}, [(f"blk.{number}.ffn_up.weight", (WIDTH, WIDTH), Q8_0)])
    return names


def safetensors(path: Path, dtype: str = "BF16", size: int = 2**20) -> Path:
    """Write a safetensors file with one tensor of so many bytes, which is a hole."""
    head = json.dumps({"w": {"dtype": dtype, "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, 8 + len(head) + size)
    return path


CONFIG: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "max_position_embeddings": 40960,
}


def model_folder(
    path: Path, config: Any = CONFIG, *, dtype: str = "BF16", parts: int = 1, template: str = TEMPLATE, **files: Any
) -> Path:
    """Write a folder of Hugging Face's; ``files`` are further JSON files by their names without ``.json``."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if template:
        (path / "chat_template.jinja").write_text(template)
    names = ["model.safetensors"]
    if parts > 1:
        names = [f"model-{number:05}-of-{parts:05}.safetensors" for number in range(1, parts + 1)]
        weights = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
        (path / "model.safetensors.index.json").write_text(json.dumps(weights))
    for name in names:
        safetensors(path / name, dtype)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def into_hub(cache: Path, repository: str, source: Path, *, revision: str = "a" * 40, ref: str | None = "main") -> Path:
    """Move a folder into a cache of huggingface_hub as one revision; files become blobs with links to them."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for file in sorted(each for each in source.rglob("*") if each.is_file()):
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = folder / "blobs" / hashlib.sha256(f"{file.name} {file.stat().st_size}".encode()).hexdigest()
        file.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref is not None:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(revision)
    return snapshot


def ollama_model(store: Path, tag: str, **layers: Path) -> Path:
    """Put files into Ollama's store as the layers of a model; returns the blob of ``model``."""
    name, _, version = tag.partition(":")
    parts = name.split("/")
    parts = {1: ["registry.ollama.ai", "library"], 2: ["registry.ollama.ai"]}.get(len(parts), []) + parts
    manifest = store.joinpath("manifests", *parts, version)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    (store / "blobs").mkdir(exist_ok=True)
    listed, blobs = [], {}
    for kind, file in layers.items():
        digest = hashlib.sha256(f"{tag} {kind}".encode()).hexdigest()
        blobs[kind] = store / "blobs" / f"sha256-{digest}"
        file.rename(blobs[kind])
        listed.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": 1})
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": listed}))
    return blobs.get("model", manifest)


def hostile_gguf(path: Path, tensors: int = 0, entries: int = 2**60) -> Path:
    """Write a header that claims more than any memory holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = (3).to_bytes(4, "little") + tensors.to_bytes(8, "little") + entries.to_bytes(8, "little")
    path.write_bytes(b"GGUF" + counts + text("general.architecture") + value("llama"))
    return path


def listing(root: Path) -> Sequence[tuple[str, int]]:
    """Return all files below a folder with their sizes, to see that nothing was moved."""
    return sorted((str(each), each.lstat().st_size) for each in root.rglob("*"))
