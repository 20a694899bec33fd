"""What the header of a GGUF says of the memory that llama.cpp will need for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rolecall.core.gguf_footprint import GgufFacts, Layer, ProjectorFacts
from rolecall.runtime.fields import MOST, Fields, checked, ratio
from rolecall.runtime.gguf_architectures import NODES_PER_TOKEN, caveat
from rolecall.runtime.gguf_header import GgufHeader

_ENCODERS = frozenset(
    {
        *("bert", "modern-bert", "neo-bert", "eurobert", "gemma-embedding"),
        *("nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3"),
    }
)
_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_WITHOUT_CACHE = _ENCODERS | _RECURRENT | {"wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1", "clef"}
_BOTH = frozenset({"falcon-h1"})
"""Every layer has attention and a recurrent state."""
_INTERVALS = frozenset({"qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01"})
"""Where every fourth layer has attention and the others are recurrent, if the file says nothing else."""
_INPUTS = frozenset({"token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight"})
_EXPERTS = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps")
_FAR = 16
"""So many times may metadata and tensors differ: llama.cpp is stricter, and says so itself."""
_DEFAULT_WINDOWS = {"gemma2": 4096, "llama4": 8192}
_DENSE_FIRST = frozenset({"cohere2moe", "laguna", "smallthinker"})
_PERIODS = {
    "gemma2": 2,
    "gpt-oss": 2,
    "gemma3n": 5,
    "gemma3": 6,
    "plamo3": 8,
    **dict.fromkeys(("llama4", "exaone4", "exaone-moe", "cohere2", "olmo2", "afmoe", "mellum", "muse-glimmer"), 4),
    **dict.fromkeys(_DENSE_FIRST, 4),
}
"""One of so many layers has no sliding window, if the file says nothing else."""


def gguf_facts(header: GgufHeader) -> GgufFacts:
    """Return what llama.cpp reads from the metadata to lay out its memory; raises ``ValueError`` for nonsense.

    Nonsense is also what its own tensors belie: layers of which there is nothing, attention without heads, other sizes.
    Source: ``load_hparams`` and ``create_memory`` in llama.cpp's `llama-model.cpp`, ``load_arch_hparams`` in
    `models/*.cpp`, and the sizes in `llama-hparams.cpp`.
    """
    model = _Architecture(header.metadata)
    if model.name == "clip":
        raise ValueError("it is a projector, which is loaded with a model and not for itself")
    shape, embedding_bytes = header.tensors.get("token_embd.weight", ((), 0))
    is_encoder = model.name in _ENCODERS
    is_tied = "output.weight" not in header.tensors and not is_encoder
    blocks, input_bytes, output_bytes = _tensor_bytes(header, model.layers)
    has_dense = any(name.endswith(".ffn_down.weight") for name in header.tensors)
    feed_forward, used = model.most("feed_forward_length"), model.most("expert_used_count")
    layers = tuple(_layers(model, blocks))
    _check(header, model, layers)
    return GgufFacts(
        architecture=model.name,
        layers=layers,
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        tied_bytes=embedding_bytes if is_tied else 0,
        context_tokens=model.number("context_length"),
        vocabulary=min(shape[-1], MOST) if shape and not is_encoder else 0,
        embedding_width=model.width,
        query_width=model.most_heads * model.head_width("attention.key_length"),
        heads=model.most_heads,
        feed_forward_width=feed_forward if has_dense else 0,
        expert_width=used * (model.most("expert_feed_forward_length") or ratio(feed_forward, used)),
        experts_used=used,
        window_tokens=model.window,
        recurrent_width=_recurrent_width(model),
        is_gated=_is_gated(header, feed_forward),
        words=min(shape[-1], MOST) if shape else 0,
        tensors=len(header.tensors),
        nodes_per_token=NODES_PER_TOKEN.get(model.name, 0),
        caveat=caveat(model.name),
    )


def _check(header: GgufHeader, model: _Architecture, layers: Sequence[Layer]) -> None:
    """Raise ``ValueError`` where the tensors belie the metadata."""
    there = sum(layer.tensor_bytes > 0 for layer in layers)
    if there < model.layers - model.number("nextn_predict_layers"):
        raise ValueError(f"it claims {model.layers} layers, and has tensors of {there}")
    _compare(header, "token_embd.weight", 0, "embedding_length", model.width)
    for index, layer in enumerate(layers[: _caching(model)]):
        if not model.heads[index] and (name := _attention(header, index)) is not None:
            raise ValueError(f"attention.head_count is 0, and there is attention ({name})")
        if not layer.state_bytes:
            _compare(header, f"blk.{index}.attn_k.weight", -1, "attention.head_count_kv", layer.key_width)


def _attention(header: GgufHeader, index: int) -> str | None:
    """Return the name of a tensor by which a layer has heads."""
    names = (f"blk.{index}.attn_{part}.weight" for part in ("q", "k", "qkv"))
    return next((name for name in names if name in header.tensors), None)


def _compare(header: GgufHeader, name: str, axis: int, key: str, claimed: int) -> None:
    shape, _ = header.tensors.get(name, ((), 0))
    if shape and not shape[axis] <= _FAR * claimed <= _FAR * _FAR * shape[axis]:
        raise ValueError(f"{key} and others mean {claimed} elements, its tensor {name} has {shape[axis]}")


def _is_gated(header: GgufHeader, feed_forward: int) -> bool:
    """Whether some feed-forward layer has a gate, be it in one tensor with the rows that it gates."""
    names = header.tensors
    if any(".ffn_gate." in name or ".ffn_gate_exps." in name or ".ffn_gate_up_exps." in name for name in names):
        return True
    return any(shape[-1] > feed_forward for name, (shape, _) in names.items() if shape and ".ffn_up." in name)


def _recurrent_width(model: _Architecture) -> int:
    """Elements per token that a recurrent layer has beside the embeddings; RWKV mixes six times the embedding.

    Of Mamba and of delta nets it is the inner row twice, and half of what is keyed by the state: fitted.
    """
    if model.number("wkv.head_size"):
        return 6 * model.width
    return 2 * model.number("ssm.inner_size") + model.number("ssm.group_count") * model.number("ssm.state_size") // 2


def projector_facts(header: GgufHeader) -> ProjectorFacts:
    """Return what a vision projector says; raises ``ValueError`` for nonsense."""
    fields = Fields(header.metadata, "clip.vision.")
    return ProjectorFacts(
        tensor_bytes=sum(size for _, size in header.tensors.values()),
        patches=ratio(fields.number("image_size"), fields.number("patch_size")) ** 2,
        embedding_width=fields.number("embedding_length"),
        feed_forward_width=fields.number("feed_forward_length"),
        pixels=fields.number("image_size") ** 2,
    )


class _Architecture(Fields):
    """Metadata of one architecture, with one value per layer where a file may have a list."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        name = metadata.get("general.architecture")
        if not isinstance(name, str):
            raise ValueError("it names no architecture")  # noqa: TRY004 - the file's fault, not the caller's
        super().__init__(metadata, f"{name}.")
        self.name = name
        self.layers = self.layer_count("block_count")
        self.width = self.number("embedding_length")
        self.heads = self.each("attention.head_count")
        self.most_heads = max(self.heads, default=0)
        self.window = self.number("attention.sliding_window", _DEFAULT_WINDOWS.get(name, 0))

    def each(self, key: str, default: Sequence[int] | None = None) -> Sequence[int]:
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, tuple):
            return [self.number(key)] * self.layers
        values = [checked(key, one) for one in value[: self.layers]]
        return values + [0] * (self.layers - len(values))

    def flags(self, key: str) -> Sequence[bool] | None:
        """None where the file has no list."""
        value = self.raw(key)
        if not isinstance(value, tuple):
            return None
        return [bool(flag) for flag in value[: self.layers]] + [False] * (self.layers - len(value))

    def most(self, key: str) -> int:
        return max(self.each(key), default=0)

    def head_width(self, key: str) -> int:
        return self.number(key, ratio(self.width, self.most_heads))


