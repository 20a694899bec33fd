"""`rolecall backup` and `rolecall restore`, beside a server that is busy, and without one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli.invoke import answer, call, configured, environment, in_terminal
from harness import Rolecall, eventually, fake_entry

KEYS = {"api_keys_file": "keys.json"}


def options(server: Rolecall) -> list[str]:
    """Return the options that name the server's folders."""
    return ["--config-dir", str(server.config_dir), "--state-dir", str(server.state)]


def with_dataset(server: Rolecall, count: int = 20) -> int:
    """Register pictures, tag some, and return the dataset's number."""
    pictures = server.folder / "pictures"
    pictures.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(pictures / f"{number:02}.png")
    made = server.http.post("/datasets", json={"name": "Summer", "folder": str(pictures)})
    assert made.status_code == 201, made.text
    return int(made.json()["id"])


def samples(server: Rolecall, dataset: int) -> dict[str, list[str]]:
    """Return the tags of each picture."""
    rows = server.get(f"/datasets/{dataset}/samples", limit=500)["data"]
    return {row["file_name"]: row["tags"] for row in rows}


def tag_all(server: Rolecall, dataset: int, done: threading.Event) -> None:
    """Change tags until told to stop, each in a transaction of its own."""
    ids = [row["id"] for row in server.get(f"/datasets/{dataset}/samples", limit=500)["data"]]
    number = 0
    while not done.is_set():
        number += 1
        for id_ in ids:
            answered = server.http.patch(
                f"/datasets/{dataset}/samples/{id_}", json={"tags": ["red", f"round {number}"]}
            )
            assert answered.status_code == 200, answered.text


def read(server: Rolecall) -> dict[str, Any]:
    """Return which footprints were learnt, without how often: requests go on."""
    data = json.loads((server.state / "learnt.json").read_text())
    return {entry["key"]["model"]: entry["key"] for entry in data["entries"]}


def test_backup_under_load_restored_elsewhere(tmp_path: Path) -> None:
    """What a busy server has is the same in another place: datasets as they were at one moment, what was learnt."""
    with Rolecall(tmp_path / "one", [fake_entry("m")]) as server:
        dataset = with_dataset(server)
        done = threading.Event()
        tagging = threading.Thread(target=tag_all, args=(server, dataset, done))
        tagging.start()
        try:
            for _ in range(5):
                assert server.chat("m").status_code == 200
            learnt = eventually((server.state / "learnt.json").exists) and read(server)
            file = tmp_path / "b.tar.gz"
            said = answer("backup", file, "--url", server.base_url, *options(server))
        finally:
            done.set()
            tagging.join()
        assert said["file"] == str(file)
        assert said["size"] == file.stat().st_size
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert list((server.state / "datasets").glob(".*")) == []
        refused = call("restore", file, "--force", *options(server))
        assert (refused.exit_code, "stop it first" in refused.stderr) == (1, True)
        before = samples(server, dataset)
    elsewhere = Rolecall(tmp_path / "two")
    shutil.rmtree(elsewhere.config_dir)
    restored = answer("restore", file, *options(elsewhere))
    assert read(elsewhere) == learnt
    assert restored["files"] == said["files"]
    with elsewhere:
        assert elsewhere.get("/datasets")["data"][0]["name"] == "Summer"
        after = samples(elsewhere, dataset)
        assert set(after) == set(before)
        rounds = [tags[1] for tags in after.values() if tags]
        assert all(tags[0] == "red" for tags in after.values() if tags)
        assert len(set(rounds)) <= 2  # a moment: at most one round is half done
        assert elsewhere.chat("m").status_code == 200


