"""Whether an engine ended because memory did not suffice: the words in which engines say so.

Each pattern is bound to the start of a line, behind what a logger puts there. A prompt or an answer that an engine
logs stands further right or inside JSON, so nobody's words can pass for the engine's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LOGGER = re.compile(
    r"(?:\(\w+[^()]* pid=\d+\) *"  # vLLM, which process: (EngineCore_DP0 pid=8884)
    r"|[A-Z]+ \d\d-\d\d [\d:]+ \[[\w./]+:\d+\] *"  # vLLM's logger: ERROR 10-31 15:15:48 [core.py:708]
    r"|\d+(?:\.\d{2,3}){3} [A-Z] +)*"  # llama.cpp's since 2026: 1.06.520.077 E
)

_WORDS = (
    # llama.cpp, ggml-cuda.cu: weights, KV cache, compute buffers; HIP is the same code. ggml-org/llama.cpp#20431
    r"ggml_backend_cuda_buffer_type_alloc_buffer: allocating [\d.]+ MiB on device \d+: \w+ failed: out of memory",
    # llama.cpp, ggml-cuda.cu: while it computes. ggml-org/llama.cpp#13085
    r"(?:CUDA|ROCm) error: out of memory$",
    # llama.cpp, ggml-vulkan.cpp. ggml-org/llama.cpp#15256 and #29270
    r"ggml_vulkan: (?:Device memory allocation of size \d+ failed|vk::Device::allocateMemory: ErrorOutOf\w+Memory)",
    # llama.cpp, ggml-metal: a buffer, and a command buffer that found no room. ggml-org/llama.cpp#9701
    r"ggml_(?:backend_)?metal_\w+: error: failed to allocate buffer, size =",
    r"error: Insufficient Memory \(\d+:kIOGPUCommandBufferCallbackErrorOutOfMemory\)",
    # llama.cpp, ggml's allocators and llama-model.cpp, on any device. ollama/ollama#12634; seen with xllamacpp
    r"ggml_aligned_malloc: insufficient memory \(attempted to allocate",
    r"(?:ggml_\w+|alloc_tensor_range): failed to allocate (?:\w+ )?buffer of size \d+",
    r"llama_model_load: error loading model: unable to allocate \w+ buffer",
    # llama.cpp, llama-kv-cache.cpp and llama-context.cpp. Seen with xllamacpp
    r"(?:llama_init_from_model: failed to initialize the context|llama_kv_cache\w*): failed to allocate buffer for ",
    r"(?:llama_init_from_model: failed to initialize the context|graph_reserve): failed to allocate compute ",
    # PyTorch's allocators (torch.cuda.OutOfMemoryError in older ones). vllm-project/vllm#27508, tt-metal#30225
    r"torch\.(?:cuda\.)?OutOfMemoryError: ",
    r"RuntimeError: CUDA error: out of memory",
    r"RuntimeError: \[enforce fail at \w+\.cpp:\d+\] .*DefaultCPUAllocator: can't allocate memory",
    # vLLM, gpu_model_runner.py: as it warms up. vllm-project/vllm#17939
    r"RuntimeError: CUDA out of memory occurred when warming up ",
    # vLLM, cumem_allocator.cpp: as it wakes. vllm-project/vllm#12981 and #13941
    r"(?:RuntimeError: )?CUDA Error: out of memory at ",
    # what we say ourselves of an answer to /wake_up. llm-d-incubation/llm-d-fast-model-actuation#746
    r"it could not be woken: HTTP 500: .*Call to wake_up method failed: CUDA Error: out of memory",
    # vLLM 0.32, worker/utils.py and cpu_worker.py, then kv_cache_utils.py. vllm-project/vllm#20305, #2248 and #34076
    r"ValueError: (?:Free memory on device|Available memory on node) .* is less than ",
    r"ValueError: No available memory for the cache blocks\.",
    r"ValueError: To serve at least one request with the models?'s max seq len .* is larger than the available ",
    # the C++ library, and Python
    r"terminate called after throwing an instance of 'std::bad_alloc'",
    r"MemoryError(?::|$)",
)
_OUT_OF_MEMORY = re.compile("|".join(_WORDS))
_RECOVERED = re.compile(r"\w+: compute buffer allocation failed, retrying without ")
"""llama.cpp helps itself and goes on. ggml-org/llama.cpp#26297"""


def ran_out_of_memory(lines: Iterable[str]) -> bool:
    """Whether an engine's last lines say that it lacked memory, on a GPU or in the host, and did not recover."""
    lacking = False
    for line in lines:
        start = _end_of_prefix(line)
        if _OUT_OF_MEMORY.match(line, start):
            lacking = True
        elif _RECOVERED.match(line, start):
            lacking = False
    return lacking


def _end_of_prefix(line: str) -> int:
    prefix = _LOGGER.match(line)
    return prefix.end() if prefix else 0
