"""``rolecall pin``, ``unpin`` and ``cancel`` against a running rolecall with fake engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.invoke import call
from harness import Rolecall, fake_entry, rest_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    entries = [fake_entry("one", model_aliases=["uno"]), fake_entry("broken", "--fail-start=1")]
    with Rolecall(tmp_path_factory.mktemp("by_hand"), entries) as running:
        yield running


def test_a_model_is_pinned_and_unpinned(server: Rolecall) -> None:
    """By name or alias; what is said is how it is now, and the row for programs."""
    here = ("--url", server.base_url)
    pinned = call("pin", "uno", *here)
    assert (pinned.exit_code, pinned.stdout) == (0, "one is pinned, and stopped\n")
    assert server.row("one")["pinned"]
    assert json.loads(call("pin", "one", "--json", *here).stdout)["pinned"] is True
    assert call("unpin", "one", *here).stdout == "one is not pinned, and stopped\n"
    assert not server.row("one")["pinned"]


def test_a_failed_model_is_pinned_and_unpinned(server: Rolecall) -> None:
    """That its engine failed earlier is no error of what was asked now."""
    here = ("--url", server.base_url)
    assert server.http.post("/v1/models/broken/load").is_error
    assert server.row("broken")["error"]
    pinned = call("pin", "broken", *here)
    assert (pinned.exit_code, pinned.stdout) == (0, "broken is pinned, and failed\n")
    assert call("unpin", "broken", *here).stdout == "broken is not pinned, and failed\n"


def test_a_request_is_stopped(server: Rolecall) -> None:
    """Its stream ends with an error; a second time there is nothing left to stop."""
    here = ("--url", server.base_url)
    with server.stream("one", fake={"tokens": 100_000, "token_delay_s": 0.01}) as answer:
        lines = answer.iter_lines()
        next(lines)
        request_id = answer.headers["x-request-id"]
        assert call("cancel", request_id, *here).stdout == f"{request_id} is stopped\n"
        seen, is_whole = rest_of(lines)
    assert (seen[-1]["error"]["code"], is_whole) == ("request_cancelled", False)
    again = call("cancel", request_id, *here)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "is not being served" in again.stderr


@pytest.mark.parametrize("command", [("pin", "nope"), ("unpin", "nope"), ("cancel", "req_nope"), ("pin", "role:x")])
def test_what_is_not_there(server: Rolecall, command: tuple[str, str]) -> None:
    """It is said in words, with the exit code 1."""
    result = call(*command, "--url", server.base_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert command[1].removeprefix("role:") in result.stderr


def test_nobody_there(tmp_path: Path) -> None:
    """As all commands that need a server say it."""
    del tmp_path
    result = call("pin", "one", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "no rolecall at http://127.0.0.1:9" in result.stderr
