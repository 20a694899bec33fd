"""``rolecall keys``: keys are made, listed and revoked, and nothing but their maker ever sees one."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from cli.invoke import answer, call, configured, environment, in_terminal, rolecall
from harness import Rolecall, eventually, fake_entry
from rolecall.core.keys import hashed
from rolecall.core.quota import Usage, day_of
from rolecall.runtime.api_keys import load_keys
from rolecall.runtime.usage import USAGE


@pytest.fixture
def here(tmp_path: Path) -> tuple[str, ...]:
    """Return the options of a configuration with a key file that is not there yet."""
    return configured(tmp_path, [], 'api_keys_file = "keys.json"')[:2]


def key_file(tmp_path: Path) -> Path:
    return tmp_path / "configs" / "keys.json"


def test_a_key_is_printed_alone_and_once(here: tuple[str, ...], tmp_path: Path) -> None:
    """Stdout is the key, the rest is on stderr; the file has its hash alone, and belongs to its owner alone."""
    result = call("keys", "add", "ci", *here)
    token = result.stdout.strip()
    assert (result.exit_code, len(token), token[:3]) == (0, 35, "rc-")
    assert token not in result.stderr
    assert "'ci' (inference) was added to" in result.stderr
    path = key_file(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    (key,) = load_keys(path)
    assert (key.name, key.sha256, key.scopes) == ("ci", hashed(token.encode()), ("inference",))
    assert [each.name for each in path.parent.iterdir() if "keys" in each.name] == ["keys.json"]


def test_every_limit(here: tuple[str, ...], tmp_path: Path) -> None:
    """Each option is a field of the key."""
    what = ("--scope", "admin", "--scope", "inference", "--model", "qwen*", "--model", "x", "--role", "role:Caption")
    limits = ("--rpm", "60", "--tokens-per-day", "1000", "--expires", "30d")
    made = answer("keys", "add", "full", *what, *limits, *here)
    (key,) = load_keys(key_file(tmp_path))
    assert hashed(made["key"].encode()) == key.sha256
    assert (key.scopes, key.models, key.roles) == (("admin", "inference"), ("qwen*", "x"), ("caption",))
    assert (key.requests_per_minute, key.tokens_per_day) == (60, 1000)
    assert key.expires is not None
    assert abs(key.expires - datetime.now(timezone.utc) - timedelta(days=30)) < timedelta(minutes=1)
    assert set(made) == {
        "key", "name", "fingerprint", "scopes", "models", "roles", "requests_per_minute", "tokens_per_day", "created",
        "expires", "expired", "file",
    }  # fmt: skip


def test_no_two_keys_are_alike(here: tuple[str, ...]) -> None:
    """Each is new."""
    made = {answer("keys", "add", f"n{number}", *here)["key"] for number in range(20)}
    assert len(made) == 20
    assert all(key[3:].isalnum() for key in made)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["a b"], "name: "),
        (["x", "--scope", "root"], "Input should be 'inference' or 'admin'"),
        (["x", "--rpm", "0"], "--rpm"),
        (["x", "--tokens-per-day", "many"], "--tokens-per-day"),
        (["x", "--expires", "2020-01-01"], "is over already"),
        (["x", "--expires", "soon"], "--expires"),
    ],
)
def test_wrong_usage(here: tuple[str, ...], tmp_path: Path, options: list[str], words: str) -> None:
    """Exit code 2, with the option and what is allowed; nothing is made."""
    result = call("keys", "add", *options, *here)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert not key_file(tmp_path).exists()


def test_a_name_is_taken_once(here: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 1; the first key stays."""
    call("keys", "add", "ci", *here)
    before = key_file(tmp_path).read_text()
    result = call("keys", "add", "ci", *here)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "has a key 'ci' already" in result.stderr
    assert key_file(tmp_path).read_text() == before


def test_no_key_file_is_named(tmp_path: Path) -> None:
    """Exit code 2 with the line to write."""
    for words in (["add", "x"], ["list"], ["revoke", "x"]):
        result = call("keys", *words, *configured(tmp_path, [])[:2])
        assert (result.exit_code, result.stdout) == (2, "")
        assert 'api_keys_file = "api_keys.json"' in result.stderr


