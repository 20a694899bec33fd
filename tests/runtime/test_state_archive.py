"""Backups as files: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import ConfigurationError
from rolecall.runtime.state_archive import END, MANIFEST, Content, Manifest, unpack, write_archive
from rolecall.runtime.state_folder import alone, in_use, is_in_use
from rolecall.runtime.state_items import DATASETS, Item, items_of
from rolecall.runtime.state_places import making_folders, places, put_all
from rolecall.settings import Settings

ORIGIN = {"config_dir": "/etc/rolecall", "state_dir": "/var/lib/rolecall", "api_keys_file": None}
FIRST = {"form": 1, "rolecall": "0.1.0", "created": "2026-01-01T00:00:00Z", **ORIGIN}


def lay_out(folder: Path, *names: str) -> Path:
    """Write files that hold their own names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def items(config: Path, state: Path, keys: Path | None = None, **more: Any) -> list[Item]:
    """Return what is backed up of some folders."""
    given = {"config_dir": config, "state_dir": state, "api_keys_file": keys, **more}
    return list(items_of(Settings.model_validate(given)))


def written(path: Path, *items: Any) -> tuple[Manifest, Content]:
    """Write a backup."""
    return write_archive(path, items, ORIGIN, lambda _: None)


def unpacked(path: Path, folder: Path) -> dict[str, str]:
    """Unpack a backup and return what is in it."""
    folder.mkdir()
    unpack(path, folder, lambda _: None)
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_what_is_backed_up_and_what_is_not(tmp_path: Path) -> None:
    """Configuration, keys and what was learnt go in; models, engine logs, thumbnails and halves do not."""
    config = lay_out(tmp_path / "c", "rolecall.toml", "tasks/mine.toml", "rolecall.toml.bak", ".rolecall.toml.17")
    state = lay_out(
        tmp_path / "s",
        "learnt.json",
        "usage.json",
        "new-things/x",
        "models/big.gguf",
        "demo/demo.gguf",
        "engines/17.json",
        "engine-logs/m.log",
        "oneshot/x",
        "datasets/datasets.duckdb",
        "datasets/datasets.duckdb.wal",
        "datasets/running",
        "datasets/thumbnails/1.jpg",
    )
    (state / "link").symlink_to("/etc/passwd")
    (config / "profiles.toml").symlink_to(lay_out(tmp_path / "elsewhere", "profiles.toml") / "profiles.toml")
    keys = lay_out(tmp_path / "k", "keys.json") / "keys.json"
    found = {item.name for item in items(config, state, keys)}
    assert found == {
        "config/rolecall.toml",
        "config/profiles.toml",
        "config/tasks/mine.toml",
        "state/learnt.json",
        "state/usage.json",
        "state/new-things/x",
        "state/datasets/running",
        "keys/keys.json",
    }
    inside = lay_out(config, "keys.json") / "keys.json"
    assert [item.name for item in items(config, state, inside) if "keys" in item.name] == ["config/keys.json"]


@pytest.mark.parametrize("name", [".keys.json", "keys.json.bak", "tasks/keys.json", "../k/keys.json"])
def test_the_key_file_goes_in_wherever_it_lies(tmp_path: Path, name: str) -> None:
    """Also under a name that is otherwise left out, and beside the config folder; once."""
    config = lay_out(tmp_path / "c", "rolecall.toml", "tasks/mine.toml")
    lay_out(config, name)
    found = [item for item in items(config, tmp_path / "s", Path(name)) if "keys" in item.name]
    assert [item.path.resolve() for item in found] == [(config / name).resolve()]
    assert found[0].name == (f"config/{name}" if ".." not in name else "keys/keys.json")


def test_links_to_folders_are_followed_in_the_config_folder(tmp_path: Path) -> None:
    """Tasks that lie elsewhere go in; a link that leads back, and one to the state or the models, do not."""
    config, state = lay_out(tmp_path / "c", "rolecall.toml"), lay_out(tmp_path / "s", "learnt.json")
    (config / "tasks").symlink_to(lay_out(tmp_path / "elsewhere", "mine.toml"))
    (config / "back").symlink_to(tmp_path / "c")
    (config / "state").symlink_to(state)
    (config / "big").symlink_to(lay_out(tmp_path / "models", "m.gguf"))
    found = {item.name for item in items(config, state, models_dir=tmp_path / "models")}
    assert found == {"config/rolecall.toml", "config/tasks/mine.toml", "state/learnt.json"}


