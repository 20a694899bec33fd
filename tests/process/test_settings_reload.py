"""Settings changed while rolecall runs: which take effect, and what is said of the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.invoke import call
from harness import Rolecall, fake_entry

ROOM_FOR_ONE_MB = 150


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Rolecall]:
    """Run a rolecall with two models of one role."""
    entries = [fake_entry(name, roles=["chat"], role_priority={"chat": 50 + n}) for n, name in enumerate("ab")]
    with Rolecall(tmp_path, entries, settings={"max_vram_mb": ROOM_FOR_ONE_MB}) as running:
        yield running
        assert "Traceback" not in running.words()


def write(server: Rolecall, text: str) -> None:
    """Replace the settings."""
    (server.config_dir / "rolecall.toml").write_text(
        f'deployment_profile = "roomy"\nmax_vram_mb = {ROOM_FOR_ONE_MB}\n{text}'
    )


def reload(server: Rolecall, text: str) -> dict[str, list[str]]:
    """Write settings, have them read, and return what is said of them."""
    write(server, text)
    answer = server.http.post("/v1/admin/reload")
    assert answer.status_code == 200, answer.text
    said: dict[str, list[str]] = answer.json()["settings"]
    return said


def test_settings_of_requests_are_in_force_at_once(server: Rolecall) -> None:
    """The next request goes by them; `/v1/config/proxy` shows them; taken out, the default is back."""
    assert reload(server, "log_prompts = true\nmax_wait_s = 7\n") == {
        "applied": ["log_prompts", "max_wait_s"],
        "restart": [],
    }
    assert server.get("/v1/config/proxy")["max_wait_s"] == 7
    assert "request" in json.dumps(server.line_of(server.chat("a", "a secret")))
    assert "a secret" in server.log_path.read_text()
    assert reload(server, "") == {"applied": ["log_prompts", "max_wait_s"], "restart": []}
    server.line_of(server.chat("a", "another one"))
    assert "another one" not in server.log_path.read_text()


def test_how_roles_choose_is_in_force_at_once(server: Rolecall) -> None:
    """A tolerance keeps the loaded model, and without it the better one is loaded."""
    server.chat("a")
    reload(server, "quality_tolerance = 10\n")
    assert server.chat("role:chat").headers["x-rolecall-model"] == "a"
    reload(server, '[roles.chat]\npolicy = "priority"\n')
    assert server.chat("role:chat").headers["x-rolecall-model"] == "b"


def test_what_needs_a_restart_is_told_each_time_and_changes_nothing(server: Rolecall) -> None:
    """A new port is named by every reload until it is in force or taken back; the server stays where it is."""
    for _ in range(2):
        assert reload(server, "max_queue = 3\nlog_backups = 9\n") == {
            "applied": [],
            "restart": ["log_backups", "max_queue"],
        }
    assert server.get("/v1/config/proxy")["max_queue"] == 1000
    assert reload(server, "") == {"applied": [], "restart": []}


def test_changed_profiles_are_told(server: Rolecall) -> None:
    """They need a restart too: the memory budget is not changed under running models."""
    path = server.config_dir / "profiles.toml"
    path.write_text(path.read_text().replace("max_concurrent_models = 100", "max_concurrent_models = 99"))
    assert reload(server, "")["restart"] == ["profiles.toml"]


def test_the_command_line_stays_in_force(server: Rolecall) -> None:
    """What `--port` and `--log-path` said is not undone by a file that says otherwise."""
    assert reload(server, 'port = 1\nlog_path = "/elsewhere"\n') == {"applied": [], "restart": []}


@pytest.mark.parametrize("text", ["max_messages = 0\n", "no_such = 1\n", "rubbish"])
def test_wrong_settings_change_nothing(server: Rolecall, text: str) -> None:
    """They are refused with their name or file, and what was in force stays so."""
    reload(server, "max_wait_s = 9\n")
    write(server, text)
    answer = server.http.post("/v1/admin/reload")
    assert answer.status_code == 400
    assert "rolecall.toml" in answer.json()["error"]["message"]
    assert server.get("/v1/config/proxy")["max_wait_s"] == 9


def test_the_command(server: Rolecall) -> None:
    """`rolecall reload` says what is in force now and what is not; what is wrong is exit code 1 with the reason."""
    write(server, "max_wait_s = 9\nmax_queue = 3\n")
    done = call("reload", "--url", server.base_url)
    assert done.stdout.splitlines() == [
        "registry: 2 entries, 0 warnings",
        "settings in force now: max_wait_s",
        "settings that need a restart: max_queue",
    ]
    write(server, "")
    call("reload", "--url", server.base_url)
    again: dict[str, Any] = json.loads(call("reload", "--url", server.base_url, "--json").stdout)
    assert again == {"entries": 2, "warnings": [], "settings": {"applied": [], "restart": []}}
    write(server, "max_wait_s = -1\n")
    refused = call("reload", "--url", server.base_url)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "The settings are wrong, the last good ones stay in force: max_wait_s" in refused.stderr


def test_broken_markers_are_refused_by_a_reload(server: Rolecall) -> None:
    """A `markers.toml` that cannot be read is told at once, and in `/health` until it is right."""
    path = server.config_dir / "markers.toml"
    path.write_text("chars = 0\n")
    refused = server.http.post("/v1/admin/reload")
    assert refused.status_code == 400
    assert "The markers cannot be read" in refused.json()["error"]["message"]
    assert list(server.get("/health")["problems"]) == ["markers"]
    path.unlink()
    assert reload(server, "") == {"applied": [], "restart": []}
    assert server.get("/health")["problems"] == {}
