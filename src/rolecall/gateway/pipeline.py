"""A JSON request on its way to an engine: what is refused, cut, fetched and changed in it, in which order.

Before an engine is waited for, what needs none: the history's turns go by policy, and the images that are left are
fetched. With the engine known: images are scaled down for it, the conversation is cut to its context, and the body is
put into its words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rolecall.core.catalog import Target
from rolecall.core.endpoints import CHAT
from rolecall.core.history import ANSWER_HEADER, Cut, HistoryPolicy, truncate
from rolecall.core.parameters import adapt
from rolecall.core.transforms import RequestFacts
from rolecall.gateway.body import dump_json
from rolecall.gateway.incoming import Payload
from rolecall.gateway.services import Services
from rolecall.runtime.lease import Lease


class JsonRequest:
    """A request with a JSON body; ``wish`` is its header ``X-Rolecall-History``."""

    def __init__(self, services: Services, body: Mapping[str, Any], facts: RequestFacts, wish: str | None) -> None:
        self.facts = facts
        self._services = services
        self._body = body
        self._wish = wish
        self._cut = Cut(())

    @property
    def changes(self) -> Mapping[str, str]:
        """Return headers that tell the client what was changed in its request so far."""
        summary = self.left_out
        return {ANSWER_HEADER: summary} if summary else {}

    @property
    def left_out(self) -> str | None:
        """Return ``messages=4 images=1``, what was left out of the history so far; None if nothing was."""
        return self._cut.summary()

    async def settle(self, target: Target) -> None:
        """Drop what the history's policy drops, and bring the images in.

        Where the models of a role have policies of their own, the model has to be known first; then all images are
        brought in.
        """
        if self.facts.endpoint == CHAT:
            base = HistoryPolicy.of_settings(self._services.settings.model_dump())
            policies = {base.for_model(entry.history).as_asked(self._wish) for entry in target.entries}
            if len(policies) == 1:
                cut = truncate(self._body["messages"], policies.pop())
                self._body, self._cut = {**self._body, "messages": cut.messages}, cut.after(self._cut)
        self._body = await self._services.images.admit(self._body, self.facts)

    async def payload(self, lease: Lease) -> Payload:
        """Return the body for the engine of a lease."""
        body = await self._services.images.shrink(self._body, lease.entry)
        traits = self._services.roster.traits(lease.entry)
        data = dump_json(adapt(body, self.facts, lease.entry, lease.backend.served_id(lease.entry), traits))
        return Payload(data, len(data))

    async def smaller(self, lease: Lease, status: int, answer: bytes) -> Payload | None:
        """Return a smaller body if an engine's error answer says that the last one was too long and that can be."""
        del lease, status, answer
        return None

    def let_go(self) -> None:
        """Let the body go."""
        self._body = {}
