"""What the command line does with wrong usage and wrong configuration, and which of two settings wins."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.invoke import call, configured, environment, rolecall
from harness import Rolecall, fake_entry

COMMANDS = ("serve", "models", "select", "status", "load", "unload", "logs", "doctor")


# --- the command itself -----------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    """`rolecall` alone and `rolecall --help` show what there is; each command has help of its own."""
    assert rolecall().returncode == 2
    done = rolecall("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
        result = call(name, "--help")
        assert result.exit_code == 0
        assert f" {name} " in result.stdout.splitlines()[0]


def test_unknown_command_and_option_are_wrong_usage() -> None:
    """What does not exist ends with exit code 2 and a hint."""
    assert "Did you mean 'status'?" in rolecall("statu").stderr
    done = rolecall("status", "--colour")
    assert done.returncode == 2
    assert "No such option: --colour" in done.stderr


@pytest.mark.parametrize("words", [["--version"], ["logs", "--file", "/no/such/log.jsonl"]], ids=["version", "logs"])
def test_quick_commands_load_little(words: list[str]) -> None:
    """The version and the request log do not wait for modules that only the server needs."""
    code = (
        "import sys; from rolecall.cli import main\n"
        "try: main()\n"
        "except SystemExit: sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert {"httpx", "uvicorn", "psutil", "rolecall.settings"}.isdisjoint(done.stderr.split())
    assert "rolecall.cli" in done.stderr.split()


def test_logs_reads_where_the_settings_say(tmp_path: Path) -> None:
    """`rolecall logs` finds the log by log_path of the settings file."""
    line = {"ts": "2026-01-31T12:00:00Z", "request_id": "req-1", "model": "one", "status": 200}
    (tmp_path / "requests.jsonl").write_text(json.dumps(line) + "\n")
    configured(tmp_path, [], f"log_path = {json.dumps(str(tmp_path / 'requests.jsonl'))}")
    done = rolecall("logs", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, line)


# --- wrong settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("option", "from the command line (--port)"),
        ("variable", "in the environment variable CHAT_PROXY_PORT"),
        ("file", "rolecall.toml"),
    ],
)
def test_a_wrong_value_names_setting_value_origin_and_what_is_allowed(tmp_path: Path, origin: str, words: str) -> None:
    """`serve` refuses to start with exit code 2 and one line that says all there is to say."""
    here = configured(tmp_path, [], 'port = "http"' if origin == "file" else "")
    options = ("--port", "http") if origin == "option" else ()
    env = environment(CHAT_PROXY_PORT="http") if origin == "variable" else environment()
    done = rolecall("serve", *here, *options, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rolecall: port: Input should be a valid integer")
    assert "'http'" in done.stderr
    assert words in done.stderr
    assert "Port to listen on; 0 takes a free one." in done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("prot = 9000", "prot: in {file} names no setting; did you mean 'port'?"),
        ("port = ", "{file} cannot be read: Invalid value"),
        ("max_queue = 0\nlog_level = 'loud'", "log_level: "),
        ('deployment_profile = "balanced"', "unknown profile 'balanced'; did you mean 'balanced_24gb'?"),
        ('llama_server = "/no/such/program"', "llama_server: '/no/such/program' is no program; allowed are"),
    ],
)
def test_a_wrong_settings_file_is_refused(tmp_path: Path, settings: str, words: str) -> None:
    """Unknown names, broken TOML and impossible values are each told with the place; all wrong values at once."""
    done = rolecall("serve", *configured(tmp_path, [], settings))
    assert done.returncode == 2
    assert words.format(file=tmp_path / "configs" / "rolecall.toml") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A folder that somebody named must exist, for every command that reads it."""
    for command in (("serve",), ("models", "list"), ("select", "chat"), ("status",)):
        done = rolecall(*command, "--config-dir", tmp_path / "none")
        assert done.returncode == 2
        assert "none' from --config-dir is not a folder that exists" in done.stderr
    done = rolecall("serve", env=environment(CHAT_PROXY_CONFIG_DIR=str(tmp_path / "none")))
    assert "none' from CHAT_PROXY_CONFIG_DIR is not a folder that exists" in done.stderr


def test_a_broken_registry_is_refused_at_start(tmp_path: Path) -> None:
    """`serve` names every wrong entry and field and listens nowhere."""
    entries = [{"name": "one", "backend": "llama_cpp", "preload": "later"}, {"name": "one", "backend": "vllm"}]
    done = rolecall("serve", "--port", "0", *configured(tmp_path, entries))
    assert (done.returncode, done.stdout) == (2, "")
    assert "entry 1 'one': field preload:" in done.stderr
    assert "ready at" not in done.stderr


