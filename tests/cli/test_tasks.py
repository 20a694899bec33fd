"""``rolecall tasks``: which there are, and the file of one."""

from __future__ import annotations

import shutil
from pathlib import Path

from cli.invoke import answer, call, environment, rolecall
from harness import CONFIGS


def test_the_shipped_tasks_are_listed(tmp_path: Path) -> None:
    """Without files of one's own, those that come with rolecall are there, each in a row."""
    result = call("tasks", "list", "--config-dir", tmp_path)
    assert result.exit_code == 0
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["task", "version", "role", "answer", "title", "from"]
    assert [row.split()[0] for row in rows] == sorted(path.stem for path in (CONFIGS / "tasks").glob("*.toml"))
    assert all(row.split()[-1] == "rolecall" for row in rows)


def test_ones_own_are_told_apart(tmp_path: Path) -> None:
    """A file in the config folder is one's own, whether it adds a task or takes the place of one."""
    options, folder = ("--config-dir", tmp_path), tmp_path / "tasks"
    folder.mkdir()
    shown = call("tasks", "show", "Caption", *options)
    (folder / "caption.toml").write_text(shown.stdout.replace('version = "1"', 'version = "mine"'))
    rows = {task["id"]: task for task in answer("tasks", "list", *options)}
    assert rows["caption"]["version"] == "mine"
    assert rows["caption"]["file"] == str(folder / "caption.toml")
    assert Path(rows["tags"]["file"]).parent != folder
    assert answer("tasks", "show", "caption", *options)["version"] == "mine"
    listed = call("tasks", "list", *options).stdout.splitlines()
    assert [line.split()[0] for line in listed if line.endswith("own")] == ["caption"]


def test_ones_own_are_told_apart_in_a_clone(tmp_path: Path) -> None:
    """There the config folder is the one with the tasks that come with rolecall; the others in it are one's own."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "src").symlink_to(CONFIGS.parent / "src")
    folder = tmp_path / "configs" / "tasks"
    (folder / "mine.toml").write_text((folder / "caption.toml").read_text().replace('id = "caption"', ""))
    clone = environment(PYTHONPATH=str(tmp_path / "src"))
    _, *rows = rolecall("tasks", "--config-dir", tmp_path / "configs", env=clone).stdout.splitlines()
    assert [row.split()[0] for row in rows if row.endswith("own")] == ["mine"]
    assert len(rows) == len(list(folder.iterdir()))


def test_the_config_folder_may_stand_before_the_command(tmp_path: Path) -> None:
    """As with `rolecall tasks --config-dir PATH list`; without a command the tasks are listed."""
    (tmp_path / "tasks").mkdir()
    text = call("tasks", "show", "caption", "--config-dir", tmp_path).stdout
    (tmp_path / "tasks" / "caption.toml").write_text(text.replace('version = "1"', 'version = "mine"'))
    assert answer("tasks", "--config-dir", tmp_path, "show", "caption")["version"] == "mine"
    listed = call("tasks", "--config-dir", tmp_path, "list")
    assert "mine" in listed.stdout
    alone = call("tasks", "--config-dir", tmp_path)
    assert (alone.exit_code, alone.stdout) == (0, listed.stdout)
    other = tmp_path / "other"
    other.mkdir()
    assert answer("tasks", "--config-dir", tmp_path, "show", "caption", "--config-dir", other)["version"] == "1"


def test_an_unknown_task_is_told(tmp_path: Path) -> None:
    """A name that is near is proposed."""
    result = call("tasks", "show", "captoin", "--config-dir", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "rolecall: there is no task 'captoin'; did you mean 'caption'?\n"


def test_a_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """Exit code 2 with the file and the field, after the others; only what needs that file ends with it."""
    options, folder = ("--config-dir", tmp_path), tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.toml").write_text('version = 1\ntitle = "Mine"\nrole = "caption"\nuser = "{x}"\n')
    result = call("tasks", "list", *options)
    assert result.exit_code == 2
    assert "mono_interpretation" in result.stdout
    told = f"{folder / 'mine.toml'}: user: {{x}} names no variable"
    assert result.stderr.startswith(f"rolecall: {told}")
    assert answer("tasks", "show", "caption", *options)["id"] == "caption"
    mine = call("tasks", "show", "mine", *options)
    assert (mine.exit_code, mine.stdout) == (2, "")
    assert mine.stderr.startswith(f"rolecall: the task mine cannot be used: {told}")
