"""Counting what becomes of models, from the scheduler's own events and effects."""

from __future__ import annotations

from rolecall.core.events import (
    Adopted,
    BecameReady,
    Effect,
    Event,
    Exited,
    FellAsleep,
    Sleep,
    Start,
    Stop,
    Tick,
    UnloadRequested,
    Wake,
)
from rolecall.insight.load_tally import LoadTally
from rolecall.insight.metrics_families import load_families


def heard(*told: Event | tuple[Event, list[Effect]]) -> LoadTally:
    tally = LoadTally()
    for each in told:
        event, effects = each if isinstance(each, tuple) else (each, [])
        tally.hear(event, effects, 0.001)
    return tally


def loads(tally: LoadTally) -> dict[tuple[str, str], tuple[int, float]]:
    return {key: (sum(histogram.counts), histogram.total) for key, histogram in tally.loads.items()}


def test_a_load_by_its_kind_and_time() -> None:
    """Starts and wakings count once each, when the model is ready; an engine that others run is never loaded."""
    tally = heard(
        (Tick(), [Start("a"), Start("remote")]),
        BecameReady("remote"),
        BecameReady("a", 4.0),
        (Tick(), [Sleep("a", 1, "idle")]),
        FellAsleep("a"),
        (Tick(), [Wake("a", is_swap=True)]),
        BecameReady("a", 0.5),
        BecameReady("a", 9.0),  # nobody started it
    )
    assert loads(tally) == {("a", "start"): (1, 4.0), ("a", "wake"): (1, 0.5)}
    assert dict(tally.swaps) == {("a",): 1, ("remote",): 0}
    assert dict(tally.departures) == {("a", "sleep", "idle"): 1}
    assert tally.failures.total() == 0
    assert sum(tally.decisions.counts) == 8


def test_an_end_that_nobody_asked_for_is_a_failure() -> None:
    """A start and a waking that fail, a crash while it was ready; not the end of what was to stop."""
    tally = heard(
        (Tick(), [Start("a")]),
        Exited("a"),
        (Tick(), [Start("a")]),
        BecameReady("a", 1.0),
        Exited("a"),
        (Tick(), [Wake("a")]),
        Exited("a"),
        Adopted("b", ()),
        Exited("b"),
        (Tick(), [Start("c")]),
        (UnloadRequested("c"), [Stop("c", "unload")]),
        BecameReady("c", 1.0),  # it was too late
        Exited("c"),
        Exited("unheard-of"),
    )
    assert +tally.failures == {("a", "start"): 1, ("a", "crash"): 1, ("a", "wake"): 1, ("b", "crash"): 1}
    assert tally.failures["c", "start"] == 0
    assert dict(tally.departures) == {("c", "stop", "unload"): 1}
    assert ("c", "start") not in tally.loads


def test_an_end_by_itself_after_a_stop_was_decided() -> None:
    """It is a failure of what the engine did until then, and the decision counts as well; nothing of it stays."""
    tally = heard(
        (Tick(), [Start("a")]),
        BecameReady("a", 1.0),
        (Tick(), [Stop("a", "room")]),
        Exited("a", by_itself=True),
        (Tick(), [Start("a")]),
        (Tick(), [Stop("a", "unwanted")]),
        Exited("a", by_itself=True),
        (Tick(), [Start("a")]),
        BecameReady("a", 3.0),
        (Tick(), [Stop("a", "room")]),
        Exited("a"),
    )
    assert +tally.failures == {("a", "crash"): 1, ("a", "start"): 1}
    assert dict(tally.departures) == {("a", "stop", "room"): 2, ("a", "stop", "unwanted"): 1}
    assert loads(tally) == {("a", "start"): (2, 4.0)}


def test_a_crash_that_is_followed_by_a_start_at_once() -> None:
    """The scheduler may start the model again in the same moment: it is a crash nevertheless, and the start counts."""
    tally = heard((Tick(), [Start("a")]), BecameReady("a", 1.0), (Exited("a"), [Start("a")]), BecameReady("a", 2.0))
    assert +tally.failures == {("a", "crash"): 1}
    assert loads(tally) == {("a", "start"): (2, 3.0)}


def test_a_model_that_was_never_started_has_counts() -> None:
    """They are 0, so that the first failure is seen as growth; what was counted stays, and the tally does not grow."""
    tally = heard((Tick(), [Start("a")]), Exited("a"))
    families = {family.name: dict(family.rows) for family in load_families(tally, ["b", "a"])}
    failures = families["rolecall_model_failures"]
    assert failures == {("a", "start"): 1, ("a", "crash"): 0, ("b", "start"): 0, ("b", "crash"): 0}
    assert families["rolecall_swaps"] == {("a",): 0, ("b",): 0}
    assert set(tally.failures) == {("a", "start"), ("a", "crash")}


def test_removed_models_are_counted_together_once_there_are_too_many() -> None:
    """Below the limit nothing changes; above it all sums stay."""
    tally = LoadTally()
    for number in range(5):
        name = f"m{number}"
        for event, effects in (
            (Tick(), [Start(name, is_swap=True)]),
            (BecameReady(name, 1.0), [Stop(name, "idle")]),
        ):
            tally.hear(event, list(effects), 0)
    tally.forget({"m4"}, most=25)
    assert len(tally.swaps) == 5
    tally.forget({"m4"}, most=24)
    assert dict(tally.swaps) == {("m4",): 1, ("other",): 4}
    assert dict(tally.departures) == {("m4", "stop", "idle"): 1, ("other", "stop", "idle"): 4}
    assert loads(tally) == {("m4", "start"): (1, 1.0), ("other", "start"): (4, 4.0)}
