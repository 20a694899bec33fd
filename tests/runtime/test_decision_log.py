"""The file of decisions: what stands in it, and who may read it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.core.decisions import Decision, Header, read
from rolecall.core.events import Tick
from rolecall.core.scheduler import Scheduler
from rolecall.runtime.decision_log import DecisionLog


@pytest.fixture
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_no_umask")
def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    """It holds the registry with the values of ``env``, whatever the umask lets through."""
    path = tmp_path / "decisions.jsonl"
    DecisionLog(path, Scheduler()).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_appended_to(tmp_path: Path) -> None:
    """Each run begins with a header of its own, and nothing of the one before is lost."""
    path = tmp_path / "folder" / "decisions.jsonl"
    for now in (1.0, 2.0):
        decisions = DecisionLog(path, Scheduler())
        decisions.record(Tick(), now, [])
        decisions.close()
        decisions.record(Tick(), 9.0, [])
    with path.open("rb") as file:
        found = list(read(file))
    assert [type(each) for each in found] == [Header, Decision, Header, Decision]
    assert [each.now for each in found if isinstance(each, Decision)] == [1.0, 2.0]


def test_a_place_that_cannot_be_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is recorded, which is said once and stops nobody."""
    (tmp_path / "file").touch()
    decisions = DecisionLog(tmp_path / "file" / "decisions.jsonl", Scheduler())
    decisions.record(Tick(), 1.0, [])
    assert caplog.text.count("cannot be written") == 1
