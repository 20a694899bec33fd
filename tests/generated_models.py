"""Models as people have them, for the real engine: one that chats, one that sees, an embedder, one in parts."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

NAMES = ["tiny-chat_(F16)", "tiny-coder_(F16)", "tiny-embed_(F16)", "tiny-vl_(F16)"]
"""How they are registered when they are found."""


def write_models(folder: Path, demo_models: Path) -> Path:
    """Make the models in ``folder`` of the demo models; what they say is the same."""
    for name in ("chat", "vl", "embed", "coder"):
        (folder / name).mkdir(parents=True)
    original = demo_models / "demo-chat.gguf"
    shutil.copyfile(original, folder / "chat" / "Tiny-Chat-F16.gguf")
    shutil.copyfile(demo_models / "demo-vision.gguf", folder / "vl" / "Tiny-VL-F16.gguf")
    shutil.copyfile(demo_models / "mmproj-demo-vision.gguf", folder / "vl" / "mmproj-F16.gguf")
    write_copy(folder / "embed" / "Tiny-Embed-F16.gguf", original, without={"tokenizer.chat_template"})
    write_copy(folder / "coder" / "Tiny-Coder-F16.gguf", original, tensors_a_part=5)
    return folder


def write_copy(path: Path, original: Path, *, without: Collection[str] = (), tensors_a_part: int = 0) -> None:
    """Write a GGUF again, without some keys or in parts."""
    import gguf

    reader = gguf.GGUFReader(original)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_a_part)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in without:
            continue
        kind = field.types[0]
        writer.add_key_value(
            name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