def test_a_server_with_keys_wants_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an admin's key the datasets that are open cannot be had, and that is said; with it they are."""
    monkeypatch.delenv("ROLECALL_API_KEY", raising=False)
    server = Rolecall(tmp_path / "one", [fake_entry("m")], settings=KEYS)
    made = call("keys", "add", "ops", "--scope", "admin", *options(server)[:2])
    key = made.stdout.strip()
    with server:
        server.http.headers["authorization"] = f"Bearer {key}"
        with_dataset(server, 2)
        file = tmp_path / "b.tar.gz"
        refused = call("backup", file, "--url", server.base_url, *options(server))
        assert refused.exit_code == 1
        assert "the server that runs was asked for a copy" in refused.stderr
        assert not file.exists()
        done = call("backup", file, "--url", server.base_url, *options(server), env={"ROLECALL_API_KEY": key})
        assert done.exit_code == 0, done.stderr
    target = tmp_path / "two"
    there = ("--config-dir", str(target / "c"), "--state-dir", str(target / "s"))
    assert call("restore", file, *there).exit_code == 0
    assert stat.S_IMODE((target / "c" / "keys.json").stat().st_mode) == 0o600
    assert [row["name"] for row in answer("keys", "list", *there[:2])] == ["ops"]


def state_of(options: tuple[str, ...]) -> Path:
    """Return the state folder of some options."""
    return Path(options[options.index("--state-dir") + 1])


def test_without_a_server_it_is_read_from_the_folders(tmp_path: Path) -> None:
    """A server that is not there is not needed; what it left half written in the datasets' log comes along."""
    with Rolecall(tmp_path / "one", [fake_entry("m")]) as server:
        dataset = with_dataset(server, 3)
        server.process.kill()
        server.process.wait()
    file = tmp_path / "b.tar.gz"
    answer("backup", file, *options(server))
    other = Rolecall(tmp_path / "two")
    shutil.rmtree(other.config_dir)
    answer("restore", file, *options(other))
    with other:
        assert len(samples(other, dataset)) == 3


def test_an_empty_file_of_datasets_is_none(tmp_path: Path) -> None:
    """What a full disk left of a first dataset does not keep anybody from a backup."""
    folders = configured(tmp_path)
    datasets = state_of(folders) / "datasets"
    datasets.mkdir()
    (datasets / "datasets.duckdb").touch()
    file = tmp_path / "b.tar.gz"
    answer("backup", file, *folders)
    with tarfile.open(file) as archive:
        assert not [name for name in archive.getnames() if "datasets" in name]


def test_datasets_that_the_backup_does_not_have_stay(tmp_path: Path) -> None:
    """After kill -9 they are in the log beside their file: a backup from before leaves that alone as well."""
    server = Rolecall(tmp_path / "one", [fake_entry("m")])
    server.state.mkdir(parents=True)
    file = tmp_path / "before.tar.gz"
    answer("backup", file, *options(server))
    with server:
        dataset = with_dataset(server, 3)
        server.process.kill()
        server.process.wait()
    assert (server.state / "datasets" / "datasets.duckdb.wal").stat().st_size > 0
    answer("restore", file, "--force", *options(server))
    with server:
        assert len(samples(server, dataset)) == 3


def with_datasets_file(there: tuple[str, ...], more_bytes: int) -> Path:
    """Put datasets without a server into a state folder, and a file that takes a while to be compressed."""
    from rolecall.vision.datasets_store import DatasetStore

    folder = state_of(there) / "datasets"
    folder.mkdir()
    DatasetStore(folder / "datasets.duckdb").close()
    (state_of(there) / "big.bin").write_bytes(os.urandom(more_bytes))
    return folder


