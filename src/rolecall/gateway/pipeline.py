"""A JSON request on its way to an engine: what is refused, cut, fetched and changed in it, in which order.

Before an engine is waited for, what needs none: the history's turns go by policy, what no model asked for could hold is
refused, and the images that are left are fetched. With the engine known: the body is put into its words, the
conversation is cut to its context, and images are scaled down for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import orjson

from rolecall.core.catalog import Target
from rolecall.core.conversation import dispensable_images
from rolecall.core.endpoints import CHAT
from rolecall.core.fit import room_for_answer
from rolecall.core.history import ANSWER_HEADER, NOTHING_CUT, HistoryPolicy, truncate
from rolecall.core.least_tokens import CHARACTERS_PER_TOKEN, characters, check_can_fit, lasting
from rolecall.core.media import Places
from rolecall.core.overflow import read_overflow
from rolecall.core.parameters import adapt
from rolecall.core.text_size import measure
from rolecall.core.transforms import RequestFacts
from rolecall.gateway.body import dump_json, write_json
from rolecall.gateway.fitting import Fitter, Sent, off_loop
from rolecall.gateway.incoming import Payload
from rolecall.gateway.large_json import LARGE_BYTES
from rolecall.gateway.prompt_costs import Receipt
from rolecall.gateway.services import Services
from rolecall.runtime.lease import Lease

if TYPE_CHECKING:
    from rolecall.core.experiments import Variant

_LONG = 2**10 * CHARACTERS_PER_TOKEN
"""The characters from which on an engine is asked for its context: few contexts are too small for less."""
_KEPT_BYTES = 2**16
"""A prompt in words of up to so many bytes is kept as it was sent until somebody asks what it cost, which is rare."""


class JsonRequest:
    """A request with a JSON body of ``size`` bytes; ``wish`` is its header ``X-Rolecall-History``."""

    def __init__(
        self, services: Services, body: Mapping[str, Any], facts: RequestFacts, wish: str | None, *, size: int
    ) -> None:
        """Raises ``BadRequest`` for a wish that is none: before a model is waited for."""
        self.facts = facts
        self._services = services
        self._counting = counting = services.counting
        self._body = body
        self._size = size
        self._wish = wish
        counting.policy.as_asked(wish)
        in_media = sum(medium.size for medium in facts.media) if facts.media else 0
        self._costs = counting.costs.of_request(size - in_media)
        self._fitter = Fitter(counting.policy, counting.contexts, self._costs)
        self._places = Places.of(body, facts.media) if facts.media else Places()
        self._settled = self._shown = NOTHING_CUT
        self._sent: Sent | None = None
        self._receipt: Receipt | None = None
        self._kept = b""
        self._variant: Variant | None = None

    @property
    def changes(self) -> Mapping[str, str]:
        """Return headers that tell the client what was changed in its request so far."""
        summary = self.left_out
        return {ANSWER_HEADER: summary} if summary else {}

    @property
    def left_out(self) -> str | None:
        """Return ``messages=4 images=1``, what was left out of the history so far; None if nothing was."""
        return self._shown.summary()

    def treat(self, variant: Variant) -> Sequence[str]:
        """Send the request as a variant of an experiment from now on; returns what its own words went before."""
        self._variant = variant
        return variant.kept(self._body)

    async def settle(self, target: Target) -> None:
        """Drop what the history's policy drops, and bring the images in.

        Where the models of a role have policies of their own, the model has to be known first; then all images are
        brought in.
        """
        facts = self.facts
        policies = self._policies(target) if facts.endpoint == CHAT else []
        if len(policies) == 1 and not (facts.in_words and policies[0].spares_words):
            await self._cut(policies[0])
        if policies and not self._surely_fits(target):
            await self._check_can_fit(target, policies)
        if facts.addresses:
            await self._admit(policies)

    def _policies(self, target: Target) -> Sequence[HistoryPolicy]:
        """Return the different policies that the models of a target have."""
        base, wish = self._counting.policy, self._wish
        found = [base.for_model(entry.history).as_asked(wish) for entry in target.entries]
        return found if len(found) == 1 else list(dict.fromkeys(found))

    async def _admit(self, policies: Sequence[HistoryPolicy]) -> None:
        dispensable: Collection[tuple[int, int]] = ()
        if policies and all(policy.fit != "off" for policy in policies):
            dispensable = await off_loop(dispensable_images, self._body["messages"])
        images = self._services.images
        self._body, gone = await images.admit(self._body, self.facts, self._places, dispensable)
        if gone:
            self._settled = self._shown = replace(self._settled, dropped_images=self._settled.dropped_images + gone)

    async def _cut(self, policy: HistoryPolicy) -> None:
        cut = await off_loop(truncate, self._body["messages"], policy)
        self._body = {**self._body, "messages": cut.messages}
        self._settled = self._shown = cut.counted()
        if cut.dropped_images:
            self._places.keep(self._body)

    async def payload(self, lease: Lease) -> Payload:
        """Return the body for the engine of a lease."""
        traits = self._services.roster.traits(lease.entry)
        asked = self._body if self._variant is None else self._variant.treated(self._body, self.facts.endpoint)
        body: Mapping[str, Any] = adapt(asked, self.facts, lease.entry, lease.backend.served_id(lease.entry), traits)
        if self.facts.endpoint != CHAT:
            return await self._written(lease, body)
        if self.facts.in_words and self._fitter.spares_words(lease, self._wish):
            sent = Sent(body)
        else:
            await self._counting.knowledge.prepare(lease)
            sent = await self._fitter.prepare(body, lease, self._wish)
        if self._size > _LONG:
            await self._check_can_fit_in(lease, sent.body["messages"])
        return await self._fitted(lease, sent)

    def _surely_fits(self, target: Target) -> bool:
        """Whether ``_check_can_fit`` would find nothing: no body has more characters than bytes."""
        size = self._size
        return any(size <= (entry.context_tokens or math.inf) * CHARACTERS_PER_TOKEN for entry in target.entries)

    async def _check_can_fit(self, target: Target, policies: Collection[HistoryPolicy]) -> None:
        """Raise ``ContextLengthExceeded`` for what neither the models of a target nor their fallbacks could hold.

        An engine may have a larger context than its entry says, but hardly one in which each token would stand for
        hundreds of characters.
        """
        targets = (target, *self._services.roster.fallbacks(target))
        contexts = [entry.context_tokens for each in targets for entry in each.entries]
        known = [context for context in contexts if context is not None]
        if known and len(known) == len(contexts):
            is_settled = len(targets) == len(policies) == 1
            policy = next(iter(policies)) if is_settled else HistoryPolicy(fit="all")
            await self._check_length(self._body["messages"], policy, max(known))

    async def _check_can_fit_in(self, lease: Lease, messages: Sequence[Any]) -> None:
        """Raise ``ContextLengthExceeded`` for what the engine of a lease could not hold, by what it says itself.

        It would take seconds to refuse it: engines cut a text into tokens to its end.
        """
        if await off_loop(characters, messages) > _LONG:
            context = await self._counting.contexts.of(lease)
            if context is not None:
                await self._check_length(messages, HistoryPolicy(fit="off"), context)

    async def _check_length(self, messages: Sequence[Any], policy: HistoryPolicy, context: int) -> None:
        is_cut_by_engine = self._body.get("truncate_prompt_tokens") is not None  # vLLM's field
        if not is_cut_by_engine and await off_loop(characters, messages) > context * CHARACTERS_PER_TOKEN:
            await anyio.to_thread.run_sync(lambda: check_can_fit(lasting(messages, policy), context))

    async def smaller(self, lease: Lease, answer: bytes, *, is_last: bool) -> Payload | None:
        """Return a smaller body if an engine's error answer says that the last one was too long and that can be."""
        overflow = read_overflow(_parsed(answer)) if self._sent is not None else None
        if self._sent is None or overflow is None:
            return None
        sent = await self._fitter.smaller(self._sent, lease, overflow, self._wish, is_last=is_last)
        return None if sent is None else await self._fitted(lease, sent)

    async def _fitted(self, lease: Lease, sent: Sent) -> Payload:
        self._sent = sent
        self._shown = sent.cut.counted().after(self._settled) if sent.cut.is_cut else self._settled
        self._receipt, self._kept = None, b""
        payload = await self._written(lease, sent.body)
        if self.facts.in_words and payload.size <= _KEPT_BYTES and isinstance(payload.data, bytes):
            self._kept = payload.data
        else:
            self._receipt = await self._costs.receipt(lease, sent.body)
        return payload

    async def _written(self, lease: Lease, body: Mapping[str, Any]) -> Payload:
        if self.facts.images:
            body = await self._services.images.shrink(body, lease.entry, self._places)
        elif self._size < LARGE_BYTES:
            small = dump_json(body)
            return Payload(small, len(small))
        data = await write_json(body)
        return Payload(data, len(data))

    def _measured(self) -> Receipt | None:
        """Return what the prompt that was sent amounts to; None for what is no chat."""
        if self._kept:
            self._receipt, self._kept = Receipt(measure(orjson.loads(self._kept))), b""
        return self._receipt

    def room(self, lease: Lease) -> AbstractAsyncContextManager[None] | None:
        """Hold what the request needs of a context that its engine's requests share; waits for it. None if none is."""
        counting, sent = self._counting, self._sent
        if sent is None or not lease.backend.shares_context(lease.entry) or (receipt := self._measured()) is None:
            return None
        tokens, body = counting.costs.tokens, sent.body
        return counting.shared.room(lease, lambda context: tokens(lease, receipt) + room_for_answer(body, context))

    def learn(self, lease: Lease, prompt_tokens: int) -> None:
        """Take in how many tokens the engine counted of what it was sent."""
        costs = self._counting.costs
        if (self._receipt or self._kept) and costs.is_curious(lease) and (receipt := self._measured()) is not None:
            costs.settle(lease, receipt, prompt_tokens)

    def estimate(self, lease: Lease) -> float:
        """Return how many tokens the prompt that was sent is thought to have; 0 for what is no chat."""
        receipt = self._measured()
        return 0 if receipt is None else self._counting.costs.tokens(lease, receipt)

    def let_go(self) -> None:
        """Let the body go."""
        if not self._body:
            return
        self._body, self._sent, self._places = {}, None, Places()
        self._costs.let_go()


def _parsed(answer: bytes) -> Any:
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        return None
