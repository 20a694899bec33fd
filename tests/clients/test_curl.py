"""The commands of the first page and of the API page, as they stand there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from clients.adapters import needs_curl
from clients.entries import ANSWER, CAPTION
from harness import Rolecall, events, text_of

ROOT = Path(__file__).parents[2]
pytestmark = needs_curl


def commands(page: str) -> list[str]:
    """Return the curl commands of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if block.startswith("curl") and "/chat/completions" in block]


def run(command: str, server: Rolecall) -> str:
    """Return the output of a page's command that is pointed to this server."""
    assert "http://127.0.0.1:8100" in command
    here = command.replace("http://127.0.0.1:8100", server.base_url)
    return subprocess.run(["sh", "-c", here], capture_output=True, text=True, timeout=20, check=True).stdout


def test_the_command_of_the_first_page(server: Rolecall) -> None:
    """It streams a caption."""
    (command,) = commands("README.md")
    seen = events(run(command, server))
    assert (seen[-1], text_of(seen)) == ("[DONE]", CAPTION)


@pytest.mark.parametrize("command", commands("docs/api.md"))
def test_the_commands_of_the_api_page(server: Rolecall, command: str) -> None:
    """They get an answer."""
    assert ANSWER in run(command, server)
