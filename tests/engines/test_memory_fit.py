"""What is computed of a model's memory, against the memory that the real engine then holds; more in docs/memory.md."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="the embedded engine is an extra: rolecall[llama]")

from engine_memory import Case, computed, measure
from gguf_shapes import Shape, bert, deepseek2, gpt_oss, granite_hybrid, mamba, projector, transformer, write_gguf

UNIFIED = ("-c", "1024", "-np", "2", "-kvu", "-ub", "256")
DIVIDED = ("-c", "2048", "-np", "4", "-ub", "256", "-ctk", "q8_0", "-ctv", "q8_0")
MODELS: dict[str, tuple[Shape, tuple[str, ...]]] = {
    "attention": (transformer(layers=6, width=512, heads=8, kv_heads=4, feed_forward=2048, words=8000), DIVIDED),
    "windows and experts": (gpt_oss(layers=4), UNIFIED),
    "latent attention": (deepseek2(layers=4), UNIFIED),
    "recurrent": (mamba(words=8000), UNIFIED),
    "hybrid": (granite_hybrid(layers=4), UNIFIED),
}


def error(case: Case) -> float:
    """How far the sum is from what the engine holds, as a part of that."""
    return computed(case).mb / measure(case).resident_mb - 1


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_what_was_computed(tmp_path: Path, name: str) -> None:
    """Within a tenth of its resident memory, with all that an engine is besides."""
    shape, arguments = MODELS[name]
    assert abs(error(Case(write_gguf(tmp_path / "m.gguf", *shape), arguments))) < 0.1


def test_texts_that_are_embedded_have_logits_nobody_asks_for(tmp_path: Path) -> None:
    """Which is most of what a small embedder takes, and counts."""
    case = Case(write_gguf(tmp_path / "m.gguf", *bert()), ("-c", "512", "-np", "1", "-b", "512"), embeds=True)
    assert abs(error(case)) < 0.1


def test_a_projector_takes_what_was_computed(tmp_path: Path) -> None:
    """With its activations for one picture."""
    shape = transformer(layers=2, width=512, heads=8, kv_heads=4, feed_forward=2048, words=8000)
    seeing = write_gguf(tmp_path / "mmproj.gguf", *projector(layers=4, width=256, out=512))
    case = Case(write_gguf(tmp_path / "m.gguf", *shape), UNIFIED, projector=seeing)
    assert abs(error(case)) < 0.1
