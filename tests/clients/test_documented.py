"""The page about clients: its examples run as they stand there, its versions are those that are installed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.adapters import JS, needs_curl, needs_node
from clients.entries import ANSWER
from harness import Rolecall

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8100"


def blocks(language: str) -> Iterator[Any]:
    """Return the page's blocks of a language, named by the heading above them."""
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        heading = re.findall(r"^#+ (.+)$", PAGE[: found.start()], re.MULTILINE)[-1]
        yield pytest.param(found[1], id=f"{heading}, line {PAGE[: found.start()].count(chr(10)) + 1}")


def run(server: Rolecall, *argv: str, block: str, folder: Path | None = None) -> str:
    """Return the output of a block that is pointed to this server."""
    code = block.replace(ADDRESS, server.base_url)
    done = subprocess.run([*argv, code], capture_output=True, text=True, timeout=60, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", list(blocks("python")))
def test_python(server: Rolecall, capsys: pytest.CaptureFixture[str], block: str) -> None:
    """Each example prints the answer, or how long its vector is."""
    exec(block.replace(ADDRESS, server.base_url), {})  # noqa: S102 - the page is ours
    out = capsys.readouterr().out
    assert ANSWER in out or re.fullmatch(r"\d\d+\n", out)


@needs_node
@pytest.mark.parametrize("block", list(blocks("js")))
def test_javascript(server: Rolecall, block: str) -> None:
    """So does the one for Node."""
    out = run(server, "node", "--input-type=module", "-e", block=block, folder=JS)
    assert ANSWER in out


@needs_curl
@pytest.mark.parametrize("block", [each for each in blocks("sh") if each.values[0].startswith("curl")])
def test_curl(server: Rolecall, block: str) -> None:
    """The command streams."""
    assert run(server, "sh", "-c", block=block).endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("block", list(blocks("yaml")))
def test_yaml(block: str) -> None:
    """The files of other programs are YAML, and have the address."""
    assert isinstance(yaml.safe_load(block), dict)
    assert f"{ADDRESS}/v1" in block


def test_versions() -> None:
    """The table names the versions of the lock files, and each client of this environment."""
    rows = dict(re.findall(r"^\| (\S+(?: \(\S+\))?) \| ([\d., ]+) \|", PAGE, re.MULTILINE))
    locked = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    npm = (JS / "package.json").read_text(encoding="utf-8")
    packages = ("langchain-openai", "llama-index-llms-openai-like", "litellm", "anthropic")
    others = [re.findall(r"^openai==(\S+)", locked, re.MULTILINE)[0], version("openai")]
    assert rows == {
        "openai (Python)": ", ".join(others),
        "openai (npm)": re.findall(r'"openai": "(.+?)"', npm)[0],
        **{name: version(name) for name in packages},
    }
