"""What is known of a model: what was learnt, how it cuts images up, and what its entry says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from fakes import FakeBackend
from gateway.test_engine_context import lease
from rolecall.core.text_size import measure
from rolecall.gateway.knowledge import ModelKnowledge, estimate_tokens
from rolecall.gateway.pictures import Pictures
from rolecall.gateway.prompt_costs import PromptCosts
from rolecall.gateway.token_count import EngineCounter
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


async def test_any_request_can_be_estimated(tmp_path: Path) -> None:
    """A request of Anthropic's API counts with its system prompt, its tools and its images; so do others."""
    knowledge = ModelKnowledge(TokenMemory(tmp_path / "x.json"), ImageSpecs())
    async with httpx.AsyncClient() as http:
        costs = PromptCosts(knowledge, Pictures(), EngineCounter(http))

        async def tokens(**body: Any) -> int:
            return await estimate_tokens(knowledge, costs, lease(image_tokens=200), body)

        picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
        asked = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
        plain = await tokens(messages=asked)
        assert 8 < plain < 30
        assert plain < await tokens(messages=asked, system="Be brief.")
        assert plain < await tokens(messages=asked, tools=[{"name": "f", "input_schema": {"type": "object"}}])
        shown = [{"role": "user", "content": [picture, *asked[0]["content"]]}]
        assert await tokens(messages=shown) == plain + 200
        assert 0 < await tokens(input="What is it?") < plain
