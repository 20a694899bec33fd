"""Settings: four sources in their order, wrong values named with their origin, and where the folders are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rolecall.core.selection import RolePolicy
from rolecall.errors import ConfigurationError
from rolecall.settings import (
    SHIPPED,
    Settings,
    find_config_dir,
    load_settings,
    prepare_config_dir,
    shipped,
    unknown_variables,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a config folder without a file."""
    path = tmp_path / "configs"
    path.mkdir()
    return path


def load(folder: Path, toml: str = "", env: dict[str, str] | None = None, **arguments: Any) -> Settings:
    """Return the settings from a config folder with this file, these variables and these arguments."""
    if toml:
        (folder / "rolecall.toml").write_text(toml, encoding="utf-8")
    return load_settings({"config_dir": folder, **arguments}, {"CHAT_PROXY_STATE_DIR": str(folder), **(env or {})})


def problem(folder: Path, toml: str = "", env: dict[str, str] | None = None, **arguments: Any) -> str:
    """Return why these settings are refused."""
    with pytest.raises(ConfigurationError) as refusal:
        load(folder, toml, env, **arguments)
    return str(refusal.value)


# -- precedence


@pytest.mark.parametrize(
    ("toml", "env", "arguments", "port"),
    [
        ("", {}, {}, 8100),
        ("port = 1", {}, {}, 1),
        ("port = 1", {"CHAT_PROXY_PORT": "2"}, {}, 2),
        ("port = 1", {"CHAT_PROXY_PORT": "2"}, {"port": "3"}, 3),
        ("port = 1", {}, {"port": "3"}, 3),
        ("", {"CHAT_PROXY_PORT": "2"}, {"port": None}, 2),
        ("port = 1", {"CHAT_PROXY_PORT": ""}, {}, 1),
        ("port = 1", {"chat_proxy_port": "2"}, {}, 2),
    ],
)
def test_precedence(folder: Path, toml: str, env: dict[str, str], arguments: dict[str, Any], port: int) -> None:
    """The command line goes before the environment, that before the file, that before the default; empty is absent."""
    assert load(folder, toml, env, **arguments).port == port


def test_each_source_gives_its_own_settings(folder: Path) -> None:
    """Sources complete each other setting by setting, and each value knows where it came from."""
    settings = load(folder, "max_queue = 7\nport = 1", {"CHAT_PROXY_PORT": "2"}, host="::1")
    assert (settings.max_queue, settings.port, settings.host, settings.log_backups) == (7, 2, "::1", 5)
    assert settings.origin("max_queue") == f"in {folder / 'rolecall.toml'}"
    assert settings.origin("port") == "in the environment variable CHAT_PROXY_PORT"
    assert settings.origin("host") == "from the command line (--host)"
    assert settings.origin("log_backups") == "by default"
    assert [name for name in Settings.model_fields if settings.is_from_environment(name)] == ["port", "state_dir"]


def test_variables_are_read_as_numbers_and_switches(folder: Path) -> None:
    """The environment has only text; booleans and numbers in it are understood."""
    env = {"CHAT_PROXY_LOG_PROMPTS": "yes", "CHAT_PROXY_DEMO_MODELS": "0", "CHAT_PROXY_DRAIN_LIMIT_S": "1.5"}
    settings = load(folder, "", env)
    assert (settings.log_prompts, settings.demo_models, settings.drain_limit_s) == (True, False, 1.5)


@pytest.mark.parametrize(
    ("env", "arguments", "profile"),
    [
        ({"IMAGEWORKS_DEPLOYMENT_PROFILE": "older"}, {}, "older"),
        ({"IMAGEWORKS_DEPLOYMENT_PROFILE": "older", "CHAT_PROXY_DEPLOYMENT_PROFILE": "newer"}, {}, "newer"),
        ({"IMAGEWORKS_DEPLOYMENT_PROFILE": "older", "CHAT_PROXY_DEPLOYMENT_PROFILE": ""}, {}, "older"),
        ({"IMAGEWORKS_DEPLOYMENT_PROFILE": "older"}, {"deployment_profile": "given"}, "given"),
        ({}, {}, "file"),
    ],
)
def test_the_older_name_of_the_profile_variable(
    folder: Path, env: dict[str, str], arguments: dict[str, Any], profile: str
) -> None:
    """IMAGEWORKS_DEPLOYMENT_PROFILE counts like ours, after it and before the file."""
    settings = load(folder, 'deployment_profile = "file"', env, **arguments)
    assert settings.deployment_profile == profile
    assert settings.is_from_environment("deployment_profile") is (profile in ("older", "newer"))