def test_a_port_that_is_taken_names_who_has_it(tmp_path: Path) -> None:
    """`serve` ends with exit code 2, the process that holds the port, and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = rolecall("serve", "--port", str(port), "--log-path", tmp_path / "log.jsonl", *configured(tmp_path, []))
    assert done.returncode == 2
    assert f"rolecall: port: {port} is taken by process {os.getpid()} (" in done.stderr
    assert "--port" in done.stderr


# --- which setting wins -----------------------------------------------------------------------------------------------


def test_command_line_goes_before_environment_before_file(tmp_path: Path) -> None:
    """Of the same setting in three places the command line's is taken, then the variable's, then the file's."""
    here = configured(tmp_path, [fake_entry("one", role_priority={"chat": 1})], 'deployment_profile = "balanced_24gb"')
    select = ("select", "chat", "--json", *here)
    variable = {"CHAT_PROXY_DEPLOYMENT_PROFILE": "constrained_16gb"}
    assert json.loads(call(*select).stdout)["profile"] == "balanced_24gb"
    assert json.loads(call(*select, env=variable).stdout)["profile"] == "constrained_16gb"
    assert json.loads(call(*select, env={"CHAT_PROXY_DEPLOYMENT_PROFILE": ""}).stdout)["profile"] == "balanced_24gb"
    with Rolecall(tmp_path / "r", [], "roomy", environ=variable, arguments=["--profile", "generous_96gb"]) as server:
        assert server.get("/v1/config/profile")["active_profile"]["name"] == "generous_96gb"


def test_the_older_name_of_the_profile_variable_works(tmp_path: Path) -> None:
    """IMAGEWORKS_DEPLOYMENT_PROFILE is taken where CHAT_PROXY_DEPLOYMENT_PROFILE is not set."""
    select = ("select", "chat", "--json", *configured(tmp_path, [fake_entry("one", roles=["chat"])]))
    older = {"IMAGEWORKS_DEPLOYMENT_PROFILE": "balanced_24gb"}
    assert json.loads(call(*select, env=older).stdout)["profile"] == "balanced_24gb"
    both = {**older, "CHAT_PROXY_DEPLOYMENT_PROFILE": "development"}
    assert json.loads(call(*select, env=both).stdout)["profile"] == "development"


def test_unknown_variables_are_warned_about(tmp_path: Path) -> None:
    """A CHAT_PROXY_ variable that names no setting is told at start, with the nearest name, and ignored."""
    with Rolecall(tmp_path, [], environ={"CHAT_PROXY_PROT": "1"}) as server:
        assert "CHAT_PROXY_PROT names no setting; did you mean 'CHAT_PROXY_PORT'?" in server.words()


def test_without_a_config_folder_the_own_one_is_filled(tmp_path: Path) -> None:
    """Away from any configs/ the user's own folder is used, and gets the shipped files when something is changed."""
    env = environment(HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path / "config"), XDG_STATE_HOME=str(tmp_path / "s"))
    first = rolecall("models", "list", "--all", "--json", env=env, cwd=tmp_path)
    assert {"demo-chat", "florence-2-large_(SAFETENSORS)"} <= {each["name"] for each in json.loads(first.stdout)}
    own = tmp_path / "config" / "rolecall"
    assert not own.exists(), "who only looks makes no folder"
    assert rolecall("models", "disable", "demo-chat", env=env, cwd=tmp_path).returncode == 0
    assert (own / "rolecall.toml").exists()
    (own / "model_registry.curated.json").write_text(json.dumps([fake_entry("mine")]))
    second = rolecall("models", "list", env=env, cwd=tmp_path)
    assert [line.split()[0] for line in second.stdout.splitlines()] == ["model", "mine"]


def test_an_own_folder_that_cannot_be_made_is_a_reason_and_no_traceback(tmp_path: Path) -> None:
    """Where the user's folder cannot be written, the path and the system's reason are told."""
    env = environment(XDG_CONFIG_HOME="/proc/none")
    done = rolecall("models", "disable", "demo-chat", env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("rolecall: /proc/none")
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_local_configs_go_before_the_own_folder(tmp_path: Path) -> None:
    """./configs is found without being named; CHAT_PROXY_CONFIG_DIR and then --config-dir go before it."""
    for name in ("local", "variable", "option"):
        configured(tmp_path / name, [fake_entry(name)])
    variable, option = (str(tmp_path / name / "configs") for name in ("variable", "option"))
    folder = tmp_path / "local"
    assert "local" in rolecall("models", "list", cwd=folder).stdout
    env = environment(CHAT_PROXY_CONFIG_DIR=variable)
    assert "variable" in rolecall("models", "list", env=env, cwd=folder).stdout
    assert "option" in rolecall("models", "list", "--config-dir", option, env=env, cwd=folder).stdout