def test_the_list(here: tuple[str, ...], tmp_path: Path) -> None:
    """It has what each key may and has used today, a fingerprint, and neither key nor hash."""
    made = [answer("keys", "add", name, "--rpm", "5", *here) for name in ("a", "b")]
    key = load_keys(key_file(tmp_path))[1]
    used = Usage(day_of(datetime.now(timezone.utc).timestamp()), 7, 1234, 0.0)
    usage = {"version": 1, "used": {key.sha256[:16]: used._asdict()}}
    (tmp_path / "state" / USAGE).write_text(json.dumps(usage))
    options = (*here, "--state-dir", str(tmp_path / "state"))
    rows = answer("keys", "list", *options)
    assert [(r["name"], r["requests_today"], r["tokens_today"]) for r in rows] == [("a", 0, 0), ("b", 7, 1234)]
    assert [r["fingerprint"] for r in rows] == [m["fingerprint"] for m in made]
    text = call("keys", "list", *options).stdout
    assert "7 (at most 5 a minute)" in text
    for shown in (text, json.dumps(rows)):
        assert not any(m["key"] in shown or hashed(m["key"].encode()) in shown for m in made)


def test_the_list_on_a_terminal(here: tuple[str, ...]) -> None:
    """It fits into 80 columns, and an expired key is marked."""
    answer("keys", "add", "a-rather-long-name-of-a-key@example.org", "--model", "qwen3-vl-*", *here)
    lines = in_terminal("keys", "list", *here, columns=80)
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("a-rather-long-name-of-a-key@example.org") for line in lines)


def test_an_empty_list(here: tuple[str, ...]) -> None:
    """No table, a hint, and an empty list in JSON."""
    result = call("keys", "list", *here)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "holds no key" in result.stderr
    assert answer("keys", "list", *here) == []


def test_revoking(here: tuple[str, ...], tmp_path: Path) -> None:
    """The named keys go; if one is unknown, none goes, and the exit code is 1."""
    for name in ("a", "b", "c"):
        call("keys", "add", name, *here)
    result = call("keys", "revoke", "a", "nobody", *here)
    assert (result.exit_code, "no key 'nobody'; nothing was revoked" in result.stderr) == (1, True)
    assert answer("keys", "revoke", "a", "c", *here)["revoked"] == ["a", "c"]
    assert [key.name for key in load_keys(key_file(tmp_path))] == ["b"]


def test_revoking_without_a_file(here: tuple[str, ...], tmp_path: Path) -> None:
    """It is not made for that."""
    assert call("keys", "revoke", "a", *here).exit_code == 1
    assert not key_file(tmp_path).exists()


@pytest.mark.parametrize("words", [("add", "x"), ("list",), ("revoke", "x")])
def test_a_broken_file_is_left_alone(here: tuple[str, ...], tmp_path: Path, words: tuple[str, ...]) -> None:
    """The reason is told, and nobody's work is overwritten."""
    key_file(tmp_path).write_text("{rc-canary")
    result = call("keys", *words, *here)
    assert result.exit_code in {1, 2}
    assert "is not JSON at line 1" in result.stderr
    assert "canary" not in result.output
    assert key_file(tmp_path).read_text() == "{rc-canary"


def test_many_at_once_lose_nothing(here: tuple[str, ...], tmp_path: Path) -> None:
    """Commands that change the file at the same time do so one after the other."""
    argv = [sys.executable, "-m", "rolecall", "keys", "add"]
    running = [
        subprocess.Popen([*argv, f"n{number}", *here], env=environment(), stdout=subprocess.DEVNULL)
        for number in range(6)
    ]
    assert [process.wait(30) for process in running] == [0] * 6
    assert {key.name for key in load_keys(key_file(tmp_path))} == {f"n{number}" for number in range(6)}


def test_a_symbolic_link_stays_one(here: tuple[str, ...], tmp_path: Path) -> None:
    """The file behind it is replaced."""
    real = tmp_path / "elsewhere" / "keys.json"
    real.parent.mkdir()
    real.write_text('{"version": 1, "keys": []}')
    real.chmod(0o600)
    key_file(tmp_path).symlink_to(real)
    call("keys", "add", "ci", *here)
    assert key_file(tmp_path).is_symlink()
    assert [key.name for key in load_keys(real)] == ["ci"]


