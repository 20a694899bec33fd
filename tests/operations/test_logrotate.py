"""The request log rotated from outside while requests come: by logrotate itself, and by hand."""

from __future__ import annotations

import getpass
import grp
import gzip
import json
import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from cli.invoke import call
from harness import Rolecall, eventually, fake_entry
from operations.shipped import shipped

LOGROTATE = shutil.which("logrotate") or shutil.which("logrotate", path="/usr/sbin:/sbin")


def asking(server: Rolecall, done: threading.Event, answered: list[str]) -> None:
    """Send one request after the other."""
    while not done.is_set():
        answered.append(server.chat("m").headers["x-request-id"])


def ids(folder: Path) -> list[str]:
    """Return the request ids of all log files, compressed or not; each line has to be whole."""
    found = []
    for path in folder.glob("log.jsonl*"):
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        found += [json.loads(line)["request_id"] for line in text.splitlines()]
    return found


@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not here")
def test_the_shipped_configuration_loses_no_line(tmp_path: Path) -> None:
    """Three rotations under load: each answer has its one line, and the new file is its owner's alone."""
    folder = tmp_path / "logs"
    folder.mkdir(mode=0o755)
    group = grp.getgrgid(os.getgid()).gr_name
    text = shipped("logrotate.conf").replace("/var/log/rolecall/requests.", str(folder / "log."))
    text = text.replace("su rolecall rolecall", f"su {getpass.getuser()} {group}")
    (tmp_path / "rotate.conf").write_text(text)
    (tmp_path / "rotate.conf").chmod(0o644)
    log = str(folder / "log.jsonl")
    with Rolecall(tmp_path / "r", [fake_entry("m")], settings={"log_backups": 0, "log_path": log}) as server:
        done, answered = threading.Event(), list[str]()
        thread = threading.Thread(target=asking, args=(server, done, answered))
        thread.start()
        try:
            for number in range(3):
                seen = len(answered)
                eventually(lambda seen=seen: len(answered) > seen + 20)  # type: ignore[misc]
                said = {"request_id": answered[-1], "score": 1}
                eventually(lambda said=said: server.http.post("/v1/feedback", json=said).status_code == 200)  # type: ignore[misc]
                eventually((folder / "log.feedback.jsonl").exists)
                state, config = str(tmp_path / "state"), str(tmp_path / "rotate.conf")
                subprocess.run([str(LOGROTATE), "--force", "--state", state, config], check=True)
                assert (folder / "log.jsonl.1").exists(), number
                assert (folder / "log.feedback.jsonl.1").exists(), number
        finally:
            done.set()
            thread.join()
        eventually(lambda: len(ids(folder)) == len(answered))
        assert sorted(ids(folder)) == sorted(answered)
        assert stat.S_IMODE((folder / "log.jsonl").stat().st_mode) == 0o600
        assert {path.name for path in folder.iterdir()} >= {"log.jsonl", "log.jsonl.1", "log.jsonl.2.gz"}
        shown = call("logs", "--file", log, "-n", "1000", "--json").stdout.splitlines()
        assert answered[-1] in shown[-1]


def test_a_log_that_is_moved_away_by_hand(tmp_path: Path) -> None:
    """`mv` while it runs: lines go on in a new file at the old place, and nothing has to be told to anybody."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        first = server.line_of(server.chat("m"))["request_id"]
        moved = tmp_path / "moved.jsonl"
        server.log_path.rename(moved)
        second = server.line_of(server.chat("m"))["request_id"]
        assert json.loads(moved.read_text())["request_id"] == first
        assert json.loads(server.log_path.read_text())["request_id"] == second


def test_an_engine_log_that_is_emptied_goes_on(tmp_path: Path) -> None:
    """Engines append: after copytruncate their output goes on at the start, without a hole."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        server.chat("m")
        path = server.state / "engine-logs" / "m.log"
        eventually(lambda: path.stat().st_size > 0)
        os.truncate(path, 0)
        server.http.post("/v1/models/m/unload")
        assert b"\0" not in path.read_bytes()
