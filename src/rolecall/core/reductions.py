"""How a model that ran out of memory is started smaller: less context, then on the CPU; and how that is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rolecall.core.footprint import CONTEXT_STEP

FLOOR_TOKENS = 2048
"""No context is made smaller than this: a picture and its question need about as much."""

HEADER = "x-rolecall-memory"
"""The header of an answer that says what was made smaller for it, as ``told`` writes it."""

_PARTS = (2, 8)


@dataclass(frozen=True, slots=True)
class Reduction:
    """How a start is smaller than its entry says: a context of so many tokens, or without any GPU, in host RAM."""

    context_tokens: int | None = None
    on_cpu: bool = False

    def __str__(self) -> str:
        return "cpu" if self.on_cpu else f"context={self.context_tokens}"


def smaller_contexts(full: int | None) -> tuple[int, ...]:
    """Return the contexts (tokens) that are tried instead of ``full``, the largest first; none where it is not known.

    A half, an eighth and ``FLOOR_TOKENS``: each start that fails costs a load, so they are few.
    """
    if full is None:
        return ()
    parts = (full // part // CONTEXT_STEP * CONTEXT_STEP for part in _PARTS)
    tried = dict.fromkeys(max(FLOOR_TOKENS, part) for part in (*parts, FLOOR_TOKENS))
    return tuple(tokens for tokens in tried if tokens < full)


def next_context(contexts: Sequence[int], last: Reduction | None) -> Reduction | None:
    """Return the next smaller start after ``last`` (None: one of full size); None if there is none on a GPU."""
    if last is None:
        return Reduction(contexts[0]) if contexts else None
    left = (tokens for tokens in contexts if last.context_tokens is not None and tokens < last.context_tokens)
    tokens = next(left, None)
    return None if tokens is None else Reduction(tokens)


def told(reduction: Reduction | None, passed_over: Iterable[str] = ()) -> str | None:
    """Return ``instead-of=big, context=4096``: who could not answer for want of memory, and what was made smaller."""
    words = [f"instead-of={name}" for name in passed_over]
    words += [] if reduction is None else [str(reduction)]
    return ", ".join(words) or None
