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

from rolecall.core.conversation import image_positions, parts
from rolecall.gateway.engine_questions import ask, field, number
from rolecall.runtime.lease import Lease

log = logging.getLogger(__name__)

COUNT_TIMEOUT_S = 5.0
_PASSED = ("tools", "tool_choice", "chat_template_kwargs", "reasoning_effort", "parallel_tool_calls")
"""What of a request changes its prompt besides the messages."""
_VLLM_PASSED = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")

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
        return number(answer, "input_tokens")

    async def _by_template(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        rendered = await self._post(lease, "/apply-template", _text_of(lease, body, _PASSED))
        prompt = field(rendered, "prompt")
        if not isinstance(prompt, str):
            return None
        cut = {"content": prompt, "add_special": True, "parse_special": True}
        tokens = field(await self._post(lease, "/tokenize", cut), "tokens")
        return len(tokens) if isinstance(tokens, list) else None

    async def _by_tokenize(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        return number(await self._post(lease, "/tokenize", _text_of(lease, body, _VLLM_PASSED)), "count")

    async def _post(self, lease: Lease, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON of an answer, None for a failure; raises ``_Missing`` where there is no such page."""
        said = await ask(self._http, lease.upstream, path, body)
        if said is not None and said.is_absent:
            raise _Missing
        return said and said.value


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
