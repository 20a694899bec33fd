"""How much memory a model will need: what is asked for, and what comes out.

The formulas are in `gguf_footprint` for llama.cpp and in `vllm_footprint`. The terms that no source gives were fitted
to the sizes that the engines themselves print; what is uncertain is rounded up, for too little ends in a failed start
and too much only in an empty corner of a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MB = 2**20

CUDA_CONTEXT_MB = 512
"""What a process holds on a GPU before it stores anything: 107 MiB on a small GPU, 555 on a large one, by its number
of multiprocessors (measured in llama.cpp's pull requests 20595 and 23604)."""

CONTEXT_STEP = 256
"""llama.cpp pads a context to so many tokens (``llama-context.cpp``)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model needs over all its GPUs, in MB and by part; ``why`` says from what that was computed.

    ``least_mb`` is the least with which it can start: one full context in vLLM, a fitted one in llama.cpp. ``caveat``
    says what of it is a guess, for files of which not all is known here. ``context_tokens`` is for how many tokens of
    context it holds, of which one request may use ``request_tokens``.
    """

    weights_mb: int
    kv_cache_mb: int
    compute_mb: int
    projector_mb: int
    fixed_mb: int
    least_mb: int
    why: str
    caveat: str = ""
    context_tokens: int = 0
    request_tokens: int = 0

    @property
    def mb(self) -> int:
        """The sum of the parts."""
        return self.weights_mb + self.kv_cache_mb + self.compute_mb + self.projector_mb + self.fixed_mb


@dataclass(frozen=True, slots=True)
class Demands:
    """How a model is to be served. ``context_tokens`` None is the model's own; ``gpus`` share the work.

    ``unified``: the context is one pool for all ``parallel`` slots, otherwise it is divided among them.
    ``gpu_layers`` None are all; of the first ``host_expert_layers`` the experts stay in host RAM. ``on_gpu`` False is a
    machine without GPUs. ``scores_all`` asks for the output of every token (embeddings), not only of the last.
    """

    context_tokens: int | None = None
    parallel: int = 1
    unified: bool = True
    batch_tokens: int = 2048
    ubatch_tokens: int = 512
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: bool = True
    full_window: bool = False
    gpu_layers: int | None = None
    host_expert_layers: int = 0
    kv_on_gpu: bool = True
    projector_on_gpu: bool = True
    scores_all: bool = False
    may_fit: bool = True
    """Whether the engine takes a smaller context rather than fail."""
    eager: bool = False
    cache_bytes: float | None = None
    """vLLM: bytes of an element of the KV cache; None for those of the model's dtype."""
    gpus: int = 1
    on_gpu: bool = True


def whole_mb(amount: float) -> int:
    """Return an amount of bytes in MB, rounded up."""
    return math.ceil(amount / MB)
