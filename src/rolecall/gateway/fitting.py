"""A chat request is cut for the engine that it was given: by policy, then to the engine's context.

The length of a prompt is estimated first. Only where that comes near the limit is the engine asked how long its text
really is; pictures are counted by their size. An engine that finds a prompt too long all the same says how long it is,
and what is sent then goes by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rolecall.core.fit import Costs, Fitted, fit, is_fitted, room_for_answer, too_long
from rolecall.core.history import Cut, HistoryPolicy, truncate
from rolecall.core.overflow import Overflow
from rolecall.gateway.engine_context import EngineContexts
from rolecall.runtime.lease import Lease

NEAR = 0.7
"""The share of the room for the prompt at which an estimate is no longer enough."""

_ROUNDS = 3
"""How often the engine counts for one request: the whole, what was cut, and once more if that was still too long."""

_CAUTION = 0.95
"""The share of the room that is used where nobody counts exactly."""

_BEYOND = 1.2
"""How much longer a prompt is taken to be than what an engine counted that stopped counting."""


class Pricing(Protocol):
    """What says how many tokens a request for an engine takes."""

    async def costs(self, lease: Lease, body: Mapping[str, Any]) -> Costs:
        """Return the estimated tokens of the messages of a body, and of what else the template makes of it."""
        ...

    async def count_text(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        """Return the tokens of all of a body's text, as the engine counts them; None if it cannot."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """A body for an engine, what was left out of it, and what its messages are thought to cost, if that was looked at.

    ``is_counted``: the engine has counted the text.
    """

    body: Mapping[str, Any]
    cut: Cut
    costs: Costs | None = None
    is_counted: bool = False


class Fitter:
    """Cuts requests for engines; ``policy`` is that of the settings."""

    def __init__(self, policy: HistoryPolicy, contexts: EngineContexts, pricing: Pricing) -> None:
        self.policy = policy
        self._contexts = contexts
        self._pricing = pricing

    async def prepare(self, body: Mapping[str, Any], lease: Lease, wish: str | None = None) -> Sent:
        """Return the body to send to the engine of a lease; ``wish`` is the request's ``X-Rolecall-History``.

        Raises ``BadRequest`` for a wish that is none, ``ContextLengthExceeded`` if the text alone of what may not be
        left out is too long. Where pictures make it so, the engine has the last word.
        """
        messages = body.get("messages")
        policy = self._policy(lease, wish)
        if not isinstance(messages, list):
            return Sent(body, Cut(()))
        cut = truncate(messages, policy)
        sent = Sent(_with(body, cut.messages), cut)
        if not is_fitted(cut.messages, policy):
            return sent
        context = await self._contexts.of(lease)
        return sent if context is None else await self._fit(sent, lease, policy, context)

    async def smaller(self, sent: Sent, lease: Lease, overflow: Overflow, wish: str | None = None) -> Sent | None:
        """Return a smaller body after the engine refused one; None if the policy has none.

        Raises ``ContextLengthExceeded`` with the engine's number if nothing more may be left out.
        """
        self._contexts.learn(lease, overflow.context)
        policy = self._policy(lease, wish)
        messages = sent.cut.messages
        if not is_fitted(messages, policy):
            return None
        costs = sent.costs or await self._pricing.costs(lease, sent.body)
        told = _as_told(costs, overflow, text_is_sure=sent.is_counted)
        room = max(room_for_answer(sent.body, overflow.context), overflow.answer)
        fitted = fit(messages, policy, told, (overflow.context - room) * _CAUTION)
        if fitted.cut.is_cut:
            return _after(sent, fitted)
        if overflow.prompt is None or overflow.prompt >= overflow.context:
            raise too_long(told, overflow.context, overflow.prompt)
        return None  # it is the answer that finds no room, and the engine says so

    def _policy(self, lease: Lease, wish: str | None) -> HistoryPolicy:
        return self.policy.for_model(lease.entry.history).as_asked(wish)

    async def _fit(self, sent: Sent, lease: Lease, policy: HistoryPolicy, context: int) -> Sent:
        """Cut a request to a context; the engine counts what comes near it, first the whole, then what was cut."""
        budget = context - room_for_answer(sent.body, context)
        costs = await self._pricing.costs(lease, sent.body)
        now = Fitted(Cut(sent.cut.messages), costs)
        if costs.total <= NEAR * budget:
            return _after(sent, now)
        for _ in range(_ROUNDS):
            counted = await self._pricing.count_text(lease, _with(sent.body, now.cut.messages))
            if counted is None:
                break
            ratio = counted / (now.costs.text_total or 1)
            now, costs = replace(now, costs=now.costs.scaled(text=ratio)), costs.scaled(text=ratio)
            smaller = fit(sent.cut.messages, policy, costs, budget)
            if now.costs.total <= budget or _is_same(smaller.cut, now.cut):
                return _after(sent, _possible(now, context), is_counted=True)
            now = smaller
        caution = 1 if costs.total <= budget else _CAUTION
        return _after(sent, fit(sent.cut.messages, policy, costs, budget * caution))


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
