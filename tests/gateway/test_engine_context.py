"""What engines say of their context, and whose word counts."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from builders import entry
from fakes import FakeBackend
from rolecall.backends.base import Upstream
from rolecall.core.selection import Demand, Selection
from rolecall.gateway.engine_context import EngineContexts
from rolecall.runtime.lease import Lease

VLLM = {"/v1/models": {"object": "list", "data": [{"id": "alpha", "max_model_len": 4096}]}}
LLAMA_CPP = {
    "/v1/models": {"models": [], "data": [{"id": "alpha", "meta": {"n_ctx": 8192}}]},
    "/props": {"default_generation_settings": {"n_ctx": 2048}, "total_slots": 4},
}


def lease(*, managed: bool = True, key: str | None = None, **fields: Any) -> Lease:
    """Return a lease of a new engine for the model ``alpha``."""
    return Lease(
        entry=entry(**fields),
        backend=FakeBackend(managed=managed, paths=(Path(),)),
        upstream=Upstream("http://engine/v1", key=key),
        selection=Selection(Demand(), (), (), "the only one"),
        queue_ms=0,
        load_ms=0,
        engine_gone=asyncio.Event(),
        _give_back=lambda _: None,
    )


def contexts(
    pages: dict[str, Any], asked: list[str] | None = None, clock: Callable[[], float] = time.monotonic
) -> EngineContexts:
    """Return contexts of an engine with these pages; others are 404, a page may be an exception or a status."""

    def answer(request: httpx.Request) -> httpx.Response:
        (asked if asked is not None else []).append(request.url.path)
        page = pages.get(request.url.path)
        if isinstance(page, Exception):
            raise page
        if isinstance(page, int):
            return httpx.Response(page)
        if isinstance(page, str):
            return httpx.Response(200, text=page)
        return httpx.Response(404 if page is None else 200, json=page)

    return EngineContexts(httpx.AsyncClient(transport=httpx.MockTransport(answer)), clock=clock)


@pytest.mark.parametrize(
    ("pages", "tokens"),
    [
        (VLLM, 4096),
        (LLAMA_CPP, 2048),
        ({"/props": LLAMA_CPP["/props"]}, 2048),
        ({"/v1/models": {"data": [{"id": "other", "max_model_len": 1}, {"id": "alpha", "max_model_len": 2}]}}, 2),
        ({"/v1/models": {"data": [{"id": "another name", "max_model_len": 3}]}}, 3),
        ({"/v1/models": {"data": [{"id": "a", "max_model_len": 1}, {"id": "b", "max_model_len": 2}]}}, None),
        ({"/v1/models": {"data": [{"id": "alpha", "max_model_len": "4096"}]}, "/props": []}, None),
        ({"/v1/models": {"data": ["alpha", None]}, "/props": {"default_generation_settings": {"n_ctx": True}}}, None),
        ({"/v1/models": "<html>", "/props": httpx.ConnectError("refused")}, None),
        ({}, None),
    ],
)
async def test_what_engines_say(pages: dict[str, Any], tokens: int | None) -> None:
    """In vLLM it stands in the list of models, in llama.cpp for one slot; anything else is no answer."""
    assert await contexts(pages).of(lease()) == tokens


async def test_an_engine_is_asked_once() -> None:
    """The second request asks nobody, a new engine is asked anew, and nothing is kept of one that is gone."""
    asked: list[str] = []
    known = contexts(LLAMA_CPP, asked)
    first = lease()
    assert [await known.of(first), await known.of(replace(first, queue_ms=1))] == [2048, 2048]
    assert asked == ["/v1/models", "/props"]
    await known.of(lease())
    assert asked == ["/v1/models", "/props"] * 2
    event = weakref.ref(first.engine_gone)
    del first
    gc.collect()
    assert event() is None


async def test_whose_word_counts() -> None:
    """The engine's error before its pages, its pages before the entry, which counts where the engine says nothing."""
    known = contexts(LLAMA_CPP)
    listed = lease(context_length=32768)
    assert await known.of(listed) == 2048
    known.learn(listed, 1024)
    assert await known.of(listed) == 1024
    assert await contexts({}).of(listed) == 32768


async def test_of_servers_of_others_only_the_list_of_models_is_asked_for() -> None:
    """A server that somebody else runs is asked for nothing that OpenAI's API does not have."""
    asked: list[str] = []
    assert await contexts(LLAMA_CPP, asked).of(lease(managed=False, context_length=7)) == 7
    assert asked == ["/v1/models"]


async def test_the_engine_s_key_is_sent() -> None:
    """An engine that was started with a key is asked with it."""
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, json=VLLM["/v1/models"])

    for key in ("secret", None):
        http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        assert await EngineContexts(http).of(lease(key=key)) == 4096
    assert seen == ["Bearer secret", None]


async def test_an_engine_that_hangs_is_waited_for_a_moment() -> None:
    """An engine that does not answer holds no request up for long: the entry's context is taken."""

    async def hang(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    http = httpx.AsyncClient(transport=httpx.MockTransport(hang))
    assert await EngineContexts(http, within_s=0.01).of(lease(context_length=9)) == 9


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), 500, 503])
@pytest.mark.parametrize("path", ["/v1/models", "/props"])
async def test_an_engine_that_did_not_answer_is_asked_again(failure: Any, path: str) -> None:
    """Not by every request: after half a minute; what it says then is kept."""
    now, asked, pages = 100.0, list[str](), LLAMA_CPP | {path: failure}
    known, held = contexts(pages, asked, lambda: now), lease(context_length=9)
    assert [await known.of(held) for _ in range(2)] == [9, 9]
    assert asked.count(path) == 1
    pages[path] = LLAMA_CPP[path]
    now += 29
    assert await known.of(held) == 9
    now += 1
    assert [await known.of(held) for _ in range(2)] == [2048, 2048]
    assert asked.count(path) == 2


async def test_a_page_that_an_engine_does_not_have_is_an_answer() -> None:
    """An engine without the pages has said all there is, and is not asked again."""
    now, asked = 0.0, list[str]()
    known, held = contexts({"/v1/models": 404, "/props": 501}, asked, lambda: now), lease()
    for _ in range(3):
        assert await known.of(held) is None
        now += 1000
    assert asked == ["/v1/models", "/props"]


async def test_what_an_error_told_meanwhile_stays() -> None:
    """An answer to a question that was asked before does not undo it."""
    held = lease()

    class Telling(dict[str, Any]):
        """Pages in whose reading another request is refused."""

        def get(self, path: Any, default: Any = None) -> Any:
            known.learn(held, 1024)
            return LLAMA_CPP.get(path, default)

    known = contexts(Telling())
    assert await known.of(held) == 1024
