"""What loads have taught: how much memory a model really held, and how long its loading and waking took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

WINDOW = 8
"""Loads that are remembered of each model."""
AGREEMENT = 0.1
"""Observations that differ by no more than this share speak of the same footprint."""
OUT_OF_MEMORY_MARGIN = 1.05
"""What is reserved after running out, times what was not enough."""


@dataclass(frozen=True, slots=True)
class FootprintKey:
    """What a footprint depends on: another value of any of these is another footprint.

    Whatever else changes it (the engine's arguments, the model's files) belongs into ``engine_build`` as well.
    """

    model: str
    context_tokens: int
    parallel: int
    engine_build: str
    device: str


@dataclass(frozen=True, slots=True)
class Learnt:
    """The last `WINDOW` observations of each kind, oldest first; ``count`` is of all loads that were measured.

    ``at_least_mb`` was reserved for a start that ran out of memory; it counts until ``WINDOW`` loads went well since
    (``since_out_of_memory``), or one load shows that the model is much smaller and the memory was others'.
    """

    held_mb: tuple[int, ...] = ()
    load_s: tuple[float, ...] = ()
    wake_s: tuple[float, ...] = ()
    count: int = 0
    at_least_mb: int | None = None
    since_out_of_memory: int = 0


NOTHING = Learnt()


def observe(learnt: Learnt, *, mb: int, again: bool = False) -> Learnt:
    """Add what a model holds, over all its devices.

    ``again`` is a later look at the same load, whose observation it raises if it is more: an engine grows with its
    first long request. So every observation is the most that one load took. Nothing held is nothing seen.
    """
    if mb <= 0:
        return learnt
    if again and learnt.held_mb:
        return replace(learnt, held_mb=(*learnt.held_mb[:-1], max(learnt.held_mb[-1], mb)))
    kept = replace(learnt, held_mb=(*learnt.held_mb, mb)[-WINDOW:], count=learnt.count + 1)
    if learnt.at_least_mb is None:
        return kept
    loads = learnt.since_out_of_memory + 1
    if loads >= WINDOW or mb < (1 - 2 * AGREEMENT) * learnt.at_least_mb:
        return replace(kept, at_least_mb=None, since_out_of_memory=0)
    return replace(kept, since_out_of_memory=loads)


def observe_load(learnt: Learnt, seconds: float) -> Learnt:
    """Add how long a start took, from the process to the first answer of its health path."""
    return replace(learnt, load_s=(*learnt.load_s, seconds)[-WINDOW:])


def observe_wake(learnt: Learnt, seconds: float) -> Learnt:
    """Add how long it took to wake a sleeping engine."""
    return replace(learnt, wake_s=(*learnt.wake_s, seconds)[-WINDOW:])


def ran_out(learnt: Learnt, reserved_mb: int) -> Learnt:
    """Note that a start with this reservation ran out of memory.

    If loads went well with no more than that, others had the memory, and it says nothing of the model.
    """
    if learnt.held_mb and reserved_mb >= max(learnt.held_mb):
        return learnt
    return replace(learnt, at_least_mb=max(learnt.at_least_mb or 0, reserved_mb), since_out_of_memory=0)


def footprint_mb(learnt: Learnt) -> int | None:
    """Return what to reserve for the next load: rather a little too much than too little; None before the first load.

    Of up to three loads it is the largest, of more the upper quartile, which keeps the error under 5 % for loads that
    vary by 3 %. A largest of three that no other comes close to is taken for a mistake (somebody else's memory was
    counted). So one wrong observation, high or low, changes little, and a footprint that has grown counts as soon as a
    quarter of the loads say so. A start that ran out of memory raises it.
    """
    if not learnt.held_mb:
        return None
    mb = _high(learnt.held_mb)
    if learnt.at_least_mb is None:
        return mb
    return max(mb, math.ceil(learnt.at_least_mb * OUT_OF_MEMORY_MARGIN))


def _high(held_mb: Sequence[int]) -> int:
    ordered = sorted(held_mb)
    if len(ordered) > 3:
        return ordered[math.ceil(0.75 * len(ordered)) - 1]
    is_mistake = len(ordered) == 3 and ordered[2] > (1 + AGREEMENT) * ordered[1]
    return ordered[1] if is_mistake else ordered[-1]


def load_s(learnt: Learnt) -> float | None:
    """Return how long the next start takes: the median, for a start from a cold disk is slower by itself."""
    return median(learnt.load_s) if learnt.load_s else None


def wake_s(learnt: Learnt) -> float | None:
    """Return how long the next waking takes."""
    return median(learnt.wake_s) if learnt.wake_s else None


Source = Literal["learnt", "computed", "declared", "files", "unknown"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is reserved for a model, MB over all its devices, and from where that is known; None is unknown."""

    mb: int | None
    source: Source
    detail: str


def choose_footprint(
    learnt: Learnt | None, computed: int | None, declared: int | None, files_mb: int | None
) -> Footprint:
    """Return the best figure for a model: learnt, else computed from its files, else declared, else its files' size.

    While no load went well, a figure that a start has already run out of memory with is passed over; if none is left
    the footprint is unknown, and the model gets a device of its own for the load that will teach it.
    """
    known = learnt or NOTHING
    mb = footprint_mb(known)
    if mb is not None:
        loads = len(known.held_mb)
        return Footprint(mb, "learnt", f"from the last {loads} loads" if loads > 1 else "from one load")
    too_little = -1 if known.at_least_mb is None else known.at_least_mb
    figures: tuple[tuple[int | None, Source, str], ...] = (
        (computed, "computed", "computed from its files"),
        (declared, "declared", "vram_estimate_mb"),
        (files_mb, "files", "the size of its files; more with its context"),
    )
    for figure, source, detail in figures:
        if figure is not None and figure > too_little:
            return Footprint(figure, source, detail)
    if known.at_least_mb is not None:
        return Footprint(None, "unknown", f"more than the {too_little} MB with which a start ran out of memory")
    return Footprint(None, "unknown", "nothing is known of its files")
