"""Single requests, sizes and projectors with llama.cpp itself and the demo vision model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import CONFIGS, Rolecall, eventually
from photographs import photograph
from rolecall.demo.script import Script
from rolecall.runtime.registry import CURATED

pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")

SHIPPED: list[dict[str, Any]] = json.loads((CONFIGS / CURATED).read_text())
BARE = {
    "name": "bare",
    "backend": "llama_cpp",
    "backend_config": {"model_path": "${STATE_DIR}/demo/demo-vision.gguf"},
    "vram_estimate_mb": 100,
}
"""The demo vision model by an entry that says nothing of its projector, its size, or what it can do."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with the demo models."""
    folder: Path = tmp_path_factory.mktemp("single")
    with Rolecall(folder, [*SHIPPED, BARE], settings={"llama_server": "embedded"}) as running:
        yield running


def picture(seed: int) -> bytes:
    return photograph(seed, size=(160, 120))


def as_json(seed: int) -> dict[str, Any]:
    return {"image": base64.b64encode(picture(seed)).decode()}


def ok(answer: httpx.Response) -> dict[str, Any]:
    """Return the JSON of an answer that succeeded."""
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_analysis_with_its_confidence(server: Rolecall) -> None:
    """llama.cpp gives log-probabilities; the demo model is sure of itself."""
    form: dict[str, Any] = {"file": ("p.jpg", picture(1)), "prompt": (None, "Describe the picture.")}
    found = ok(server.http.post("/analyze_image", files=form))
    assert (found["analysis"], found["model"]) == (Script().caption, "demo-vision")
    assert found["confidence"] == pytest.approx(1, abs=0.01)


def test_text_tags_descriptions_and_chats(server: Rolecall) -> None:
    """Each endpoint ends in what its name says."""
    read = ok(server.http.post("/ocr", files={"file": ("p.jpg", picture(2))}))
    assert read == {"text": Script().caption, "language": "ja"}
    tagged = ok(server.http.post("/api/tag", json=as_json(2)))
    assert {"sharp", "outdoor", "sunny", "day", "moderate"} < set(tagged["tags"])
    assert (tagged["discarded"], tagged["problem"]) == ([], None)
    assert ok(server.http.post("/api/describe", json=as_json(2)))["description"] == Script().caption
    said = ok(server.http.post("/api/chat", json={"prompt": "hello", "model": "demo-chat"}))
    assert said["message"]["content"]
    assert said["eval_count"] > 0


def cached(server: Rolecall, conversation: str) -> float:
    """Ask a text conversation's question, and return the part of its prompt that was in the cache."""
    usage = ok(server.chat("demo-vision", conversation, max_tokens=1))["usage"]
    return float(usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"])


def test_pictures_leave_conversations_in_the_cache(server: Rolecall) -> None:
    """A dozen pictures later the engine still knows the conversations that were there before."""
    conversations = [f"conversation {number}: " + "word " * 60 for number in range(3)]
    for conversation in conversations:
        cached(server, conversation)
    for seed in range(12):
        ok(server.http.post("/api/tag", json=as_json(seed)))
    assert all(cached(server, conversation) > 0.9 for conversation in conversations)


def test_a_projector_that_lies_beside_the_model(server: Rolecall) -> None:
    """The entry that says nothing of it sees, and is listed so."""
    assert "vision" in server.get("/v1/models/bare")["capabilities"]
    assert ok(server.http.post("/api/tag", json={**as_json(3), "model": "bare"}))["model"] == "bare"


def test_sizes_that_were_set(server: Rolecall) -> None:
    """The engine is started anew with them in its next idle moment, and has the context that was set."""
    assert server.chat("bare", "hi", max_tokens=1).status_code == 200
    ok(server.http.post("/api/config", json={"llm_params": {"ctx_size": 1024, "batch_size": 512, "ubatch_size": 256}}))
    try:
        eventually(lambda: server.state_of("bare") == "ready")
        long = server.chat("bare", "word " * 2000, max_tokens=1)
        assert long.status_code == 400
        assert long.json()["error"]["code"] == "context_length_exceeded"
        assert "1024" in long.json()["error"]["message"]
    finally:
        server.http.post("/api/config", json={"llm_params": None})