def _tensor_bytes(header: GgufHeader, count: int) -> tuple[list[tuple[int, int]], int, int]:
    """Return for each block all bytes and those of its experts, then those of the input and of the output layer."""
    blocks = [[0, 0] for _ in range(count)]
    ends = [0, 0]
    for name, (_, size) in header.tensors.items():
        block = re.match(r"blk\.(\d{1,5})\.", name)
        if block is None or int(block[1]) >= count:
            ends[name not in _INPUTS] += size
            continue
        blocks[int(block[1])][0] += size
        blocks[int(block[1])][1] += size if _EXPERTS.search(name) else 0
    return [(total, experts) for total, experts in blocks], ends[0], ends[1]


def _layers(model: _Architecture, blocks: Sequence[tuple[int, int]]) -> Iterable[Layer]:
    kv_heads = model.each("attention.head_count_kv", model.heads)
    windowed, recurrent, caching = _windowed(model), _recurrent(model, kv_heads), _caching(model)
    state = 4 * _state_elements(model)
    key, value = model.head_width("attention.key_length"), model.head_width("attention.value_length")
    window_key = model.number("attention.key_length_swa", key)
    window_value = model.number("attention.value_length_swa", value)
    is_latent = bool(model.number("attention.key_length_mla") and model.number("attention.value_length_mla"))
    indexer = model.number("attention.indexer.key_length")
    for index, (total, experts) in enumerate(blocks):
        has_cache = index < caching and (not recurrent[index] or model.name in _BOTH)
        heads = kv_heads[index] if has_cache else 0
        k, v = (window_key, window_value) if windowed[index] else (key, value)
        yield Layer(
            tensor_bytes=total,
            expert_bytes=experts,
            key_width=heads * k + indexer if heads else 0,
            value_width=0 if is_latent else heads * v,
            windowed=windowed[index],
            state_bytes=state if recurrent[index] else 0,
        )


