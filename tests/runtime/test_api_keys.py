"""The key file on disk: what is refused of it, and how changes are noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rolecall.core.keys import ApiKey, hashed
from rolecall.errors import ConfigurationError
from rolecall.runtime.api_keys import KeyStore, change_keys, load_keys, new_key, open_keys
from rolecall.runtime.private_file import write_privately
from rolecall.settings import load_settings


def key(name: str = "ci") -> ApiKey:
    return ApiKey(name=name, sha256=hashed(name.encode()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a key file with one key, ``ci``, whose key is its name."""
    path = tmp_path / "keys.json"
    change_keys(path, lambda _keys: (key(),))
    return path


def names(store: KeyStore) -> list[str]:
    store.refresh()
    return [key.name for key in store.ring.keys]


def look(store: KeyStore) -> tuple[list[str], str | None]:
    return names(store), store.problem


def test_new_keys_have_at_least_160_bits() -> None:
    """32 characters of 62, each of them used."""
    keys = [new_key() for _ in range(1000)]
    assert {len(key) for key in keys} == {35}
    assert len(set(keys)) == 1000
    assert len(set("".join(key[3:] for key in keys))) == 62
    assert 62**32 > 2**190


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_file_that_root_makes_belongs_to_the_folders_owner(tmp_path: Path) -> None:
    """The service has to read it; one that is there keeps its owner."""
    folder = tmp_path / "etc"
    folder.mkdir()
    os.chown(folder, 12345, 54321)
    path = folder / "keys.json"
    change_keys(path, lambda _keys: (key(),))
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)
    os.chown(path, 1, 2)
    change_keys(path, lambda keys: (*keys, key("other")))
    assert (path.stat().st_uid, path.stat().st_gid) == (1, 2)


def test_changes_are_taken_over(path: Path) -> None:
    """A key that is added is found, one that is removed is not, and the file is read only when it has changed."""
    store = KeyStore(path)
    before = store.ring
    assert (names(store), store.ring is before, store.problem) == (["ci"], True, None)
    change_keys(path, lambda keys: (*keys, key("two")))
    assert names(store) == ["ci", "two"]
    change_keys(path, lambda keys: keys[1:])
    assert names(store) == ["two"]
    assert store.ring.find(b"ci") is None


@pytest.mark.parametrize("text", ["{", '{"version": 1, "keys": [{"name": "x"}]}', "[" * 100_000, "\xff"])
def test_a_broken_file_keeps_the_last_good_keys(path: Path, text: str) -> None:
    """The problem says so until it is mended."""
    store = KeyStore(path)
    path.write_text(text, encoding="latin-1")
    assert names(store) == ["ci"]
    assert store.problem is not None
    assert store.problem.startswith(f"the last good keys stay in force: {path}")
    change_keys(path.with_name("other"), lambda _keys: (key("new"),))
    path.with_name("other").replace(path)
    assert look(store) == (["new"], None)


def test_a_file_that_is_gone_revokes_all(path: Path) -> None:
    """It is no broken file: who removes it means it."""
    store = KeyStore(path)
    path.unlink()
    assert names(store) == []
    assert store.problem is not None
    assert "no API key" in store.problem
    change_keys(path, lambda _keys: (key(),))
    assert look(store) == (["ci"], None)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    """They could let themselves in."""
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="can be written by others than its owner; chmod 600"):
        load_keys(path)
    path.chmod(0o600)
    store = KeyStore(path)
    path.chmod(mode)
    assert names(store) == ["ci"]
    assert "chmod 600" in str(store.problem)


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    """Nor is what cannot be read, nor what is far too large."""
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load_keys(tmp_path)
    (tmp_path / "large").write_bytes(b" " * (9 * 2**20))
    with pytest.raises(ConfigurationError, match="too large"):
        load_keys(tmp_path / "large")


def test_a_change_that_fails_changes_nothing(path: Path) -> None:
    """The file is as it was, and nothing is left beside it."""
    before = path.read_bytes()

    def fail(_keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        raise ConfigurationError("no")

    with pytest.raises(ConfigurationError):
        change_keys(path, fail)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


def test_what_cannot_be_replaced_leaves_no_rest(tmp_path: Path) -> None:
    """A temporary file goes with the attempt."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match=r"taken"):
        write_privately(tmp_path / "taken", "x")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]


def test_the_file_is_found_from_the_config_folder(tmp_path: Path) -> None:
    """A relative path means the same for the server and for the commands, wherever they are started."""
    (tmp_path / "rolecall.toml").write_text('api_keys_file = "sub/keys.json"')
    settings = load_settings({"config_dir": tmp_path}, {})
    assert settings.api_keys_file == tmp_path / "sub" / "keys.json"
    assert load_settings({"config_dir": tmp_path}, {"CHAT_PROXY_API_KEYS_FILE": "/etc/k"}).api_keys_file == Path(
        "/etc/k"
    )
    change_keys(tmp_path / "sub" / "keys.json", lambda _keys: (key(),))
    store = open_keys(settings)
    assert store is not None
    assert names(store) == ["ci"]
    (tmp_path / "rolecall.toml").write_text('api_keys_file = ""')
    assert open_keys(load_settings({"config_dir": tmp_path}, {})) is None


def test_the_setting_is_named_where_the_file_is_broken(path: Path) -> None:
    """So that it is known what to correct."""
    path.write_text(json.dumps({"version": 7}))
    settings = load_settings({"config_dir": path.parent, "api_keys_file": path}, {})
    with pytest.raises(ConfigurationError, match=f"^api_keys_file: {path}: must be an object"):
        open_keys(settings)


def test_lists_of_settings_from_the_environment(tmp_path: Path) -> None:
    """They are written with commas."""
    environ = {"CHAT_PROXY_ALLOWED_HOSTS": "Box.lan, *.example.org", "CHAT_PROXY_ALLOWED_ORIGINS": "https://x.org"}
    settings = load_settings({"config_dir": tmp_path}, environ)
    assert settings.allowed_hosts == ["box.lan", "*.example.org"]
    assert settings.allowed_origins == ["https://x.org"]
    for name, value in (("ALLOWED_HOSTS", "*"), ("ALLOWED_ORIGINS", "*"), ("ALLOWED_HOSTS", "a:1")):
        with pytest.raises(ConfigurationError, match=f"^{name.lower()}: "):
            load_settings({"config_dir": tmp_path}, {f"CHAT_PROXY_{name}": value})
