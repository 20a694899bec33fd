"""Commands on a disk that takes nothing: the reason in a line that names the file, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli.invoke import answer, configured, environment, on_a_full_disk
from harness import DEADLINE_S, Rolecall, fake_entry
from insight.written_lines import line

KEYS = 'api_keys_file = "keys.json"\n'
EXPERIMENT = '[x]\nrole = "r"\nmetric = "success"\n[x.variants.a]\n[x.variants.b]\n'


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a request log."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(line(at, prompt_id="p", model="m") for at in range(5)))
    return path


def refused(*arguments: str | Path, room: int = 0) -> str:
    """Return the only line that a command says, which fails because it cannot write."""
    done = on_a_full_disk(*arguments, room=room)
    assert (done.returncode, done.stdout) == (1, ""), done
    (told,) = done.stderr.splitlines()
    return told


def names(folder: Path) -> list[str]:
    """Return everything in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (("keys", "add", "k"), "keys.json"),
        (("models", "set", "m", "vram_estimate_mb=200"), "model_registry.curated.json"),
        (("models", "disable", "m"), "model_registry.curated.json"),
    ],
)
def test_a_file_of_the_configuration(command: Sequence[str], file: str, tmp_path: Path) -> None:
    """It is named, and everything stays as it was."""
    options = configured(tmp_path, [fake_entry("m")], KEYS)[:2]
    before = names(tmp_path)
    assert refused(*command, *options) == f"rolecall: {tmp_path / 'configs' / file}: File too large"
    assert names(tmp_path) == before


@pytest.mark.parametrize("room", [0, 5000, 200_000])
def test_a_backup(room: int, tmp_path: Path) -> None:
    """It is named, whether it fails at once, in the middle or at the end; there is no part of it."""
    options = configured(tmp_path)
    (tmp_path / "state" / "usage.json").write_bytes(os.urandom(500_000))
    before = names(tmp_path)
    file = tmp_path / "b.tar.gz"
    assert refused("backup", file, *options, room=room) == f"rolecall: {file}: File too large"
    assert names(tmp_path) == before


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not here")
@pytest.mark.parametrize("size", [100, 500_000])
def test_a_backup_by_zstd(size: int, tmp_path: Path) -> None:
    """It is told as well, though another program writes and ends, as a rule, before it was given everything."""
    options = configured(tmp_path)
    (tmp_path / "state" / "usage.json").write_bytes(os.urandom(size))
    file = tmp_path / "b.tar.zst"
    assert refused("backup", file, *options).startswith(f"rolecall: {file}: zstd")
    assert not file.exists()


def test_a_restore(tmp_path: Path) -> None:
    """The file for which there was no room is named, and none is put back."""
    options = configured(tmp_path / "one")
    file = tmp_path / "b.tar.gz"
    answer("backup", file, *options)
    config, state = tmp_path / "two" / "configs", tmp_path / "two" / "state"
    told = refused("restore", file, "--config-dir", config, "--state-dir", state)
    assert told.startswith(f"rolecall: {state}/.restore-")
    assert told.endswith(": File too large")
    assert not (tmp_path / "two").exists()


# --- the output -------------------------------------------------------------------------------------------------------


def into_full(*command: str | Path, unbuffered: str) -> str:
    """Return what a command says whose output can't be written, and which ends with 1."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rolecall", *map(str, command)],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )
    assert done.returncode == 1
    return done.stderr.strip()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "models --help",
        "keys list --json",
        "doctor",
        "logs stats",
        "report prompts",
        "report experiment x",
    ],
)
def test_an_output_that_cannot_be_written(command: str, unbuffered: str, log: Path, tmp_path: Path) -> None:
    """It is told as what it is, of whatever command; neither the log nor another file is blamed."""
    options: Sequence[str | Path] = ()
    if command == "report experiment x":
        options = ("--file", log, *configured(tmp_path)[:2])
        (tmp_path / "configs" / "experiments.toml").write_text(EXPERIMENT)
    elif command in {"logs stats", "report prompts"}:
        options = ("--file", log)
    elif command in {"keys list --json", "doctor"}:
        options = configured(tmp_path, settings=KEYS)
    told = into_full(*command.split(), *options, unbuffered=unbuffered)
    assert told == "rolecall: cannot write the output: No space left on device"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_a_server_says_cannot_be_written(tmp_path: Path) -> None:
    """So it is with `status`."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        told = into_full("status", "--url", server.base_url, unbuffered="")
    assert told == "rolecall: cannot write the output: No space left on device"
