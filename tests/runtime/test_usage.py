"""What keys have used: counted on the loop, kept on disk."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rolecall.core.keys import ApiKey, hashed
from rolecall.core.quota import DAY_S, Usage
from rolecall.errors import RateLimited
from rolecall.runtime.usage import UsageBook, read_usage, used_today

NOON = 20_000.5 * DAY_S


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def key(name: str = "ci", **limits: Any) -> ApiKey:
    return ApiKey(name=name, sha256=hashed(name.encode()), **limits)


async def test_usage_outlives_the_process(tmp_path: Path) -> None:
    """Counts and bucket go on where they were, for each key by itself."""
    path, clock = tmp_path / "usage.json", Clock()
    book = UsageBook(path, clock)
    limited = key(requests_per_minute=2, tokens_per_day=100)
    book.begin(limited)
    book.spend(limited, 40)
    book.begin(key("other"))
    await book.write()
    book.begin(limited)
    book.close()
    again = UsageBook(path, clock)
    used = [used_today(read_usage(path), each, clock.now)[:3] for each in (limited, key("other"), key("new"))]
    assert used == [(20_000, 2, 40), (20_000, 1, 0), (20_000, 0, 0)]
    with pytest.raises(RateLimited, match="2 requests a minute"):
        again.begin(limited)
    clock.now += 30
    again.begin(limited)
    again.spend(limited, 60)
    with pytest.raises(RateLimited, match="used 100 tokens today"):
        again.begin(limited)


async def test_it_is_written_only_when_something_changed(tmp_path: Path) -> None:
    """An idle server writes nothing; what is written belongs to its owner alone and holds no name and no hash."""
    path = tmp_path / "usage.json"
    book = UsageBook(path, Clock())
    await book.write()
    book.close()
    assert not path.exists()
    book.begin(key())
    await book.write()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(word in path.read_text() for word in ("ci", key().sha256))
    path.unlink()
    await book.write()
    assert not path.exists()


async def test_old_counts_are_forgotten(tmp_path: Path) -> None:
    """The file does not grow with keys that are used no more."""
    path, clock = tmp_path / "usage.json", Clock()
    book = UsageBook(path, clock)
    for number in range(100):
        book.begin(key(f"n{number}"))
    clock.now += DAY_S
    book.begin(key())
    await book.write()
    assert len(read_usage(path)) == 1
    assert used_today(read_usage(path), key(), clock.now) == Usage(20_001, 1)


async def test_a_write_that_was_cancelled_before_it_began_is_made_up_for(tmp_path: Path) -> None:
    """What it was to write is written at the end."""
    path, clock, is_free = tmp_path / "usage.json", Clock(), threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, is_free.wait)
    book = UsageBook(path, clock)
    book.begin(key())
    writing = asyncio.create_task(book.write())
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait({writing})
    book.close()
    is_free.set()
    await busy
    assert used_today(read_usage(path), key(), clock.now).requests == 1


async def test_the_end_does_not_race_with_a_cancelled_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its thread is still at work when the last text is written; the file holds the last one, whole."""
    clock = Clock()
    for number in range(30):
        path = tmp_path / f"{number}.json"
        book = UsageBook(path, clock)
        for _ in range(200):
            book.begin(key())
        writing = asyncio.create_task(book.write())
        await asyncio.sleep(0)
        writing.cancel()
        book.begin(key())
        book.close()
        await asyncio.wait({writing})
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        assert used_today(read_usage(path), key(), clock.now).requests == 201
    assert caplog.text == ""


def test_a_row_that_makes_no_sense_costs_the_others_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One key begins anew, with a warning; the limits of all others hold."""
    path = tmp_path / "usage.json"
    row = {"day": 20_000, "requests": 3, "tokens": 100, "full_at": 0}
    rows = {key().sha256[:16]: row, "a": {"day": -1}, "b": 7, "c": row | {"tokens": None}}
    path.write_text(json.dumps({"version": 1, "used": rows}))
    assert read_usage(path) == {key().sha256[:16]: Usage(20_000, 3, 100, 0.0)}
    assert caplog.text.count("its counting begins anew") == 3


async def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Requests go on; it is written as soon as that works."""
    folder = tmp_path / "state"
    book = UsageBook(folder / "usage.json", Clock())
    for _ in range(3):
        book.begin(key())
        await book.write()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be written" in str(book.file.problem)
    folder.mkdir()
    await book.write()
    assert book.file.problem is None
    assert read_usage(folder / "usage.json") != {}


BROKEN = [
    "", "{", "[]", "null", '{"version": 2, "used": {}}', '{"version": 1}', '{"version": 1, "used": {"a": {"day": -1}}}',
    '{"version": 1, "used": {"a": {"day": 1, "requests": 1.5, "tokens": 0, "full_at": 0}}}',
    '{"version": 1, "used": {"a": {"day": 1, "requests": 1, "tokens": 0, "full_at": Infinity}}}',
    '{"version": 1, "used": {"a": {"day": 1, "requests": true, "tokens": 0, "full_at": 0}}}', "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_that_makes_no_sense_begins_anew(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning; no request fails for it."""
    path = tmp_path / "usage.json"
    path.write_text(text)
    book = UsageBook(path, Clock())
    assert "counting begins anew" in caplog.text
    book.begin(key())
    book.close()
    assert json.loads(path.read_text())["used"]
