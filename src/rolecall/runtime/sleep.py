"""Putting one engine to sleep and waking it, with proof that it is the same as before."""

from __future__ import annotations

from rolecall.backends.base import SleepCalls
from rolecall.runtime.canary import Canary
from rolecall.runtime.engine_calls import CallFailed, EngineCalls
from rolecall.runtime.patience import Patience, Unwell


class Sleep:
    """Makes the calls of ``SleepCalls`` in their order; each method raises ``Unwell`` where the engine does not follow.

    No request of a client may be under way: vLLM crashes when it falls asleep over one (vllm-project/vllm#28714).
    """

    def __init__(self, calls: EngineCalls, sleep: SleepCalls, canary: Canary, patience: Patience) -> None:
        self.level = sleep.level
        self._calls = calls
        self._sleep = sleep
        self._canary = canary
        self._patience = patience

    async def fall_asleep(self) -> None:
        """Record what the canary is answered, unless that is known, and put the engine to sleep."""
        try:
            await self._canary.record()
            await self._calls.perform(self._sleep.sleep, self._patience.sleep_s)
            sleeps = await self._sleeps()
        except CallFailed as error:
            raise Unwell(f"it could not be put to sleep: {error}") from None
        if not sleeps:
            raise Unwell("it was put to sleep but says that it does not sleep")

    async def wake_up(self, within_s: float) -> None:
        """Wake the engine, ``within_s`` for each call, and see that the canary is answered as before."""
        try:
            for call in self._sleep.wake:
                await self._calls.perform(call, within_s)
            sleeps = await self._sleeps()
            problem = None if sleeps else await self._canary.check()
        except CallFailed as error:
            raise Unwell(f"it could not be woken: {error}") from None
        if sleeps:
            raise Unwell("it was woken but says that it sleeps")
        if problem:
            raise Unwell(f"it answered nonsense after waking: {problem}")

    async def check_awake(self) -> None:
        """See that an engine of which nothing is known does not sleep."""
        try:
            sleeps = await self._sleeps()
        except CallFailed as error:
            raise Unwell(f"it does not say whether it sleeps: {error}") from None
        if sleeps:
            raise Unwell("it sleeps, and nothing is known to compare its answers with")

    async def _sleeps(self) -> bool:
        return await self._calls.is_sleeping(self._sleep.is_sleeping, self._patience.probe_timeout_s)
