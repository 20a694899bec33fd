"""A decision log is re-run, and agrees unless something was decided otherwise."""

from __future__ import annotations

import pytest

from builders import configured, spec
from rolecall.core.decisions import BrokenLogError, encode, header
from rolecall.core.events import Effect, Event, Exited
from rolecall.core.scheduler import Scheduler
from rolecall.simulation.replay import replay
from rolecall.simulation.traces import find_spec, read_spec
from rolecall.simulation.world import World


class Recorded:
    """A scheduler whose decisions are written down, as the runtime does."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.lines = [header(scheduler)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = self.scheduler.handle(event, now)
        self.lines.append(encode(event, now, effects))
        return effects

    def wake_at(self) -> float | None:
        return self.scheduler.wake_at()


def recorded(trace: str) -> list[bytes]:
    source = find_spec(trace)
    assert source is not None
    policy = Recorded(Scheduler(max_overtake_s=20, max_queue=5))
    World(read_spec(source), policy).run()
    return policy.lines


LINES = recorded("two-models-a")


@pytest.mark.parametrize("trace", ["two-models-b", "photographer"])
def test_a_log_agrees_with_the_scheduler_that_made_it(trace: str) -> None:
    """Every step of a whole simulation is decided again as it was."""
    lines = recorded(trace)
    result = replay(lines)
    assert (result.steps, result.runs, result.difference, result.truncated) == (len(lines) - 1, 1, None, ())


def test_the_first_difference_is_found() -> None:
    """A decision that was recorded otherwise is shown with its step and both answers."""
    at = next(number for number, line in enumerate(LINES) if b'"type":"Stop"' in line)
    lines = [*LINES[:at], LINES[at].replace(b'"type":"Stop"', b'"type":"Wake"'), *LINES[at + 1 :]]
    difference = replay(lines).difference
    assert difference is not None
    assert (difference.step, difference.decision.line) == (at, at + 1)
    assert "Wake" in {effect["type"] for effect in difference.decision.effects}
    assert "Wake" not in {effect["type"] for effect in difference.decided}


def test_an_event_that_cannot_be_handled_is_a_difference() -> None:
    """A log in which something impossible happens is told as such, not as a traceback."""
    begun = [LINES[0], encode(configured(spec("a")), 0, [])]
    difference = replay([*begun, encode(Exited("a"), 1, [])]).difference
    assert difference is not None
    assert difference.error == "IllegalTransitionError: a model that is stopped cannot exit"


def test_several_runs_and_a_cut_line() -> None:
    """After a kill -9 the next run appends its header; each run has a scheduler of its own."""
    result = replay([*LINES, LINES[5][:20] + b"\n", *LINES])
    assert (result.steps, result.runs, result.difference) == (2 * (len(LINES) - 1), 2, None)
    assert result.truncated == (len(LINES) + 1,)


def test_a_log_without_its_beginning_is_refused() -> None:
    """Without the header the state is not known."""
    with pytest.raises(BrokenLogError, match="line 1: no header stands before it"):
        replay(LINES[1:])
