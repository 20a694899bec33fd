"""The registry's files: what is read, what is said of a broken one, what is written, and which changes are noticed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from builders import entry, row
from fakes import FakeBackend
from rolecall.core.registry import Registry, RegistryError, registry_schema
from rolecall.runtime.drivers import backends
from rolecall.runtime.registry import (
    CURATED,
    DISCOVERED,
    SCHEMA,
    SNAPSHOT,
    files_mb,
    load_registry,
    registry_state,
    why_unavailable,
    write_atomically,
    write_schema,
    write_snapshot,
)
from rolecall.settings import Settings

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, name: str, *rows: Any) -> None:
    """Write a registry file."""
    (folder / name).write_text(json.dumps(rows), encoding="utf-8")


def problem(folder: Path) -> str:
    """Return why the registry of this folder is refused."""
    with pytest.raises(RegistryError) as refusal:
        load_registry(folder)
    return str(refusal.value)


# -- reading


def test_two_files_become_one_registry(tmp_path: Path) -> None:
    """The curated file wins field by field; an entry that is only discovered is there as well."""
    write(tmp_path, DISCOVERED, row("a", quantization="q8_0", family="f"), row("b"))
    write(tmp_path, CURATED, row("a", quantization="fp8"))
    found = {each.name: (each.quantization, each.family) for each in load_registry(tmp_path).entries}
    assert found == {"a": ("fp8", "f"), "b": (None, None)}


@pytest.mark.parametrize("present", [(), (CURATED,), (DISCOVERED,)])
def test_a_missing_file_is_an_empty_list(tmp_path: Path, present: tuple[str, ...]) -> None:
    """Either file, or both, may be absent."""
    for name in present:
        write(tmp_path, name, row())
    assert len(load_registry(tmp_path).entries) == len(present)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    """Editors on Windows begin UTF-8 files with a mark."""
    (tmp_path / CURATED).write_text(json.dumps([row("ä")]), encoding="utf-8-sig")
    assert [each.name for each in load_registry(tmp_path).entries] == ["ä"]


@pytest.mark.parametrize("name", [CURATED, DISCOVERED])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[\n  {"name": "a" "backend": "b"}\n]', ["is not JSON", "line 2 column 16"]),
        (b"", ["is not JSON", "line 1 column 1"]),
        (b'["\xff"]', ["cannot be read", "utf-8"]),
        (b"[" * 100_000, ["is not JSON"]),
        (b"17", ["must be a JSON list of entries, not a number"]),
        (b'{"models": 1}', ["must be a JSON list of entries"]),
    ],
    ids=["a comma missing", "empty", "not UTF-8", "deep", "a number", "no list"],
)
def test_a_file_that_is_no_registry(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    """The message names the file, and the place in it where there is one."""
    (tmp_path / name).write_bytes(content)
    message = problem(tmp_path)
    assert message.startswith(f"{tmp_path / name}: ")
    assert [word for word in words if word not in message] == []


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """Only a file that is absent is an empty list; one that cannot be read is an error."""
    (tmp_path / CURATED).mkdir()
    assert problem(tmp_path).startswith(f"{tmp_path / CURATED}: cannot be read")


def test_every_wrong_entry_and_field_is_named(tmp_path: Path) -> None:
    """One line a problem: file, entry, field, what is wrong, the value."""
    write(tmp_path, CURATED, row("a", vram_estimate_mb=-1), row("b", role_priority={"x": 101}), {"name": "c"})
    lines = problem(tmp_path).splitlines()
    assert [line.startswith(f"{tmp_path / CURATED}: entry ") for line in lines] == [True] * 3
    for line, words in zip(
        lines, (["'a'", "vram_estimate_mb", "-1"], ["'b'", "role_priority.x", "101"], ["'c'", "backend"]), strict=True
    ):
        assert [word for word in words if word not in line] == []


def test_a_wrong_discovered_entry_is_left_out(tmp_path: Path) -> None:
    """Nobody wrote it by hand: it is a warning, and the rest works."""
    write(tmp_path, DISCOVERED, row("a"), row("b", pinned="perhaps"))
    registry = load_registry(tmp_path)
    assert [each.name for each in registry.entries] == ["a"]
    assert any("'b'" in warning and "pinned" in warning for warning in registry.warnings)


def test_the_shipped_registry_loads_without_a_warning() -> None:
    """What comes with rolecall is in order."""
    registry = load_registry(CONFIGS)
    assert (len(registry.entries), registry.warnings) == (10, ())


# -- writing


def test_the_snapshot_is_the_merged_registry(tmp_path: Path) -> None:
    """The snapshot holds the merged entries as they were written, unknown keys too, and loads as a registry."""
    write(tmp_path, DISCOVERED, row("ä/b (1)", quantization="q8_0"))
    write(tmp_path, CURATED, row("ä/b (1)", note={"x": None}))
    write_snapshot(tmp_path, load_registry(tmp_path))
    text = (tmp_path / SNAPSHOT).read_text(encoding="utf-8")
    assert json.loads(text) == [row("ä/b (1)", quantization="q8_0", note={"x": None})]
    assert "ä/b (1)" in text


def test_a_snapshot_that_is_the_same_is_not_written_again(tmp_path: Path) -> None:
    """A reload without a change touches nothing on disk."""
    write(tmp_path, CURATED, row())
    write_snapshot(tmp_path, load_registry(tmp_path))
    before = (tmp_path / SNAPSHOT).stat().st_ino
    write_snapshot(tmp_path, load_registry(tmp_path))
    assert (tmp_path / SNAPSHOT).stat().st_ino == before
    write(tmp_path, CURATED, row("other"))
    write_snapshot(tmp_path, load_registry(tmp_path))
    assert json.loads((tmp_path / SNAPSHOT).read_text())[0]["name"] == "other"


def test_a_snapshot_that_is_rubbish_is_replaced(tmp_path: Path) -> None:
    """What stands in the snapshot's place is never read as anything."""
    (tmp_path / SNAPSHOT).write_bytes(b"\xff\xfe")
    write_snapshot(tmp_path, load_registry(tmp_path))
    assert json.loads((tmp_path / SNAPSHOT).read_text()) == []


