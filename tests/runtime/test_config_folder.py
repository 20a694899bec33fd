"""A config folder that is written: whole or not at all, with copies of what a person wrote."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from rolecall.errors import ConfigurationError
from rolecall.runtime.config_folder import PlannedFile, write_folder
from rolecall.runtime.engine_places import llama_servers, vllm_programs


def listing(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, hidden ones included."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_a_new_folder_has_all_files(tmp_path: Path) -> None:
    """It appears with them, its parents are made, and nothing else is left beside it."""
    folder = tmp_path / "config" / "rolecall"
    assert write_folder(folder, [PlannedFile("a", b"1"), PlannedFile("b", b"2")]) == {}
    assert listing(folder) == {"a": b"1", "b": b"2"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_new_folder_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    """A file whose name cannot be written takes the whole folder with it."""
    with pytest.raises(OSError, match="File name too long"):
        write_folder(tmp_path / "new", [PlannedFile("a", b"1"), PlannedFile("n" * 300, b"2")])
    assert list(tmp_path.iterdir()) == []


def test_what_was_replaced_is_kept_beside_it(tmp_path: Path) -> None:
    """With its mode, under a name that says when; what a program wrote is not kept, and the rest is not touched."""
    (tmp_path / "mine").write_bytes(b"old")
    (tmp_path / "mine").chmod(0o640)
    (tmp_path / "made").write_bytes(b"old")
    (tmp_path / "same").write_bytes(b"same")
    before = (tmp_path / "same").stat().st_mtime_ns
    files = [
        PlannedFile("mine", b"new", b"old"),
        PlannedFile("made", b"new", b"old", by_hand=False),
        PlannedFile("same", b"same", b"same"),
        PlannedFile("fresh", b"new"),
    ]
    backups = write_folder(tmp_path, files)
    assert list(backups) == ["mine"]
    assert backups["mine"].read_bytes() == b"old"
    assert stat.S_IMODE(backups["mine"].stat().st_mode) == 0o640
    assert listing(tmp_path) == {
        "mine": b"new",
        "made": b"new",
        "same": b"same",
        "fresh": b"new",
        backups["mine"].name: b"old",
    }
    assert (tmp_path / "same").stat().st_mtime_ns == before
    (again,) = write_folder(tmp_path, [PlannedFile("mine", b"newer", b"new")]).values()
    assert again != backups["mine"]


def test_what_was_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """Not even the files before it are written."""
    (tmp_path / "mine").write_bytes(b"changed")
    with pytest.raises(ConfigurationError, match=r"mine was changed meanwhile, so nothing was written"):
        write_folder(tmp_path, [PlannedFile("first", b"new"), PlannedFile("mine", b"new", b"old")])
    assert listing(tmp_path) == {"mine": b"changed"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_all_is_written(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle ends the command afterwards, with every file as it is to be."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    synchronise = os.fsync

    def interrupted(fd: int) -> None:
        os.kill(os.getpid(), number)
        synchronise(fd)

    monkeypatch.setattr(os, "fsync", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path / "new", [PlannedFile("a", b"1"), PlannedFile("b", b"2")])
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert listing(tmp_path / "new") == {"a": b"1", "b": b"2"}


def program(path: Path) -> Path:
    """Make a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_engines_at_usual_places(tmp_path: Path) -> None:
    """A build in a clone, a virtual environment: each once, programs only."""
    built = program(tmp_path / "llama.cpp" / "build" / "bin" / "llama-server")
    (tmp_path / ".local" / "bin").mkdir(parents=True)
    (tmp_path / ".local" / "bin" / "llama-server").symlink_to(built)
    (tmp_path / "src" / "llama.cpp" / "llama-server").mkdir(parents=True)
    vllm = program(tmp_path / "vllm" / ".venv" / "bin" / "vllm")
    assert [path for path in llama_servers(tmp_path) if path.is_relative_to(tmp_path)] == [built]
    assert [path for path in vllm_programs(tmp_path) if path.is_relative_to(tmp_path)] == [vllm]
