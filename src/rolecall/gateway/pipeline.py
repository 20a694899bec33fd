"""A JSON request on its way to an engine: what is refused, cut, fetched and changed in it, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rolecall.core.catalog import Target
from rolecall.core.parameters import adapt
from rolecall.core.transforms import RequestFacts
from rolecall.gateway.body import dump_json
from rolecall.gateway.incoming import Payload
from rolecall.runtime.lease import Lease


class JsonRequest:
    """A request with a JSON body."""

    def __init__(self, body: Mapping[str, Any], facts: RequestFacts) -> None:
        self.facts = facts
        self._body = body

    @property
    def changes(self) -> Mapping[str, str]:
        """Return headers that tell the client what was changed in its request so far."""
        return {}

    async def settle(self, target: Target) -> None:
        """Do what needs no engine, before one is waited for."""

    async def payload(self, lease: Lease) -> Payload:
        """Return the body for the engine of a lease."""
        data = dump_json(adapt(self._body, self.facts, lease.entry, lease.backend.served_id(lease.entry)))
        return Payload(data, len(data))

    async def smaller(self, lease: Lease, status: int, answer: bytes) -> Payload | None:
        """Return a smaller body if an engine's error answer says that the last one was too long and that can be."""
        del lease, status, answer
        return None

    def let_go(self) -> None:
        """Let the body go."""
        self._body = {}
