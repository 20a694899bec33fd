"""``rolecall status``, ``load`` and ``unload`` against a running rolecall with fake engines."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.invoke import answer, call, configured, environment, in_terminal
from harness import DEADLINE_S, Rolecall, eventually, fake_entry, upstream
from rolecall.cli.client import normal_url
from simulator import nvml

AWKWARD = "org/odd model:q4 (v1)?#%2F"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall for all tests; each test uses models of its own."""
    entries = [
        fake_entry("one", model_aliases=["uno"]),
        fake_entry("two", role_priority={"caption": 10}),
        fake_entry(AWKWARD),
        fake_entry("slow", "--load-s", "1.2"),
        fake_entry("loading", "--load-s", "30"),
        fake_entry("broken", "--fail-start", "the disk of the engine is on fire"),
    ]
    with Rolecall(tmp_path_factory.mktemp("status"), entries) as running:
        yield running


def options(server: Rolecall) -> tuple[str, str]:
    return ("--url", server.base_url)


def row(status: Any, name: str) -> dict[str, Any]:
    return next(dict(each) for each in status["models"] if each["model"] == name)


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_shows_states_and_who_holds_memory(server: Rolecall) -> None:
    """A loaded model has its reservation, process and port in its row; the head has the sum of the budget."""
    server.http.post("/v1/models/one/load")
    text = call("status", *options(server)).stdout
    assert text.startswith(f"rolecall 0.1.0 at {server.base_url}: ok\n")
    assert re.search(r"^memory +\d+ of 1000000 MB reserved, at most 100 models at once$", text, re.MULTILINE)
    assert re.search(r"^profile +roomy \(config\)$", text, re.MULTILINE)
    pid, port = server.row("one")["pid"], server.row("one")["port"]
    assert re.search(rf"^one +ready +0 +0 +100 +- +100 declared +\d+ +{pid} +{port} +\d+s", text, re.MULTILINE)
    assert re.search(r"^two +\w+ +0 +0 ", text, re.MULTILINE)


def test_status_json_is_what_the_server_says(server: Rolecall) -> None:
    """--json carries the answers of the server as they are."""
    status = answer("status", *options(server))
    assert status["url"] == server.base_url
    assert status["health"]["budget_mb"] == 1_000_000
    assert status["profile"]["active_profile"]["name"] == "roomy"
    assert {"one", "two", AWKWARD} <= {each["model"] for each in status["models"]}
    assert row(status, "one").keys() == server.row("one").keys()
    assert status["gpus"] == []


def test_status_tells_of_problems(tmp_path: Path) -> None:
    """A registry that broke while rolecall runs is shown as a problem, with the entry that is wrong."""
    with Rolecall(tmp_path, [fake_entry("one")]) as running:
        running.write_registry({"name": "one", "backend": "llama_cpp", "context_length": -1})
        running.http.post("/v1/admin/reload")
        text = call("status", *options(running)).stdout
    assert ": degraded\n" in text
    assert "field context_length:" in text


def test_status_shows_gpus(tmp_path: Path, nvml_library: Path) -> None:
    """A GPU shows what is used of it and reserved, a model on which of them it lies; one that is left alone says so."""
    environ = nvml.environment(nvml_library, nvml.UNLIKE_PAIR, tmp_path)
    entries = [fake_entry("one", "--gpu-mb", "5000", vram_estimate_mb=6000, gpus=[1])]
    with Rolecall(tmp_path / "rolecall", entries, profile=None, environ=environ) as running:
        running.http.post("/v1/models/one/load")
        eventually(lambda: running.row("one")["footprint_source"] == "learnt")
        text = call("status", *options(running)).stdout
        gpus = answer("status", *options(running))["gpus"]
    name = r"NVIDIA Test GPU \(GPU-00000000\)"
    assert re.search(r"^GPU 0 +not used; 16076 of 16376 MB free$", text, re.MULTILINE)
    assert re.search(rf"^GPU 1 +5300 of 24564 MB used, 300 by others; 5000 of 22516 .*; {name}$", text, re.MULTILINE)
    assert re.search(r"^profile +balanced_24gb \(auto\)$", text, re.MULTILINE)
    assert re.search(r"^one +ready +0 +0 +5000 +1 +5000 learnt ", text, re.MULTILINE)
    assert [(gpu["index"], gpu["reserved_mb"]) for gpu in gpus] == [(1, 5000)]


def test_status_shows_how_far_a_load_is(server: Rolecall) -> None:
    """A model that loads has its progress and the rest of the time beside its state."""
    with server.stream("loading"):
        text = call("status", *options(server)).stdout
    assert re.search(r"^loading +starting \d+% eta \d+s +0 +1 ", text, re.MULTILINE)
    server.http.post("/v1/models/loading/unload")


def test_status_shows_the_circuit_breaker(tmp_path: Path) -> None:
    """A model that fails again and again says how often, when it is tried next, and why."""
    with Rolecall(tmp_path, [fake_entry("broken", "--fail-start", "no such tensor")]) as running:
        eventually(lambda: running.chat("broken").status_code == 503 and running.row("broken")["failures"] == 3)
        text = call("status", *options(running)).stdout
        lines = in_terminal("status", *options(running), columns=100)
    said = "failed 3 times, next try in [34]s: exit code 1.*no such tensor"
    assert re.search(rf"^broken +failed .* {said}$", text, re.MULTILINE)
    assert any(line.startswith("    failed 3 times, next try in ") for line in lines)


