"""What vLLM will need for a folder of safetensors; every formula names its source in vLLM's documentation or issues."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rolecall.core.footprint import CUDA_CONTEXT_MB, Demands, Estimate, whole_mb

CUDA_GRAPHS_MB = 512
"""vLLM's CUDA graphs unless ``--enforce-eager``: 0.1 to 0.6 GiB in the start-up logs of its issues."""

TYPICAL_TOKENS = 2048
"""What a request beside others is counted with in vLLM's cache."""


@dataclass(frozen=True, slots=True)
class SafetensorsFacts:
    """What a folder for vLLM says: ``weight_bytes`` as they will lie on the GPU, the rest from its config.json.

    Layers are counted by what they cache: all tokens, a sliding window, or a fixed state (``state_bytes`` per request,
    over all recurrent layers). ``latent_width`` is what MLA caches per token and layer instead of keys and values.
    """

    weight_bytes: int
    context_tokens: int = 0
    full_layers: int = 0
    windowed_layers: int = 0
    state_bytes: int = 0
    window_tokens: int = 0
    key_value_heads: int = 0
    head_width: int = 0
    latent_width: int = 0
    embedding_width: int = 0
    feed_forward_width: int = 0
    vocabulary: int = 0
    dtype_bytes: int = 2


def vllm_estimate(facts: SafetensorsFacts, demands: Demands) -> Estimate:
    """Return what vLLM needs. It takes whatever it is given: the sum is a sensible share, ``least_mb`` the minimum.

    Sensible is a KV cache for one full context and for `TYPICAL_TOKENS` of every further request, at most a full
    context of each. vLLM refuses to start when its share minus weights, activations and CUDA context leaves less than
    one full context ("Conserving Memory" and `determine_available_memory` in its documentation).
    """
    context = demands.context_tokens or facts.context_tokens
    tokens = context + min(context, TYPICAL_TOKENS) * (max(1, demands.parallel) - 1)
    weights = whole_mb(facts.weight_bytes)
    compute = demands.gpus * (whole_mb(activation_bytes(facts, demands)) + (0 if demands.eager else CUDA_GRAPHS_MB))
    fixed = CUDA_CONTEXT_MB * demands.gpus if demands.on_gpu else 0
    one = whole_mb(request_bytes(facts, demands, context))
    whole = math.ceil(one * tokens / context) if context else one
    why = f"safetensors, KV cache for {tokens} tokens, one full context is {context}"
    least = weights + one + compute + fixed
    return Estimate(weights, whole, compute, 0, fixed, least, why, context_tokens=context, request_tokens=context)


def request_bytes(facts: SafetensorsFacts, demands: Demands, context: int) -> int:
    """Return the KV cache of one request of ``context`` tokens, over all GPUs.

    Per token and layer ``2 * heads * head_size`` elements, with MLA one latent vector; a sliding-window layer keeps
    the window and the tokens of one step (`kv_cache_interface` in vLLM's API documentation). Heads are divided among
    the GPUs of a tensor-parallel group, but each has at least one, and each has the whole latent vector.
    """
    element = demands.cache_bytes or facts.dtype_bytes
    if facts.latent_width:
        width = facts.latent_width * demands.gpus
    else:
        width = 2 * max(facts.key_value_heads, demands.gpus if facts.key_value_heads else 0) * facts.head_width
    windowed = min(context, facts.window_tokens - 1 + demands.batch_tokens)
    tokens = facts.full_layers * context + facts.windowed_layers * max(0, windowed)
    return math.ceil(tokens * width * element + facts.state_bytes)


def activation_bytes(facts: SafetensorsFacts, demands: Demands) -> int:
    """Return the peak of vLLM's profiling run on one GPU.

    It samples for all sequences at once: ten 32-bit numbers per sequence and token of the vocabulary, which gives the
    1.26 GiB for Llama 3 8B and 1.39 GiB for Qwen2.5 1.5B of its start-up logs (pull request 10511, issue 12529; 256
    sequences). A step of the model itself holds two feed-forward rows and four embeddings per token.
    """
    sampling = 40 * demands.parallel * facts.vocabulary
    width = 2 * facts.feed_forward_width // demands.gpus + 4 * facts.embedding_width
    return max(sampling, demands.batch_tokens * width * facts.dtype_bytes)
