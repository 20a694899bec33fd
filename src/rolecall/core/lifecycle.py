"""The states of a model's engine and the only ways between them."""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """Where an engine is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    SLEEPING = "sleeping"
    STOPPING = "stopping"
    FAILED = "failed"


class Step(str, Enum):
    """What can happen to it."""

    START = "start"
    BECOME_READY = "become ready"
    SLEEP = "sleep"
    STOP = "stop"
    EXIT = "exit"
    CRASH = "crash"


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.STOPPED, Step.START): State.STARTING,
    (State.FAILED, Step.START): State.STARTING,
    (State.SLEEPING, Step.START): State.STARTING,
    (State.STARTING, Step.BECOME_READY): State.READY,
    (State.READY, Step.SLEEP): State.SLEEPING,
    (State.STARTING, Step.STOP): State.STOPPING,
    (State.READY, Step.STOP): State.STOPPING,
    (State.SLEEPING, Step.STOP): State.STOPPING,
    (State.FAILED, Step.STOP): State.STOPPED,
    # An exit that was asked for is the end of stopping; any other is a crash, even with exit code 0.
    (State.STOPPING, Step.EXIT): State.STOPPED,
    (State.STOPPING, Step.CRASH): State.FAILED,  # it had ended by itself before it was told to
    (State.STARTING, Step.EXIT): State.FAILED,
    (State.READY, Step.EXIT): State.FAILED,
    (State.SLEEPING, Step.EXIT): State.FAILED,
}


class IllegalTransitionError(Exception):
    """A step that the state does not allow; nothing was changed."""


def advance(state: State, step: Step) -> State:
    """Return the state after ``step``; raises ``IllegalTransitionError`` for a pair that is not in the table."""
    try:
        return TRANSITIONS[state, step]
    except KeyError:
        raise IllegalTransitionError(f"a model that is {state.value} cannot {step.value}") from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram; ``docs/lifecycle.md`` shows it."""
    arrows = (f"    {old.name} --> {new.name}: {step.value}" for (old, step), new in TRANSITIONS.items())
    return "\n".join(["stateDiagram-v2", "    [*] --> STOPPED", *arrows])
