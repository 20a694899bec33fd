"""What the log says of Responses and Messages that llama.cpp streams through a whole rolecall."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from harness import CONFIGS, Rolecall
from rolecall.demo.script import Script
from rolecall.runtime.registry import CURATED

pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")

SHIPPED: list[dict[str, Any]] = json.loads((CONFIGS / CURATED).read_text())
HELLO = [{"role": "user", "content": "Hello?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with the demo models."""
    folder: Path = tmp_path_factory.mktemp("answers")
    with Rolecall(folder, SHIPPED, settings={"llama_server": "embedded"}) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/v1/responses", {"input": "Hello?"}, "completed"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 100}, "end_turn"),
    ],
)
@pytest.mark.parametrize("model", ["demo-chat", "demo-reasoning"])
def test_the_line_of_a_stream(server: Rolecall, path: str, body: dict[str, Any], reason: str, model: str) -> None:
    """Tokens, reason, time of the first token and speed are in the line, as for a chat of the same words."""
    chat = {"model": model, "messages": HELLO}
    usage = server.http.post("/v1/chat/completions", json=chat).json()["usage"]
    with server.http.stream("POST", path, json={**body, "model": model, "stream": True}) as answer:
        text = "".join(answer.iter_text())
    assert text.rstrip().endswith("}")
    line = server.line(answer.headers["x-request-id"])
    assert (line["status"], line["error"], line["finish_reason"]) == (200, None, reason)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert 0 < line["ttft_ms"] <= line["duration_ms"]
    assert line["tokens_per_second"] > 0


def test_openais_client_streams_a_response(server: Rolecall) -> None:
    """OpenAI's own client reads the events to their end."""
    with openai.OpenAI(base_url=server.base_url + "/v1", api_key="none", max_retries=0) as client:
        events = list(client.responses.create(model="demo-chat", input="Hello?", stream=True))
    assert events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == Script().answer
