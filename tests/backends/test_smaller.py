"""Entries for other starts: a smaller context, other slots, no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builders import entry
from rolecall.backends.base import Places
from rolecall.backends.llama_server import LlamaServer
from rolecall.backends.smaller import reduced, with_context, with_slots
from rolecall.core.models import ModelEntry
from rolecall.core.reductions import Reduction

CPU = Reduction(on_cpu=True)


def words(each: ModelEntry) -> list[str]:
    """Return the command line that llama-server would be started with."""
    return list(LlamaServer(Places(Path("/c"), Path("/s")), ("llama-server",)).launch(each, 1).argv)


def model(*extra: str, **fields: Any) -> ModelEntry:
    """Return an entry with arguments of its own."""
    return entry(backend_config={"model_path": "/m.gguf", "extra_args": extra}, **fields)


def test_without_a_reduction_nothing_changes() -> None:
    """It is the very entry."""
    same = model("-c", "9000")
    assert reduced(same, None) is same


@pytest.mark.parametrize(
    "full",
    [
        model("-c", "9000"),
        model("--ctx_size=9000"),
        model("--ctx-size", "9000", "--max-model-len=1"),
        model(context_length=9000),
        model(generation_defaults={"n_ctx": 9000}),
        model("-c", "9000", context_length=8000, generation_defaults={"num_ctx": 7000}),
        model(),
    ],
)
def test_a_smaller_context_holds_wherever_the_full_one_was_given(full: ModelEntry) -> None:
    """By one argument, once, whatever the entry says in its many places; what was worked out before is forgotten."""
    assert full.context_tokens != 2048
    small = reduced(full, Reduction(2048))
    assert small.context_tokens == 2048
    argv = words(small)
    assert argv.count("--ctx-size") == 1
    assert argv[argv.index("--ctx-size") + 1] == "2048"
    assert not {"-c", "--ctx_size=9000", "--max-model-len=1", "9000"} & set(argv)
    assert small == with_context(full, 2048)


@pytest.mark.parametrize(
    "flags",
    [
        ("-ngl", "99"),
        ("--n-gpu-layers=99",),
        ("--n_gpu_layers", "99"),
        ("--tensor_split", "3,1", "--main_gpu", "1", "-sm", "row"),
        ("--device", "CUDA0"),
    ],
)
def test_a_start_without_a_gpu_leaves_none_in_sight(flags: tuple[str, ...]) -> None:
    """Neither in the arguments, in whichever spelling, nor in the environment; other arguments stay."""
    small = reduced(model(*flags, "--jinja"), CPU)
    assert small.backend_config.extra_args == ("--jinja", "--n-gpu-layers", "0")
    assert small.backend_config.env["CUDA_VISIBLE_DEVICES"] == ""


def test_a_projector_stays_off_the_gpu_as_well() -> None:
    """It would be put there whatever the layers do."""
    config = {"model_path": "/m.gguf", "mmproj_id": "p.gguf", "env": {"A": "b"}}
    small = reduced(entry(backend_config=config), CPU)
    assert "--no-mmproj-offload" in small.backend_config.extra_args
    assert small.backend_config.env["A"] == "b"


@pytest.mark.parametrize("flag", ["-np", "--parallel", "--max-num-seqs"])
def test_other_slots(flag: str) -> None:
    """Slots of its own arguments stay there: they divide the context, as those of ``max_parallel`` do not."""
    changed = with_slots(model(flag, "4"), 2)
    assert (changed.backend_config.extra_args, changed.max_parallel) == ((flag, "2"), 2)
    assert with_slots(model("--jinja"), 2).backend_config.extra_args == ("--jinja",)