def begun(file: Path, there: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Begin a backup in a process of its own, and wait until its file is being written."""
    argv = [sys.executable, "-m", "rolecall", "backup", str(file), *there]
    process = subprocess.Popen(argv, env=environment())
    eventually(lambda: list(file.parent.glob(f".{file.name}.*")) or process.poll() is not None)
    return process


def test_backups_at_the_same_time_are_whole(tmp_path: Path) -> None:
    """None takes the copy of the datasets away from the other."""
    there = configured(tmp_path, [])
    folder = with_datasets_file(there, 60_000_000)
    first = begun(tmp_path / "a.tar.gz", there)
    second = call("backup", tmp_path / "b.tar.gz", *there)
    assert (first.wait(60), second.exit_code) == (0, 0)
    for name in ("a.tar.gz", "b.tar.gz"):
        with tarfile.open(tmp_path / name) as archive:
            assert archive.getmember("state/datasets/datasets.duckdb").size > 0
    assert [path.name for path in folder.iterdir()] == ["datasets.duckdb"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """A timer that is stopped, a session that is closed: no half backup, and no copy of the datasets."""
    there = configured(tmp_path, [])
    folder = with_datasets_file(there, 60_000_000)
    process = begun(tmp_path / "a.tar.gz", there)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "state"]
    assert [path.name for path in folder.iterdir()] == ["datasets.duckdb"]


def test_another_server_is_not_taken_for_the_one_that_runs(tmp_path: Path) -> None:
    """A copy that was made elsewhere is not in the backup; there is none, and that is said."""
    with Rolecall(tmp_path / "one", [fake_entry("m")]) as one, Rolecall(tmp_path / "two", [fake_entry("m")]) as two:
        with_dataset(one, 1)
        with_dataset(two, 1)
        refused = call("backup", tmp_path / "b.tar.gz", "--url", two.base_url, *options(one))
    assert refused.exit_code == 1
    assert "so it has another state folder; --url names another server" in refused.stderr
    assert not (tmp_path / "b.tar.gz").exists()


def test_a_restore_that_fails_changes_nothing(tmp_path: Path) -> None:
    """What is in the way is named; files before and after it are as they were."""
    first, second = configured(tmp_path / "1", []), configured(tmp_path / "2", [], 'log_level = "debug"\n')
    (state_of(first) / "usage.json").write_text("{}")
    file = tmp_path / "b.tar.gz"
    answer("backup", file, *first)
    (state_of(second) / "usage.json").mkdir()
    failed = call("restore", file, "--force", *second)
    assert failed.exit_code == 1
    assert f"{state_of(second) / 'usage.json'}: Is a directory" in failed.stderr
    assert (tmp_path / "2" / "configs" / "rolecall.toml").read_text() == 'log_level = "debug"\n'
    assert [path.name for path in state_of(second).iterdir()] == ["usage.json"]


def test_folders_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """Nothing was configured there, so another folder is meant: an empty backup would be found out too late."""
    there = configured(tmp_path, [])
    refused = call("backup", tmp_path / "b.tar.gz", *there[:3], tmp_path / "none")
    assert refused.exit_code == 1
    assert f"{tmp_path / 'none'} is no folder that exists; --state-dir names the one to back up" in refused.stderr


def test_on_a_terminal_it_shows_how_far_it_is(tmp_path: Path) -> None:
    """A bar while it works, which is taken away; what stays is the result."""
    there = configured(tmp_path, [])
    (state_of(there) / "learnt.json").write_bytes(bytes(5_000_000))
    lines = in_terminal("backup", tmp_path / "b.tar.gz", *there, columns=200, kind="xterm")
    assert any("writing" in line for line in lines)
    assert "b.tar.gz: 4 files, " in lines[-1]


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    """Neither command writes over anything without --force; with it, files of the backup win and others stay."""
    first, second = configured(tmp_path / "1", []), configured(tmp_path / "2", [], 'log_level = "debug"\n')
    (state_of(first) / "usage.json").write_text("{}")
    (state_of(second) / "mine.json").write_text("{}")
    file = tmp_path / "b.tgz"
    assert call("backup", file, *first).exit_code == 0
    again = call("backup", file, *first)
    assert (again.exit_code, "is there already" in again.stderr) == (1, True)
    assert call("backup", file, "--force", *first).exit_code == 0
    refused = call("restore", file, *second)
    assert refused.exit_code == 1
    assert "nothing was changed. --force writes over them" in refused.stderr
    assert not (state_of(second) / "usage.json").exists()
    forced = call("restore", file, "--force", *second)
    assert forced.exit_code == 0
    assert (tmp_path / "2" / "configs" / "rolecall.toml").read_text() == ""
    assert (state_of(second) / "mine.json").exists()
    assert [p.name for p in state_of(second).iterdir() if p.name.startswith(".")] == []


def test_what_has_to_be_done_by_hand_is_told(tmp_path: Path) -> None:
    """Keys that lay outside, and a state folder that the configuration names otherwise, are pointed out."""
    outside = tmp_path / "secrets" / "api_keys.json"
    outside.parent.mkdir()
    named = tmp_path / "elsewhere"
    first = configured(tmp_path / "1", [], f'api_keys_file = "{outside}"\nstate_dir = "{named}"\n')
    call("keys", "add", "ops", *first[:2])
    file = tmp_path / "b.tar.gz"
    assert call("backup", file, *first).exit_code == 0
    target = ("--config-dir", str(tmp_path / "c"), "--state-dir", str(tmp_path / "s"))
    notes: list[str] = answer("restore", file, *target)["notes"]
    assert notes == [
        f"the API keys, which lay in {outside}, are in {tmp_path / 'c'}: move them there, or set api_keys_file",
        f"rolecall.toml or the default says {named}: start it with --state-dir {tmp_path / 's'}, or set state_dir",
    ]


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_other_names_are_refused(tmp_path: Path, command: str) -> None:
    """The name says how it is compressed, so there is one."""
    refused = call(command, tmp_path / "b.zip", *configured(tmp_path, []))
    assert refused.exit_code == 1
    assert "a backup is a file whose name ends with .tar.gz, .tgz or .tar.zst" in refused.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Restoring nothing is an error that names it; so is a folder that is none."""
    there = configured(tmp_path, [])
    new = tmp_path / "new"
    missing = call("restore", tmp_path / "none.tar.gz", "--config-dir", new / "c", "--state-dir", new / "s")
    assert "No such file" in missing.stderr
    (tmp_path / "broken.tar.gz").write_text("hello")
    broken = call("restore", tmp_path / "broken.tar.gz", "--config-dir", new / "c", "--state-dir", new / "s")
    assert "is no backup of rolecall, or damaged: Not a gzipped file" in broken.stderr
    assert not new.exists()
    assert "is no folder that exists" in call("backup", tmp_path / "none" / "b.tar.gz", *there).stderr


def test_no_server_starts_during_a_restore(tmp_path: Path) -> None:
    """It would read one half of the old and one half of the new."""
    server = Rolecall(tmp_path / "one", [fake_entry("m")])
    server.state.mkdir(parents=True)
    held = os.open(server.state, os.O_RDONLY)
    subprocess.run(["flock", "--exclusive", str(held)], pass_fds=[held], check=True)
    done = server.run()
    os.close(held)
    assert done.returncode == 2
    assert "is being restored from a backup" in done.stderr


def test_engines_do_not_hold_the_state_folder(tmp_path: Path) -> None:
    """Kept engines live on without their server, and that must not look like one."""
    with Rolecall(tmp_path / "one", [fake_entry("m")], settings={"keep_engines_on_exit": True}) as server:
        server.chat("m")
        pid = server.row("m")["pid"]
        server.process.terminate()
        server.process.wait(20)
    file = tmp_path / "b.tar.gz"
    assert call("backup", file, *options(server)).exit_code == 0
    assert call("restore", file, "--force", *options(server)).exit_code == 0
    with Rolecall(tmp_path / "one", [fake_entry("m")], settings={"keep_engines_on_exit": True}) as again:
        assert again.row("m")["pid"] == pid
        again.http.post("/v1/models/m/unload")
        eventually(lambda: again.state_of("m") == "stopped")