def test_half_a_character_in_the_registry(tmp_path: Path) -> None:
    """JSON can hold what UTF-8 cannot, and no answer could: a written entry is refused, a discovered one left out."""
    row = '[{"name": "a", "backend": "b", "metadata": {"x": "\\ud800"}}]'
    (tmp_path / DISCOVERED).write_text(row)
    registry = load_registry(tmp_path)
    assert registry.entries == ()
    assert "field metadata.x: is no Unicode text" in registry.warnings[0]
    write_snapshot(tmp_path, Registry(merged=tuple(json.loads(row))))
    assert json.loads((tmp_path / SNAPSHOT).read_bytes())[0]["metadata"] == {"x": "\ud800"}
    (tmp_path / CURATED).write_text(row)
    with pytest.raises(RegistryError, match=r"field metadata\.x: is no Unicode text"):
        load_registry(tmp_path)


def test_a_snapshot_that_cannot_be_written_is_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is for others to read; the failure is a warning, and leaves nothing behind."""
    write(tmp_path, CURATED, row())
    (tmp_path / SNAPSHOT).mkdir()
    write_snapshot(tmp_path, load_registry(tmp_path))
    assert str(tmp_path / SNAPSHOT) in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [CURATED, SNAPSHOT]


def test_an_atomic_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """The error comes through, the old content stays, and there is no half-written file."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()
    with pytest.raises(OSError, match="target"):
        write_atomically(tmp_path / "target", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_an_atomic_write_makes_its_folder_and_replaces(tmp_path: Path) -> None:
    """A reader that has the old file open keeps the old content."""
    path = tmp_path / "new" / "folder" / "x.json"
    write_atomically(path, "old")
    with path.open() as reader:
        write_atomically(path, "new")
        assert (reader.read(), path.read_text()) == ("old", "new")
    assert [each.name for each in path.parent.iterdir()] == ["x.json"]


def test_the_schema_is_written_from_the_models(tmp_path: Path) -> None:
    """The schema beside the registry is the models' own, and the shipped one is up to date."""
    assert json.loads(write_schema(tmp_path).read_text(encoding="utf-8")) == registry_schema()
    assert (CONFIGS / SCHEMA).read_bytes() == (tmp_path / SCHEMA).read_bytes()


# -- changes


def test_changes_of_the_two_sources_are_seen(tmp_path: Path) -> None:
    """A file that is written in place, replaced by a rename, made, or removed is a change."""
    states = [registry_state(tmp_path)]
    for name, text in ((CURATED, "[]"), (CURATED, "[ ]"), (DISCOVERED, "[]")):
        (tmp_path / name).write_text(text)
        states.append(registry_state(tmp_path))
    write_atomically(tmp_path / CURATED, "[ ]")
    states.append(registry_state(tmp_path))
    (tmp_path / DISCOVERED).unlink()
    states.append(registry_state(tmp_path))
    assert all(before != after for before, after in itertools.pairwise(states))


def test_other_files_are_no_change(tmp_path: Path) -> None:
    """What rolecall writes itself, and files in folders below, never cause a reload; else each would cause the next."""
    write(tmp_path, CURATED, row())
    before = registry_state(tmp_path)
    write_snapshot(tmp_path, load_registry(tmp_path))
    write_schema(tmp_path)
    (tmp_path / "rolecall.toml").touch()
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", CURATED, row())
    assert registry_state(tmp_path) == before


# -- files of the models


def test_why_an_entry_is_not_installed(tmp_path: Path) -> None:
    """The backend's reason goes first, then the first file that is absent."""
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.touch()
    assert why_unavailable(entry(), FakeBackend(paths=(there, tmp_path))) is None
    assert why_unavailable(entry(), FakeBackend(paths=())) is None
    assert why_unavailable(entry(), FakeBackend(paths=(there, absent))) == f"not installed: {absent} does not exist"
    assert why_unavailable(entry(), FakeBackend(paths=(absent,), reason="no engine")) == "no engine"


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("/no/such/engine", "not installed: command /no/such/engine is not there"),
        ("no-such-engine", "not installed: command no-such-engine is not there"),
        ("/etc", "not installed: command /etc is no program that this user may run"),
        ("{python}", None),
        ("sh", None),
    ],
)
@pytest.mark.parametrize("backend", ["vllm", "llama_cpp", "lmdeploy"])
def test_the_program_of_a_command_has_to_be_there(tmp_path: Path, backend: str, word: str, why: str | None) -> None:
    """By its path, or on the PATH, once the placeholders are filled in; what comes after it is its own affair."""
    own = entry(backend=backend, backend_config={"command": [word, "/no/such/file", "{port}"]})
    found = backends(Settings.model_validate({"config_dir": tmp_path, "state_dir": tmp_path}))
    assert why_unavailable(own, found(own.backend)) == why


