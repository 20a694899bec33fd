"""Sleep mode as vLLM 0.32 has it: its development endpoints, and what becomes of the memory and of the answers.

From vLLM's source and its page on sleep mode; waking without room, and the rubbish after level 2 without a reload, from
its issues (`Call to wake_up method failed: CUDA Error: out of memory`; `!!!!`).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from simulator.memory import OutOfMemory

if TYPE_CHECKING:
    from process.fake_engine_flags import Settings
    from process.fake_engine_gpu import GpuMemory
    from process.fake_engine_http import Reply, Request

TAGS = {"weights", "kv_cache"}


class SleepMode:
    """What of the engine sleeps. ``awake`` is set while requests are served."""

    def __init__(self, settings: Settings, gpu: GpuMemory) -> None:
        self._settings, self._gpu = settings, gpu
        self._asleep: set[str] = set()
        self._awake_mb = 0
        self._weights_lost = self._woke = False
        self.awake = asyncio.Event()
        self.awake.set()
        self.aborts = 0
        """How often the requests that were being answered have been aborted."""

    @property
    def nonsense(self) -> bool:
        """Whether the weights are not what they were."""
        return self._weights_lost or (self._woke and self._settings.nonsense_after_wake)

    def serves(self, path: str) -> bool:
        """Whether it is one of the development endpoints, and they are there."""
        there = self._settings.sleep_mode or os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
        return there and path in {"/sleep", "/wake_up", "/is_sleeping", "/collective_rpc"}

    async def answer(self, request: Request, reply: Reply, idle: asyncio.Event) -> None:
        """Answer a development endpoint; ``idle`` is set while no request is answered."""
        if request.method != ("GET" if request.path == "/is_sleeping" else "POST"):
            await _fail(reply, 405, "Method Not Allowed")
        elif request.path == "/sleep":
            await self._sleep(request, reply, idle)
        elif request.path == "/wake_up":
            await self._wake(request.query.get("tags"), reply)
        elif request.path == "/collective_rpc":
            await self._call(request.json(), reply)
        else:
            await reply.json({"is_sleeping": not self.awake.is_set()})

    async def _sleep(self, request: Request, reply: Reply, idle: asyncio.Event) -> None:
        level = request.query.get("level", ["1"])[-1]
        if level not in {"0", "1", "2"}:
            await _fail(reply, 400, "1 validation error: level")
            return
        if request.query.get("mode", ["abort"])[-1] == "wait":
            await idle.wait()
        self.awake.clear()
        self.aborts += 1
        if level != "0" and "weights" not in self._asleep:
            await asyncio.sleep(self._settings.sleep_s)
            self._asleep |= TAGS
            self._give_back(lose=level == "2")
        await reply.json({"status": "sleeping", "level": int(level)})

    def _give_back(self, *, lose: bool) -> None:
        """Only memory of the pool that --enable-sleep-mode makes is freed; without it the engine just pauses."""
        self._awake_mb = self._gpu.held_mb
        if self._settings.sleep_mode or self._settings.enable_sleep_mode:
            self._gpu.hold(min(self._awake_mb, self._settings.sleep_residual_mb))
            self._weights_lost = self._weights_lost or lose

    async def _wake(self, tags: list[str] | None, reply: Reply) -> None:
        # A tag that does not sleep makes vLLM do nothing, and say what is so.
        if self._asleep and set(tags or ()) <= self._asleep:
            try:
                self._take_back(set(tags or TAGS))
            except OutOfMemory:
                await _fail(reply, 500, "Call to wake_up method failed: CUDA Error: out of memory")
                return
            await asyncio.sleep(self._settings.wake_s)
        if not self._asleep:
            self.awake.set()
        await reply.json({"status": "sleeping" if self._asleep else "awake", "tags": tags})

    def _take_back(self, tags: set[str]) -> None:
        """What is not residual counts half as weights, half as KV cache."""
        asleep = self._asleep - tags
        residual = min(self._awake_mb, self._settings.sleep_residual_mb)
        if self._gpu.held_mb < self._awake_mb:
            self._gpu.hold(self._awake_mb - (self._awake_mb - residual) * len(asleep) // len(TAGS))
        self._asleep = asleep
        self._woke = True

    async def _call(self, body: Any, reply: Reply) -> None:
        method = body.get("method") if isinstance(body, dict) else None
        if method is None:
            await _fail(reply, 400, "Missing 'method' in request body")
        elif method != "reload_weights" or "weights" in self._asleep:
            await _fail(reply, 500, f"Call to collective_rpc method failed: {method}")
        else:
            await asyncio.sleep(self._settings.reload_s)
            self._weights_lost = False
            await reply.json({"results": [None]})


async def _fail(reply: Reply, status: int, message: str) -> None:
    """An error in vLLM's shape."""
    kinds = {400: "BadRequestError", 500: "InternalServerError"}
    error = {"message": message, "type": kinds.get(status, message), "param": None, "code": status}
    await reply.json({"error": error}, status)