def _caching(model: _Architecture) -> int:
    """How many of the first layers have a KV cache of their own."""
    if model.name in _WITHOUT_CACHE:
        return 0
    trunk = model.layers - min(model.layers, model.number("nextn_predict_layers"))
    shared = model.number("attention.shared_kv_layers", max(0, model.layers - 20) if model.name == "gemma3n" else 0)
    return min(trunk or model.layers, max(0, model.layers - shared))


def _windowed(model: _Architecture) -> Sequence[bool]:
    if not model.window:
        return [False] * model.layers
    if (listed := model.flags("attention.sliding_window_pattern")) is not None:
        return listed
    period = model.number("attention.sliding_window_pattern", _PERIODS.get(model.name, 0))
    dense = 0 if model.name in _DENSE_FIRST else period - 1
    return [bool(period) and index % period != dense for index in range(model.layers)]


def _recurrent(model: _Architecture, kv_heads: Sequence[int]) -> Sequence[bool]:
    if model.name in _RECURRENT | _BOTH:
        return [True] * model.layers
    if (listed := model.flags("attention.recurrent_layers")) is not None:
        return listed
    if model.name in _INTERVALS:
        interval = model.number("full_attention_interval", 4) or 1
        trunk = model.layers - model.number("nextn_predict_layers")
        return [index < trunk and (index + 1) % interval != 0 for index in range(model.layers)]
    is_mixed = model.name.startswith("nemotron_h")  # there, a layer without attention may be a feed-forward one
    feed_forward = model.each("feed_forward_length") if is_mixed else [0] * model.layers
    return [not heads and not rows for heads, rows in zip(kv_heads, feed_forward, strict=True)]


def _state_elements(model: _Architecture) -> int:
    """Elements of a recurrent layer's state for one slot: ``n_embd_r`` and ``n_embd_s`` of `llama-hparams.cpp`."""
    conv = model.number("ssm.conv_kernel")
    if wkv := model.number("wkv.head_size"):
        return model.width * (model.number("token_shift_count", 2) + wkv)
    if short := model.number("shortconv.l_cache"):
        return model.width * (short - 1)
    if kda := model.number("kda.head_dim"):
        return (3 * (conv - 1 if conv else 3) + kda) * kda * model.most_heads
    inner, state = model.number("ssm.inner_size"), model.number("ssm.state_size")
    return max(0, conv - 1) * (inner + 2 * model.number("ssm.group_count") * state) + inner * state
