"""What is done about a question that got no answer."""

from __future__ import annotations

import pytest

from rolecall.vision.ask import AskError, Unreachable
from rolecall.vision.batch_patience import AWAY_S, BUSY_S, Patience, ends_all


def pauses(*errors: AskError) -> list[float | None]:
    """Return what one question's patience says to each failure."""
    patience = Patience()
    return [patience.pause_s(error) for error in errors]


def test_a_server_that_went_away_is_waited_for() -> None:
    """Longer and longer, a minute in all; then the run ends."""
    gone = Unreachable("no rolecall at x")
    waited = [pause for pause in pauses(*[gone] * 20) if pause is not None]
    assert waited[:3] == [1, 2, 4]
    assert AWAY_S <= sum(waited) < AWAY_S + 16
    assert pauses(*[gone] * 20)[-1] is None
    assert ends_all(gone) == "no rolecall at x; it was waited for 60 s"


def test_who_says_when_to_come_back_is_believed() -> None:
    """For half an hour in all, then that picture is left out and no other."""
    loading = AskError("it loads", status=503, code="model_loading", retry_after_s=100)
    assert pauses(*[loading] * 20) == [100.0] * int(BUSY_S / 100) + [None] * 2
    assert ends_all(loading) is None
    assert pauses(AskError("used up", status=429, code="rate_limit_exceeded")) == [None]


def test_a_model_that_does_not_start_ends_the_run() -> None:
    """After its third failure."""
    failed = AskError("it is on fire", status=503, code="model_start_failed", retry_after_s=4)
    assert pauses(failed, failed, failed) == [4, 4, None]
    assert ends_all(failed) == "it is on fire"


def test_an_engine_that_broke_off_is_asked_again() -> None:
    """Twice; then it is that picture that it cannot bear."""
    broken = AskError("it broke off", status=502, code="engine_error")
    assert pauses(broken, broken, broken) == [1, 2, None]
    assert ends_all(broken) is None


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (AskError("no such model", status=404), True),
        (AskError("a wrong key", status=401), True),
        (AskError("too long", status=400, code="context_length_exceeded"), False),
        (AskError("too slow", status=504), False),
    ],
)
def test_what_would_fail_again_is_not_asked_again(error: AskError, ends: bool) -> None:  # noqa: FBT001 - a parameter
    """A refusal that holds for all pictures ends the run, one of a picture's own does not."""
    assert pauses(error) == [None]
    assert (ends_all(error) is not None) == ends