# -- roles and empty values


def test_policies_of_roles(folder: Path) -> None:
    """What a role's table leaves out is as for all roles; names of roles are in lower case, as they are asked for."""
    toml = """
        role_policy = "priority"
        quality_tolerance = 5
        [roles.Keywords]
        quality_tolerance = 15
        [roles.caption]
        policy = "adaptive"
        [roles.chat]
    """
    settings = load(folder, toml)
    assert settings.role_policies() == {
        "keywords": RolePolicy("priority", 15),
        "caption": RolePolicy("adaptive", 5),
        "chat": RolePolicy("priority", 5),
    }
    assert load(folder, "# nothing").role_policies() == {}


def test_policies_from_the_environment(folder: Path) -> None:
    """The variable is a JSON object that replaces the tables of the file."""
    env = {"CHAT_PROXY_ROLES": '{"chat": {"policy": "priority", "quality_tolerance": 2.5}}'}
    settings = load(folder, "[roles.caption]\nquality_tolerance = 15", env)
    assert settings.role_policies() == {"chat": RolePolicy("priority", 2.5)}
    assert settings.model_dump(mode="json")["roles"] == {"chat": {"policy": "priority", "quality_tolerance": 2.5}}


@pytest.mark.parametrize(("given", "path"), [('""', None), ('"d.jsonl"', "d.jsonl"), ('"~/d.jsonl"', "~/d.jsonl")])
def test_the_decision_log(folder: Path, given: str, path: str | None) -> None:
    """record_decisions is a path, with its ~, or nothing if it is empty."""
    found = load(folder, f"record_decisions = {given}").record_decisions
    assert found == (None if path is None else Path(path).expanduser())


def test_an_address_ends_without_a_slash(folder: Path) -> None:
    """A slash at the end of Ollama's address makes no difference."""
    assert load(folder, 'ollama_base_url = "http://box:11434/"').ollama_base_url == "http://box:11434"


# -- wrong values


