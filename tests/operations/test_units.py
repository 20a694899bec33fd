"""The units of docs/operations: systemd takes them, and what they start works as they say."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from harness import CONFIGS, Rolecall, eventually, fake_entry
from operations.shipped import PROGRAM, ROOT, shipped, unit
from rolecall.runtime.overseer import STATUS_EVERY_S
from rolecall.runtime.state_items import items_of
from rolecall.settings import Settings

SERVICES = ("rolecall.service", "rolecall-user.service")
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here")


def installed(folder: Path, *names: str) -> list[str]:
    """Write units with the paths of this clone, and return where they are."""
    folder.mkdir()
    for name in names:
        text = shipped(name).replace("/opt/rolecall/.venv/bin/rolecall", str(PROGRAM))
        text = text.replace("%h/rolecall/.venv/bin/rolecall", str(PROGRAM)).replace("/opt/rolecall", str(ROOT))
        (folder / name).write_text(text)
    return [str(folder / name) for name in names]


def analyzed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_COLORS": "0"}
    return subprocess.run([str(ANALYZE), *words], env=environ, capture_output=True, text=True, check=False, timeout=60)


@needs_systemd
def test_systemd_takes_them(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say about any of them."""
    done = analyzed(tmp_path, "verify", *installed(tmp_path / "system", "rolecall.service", "rolecall.socket"))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    done = analyzed(tmp_path, "--user", "verify", *installed(tmp_path / "user", "rolecall-user.service"))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_the_service_is_hardened(tmp_path: Path) -> None:
    """Its exposure by systemd's own measure stays below 4 of 10 (a unit without hardening has 9.6)."""
    done = analyzed(
        tmp_path, "security", "--offline=true", "--threshold=40", *installed(tmp_path / "u", "rolecall.service")
    )
    assert done.returncode == 0, done.stdout[-200:]


def test_what_gpus_and_engines_need_is_left_alone() -> None:
    """No directive shuts out devices, compilers at run time, or children of the OOM killer's victim."""
    for name in SERVICES:
        found = unit(name)
        harmful = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"}
        assert not harmful & set(found)
        assert found["OOMPolicy"] == ["continue"]


def test_answers_have_the_time_that_they_need() -> None:
    """Systemd waits longer than rolecall does, and tells rolecall alone to end."""
    for name in SERVICES:
        found = unit(name)
        grace_s = Settings.model_fields["shutdown_grace_s"].default
        assert int(found["TimeoutStopSec"][0]) >= grace_s + 20
        assert found["KillMode"] == ["mixed"]
        assert found["RestartPreventExitStatus"] == ["2"]


def test_signs_of_life_come_as_often_as_the_docs_say() -> None:
    """Every few seconds, and far more often than the units' watchdog needs them."""
    assert f"every {STATUS_EVERY_S:g} s that the loop runs" in (ROOT / "docs" / "operations.md").read_text()
    for name in SERVICES:
        assert float(unit(name)["WatchdogSec"][0]) > 4 * STATUS_EVERY_S


def test_the_socket_is_where_the_settings_have_it() -> None:
    """Host and port are the defaults, where the commands look."""
    host, port = (Settings.model_fields[name].default for name in ("host", "port"))
    assert unit("rolecall.socket")["ListenStream"] == [f"{host}:{port}"]


def command_of(name: str, folder: Path) -> list[str]:
    """Return what a unit starts, with its folders below ``folder`` and a free port."""
    command = unit(name)["ExecStart"][0].replace("%h", str(folder / "home"))
    _, *words = shlex.split(command)
    moved = [word if word.startswith("--") or word == "serve" else str(folder / word.lstrip("/")) for word in words]
    return [str(PROGRAM), *moved, "--port", "0"]


@pytest.mark.parametrize("name", SERVICES)
def test_it_starts_reloads_and_ends_as_systemd_would_have_it(tmp_path: Path, name: str) -> None:
    """ExecStart under a NOTIFY_SOCKET says READY, ExecReload has it reload, SIGTERM ends it with STOPPING and 0."""
    config = tmp_path / "etc" / "rolecall"
    if name == "rolecall-user.service":
        config = tmp_path / "home" / ".config" / "rolecall"
    shutil.copytree(CONFIGS, config)
    for each in ("var/lib/rolecall", "var/log/rolecall"):
        (tmp_path / each).mkdir(parents=True)
    with (config / "rolecall.toml").open("a") as file:
        file.write("demo_models = false\n")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("CHAT_PROXY_", "XDG_"))}
    environ |= {"HOME": str(tmp_path / "home"), "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(environ["NOTIFY_SOCKET"])
        inbox.settimeout(20)
        process = subprocess.Popen(
            command_of(name, tmp_path), env=environ, cwd="/", stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            assert f"MAINPID={process.pid}" in await_notice(inbox, "READY=1")
            program, *arguments = shlex.split(unit(name)["ExecReload"][0].replace("$MAINPID", str(process.pid)))
            subprocess.run([program, *arguments], check=True)
            await_notice(inbox, "RELOADING=1")
            assert any(line.startswith("STATUS=reloaded") for line in await_notice(inbox, "READY=1"))
            await_notice(inbox, "WATCHDOG=1")
            process.send_signal(signal.SIGTERM)
            await_notice(inbox, "STOPPING=1")
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_no_log_is_backed_up(tmp_path: Path) -> None:
    """Where the units have the log, prompts may be in it: none is in a backup of their folders."""
    for name in SERVICES:
        log = Path(command_of(name, tmp_path / name)[-3])
        state = tmp_path / name / "home/.local/state/rolecall"
        log.parent.mkdir(parents=True)
        state.mkdir(parents=True, exist_ok=True)
        for each in (log, log.with_name("requests.jsonl.2.gz"), log.with_name("requests.feedback.jsonl")):
            each.write_text("a prompt")
        (state / "usage.json").write_text("{}")
        settings = Settings.model_validate({"config_dir": tmp_path / "none", "state_dir": state})
        assert [item.name for item in items_of(settings)] == ["state/usage.json"], name


def await_notice(inbox: socket.socket, line: str) -> list[str]:
    """Return the next datagram that has this line."""
    while True:
        lines = inbox.recv(65536).decode().splitlines()
        if line in lines:
            return lines


def test_kept_engines_need_another_kill_mode(tmp_path: Path) -> None:
    """What `mixed` does after the end, SIGKILL for all of the group, is the end of kept engines: the unit says so."""
    assert "For keep_engines_on_exit: KillMode=process" in shipped("rolecall.service")
    with Rolecall(tmp_path, [fake_entry("m")], settings={"keep_engines_on_exit": True}) as server:
        server.chat("m")
        pid = server.row("m")["pid"]
        server.process.terminate()
        assert server.process.wait(20) == 0
    os.kill(pid, signal.SIGKILL)
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        eventually(lambda: server.state_of("m") == "stopped")
        assert server.chat("m").status_code == 200
