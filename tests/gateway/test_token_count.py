"""Engines are asked how many tokens a text has, each in its way, and nothing that they do fails a request."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest

from fakes import FakeBackend
from gateway.test_engine_context import lease
from rolecall.gateway.token_count import EngineCounter
from rolecall.runtime.lease import Lease

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
BODY = {
    "model": "role:caption",
    "stream": True,
    "max_tokens": 5,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, PICTURE]},
        {"role": "user", "content": [PICTURE]},
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "chat_template_kwargs": {"enable_thinking": False},
}
Answer = Callable[[str, dict[str, Any]], Any]


class Engine:
    """An engine whose pages are the answers to their bodies; None is 404, a number that status."""

    def __init__(self, **pages: Any) -> None:
        self.pages = {"/" + path.replace("__", "/"): page for path, page in pages.items()}
        self.asked: list[httpx.Request] = []

    def counter(self, within_s: float = 5) -> EngineCounter:
        """Return what asks it."""
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        return EngineCounter(client, within_s=within_s)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        page = self.pages.get(request.url.path)
        if isinstance(page, Exception):
            raise page
        if isinstance(page, bytes):
            return httpx.Response(200, content=page)
        if isinstance(page, int):
            return httpx.Response(page, json={"error": {"message": "no"}})
        return httpx.Response(404 if page is None else 200, json=page)

    @property
    def paths(self) -> list[str]:
        """The pages that were asked for."""
        return [request.url.path for request in self.asked]

    def sent(self, index: int = 0) -> dict[str, Any]:
        """The body of a request."""
        body: dict[str, Any] = json.loads(self.asked[index].content)
        return body


def of(name: str, **fields: Any) -> Lease:
    """Return a lease of an engine of this kind."""
    return replace(lease(**fields), backend=FakeBackend(name=name, managed=name != "openai"))


async def test_llama_cpp_counts_the_request() -> None:
    """The messages go along with the tools and the template's arguments, under the engine's name, without images."""
    engine = Engine(v1__chat__completions__input_tokens={"input_tokens": 42, "object": "response.input_tokens"})
    assert await engine.counter().count_text(of("llama_cpp"), BODY) == 42
    sent = engine.sent()
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
        {"role": "user", "content": ""},
    ]
    assert sent["tools"] == BODY["tools"]
    assert sent["chat_template_kwargs"] == BODY["chat_template_kwargs"]
    assert sent["model"] == "alpha"
    assert sent.keys().isdisjoint({"stream", "max_tokens"})
    assert BODY["messages"][1]["content"][1] is PICTURE  # type: ignore[index]


async def test_an_older_llama_cpp_renders_and_cuts() -> None:
    """Where the first page is missing the second way is taken, from then on at once."""
    pages = {"apply-template": {"prompt": "<s>hi"}, "tokenize": {"tokens": [1, 2, 3]}}
    engine, held = Engine(**pages), of("llama_cpp")
    counter = engine.counter()
    assert await counter.count_text(held, BODY) == 3
    assert await counter.count_text(held, BODY) == 3
    assert engine.paths == [
        "/v1/chat/completions/input_tokens",
        *["/apply-template", "/tokenize"] * 2,
    ]
    assert engine.sent(2) == {"content": "<s>hi", "add_special": True, "parse_special": True}


async def test_vllm_cuts_messages() -> None:
    """Its ``/tokenize`` takes messages, tools and the template's arguments."""
    engine = Engine(tokenize={"count": 17, "max_model_len": 2048, "tokens": [0] * 17})
    assert await engine.counter().count_text(of("vllm"), BODY) == 17
    assert engine.sent().keys() == {"model", "messages", "tools", "chat_template_kwargs"}


async def test_the_engines_key_goes_along() -> None:
    """Engines of ours need one."""
    engine = Engine(tokenize={"count": 17})
    await engine.counter().count_text(of("vllm", key="secret"), BODY)
    assert engine.asked[0].headers["authorization"] == "Bearer secret"
    await engine.counter().count_text(of("vllm"), BODY)
    assert "authorization" not in engine.asked[1].headers


@pytest.mark.parametrize("name", ["openai", "ollama", "something"])
async def test_others_are_not_asked(name: str) -> None:
    """Neither what somebody else runs, nor what we know no page of."""
    engine = Engine(tokenize={"count": 17})
    assert await engine.counter().count_text(of(name), BODY) is None
    assert engine.asked == []


@pytest.mark.parametrize(
    "page",
    [
        400,
        500,
        b"rubbish",
        [],
        {},
        {"count": "17"},
        {"count": True},
        {"count": -1},
        httpx.ConnectError("refused"),
        OSError(),
    ],
)
async def test_an_engine_that_does_not_count_is_no_failure(page: Any) -> None:
    """Whatever it answers, the request goes on without a count."""
    assert await Engine(tokenize=page).counter().count_text(of("vllm"), BODY) is None


@pytest.mark.parametrize("pages", [{}, {"apply-template": {"prompt": 3}}, {"apply-template": {"prompt": ""}}])
async def test_a_llama_cpp_that_has_neither_page(pages: dict[str, Any]) -> None:
    """It may be one process per request; each page is asked for once, no more."""
    engine, held = Engine(**pages), of("llama_cpp")
    counter = engine.counter()
    assert await counter.count_text(held, BODY) is None
    asked = len(engine.asked)
    assert await counter.count_text(held, BODY) is None
    assert len(engine.asked) <= asked + 1


async def test_a_body_without_messages() -> None:
    """Is left to the engine, too."""
    engine = Engine(tokenize={"count": 1})
    assert await engine.counter().count_text(of("vllm"), {"messages": "x"}) == 1
    assert engine.sent()["messages"] == []


async def test_an_engine_that_takes_too_long_is_not_waited_for() -> None:
    """The time limit is for all ways together."""

    async def hang(request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    counter = EngineCounter(httpx.AsyncClient(transport=httpx.MockTransport(hang)), within_s=0.05)
    with anyio.fail_after(5):
        assert await counter.count_text(of("vllm"), BODY) is None