@pytest.mark.parametrize(
    ("toml", "env", "arguments", "words"),
    [
        ("", {}, {"port": "abc"}, ["port", "'abc'", "command line (--port)", "integer"]),
        ("", {"CHAT_PROXY_PORT": "70000"}, {}, ["port", "'70000'", "variable CHAT_PROXY_PORT", "65535"]),
        ("port = -1", {}, {}, ["port", "-1", "rolecall.toml", "greater than or equal to 0"]),
        ("max_queue = 0", {}, {}, ["max_queue", "0", "rolecall.toml", "greater than 0"]),
        ("", {"CHAT_PROXY_LOG_PROMPTS": "perhaps"}, {}, ["log_prompts", "'perhaps'", "CHAT_PROXY_LOG_PROMPTS", "bool"]),
        (
            "",
            {},
            {"log_level": "loud"},
            ["log_level", "'loud'", "--log-level", "'warning' or 'error'"],
        ),
        ('host = " "', {}, {}, ["host", "' '", "rolecall.toml", "127.0.0.1"]),
        ("state_dir = 5", {"CHAT_PROXY_STATE_DIR": ""}, {}, ["state_dir", "5", "rolecall.toml", "path"]),
        ("host = 1", {}, {}, ["host", "1", "rolecall.toml", "string"]),
        ("quality_tolerance = 101", {}, {}, ["quality_tolerance", "101", "rolecall.toml", "less than or equal to 100"]),
        ("", {"imageworks_deployment_profile": "x"}, {"max_vram_mb": 0}, ["max_vram_mb", "0", "--max-vram-mb"]),
        ("deployment_profile = 1", {}, {}, ["deployment_profile", "1", "rolecall.toml", "string"]),
        ("", {}, {"deployment_profile": 1}, ["deployment_profile", "1", "command line (--profile)"]),
        ("max_wait_s = 0", {}, {}, ["max_wait_s", "0", "rolecall.toml", "greater than 0"]),
        ("probe_every_s = -1", {}, {}, ["probe_every_s", "-1", "rolecall.toml", "greater than or equal to 0"]),
        ("", {"CHAT_PROXY_SLEEP_RAM_MB": "-1"}, {}, ["sleep_ram_mb", "'-1'", "SLEEP_RAM_MB", "equal to 0"]),
        ('vllm_command = " "', {}, {}, ["vllm_command", "' '", "rolecall.toml", "such as vllm"]),
        ('ollama_base_url = "gpu:11434"', {}, {}, ["ollama_base_url", "'gpu:11434'", "rolecall.toml", "http://"]),
        ('record_decisions = "a\\u0000"', {}, {}, ["record_decisions", "rolecall.toml", "null character"]),
    ],
)
def test_a_wrong_value(
    folder: Path, toml: str, env: dict[str, str], arguments: dict[str, Any], words: list[str]
) -> None:
    """A wrong value is refused with the setting, the value, where it came from and what is allowed."""
    line = problem(folder, toml, env, **arguments)
    assert line.startswith(words[0] + ":")
    assert [word for word in words if word not in line] == []


def test_all_wrong_values_are_told_at_once(folder: Path) -> None:
    """One line a problem, from whatever source."""
    lines = problem(folder, "port = -1", {"CHAT_PROXY_MAX_QUEUE": "x"}, log_level="y").splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["log_level", "max_queue", "port"]


@pytest.mark.parametrize(
    ("toml", "env", "words"),
    [
        ('[roles.chat]\npolicy = "strict"', "", ["roles.chat.policy", "'adaptive' or 'priority'", "'strict'"]),
        ("[roles.chat]\nquality_tolerance = 101", "", ["roles.chat.quality_tolerance", "equal to 100", "101"]),
        ("[roles.chat]\ntolerance = 1", "", ["roles.chat.tolerance", "not permitted", "policy", "quality_tolerance"]),
        ("[roles]\nchat = 5", "", ["roles.chat", "dictionary", "5", "Tables [roles.NAME]"]),
        ("roles = 5", "", ["roles", "dictionary", "5", "Tables [roles.NAME]"]),
        ("", "{chat}", ["roles", "no JSON object", "'{chat}'", "CHAT_PROXY_ROLES"]),
        ("", "[]", ["roles", "dictionary", "[]", "CHAT_PROXY_ROLES"]),
    ],
)
def test_a_wrong_role(folder: Path, toml: str, env: str, words: list[str]) -> None:
    """A wrong policy is refused with its role and field, the value, where it came from and what is allowed."""
    line = problem(folder, toml, {"CHAT_PROXY_ROLES": env})
    assert line.startswith(words[0] + ":")
    assert [word for word in words if word not in line] == []
    assert "\n" not in line


def test_a_wrong_value_that_is_overridden_does_no_harm(folder: Path) -> None:
    """What a stronger source replaces is not judged."""
    assert load(folder, "port = -1", {"CHAT_PROXY_PORT": "2"}).port == 2


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("prot = 1", ["prot", "names no setting", "did you mean 'port'?"]),
        ("[server]\nport = 1", ["server", "names no setting"]),
        ("autostart = true\nprot = 1", ["autostart", "'autostart_enabled'", "prot", "'port'"]),
    ],
)
def test_an_unknown_key_of_the_file(folder: Path, toml: str, words: list[str]) -> None:
    """A key that no setting has is refused with the nearest one."""
    message = problem(folder, toml)
    assert str(folder / "rolecall.toml") in message
    assert [word for word in words if word not in message] == []