def test_request_logs_and_variables_stay_out(tmp_path: Path) -> None:
    """Wherever the log lies, with all that belongs to it: there may be prompts in it. Nor do secrets of the units."""
    config = lay_out(tmp_path / "c", "environment", "rolecall.toml", "r.log", "r.log.1", "r.log.2.gz")
    lay_out(config, "r.feedback.jsonl", "tasks/environment")
    state = lay_out(tmp_path / "s", "requests.jsonl", "requests.jsonl.1", "logs/x", ".restore-17/state/x", "usage.json")
    found = {item.name for item in items(config, state, log_path=config / "r.log")}
    assert found == {"config/rolecall.toml", "config/tasks/environment", "state/usage.json"}


@pytest.mark.parametrize("kind", ["tar.gz", "tgz", "tar.zst"])
def test_there_and_back(tmp_path: Path, kind: str) -> None:
    """Each kind of file gives back contents and modes, and says who wrote it; nobody else can read it."""
    if kind == "tar.zst" and shutil.which("zstd") is None:
        pytest.skip("the program zstd is not here")
    state = lay_out(tmp_path / "s", "learnt.json", "usage.json")
    (state / "usage.json").chmod(0o600)
    (state / "learnt.json").chmod(0o644)
    path = tmp_path / f"b.{kind}"
    moved: list[int] = []
    manifest, content = write_archive(path, items(tmp_path / "none", state), ORIGIN, moved.append)
    assert (manifest.config_dir, manifest.form, content) == ("/etc/rolecall", 1, Content(2, 21))
    assert sum(moved) == 21
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert unpacked(path, tmp_path / "u") == {"state/learnt.json": "learnt.json", "state/usage.json": "usage.json"}
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "u" / "state").iterdir()}
    assert modes == {"learnt.json": 0o644, "usage.json": 0o600}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_file_that_goes_meanwhile_is_left_out(tmp_path: Path) -> None:
    """A mark that was taken away between the look and the copy ends nothing."""
    state = lay_out(tmp_path / "s", "a", "running")
    found = items(tmp_path / "none", state)
    (state / "running").unlink()
    assert written(tmp_path / "b.tar.gz", *found)[1].files == 1
    assert unpacked(tmp_path / "b.tar.gz", tmp_path / "u") == {"state/a": "a"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_ends_it(tmp_path: Path) -> None:
    """There is no backup with holes, and no half of one is left."""
    state = lay_out(tmp_path / "s", "a")
    (state / "a").chmod(0)
    with pytest.raises(PermissionError):
        written(tmp_path / "b.tar.gz", *items(tmp_path / "none", state))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_zst_needs_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the way out is named, and nothing is left."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="program zstd has to be on the PATH"):
        written(tmp_path / "b.tar.zst")
    assert list(tmp_path.iterdir()) == []


# -- what is refused


def forged(path: Path, *members: tuple[tarfile.TarInfo, bytes], first: Mapping[str, Any] = FIRST) -> Path:
    """Write an archive with any members, and an end that counts them."""
    end = {"files": len(members), "bytes": sum(len(data) for _, data in members)}
    ours = [(named(name), json.dumps(value).encode()) for name, value in ((MANIFEST, first), (END, end))]
    with tarfile.open(path, "w:gz") as archive:
        for member, data in (ours[0], *members, ours[1]):
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Return a member."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        named("/etc/cron.d/x"),
        named("state/../../x"),
        named("../x"),
        named("x"),
        named("other/x"),
        named("state/link", tarfile.SYMTYPE, "/etc"),
        named("state/hard", tarfile.LNKTYPE, "/etc/passwd"),
        named("state/device", tarfile.CHRTYPE),
        named("state/pipe", tarfile.FIFOTYPE),
        named("state/folder", tarfile.DIRTYPE),
    ],
    ids=lambda member: f"{member.name} {member.type.decode()}",
)
def test_what_would_lead_elsewhere_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    """Other paths, links, devices: no backup has them, and nothing is written outside of the folder."""
    path = forged(tmp_path / "b.tar.gz", (member, b""))
    folder = tmp_path / "u"
    with pytest.raises(ConfigurationError, match="which no backup of rolecall has"):
        unpacked(path, folder)
    assert list(folder.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tar.gz", "u"]


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """So no file is written through what an earlier member has made."""
    path = forged(tmp_path / "b.tar.gz", (named("state/x"), b"1"), (named("state/x"), b"2"))
    (tmp_path / "u").mkdir()
    with pytest.raises(FileExistsError):
        unpack(path, tmp_path / "u", lambda _: None)


def test_modes_give_away_nothing(tmp_path: Path) -> None:
    """Set-uid bits and what lets others write are dropped."""
    member = named("state/x")
    member.mode = 0o6777
    unpacked(forged(tmp_path / "b.tar.gz", (member, b"1")), tmp_path / "u")
    assert stat.S_IMODE((tmp_path / "u" / "state" / "x").stat().st_mode) == 0o755


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _text(path: Path) -> None:
    path.write_text("hello")


def _other(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(named("state/x"))


def _empty(path: Path) -> None:
    with tarfile.open(path, "w:gz"):
        pass


def _endless(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        data = json.dumps(FIRST).encode()
        member = named(MANIFEST)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("damage", [_cut, _flip, _text, _other, _empty, _endless])
def test_what_is_damaged_or_no_backup_is_told(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Cut off, changed, or anything else: the error names the file."""
    path = tmp_path / "b.tar.gz"
    written(path, *items(tmp_path / "none", lay_out(tmp_path / "s", "a", "b")))
    damage(path)
    with pytest.raises(ConfigurationError, match=r"b\.tar\.gz is (no backup of rolecall|cut off)"):
        unpacked(path, tmp_path / "u")


@pytest.mark.parametrize(("first", "said"), [({**FIRST, "form": 2, "rolecall": "9.9"}, "rolecall 9.9, which is newer")])
def test_a_newer_form_is_refused(tmp_path: Path, first: Mapping[str, Any], said: str) -> None:
    """What a newer rolecall wrote may mean something else."""
    with pytest.raises(ConfigurationError, match=said):
        unpacked(forged(tmp_path / "b.tar.gz", first=first), tmp_path / "u")


def test_a_cut_zst_is_told(tmp_path: Path) -> None:
    """The program's own words are passed on."""
    if shutil.which("zstd") is None:
        pytest.skip("the program zstd is not here")
    path = tmp_path / "b.tar.zst"
    written(path, *items(tmp_path / "none", lay_out(tmp_path / "s", "a")))
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "u").mkdir()
    with pytest.raises((ConfigurationError, OSError), match=r"cut off|end of|premature|no backup"):
        unpack(path, tmp_path / "u", lambda _: None)


# -- putting back


def put_back(unpacked: Path, folder: Path) -> None:
    """Put what was unpacked into ``c`` and ``s`` of a folder."""
    targets = {"config": folder / "c", "state": folder / "s", "keys": folder / "c"}
    with making_folders() as make:
        put_all(places(unpacked, targets), folder / "s" / DATASETS, make)


def all_files(folder: Path, *tops: str) -> dict[str, str]:
    """Return all files and folders below some folders, with what is in them."""
    found = [path for top in tops for path in (folder / top).rglob("*")]
    return {p.relative_to(folder).as_posix(): p.read_text() if p.is_file() else "" for p in found}


def test_files_are_put_in_their_places(tmp_path: Path) -> None:
    """Each goes to its folder, with its mode, over what was there; names with a dot in front too."""
    folder = lay_out(tmp_path / "u", "config/tasks/a.toml", "config/.hidden.json", "state/x", "keys/k.json")
    (folder / "keys" / "k.json").chmod(0o600)
    lay_out(tmp_path / "s", "x", "stays")
    (tmp_path / "s" / "x").write_text("before")
    put_back(folder, tmp_path)
    assert all_files(tmp_path, "c", "s") == {
        "c/tasks": "",
        "c/tasks/a.toml": "config/tasks/a.toml",
        "c/.hidden.json": "config/.hidden.json",
        "c/k.json": "keys/k.json",
        "s/x": "state/x",
        "s/stays": "stays",
    }
    assert stat.S_IMODE((tmp_path / "c" / "k.json").stat().st_mode) == 0o600


def test_keys_from_elsewhere_go_before_a_file_of_their_name(tmp_path: Path) -> None:
    """Both come into the config folder, and those that were in force are taken."""
    folder = lay_out(tmp_path / "u", "config/k.json", "keys/k.json")
    put_back(folder, tmp_path)
    assert all_files(tmp_path, "c") == {"c/k.json": "keys/k.json"}


def test_what_cannot_be_put_changes_nothing(tmp_path: Path) -> None:
    """A folder where the last file belongs: the first ones are as before, and the error names the place."""
    folder = lay_out(tmp_path / "u", "config/a", "config/new/b", "state/x")
    lay_out(tmp_path / "c", "a")
    (tmp_path / "s" / "x").mkdir(parents=True)
    before = all_files(tmp_path, "c", "s")
    with pytest.raises(IsADirectoryError) as raised:
        put_back(folder, tmp_path)
    assert raised.value.filename == str(tmp_path / "s" / "x")
    assert all_files(tmp_path, "c", "s") == before


@pytest.mark.parametrize("is_in_it", [False, True], ids=["without datasets", "with datasets"])
def test_the_log_of_the_datasets_goes_with_them_alone(tmp_path: Path, *, is_in_it: bool) -> None:
    """DuckDB keeps in it what is not in the file yet: without new datasets it stays with the old ones."""
    folder = lay_out(tmp_path / "u", "state/x", *([f"state/{DATASETS}"] if is_in_it else []))
    state = lay_out(tmp_path / "s", DATASETS, f"{DATASETS}.wal")
    put_back(folder, tmp_path)
    there = {path.name: path.read_text() for path in (state / "datasets").iterdir()}
    name = DATASETS.rpartition("/")[2]
    old = {name: DATASETS, f"{name}.wal": f"{DATASETS}.wal"}
    assert there == ({name: f"state/{DATASETS}"} if is_in_it else old)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_puts_back_belongs_to_the_folders_owner(tmp_path: Path) -> None:
    """Folders that are new as well: the service has to read what is in them."""
    folder = lay_out(tmp_path / "u", f"state/{DATASETS}")
    (tmp_path / "s").mkdir()
    os.chown(tmp_path / "s", 12345, 54321)
    put_back(folder, tmp_path)
    for path in (tmp_path / "s").rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321), path


def test_servers_share_a_state_folder_and_a_restore_has_it_alone(tmp_path: Path) -> None:
    """Each keeps the other out, in words, and lets go at its end; a folder that is not there is nobody's."""
    with in_use(tmp_path), in_use(tmp_path):
        assert is_in_use(tmp_path)
        with pytest.raises(ConfigurationError, match="a rolecall is running with"), alone(tmp_path):
            pass
    assert not is_in_use(tmp_path)
    with alone(tmp_path), pytest.raises(ConfigurationError, match="is being restored"), in_use(tmp_path):
        pass
    with in_use(tmp_path / "none"), alone(tmp_path / "none"):
        assert not is_in_use(tmp_path / "none")


def test_a_look_at_the_folder_does_not_keep_a_server_from_starting(tmp_path: Path) -> None:
    """Whether it is in use is found out by having it alone for a moment; who starts then waits for that."""
    looked, waited = threading.Event(), threading.Event()

    def look() -> None:
        with alone(tmp_path):
            looked.set()
            waited.wait(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    looked.wait()
    with in_use(tmp_path):
        assert is_in_use(tmp_path)
    thread.join()
