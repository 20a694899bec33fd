"""What is known of a model: what was learnt, how it cuts images up, and what its entry says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fakes import FakeBackend
from gateway.test_engine_context import lease
from rolecall.core.text_size import measure
from rolecall.gateway.knowledge import ModelKnowledge
from rolecall.runtime.image_specs import ImageSpecs
from rolecall.runtime.token_memory import TokenMemory


async def test_files_tell_once_they_were_looked_at(tmp_path: Path) -> None:
    """Before that the name does; one look an engine is enough, even if the file goes."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "mm_tokens_per_image": 100}))
    knowledge = ModelKnowledge(TokenMemory(tmp_path / "x.json"), ImageSpecs())
    held = replace(lease(family="llava"), backend=FakeBackend(paths=(tmp_path,)))
    named = knowledge(held).images
    assert named is not None
    assert named.image_size == 336
    await knowledge.prepare(held)
    (tmp_path / "config.json").unlink()
    await knowledge.prepare(held)
    spec = knowledge(held).images
    assert spec is not None
    assert spec.tokens == 100


async def test_what_is_learnt_is_the_models(tmp_path: Path) -> None:
    """Each model has a memory of its own, and the entry may say what an image takes."""
    memory = TokenMemory(tmp_path / "x.json")
    knowledge = ModelKnowledge(memory, ImageSpecs())
    known = knowledge(lease(image_tokens=77))
    known.model.learn(measure({"prompt": "one two"}), 5)
    assert known.per_image == 77
    assert memory.model("alpha").observations == 1
    assert knowledge(lease()).model is known.model
