"""The models that the clients meet, what the demo models say, and what is asked of them."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness import CONFIGS, Rolecall, fake_entry
from rolecall.demo.script import Script

SHIPPED: list[dict[str, Any]] = json.loads((CONFIGS / "model_registry.curated.json").read_text(encoding="utf-8"))
ANSWER, CAPTION, THOUGHT = Script().answer, Script().caption, Script().thought
HELLO: Any = [{"role": "user", "content": "Hello?"}]
WEATHER_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather now.", "parameters": WEATHER_PARAMETERS},
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
)
PICTURE: Any = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]


class Place(BaseModel):
    """What structured output is parsed into."""

    city: Literal["Paris"]
    size: Literal[7]


class Weather(BaseModel):
    """What a tool call is parsed into: the demo model calls this one."""

    model_config = ConfigDict(title="get_weather")

    city: str


ODD_NAMES = ("org/model:Q4_K_M", "name_(FP8)", "with space", "ünïcode-名", "a%2Fb")
"""Ids that clients put into paths in different ways."""


RETRYING = ("OpenAI", "LangChain", "LlamaIndex", "LiteLLM", "Npm")
"""The clients that send a failed request again by themselves."""

PASSING = {408: 504, 429: 429, 500: 502, 503: 503}
"""Statuses of an engine that clients send the request again after, and what they see of them."""

REFUSING = {400: 400, 404: 502, 422: 400}
"""Statuses of an engine that no retry mends."""


def demo_entry(name: str, *flags: str, **fields: Any) -> dict[str, Any]:
    """Return an entry that runs the demo chat model on the real engine."""
    config = {"model_path": "${STATE_DIR}/demo/demo-chat.gguf", "extra_args": ["--threads", "1", *flags]}
    return {"name": name, "backend": "llama_cpp", "backend_config": config, "vram_estimate_mb": 100, **fields}


REAL = (
    demo_entry("demo-embed", "--embeddings", "--pooling", "mean", capabilities=["embedding"]),
    demo_entry("small", context_length=256, max_parallel=1, model_aliases=["org/s:Q4", "tight"]),
    *(demo_entry(name) for name in ODD_NAMES),
)
FAKES = (
    fake_entry("fake"),
    fake_entry("fake-embed", "--embeddings", capabilities=["embedding"]),
    fake_entry("never-ready", "--never-ready", load_timeout_s=600),
    fake_entry("thinks-long", "--head-delay-s", "60"),
    fake_entry("talks-long", "--tokens", "1000", "--token-delay-s", "0.05"),
    fake_entry("breaks-off", "--drop-after-tokens", "3"),
    *(fake_entry(f"fails {client} once", "--error-status", "500", "--error-times", "1") for client in RETRYING),
    *(fake_entry(f"fails-{status}", "--error-status", str(status), "--error-times", "1") for status in PASSING),
    *(fake_entry(f"refuses-{status}", "--error-status", str(status)) for status in REFUSING),
)


def statuses(server: Rolecall, model: str, last_id: str | None) -> list[int]:
    """Return the statuses of all requests for a model, in order; ``last_id`` is the id of the last one's answer."""
    assert last_id
    server.line(last_id)  # lines are written in order
    return [line["status"] for line in server.log_lines() if line["requested_model"] == model]
