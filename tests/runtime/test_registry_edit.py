"""The hand-written files changed by commands: whole or not at all, one at a time, the rest left as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import DEADLINE_S
from rolecall.core.json_edit import append, put
from rolecall.core.registry import RegistryError
from rolecall.errors import ConfigurationError
from rolecall.runtime.private_file import write_in_place
from rolecall.runtime.registry import CURATED, DISCOVERED
from rolecall.runtime.registry_edit import RegistryText, edit_registry
from rolecall.runtime.settings_edit import edit_role_table

TEXT = '[\r\n  { "name": "a", "backend": "llama_cpp", "model_aliases": ["x", "y"] }\r\n]\r\n'


@pytest.fixture
def curated(tmp_path: Path) -> Path:
    path = tmp_path / CURATED
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    return path


def pinned(found: RegistryText) -> str:
    return put(found.text, [*found.place, 0, "pinned"], value=True)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_change_keeps_what_the_file_is(curated: Path) -> None:
    """Byte order mark, line ends, mode and the symbolic link that leads to the file stay; no other file is left."""
    link = curated.with_name("elsewhere") / CURATED
    link.parent.mkdir()
    link.symlink_to(curated)
    curated.chmod(0o640)
    edit = edit_registry(link.parent, pinned)
    assert (edit.changed, edit.written, edit.backup) == (True, True, None)
    assert curated.read_bytes() == b"\xef\xbb\xbf" + TEXT.replace(" }", ', "pinned": true }').encode()
    assert (link.is_symlink(), curated.stat().st_mode & 0o777) == (True, 0o640)
    assert edit.registry.entries[0].pinned
    assert files(curated.parent) == ["elsewhere", CURATED]


def test_a_new_file_is_like_any_other(tmp_path: Path) -> None:
    """Where there is no registry yet, one begins, with the mode that this user's files have."""
    edit = edit_registry(tmp_path, lambda found: append(found.text, [], {"name": "a", "backend": "vllm"}))
    assert (edit.before, json.loads(edit.after)) == ("", [{"name": "a", "backend": "vllm"}])
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / CURATED).stat().st_mode & 0o777 == 0o666 & ~mask


def test_nothing_is_written_that_would_be_refused(curated: Path) -> None:
    """A wrong value names entry and field, and the file stays as it was, byte for byte."""
    before = curated.read_bytes()
    with pytest.raises(RegistryError, match=r"entry 1 'a': field pinned: .*\n?nothing was written") as raised:
        edit_registry(curated.parent, lambda found: put(found.text, [0, "pinned"], "perhaps"))
    assert raised.value.problems[-1] == "nothing was written"
    assert curated.read_bytes() == before


def test_the_registry_as_a_whole_is_checked(curated: Path) -> None:
    """What was discovered counts too: an entry over it may be as short as the field that it changes."""
    (curated.parent / DISCOVERED).write_text(json.dumps([{"name": "d", "backend": "vllm", "family": "f"}]))
    edit = edit_registry(curated.parent, lambda found: append(found.text, [], {"name": "d", "pinned": True}))
    assert [(entry.name, entry.family, entry.pinned) for entry in edit.registry.entries] == [
        ("a", None, False),
        ("d", "f", True),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON, so nothing was changed: Expecting value: line 1"),
        ('[{"name": "a",}]', "is not JSON, so nothing was changed: .*line 1 column"),
        ("\xff\xfe", "is not JSON, so nothing was changed: .*can't decode"),
        ('{"a": 1}', "must be a JSON list of entries"),
    ],
)
def test_a_broken_file_is_left_alone(tmp_path: Path, text: str, words: str) -> None:
    """A file that cannot be read is named with the place, and nobody writes over it."""
    (tmp_path / CURATED).write_bytes(text.encode("latin-1"))
    with pytest.raises(RegistryError, match=words):
        edit_registry(tmp_path, pinned)
    assert (tmp_path / CURATED).read_bytes() == text.encode("latin-1")


def test_a_list_under_models_is_changed_there(tmp_path: Path) -> None:
    """A registry may be an object with its list under `models`; the rest of it stays."""
    (tmp_path / CURATED).write_text('{"note": "mine", "models": [{"name": "a", "backend": "vllm"}]}')
    edit_registry(tmp_path, pinned)
    assert json.loads((tmp_path / CURATED).read_text()) == {
        "note": "mine",
        "models": [{"name": "a", "backend": "vllm", "pinned": True}],
    }