def test_with_a_running_server(tmp_path: Path) -> None:
    """A key works as soon as it was made, and not once it was revoked; the commands use one from the environment."""
    settings = {"api_keys_file": "keys.json"}
    with Rolecall(tmp_path, [fake_entry("one")], settings=settings) as running:
        here = ("--config-dir", running.config_dir)

        def status(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return running.http.get("/v1/models", headers=headers).status_code

        token: str = answer("keys", "add", "boss", "--scope", "admin", *here)["key"]
        eventually(lambda: status(token) == 200)
        url = ("--url", running.base_url)
        refused = call("status", *url)
        assert (refused.exit_code, "set ROLECALL_API_KEY" in refused.stderr) == (1, True)
        wrong = call("status", *url, env={"ROLECALL_API_KEY": "rc-wrong"})
        assert "the key in ROLECALL_API_KEY is no such key" in wrong.stderr
        assert "rc-wrong" not in wrong.output
        mere: str = answer("keys", "add", "mere", *here)["key"]
        eventually(lambda: status(mere) == 200)
        for words in (("status",), ("load", "one")):
            lacking = call(*words, *url, env={"ROLECALL_API_KEY": mere})
            assert lacking.exit_code == 1
            assert "no such key" not in lacking.stderr
            assert "admin" in lacking.stderr
        assert "the key in ROLECALL_API_KEY lacks it" in call("status", *url, env={"ROLECALL_API_KEY": mere}).stderr
        assert answer("status", *url, env={"ROLECALL_API_KEY": token})["health"]["status"] == "ok"
        assert answer("load", "one", *url, env={"ROLECALL_API_KEY": token})["state"] == "ready"
        assert rolecall("keys", "revoke", "boss", *here).returncode == 0
        eventually(lambda: status(token) == 401)


def rows(result: Any) -> Any:
    return {row["check"]: row for row in json.loads(result.stdout)["checks"]}


def test_the_doctor_at_the_door(tmp_path: Path) -> None:
    """It says who may come in, and what is wrong with the key file."""
    here = configured(tmp_path, [], 'port = 0\nallowed_hosts = ["box.lan"]\nallowed_origins = ["https://x.org"]')
    found = rows(call("doctor", "--json", *here))["door"]
    assert found["level"] == "ok"
    assert found["finding"].splitlines() == [
        "no API keys: whoever reaches this server may do everything",
        "called box.lan, beside loopback's names",
        "web pages of https://x.org may ask",
    ]
    here = configured(tmp_path, [], 'port = 0\nhost = "0.0.0.0"\napi_keys_file = "keys.json"')
    found = rows(call("doctor", "--json", *here))["door"]
    assert (found["level"], "`rolecall keys add NAME`" in found["advice"]) == ("warn", True)
    answer("keys", "add", "ci", *here[:2])
    found = rows(call("doctor", "--json", *here))["door"]
    assert (found["level"], found["finding"].endswith("keys.json: 1, 0 with the scope admin")) == ("ok", True)
    key_file(tmp_path).chmod(0o644)
    assert "chmod 600" in rows(call("doctor", "--json", *here))["door"]["advice"]
    key_file(tmp_path).chmod(0o666)
    found = rows(call("doctor", "--json", *here))["door"]
    assert (found["level"], "can be written by others" in found["finding"]) == ("fail", True)


def test_the_doctor_finds_a_closed_server_and_an_open_bind(tmp_path: Path) -> None:
    """A rolecall that shows nothing without a key is one; an address that would be refused is a failed check."""
    with Rolecall(tmp_path / "server", settings={"api_keys_file": "keys.json"}) as running:
        here = configured(tmp_path, [], f"port = {running.port}")
        found = rows(call("doctor", "--json", *here))["port"]
        assert (found["level"], "shows no more without an API key" in found["finding"]) == ("ok", True)
    here = configured(tmp_path, [], f'port = {running.port}\nhost = "0.0.0.0"')
    found = rows(call("doctor", "--json", *here))["port"]
    assert (found["level"], "can be reached by other machines" in found["finding"]) == ("fail", True)
