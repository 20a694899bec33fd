"""Skeletons of vision projectors: all that llama.cpp loads of each type, in the smallest shapes, with zeros as weights.

They can count an image's tokens, for which nothing is computed, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

WIDTH, OUT = 64, 256
"""Of the encoder, and of the demo models' embeddings."""
MARKS = (
    *("<image>", "</image>", "<slice>", "</slice>", "\n", "\n\n", "<fake_token_around_image>", "<global-img>"),
    *("<|img_thumbnail|>", "<|image_start|>", "<|image_end|>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
    *(f"<|img_row_{row}_col_{column}|>" for row, column in [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (2, 3), (3, 1)]),
    *(f"<|img_row_{row}_col_{column}|>" for row, column in [(3, 2), (3, 3), (1, 4), (2, 4), (4, 1), (4, 2)]),
)
"""What llama.cpp looks up in the vocabulary, and fails without."""

Shapes = dict[str, tuple[int, ...]]


def _linear(*names: str, rows: int = OUT, columns: int = WIDTH) -> Shapes:
    return {f"{name}.weight": (rows, columns) for name in names} | {f"{name}.bias": (rows,) for name in names}


def _norm(*names: str, width: int = WIDTH) -> Shapes:
    return {f"{name}.{part}": (width,) for name in names for part in ("weight", "bias")}


_MERGER = _linear("mm.0", "mm.2")
_RESAMPLER = {
    "resampler.pos_embed_k": (4900, OUT),
    "resampler.query": (64, OUT),
    "resampler.proj.weight": (OUT, OUT),
    "resampler.kv.weight": (OUT, WIDTH),
    **_linear(*(f"resampler.attn.{part}" for part in ("q", "k", "v", "out")), columns=OUT),
    **_norm(*(f"resampler.ln_{part}" for part in ("q", "kv", "post")), width=OUT),
}
_WINDOW = {
    **_linear(*(f"v.vit_merger.attn_{part}" for part in ("q", "k", "v", "out")), rows=WIDTH),
    **_norm("v.vit_merger.ln1"),
    **_norm("v.vit_merger.ds_ln", width=4 * WIDTH),
    "v.vit_merger.ds_ffn_up.weight": (4 * WIDTH, 4 * WIDTH),
    "v.vit_merger.ds_ffn_down.weight": (WIDTH, 4 * WIDTH),
    "mm.up.weight": (4 * WIDTH, 4 * WIDTH),
    "mm.down.weight": (OUT, 4 * WIDTH),
}
_TENSORS: Mapping[str, Shapes] = {
    **dict.fromkeys(("mlp", "phi4", "qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger"), _MERGER),
    **dict.fromkeys(("kimivl", "lfm2", "lightonocr"), _linear("mm.1", "mm.2")),
    "pixtral": {**_linear("mm.1", "mm.2"), "v.token_embd.img_break": (OUT,)},
    "gemma3": {"mm.input_projection.weight": (WIDTH, OUT), "mm.soft_emb_norm.weight": (WIDTH,)},
    "gemma4v": {"mm.input_projection.weight": (OUT, WIDTH)},
    "internvl": {
        **_norm("mm.model.mlp.0", width=4 * WIDTH),
        **_linear("mm.model.mlp.1", columns=4 * WIDTH),
        **_linear("mm.model.mlp.3", columns=OUT),
    },
    "idefics3": {"mm.model.fc.weight": (OUT, WIDTH)},
    "llama4": {
        "mm.model.mlp.1.weight": (WIDTH, WIDTH),
        "mm.model.mlp.2.weight": (WIDTH, WIDTH),
        "mm.model.fc.weight": (OUT, WIDTH),
    },
    "resampler": _RESAMPLER,
    "minicpmv4_6": _WINDOW,
}


def write_projector(
    path: Path, kind: str, vision: Mapping[str, int], plain: Mapping[str, int], pinpoints: Sequence[int] = ()
) -> Path:
    """Write a projector; ``vision`` and ``plain`` are metadata below ``clip.vision.`` and ``clip.``."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("clip.projector_type", kind)
    writer.add_bool("clip.has_vision_encoder", val=True)
    writer.add_bool("clip.use_gelu", val=True)
    shape = {"embedding_length": WIDTH, "feed_forward_length": 2 * WIDTH, "block_count": 1, "projection_dim": OUT}
    for key, number in {**shape, "attention.head_count": 2, **vision}.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    for key, number in plain.items():
        (writer.add_int32 if key.endswith("version") else writer.add_uint32)(f"clip.{key}", number)
    if pinpoints:
        writer.add_array("clip.vision.image_grid_pinpoints", list(pinpoints))
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5, 0.5, 0.5])
    for name, size in {**_encoder(vision["image_size"], vision["patch_size"]), **_TENSORS[kind]}.items():
        writer.add_tensor(name, np.zeros(size, np.float32))
    _write(writer)
    return path


def _encoder(image_size: int, patch_size: int) -> Shapes:
    """One layer of the encoder."""
    kernel = (WIDTH, 3, patch_size, patch_size)
    return {
        "v.patch_embd.weight": kernel,
        "v.patch_embd.weight.1": kernel,
        "v.patch_embd.bias": (WIDTH,),
        "v.position_embd.weight": ((image_size // patch_size) ** 2, WIDTH),
        **_linear(*(f"v.blk.0.attn_{part}" for part in ("q", "k", "v", "out")), rows=WIDTH),
        "v.blk.0.ffn_up.weight": (2 * WIDTH, WIDTH),
        "v.blk.0.ffn_down.weight": (WIDTH, 2 * WIDTH),
        **_norm("v.blk.0.ln1", "v.blk.0.ln2", "v.post_ln", "v.pre_ln", "mm.input_norm"),
    }


def write_marked_model(path: Path, original: Path) -> Path:
    """Write a demo model whose vocabulary has the marks of images in the place of words that it never says."""
    reader = gguf.GGUFReader(original)
    writer = gguf.GGUFWriter(path, "llama")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    unsaid = [index for index, token in enumerate(tokens) if token.startswith("\u2581w")]
    marks = dict(zip(unsaid, MARKS, strict=False))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if name == "tokenizer.ggml.tokens":
            value = [marks.get(index, token) for index, token in enumerate(tokens)]
        if name == "tokenizer.ggml.token_type":
            value = [gguf.TokenType.CONTROL if index in marks else kind for index, kind in enumerate(value)]
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    _write(writer)
    return path


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
