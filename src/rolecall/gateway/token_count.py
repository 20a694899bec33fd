"""Asks a running engine how many tokens the text of a chat request has, in its own words and with its own template.

llama.cpp counts at ``/v1/chat/completions/input_tokens``; builds that lack it render the prompt at ``/apply-template``
and cut it at ``/tokenize``. vLLM's ``/tokenize`` takes messages and tools. Nobody else is asked, and an engine that
does not answer is no reason for a request to fail.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import anyio
import httpx
import orjson

from rolecall.core.conversation import image_positions, parts
from rolecall.gateway.body import write_json
from rolecall.runtime.lease import Lease

log = logging.getLogger(__name__)

COUNT_TIMEOUT_S = 5.0
_PASSED = ("tools", "tool_choice", "chat_template_kwargs", "reasoning_effort", "parallel_tool_calls")
"""What of a request changes its prompt besides the messages."""
_VLLM_PASSED = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")

_Answer: TypeAlias = Mapping[str, Any] | None
_Way: TypeAlias = Callable[[Lease, Mapping[str, Any]], Coroutine[Any, Any, int | None]]


class _Missing(Exception):
    """The engine has no such page."""


class EngineCounter:
    """Counts with engines; which way an engine knows is remembered for as long as it lives."""

    def __init__(self, http: httpx.AsyncClient, *, within_s: float = COUNT_TIMEOUT_S) -> None:
        self._http = http
        self._within_s = within_s
        # By the event of its end, which each engine has one of: what is known of an engine goes with it.
        self._without: WeakKeyDictionary[asyncio.Event, int] = WeakKeyDictionary()
        self._ways: dict[str, tuple[_Way, ...]] = {
            "llama_cpp": (self._by_input_tokens, self._by_template),
            "vllm": (self._by_tokenize,),
        }

    async def count_text(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        """Return the tokens of a chat request's prompt without its images; None if the engine cannot tell in time."""
        if not lease.backend.managed:
            return None  # of what others run, we look no further than OpenAI's interface
        ways = self._ways.get(lease.backend.name, ())
        try:
            with anyio.fail_after(self._within_s):
                for index in range(self._without.get(lease.engine_gone, 0), len(ways)):
                    try:
                        return await ways[index](lease, body)
                    except _Missing:
                        self._without[lease.engine_gone] = index + 1
        except TimeoutError:
            log.debug("%s did not count within %g s", lease.entry.name, self._within_s)
        return None

    async def _by_input_tokens(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        answer = await self._post(lease, "/v1/chat/completions/input_tokens", _text_of(lease, body, _PASSED))
        return _number(answer, "input_tokens")

    async def _by_template(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        rendered = await self._post(lease, "/apply-template", _text_of(lease, body, _PASSED))
        prompt = (rendered or {}).get("prompt")
        if not isinstance(prompt, str):
            return None
        cut = {"content": prompt, "add_special": True, "parse_special": True}
        tokens = (await self._post(lease, "/tokenize", cut) or {}).get("tokens")
        return len(tokens) if isinstance(tokens, list) else None

    async def _by_tokenize(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        return _number(await self._post(lease, "/tokenize", _text_of(lease, body, _VLLM_PASSED)), "count")

    async def _post(self, lease: Lease, path: str, body: Mapping[str, Any]) -> _Answer:
        """Return the JSON object of an answer, None for a failure; raises ``_Missing`` where there is no such page."""
        headers = {"content-type": "application/json", "connection": "close"}
        if (authorization := lease.upstream.authorization()) is not None:
            headers["authorization"] = authorization
        try:
            url = lease.upstream.url(path)
            response = await self._http.post(url, content=await write_json(body), headers=headers, timeout=None)
            value = orjson.loads(response.content) if response.status_code == httpx.codes.OK else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError, AttributeError) as error:
            # AttributeError is anyio's, of a connection that was lost in the moment in which it was made.
            log.debug("%s did not count: %s", lease.entry.name, type(error).__name__)
            return None
        if response.status_code in {httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED, httpx.codes.NOT_IMPLEMENTED}:
            raise _Missing
        return value if isinstance(value, dict) else None


def _text_of(lease: Lease, body: Mapping[str, Any], passed: tuple[str, ...]) -> dict[str, Any]:
    """Return what of a request decides its prompt, without images."""
    messages = body.get("messages")
    texts = [_without_images(message) for message in messages] if isinstance(messages, list) else []
    kept = {name: body[name] for name in passed if body.get(name) is not None}
    return {"model": lease.backend.served_id(lease.entry), "messages": texts, **kept}


def _without_images(message: Any) -> Any:
    out = set(image_positions(message))
    if not out:
        return message
    left = [part for position, part in enumerate(parts(message)) if position not in out]
    return {**message, "content": left or ""}


def _number(answer: _Answer, key: str) -> int | None:
    number = (answer or {}).get(key)
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else None
