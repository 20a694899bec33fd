"""Re-runs a decision log on a new scheduler, which must decide the same at every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rolecall.core.decisions import BrokenLogError, Decision, Description, Header, Truncated, describe, read
from rolecall.core.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step (from 1) at which something else was decided than was recorded; ``error``: or nothing could be."""

    step: int
    decision: Decision
    decided: tuple[Description, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """How far a log agrees. ``runs`` counts schedulers, ``truncated`` names lines that were cut off."""

    steps: int
    runs: int
    difference: Difference | None
    truncated: tuple[int, ...] = ()


def replay(lines: Iterable[bytes]) -> Replay:
    """Handle each recorded event again, up to the first difference; raises ``BrokenLogError`` for a broken line."""
    scheduler: Scheduler | None = None
    steps = runs = 0
    truncated: list[int] = []
    for item in read(lines):
        match item:
            case Header():
                scheduler, runs = item.scheduler(), runs + 1
            case Truncated(line):
                truncated.append(line)
            case Decision(line=line):
                if scheduler is None:
                    raise BrokenLogError(
                        f"line {line}: no header stands before it, the first part of the log is missing"
                    )
                steps += 1
                difference = _repeat(scheduler, item, steps)
                if difference is not None:
                    return Replay(steps, runs, difference, tuple(truncated))
    return Replay(steps, runs, None, tuple(truncated))


def _repeat(scheduler: Scheduler, decision: Decision, step: int) -> Difference | None:
    try:
        decided = tuple(describe(effect) for effect in scheduler.handle(decision.event, decision.now))
    except Exception as error:  # noqa: BLE001 - whatever a scheduler of today raises is the difference to report
        return Difference(step, decision, error=f"{type(error).__name__}: {error}")
    return None if decided == decision.effects else Difference(step, decision, decided)
