"""What a request's prompt costs in tokens: texts by what was learnt of the model, pictures by their sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio.to_thread

from rolecall.core.fit import Costs, costs_of
from rolecall.core.image_tokens import ImageSpec, image_tokens
from rolecall.core.text_size import TextSize, measure, measure_message, measure_tools
from rolecall.core.token_estimate import TokenModel, tokens_of_image
from rolecall.gateway.pictures import ImageSizes, Pictures, Size
from rolecall.runtime.lease import Lease

_KNOWN_WELL = 64
"""Prompts from which a model is known well."""
_PAUSE_S, _PAUSE_KNOWN_S = 0.02, 1.0
"""How long nothing is learnt of a model after something was: it takes some tenths of a millisecond each time, in which
every other request waits."""
_SHORT_BYTES = 2**13
"""What a thread would take longer for to begin with than to measure it."""
_UNSEEN: Size = (1024, 1024)
"""What a picture counts as whose size cannot be told."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known of a lease's model. ``per_image`` is what its entry says that any picture takes, in tokens."""

    model: TokenModel
    images: ImageSpec | None = None
    per_image: int | None = None


class TextCounter(Protocol):
    """Asks engines how many tokens a text has."""

    async def count_text(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        """Return the tokens of a body's text, without its pictures; None if the engine cannot tell."""
        ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is kept of a prompt until its engine says how long it was; pictures without a formula are ``unknown``."""

    size: TextSize
    image_tokens: float = 0.0
    unknown_images: int = 0


class PromptCosts:
    """The costs of prompts, and what is learnt of them."""

    def __init__(
        self,
        knowledge: Callable[[Lease], Knowledge],
        pictures: Pictures,
        counter: TextCounter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.knowledge = knowledge
        self.counter = counter
        self._pictures = pictures
        self._clock = clock
        self._learns_at: dict[str, float] = {}  # by model

    def of_request(self, text_bytes: int) -> RequestCosts:
        """Return what prices one request, which has at most so many bytes besides its pictures."""
        return RequestCosts(self, self._pictures.sizes(), is_short=text_bytes <= _SHORT_BYTES)

    def tokens(self, lease: Lease, receipt: Receipt) -> float:
        """Return how many tokens the prompt is thought to have."""
        model = self.knowledge(lease).model
        unknown = receipt.unknown_images * (model.tokens_per_image or image_tokens(None, *_UNSEEN))
        return model.predict(receipt.size, image_tokens=receipt.image_tokens) + unknown

    def is_curious(self, lease: Lease) -> bool:
        """Whether it is time to learn from another prompt of this model; who is told so settles one."""
        name, now = lease.entry.name, self._clock()
        if now < self._learns_at.get(name, -math.inf):
            return False
        is_known = self.knowledge(lease).model.observations >= _KNOWN_WELL
        self._learns_at[name] = now + (_PAUSE_KNOWN_S if is_known else _PAUSE_S)
        return True

    def settle(self, lease: Lease, receipt: Receipt, tokens: int) -> None:
        """Take in how many tokens the engine counted."""
        model = self.knowledge(lease).model
        model.learn(receipt.size, tokens, image_tokens=receipt.image_tokens, unknown_images=receipt.unknown_images)


class RequestCosts:
    """The costs of one request in all the forms that it is given, each of its pictures looked at once."""

    def __init__(self, costs: PromptCosts, sizes: ImageSizes, *, is_short: bool) -> None:
        self._costs = costs
        self._sizes = sizes
        self._is_short = is_short

    async def costs(self, lease: Lease, body: Mapping[str, Any]) -> Costs:
        """Return what each message takes, as far as that is known without asking the engine."""
        messages: Sequence[Any] = body["messages"]
        known = self._costs.knowledge(lease)
        images = [[each * known.model.image_factor for each in row] for row in await self._images(lease, messages)]
        if self._is_short:
            return _costs(known.model, body, images)
        return await anyio.to_thread.run_sync(_costs, known.model, body, images)

    async def count_text(self, lease: Lease, body: Mapping[str, Any]) -> int | None:
        """Return the tokens of a body's text as the engine counts them; None if it cannot."""
        return await self._costs.counter.count_text(lease, body)

    async def receipt(self, lease: Lease, body: Mapping[str, Any]) -> Receipt:
        """Return what is to be kept of a body that is sent, for ``settle`` once its length is known."""
        messages = body.get("messages")
        images = await self._images(lease, messages if isinstance(messages, list) else [])
        size = measure(body) if self._is_short else await anyio.to_thread.run_sync(measure, body)
        known = self._costs.knowledge(lease)
        if known.images is None and known.per_image is None:
            return Receipt(size, 0.0, sum(map(len, images)))
        return Receipt(size, sum(map(sum, images)))

    async def learn(self, lease: Lease, body: Mapping[str, Any], tokens: int) -> None:
        """Take in how many tokens the engine counted of a body that it refused."""
        self._costs.settle(lease, await self.receipt(lease, body), tokens)

    def let_go(self) -> None:
        """Let the pictures go."""
        self._sizes.forget()

    async def _images(self, lease: Lease, messages: Sequence[Any]) -> list[list[float]]:
        """Return the tokens of each picture of each message, by formula where there is one."""
        known = self._costs.knowledge(lease)
        sizes = await self._sizes.of(messages, lease.entry.max_image_pixels)
        return [
            [tokens_of_image(known.model, known.images, known.per_image, *(size or _UNSEEN)) for size in row]
            for row in sizes
        ]


def _costs(model: TokenModel, body: Mapping[str, Any], images: Sequence[Sequence[float]]) -> Costs:
    def text_tokens(message: Any) -> float:
        return model.predict_part(measure_message(message)) if isinstance(message, Mapping) else 0.0

    return costs_of(body["messages"], text_tokens, images, model.predict(measure_tools(body)))
