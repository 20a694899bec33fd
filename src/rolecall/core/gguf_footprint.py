"""What llama.cpp will need for a GGUF.

Every formula names its source in llama.cpp, read at build 11434 in `src/` of its repository.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rolecall.core.footprint import CONTEXT_STEP, CUDA_CONTEXT_MB, Demands, Estimate, whole_mb

HOST_PROCESS_MB = 34
"""What an engine is without a model, libraries included, where host RAM stands for the GPU: see docs/memory.md."""

NODE_BYTES = 1360
"""What llama.cpp keeps in host RAM for each node that a graph may have, over all that it prepares: measured as well."""

PICTURE_BYTES = 8 * 2**20

FITTED_CONTEXT_TOKENS = 4096
"""llama-server without a context size takes less than the model's own if it must, down to this (``--fit-ctx``)."""

CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_0": 22 / 32,
    "q5_1": 24 / 32,
    "q4_0": 18 / 32,
    "q4_1": 20 / 32,
    "iq4_nl": 18 / 32,
}
"""Bytes per element of llama.cpp's cache types: bytes of a block by elements of a block (`ggml-common.h`)."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of a GGUF: bytes of its tensors (``expert_bytes`` of them are experts), elements it caches per token.

    ``windowed`` caches only the sliding window, ``state_bytes`` is what a recurrent layer keeps per slot instead.
    """

    tensor_bytes: int = 0
    expert_bytes: int = 0
    key_width: int = 0
    value_width: int = 0
    windowed: bool = False
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a GGUF says of its memory. Widths are in elements, ``context_tokens`` is the model's own.

    ``input_bytes`` are the tensors that stay in host RAM, ``output_bytes`` those after the last block;
    ``expert_width`` is over the experts that one token uses, ``experts_used`` how many these are. ``words`` is the size
    of the vocabulary, ``vocabulary`` that of the output layer, which encoders have not. ``caveat`` says what of it is
    a guess.
    """

    architecture: str
    layers: tuple[Layer, ...]
    input_bytes: int
    output_bytes: int
    tied_bytes: int = 0
    """The token embeddings, where they are the output matrix as well: then a GPU has a copy of its own."""
    context_tokens: int = 0
    vocabulary: int = 0
    embedding_width: int = 0
    query_width: int = 0
    heads: int = 0
    feed_forward_width: int = 0
    expert_width: int = 0
    experts_used: int = 0
    window_tokens: int = 0
    recurrent_width: int = 0
    is_gated: bool = True
    """Whether feed-forward layers multiply two rows; where they do not, each works in its own place."""
    words: int = 0
    tensors: int = 0
    nodes_per_token: int = 0
    caveat: str = ""

    @property
    def tensor_bytes(self) -> int:
        """All tensors."""
        return self.input_bytes + self.output_bytes + sum(layer.tensor_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True)
class ProjectorFacts:
    """A vision projector: bytes of its tensors, patches and pixels of one picture as it sees it, widths in elements."""

    tensor_bytes: int
    patches: int = 0
    embedding_width: int = 0
    feed_forward_width: int = 0
    pixels: int = 0


@dataclass(frozen=True, slots=True)
class _Cells:
    """Tokens that a llama.cpp cache has room for: ``streams`` times ``each``, of windowed layers ``windowed``."""

    streams: int
    each: int
    windowed: int


def gguf_estimate(facts: GgufFacts, demands: Demands, projector: ProjectorFacts | None = None) -> Estimate:
    """Return what llama.cpp needs for a model: weights, KV cache, compute buffers, projector, a CUDA context per GPU.

    The buffers are those that it prints at the start: "model", "KV", "RS" and "compute buffer size".
    """
    weights = whole_mb(weights_bytes(facts, demands))
    cache, compute = whole_mb(cache_bytes(facts, demands)), whole_mb(compute_bytes(facts, demands)) * demands.gpus
    has_picture = projector and (demands.projector_on_gpu or not demands.on_gpu)
    picture = whole_mb(projector_bytes(projector)) if projector and has_picture else 0
    picture += whole_mb(host_picture_bytes(projector)) if projector and not demands.on_gpu else 0
    host = HOST_PROCESS_MB + whole_mb(host_bytes(facts, demands))
    fixed = CUDA_CONTEXT_MB * demands.gpus if demands.on_gpu else host
    total = weights + cache + compute + picture + fixed
    if demands.context_tokens is None and demands.may_fit and facts.context_tokens > FITTED_CONTEXT_TOKENS:
        fitted = replace(demands, context_tokens=FITTED_CONTEXT_TOKENS)
        least = gguf_estimate(facts, fitted, projector).mb
    else:
        least = total
    cells = _cells(facts, demands)
    why = f"GGUF {facts.architecture}, {cells.streams * cells.each} tokens of {demands.cache_type_k} KV cache"
    whole = cells.streams * cells.each
    return Estimate(weights, cache, compute, picture, fixed, min(least, total), why, facts.caveat, whole, cells.each)


def weights_bytes(facts: GgufFacts, demands: Demands) -> int:
    """Return the tensors that a GPU gets.

    The input layer stays in host RAM; of the n blocks and the output layer, the last ``gpu_layers`` go to the GPU
    (`llama-model.cpp`, `load_tensors`); ``--cpu-moe`` keeps ``ffn_*_exps`` of the first blocks in host RAM. Without
    GPUs it is everything, once.
    """
    if not demands.on_gpu:
        return facts.tensor_bytes
    total = 0
    for index in _gpu_blocks(facts, demands):
        layer = facts.layers[index]
        total += layer.tensor_bytes - (layer.expert_bytes if index < demands.host_expert_layers else 0)
    has_output = demands.gpu_layers is None or demands.gpu_layers > 0
    return total + (facts.output_bytes + facts.tied_bytes if has_output else 0)


def cache_bytes(facts: GgufFacts, demands: Demands) -> int:
    """Return the KV cache and the recurrent state.

    Keys and values per token and layer are ``head_count_kv * key_length`` and ``* value_length`` elements, keys alone
    with MLA (`llama-kv-cache.cpp`). Sliding-window layers have their own, smaller cache (`llama-kv-cache-iswa.cpp`).
    Recurrent layers keep 32-bit states per slot, whatever the context (`llama-memory-recurrent.cpp`).
    """
    if demands.on_gpu and not demands.kv_on_gpu:
        return 0
    cells = _cells(facts, demands)
    total = 0.0
    for index in _gpu_blocks(facts, demands):
        layer = facts.layers[index]
        tokens = cells.streams * (cells.windowed if layer.windowed else cells.each)
        total += tokens * layer.key_width * _element_bytes(demands.cache_type_k)
        total += tokens * layer.value_width * _element_bytes(demands.cache_type_v)
        total += layer.state_bytes * max(1, demands.parallel)
    return math.ceil(total)


def compute_bytes(facts: GgufFacts, demands: Demands) -> int:
    """Return the compute buffer of one GPU: the largest set of activations alive at once in one micro-batch.

    llama.cpp finds it by laying out its worst graph (`llama-context.cpp`, `sched_reserve`), which has one micro-batch,
    the whole cache, and as many outputs as there are slots (for embeddings: as tokens). The terms, fitted to what it
    printed for twelve models from 1B to 80B: 5 embeddings and 3 feed-forward rows of 32-bit numbers per token, one row
    where nothing is gated; with experts, the rows of all that are used, and their outputs where these do not fit into
    freed rows; the logits; the attention's queries and keys; without flash attention the scores, heads by tokens by
    cache. The mask has 16 bits per token and cell, 32 without flash attention. A quantized cache is unpacked to 16 bits
    for the CUDA kernels, one layer at a time (`ggml-cuda/fattn-common.cuh`).
    """
    cells = _cells(facts, demands)
    tokens, outputs = _step(demands, cells)
    base = 5 * facts.embedding_width
    key_width = max((layer.key_width for layer in facts.layers), default=0)
    attention = base + 2 * facts.query_width + 2 * key_width
    if not demands.flash_attention:
        attention += facts.heads * cells.each
    rows = max(
        attention,
        base + _feed_forward_rows(facts),
        base + facts.embedding_width + facts.vocabulary * outputs / tokens,
        base + 2.5 * facts.recurrent_width,
    )
    states = 2.3 * demands.parallel * max((layer.state_bytes for layer in facts.layers), default=0)
    mask = _mask_bytes(facts, demands, cells, tokens)
    return math.ceil(4 * tokens * rows + states + mask + _unpacked_bytes(facts, demands, cells))


def host_bytes(facts: GgufFacts, demands: Demands) -> int:
    """Return what an engine keeps in host RAM beside the buffers above, wherever those are.

    A row of logits and an embedding for each output (`llama-context.cpp`, `output_reserve`): for texts that are
    embedded that is each token of a micro-batch, although nobody asks for its logits. And the nodes of its graphs:
    eight for each tensor and no less than 1024, in some architectures 40 for each token (`graph_max_nodes`). Without
    flash attention the CPU multiplies the scores in 16 bits, in a copy (`ggml_graph_plan`).
    """
    cells = _cells(facts, demands)
    tokens, outputs = _step(demands, cells)
    scores = 0 if demands.flash_attention else 2 * facts.heads * cells.each * tokens
    embedded = facts.embedding_width if demands.scores_all else 0
    if facts.nodes_per_token:
        nodes = max(facts.nodes_per_token * demands.ubatch_tokens, 32 * facts.tensors)
    else:
        nodes = max(1024, 8 * facts.tensors)
    return 4 * outputs * (facts.words + embedded) + NODE_BYTES * nodes + scores


def _step(demands: Demands, cells: _Cells) -> tuple[int, int]:
    """Return the tokens of one micro-batch, and how many of them have an output."""
    tokens = max(1, min(demands.ubatch_tokens, demands.batch_tokens, cells.streams * cells.each))
    return tokens, tokens if demands.scores_all else min(tokens, max(1, demands.parallel))


def _feed_forward_rows(facts: GgufFacts) -> int:
    outputs = facts.experts_used * facts.embedding_width
    experts = 3 * facts.expert_width + (outputs if outputs > 2 * facts.expert_width else 0)
    return max((3 if facts.is_gated else 1) * facts.feed_forward_width, experts)


def _mask_bytes(facts: GgufFacts, demands: Demands, cells: _Cells, tokens: int) -> int:
    kinds = {layer.windowed for layer in facts.layers if layer.key_width}
    seen = sum(cells.windowed if windowed else cells.each for windowed in kinds)
    return seen * tokens * (2 if demands.flash_attention else 4)


def _unpacked_bytes(facts: GgufFacts, demands: Demands, cells: _Cells) -> int:
    if not (demands.on_gpu and demands.flash_attention):
        return 0
    keys = 0 if demands.cache_type_k == "f16" else max((layer.key_width for layer in facts.layers), default=0)
    values = 0 if demands.cache_type_v == "f16" else max((layer.value_width for layer in facts.layers), default=0)
    return 2 * (keys + values) * cells.each * cells.streams


def projector_bytes(facts: ProjectorFacts) -> int:
    """Return a vision projector's tensors and activations.

    Two embeddings and two feed-forward rows of 32-bit numbers per patch: fitted to llama.cpp's "estimated worst-case
    memory usage of mmproj" for pictures of 336 to 1536 pixels, which it exceeds by up to 2 %.
    """
    return facts.tensor_bytes + 8 * facts.patches * (facts.embedding_width + facts.feed_forward_width)


def host_picture_bytes(facts: ProjectorFacts) -> int:
    """Return what one picture takes of host RAM on its way to the projector.

    Five copies of its pixels as three 32-bit numbers, and some megabytes for the decoded file: measured with pictures
    of 0.3 megapixels and encoders of 336 and 560 pixels; of 2 megapixels it is 9 MB more.
    """
    return 60 * facts.pixels + PICTURE_BYTES


def _cells(facts: GgufFacts, demands: Demands) -> _Cells:
    """Contexts are padded, and so is each slot's part of one that is divided (`llama-context.cpp`).

    A sliding-window cache holds the window, of each slot if they share it, and one micro-batch.
    """
    context = _padded(demands.context_tokens or facts.context_tokens)
    slots = max(1, demands.parallel)
    each, streams = (context, 1) if demands.unified else (_padded(context // slots), slots)
    window = facts.window_tokens * (slots if demands.unified else 1) + demands.ubatch_tokens
    return _Cells(streams, each, each if demands.full_window else _padded(min(each, window)))


def _gpu_blocks(facts: GgufFacts, demands: Demands) -> range:
    blocks = len(facts.layers)
    if not demands.on_gpu or demands.gpu_layers is None:
        return range(blocks)
    return range(max(blocks + 1 - max(demands.gpu_layers, 0), 0), blocks)


def _element_bytes(cache_type: str) -> float:
    return CACHE_BYTES.get(cache_type, 2.0)


def _padded(tokens: int) -> int:
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP
