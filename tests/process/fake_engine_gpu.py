"""The memory that the fake engine takes on simulated GPUs, and what engines say when there is not enough."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from simulator import memory
from simulator.memory import Card, OutOfMemory

if TYPE_CHECKING:
    from process.fake_engine_flags import Settings

STEP_S = 0.1
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "k": 10**3, "m": 10**6, "g": 10**9}
_ALLOCATING = "ggml_backend_cuda_buffer_type_alloc_buffer"
_CUDA_MALLOC = "cudaMalloc failed: out of memory"


class GpuMemory:
    """What one process (the engine, or a child that computes for it) holds of the GPUs that the engine sees.

    ``full_mb`` is what the loaded engine holds, 0 where no GPU is simulated or none is visible: then llama-server
    goes on without, on the CPU. Several GPUs hold equal parts.
    """

    def __init__(self, settings: Settings, pid: int, log: Callable[[str], None]) -> None:
        self._settings, self._pid, self._log = settings, pid, log
        self._simulation = memory.from_environment(os.environ)
        self._cards: list[Card] = []
        if self._simulation:
            self._cards = memory.visible(self._simulation, os.environ.get("CUDA_VISIBLE_DEVICES"))
        self.full_mb = sum(self._full_mb(card) for card in self._cards)
        self.held_mb, self._to_grow_mb = 0, settings.gpu_grow_mb

    def hold(self, mb: int) -> None:
        """Hold so much in all, more or less than before; raises ``OutOfMemory``, then it holds what it held."""
        if not self._simulation or not self._cards or mb == self.held_mb:
            return
        part, rest = divmod(mb, len(self._cards))
        shares = {card.uuid: part + (number < rest) for number, card in enumerate(self._cards)}
        memory.hold(self._simulation, shares, late_s=self._settings.gpu_release_late_s, pid=self._pid)
        self.held_mb = mb

    async def load(self) -> bool:
        """Take the memory of the loaded engine bit by bit; where that fails say why, as engines do, and return False.

        vLLM looks for its share before it loads, llama-server finds out.
        """
        if not self._cards and (self._settings.gpu_mb or self._settings.gpu_mb_per_gpu):
            self._log("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected")
        if (lacking := self._lacking_share()) is not None:
            self._log(lacking)
            return False
        try:
            await self._load_in_steps()
        except OutOfMemory as error:
            self._log(f"{_ALLOCATING}: allocating {error.mb:.2f} MiB on device {error.index}: {_CUDA_MALLOC}")
            self._log(f"alloc_tensor_range: failed to allocate CUDA{error.index} buffer of size {error.mb << 20}")
            self._log(f"llama_model_load: error loading model: unable to allocate CUDA{error.index} buffer")
            return False
        return True

    def grow(self) -> bool:
        """Take what the first completion needs; where that fails say why, as llama-server does, and return False."""
        more_mb, self._to_grow_mb = self._to_grow_mb, 0
        try:
            self.hold(self.held_mb + more_mb)
        except OutOfMemory as error:
            self._log("CUDA error: out of memory")
            self._log(f"  current device: {error.index}, in function ggml_cuda_pool_malloc_vmm")
            return False
        return True

    async def _load_in_steps(self) -> None:
        settings = self._settings
        load_s = settings.load_s + settings.load_s_per_gb * (self.full_mb or settings.gpu_mb) / 1024
        steps = max(1, round(load_s / STEP_S))
        for step in range(1, steps + 1):
            self.hold(self.full_mb * step // steps)
            if settings.progress_log:
                self._log(f"load_tensors: loading model tensors, {100 * step // steps} %")
            await asyncio.sleep(load_s / steps)

    def _lacking_share(self) -> str | None:
        """What vLLM says where its share of a GPU is not free when it starts; None where it is."""
        share = self._settings.gpu_memory_utilization
        if not self._simulation or not share or self._settings.kv_cache_memory_bytes:
            return None
        free = memory.free_mb(self._simulation)
        for number, card in enumerate(self._cards):
            if free[card.uuid] < share * card.total_mb:
                figures = f"{free[card.uuid] / 1024:.2f}/{card.total_mb / 1024:.2f} GiB"
                wanted = f"{share}, {share * card.total_mb / 1024:.2f} GiB"
                return (
                    f"ValueError: Free memory on device cuda:{number} ({figures}) on startup is less than desired "
                    f"GPU memory utilization ({wanted}). Decrease GPU memory utilization or reduce GPU memory used by "
                    "other processes."
                )
        return None

    def _full_mb(self, card: Card) -> int:
        settings = self._settings
        whole = settings.gpu_mb + settings.gpu_mb_per_1k_ctx * settings.ctx_size // 1024
        own = settings.gpu_mb_per_gpu or whole // len(self._cards)
        if settings.kv_cache_memory_bytes:
            return own + _bytes(settings.kv_cache_memory_bytes) // 2**20
        return int(settings.gpu_memory_utilization * card.total_mb) or own


def _bytes(text: str) -> int:
    """Sizes as vLLM has them: a number, or one with a unit, decimal in lower case and binary in upper case."""
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)
