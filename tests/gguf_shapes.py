"""GGUF files of many architectures in any size, whose weights are holes: they take no room on the disk.

llama.cpp loads and runs them as it does real ones; they only say nothing. The tensors of each architecture are those
that `load_arch_tensors` in llama.cpp's `src/models/` asks for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
BLOCKS = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34), Q4_K: (256, 144)}
HEAD = 64
"""Elements of an attention head, but where the architecture has its own."""
CONTEXT_TOKENS = 32768

Tensor = tuple[str, tuple[int, ...], int]
Shape = tuple[dict[str, object], list[Tensor]]
"""Metadata and tensors."""

_LISTS = {bool: (7, "?"), int: (5, "i"), float: (6, "f")}


def text(value: str) -> bytes:
    """Return a string as GGUF has it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(content: Any) -> bytes:
    """Return a typed value; whole numbers are of 32 bits, in lists with a sign."""
    if isinstance(content, list) and isinstance(content[0], str):
        return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(text, content))
    if isinstance(content, list):
        kind, letter = _LISTS[type(content[0])]
        return struct.pack(f"<IIQ{len(content)}{letter}", 9, kind, len(content), *content)
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    kind, letter = {**_LISTS, int: (4, "I")}[type(content)]
    return struct.pack(f"<I{letter}", kind, content)


