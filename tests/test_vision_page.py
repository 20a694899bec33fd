"""docs/vision.md: every command of the afternoon runs, and the tables are those of the program."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from cli.invoke import environment
from harness import CONFIGS, Rolecall
from rolecall.cli import app
from rolecall.runtime.registry import CURATED
from rolecall.vision.batch_record import Record
from test_docs import ROOT, blocks, page, table
from vision.pictures import folder

pytestmark = pytest.mark.long

TEXT = page("vision.md")
LIMIT_S = 120


def afternoon() -> list[str]:
    """The blocks of shell commands, the first of which starts rolecall."""
    return blocks(TEXT, "sh")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a clone in which `make run` is running, with pictures in the home folder beside it."""
    pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
    pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")
    root = tmp_path_factory.mktemp("afternoon")
    here = root / "rolecall"
    programs = here / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, module in (("rolecall", "-m rolecall"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (programs / name).chmod(0o755)
    pictures = folder(root / "home" / "Pictures" / "harbour", 6)
    (pictures / "IMG_0006.cr2").touch()
    (here / "logs").mkdir()
    settings = {"llama_server": "embedded", "log_path": str(here / "logs" / "chat_proxy.jsonl")}
    running = Rolecall(here, json.loads((CONFIGS / CURATED).read_text()), settings=settings)
    (here / "configs" / "tasks").mkdir()
    with running:
        (root / "port").write_text(str(running.port))
        yield root


def test_it_begins_like_the_readme() -> None:
    """The first block is the README's first one."""
    assert afternoon()[0] == blocks((ROOT / "README.md").read_text(encoding="utf-8"), "sh")[0]


def test_every_command_of_the_afternoon_runs(clone: Path) -> None:
    """One after the other in a shell, each succeeds; what the page shows of the output is what comes out."""
    variables = environment(CHAT_PROXY_PORT=(clone / "port").read_text(), HOME=str(clone / "home"))
    said = ""
    for block in afternoon()[1:]:
        shell = ["bash", "-euo", "pipefail", "-c", block]
        ran = subprocess.run(
            shell, cwd=clone / "rolecall", env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"
        said += ran.stdout + ran.stderr
    told = [normal(line) for line in said.splitlines()]
    for line in "".join(blocks(TEXT, "text")).splitlines():
        assert normal(line) in told
    assert (clone / "rolecall" / "tags.csv").read_text().count("\n") == 7
    assert len(list((clone / "home/Pictures/harbour").glob("*.jpg.xmp"))) == 6


def normal(line: str) -> str:
    """A line without what differs from run to run: seconds."""
    return re.sub(r"\d+s\b", "Ns", line.rstrip())


def test_the_fields_of_a_record() -> None:
    """The table has each field of a record and no other."""
    rows = table(TEXT, "field", "meaning")
    assert sorted(name for row in rows for name in row[0].split(", ")) == sorted(each.name for each in fields(Record))


def test_the_options() -> None:
    """The table has every option of `run`, but for help and the folder of the configuration."""
    command = typer.main.get_command(app).get_command(None, "run")  # type: ignore[attr-defined]
    there = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    named = {word for row in table(TEXT, "option", "") for word in re.findall(r"--[a-z-]+", row[0])}
    assert named == {option for option in there if option.startswith("--")} - {"--config-dir", "--help"}


def test_the_tasks_of_the_commands() -> None:
    """Each command of the table does the task beside it."""
    for command, task, _ in table(TEXT, "command", "task", "what it is")[:-1]:
        name = command.split()[1]
        path = os.fspath(ROOT / "docs" / "vision-datasets-phone.png")
        argv = [sys.executable, "-m", "rolecall", name, path, "--url", "http://127.0.0.1:9", "--set", f"no-{task}=x"]
        ran = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert ran.returncode == 2, ran.stderr
        assert f"task {task} has no variable" in ran.stderr
