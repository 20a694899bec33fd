"""Engines' own words for a lack of memory are recognised, and nobody else's."""

from __future__ import annotations

import pytest

from rolecall.runtime.out_of_memory import ran_out_of_memory

LLAMA = "0.00.236.756 E "
VLLM = "(EngineCore_DP0 pid=8884) ERROR 10-31 15:15:48 [core.py:708] "
TOO_LONG = (
    "ValueError: To serve at least one request with the {}'s max seq len (262144), (24.0 GiB KV cache is needed, which "
    "is larger than the available KV cache memory (3.18 GiB). Based on the available memory, the estimated maximum"
)


@pytest.mark.parametrize(
    "line",
    [
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 45.0 MiB on device 0: cudaMalloc failed: out of memory",
        "alloc_tensor_range: failed to allocate CUDA0 buffer of size 151851674624",
        "ggml_gallocr_reserve_n_impl: failed to allocate CUDA1 buffer of size 54262464512",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "llama_model_load: error loading model: unable to allocate ROCm0 buffer",
        "CUDA error: out of memory",
        "ggml_vulkan: Device memory allocation of size 118497280 failed.",
        "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "ggml_metal_buffer_init: error: failed to allocate buffer, size =  8192.00 MiB",
        "error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "ggml_aligned_malloc: insufficient memory (attempted to allocate 2000.00 MB)",
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 2097152000",
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
        "llama_kv_cache_init: failed to allocate buffer for kv cache",
        "graph_reserve: failed to allocate compute buffers",
        "terminate called after throwing an instance of 'std::bad_alloc'",
    ],
)
@pytest.mark.parametrize("prefix", ["", LLAMA])
def test_words_of_llama_cpp(prefix: str, line: str) -> None:
    """Each backend's failed allocation counts, with and without the prefix of newer builds."""
    assert ran_out_of_memory(["llama_context: n_ctx = 4096", prefix + line, "main: exiting due to model loading error"])


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 786.00 MiB. GPU 0 has a total capacity of",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try",
        "RuntimeError: CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you",
        "ValueError: Free memory on device cuda:0 (2.6/121.6 GiB) on startup is less than desired GPU",
        "ValueError: Free memory on device (0.49/79.32 GiB) on startup is less than desired GPU memory",
        "ValueError: Available memory on node 0 (1.2/7.8 GiB) on startup is less than desired CPU memory utilization",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when",
        TOO_LONG.format("models"),
        TOO_LONG.format("model"),
    ],
)
@pytest.mark.parametrize(
    "prefix", ["", VLLM, "(EngineCore pid=316) ", "(VllmWorker rank=1 pid=2978) ERROR 03-19 07:27:53 [m.py:375] "]
)
def test_words_of_vllm(prefix: str, line: str) -> None:
    """Counted from each of its processes, though the traceback of another one comes after it."""
    after = "(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above."
    assert ran_out_of_memory([prefix + line, after])


@pytest.mark.parametrize(
    "line",
    [
        # what clients say, as engines log it
        "INFO 10-31 15:15:48 [logger.py:43] Received request chatcmpl-1: prompt: 'CUDA error: out of memory'",
        'srv  log_server_r: request:  {"prompt":"torch.OutOfMemoryError: CUDA out of memory"}',
        "slot process_toke: id 0 | next token: 42 'ValueError: No available memory for the cache blocks.'",
        "0.01.000.000 I srv  generated: ggml_vulkan: Device memory allocation of size 1 failed.",
        # what is no lack of memory
        "ggml_cuda_host_malloc: failed to allocate 512.00 MiB of pinned memory: out of memory",
        "CUDA error: an illegal memory access was encountered",
        "llama_model_load: error loading model: tensor 'output.weight' data is not within the file bounds",
        "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ],
)
def test_other_words(line: str) -> None:
    """Neither what a client put into the log nor another failure counts."""
    assert not ran_out_of_memory([line])


def test_a_waking_without_room() -> None:
    """It is in the answer of vLLM, which we report."""
    answer = '{"error":{"message":"Call to wake_up method failed: CUDA Error: out of memory at <path>:163"}}'
    assert ran_out_of_memory([f"it could not be woken: HTTP 500: {answer}"])
    assert not ran_out_of_memory(["it could not be woken: HTTP 500: something else"])


def test_an_allocation_that_was_made_good() -> None:
    """llama.cpp that goes on with smaller buffers did not lack memory when it crashes later for another reason."""
    failed = LLAMA + "ggml_gallocr_reserve_n_impl: failed to allocate CUDA1 buffer of size 54262464512"
    helped = "1.06.520.107 W sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism"
    assert not ran_out_of_memory([failed, LLAMA + "graph_reserve: failed to allocate compute buffers", helped])
    assert ran_out_of_memory([failed, helped, failed])
