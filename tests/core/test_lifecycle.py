"""The lifecycle's table: what is in it, what is not, and how it is drawn."""

from __future__ import annotations

from itertools import product

import pytest

from rolecall.core.lifecycle import TRANSITIONS, IllegalTransitionError, State, Step, advance, diagram

PAIRS = list(product(State, Step))


@pytest.mark.parametrize(("state", "step"), [pair for pair in PAIRS if pair in TRANSITIONS])
def test_a_pair_of_the_table_advances(state: State, step: Step) -> None:
    """A step that the table allows leads to the table's state."""
    assert advance(state, step) is TRANSITIONS[state, step]


@pytest.mark.parametrize(("state", "step"), [pair for pair in PAIRS if pair not in TRANSITIONS])
def test_any_other_pair_is_refused(state: State, step: Step) -> None:
    """A step that the table lacks raises, naming both."""
    with pytest.raises(IllegalTransitionError, match=f"{state.value} cannot {step.value}"):
        advance(state, step)


@pytest.mark.parametrize("state", State)
def test_an_exit_that_was_asked_for_is_no_crash(state: State) -> None:
    """Only an engine that is stopping ends as STOPPED; any other that exits has FAILED."""
    if (state, Step.EXIT) in TRANSITIONS:
        assert advance(state, Step.EXIT) is (State.STOPPED if state is State.STOPPING else State.FAILED)


def test_a_crash_of_what_was_to_stop_is_a_failure() -> None:
    """An engine that had ended by itself before it was told to is no engine that stopped."""
    assert advance(State.STOPPING, Step.CRASH) is State.FAILED


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_left_for_stopped(state: State) -> None:
    """No state is a trap: steps lead from each to STOPPED."""
    reached = {state}
    for _ in State:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert State.STOPPED in reached
    assert State.READY in reached


def test_diagram_draws_the_table() -> None:
    """The diagram has one arrow per pair of the table and starts at STOPPED."""
    lines = diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> STOPPED"]
    assert len(lines) == 2 + len(TRANSITIONS)
    assert "    STARTING --> READY: become ready" in lines
