"""How long an instance waits for its engine, and what it raises when it waits no longer."""

from __future__ import annotations

from dataclasses import dataclass


class Unwell(Exception):
    """The engine has to be ended, for the reason in the text."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits in seconds; ``load_limit`` is a multiple of ``load_timeout_s``.

    A load may go on while there is a sign of progress every ``load_timeout_s``, but not beyond that multiple.
    """

    first_poll_s: float = 0.02
    slowest_poll_s: float = 0.25
    poll_timeout_s: float = 2.0
    load_limit: float = 5.0
    probe_every_s: float = 5.0
    probe_timeout_s: float = 5.0
    probe_failures: int = 3
    """So many in a row, and an engine whose answers do not get on is ended."""
    last_probe_s: float = 0.5
    """For the answer of an engine that was well and is to end: its end waits for it."""
    sleep_s: float = 120.0
    """At level 1 the weights are copied to host RAM."""
    wake_s: float = 300.0
    """For each call; at level 2 one of them reads the weights again."""
    canary_s: float = 60.0
    takeover_s: float = 1.5
    """For the answer of an engine that is to be taken over, and for its end if there is none: a start waits for it."""
    term_grace_s: float = 5.0
    """From SIGTERM to SIGKILL, unless the launch knows better: engines that are idle end in less than a second."""
    last_grace_s: float = 2.0
    """For those that clean up after the others, once these are killed."""