def test_status_fits_eighty_columns(server: Rolecall) -> None:
    """On a terminal of 80 columns no row of the table is wider, and every name is whole."""
    lines = in_terminal("status", *options(server), columns=80)
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(AWKWARD) for line in lines)


def test_status_finds_the_server_through_the_settings(server: Rolecall, tmp_path: Path) -> None:
    """Without --url it asks host and port of the settings; the address of all interfaces stands for loopback."""
    here = configured(tmp_path, [], f'host = "0.0.0.0"\nport = {server.port}')[:2]
    assert answer("status", *here)["url"] == f"http://127.0.0.1:{server.port}"
    port = {"CHAT_PROXY_PORT": str(server.port)}
    assert answer("status", *configured(tmp_path, [])[:2], env=port)["url"] == f"http://127.0.0.1:{server.port}"


def test_url_may_be_written_in_any_usual_way() -> None:
    """What people copy from elsewhere works: without a scheme, with a slash, with /v1."""
    for url in ("box:8100", "http://box:8100", "http://box:8100/", "http://box:8100/v1", "box:8100/v1/"):
        assert normal_url(url) == "http://box:8100"
    assert normal_url("https://box/rolecall/v1") == "https://box/rolecall"


def test_without_a_server_the_message_says_where_it_looked(tmp_path: Path) -> None:
    """Exit code 1, an empty stdout, the address and the way to start it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    here = configured(tmp_path, [], f"port = {port}")[:2]
    for command in (("status",), ("status", "--json"), ("status", "--watch"), ("load", "one"), ("unload", "one")):
        result = call(*command, *here)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"rolecall: no rolecall at http://127.0.0.1:{port} (" in result.stderr
        assert "`rolecall serve` starts it" in result.stderr


@pytest.mark.parametrize(
    "body", [b"hello", b'{"status": "ok"}', b"[]"], ids=["no JSON", "another server's health", "no object"]
)
def test_another_server_is_not_taken_for_rolecall(body: bytes) -> None:
    """What answers at the address but is no rolecall is named as such."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    with upstream(lambda connection, _: connection.sendall(head + body)) as other:
        result = call("status", "--url", other.base_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"what answers at {other.base_url.removesuffix('/v1')} is no rolecall" in result.stderr


@pytest.mark.parametrize("url", ["http://[", "ftp://127.0.0.1:9", "http://127.0.0.1:99999"])
def test_an_address_that_cannot_be_is_a_reason_and_no_traceback(url: str) -> None:
    """Any text given as --url ends with a reason."""
    result = call("status", "--url", url)
    assert result.exit_code == 1
    assert result.stderr.startswith("rolecall: ")


def test_watch_goes_on_until_it_is_interrupted(server: Rolecall) -> None:
    """--watch --json prints one object a line again and again; Ctrl-C ends it with exit code 0."""
    argv = [sys.executable, "-m", "rolecall", "status", "--watch", "--json", *options(server)]
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        seen = [json.loads(watch.stdout.readline())["url"] for _ in range(2)]
        watch.send_signal(signal.SIGINT)
        assert watch.wait(DEADLINE_S) == 0
    assert seen == [server.base_url] * 2


# --- load and unload --------------------------------------------------------------------------------------------------


def test_load_waits_until_the_model_is_ready_and_says_how_long(server: Rolecall) -> None:
    """The command ends when requests can be served, with the time that took; unload is its opposite."""
    loaded = call("load", "two", *options(server))
    assert (loaded.exit_code, loaded.stderr) == (0, "")
    assert re.fullmatch(r"two is ready after \d+\.\d\d s\n", loaded.stdout)
    assert server.state_of("two") == "ready"
    unloaded = call("unload", "two", *options(server))
    assert re.fullmatch(r"two is stopped after \d+\.\d\d s\n", unloaded.stdout)
    assert server.state_of("two") == "stopped"


def test_load_json_is_the_row_with_the_time(server: Rolecall) -> None:
    """--json prints the model's row and took_s; the model may be named by role, alias and any awkward name."""
    for name, model in (("role:caption", "two"), ("uno", "one"), (AWKWARD, AWKWARD)):
        loaded = answer("load", name, *options(server))
        assert (loaded["model"], loaded["state"]) == (model, "ready")
        assert 0 <= loaded["took_s"] < DEADLINE_S
        assert answer("unload", model, *options(server))["state"] == "stopped"


def test_a_failed_start_shows_the_last_lines_of_the_engine(server: Rolecall) -> None:
    """What the engine said before it ended is the reason that is printed, and status keeps it."""
    result = call("load", "broken", *options(server))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "The model 'broken' did not start: exit code 1" in result.stderr
    assert "rolecall: the disk of the engine is on fire" in result.stderr
    assert "the disk of the engine is on fire" in call("status", *options(server)).stdout


def test_load_of_an_unknown_model_fails(server: Rolecall) -> None:
    """The server's message is the reason, with the nearest names."""
    result = call("load", "onee", *options(server))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "The model 'onee' does not exist. Did you mean 'one'" in result.stderr


def test_a_terminal_shows_that_it_is_working(server: Rolecall) -> None:
    """While an engine loads, a terminal shows what is going on; the last line is the result."""
    lines = in_terminal("load", "slow", *options(server), columns=80, kind="xterm")
    assert "starting slow" in "".join(lines)
    assert re.search(r"slow is ready after \d+\.\d\d s$", lines[-1])
