"""The formulas for memory, with figures that were worked out by hand or printed by an engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.footprint import CUDA_CONTEXT_MB, MB, Demands
from rolecall.core.gguf_footprint import (
    HOST_PROCESS_MB,
    NODE_BYTES,
    GgufFacts,
    Layer,
    ProjectorFacts,
    cache_bytes,
    compute_bytes,
    gguf_estimate,
    host_bytes,
    host_picture_bytes,
    projector_bytes,
    weights_bytes,
)
from rolecall.core.vllm_footprint import (
    CUDA_GRAPHS_MB,
    SafetensorsFacts,
    activation_bytes,
    request_bytes,
    vllm_estimate,
)


def llama_8b(**changes: object) -> GgufFacts:
    """Return Llama 3 8B in Q4_K: 32 layers, 32 heads of which 8 are cached, 128 elements each."""
    facts = GgufFacts(
        architecture="llama",
        layers=(Layer(130 * MB, 0, 1024, 1024),) * 32,
        input_bytes=280 * MB,
        output_bytes=410 * MB,
        context_tokens=131072,
        vocabulary=128256,
        embedding_width=4096,
        query_width=4096,
        heads=32,
        feed_forward_width=14336,
    )
    return replace(facts, **changes)  # type: ignore[arg-type]


SERVER = Demands(context_tokens=8192, parallel=4)


# -- llama.cpp: the KV cache


@pytest.mark.parametrize(
    ("demands", "mb"),
    [
        (SERVER, 1024),
        (replace(SERVER, unified=False), 1024),
        (replace(SERVER, context_tokens=16384, cache_type_k="q8_0", cache_type_v="q4_0"), 832),
        (replace(SERVER, context_tokens=8000), 1024),
        (replace(SERVER, context_tokens=1000, parallel=3, unified=False), 192),
        (replace(SERVER, context_tokens=None), 16384),
        (replace(SERVER, kv_on_gpu=False), 0),
        (replace(SERVER, gpu_layers=17), 512),
    ],
    ids=[
        "unified",
        "divided",
        "quantized",
        "padded",
        "padded by slot",
        "model's own",
        "in host RAM",
        "16 of 32 layers",
    ],
)
def test_the_kv_cache_of_an_8b_model(demands: Demands, mb: int) -> None:
    """As llama.cpp prints it ("KV buffer size")."""
    assert cache_bytes(llama_8b(), demands) == mb * MB


@pytest.mark.parametrize(
    ("demands", "mb"),
    [
        (SERVER, 2512),
        (replace(SERVER, context_tokens=32768), 4432),
        (replace(SERVER, ubatch_tokens=128), 2408),
        (replace(SERVER, unified=False), 3136),
        (replace(SERVER, full_window=True), 3968),
    ],
)
def test_sliding_windows_keep_less(demands: Demands, mb: int) -> None:
    """Gemma 3 27B: 52 of 62 layers keep 1024 tokens of each slot and a micro-batch (printed by llama.cpp)."""
    layers = tuple(Layer(1, 0, 2048, 2048, windowed=index % 6 != 5) for index in range(62))
    assert cache_bytes(llama_8b(layers=layers, window_tokens=1024), demands) == mb * MB


def test_latent_attention_caches_keys_alone() -> None:
    """DeepSeek V2 Lite: 512 + 64 elements per token in each of 27 layers (printed by llama.cpp)."""
    assert cache_bytes(llama_8b(layers=(Layer(1, 0, 576, 0),) * 27), SERVER) == 243 * MB


@pytest.mark.parametrize("context_tokens", [512, 8192, 131072])
def test_recurrent_layers_keep_a_state_per_slot(context_tokens: int) -> None:
    """Mamba 2 2.7B, whatever the context (printed by llama.cpp)."""
    layers = (Layer(1, state_bytes=4 * (3 * 5376 + 128 * 5120)),) * 64
    demands = replace(SERVER, context_tokens=context_tokens)
    assert cache_bytes(llama_8b(layers=layers), demands) == 655.75 * MB


# -- llama.cpp: weights


def test_the_input_layer_stays_in_host_ram() -> None:
    """Unless host RAM is all there is; a tied output matrix is a copy of its own on the GPU."""
    facts = llama_8b()
    assert weights_bytes(facts, SERVER) == (32 * 130 + 410) * MB
    assert weights_bytes(replace(facts, output_bytes=0, tied_bytes=280 * MB), SERVER) == (32 * 130 + 280) * MB
    assert weights_bytes(facts, replace(SERVER, on_gpu=False)) == (32 * 130 + 410 + 280) * MB


@pytest.mark.parametrize(("gpu_layers", "mb"), [(0, 0), (1, 410), (2, 540), (33, 4570), (99, 4570), (None, 4570)])
def test_the_last_layers_go_to_the_gpu(gpu_layers: int | None, mb: int) -> None:
    """``-ngl`` counts the output layer first."""
    assert weights_bytes(llama_8b(), replace(SERVER, gpu_layers=gpu_layers)) == mb * MB


@pytest.mark.parametrize(("on_host", "mb"), [(0, 4570), (10, 4570 - 1000), (4096, 4570 - 3200)])
def test_experts_may_stay_in_host_ram(on_host: int, mb: int) -> None:
    """``--n-cpu-moe`` counts from the first layer, ``--cpu-moe`` means all."""
    facts = llama_8b(layers=(Layer(130 * MB, 100 * MB, 1024, 1024),) * 32)
    assert weights_bytes(facts, replace(SERVER, host_expert_layers=on_host)) == mb * MB


# -- llama.cpp: compute buffers


@pytest.mark.parametrize(
    ("facts", "demands", "printed_mb"),
    [
        (llama_8b(), SERVER, 132.02),
        (llama_8b(), replace(SERVER, context_tokens=32768), 156.02),
        (llama_8b(), replace(SERVER, ubatch_tokens=2048), 528.07),
        (llama_8b(), replace(SERVER, batch_tokens=128), 33.0),
        (llama_8b(), replace(SERVER, unified=False), 126.02),
        (llama_8b(), replace(SERVER, flash_attention=False), 580.01),
        (llama_8b(), replace(SERVER, scores_all=True), 298.52),
        (llama_8b(feed_forward_width=0, expert_width=2 * 14336, experts_used=2), SERVER, 216.02),
        (
            llama_8b(embedding_width=2048, feed_forward_width=0, expert_width=8 * 768, experts_used=8),
            SERVER,
            96.02,
        ),
    ],
    ids=[
        *("8B", "long context", "large micro-batch", "small batch", "divided", "no flash attention", "embeddings"),
        *("Mixtral", "Qwen3 30B-A3B"),
    ],
)
def test_compute_buffers_are_those_that_llama_cpp_prints(facts: GgufFacts, demands: Demands, printed_mb: float) -> None:
    """Within 3 %, and hardly ever less."""
    computed_mb = compute_bytes(facts, demands) / MB
    assert 0.995 * printed_mb < computed_mb < 1.03 * printed_mb


def test_an_ungated_layer_works_in_its_own_place() -> None:
    """A BERT 16 times as wide inside: 5 embeddings and one row for each of 512 tokens, and a mask (printed)."""
    encoder = llama_8b(
        layers=(Layer(1),), embedding_width=384, query_width=384, vocabulary=0, feed_forward_width=6144, is_gated=False
    )
    asked = Demands(context_tokens=512, scores_all=True)
    assert compute_bytes(encoder, asked) / MB == pytest.approx(16.26 - 0.5, abs=0.05)
    assert compute_bytes(replace(encoder, is_gated=True), asked) > 2 * compute_bytes(encoder, asked)


def test_host_ram_holds_outputs_and_graphs() -> None:
    """A row of logits for each output, which are all tokens of texts that are embedded; nodes by tensors or tokens."""
    facts = llama_8b(words=128256, tensors=291)
    nodes = NODE_BYTES * 8 * 291
    assert host_bytes(facts, SERVER) == 4 * 4 * 128256 + nodes
    assert host_bytes(facts, replace(SERVER, scores_all=True)) == 4 * 512 * (128256 + 4096) + nodes
    assert host_bytes(replace(facts, words=0, nodes_per_token=40), SERVER) == NODE_BYTES * 40 * 512
    assert host_bytes(replace(facts, words=0, tensors=1), SERVER) == NODE_BYTES * 1024
    scores = replace(SERVER, flash_attention=False)
    assert host_bytes(facts, scores) - host_bytes(facts, SERVER) == 2 * 32 * 8192 * 512


def test_a_quantized_cache_is_unpacked_for_the_gpu() -> None:
    """One layer at a time, to 16 bits: 8192 tokens of 2 x 1024 elements are 32 MB."""
    quantized = replace(SERVER, cache_type_k="q8_0", cache_type_v="q8_0")
    assert compute_bytes(llama_8b(), quantized) - compute_bytes(llama_8b(), SERVER) == 32 * MB


@pytest.mark.parametrize(
    ("facts", "estimated_mb"),
    [
        (ProjectorFacts(int(845.9 * MB), 4096, 1152, 4304), 1009.9),
        (ProjectorFacts(int(620.7 * MB), 576, 1024, 4096), 643.2),
        (ProjectorFacts(int(627.8 * MB), 2304, 1024, 4096), 708.8),
    ],
)
def test_a_projector_needs_what_llama_cpp_estimates(facts: ProjectorFacts, estimated_mb: float) -> None:
    """Its own "estimated worst-case memory usage of mmproj", or up to 2 % more."""
    assert 0.999 * estimated_mb < projector_bytes(facts) / MB < 1.02 * estimated_mb


def test_a_picture_passes_through_host_ram() -> None:
    """336 by 336 pixels five times, and the file that was decoded."""
    assert host_picture_bytes(ProjectorFacts(0, pixels=336**2)) == 5 * 12 * 336**2 + 8 * MB


# -- llama.cpp: the whole


def test_an_estimate_has_parts() -> None:
    """They make the sum, and the words say from what."""
    estimate = gguf_estimate(llama_8b(), SERVER, ProjectorFacts(600 * MB))
    parts = (estimate.weights_mb, estimate.kv_cache_mb, estimate.compute_mb, estimate.projector_mb, estimate.fixed_mb)
    assert parts == (4570, 1024, 132, 600, CUDA_CONTEXT_MB)
    assert estimate.mb == estimate.least_mb == sum(parts)
    assert estimate.why == "GGUF llama, 8192 tokens of f16 KV cache"
    assert gguf_estimate(llama_8b(caveat="a guess"), SERVER).caveat == "a guess"


def test_without_gpus_host_ram_is_counted() -> None:
    """All tensors, no CUDA context, and the projector wherever it was to be."""
    demands = replace(SERVER, on_gpu=False, projector_on_gpu=False, kv_on_gpu=False, gpu_layers=0)
    estimate = gguf_estimate(llama_8b(), demands, ProjectorFacts(600 * MB))
    assert (estimate.weights_mb, estimate.kv_cache_mb, estimate.projector_mb, estimate.fixed_mb) == (
        4850,
        1024,
        600 + 8,
        HOST_PROCESS_MB + 2,
    )


def test_each_gpu_has_its_own_context_and_compute_buffer() -> None:
    """Weights and cache are divided, these are not."""
    one, two = (gguf_estimate(llama_8b(), replace(SERVER, gpus=gpus)) for gpus in (1, 2))
    assert two.mb - one.mb == one.compute_mb + CUDA_CONTEXT_MB


def test_a_context_that_is_not_asked_for_may_be_fitted() -> None:
    """llama-server then starts with 4096 tokens if it must; not with ``-c 0`` or ``--fit off``."""
    free = gguf_estimate(llama_8b(), replace(SERVER, context_tokens=None))
    assert free.least_mb == gguf_estimate(llama_8b(), replace(SERVER, context_tokens=4096)).mb
    fixed = gguf_estimate(llama_8b(), replace(SERVER, context_tokens=None, may_fit=False))
    assert fixed.least_mb == fixed.mb == free.mb


SIZES = st.integers(0, 2**20)


@given(
    st.builds(
        Demands,
        context_tokens=st.none() | st.integers(1, 2**20),
        parallel=st.integers(1, 64),
        unified=st.booleans(),
        ubatch_tokens=st.integers(1, 4096),
        cache_type_k=st.sampled_from(["f16", "q8_0", "q4_0", "unheard_of"]),
        flash_attention=st.booleans(),
        gpu_layers=st.none() | st.integers(0, 99),
        on_gpu=st.booleans(),
    ),
    st.lists(st.builds(Layer, SIZES, st.just(0), SIZES, SIZES, st.booleans(), SIZES), max_size=5),
    SIZES,
)
def test_more_context_never_needs_less(demands: Demands, layers: list[Layer], window: int) -> None:
    """Whatever the model, and no part is negative."""
    facts = llama_8b(layers=tuple(layers), window_tokens=window)
    estimate = gguf_estimate(facts, demands)
    longer = replace(demands, context_tokens=2 * (demands.context_tokens or facts.context_tokens))
    assert 0 < estimate.least_mb <= estimate.mb <= gguf_estimate(facts, longer).mb
    assert min(estimate.weights_mb, estimate.kv_cache_mb, estimate.compute_mb) >= 0


# -- vLLM


LLAMA_3_8B = SafetensorsFacts(
    weight_bytes=int(14.96 * 1024 * MB),
    context_tokens=8192,
    full_layers=32,
    key_value_heads=8,
    head_width=128,
    embedding_width=4096,
    feed_forward_width=14336,
    vocabulary=128256,
)
STEP = Demands(parallel=4, batch_tokens=2048)


def test_one_request_of_an_8b_model() -> None:
    """128 KB per token: 2 x 8 heads x 128 elements x 2 bytes x 32 layers."""
    assert request_bytes(LLAMA_3_8B, STEP, 8192) == 8192 * 128 * 1024
    assert request_bytes(LLAMA_3_8B, replace(STEP, cache_bytes=1), 8192) == 8192 * 64 * 1024


def test_the_cache_is_divided_among_gpus_by_heads() -> None:
    """Eight heads over eight GPUs are as many as on one; over sixteen each GPU still has one."""
    assert request_bytes(LLAMA_3_8B, replace(STEP, gpus=8), 8192) == request_bytes(LLAMA_3_8B, STEP, 8192)
    assert request_bytes(LLAMA_3_8B, replace(STEP, gpus=16), 8192) == 2 * request_bytes(LLAMA_3_8B, STEP, 8192)


def test_latent_vectors_are_on_every_gpu() -> None:
    """DeepSeek: 512 + 64 elements per token and layer."""
    facts = replace(LLAMA_3_8B, latent_width=576, full_layers=27)
    assert request_bytes(facts, STEP, 1000) == 1000 * 27 * 576 * 2
    assert request_bytes(facts, replace(STEP, gpus=2), 1000) == 2 * 1000 * 27 * 576 * 2


def test_windows_and_states_do_not_grow_with_the_context() -> None:
    """A windowed layer keeps the window and one step, a recurrent one its state."""
    facts = replace(LLAMA_3_8B, full_layers=0, windowed_layers=10, window_tokens=1025, state_bytes=7)
    assert request_bytes(facts, STEP, 100_000) == (1024 + 2048) * 10 * 4096 + 7
    assert request_bytes(facts, STEP, 100) == 100 * 10 * 4096 + 7


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "feed_forward", "logged_gib"), [(128256, 4096, 14336, 1.26), (151936, 1536, 8960, 1.39)]
)
def test_activations_are_about_what_vllm_logs(
    vocabulary: int, hidden: int, feed_forward: int, logged_gib: float
) -> None:
    """Llama 3 8B and Qwen2.5 1.5B with 256 sequences, within 10 %."""
    facts = replace(LLAMA_3_8B, vocabulary=vocabulary, embedding_width=hidden, feed_forward_width=feed_forward)
    computed = activation_bytes(facts, Demands(parallel=256, batch_tokens=8192)) / 2**30
    assert computed == pytest.approx(logged_gib, rel=0.1)


def test_vllm_is_given_a_sensible_share() -> None:
    """One full context, 2048 tokens of each further request, never more than a full context of each."""
    one = vllm_estimate(LLAMA_3_8B, replace(STEP, parallel=1))
    assert (one.kv_cache_mb, one.fixed_mb, one.mb) == (1024, CUDA_CONTEXT_MB, one.least_mb)
    four = vllm_estimate(LLAMA_3_8B, STEP)
    assert (four.kv_cache_mb, four.least_mb < four.mb) == (1024 * (8192 + 3 * 2048) / 8192, True)
    short = vllm_estimate(LLAMA_3_8B, replace(STEP, context_tokens=1024))
    assert short.kv_cache_mb == 4 * 128


def test_eager_mode_captures_no_graphs() -> None:
    """``--enforce-eager`` saves them on each GPU."""
    graphs, eager = (vllm_estimate(LLAMA_3_8B, replace(STEP, gpus=2, eager=eager)).mb for eager in (False, True))
    assert graphs - eager == 2 * CUDA_GRAPHS_MB