def test_the_file_cannot_say_where_it_lies(folder: Path) -> None:
    """config_dir in rolecall.toml would have no effect, so it is refused with the ways that have one."""
    message = problem(folder, 'config_dir = "/somewhere"')
    assert message.startswith(f"config_dir: in {folder / 'rolecall.toml'}")
    assert "--config-dir" in message
    assert "CHAT_PROXY_CONFIG_DIR" in message


def test_the_state_folder_has_all_four_sources(folder: Path, tmp_path: Path) -> None:
    """state_dir may stand in the file; the variable and the command line go before it."""
    (folder / "rolecall.toml").write_text(f'state_dir = "{tmp_path}/file"')
    env = {"CHAT_PROXY_STATE_DIR": str(tmp_path / "env")}
    found = [
        load_settings({"config_dir": folder, "state_dir": given}, environ).state_dir.name
        for given, environ in ((None, {}), (None, env), (tmp_path / "given", env))
    ]
    assert found == ["file", "env", "given"]


@pytest.mark.parametrize("content", [b"port = ", b"port = 1\nport = 2", b"host = '\xff'", b"port 1"])
def test_a_broken_file(folder: Path, content: bytes) -> None:
    """A file that is no TOML, or not UTF-8, is refused by its name."""
    (folder / "rolecall.toml").write_bytes(content)
    assert f"{folder / 'rolecall.toml'} cannot be read" in problem(folder)


def test_a_folder_in_place_of_the_file(folder: Path) -> None:
    """A file that cannot be read is refused; only a missing one counts as empty."""
    (folder / "rolecall.toml").mkdir()
    assert "cannot be read" in problem(folder)


def test_variables_that_name_no_setting() -> None:
    """Each CHAT_PROXY_ variable that does nothing gets a warning, with the nearest name where there is one."""
    env = {"CHAT_PROXY_PROT": "1", "CHAT_PROXY_XYZZY": "1", "CHAT_PROXY_PORT": "1", "chat_proxy_host": "x", "HOME": "/"}
    first, second = unknown_variables(env)
    assert "CHAT_PROXY_PROT names no setting" in first
    assert "'CHAT_PROXY_PORT'" in first
    assert "CHAT_PROXY_XYZZY" in second
    assert "did you mean" not in second


NO_DEFAULT = {"config_dir", "state_dir", "deployment_profile", "max_vram_mb", "sleep_ram_mb", "roles"}
NO_DEFAULT |= {"api_keys_file", "allowed_hosts", "allowed_origins"}
"""What the shipped file shows an example of, and what the test itself gives."""


def test_the_shipped_file_changes_nothing(folder: Path) -> None:
    """The shipped rolecall.toml loads, and each of its commented lines shows the default it speaks of."""
    text = shipped("rolecall.toml").read_text(encoding="utf-8")
    plain = load(folder)
    assert load(folder, text).model_dump() == plain.model_dump()
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    opened = load(folder, "\n".join(line for line in lines if " = " in line or line.startswith("[roles.")))
    shown = {name: value for name, value in opened if opened.origin(name) != "by default" and name not in NO_DEFAULT}
    assert len(shown) >= 20
    assert shown == {name: getattr(plain, name) for name in shown}
    assert opened.role_policies() == {"keywords": RolePolicy("adaptive", 15)}


# -- folders

WHERE = "from rolecall.settings import *; import os; print(find_config_dir(None, os.environ))"
STATE = "from rolecall.settings import *; print(load_settings().state_dir)"
PREPARE = "from rolecall.settings import *; s = load_settings(); prepare_config_dir(s); print(s.config_dir)"


