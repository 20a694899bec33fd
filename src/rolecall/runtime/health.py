"""Whether one engine is well: once it is there, and all the time afterwards."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NoReturn

from rolecall.runtime.engine_calls import CallFailed, EngineCalls
from rolecall.runtime.load_watch import LoadWatch
from rolecall.runtime.patience import Patience, Unwell

log = logging.getLogger(__name__)


class Health:
    """Asks the health path and nothing else: llama-server's other pages keep abandoned requests alive."""

    def __init__(self, model: str, calls: EngineCalls, patience: Patience) -> None:
        self._model = model
        self._calls = calls
        self._patience = patience

    async def until_ready(self, watch: LoadWatch) -> None:
        """Wait until the engine is well; raises ``Unwell`` when ``watch`` gives the load up."""
        pause = self._patience.first_poll_s
        while not await self._is_well():
            if reason := await watch.verdict():
                raise Unwell(reason)
            await asyncio.sleep(pause)
            pause = min(self._patience.slowest_poll_s, pause * 1.5)

    async def _is_well(self) -> bool:
        try:
            await self._calls.check_health(self._patience.poll_timeout_s)
        except CallFailed:
            return False
        return True

    async def check(self) -> None:
        """See that an engine of which nothing is known is well; raises ``Unwell``."""
        try:
            await self._calls.check_health(self._patience.takeover_s)
        except CallFailed as error:
            raise Unwell(f"it was to be taken over but is not well: {error}") from None

    async def breakdown(self) -> str | None:
        """Return what is wrong with an engine that was well; None if nothing is, or if it only takes its time.

        vLLM's server outlives the process that computes, by seconds.
        """
        try:
            await self._calls.check_health(self._patience.last_probe_s)
        except CallFailed as error:
            return None if error.is_late else f"it had broken down: {error}"
        return None

    async def watch(self, is_progressing: Callable[[], bool]) -> NoReturn:
        """Ask now and then; raises ``Unwell`` once it failed too often in a row while no answer gets on."""
        failures = 0
        while True:
            # Not all engines at the same time.
            await asyncio.sleep(self._patience.probe_every_s * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
            try:
                await self._calls.check_health(self._patience.probe_timeout_s)
                failures = 0
            except CallFailed as error:
                failures += 1
                log.warning("%s: health probe failed, %d in a row: %s", self._model, failures, error)
                if failures >= self._patience.probe_failures and not is_progressing():
                    raise Unwell(f"its health probe failed {failures} times: {error}") from None
