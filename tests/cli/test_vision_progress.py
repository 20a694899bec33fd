"""How a run over many pictures is shown: rate, what is left, and how many problems are told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest

from harness import DEADLINE_S
from rolecall.cli.vision_progress import Pace, Shown, Waits, duration
from rolecall.vision.batch_record import Record


class Clock:
    """A time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(number: int, **fields: object) -> Record:
    """Return a record of a picture."""
    return Record(f"/p/{number}.jpg", "00", "caption", "1", **fields)  # type: ignore[arg-type] # what a test sets


def test_the_rate_is_that_of_the_last_minute() -> None:
    """A model that took long to load does not slow down what is said of the rest."""
    clock = Clock()
    pace = Pace(clock)
    assert (pace.per_s, pace.left_s(10)) == (0, None)
    clock.now += 90
    pace.step()
    for _ in range(200):
        clock.now += 0.5
        pace.step()
    assert pace.per_s == pytest.approx(2, rel=0.05)
    assert pace.left_s(60) == pytest.approx(30, rel=0.05)


def test_a_limit_is_in_the_rate() -> None:
    """Where three answers come at once and then none for the rest of each minute, it is about three a minute."""
    clock = Clock()
    pace = Pace(clock)
    rates = []
    for _ in range(5):
        for _ in range(3):
            clock.now += 0.1
            pace.step()
            rates.append(pace.per_s)
        clock.now += 59.7
    assert all(1.9 / 60 < rate < 6 / 60 for rate in rates[3:]), rates


def test_the_rate_sinks_while_no_answer_comes() -> None:
    """What was fast before a wait is not said to go on so; an answer that is not late changes nothing."""
    clock = Clock()
    pace = Pace(clock)
    for _ in range(10):
        clock.now += 1
        pace.step()
    clock.now += 0.9
    assert pace.per_s == 1
    clock.now += 99.1
    assert pace.per_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1s"), (59.5, "1m00s"), (185, "3m05s"), (3599.5, "1h00m"), (7620, "2h07m")]
)
def test_durations(seconds: float, text: str) -> None:
    """Rounded up, in two units at most."""
    assert duration(seconds) == text


def test_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Answers of an earlier run are no part of the total; sums go over all records."""
    seen: list[Record] = []
    shown = Shown(5, seen.append, None)
    shown.earlier(record(0).key)
    shown.finished(record(1, model="m", prompt_tokens=7, completion_tokens=2, discarded=1, sidecar="/p/1.jpg.xmp"))
    shown.finished(record(2, model="m", status="failed", error="it is\x1b[2J empty"))
    shown.finished(record(3, model="n", sidecar_error="it is no XML"))
    tally = shown.tally
    assert (tally.ok, tally.failed, tally.earlier, tally.sidecars, tally.sidecar_errors) == (2, 1, 1, 1, 1)
    assert (tally.prompt_tokens, tally.completion_tokens, tally.discarded) == (7, 2, 1)
    assert tally.models == {"m": 2, "n": 1}
    assert len(seen) == 3
    assert shown.line().startswith("3 of 4 answers, 1 failed, ")
    assert capsys.readouterr().err.splitlines() == [
        "rolecall: /p/2.jpg: caption: it is\N{REPLACEMENT CHARACTER}[2J empty",
        "rolecall: /p/3.jpg: caption: it is no XML",
    ]


def test_problems_that_are_written_down_are_told_a_few_times(capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand of them do not fill the terminal; without an output each is told."""
    for kept, lines in ((Path("out.jsonl"), 21), (None, 30)):
        shown = Shown(30, lambda _: None, kept)
        for number in range(30):
            shown.finished(record(number, status="failed", error="it is empty"))
        told = capsys.readouterr().err.splitlines()
        assert len(told) == lines
    assert told[-1] == "rolecall: /p/29.jpg: caption: it is empty"


def test_a_wait_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line says how far it is, with the reason and what is left of the pause for as long as a question waits."""
    clock = Clock()
    shown = Shown(5, lambda _: None, None, now=clock)
    shown.tick()
    shown.waiting("the key 'photos' had its 3 requests", 20)
    clock.now += 8
    shown.tick()
    clock.now += 12
    shown.tick()
    clock.now += 2
    shown.finished(record(1))
    clock.now += 22
    shown.tick()
    assert capsys.readouterr().err.splitlines() == [
        "rolecall: 0 of 5 answers, -/s",
        "rolecall: 0 of 5 answers, -/s; it waits, 12s more: the key 'photos' had its 3 requests",
        "rolecall: 0 of 5 answers, -/s; it waits: the key 'photos' had its 3 requests",
        "rolecall: 1 of 5 answers, 2.7/min, 1m28s left",
    ]


def test_what_is_left_is_no_less_than_the_wait(capsys: pytest.CaptureFixture[str]) -> None:
    """What a fast minute promises, and what the server said of the seconds when it refused, would contradict it."""
    clock = Clock()
    shown = Shown(5, lambda _: None, None, now=clock)
    for number in range(3):
        clock.now += 4
        shown.finished(record(number))
    shown.waiting("The key 'photos' may send 3 requests a minute; the next one in 19.3 s.", 20)
    clock.now += 1
    shown.tick()
    told = "it waits, 19s more: The key 'photos' may send 3 requests a minute."
    assert capsys.readouterr().err == f"rolecall: 3 of 5 answers, 15.0/min, 19s left; {told}\n"
    clock.now += 18
    shown.tick()
    assert "left; it waits, 1s more: " in capsys.readouterr().err


def test_the_next_try_is_that_of_whoever_waits_least(capsys: pytest.CaptureFixture[str]) -> None:
    """Of several questions that wait, the first that is asked again counts, and the others still after it."""
    clock = Clock()
    shown = Shown(5, lambda _: None, None, now=clock)
    shown.waiting("it is away", 30)
    shown.waiting("it is away", 4)
    shown.tick()
    clock.now += 10
    shown.tick()
    assert [line.partition("it waits, ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "4s more: it is away",
        "20s more: it is away",
    ]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "The key 'a' may send 1 request a minute; the next one in 59.9 s.",
            "The key 'a' may send 1 request a minute.",
        ),
        ("The engine says: Too many. Please try again in 20s.", "The engine says: Too many."),
        (
            "The model m is being loaded after 270 s (max_wait_s).",
            "The model m is being loaded after 270 s (max_wait_s).",
        ),
        ("no rolecall at http://127.0.0.1:9", "no rolecall at http://127.0.0.1:9"),
    ],
)
def test_seconds_of_the_past_are_left_out(said: str, told: str) -> None:
    """When it will be asked again was so when the server said it; all else of its words is told."""
    waits = Waits(Clock())
    waits.begin(said, 20)
    assert waits.reason == told


async def test_it_is_told_while_no_answer_comes(capsys: pytest.CaptureFixture[str]) -> None:
    """The lines come by the clock, not with the answers."""
    shown = Shown(5, lambda _: None, None, every_s=0.01)
    telling = asyncio.create_task(shown.tell_now_and_then())
    said = ""
    with anyio.fail_after(DEADLINE_S):
        while said.count("rolecall: 0 of 5 answers, -/s") < 3:
            await asyncio.sleep(0.01)
            said += capsys.readouterr().err
    telling.cancel()
    assert set(said.splitlines()) == {"rolecall: 0 of 5 answers, -/s"}
    shown.finished(record(1))
    assert capsys.readouterr().err == ""
