"""Tokens as rolecall counts them against a real llama.cpp: what is estimated after 20 answers, and what it counts."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from statistics import median
from typing import Any

import httpx
import pytest

from fakes import FakeBackend
from gateway.test_engine_context import lease
from rolecall.backends.base import Upstream
from rolecall.core.text_size import measure
from rolecall.core.token_estimate import TokenModel
from rolecall.gateway.token_count import EngineCounter

pytest.importorskip("xllamacpp", reason="the embedded engine is an extra: rolecall[llama]")

PROSE = (
    "The lamp stood by the window, and nobody had lit it since October. She asked whether the letter had come; it had "
    "not. Two days later, at 7:45, the ferry left without them, which cost £12.50 and an argument. "
)
CODE = (
    "def total(values: list[float], *, default: float = 0.0) -> float:\n"
    '    """Return the sum."""\n'
    "    if not values:\n        return default\n"
    "    return sum(value ** 2 for value in values if value > 1e-9)  # no rounding\n\n"
)
CHINESE = "今天天气很好,我们去公园散步吧。他说:“这本书我已经读过两遍了”,然后把灯关上。"
JAPANESE = "駅前の喫茶店で待ち合わせをして、夕方まで話しました。雨が降り出したので傘を買いました。"
RUSSIAN = "Поезд пришёл вовремя, но вещей в вагоне уже не было. Зачем он вернулся? "
EMOJI = "Great 🎉🎉 see you 👩‍💻 at 8 👍🏽 ❤️ "
NUMBERS = "2026-03-14 09:26:53,589 | 1203984 | 0x7fffe1a0 | -3.14159e+08\n"
TEXTS = (PROSE, CODE, CHINESE, JAPANESE, RUSSIAN, EMOJI, NUMBERS)
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up in a dictionary.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}


def request(seed: int) -> dict[str, Any]:
    """A conversation of one to eight messages, each of a text of some length; every fourth one offers tools."""
    rnd = random.Random(seed)
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text(rnd)} for number in range(1 + 2 * rnd.randrange(4))]
    if rnd.random() < 0.5:
        messages.insert(0, {"role": "system", "content": text(rnd)})
    tools = {"tools": [TOOL] * rnd.randrange(1, 4)} if rnd.random() < 0.25 else {}
    return {"messages": messages, "max_tokens": 1, **tools}


def text(rnd: random.Random) -> str:
    """A piece of one of the texts."""
    whole = rnd.choice(TEXTS) * 20
    start = rnd.randrange(len(whole) // 2)
    return whole[start : start + int(10 ** rnd.uniform(1, 2.9))]


def test_the_estimate_is_within_three_percent_after_twenty_requests(chat_engine: Any) -> None:
    """The median error of what is predicted, over 30 requests after the first 20, in many languages, code and tools."""
    model = TokenModel()
    errors = []
    for seed in range(50):
        body = request(seed)
        answer = chat_engine.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        tokens = answer.json()["usage"]["prompt_tokens"]
        size = measure(body)
        errors.append(abs(model.predict(size) - tokens) / tokens)
        model.learn(size, tokens)
    assert median(errors[20:]) < 0.03


@pytest.mark.parametrize("seed", range(6))
def test_llama_cpp_counts_what_it_will_use(chat_engine: Any, seed: int) -> None:
    """Both ways in which it is asked give the very number of its usage."""
    body = request(seed)
    used = chat_engine.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]
    held = replace(lease(), upstream=Upstream(f"{chat_engine.url}/v1"), backend=FakeBackend())

    async def count() -> list[int | None]:
        async with httpx.AsyncClient() as http, httpx.AsyncClient(transport=_Older(chat_engine.url)) as older:
            return [await EngineCounter(client).count_text(held, body) for client in (http, older)]

    assert asyncio.run(count()) == [used, used]


class _Older(httpx.AsyncHTTPTransport):
    """The engine as an older build would be: without the page that counts."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/input_tokens"):
            return httpx.Response(404, request=request)
        return await super().handle_async_request(request)


def test_it_counts_the_text_without_the_images(vision_engine: Any, picture: dict[str, Any]) -> None:
    """What is left of the usage are the 16 tokens that each image takes."""
    parts = [{"type": "text", "text": "What are these?"}, picture, picture]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    used = vision_engine.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]
    held = replace(lease(), upstream=Upstream(f"{vision_engine.url}/v1"), backend=FakeBackend())

    async def count() -> int | None:
        async with httpx.AsyncClient() as http:
            return await EngineCounter(http).count_text(held, body)

    assert asyncio.run(count()) == used - 2 * 16


def test_it_answers_anthropics_question_itself(chat_engine: Any) -> None:
    """``/v1/messages/count_tokens`` needs nothing of ours."""
    body = {"model": "x", "messages": [{"role": "user", "content": "hi"}], "system": "Be brief.", "max_tokens": 1}
    counted = chat_engine.post("/v1/messages/count_tokens", body).json()["input_tokens"]
    used = chat_engine.post("/v1/messages", body).json()["usage"]
    assert counted == used["input_tokens"] + used.get("cache_read_input_tokens", 0)