def run(script: str, cwd: Path, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a working folder and with a home of its own."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("CHAT_PROXY_", "XDG_", "IMAGEWORKS_"))}
    environment = {**clean, "HOME": str(home), **env}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return an empty home folder."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """Return an empty working folder."""
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="the user's folders are elsewhere")
def test_where_the_config_folder_is(cwd: Path, home: Path, tmp_path: Path) -> None:
    """The folder of the variable goes before ./configs, that before the user's own folder, which XDG may move."""
    named = tmp_path / "named"
    named.mkdir()
    xdg = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert run(WHERE, cwd, home).stdout.strip() == str(home / ".config" / "rolecall")
    assert run(WHERE, cwd, home, **xdg).stdout.strip() == str(tmp_path / "xdg" / "rolecall")
    (cwd / "configs").mkdir()
    assert run(WHERE, cwd, home, **xdg).stdout.strip() == str(cwd / "configs")
    assert run(WHERE, cwd, home, CHAT_PROXY_CONFIG_DIR=str(named)).stdout.strip() == str(named)
    assert run(WHERE, cwd, home, CHAT_PROXY_CONFIG_DIR="").stdout.strip() == str(cwd / "configs")


@pytest.mark.skipif(sys.platform != "linux", reason="the user's folders are elsewhere")
def test_where_the_state_folder_is(cwd: Path, home: Path, tmp_path: Path) -> None:
    """The folder of the variable, with its ~, else the user's state folder; it need not exist."""
    assert run(STATE, cwd, home).stdout.strip() == str(home / ".local" / "state" / "rolecall")
    assert run(STATE, cwd, home, XDG_STATE_HOME=str(tmp_path / "xdg")).stdout.strip() == str(tmp_path / "xdg/rolecall")
    assert run(STATE, cwd, home, CHAT_PROXY_STATE_DIR="~/state").stdout.strip() == str(home / "state")
    assert run(STATE, cwd, home, CHAT_PROXY_STATE_DIR="state").stdout.strip() == str(cwd / "state")
    assert run(STATE, cwd, home, CHAT_PROXY_STATE_DIR="~nobody-here/x").stdout.strip() == str(cwd / "~nobody-here/x")


def test_the_argument_goes_before_the_variable(folder: Path, tmp_path: Path) -> None:
    """--config-dir and --state-dir win over their variables, and become absolute."""
    env = {"CHAT_PROXY_CONFIG_DIR": str(tmp_path / "no"), "CHAT_PROXY_STATE_DIR": str(tmp_path / "env")}
    settings = load_settings({"config_dir": folder, "state_dir": tmp_path / "x" / ".." / "given"}, env)
    assert (settings.config_dir, settings.state_dir) == (folder, tmp_path / "given")


def test_a_config_folder_that_does_not_exist(tmp_path: Path) -> None:
    """A folder that somebody named must be there; the message says who named it."""
    missing = tmp_path / "missing"
    with pytest.raises(ConfigurationError, match=r"config_dir.*missing.*--config-dir"):
        find_config_dir(missing, {})
    with pytest.raises(ConfigurationError, match=r"config_dir.*missing.*CHAT_PROXY_CONFIG_DIR"):
        find_config_dir(None, {"CHAT_PROXY_CONFIG_DIR": str(missing)})
    with pytest.raises(ConfigurationError, match="nobody-here"):
        find_config_dir("~nobody-here/x", {})


@pytest.mark.skipif(sys.platform != "linux", reason="the user's folders are elsewhere")
def test_the_users_folder_is_filled_once(cwd: Path, home: Path) -> None:
    """On the first start the user's own folder is made from the shipped files; later starts leave it alone."""
    folder = home / ".config" / "rolecall"
    assert run(PREPARE, cwd, home).stdout.strip() == str(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: shipped(name).read_bytes() for name in SHIPPED
    }
    (folder / "profiles.toml").unlink()
    (folder / "rolecall.toml").write_text("port = 1")
    assert run(PREPARE, cwd, home).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "experiments.toml",
        "model_registry.curated.json",
        "rolecall.toml",
    ]
    assert (folder / "rolecall.toml").read_text() == "port = 1"


def test_other_folders_are_not_filled(folder: Path) -> None:
    """A config folder that somebody chose is left as it is."""
    prepare_config_dir(load(folder))
    assert list(folder.iterdir()) == []