def test_the_program_of_a_command_is_looked_for_on_the_path_that_its_engine_has(tmp_path: Path) -> None:
    """``env`` of the entry may name another PATH."""
    (tmp_path / "engine").write_text("#!/bin/sh\n")
    (tmp_path / "engine").chmod(0o755)
    own = entry(backend="vllm", backend_config={"command": ["engine", "{port}"], "env": {"PATH": str(tmp_path)}})
    found = backends(Settings.model_validate({"config_dir": tmp_path, "state_dir": tmp_path}))
    assert why_unavailable(own, found("vllm")) is None


def test_a_command_that_nobody_starts_may_name_anything(tmp_path: Path) -> None:
    """A server that others run is started by others."""
    own = entry(backend="openai", backend_config={"command": ["/no/such/engine"], "base_url": "http://127.0.0.1:1/v1"})
    assert (
        why_unavailable(
            own, backends(Settings.model_validate({"config_dir": tmp_path, "state_dir": tmp_path}))("openai")
        )
        is None
    )


@pytest.mark.parametrize("name", ["x" * 300, "there/below", "a\0b"], ids=["too long", "below a file", "a null"])
def test_a_path_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    """A path that cannot even be looked up makes its entry not installed, and says which; nothing else suffers."""
    (tmp_path / "there").touch()
    odd = tmp_path / name
    reason = why_unavailable(entry(), FakeBackend(paths=(odd,))) or ""
    assert reason.startswith(f"not installed: {odd}")
    assert files_mb(entry(), FakeBackend(paths=(odd,))) is None


@pytest.mark.parametrize(("sizes", "mb"), [((), None), ((0,), 0), ((1,), 1), ((2**20,), 1), ((2**20, 1), 2)])
def test_the_size_of_files(tmp_path: Path, sizes: tuple[int, ...], mb: int | None) -> None:
    """All files together, rounded up to MB; folders and absent files count for nothing."""
    paths = [tmp_path / str(number) for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(size))
    assert files_mb(entry(), FakeBackend(paths=(*paths, tmp_path, tmp_path / "absent"))) == mb
