"""What is known of the model of a lease for counting its prompts: what was learnt, and how it cuts images up."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

import anyio.to_thread

from rolecall.core.image_tokens import ImageSpec
from rolecall.gateway.prompt_costs import Knowledge
from rolecall.runtime.image_specs import ImageSpecs, named_spec
from rolecall.runtime.lease import Lease
from rolecall.runtime.token_memory import TokenMemory


class ModelKnowledge:
    """Brings together the memory and the files; the files are looked at once an engine, in a thread, by ``prepare``."""

    def __init__(self, memory: TokenMemory, specs: ImageSpecs) -> None:
        self._memory = memory
        self._specs = specs
        # By the event of its end, which each engine has one of: what is known of an engine goes with it.
        self._known: WeakKeyDictionary[asyncio.Event, ImageSpec | None] = WeakKeyDictionary()

    async def prepare(self, lease: Lease) -> None:
        """Look at the files of the lease's model, unless that was done already."""
        if lease.engine_gone not in self._known:
            spec = await anyio.to_thread.run_sync(self._specs.of, lease.entry, lease.backend)
            self._known[lease.engine_gone] = spec

    def __call__(self, lease: Lease) -> Knowledge:
        """Return what is known; of images, before ``prepare``, what the model's name tells."""
        entry = lease.entry
        is_prepared = lease.engine_gone in self._known
        spec = self._known[lease.engine_gone] if is_prepared else named_spec(entry)
        return Knowledge(self._memory.model(entry.name), spec, entry.image_tokens)