def header(metadata: Mapping[str, object], tensors: Sequence[Tensor] = ()) -> tuple[bytes, int]:
    """Return the header of a GGUF, padded, and the bytes of the tensors that belong to it."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    parts += [text(key) + value(content) for key, content in metadata.items()]
    offset = 0
    for name, shape, kind in tensors:
        parts += [text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)]
        elements, (block, size) = 1, BLOCKS[kind]
        for length in shape:
            elements *= length
        offset += -(-(elements // block * size) // 32) * 32
    made = b"".join(parts)
    return made + bytes(-len(made) % 32), offset


def write_gguf(path: Path, metadata: Mapping[str, object], tensors: Sequence[Tensor] = ()) -> Path:
    """Write a GGUF whose weights are a hole."""
    start, size = header(metadata, tensors)
    path.write_bytes(start)
    os.truncate(path, len(start) + size)
    return path


def vocabulary(size: int) -> dict[str, object]:
    """Return the metadata of a tokenizer that llama.cpp accepts."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{code:02X}>" for code in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + [f"t{number}" for number in range(size - len(tokens))],
        "tokenizer.ggml.scores": [0.0] * size,
        "tokenizer.ggml.token_type": kinds + [1] * (size - len(kinds)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def described(architecture: str, fields: Mapping[str, object], words: int = 300) -> dict[str, object]:
    """Return the metadata of an architecture with a tokenizer."""
    named = {f"{architecture}.{key}": content for key, content in fields.items()}
    return {"general.architecture": architecture, **named, **vocabulary(words)}


EPSILON: dict[str, object] = {"attention.layer_norm_rms_epsilon": 1e-5}


# -- transformers


def transformer(  # noqa: PLR0917 - a shape
    architecture: str = "llama",
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 512,
    words: int = 300,
    experts: int = 0,
    **fields: object,
) -> Shape:
    """Return a model with heads of 64 elements: llama, qwen3, gemma3; with experts (qwen3moe) 4 of them are used."""
    known = {"embedding_length": width, "block_count": layers, "feed_forward_length": feed_forward}
    known |= {"attention.head_count": heads, "attention.head_count_kv": kv_heads, "context_length": CONTEXT_TOKENS}
    known |= {"attention.key_length": HEAD, "attention.value_length": HEAD, "rope.dimension_count": HEAD}
    if experts:
        known |= {"expert_count": experts, "expert_used_count": 4, "expert_feed_forward_length": 256}
    tensors: list[Tensor] = [("token_embd.weight", (width, words), F16), ("output_norm.weight", (width,), F32)]
    for index in range(layers):
        tensors += _block(f"blk.{index}.", architecture, width, heads, kv_heads, feed_forward, experts)
    return described(architecture, EPSILON | known | fields, words), tensors


def _block(  # noqa: PLR0917 - a shape
    prefix: str, architecture: str, width: int, heads: int, kv_heads: int, feed_forward: int, experts: int
) -> Iterator[Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"attn_norm": (width,), "ffn_norm": (width,)}
    if architecture != "llama":
        shapes |= {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
    if architecture == "gemma3":
        shapes |= {"post_attention_norm": (width,), "post_ffw_norm": (width,)}
    if experts:
        shapes["ffn_gate_inp"] = (width, experts)
    yield from ((f"{prefix}{name}.weight", shape, F32) for name, shape in shapes.items())
    matrices = _attention(width, heads, kv_heads) | (
        _experts(width, 256, experts) if experts else _feed_forward(width, feed_forward)
    )
    yield from _weights(prefix, matrices)


def _attention(width: int, heads: int, kv_heads: int) -> dict[str, tuple[int, ...]]:
    return {
        "attn_q": (width, HEAD * heads),
        "attn_k": (width, HEAD * kv_heads),
        "attn_v": (width, HEAD * kv_heads),
        "attn_output": (HEAD * heads, width),
    }


def _feed_forward(width: int, inner: int, ending: str = "") -> dict[str, tuple[int, ...]]:
    return {
        f"ffn_gate{ending}": (width, inner),
        f"ffn_up{ending}": (width, inner),
        f"ffn_down{ending}": (inner, width),
    }


def _experts(width: int, inner: int, count: int) -> dict[str, tuple[int, ...]]:
    return {name: (*shape, count) for name, shape in _feed_forward(width, inner, "_exps").items()}


def _weights(prefix: str, shapes: Mapping[str, tuple[int, ...]], kind: int = Q8_0) -> Iterator[Tensor]:
    return ((f"{prefix}{name}.weight", shape, kind) for name, shape in shapes.items())


def _biases(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Tensor]:
    return ((f"{prefix}{name}.bias", shape, F32) for name, shape in shapes.items())


def phi3(layers: int = 8, width: int = 1024, words: int = 8000) -> Shape:
    """Return a Phi 3: queries, keys and values in one tensor, the gate and what it gates in another."""
    heads, kv_heads, inner = width // HEAD, 4, 4 * width
    tensors: list[Tensor] = [("output.weight", (width, words), Q8_0), *_ends(width, words)]
    for index in range(layers):
        prefix = f"blk.{index}."
        tensors += _weights(prefix, {"attn_norm": (width,), "ffn_norm": (width,)}, F32)
        matrices = {"attn_qkv": (width, HEAD * (heads + 2 * kv_heads)), "attn_output": (width, width)}
        tensors += _weights(prefix, matrices | {"ffn_up": (width, 2 * inner), "ffn_down": (inner, width)})
    return described("phi3", _common(layers, width, heads, kv_heads, inner), words), tensors


def gpt_oss(layers: int = 8, width: int = 512, words: int = 8000, experts: int = 16, inner: int = 512) -> Shape:
    """Return a gpt-oss: every second layer has a window of 128 tokens, attention has sinks, all is experts."""
    heads, kv_heads = 16, 4
    fields = _common(layers, width, heads, kv_heads, 0) | {"attention.sliding_window": 128}
    fields |= {"expert_count": experts, "expert_used_count": 4, "expert_feed_forward_length": inner}
    tensors: list[Tensor] = [("output.weight", (width, words), Q8_0), *_ends(width, words)]
    for index in range(layers):
        prefix = f"blk.{index}."
        norms = {"attn_norm": (width,), "post_attention_norm": (width,), "attn_sinks": (heads,)}
        tensors += _weights(prefix, norms | {"ffn_gate_inp": (width, experts)}, F32)
        tensors += _weights(prefix, _attention(width, heads, kv_heads) | _experts(width, inner, experts))
        outputs = {
            "ffn_gate_exps": (inner, experts),
            "ffn_up_exps": (inner, experts),
            "ffn_down_exps": (width, experts),
        }
        tensors += _biases(prefix, {"attn_output": (width,), "ffn_gate_inp": (experts,), **outputs})
    return described("gpt-oss", fields, words), tensors


def deepseek2(layers: int = 8, width: int = 512, words: int = 8000, experts: int = 16) -> Shape:
    """Return a DeepSeek 2: latent attention (256 + 32 elements a token), experts and a shared one, one dense layer."""
    heads, latent, rotary, plain, query, inner = 8, 256, 32, 64, 192, 256
    fields = _common(layers, width, heads, 1, 4 * width)
    fields |= {"attention.key_length": latent + rotary, "attention.value_length": latent}
    fields |= {"attention.key_length_mla": plain + rotary, "attention.value_length_mla": plain}
    fields |= {"attention.kv_lora_rank": latent, "attention.q_lora_rank": query, "rope.dimension_count": rotary}
    fields |= {"expert_count": experts, "expert_used_count": 4, "expert_feed_forward_length": inner}
    fields |= {"expert_shared_count": 1, "leading_dense_block_count": 1}
    tensors = list(_ends(width, words))
    for index in range(layers):
        prefix = f"blk.{index}."
        norms = {"attn_norm": width, "ffn_norm": width, "attn_q_a_norm": query, "attn_kv_a_norm": latent}
        tensors += _weights(prefix, {name: (size,) for name, size in norms.items()}, F32)
        tensors += _weights(
            prefix,
            {
                "attn_q_a": (width, query),
                "attn_q_b": (query, heads * (plain + rotary)),
                "attn_kv_a_mqa": (width, latent + rotary),
                "attn_k_b": (plain, latent, heads),
                "attn_v_b": (latent, plain, heads),
                "attn_output": (heads * plain, width),
            },
        )
        if index < 1:
            tensors += _weights(prefix, _feed_forward(width, 4 * width))
            continue
        tensors += _weights(prefix, {"ffn_gate_inp": (width, experts)}, F32)
        tensors += _weights(prefix, _experts(width, inner, experts) | _feed_forward(width, inner, "_shexp"))
    return described("deepseek2", fields, words), tensors


def bert(layers: int = 6, width: int = 384, words: int = 8000, wider: int = 4) -> Shape:
    """Return a BERT, which embeds texts and keeps no cache."""
    context = 512
    fields: dict[str, object] = {"context_length": context, "embedding_length": width, "block_count": layers}
    fields |= {"feed_forward_length": wider * width, "attention.head_count": width // HEAD}
    fields |= {"attention.layer_norm_epsilon": 1e-12, "attention.causal": False, "pooling_type": 1}
    tensors: list[Tensor] = [
        ("token_embd.weight", (width, words), F16),
        ("position_embd.weight", (width, context), F32),
        ("token_types.weight", (width, 2), F32),
        *_norm("token_embd_norm", width),
    ]
    for index in range(layers):
        prefix = f"blk.{index}."
        matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width))
        matrices |= {"ffn_up": (width, wider * width), "ffn_down": (wider * width, width)}
        tensors += _weights(prefix, matrices)
        tensors += _biases(prefix, {name: shape[1:] for name, shape in matrices.items()})
        tensors += [*_norm(f"{prefix}attn_output_norm", width), *_norm(f"{prefix}layer_output_norm", width)]
    return described("bert", fields, words) | {"tokenizer.ggml.token_type_count": 2}, tensors


def _common(layers: int, width: int, heads: int, kv_heads: int, feed_forward: int) -> dict[str, object]:
    return {
        "context_length": CONTEXT_TOKENS,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": feed_forward,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "rope.dimension_count": HEAD,
        **EPSILON,
    }


def _ends(width: int, words: int) -> Iterator[Tensor]:
    yield "token_embd.weight", (width, words), F16
    yield "output_norm.weight", (width,), F32


def _norm(name: str, width: int) -> Iterator[Tensor]:
    yield f"{name}.weight", (width,), F32
    yield f"{name}.bias", (width,), F32


# -- recurrent and hybrid models


def mamba(layers: int = 8, width: int = 512, inner: int = 1024, state: int = 64, words: int = 300) -> Shape:
    """Return a Mamba 2."""
    fields: dict[str, object] = {"context_length": CONTEXT_TOKENS, "embedding_length": width, "block_count": layers}
    fields |= {"feed_forward_length": 0, "attention.head_count": 0, **EPSILON, **_ssm(inner, state)}
    tensors = list(_ends(width, words))
    for index in range(layers):
        tensors += [(f"blk.{index}.attn_norm.weight", (width,), F32), *_mamba(f"blk.{index}.", width, inner, state)]
    return described("mamba2", fields, words), tensors


def _ssm(inner: int, state: int, ranks: int = 16, groups: int = 1) -> dict[str, object]:
    sizes = {"inner_size": inner, "state_size": state, "conv_kernel": 4, "group_count": groups}
    return {f"ssm.{key}": size for key, size in {**sizes, "time_step_rank": ranks}.items()}


def _mamba(prefix: str, width: int, inner: int, state: int) -> Iterator[Tensor]:
    channels = inner + 2 * state
    for name, shape, kind in (
        ("ssm_in.weight", (width, inner + channels + 16), F16),
        ("ssm_conv1d.weight", (4, channels), F32),
        ("ssm_conv1d.bias", (channels,), F32),
        ("ssm_dt.bias", (16,), F32),
        ("ssm_a", (1, 16), F32),
        ("ssm_d", (1, 16), F32),
        ("ssm_norm.weight", (inner, 1), F32),
        ("ssm_out.weight", (inner, width), F16),
    ):
        yield prefix + name, shape, kind


def granite_hybrid(layers: int = 8, width: int = 512, words: int = 8000) -> Shape:
    """Return a Granite 4: every fourth layer has attention, the others are Mamba 2; all have a feed-forward part."""
    heads, kv_heads, inner, state = 8, 2, 2 * width, 64
    attends = [index % 4 == 3 for index in range(layers)]
    fields = _common(layers, width, heads, kv_heads, 4 * width) | _ssm(inner, state)
    fields |= {"attention.head_count_kv": [kv_heads if attention else 0 for attention in attends]}
    tensors = list(_ends(width, words))
    for index, attention in enumerate(attends):
        prefix = f"blk.{index}."
        tensors += _weights(prefix, {"attn_norm": (width,), "ffn_norm": (width,)}, F32)
        tensors += (
            _weights(prefix, _attention(width, heads, kv_heads)) if attention else _mamba(prefix, width, inner, state)
        )
        tensors += _weights(prefix, _feed_forward(width, 4 * width))
    return described("granitehybrid", fields, words), tensors


def nemotron_h(layers: int = 12, width: int = 512, words: int = 8000) -> Shape:
    """Return a Nemotron-H: each layer is Mamba 2, attention, or a feed-forward part that nothing gates."""
    heads, kv_heads, inner, state = 8, 2, 1024, 128
    kinds = [("mamba", "mlp", "mamba", "attention", "mamba", "mlp")[index % 6] for index in range(layers)]
    fields = _common(layers, width, heads, kv_heads, 0) | _ssm(inner, state)
    fields |= {"attention.layer_norm_epsilon": 1e-5}
    fields |= {"attention.head_count_kv": [kv_heads if kind == "attention" else 0 for kind in kinds]}
    fields |= {"feed_forward_length": [8 * width if kind == "mlp" else 0 for kind in kinds]}
    tensors: list[Tensor] = [("output.weight", (width, words), Q8_0), *_ends(width, words)]
    for index, kind in enumerate(kinds):
        prefix = f"blk.{index}."
        tensors += _weights(prefix, {"attn_norm": (width,)}, F32)
        if kind == "mamba":
            tensors += _mamba(prefix, width, inner, state)
        elif kind == "attention":
            tensors += _weights(prefix, _attention(width, heads, kv_heads))
        else:
            tensors += _weights(prefix, {"ffn_up": (width, 8 * width), "ffn_down": (8 * width, width)})
    return described("nemotron_h", fields, words), tensors


def falcon_h1(layers: int = 6, width: int = 512, words: int = 8000) -> Shape:
    """Return a Falcon H1: attention and Mamba 2 side by side in every layer."""
    heads, kv_heads, inner, state = 8, 2, 1024, 64
    fields = _common(layers, width, heads, kv_heads, 4 * width) | _ssm(inner, state)
    tensors = list(_ends(width, words))
    for index in range(layers):
        prefix = f"blk.{index}."
        tensors += [(f"{prefix}ffn_norm", (width,), F32), (f"{prefix}attn_norm.weight", (width,), F32)]
        tensors += _mamba(prefix, width, inner, state)
        tensors += _weights(prefix, _attention(width, heads, kv_heads) | _feed_forward(width, 4 * width))
    return described("falcon-h1", fields, words), tensors


def qwen3next(layers: int = 8, width: int = 512, words: int = 8000, experts: int = 16) -> Shape:
    """Return a Qwen3-Next: every fourth layer has gated attention, the others a gated delta net; experts in all."""
    heads, kv_heads, inner, state, ranks, groups = 8, 2, 256, 64, 16, 8
    keys, values = state * groups, state * ranks
    fields = _common(layers, width, heads, kv_heads, 4 * width) | _ssm(values, state, ranks, groups)
    fields |= {"expert_count": experts, "expert_used_count": 4, "expert_feed_forward_length": inner}
    fields |= {"expert_shared_feed_forward_length": inner, "rope.dimension_sections": [11, 11, 10, 0]}
    tensors = list(_ends(width, words))
    for index in range(layers):
        prefix = f"blk.{index}."
        tensors += _weights(prefix, {"attn_norm": (width,), "post_attention_norm": (width,)}, F32)
        if index % 4 == 3:
            tensors += _weights(prefix, {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}, F32)
            tensors += _weights(prefix, _attention(width, heads, kv_heads) | {"attn_q": (width, 2 * HEAD * heads)})
        else:
            tensors += _delta_net(prefix, width, keys, values, state, ranks)
        tensors += _weights(prefix, {"ffn_gate_inp": (width, experts), "ffn_gate_inp_shexp": (width,)}, F32)
        tensors += _weights(prefix, _experts(width, inner, experts) | _feed_forward(width, inner, "_shexp"))
    return described("qwen3next", fields, words), tensors


def _delta_net(prefix: str, width: int, keys: int, values: int, state: int, ranks: int) -> Iterator[Tensor]:  # noqa: PLR0917 - a shape
    channels = 2 * keys + values
    matrices = {"attn_qkv": (width, channels), "attn_gate": (width, values), "ssm_ba": (width, 2 * ranks)}
    yield from _weights(prefix, matrices | {"ssm_out": (values, width)})
    yield from _weights(prefix, {"ssm_conv1d": (4, channels), "ssm_norm": (state,)}, F32)
    yield from ((f"{prefix}ssm_dt.bias", (ranks,), F32), (f"{prefix}ssm_a", (ranks,), F32))


def lfm2(layers: int = 8, width: int = 512, words: int = 8000) -> Shape:
    """Return an LFM 2: short convolutions, and attention in every fourth layer."""
    heads, kv_heads, taps = width // HEAD, 2, 3
    attends = [index % 4 == 2 for index in range(layers)]
    fields = _common(layers, width, heads, kv_heads, 4 * width) | {"shortconv.l_cache": taps}
    fields |= {"attention.head_count_kv": [kv_heads if attention else 0 for attention in attends]}
    tensors: list[Tensor] = [("token_embd.weight", (width, words), F16), ("token_embd_norm.weight", (width,), F32)]
    for index, attention in enumerate(attends):
        prefix = f"blk.{index}."
        tensors += _weights(prefix, {"attn_norm": (width,), "ffn_norm": (width,)}, F32)
        tensors += _weights(prefix, _feed_forward(width, 4 * width))
        if attention:
            tensors += _weights(prefix, {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}, F32)
            tensors += _weights(prefix, _attention(width, heads, kv_heads))
        else:
            tensors += _weights(prefix, {"shortconv.in_proj": (width, 3 * width), "shortconv.out_proj": (width, width)})
            tensors += _weights(prefix, {"shortconv.conv": (taps, width)}, F32)
    return described("lfm2", fields, words), tensors


def rwkv7(layers: int = 8, width: int = 512, words: int = 8000) -> Shape:
    """Return an RWKV 7, which has no attention at all."""
    rank, inner = 32, 4 * width
    ranks = dict.fromkeys(("decay", "iclr", "value_residual_mix", "gate"), rank)
    fields: dict[str, object] = {"context_length": CONTEXT_TOKENS, "embedding_length": width, "block_count": layers}
    fields |= {"feed_forward_length": inner, "attention.head_count": 0, "wkv.head_size": HEAD, "token_shift_count": 2}
    fields |= {"attention.layer_norm_epsilon": 1e-5, **{f"attention.{key}_lora_rank": n for key, n in ranks.items()}}
    tensors: list[Tensor] = [("token_embd.weight", (width, words), F16), ("output.weight", (width, words), Q8_0)]
    tensors += [*_norm("token_embd_norm", width), *_norm("output_norm", width)]
    for index in range(layers):
        prefix = f"blk.{index}."
        for name in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            tensors += _norm(prefix + name, width)
        vectors = {f"time_mix_{name}": (width,) for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k")}
        vectors |= {"time_mix_lerp_fused": (width, 1, 1, 6), "channel_mix_lerp_k": (width, 1, 1)}  # type: ignore[dict-item]
        tensors += _weights(prefix, vectors, F32)
        matrices = {f"time_mix_{name}": (width, width) for name in ("key", "value", "receptance", "output")}
        for name in ("w", "a", "v", "g"):
            matrices |= {f"time_mix_{name}1": (width, rank), f"time_mix_{name}2": (rank, width)}
        matrices |= {"channel_mix_key": (width, inner), "channel_mix_value": (inner, width)}
        tensors += _weights(prefix, matrices)
    return described("rwkv7", fields, words), tensors


# -- projectors


def projector(layers: int = 8, width: int = 512, out: int = 1024, image: int = 336, patch: int = 14) -> Shape:
    """Return a projector of Janus Pro's kind, which shows a model with embeddings of ``out`` elements pictures."""
    sizes = {"image_size": image, "patch_size": patch, "embedding_length": width, "feed_forward_length": 4 * width}
    sizes |= {"block_count": layers, "attention.head_count": width // HEAD, "projection_dim": out}
    metadata: dict[str, object] = {f"clip.vision.{key}": size for key, size in sizes.items()}
    metadata |= {"general.architecture": "clip", "clip.projector_type": "janus_pro", "clip.has_vision_encoder": True}
    metadata |= {"clip.use_gelu": True, "clip.vision.attention.layer_norm_epsilon": 1e-6}
    metadata |= {f"clip.vision.image_{name}": [0.5, 0.5, 0.5] for name in ("mean", "std")}
    tensors: list[Tensor] = [
        ("v.patch_embd.weight", (patch, patch, 3, width), F16),
        ("v.patch_embd.bias", (width,), F32),
        ("v.position_embd.weight", (width, (image // patch) ** 2), F32),
        *_norm("v.post_ln", width),
    ]
    for index in range(layers):
        prefix = f"v.blk.{index}."
        matrices = {f"attn_{name}": (width, width) for name in ("q", "k", "v", "out")}
        matrices |= {"ffn_up": (width, 4 * width), "ffn_down": (4 * width, width)}
        tensors += [*_norm(f"{prefix}ln1", width), *_norm(f"{prefix}ln2", width), *_weights(prefix, matrices, F16)]
        tensors += _biases(prefix, {name: shape[1:] for name, shape in matrices.items()})
    for name, columns in (("mm.0", width), ("mm.1", out)):
        tensors += [(f"{name}.weight", (columns, out), F16), (f"{name}.bias", (out,), F32)]
    return metadata, tensors
