"""Entries for other starts, most of them with less memory: what changes, so that all else follows as usual."""

from __future__ import annotations

from rolecall.backends.base import without
from rolecall.core.models import CONTEXT_DEFAULTS, CONTEXT_FLAGS, ModelEntry, dashed
from rolecall.core.reductions import Reduction

_GPU_FLAGS = (
    *("-ngl", "--gpu-layers", "--n-gpu-layers", "-ts", "--tensor-split", "-sm", "--split-mode"),
    *("-mg", "--main-gpu", "-dev", "--device"),
)
_SLOT_FLAGS = ("-np", "--parallel", "--max-num-seqs")
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": ""}
"""With layers on none of them, llama.cpp still takes buffers on the GPUs that it sees (``ggml-backend.cpp``)."""


def reduced(entry: ModelEntry, reduction: Reduction | None) -> ModelEntry:
    """Return the entry for a start that is so much smaller, in a way in which its engine is ``reducible``."""
    if reduction is None:
        return entry
    return without_gpu(entry) if reduction.on_cpu else with_context(entry, reduction.context_tokens or 0)


def with_context(entry: ModelEntry, tokens: int) -> ModelEntry:
    """Return the entry with another context, wherever its own is given."""
    config = entry.backend_config
    extra = without([dashed(word) for word in config.extra_args], CONTEXT_FLAGS)
    defaults = {name: value for name, value in entry.generation_defaults.items() if name not in CONTEXT_DEFAULTS}
    return entry.changed({"extra_args": extra}, context_length=tokens, generation_defaults=defaults)


def with_slots(entry: ModelEntry, slots: int) -> ModelEntry:
    """Return the entry for so many requests at once; slots of its own arguments go on dividing the context."""
    extra = tuple(map(dashed, entry.backend_config.extra_args))
    given = next((flag for word in extra if (flag := word.partition("=")[0]) in _SLOT_FLAGS), None)
    own = (given, str(slots)) if given else ()
    return entry.changed({"extra_args": (*without(extra, _SLOT_FLAGS), *own)}, max_parallel=slots)


def without_gpu(entry: ModelEntry) -> ModelEntry:
    """Return the entry with llama.cpp's arguments and variables for a start that touches no GPU."""
    config = entry.backend_config
    extra = (*without([dashed(word) for word in config.extra_args], _GPU_FLAGS), "--n-gpu-layers", "0")
    if config.mmproj_path or config.mmproj_id:
        extra = (*extra, "--no-mmproj-offload")
    return entry.changed({"extra_args": extra, "env": {**config.env, **_NO_GPU}})
