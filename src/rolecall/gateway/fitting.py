"""A chat request is cut for the engine that it was given: by policy, then to the engine's context.

The length of a prompt is estimated first. Only where that comes near the limit is the engine asked how long its text
really is; pictures are counted by their size. An engine that finds a prompt too long all the same says how long it is,
and what is sent then goes by that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import anyio.to_thread

from rolecall.core.fit import Costs, Fitted, fit, is_fitted, room_for_answer, too_long
from rolecall.core.history import NOTHING_CUT, Cut, HistoryPolicy, truncate
from rolecall.core.overflow import Overflow
from rolecall.gateway.engine_context import EngineContexts
from rolecall.runtime.lease import Lease

NEAR = 0.7
"""The share of the room for the prompt at which an estimate is no longer enough."""

_FAR = 2.0
"""From this multiple of the room on, the whole is not counted: how much of it stays is estimated first."""

_WELL_USED = 0.85
"""The share of the room from which on a cut is good enough; with less, it may be that more could stay."""

_ROUNDS = 3
"""How often the engine counts for one request: the whole, what was cut, and once more if that was not right yet."""

_CAUTION = 0.95
"""The share of the room that is used where nobody counts exactly."""

_BEYOND = 1.2
"""How much longer a prompt is taken to be than what an engine counted that stopped counting."""


_MANY = 1000
"""Messages from which on they are looked at in a thread: more would hold the event loop up for milliseconds."""

T = TypeVar("T")


class Pricing(Protocol):
    """What says how many tokens a request for an engine takes."""

    async def costs(self, lease: Lease, body: Mapping[str, Any]) -> Costs:
        """Return the estimated tokens of the messages of a body, and of what else the template makes of it."""
        ...

    async def count_text(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        """Return the tokens of all of a body's text, as the engine counts them; None if it cannot."""
        ...

    async def learn(self, lease: Lease, body: Mapping[str, Any], tokens: int) -> None:
        """Take in how long the engine says that the prompt of a body is, pictures and all."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """A body for an engine, what was left out of it, and what its messages are thought to cost, if that was looked at.

    ``is_counted``: the engine has counted the text.
    """

    body: Mapping[str, Any]
    cut: Cut = NOTHING_CUT
    costs: Costs | None = None
    is_counted: bool = False


class Fitter:
    """Cuts one request for the engines that it is given; ``policy`` is that of the settings."""

    def __init__(self, policy: HistoryPolicy, contexts: EngineContexts, pricing: Pricing) -> None:
        self._policy = policy
        self._contexts = contexts
        self._pricing = pricing

    def spares_words(self, lease: Lease, wish: str | None) -> bool:
        """Whether a conversation without pictures goes to the engine of a lease as it is; raises as ``prepare``."""
        return self._policy_for(lease, wish).spares_words

    async def prepare(self, body: Mapping[str, Any], lease: Lease, wish: str | None = None) -> Sent:
        """Return the body to send to the engine of a lease; ``wish`` is the request's ``X-Rolecall-History``.

        Raises ``BadRequest`` for a wish that is none, ``ContextLengthExceeded`` if the text alone of what may not be
        left out is too long. Where pictures make it so, the engine has the last word.
        """
        messages = body.get("messages")
        policy = self._policy_for(lease, wish)
        if not isinstance(messages, list):
            return Sent(body)
        cut = await off_loop(truncate, messages, policy)
        sent = Sent(_with(body, cut.messages), cut)
        if not is_fitted(cut.messages, policy):
            return sent
        context = await self._contexts.of(lease)
        return sent if context is None else await self._fit(sent, lease, policy, context)

    async def smaller(
        self, sent: Sent, lease: Lease, overflow: Overflow, wish: str | None = None, *, is_last: bool = False
    ) -> Sent | None:
        """Return a smaller body after the engine refused one, ``is_last`` the smallest; None if the policy has none.

        Raises ``ContextLengthExceeded`` with the engine's number if nothing more may be left out.
        """
        self._contexts.learn(lease, overflow.context)
        policy = self._policy_for(lease, wish)
        messages = sent.body["messages"]
        if not is_fitted(messages, policy):
            return None
        if overflow.prompt is not None and not overflow.is_floor:
            await self._pricing.learn(lease, sent.body, overflow.prompt)
        costs = sent.costs or await self._pricing.costs(lease, sent.body)
        told = _as_told(costs, overflow, text_is_sure=sent.is_counted)
        room = max(room_for_answer(sent.body, overflow.context), overflow.answer)
        if room >= overflow.context:
            return None  # it is the answer that finds no room, and the engine says so
        budget = 0 if is_last else (overflow.context - room) * _CAUTION
        fitted = await off_loop(fit, messages, policy, told, budget)
        if fitted.cut.is_cut:
            return _after(sent, fitted)
        if overflow.prompt is None or overflow.prompt >= overflow.context:
            raise too_long(told, overflow.context, overflow.prompt)
        return None  # the prompt would do, but for its answer

    def _policy_for(self, lease: Lease, wish: str | None) -> HistoryPolicy:
        return self._policy.for_model(lease.entry.history).as_asked(wish)

    async def _fit(self, sent: Sent, lease: Lease, policy: HistoryPolicy, context: int) -> Sent:
        """Cut a request to a context; where that comes near it, the engine counts what is about to be sent."""
        messages, budget = sent.cut.messages, context - room_for_answer(sent.body, context)
        costs = await self._pricing.costs(lease, sent.body)
        if costs.total <= NEAR * budget:
            return replace(sent, costs=costs)
        now = Fitted(Cut(messages), costs)
        if costs.total > _FAR * budget:
            now = await off_loop(fit, messages, policy, costs, budget)
        best: Fitted | None = None
        for _ in range(_ROUNDS):
            counted = await self._pricing.count_text(lease, _with(sent.body, now.cut.messages))
            if counted is None:
                break
            ratio = counted / (now.costs.text_total or 1)
            now, costs = replace(now, costs=now.costs.scaled(text=ratio)), costs.scaled(text=ratio)
            other = await off_loop(fit, messages, policy, costs, budget)
            if _is_same(other.cut, now.cut):
                return _after(sent, _possible(now, context), is_counted=True)
            if now.costs.total <= budget:
                best = now
                if now.costs.total >= _WELL_USED * budget:
                    break
            now = other
        if best is not None:
            return _after(sent, best, is_counted=True)
        caution = 1 if costs.total <= budget else _CAUTION
        return _after(sent, await off_loop(fit, messages, policy, costs, budget * caution))


async def off_loop(work: Callable[..., T], messages: Sequence[Any], *rest: Any) -> T:
    """Do what takes long for many messages; a few are done at once."""
    if len(messages) <= _MANY:
        return work(messages, *rest)
    return await anyio.to_thread.run_sync(work, messages, *rest)


def _possible(smallest: Fitted, context: int) -> Fitted:
    """Return it; raises ``ContextLengthExceeded`` if what was counted, the text, is too long already."""
    if smallest.costs.text_total >= context:
        raise too_long(smallest.costs, context)
    return smallest


def _is_same(one: Cut, other: Cut) -> bool:
    return (one.dropped_messages, one.dropped_images) == (other.dropped_messages, other.dropped_images)


def _as_told(costs: Costs, overflow: Overflow, *, text_is_sure: bool) -> Costs:
    """Return the costs made to add up to what the engine counted; where the text is sure, it is the pictures'."""
    told: float = overflow.prompt or overflow.context
    if overflow.is_floor or overflow.prompt is None:
        told = max(told, costs.total) * _BEYOND
    if text_is_sure and costs.images_total and told > costs.text_total:
        return costs.scaled(images=(told - costs.text_total) / costs.images_total)
    ratio = told / (costs.total or 1)
    return costs.scaled(text=ratio, images=ratio)


def _after(sent: Sent, fitted: Fitted, *, is_counted: bool = False) -> Sent:
    """Return what is sent now that a fit has followed what was left out before."""
    return Sent(_with(sent.body, fitted.cut.messages), fitted.cut.after(sent.cut), fitted.costs, is_counted=is_counted)


def _with(body: Mapping[str, Any], messages: Sequence[Any]) -> Mapping[str, Any]:
    return body if messages is body.get("messages") else {**body, "messages": list(messages)}
