"""How much memory each model is given and how long its start takes: what was learnt, what its files say, its entry."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from rolecall.backends.base import Backend
from rolecall.core.footprint import Estimate
from rolecall.core.learning import NOTHING, Footprint, FootprintKey, Learnt, choose_footprint, footprint_mb
from rolecall.core.models import ModelEntry, dashed, flag_value
from rolecall.core.vram import HOST, Device, Placement
from rolecall.runtime.learnt import LearntStore
from rolecall.runtime.model_files import ModelFiles
from rolecall.runtime.registry import files_mb

_READ_MB_PER_S = 1000
"""What a disk gives, for models whose load was never seen."""

_START_S = {"vllm": 30.0}
"""What a start takes beyond reading the files."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card that counts: what kind it is, and what models may take of it in MB."""

    name: str
    capacity_mb: int


@dataclass(slots=True)
class Footprints:
    """Brings together what is known of models; ``gpus`` are the cards by UUID, empty without any.

    Only figures of GPUs are learnt: in host RAM nobody can tell a model's memory from the page cache.
    """

    store: LearntStore
    backend_for: Callable[[ModelEntry], Backend]
    gpus: Mapping[str, Gpu] = field(default_factory=dict)
    files: ModelFiles = field(default_factory=ModelFiles)

    def of(self, entry: ModelEntry) -> Footprint:
        """Return what the model is to be given; it looks at its files, call it off the event loop.

        Until something was learnt a person's word counts: what its files say goes first only if it is more, for too
        little ends in a failed start.
        """
        backend = self.backend_for(entry)
        if not backend.managed:
            return Footprint(0, "declared", "somebody else runs it")
        computed = self.computed(entry)
        computed_mb = None if computed is None else computed.mb
        declared_mb = entry.vram_estimate_mb
        if declared_mb is not None and computed_mb is not None and (computed_mb <= declared_mb or not self.gpus):
            computed_mb = None
        if backend.takes_share:
            return self._share(entry, computed, declared_mb)
        return choose_footprint(self.learnt(entry), computed_mb, declared_mb, files_mb(entry, backend))

    def _share(self, entry: ModelEntry, computed: Estimate | None, declared_mb: int | None) -> Footprint:
        """Return what an engine is given that takes what it gets: what it holds tells nothing of what it needs."""
        learnt = self.learnt(entry)
        least_mb = max(computed.least_mb if computed else 0, (learnt.at_least_mb or 0) + 1 if learnt else 0)
        if declared_mb is not None:
            return Footprint(max(declared_mb, least_mb), "declared", "vram_estimate_mb; the engine takes what it gets")
        if computed is not None:
            return Footprint(max(computed.mb, least_mb), "computed", computed.why)
        return Footprint(None, "unknown", "nothing is known of its files")

    def computed(self, entry: ModelEntry) -> Estimate | None:
        """Return what its files say, with the parts."""
        return self.files.estimate_mb(entry, self.backend_for(entry), on_gpu=bool(self.gpus))

    def in_host_mb(self, entry: ModelEntry) -> int | None:
        """Return what it takes of host RAM without a GPU, MB: by its files, else as declared; None if nobody knows."""
        backend = self.backend_for(entry)
        computed = self.files.estimate_mb(entry, backend, on_gpu=False)
        return computed.mb if computed is not None else entry.vram_estimate_mb or files_mb(entry, backend)

    def context_tokens(self, entry: ModelEntry) -> int | None:
        """Return the context that its files say the model has; None where they do not tell."""
        return self.files.context_tokens(entry, self.backend_for(entry))

    def learnt(self, entry: ModelEntry) -> Learnt | None:
        """Return what was observed of it on the kind of card that it would lie on; None for nothing."""
        keys = (self._key(entry, name) for name in self._kinds())
        found = [known for key in keys if (known := self.store.get(key)) is not None]
        return max(found, key=lambda known: known.count, default=None)

    def load_s(self, entry: ModelEntry) -> float:
        """Return how long its start takes: learnt, else guessed from the size of its files."""
        learnt_s = self._seen(entry, self.store.load_s)
        if learnt_s is not None:
            return learnt_s
        size_mb = files_mb(entry, self.backend_for(entry)) or entry.vram_estimate_mb or 0
        return 1.0 + size_mb / _READ_MB_PER_S + _START_S.get(entry.backend, 0.0)

    def wake_s(self, entry: ModelEntry, guess_s: float) -> float:
        """Return how long its waking takes: learnt, else the guess."""
        learnt_s = self._seen(entry, self.store.wake_s)
        return guess_s if learnt_s is None else learnt_s

    def observe(self, entry: ModelEntry, placement: Placement, mb: int, *, again: bool) -> int | None:
        """Take in what a model holds (``again``: the same load, looked at later); return what its next start gets.

        Never more than its cards hold: one wrong look must not make a model too large for ever.
        """
        mb = min(mb, sum(self.gpus[share.device].capacity_mb for share in placement if share.device in self.gpus))
        self.store.observe_footprint(self._key_on(entry, placement), mb, again=again)
        if self.backend_for(entry).takes_share:
            return sum(share.mb for share in placement)
        return footprint_mb(self.store.get(self._key_on(entry, placement)) or NOTHING)

    def observe_time(self, entry: ModelEntry, placement: Placement, seconds: float, *, woke: bool) -> None:
        """Take in how long a start, or a waking, took."""
        key = self._key_on(entry, placement)
        if woke:
            self.store.observe_wake(key, seconds)
        else:
            self.store.observe_load(key, seconds)

    def ran_out(self, entry: ModelEntry, placement: Placement) -> None:
        """Take in that a start with this reservation ran out of memory."""
        self.store.ran_out(self._key_on(entry, placement), sum(share.mb for share in placement))

    def save(self) -> None:
        """Write what is new to the disk; it waits for it, call it off the event loop."""
        if self.store.is_dirty:
            self.store.save()

    def _seen(self, entry: ModelEntry, time_s: Callable[[FootprintKey], float | None]) -> float | None:
        times_s = [time_s(self._key(entry, kind)) for kind in self._kinds() or [HOST]]
        return max((seconds for seconds in times_s if seconds is not None), default=None)

    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(gpu.name for gpu in self.gpus.values()))

    def _key_on(self, entry: ModelEntry, placement: Placement) -> FootprintKey:
        gpu = self.gpus.get(placement[0].device) if placement else None
        return self._key(entry, gpu.name if gpu else HOST)

    def _key(self, entry: ModelEntry, device: str) -> FootprintKey:
        backend, config = self.backend_for(entry), entry.backend_config
        # Arguments such as -ngl change what a model takes, and so does another file under the same name.
        started = repr((config.model_path, config.mmproj_path, config.command, config.extra_args))
        build = f"{backend.build()} {zlib.crc32(started.encode()):08x}"
        return FootprintKey(entry.name, entry.context_tokens or 0, backend.parallel(entry), build, device)


def cards(devices: Iterable[Device], names: Mapping[str, str]) -> dict[str, Gpu]:
    """Return the cards that count by UUID; ``names`` are the kinds of all that are there."""
    return {d.id: Gpu(names.get(d.id, d.id), d.capacity_mb) for d in devices if d.id != HOST}


def asked_share(entry: ModelEntry) -> float | None:
    """Return the part of a card (0 to 1) that the entry's arguments let vLLM take at most; None if they don't say."""
    word = flag_value(tuple(map(dashed, entry.backend_config.extra_args)), "--gpu-memory-utilization")
    try:
        share = float(word or "")
    except ValueError:
        return None
    return share if 0 < share <= 1 else None
