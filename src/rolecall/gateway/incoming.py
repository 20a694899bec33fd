"""What the gateway needs to know of a request, whether it came as JSON or as an upload."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rolecall.core.catalog import Target
from rolecall.core.transforms import RequestFacts
from rolecall.gateway.http_request import Pieces
from rolecall.runtime.lease import Lease

if TYPE_CHECKING:
    from rolecall.core.experiments import Variant

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Payload:
    """A body for an engine. What is no ``bytes`` can be iterated more than once: a request may be sent again."""

    data: bytes | Pieces | AsyncIterable[bytes]
    size: int
    content_type: str = JSON


class Incoming(Protocol):
    """A request that was received whole."""

    facts: RequestFacts

    @property
    def changes(self) -> Mapping[str, str]:
        """Return headers that tell the client what was changed in its request so far."""
        ...

    @property
    def left_out(self) -> str | None:
        """Return what was left out of the history so far, ``messages=4 images=1``; None if nothing was."""
        ...

    def treat(self, variant: Variant) -> Sequence[str]:
        """Send the request as a variant of an experiment from now on; returns what its own words went before."""
        ...

    async def settle(self, target: Target) -> None:
        """Do what needs no engine, before one is waited for; raises any ``RolecallError``."""
        ...

    async def payload(self, lease: Lease) -> Payload:
        """Return the body for the engine of a lease; raises any ``RolecallError``."""
        ...

    async def smaller(self, lease: Lease, answer: bytes, *, is_last: bool) -> Payload | None:
        """Return a smaller body if an engine's error answer says that the last one was too long and that can be.

        ``is_last``: the smallest that there can be.
        """
        ...

    def room(self, lease: Lease) -> AbstractAsyncContextManager[None] | None:
        """Hold what the request needs of a context that its engine's requests share; waits for it. None if none is."""
        ...

    def learn(self, lease: Lease, prompt_tokens: int) -> None:
        """Take in how many tokens the engine counted of what it was sent."""
        ...

    def estimate(self, lease: Lease) -> float:
        """Return how many tokens the prompt that was sent is thought to have; 0 if nothing is known of it."""
        ...

    def let_go(self) -> None:
        """Give back what the request holds: it is not sent again."""
        ...
