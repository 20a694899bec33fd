"""What became of models, from the scheduler's own events and effects, in words and seconds."""

from __future__ import annotations

from rolecall.core.events import Adopted, BecameReady, Effect, Event, Exited, Pinned, Sleep, Start, Stop, Tick, Wake
from rolecall.insight.timeline import MOST_ENTRIES, Timeline


def told(*heard: tuple[float, Event | Effect]) -> list[tuple[object, ...]]:
    """Return event, model, seconds, reason and cause of each entry."""
    timeline = Timeline()
    for now, each in heard:
        is_effect = isinstance(each, Start | Stop | Sleep | Wake)
        timeline.hear(Tick() if is_effect else each, [each] if is_effect else [], now, now)  # type: ignore[arg-type, list-item]
    return [
        (entry["event"], entry["model"], entry["seconds"], entry["reason"], entry["cause"])
        for entry in timeline.newest(100)
    ]


def test_the_whole_life_of_a_model() -> None:
    """Loaded, put to sleep, woken, evicted, gone: with the seconds that each took and who it was for."""
    life = told(
        (0, Start("a", words="1 request")),
        (14.5, BecameReady("a", 14.25)),
        (100.5, Sleep("a", 1, "idle", "idle for 80 s")),
        (200, Wake("a", words="2 requests")),
        (201, BecameReady("a", 1.0)),
        (301, Stop("a", "room", "made room for b")),
        (303, Exited("a", "it was stopped")),
    )
    assert life == [
        ("load", "a", None, "1 request", None),
        ("ready", "a", 14.25, None, None),
        ("sleep", "a", 86, "idle for 80 s", "idle"),
        ("wake", "a", None, "2 requests", None),
        ("awake", "a", 1, None, None),
        ("evicted", "a", 100, "made room for b", "room"),
        ("unloaded", "a", 2, None, None),
    ]


def test_ends_that_nobody_asked_for() -> None:
    """A start that failed and a crash are told apart, each with the engine's own words."""
    life = told(
        (0, Start("a")),
        (3, Exited("a", "exit code 1: no such file")),
        (4, Start("a")),
        (6, BecameReady("a", 2.0)),
        (16, Exited("a", "killed by SIGSEGV")),
    )
    assert life[1] == ("failed", "a", 3, "exit code 1: no such file", None)
    assert life[-1] == ("crashed", "a", 10, "killed by SIGSEGV", None)


def test_an_end_by_itself_after_a_stop_was_decided() -> None:
    """The crash is told with its words, after the decision, and with the time for which it had been ready."""
    life = told(
        (0, Start("a")),
        (6, BecameReady("a", 6.0)),
        (16, Stop("a", "room", "made room for b")),
        (16.5, Exited("a", "killed by SIGSEGV", by_itself=True)),
        (20, Start("a")),
        (21, Stop("a", "unwanted", "nobody waits for it")),
        (22, Exited("a", "no such file", by_itself=True)),
    )
    assert life[2:4] == [
        ("evicted", "a", 10, "made room for b", "room"),
        ("crashed", "a", 10.5, "killed by SIGSEGV", None),
    ]
    assert life[-1] == ("failed", "a", 2, "no such file", None)


def test_a_model_that_was_there_before() -> None:
    """An engine of an earlier run is ready without a load; a late word of one that stops is none."""
    life = told((0, Adopted("a", ())), (5, Stop("a", "unload", "unloaded by hand")), (6, BecameReady("a", 9.0)))
    assert life == [("ready", "a", None, "it ran already", None), ("unload", "a", 5, "unloaded by hand", "unload")]


def test_pins_are_told() -> None:
    """By hand, both ways."""
    assert [entry[0] for entry in told((0, Pinned("a", pinned=True)), (1, Pinned("a", pinned=False)))] == [
        "pinned",
        "unpinned",
    ]


def test_only_the_newest_are_kept() -> None:
    """The count goes on; what came first is gone."""
    timeline = Timeline()
    for number in range(MOST_ENTRIES + 10):
        timeline.hear(Pinned(f"m{number}", pinned=True), [], 0, 0)
    assert timeline.count == MOST_ENTRIES + 10
    assert [entry["model"] for entry in timeline.newest(2)] == ["m508", "m509"]
    assert len(timeline.newest(10_000)) == MOST_ENTRIES


def test_an_end_of_which_nothing_is_known() -> None:
    """It is told without a time."""
    assert told((0, Exited("a", "gone"))) == [("unloaded", "a", None, None, None)]