def test_a_dry_run_and_no_change_write_nothing(curated: Path) -> None:
    """Neither a look at a change nor one that changes nothing touches the file."""
    state = curated.stat()
    assert edit_registry(curated.parent, pinned, dry_run=True).changed
    assert not edit_registry(curated.parent, lambda found: found.text, backup=True).written
    assert (curated.stat().st_ino, curated.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    assert files(curated.parent) == [CURATED]


def test_a_backup_is_the_file_as_it_was(curated: Path) -> None:
    """Backups have the content and the mode of what was there, and a name each, also within one second."""
    curated.chmod(0o600)
    before = curated.read_bytes()
    backups = []
    for value in (1, 2):

        def change(found: RegistryText, value: int = value) -> str:
            return put(found.text, [0, "metadata", "n"], value)

        edit = edit_registry(curated.parent, change, backup=True)
        assert edit.backup is not None
        backups.append(edit.backup)
    assert len(set(backups)) == 2
    assert (backups[0].read_bytes(), backups[0].stat().st_mode & 0o777) == (before, 0o600)
    assert json.loads(backups[1].read_text("utf-8-sig"))[0]["metadata"] == {"n": 1}


def test_names_go_before_aliases(curated: Path) -> None:
    """An entry is found by its name, else by one of its aliases, else not."""
    found = RegistryText("", ({"name": "a", "model_aliases": ["b"]}, {"name": "b", "model_aliases": "c"}, 3), ())
    assert [found.find(id_) for id_ in ("a", "b", "c", "d")] == [0, 1, 1, None]


RAISE = """
import sys
from pathlib import Path
from rolecall.core.json_edit import put
from rolecall.runtime.registry_edit import edit_registry
for number in range(20):
    edit_registry(Path(sys.argv[1]), lambda found: put(found.text, [0, "metadata", f"{sys.argv[2]}-{number}"], number))
"""


def test_changes_at_once_lose_none(curated: Path) -> None:
    """Four programs that change the file at the same time come one after the other: every change is there."""
    argv = [sys.executable, "-c", RAISE, str(curated.parent)]
    writers = [subprocess.Popen([*argv, str(number)]) for number in range(4)]
    assert [writer.wait(DEADLINE_S) for writer in writers] == [0, 0, 0, 0]
    assert len(json.loads(curated.read_text("utf-8-sig"))[0]["metadata"]) == 80


def test_a_full_folder_leaves_the_old_file(tmp_path: Path) -> None:
    """Where nothing can be written the old content stays, and no half of a new one is left."""
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / f".file.{os.getpid()}").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        write_in_place(path, b"new")
    assert path.read_text() == "old"


def test_whatever_ends_a_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C, or any other end in the middle of a write, leaves the old file and no part of a new one."""
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_in_place(path, "no bytes")  # type: ignore[arg-type]
    assert (path.read_text(), files(tmp_path)) == ("old", ["file"])


# --- rolecall.toml ----------------------------------------------------------------------------------------------------

TOML = """# mine
port = 9000  # not the usual one

# how keywords choose
[roles.Keywords]
policy = "priority"  # always the best

[roles.caption]
fallback = ["a"]
"""


def role_table(folder: Path, role: str, **values: Any) -> str:
    edit = edit_role_table(folder, role, values)
    assert edit.changed
    assert edit.written
    return (folder / "rolecall.toml").read_text()


def test_a_table_is_changed_and_its_comments_stay(tmp_path: Path) -> None:
    """A value of a table is changed in its line; all comments and other tables stay as they are."""
    (tmp_path / "rolecall.toml").write_text(TOML)
    assert role_table(tmp_path, "keywords", policy="adaptive") == TOML.replace('"priority"', '"adaptive"')
    assert role_table(tmp_path, "caption", fallback=None) == TOML.replace('"priority"', '"adaptive"').replace(
        '\n[roles.caption]\nfallback = ["a"]\n', ""
    )


def test_a_new_table_comes_last(tmp_path: Path) -> None:
    """A role without a table gets one at the end, with a file made if there is none."""
    assert role_table(tmp_path, "chat", quality_tolerance=5) == "[roles.chat]\nquality_tolerance = 5\n"
    (tmp_path / "rolecall.toml").write_text("port = 9000 # mine\n# [roles.x]")
    assert role_table(tmp_path, "chat", policy="priority") == (
        'port = 9000 # mine\n# [roles.x]\n\n[roles.chat]\npolicy = "priority"\n'
    )


def test_line_ends_stay_of_one_kind(tmp_path: Path) -> None:
    """A file with those of Windows keeps them, and new lines get them."""
    (tmp_path / "rolecall.toml").write_bytes(TOML.replace("\n", "\r\n").encode())
    role_table(tmp_path, "chat", quality_tolerance=5)
    data = (tmp_path / "rolecall.toml").read_bytes()
    assert b"quality_tolerance = 5\r\n" in data
    assert data.count(b"\n") == data.count(b"\r\n")


@pytest.mark.parametrize(
    ("text", "values", "words"),
    [
        (TOML, {"policy": "best"}, r"roles\.Keywords\.policy: .*'best'(.|\n)*nothing was written"),
        (TOML, {"quality_tolerance": 101}, "less than or equal to 100"),
        ("port = ", {"policy": "adaptive"}, "is no TOML, so nothing was changed"),
        ("roles = 3\n", {"policy": "adaptive"}, "roles is not written as tables"),
        ("# \udcff\n", {"policy": "adaptive"}, "is no TOML, so nothing was changed: .*can't decode"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, values: dict[str, Any], words: str) -> None:
    """What the settings would refuse is not written, and the message names the file that was meant."""
    (tmp_path / "rolecall.toml").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigurationError, match=words) as raised:
        edit_role_table(tmp_path, "keywords", values)
    assert str(tmp_path / "rolecall.toml") in str(raised.value)
    assert (tmp_path / "rolecall.toml").read_text(errors="surrogateescape") == text
