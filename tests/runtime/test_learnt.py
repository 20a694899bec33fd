"""What was learnt outlives the process: the file, what breaks it, and what is found in it."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.learning import FootprintKey, footprint_mb
from rolecall.runtime.learnt import MOST_KEYS, LearntRow, LearntStore

KEY = FootprintKey("alpha", 8192, 4, "llama-server 1", "GPU-0")
NAMES = st.text(max_size=20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in a folder that is made when it is needed."""
    return tmp_path / "state" / "learnt.json"


def test_what_is_saved_is_found_again(path: Path) -> None:
    """Footprints, load times, times of waking and failures, by their key."""
    store = LearntStore(path)
    store.observe_footprint(KEY, 8000)
    store.observe_footprint(KEY, 8200, again=True)
    store.observe_load(KEY, 12.5)
    store.observe_wake(KEY, 0.5)
    store.ran_out(replace(KEY, model="beta"), 9000)
    assert store.is_dirty
    store.save()
    again = LearntStore(path)
    assert not again.is_dirty
    assert again.rows() == [
        LearntRow(replace(KEY, model="beta"), None, None, None, 0, 9000),
        LearntRow(KEY, 8200, 12.5, 0.5, 1, None),
    ]


@given(st.builds(FootprintKey, NAMES, st.integers(0, 10**9), st.integers(0, 10**4), NAMES, NAMES))
def test_any_key_survives(tmp_path_factory: pytest.TempPathFactory, key: FootprintKey) -> None:
    """Names may hold anything that a registry may hold."""
    path = tmp_path_factory.mktemp("learnt") / "learnt.json"
    store = LearntStore(path)
    store.observe_footprint(key, 8000)
    store.save()
    found = LearntStore(path).get(key)
    assert found is not None
    assert footprint_mb(found) == 8000


def test_memory_is_learnt_for_one_key_only(path: Path) -> None:
    """Another context, number of slots, build or device is another footprint."""
    store = LearntStore(path)
    store.observe_footprint(KEY, 8000)
    others = ({"context_tokens": 4096}, {"parallel": 1}, {"engine_build": "2"}, {"device": "GPU-1"}, {"model": "beta"})
    assert [store.get(replace(KEY, **other)) for other in others] == [None] * len(others)


def test_times_are_those_of_the_next_of_kin(path: Path) -> None:
    """The last used key of the same model and device lends its times where there are none of its own."""
    store = LearntStore(path)
    store.observe_load(KEY, 10)
    store.observe_wake(KEY, 1)
    store.observe_load(replace(KEY, engine_build="llama-server 2"), 20)
    longer = replace(KEY, context_tokens=32768)
    assert (store.load_s(longer), store.wake_s(longer), store.load_s(KEY)) == (20, 1, 10)
    assert store.load_s(replace(KEY, device="GPU-1")) is None
    assert store.load_s(replace(KEY, model="beta")) is None


def test_nothing_is_written_without_a_change(path: Path) -> None:
    """Reading leaves no trace, and a second save touches nothing."""
    store = LearntStore(path)
    store.save()
    assert not path.exists()
    store.observe_load(KEY, 1)
    store.save()
    before = path.stat().st_mtime_ns
    store.save()
    assert path.stat().st_mtime_ns == before


def test_the_longest_unused_go_first(path: Path) -> None:
    """The file cannot grow for ever; a key that is used again is kept."""
    store = LearntStore(path)
    keys = [replace(KEY, model=f"model-{number}") for number in range(MOST_KEYS + 10)]
    for key in keys[:MOST_KEYS]:
        store.observe_footprint(key, 1000)
    store.observe_load(keys[0], 1)
    for key in keys[MOST_KEYS:]:
        store.observe_footprint(key, 1000)
    assert len(store.rows()) == MOST_KEYS
    assert [key for key in keys if store.get(key) is None] == keys[1:11]


BROKEN = {
    "empty": "",
    "no JSON": "{",
    "another shape": "[]",
    "future version": json.dumps({"version": 2, "entries": []}),
    "no entries": json.dumps({"version": 1}),
    "wrong key": json.dumps({"version": 1, "entries": [{"key": {"model": "a"}, "learnt": {}}]}),
    "deep": "[" * 100_000,
    "not a number": json.dumps(
        {
            "version": 1,
            "entries": [
                {
                    "key": {"model": "a", "context_tokens": 1, "parallel": 1, "engine_build": "", "device": ""},
                    "learnt": {"held_mb": ["8000"], "load_s": [], "wake_s": [], "count": 1, "at_least_mb": None},
                }
            ],
        }
    ),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_kept_aside(path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is warned about, nothing is lost, and learning goes on."""
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        store = LearntStore(path)
    assert "makes no sense" in caplog.text
    assert path.with_name("learnt.json.broken").read_text(encoding="utf-8") == text
    assert store.rows() == []
    store.observe_footprint(KEY, 8000)
    store.save()
    assert LearntStore(path).get(KEY) is not None


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_nonsense_in_an_entry_never_crashes(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """Whatever stands where numbers should be, the store begins."""
    path = tmp_path_factory.mktemp("learnt") / "learnt.json"
    learnt = {"held_mb": value, "load_s": value, "wake_s": [value], "count": value, "at_least_mb": value}
    key = {"model": "a", "context_tokens": value, "parallel": 1, "engine_build": "", "device": ""}
    path.write_text(json.dumps({"version": 1, "entries": [{"key": key, "learnt": learnt}]}), encoding="utf-8")
    assert LearntStore(path).rows() == []


def test_a_disk_that_takes_nothing_is_survived(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The change stays to be written; it is told once, and stays a problem until it is written."""
    path.parent.write_text("a file where the folder should be", encoding="utf-8")
    store = LearntStore(path)
    store.observe_load(KEY, 1)
    for _ in range(3):
        store.save()
    assert store.is_dirty
    told = f"what was learnt of the models' memory cannot be written to {path}: File exists"
    assert str(store.file.problem) == told
    assert caplog.messages.count(told) == caplog.text.count("cannot be written") == 1
    path.parent.unlink()
    store.save()
    assert store.file.problem is None
    assert LearntStore(path).load_s(KEY) == 1


def test_what_is_observed_while_it_is_written_is_not_lost(path: Path) -> None:
    """It is not in the file that is being written, and therefore still to be saved."""
    path.parent.mkdir()
    store = LearntStore(path)
    for number in range(800):  # more than a pipe holds
        store.observe_load(replace(KEY, model=f"model {number}"), 1)
    pipe = path.with_name(f".{path.name}.{os.getpid()}")
    os.mkfifo(pipe)
    saving = threading.Thread(target=store.save)
    saving.start()
    with pipe.open("rb") as written:  # from here on it writes, and waits for a reader
        store.observe_load(KEY, 5)
        written.read()
    saving.join(10)
    assert not saving.is_alive()
    assert store.is_dirty
    path.unlink()
    store.save()
    assert LearntStore(path).load_s(KEY) == 5
