"""``rolecall import``: what is taken over, what is kept, and what is said of both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cli.invoke import answer, call, configured, environment, rolecall

MINE = """[
  { "name": "mine", "backend": "vllm", "model_aliases": ["gpt-4"] },

  {
    "name": "both",
    "backend": "llama_cpp", "backend_config": { "model_path": "/old.gguf", "env": { "MY_TOKEN": "t-secret" } },
    "context_length": 4096
  }
]
"""
THEIRS = """models:
  both:
    cmd: llama-server -m /new.gguf -c 8192 --port ${PORT}
    aliases: [two]
    ttl: 5
    unlisted: true
  new:
    cmd: /opt/llama-server -m /new.gguf --port ${PORT}
    aliases: [gpt-4, mini, both]
    env: ["HF_TOKEN=hf-secret"]
"""


@pytest.fixture
def here(tmp_path: Path) -> tuple[str, ...]:
    """The options of a folder with a hand-written registry."""
    options = configured(tmp_path)
    curated(tmp_path).write_text(MINE)
    return options[:2]


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(THEIRS)
    return path


def curated(folder: Path) -> Path:
    return folder / "configs" / "model_registry.curated.json"


def entries(path: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(path.read_text())}


def backups(folder: Path) -> list[Path]:
    return sorted((folder / "configs").glob("*.bak"))


def test_what_is_new_is_added_and_what_is_there_is_kept(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """New entries go to the end of the file, which stays as it was otherwise; what was there has a copy."""
    result = call("import", theirs, *here)
    assert result.exit_code == 0, result.output
    assert curated(tmp_path).read_text().startswith(MINE[:-3])
    assert list(entries(curated(tmp_path))) == ["mine", "both", "new"]
    (backup,) = backups(tmp_path)
    assert backup.read_text() == MINE
    lines = result.stdout.splitlines()
    assert lines[0] == f"{theirs} (llama-swap)"
    assert lines[1] == "new   new (also mini): llama_cpp /new.gguf"
    assert lines[2].startswith("kept  both, as the registry has it; line 2 differs in ")
    assert "context_length (4096 here, 8192 there)" in lines[2]
    assert 'backend_config.model_path ("/old.gguf" here, "/new.gguf" there)' in lines[2]
    assert "line 6" in result.stdout
    assert "not carried over: models.both.unlisted: rolecall lists every model" in result.stdout
    assert "the alias 'gpt-4' belongs to 'mine' already" in result.stdout
    assert f"kept in {backup}" in result.stderr
    assert "--replace takes those of the file" in result.stderr
    assert "-secret" not in result.output


def test_a_second_import_changes_nothing(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """What was imported already is unchanged, also where an alias was left out; nothing is written."""
    call("import", theirs, *here, "--replace")
    text = curated(tmp_path).read_text()
    told = answer("import", theirs, *here)
    assert (told["added"], told["unchanged"], told["conflicts"]) == ([], ["both", "new"], [])
    assert told["written"] is False
    assert curated(tmp_path).read_text() == text
    assert len(backups(tmp_path)) == 1


def test_replace_takes_the_entries_of_the_file(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """--replace puts an entry in the place of the one that was there."""
    told = answer("import", theirs, "--replace", *here)
    assert (told["added"], told["replaced"], told["conflicts"]) == (["new"], ["both"], [])
    found = entries(curated(tmp_path))
    assert list(found) == ["mine", "both", "new"]
    assert found["both"] == {
        "name": "both",
        "model_aliases": ["two"],
        "backend": "llama_cpp",
        "backend_config": {"model_path": "/new.gguf"},
        "context_length": 8192,
        "idle_unload_s": 5,
    }


def test_a_dry_run_shows_the_difference_without_secrets(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """--dry-run writes nothing, and neither the diff nor the JSON has a secret that would be copied."""
    result = call("import", theirs, "--dry-run", *here)
    assert '+    "name": "new",' in result.stdout
    assert '"HF_TOKEN": "***"' in result.stdout
    assert "hf-secret" not in result.output
    told = answer("import", theirs, "--dry-run", *here)
    assert "hf-secret" not in json.dumps(told)
    assert '+    "name": "new",' in told["diff"]
    assert curated(tmp_path).read_text() == MINE
    assert backups(tmp_path) == []


def test_json_has_every_remark_with_its_line(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """--json tells format, files, remarks with line, kind, subject and text, and settings that are to be made."""
    told = answer("import", theirs, *here)
    assert (told["format"], told["source"], told["file"]) == ("llama-swap", str(theirs), str(curated(tmp_path)))
    assert told["backup"] == str(backups(tmp_path)[0])
    assert {"line": 6, "kind": "lost", "subject": "models.both.unlisted"}.items() <= told["remarks"][0].items()
    assert {remark["kind"] for remark in told["remarks"]} == {"lost", "changed", "todo"}
    assert told["settings"] == []
    (conflict,) = told["conflicts"]
    assert (conflict["name"], conflict["line"]) == ("both", 2)
    assert "t-secret" not in json.dumps(told)


def test_settings_that_would_do_the_same_are_shown(here: tuple[str, ...], tmp_path: Path) -> None:
    """What belongs into rolecall.toml is printed, and not written."""
    path = tmp_path / "x.yaml"
    path.write_text("models: {a: {cmd: '/opt/bin/llama-server -m /a.gguf --port ${PORT}', ttl: 1}}")
    lines = call("import", path, *here).stdout.splitlines()
    assert lines[-2:] == ["for rolecall.toml:", '    llama_server = "/opt/bin/llama-server"']
    assert (tmp_path / "configs" / "rolecall.toml").read_text() == ""


def test_out_names_another_file(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """--out writes a registry of its own, or prints one, and leaves the one in use alone."""
    out = tmp_path / "new" / "registry.json"
    assert "no folder" in call("import", theirs, "--dry-run", "--out", out, *here).stderr
    assert not out.parent.exists()
    result = call("import", theirs, "--out", out, *here)
    assert result.exit_code == 0
    assert f"there was no folder {out.parent}: it is new" in result.stderr
    assert list(entries(out)) == ["both", "new"]
    printed = call("import", theirs, "--out", "-", *here)
    assert json.loads(printed.stdout) == json.loads(out.read_text())
    assert "not carried over: models.both.unlisted" in printed.stderr
    assert curated(tmp_path).read_text() == MINE


def test_stdin_is_read(here: tuple[str, ...], tmp_path: Path) -> None:
    """A file named - is what comes from the pipe."""
    import subprocess
    import sys

    argv = [sys.executable, "-m", "rolecall", "import", "-", "--json", *here]
    done = subprocess.run(argv, input=THEIRS, env=environment(), capture_output=True, text=True, timeout=20, check=True)
    assert json.loads(done.stdout)["added"] == ["new"]


def test_a_discovered_model_is_laid_over(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """An alias of a discovered model is taken too; its name is not, for an entry lies over it."""
    found = [
        {"name": "new", "backend": "llama_cpp", "family": "f"},
        {"name": "d", "backend": "vllm", "model_aliases": "mini"},
    ]
    (tmp_path / "configs" / "model_registry.discovered.json").write_text(json.dumps(found))
    result = call("import", theirs, *here)
    assert "the alias 'mini' belongs to 'd' already" in result.stdout
    assert "model_aliases" not in entries(curated(tmp_path))["new"]


def test_a_name_that_is_an_alias_is_left_out(here: tuple[str, ...], tmp_path: Path) -> None:
    """A model that is called as another one's alias cannot be added, and that is told."""
    path = tmp_path / "x.json"
    path.write_text('[{"name": "gpt-4", "backend": "vllm"}, {"name": "ok", "backend": "vllm", "model_aliases": "k"}]')
    told = answer("import", path, *here)
    assert told["added"] == ["ok"]
    assert told["remarks"][0]["text"] == "the name 'gpt-4' is an alias of 'mine' already; the entry was left out"
    assert entries(curated(tmp_path))["ok"]["model_aliases"] == ["k"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "line 1: the alias *a holds itself"),
        ("models:\n  m: {cmd: '${nope}', ttl: x}", "line 2: models.m.cmd uses the macro 'nope'"),
        ("model_list: [{model_name: a, litellm_params: {model: azure/a}}]", "has no model that could be carried over"),
        ("models: {}\nmacros: {}", "has no model that could be carried over"),
        ("", "is empty"),
    ],
)
def test_a_file_that_cannot_be_taken_over_ends_with_1(
    here: tuple[str, ...], tmp_path: Path, text: str, words: str
) -> None:
    """Nothing is written, stdout is empty, and each line of the reason names the file."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    result = call("import", path, "--json", *here)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"rolecall: {path}: " in result.stderr
    assert words in result.stderr
    assert curated(tmp_path).read_text() == MINE


def test_a_broken_registry_is_not_written_over(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """A registry that is no JSON, or stays invalid, is left alone."""
    for text in ("[{", MINE.replace("4096", "-1")):
        curated(tmp_path).write_text(text)
        assert call("import", theirs, *here).exit_code == 1
        assert curated(tmp_path).read_text() == text
    assert backups(tmp_path) == []


def test_files_that_cannot_be_read_are_named(here: tuple[str, ...], tmp_path: Path) -> None:
    """A missing file and a folder end with 1 and their name."""
    for name, words in (("none.yaml", "No such file"), ("configs", "Is a directory")):
        result = call("import", tmp_path / name, *here)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"{tmp_path / name}: {words}" in result.stderr


def test_a_dry_run_makes_no_folder(theirs: Path, tmp_path: Path) -> None:
    """The user's own config folder is not made to look at what an import would do."""
    home = tmp_path / "home"
    home.mkdir()
    env = environment(HOME=str(home), XDG_CONFIG_HOME=str(home / "config"))
    done = rolecall("import", theirs, "--dry-run", env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []
    assert rolecall("import", theirs, env=env, cwd=home).returncode == 0
    assert {"demo-chat", "new"} <= entries(home / "config" / "rolecall" / "model_registry.curated.json").keys()


def test_a_registry_that_cannot_be_written_is_named(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """Where nothing can be written the command says so, and the registry stays."""
    (tmp_path / "configs" / f".model_registry.curated.json.{os.getpid()}").mkdir()
    result = call("import", theirs, *here)
    assert result.exit_code == 1
    assert "Is a directory" in result.stderr
    assert curated(tmp_path).read_text() == MINE


def test_only_new_warnings_are_told(here: tuple[str, ...], theirs: Path, tmp_path: Path) -> None:
    """What the registry was warned about before is nothing that the import did."""
    curated(tmp_path).write_text('[{ "name": "mine", "backend": "llama_cpp", "capabilities": ["flying"] }]')
    result = call("import", theirs, *here)
    assert result.exit_code == 0
    assert "warning: " not in result.stderr
    assert answer("import", theirs, "--replace", *here)["warnings"] == []
