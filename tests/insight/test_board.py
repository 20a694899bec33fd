"""What watchers are told: whatever they miss, what they hold in the end is how things stand."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from insight.screen import Screen, read_events
from rolecall.insight.board import KEPT_ROUNDS, Board, Tail

NAMES = ("models", "queue")
values = st.one_of(st.integers(-3, 3), st.text(max_size=3), st.lists(st.integers(), max_size=2))


def take(screen: Screen, told: bytes) -> None:
    """Show what was told."""
    for event in read_events(told.decode().split("\n")):
        screen.take(event)


class AnyWatchers(RuleBasedStateMachine):
    """Sections change and lists grow as they like; watchers come, read now and then, and always catch up."""

    @initialize()
    def begin(self) -> None:
        self.board = Board()
        self.sections: dict[str, dict[str, Any]] = {"models": {"data": 0}, "queue": {"waiting": 0, "data": []}}
        self.lines: list[int] = []
        self.watchers: list[tuple[Screen, int | None, int]] = []
        self.round([])

    def round(self, new: list[int]) -> None:
        self.lines += new
        tail = Tail("finished", new[-3:], max(0, len(new) - 3))
        self.board.update("t", self.sections, [tail], {"history": self.lines[-5:], "timeline": []})

    @rule(value=values, waiting=st.integers(0, 2), count=st.integers(0, 6))
    def something_happens(self, value: object, waiting: int, count: int) -> None:
        self.sections = {"models": {"data": value}, "queue": {"waiting": waiting, "data": [value]}}
        self.round(list(range(len(self.lines), len(self.lines) + count)))

    @rule(many=st.integers(KEPT_ROUNDS - 1, KEPT_ROUNDS + 1))
    def much_happens(self, many: int) -> None:
        for _ in range(many):
            self.round([len(self.lines)])

    @rule()
    def nothing_happens(self) -> None:
        before = self.board.number
        self.round([])
        assert self.board.number == before

    @rule()
    def somebody_comes(self) -> None:
        self.watchers.append((Screen(), None, 0))

    @rule(which=st.integers(0, 5))
    def somebody_reads(self, which: int) -> None:
        if self.watchers:
            self.read(which % len(self.watchers))

    def read(self, index: int) -> None:
        screen, number, _ = self.watchers[index]
        before = screen.snapshots
        take(screen, self.board.after(number))
        since = len(self.lines) - len(screen.finished) if screen.snapshots > before else self.watchers[index][2]
        if screen.snapshots > before:
            screen.skipped = 0
        self.watchers[index] = screen, self.board.number, since
        assert screen.shown == {"models": self.sections["models"]["data"], "queue": self.sections["queue"]}
        assert since + len(screen.finished) + screen.skipped == len(self.lines), "a line is neither told nor missing"
        assert screen.finished == sorted(set(screen.finished)), "a line came twice, or late"
        assert not screen.skipped or screen.finished[-1] == self.lines[-1], "the newest are those that are told"
        assert self.board.after(self.board.number) == b""

    def teardown(self) -> None:
        """All catch up."""
        for index in range(len(getattr(self, "watchers", ()))):
            self.read(index)


TestAnyWatchers = AnyWatchers.TestCase
TestAnyWatchers.settings = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)


def test_what_changed_is_told_alone() -> None:
    """Of the sections only those that differ from before are sent."""
    board = Board()
    board.update("t0", {"gpus": {"data": []}, "models": {"data": []}}, [], {})
    assert board.update("t1", {"gpus": {"data": []}, "models": {"data": [1]}}, [], {})
    told = [event["type"] for event in read_events(board.after(1).decode().split("\n"))]
    assert told == ["models"]
    assert b'"ts":"t1"' in board.after(1)


def test_who_comes_first_is_told_how_soon_to_come_again() -> None:
    """A browser that loses the stream waits a second, and no more."""
    board = Board()
    board.update("t", {"gpus": {"data": []}}, [], {"history": [], "timeline": []})
    assert board.after(None).startswith(b"retry: 1000\n\nevent: snapshot\nid: 1\n")
    assert json.loads(board.after(None).split(b"data: ")[1]) == {
        "type": "snapshot", "ts": "t", "gpus": [], "history": [], "timeline": [],
    }  # fmt: skip


def test_all_watchers_are_given_the_same_bytes() -> None:
    """A snapshot is encoded once, and so is a round."""
    board = Board()
    board.update("t", {"gpus": {"data": []}}, [], {})
    assert board.snapshot() is board.snapshot()
    board.update("t", {"gpus": {"data": [1]}}, [], {})
    assert board.after(1) is board.after(1)


def test_what_json_cannot_hold_is_told_as_text() -> None:
    """Nothing that a line may hold ends the telling."""
    board = Board()
    board.update("t", {"gpus": {"data": [object, 2**70, "\ud800"]}}, [], {"history": [{"a": 2**70}]})
    assert b"<class 'object'>" in board.snapshot()
    assert json.loads(board.snapshot().split(b"data: ")[1])["history"] == [{"a": 2**70}]
