"""``rolecall models set|enable|disable`` and ``rolecall roles``: the registry changed from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.invoke import answer, call, configured
from harness import CONFIGS, Rolecall, eventually, fake_entry

TEXT = """[
  { "name": "small", "backend": "llama_cpp", "model_aliases": ["s"], "roles": "chat,code",
    "role_priority": { "Caption": 20 } },

  {
    "name": "large",
    "backend": "vllm"
  }
]
"""


@pytest.fixture
def here(tmp_path: Path) -> tuple[str, ...]:
    """The options of a folder with a hand-written registry, and another model that was discovered."""
    options = configured(tmp_path)
    curated(tmp_path).write_text(TEXT)
    found = [{"name": "found", "backend": "llama_cpp", "model_aliases": ["f"], "family": "x", "roles": ["chat"]}]
    (tmp_path / "configs" / "model_registry.discovered.json").write_text(json.dumps(found))
    return options[:2]


def curated(folder: Path) -> Path:
    return folder / "configs" / "model_registry.curated.json"


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(curated(folder).read_text())}


def test_set_changes_fields_and_tells_them(here: tuple[str, ...], tmp_path: Path) -> None:
    """Each field is told with what it was; stderr names the file."""
    result = call("models", "set", "s", "context_length=4096", "role_priority.caption=", 'request.strip=["x"]', *here)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "small: context_length not given -> 4096",
        "small: role_priority.caption not given -> not given",
        'small: request.strip not given -> ["x"]',
    ]
    assert f"written to {curated(tmp_path)}" in result.stderr
    assert curated(tmp_path).read_text() == TEXT.replace(
        "20 } }", '20 }, "context_length": 4096, "request": { "strip": ["x"] } }'
    )


def test_set_as_json(here: tuple[str, ...], tmp_path: Path) -> None:
    """--json has every change with the values before and after, and warnings that are new."""
    (tmp_path / "configs" / "model_registry.discovered.json").unlink()
    told = answer("models", "set", "large", "backend=vllmm", *here)
    assert told["changes"] == [{"model": "large", "field": "backend", "before": "vllm", "after": "vllmm"}]
    assert (told["changed"], told["written"], told["file"]) == (True, True, str(curated(tmp_path)))
    (warning,) = told["warnings"]
    assert "did you mean 'vllm'?" in warning


def test_a_dry_run_shows_the_difference(here: tuple[str, ...], tmp_path: Path) -> None:
    """--dry-run prints a diff and writes nothing, for people and as JSON."""
    result = call("models", "set", "large", "pinned=true", "--dry-run", *here)
    assert [line for line in result.stdout.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")] == [
        '-    "backend": "vllm"',
        '+    "backend": "vllm",',
        '+    "pinned": true',
    ]
    assert '\n+    "pinned": true' in answer("models", "set", "large", "pinned=true", "--dry-run", *here)["diff"]
    assert curated(tmp_path).read_text() == TEXT


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "set", "demo", "pinned=true", "--dry-run"),
        ("models", "disable", "demo", "--dry-run"),
        ("roles", "set", "chat", "demo", "7", "--dry-run"),
        ("roles", "remove", "chat", "demo", "--dry-run"),
        ("roles", "policy", "chat", "--policy", "priority", "--dry-run"),
        ("models", "list", "--all"),
        ("models", "fit"),
        ("roles", "list"),
    ],
)
def test_who_only_looks_makes_no_config_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """In an empty home the shipped registry is looked at where it lies; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    result = call(*(word.replace("demo", shipped_name()) for word in arguments))
    assert result.exit_code == 0, result.output
    assert list(tmp_path.rglob("*")) == []


def shipped_name() -> str:
    """Return the name of the first entry of the shipped registry."""
    return str(json.loads((CONFIGS / "model_registry.curated.json").read_text())[0]["name"])


def test_what_says_so_already_is_not_written(here: tuple[str, ...], tmp_path: Path) -> None:
    """A change to what is there leaves the file alone and says so."""
    result = call("models", "set", "large", "backend=vllm", *here)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "says so already; nothing was changed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("models", "set", "small", "context_length=many"), 1, "entry 1 'small': field context_length"),
        (("models", "set", "small", "context_length=0"), 1, "greater than 0 (got 0)"),
        (("models", "set", "small", "name=large"), 1, "'large' already belongs to entry 1 'large'"),
        (("models", "set", "small", "backend.x=1"), 1, "backend.x: backend is no object"),
        (("models", "set", "smal", "pinned=true"), 1, "no model 'smal'; did you mean 'small'?"),
        (("models", "set", "zzz", "pinned=true"), 1, "`rolecall models list --all` shows all"),
        (("models", "set", "small", "pined=true"), 2, "did you mean 'pinned'?"),
        (("models", "set", "small", "pinned"), 2, "is no field=value"),
        (("models", "disable", "small", "zzz"), 1, "no model 'zzz'"),
        (("roles", "set", "chat", "small", "101"), 2, "less than or equal to 100"),
        (("roles", "set", "role:", "small", "1"), 2, "a role needs a name"),
        (("roles", "set", "chat", "zzz", "1"), 1, "no model 'zzz'"),
        (("roles", "policy", "chat"), 2, "nothing to change"),
        (("roles", "policy", "chat", "--quality-tolerance", "much"), 2, "'much' is no number"),
        (("roles", "policy", "chat", "--policy", "best"), 2, "'best'"),
    ],
)
def test_a_wrong_change_is_refused(
    here: tuple[str, ...], tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """Nothing is written for a value, field, model or role that makes no sense; the message names it."""
    result = call(*arguments, *here)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert curated(tmp_path).read_text() == TEXT
    assert (tmp_path / "configs" / "rolecall.toml").read_text() == ""


def test_a_change_that_mends_a_broken_registry_is_taken(here: tuple[str, ...], tmp_path: Path) -> None:
    """What counts is the registry after the change."""
    curated(tmp_path).write_text(TEXT.replace('"vllm"', '"vllm", "pinned": "perhaps"'))
    assert call("models", "set", "small", "pinned=true", *here).exit_code == 1
    assert call("models", "set", "large", "pinned=", *here).exit_code == 0
    assert "pinned" not in entries(tmp_path)["large"]


def test_a_discovered_model_gets_an_entry_over_it(here: tuple[str, ...], tmp_path: Path) -> None:
    """A model that was found is changed by an entry in the hand-written registry, found by alias too, made once."""
    assert call("models", "set", "f", "context_length=512", *here).exit_code == 0
    assert call("models", "set", "f", "pinned=true", *here).exit_code == 0
    assert entries(tmp_path)["found"] == {
        "name": "found",
        "backend": "llama_cpp",
        "context_length": 512,
        "pinned": True,
    }


@pytest.mark.parametrize("field", ["name=other", "backend=vllm", "name="])
def test_what_a_scan_names_is_not_renamed_by_an_entry_over_it(
    here: tuple[str, ...], tmp_path: Path, field: str
) -> None:
    """Such an entry would stand for no model: refused, the first time and when there is one, with what does help."""
    for _ in range(2):
        result = call("models", "set", "f", field, *here)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "model_aliases=..." in result.stderr
        assert "found" not in entries(tmp_path) or "pinned" in entries(tmp_path)["found"]
        assert call("models", "set", "f", "name=found", "backend=llama_cpp", "pinned=true", *here).exit_code == 0


def test_an_entry_of_its_own_is_renamed_whatever_was_discovered(here: tuple[str, ...], tmp_path: Path) -> None:
    """A person's whole entry may have the name of a discovered one, and any other."""
    assert call("models", "set", "f", "backend_config.model_path=/m.gguf", *here).exit_code == 0
    assert call("models", "set", "found", "name=other", *here).exit_code == 0
    assert entries(tmp_path)["other"]["backend_config"] == {"model_path": "/m.gguf"}


def test_disable_and_enable(here: tuple[str, ...], tmp_path: Path) -> None:
    """A disabled model is listed as such with the way back; enabling it leaves no trace."""
    assert call("models", "disable", "small", "large", *here).exit_code == 0
    options = (*here, "--state-dir", str(tmp_path / "state"))
    small = next(row for row in answer("models", "list", "--all", *options) if row["name"] == "small")
    assert small["reason"] == "disabled in the registry; `rolecall models enable small` takes it back"
    assert "  disabled  " in call("models", "list", "--all", *options).stdout
    roles = answer("roles", "list", *options)
    assert [m["enabled"] for m in roles[0]["models"]] == [False]
    assert call("models", "enable", "s", "large", *here).exit_code == 0
    assert curated(tmp_path).read_text() == TEXT


def test_a_running_server_takes_a_change_up(tmp_path: Path) -> None:
    """Disabling a loaded model stops its engine, and requests are told why; nothing needs a restart."""
    with Rolecall(tmp_path, [fake_entry("a"), fake_entry("b")]) as server:
        here = ("--config-dir", str(server.config_dir))
        assert server.chat("a").status_code == 200
        assert len(server.engine_processes()) == 1
        assert call("models", "disable", "a", *here).exit_code == 0
        eventually(lambda: not server.engine_processes())
        refused = server.chat("a")
        assert refused.status_code == 404
        assert "`rolecall models enable a`" in refused.text
        assert call("roles", "set", "chat", "b", "70", *here).exit_code == 0
        eventually(lambda: server.chat("role:chat").status_code == 200)
        assert call("models", "enable", "a", *here).exit_code == 0
        eventually(lambda: server.chat("a").status_code == 200)


# --- roles ------------------------------------------------------------------------------------------------------------


def test_roles_set_and_list(here: tuple[str, ...], tmp_path: Path) -> None:
    """A priority is set in the spelling that the entry has; the list has each role, the best model first."""
    assert call("roles", "set", "role:caption", "small", "85", *here).exit_code == 0
    assert call("roles", "set", "Caption", "large", "90.5", *here).exit_code == 0
    assert entries(tmp_path)["small"]["role_priority"] == {"Caption": 85}
    assert entries(tmp_path)["large"]["role_priority"] == {"caption": 90.5}
    options = (*here, "--state-dir", str(tmp_path / "state"))
    roles = {role["role"]: role for role in answer("roles", "list", *options)}
    assert [(m["model"], m["priority"]) for m in roles["caption"]["models"]] == [("large", 90.5), ("small", 85)]
    assert list(roles) == ["caption", "chat", "code"]
    lines = call("roles", "list", *options).stdout.splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["role", "model", "priority"],
        ["caption", "large", "90.5"],
        ["caption", "small", "85"],
    ]


def test_roles_set_as_json(here: tuple[str, ...]) -> None:
    """--json has the model's own name and the priority."""
    told = answer("roles", "set", "caption", "s", "85", "--dry-run", *here)
    assert (told["role"], told["model"], told["priority"], told["written"]) == ("caption", "small", 85, False)
    assert '"Caption": 85' in told["diff"]


def test_roles_remove(here: tuple[str, ...], tmp_path: Path) -> None:
    """A role goes from the list and from the priorities; one that was discovered stays, and that is said."""
    assert call("roles", "remove", "caption", "small", *here).exit_code == 0
    assert call("roles", "remove", "chat", "small", *here).exit_code == 0
    assert entries(tmp_path)["small"]["roles"] == ["code"]
    assert entries(tmp_path)["small"]["role_priority"] == {}
    assert "found plays chat still" in call("roles", "remove", "chat", "found", *here).stderr


def test_no_roles_is_told(here: tuple[str, ...], tmp_path: Path) -> None:
    """A registry without roles says how to give one."""
    for name in ("curated", "discovered"):
        (tmp_path / "configs" / f"model_registry.{name}.json").write_text("[]")
    assert "`rolecall roles set ROLE MODEL PRIORITY`" in call("roles", "list", *here).stderr


def test_policy_of_a_role(here: tuple[str, ...], tmp_path: Path) -> None:
    """The table of a role in rolecall.toml is written, shown by the list, and taken away with its last value."""
    settings = tmp_path / "configs" / "rolecall.toml"
    settings.write_text("# mine\nport = 8101\n")
    assert "+[roles.chat]" in call("roles", "policy", "chat", "--policy", "priority", "--dry-run", *here).stdout
    assert "+[roles.chat]" in answer("roles", "policy", "chat", "--policy", "priority", "--dry-run", *here)["diff"]
    told = answer("roles", "policy", "chat", "--quality-tolerance", "7", "--fallback", "large", *here)
    assert (told["quality_tolerance"], told["fallback"], told["written"]) == (7, ["large"], True)
    assert settings.read_text() == (
        '# mine\nport = 8101\n\n[roles.chat]\nquality_tolerance = 7\nfallback = ["large"]\n'
    )
    chat = answer("roles", "list", *here, "--state-dir", str(tmp_path / "state"))[1]
    assert (chat["role"], chat["quality_tolerance"], chat["fallback"]) == ("chat", 7, ["large"])
    unchanged = call("roles", "policy", "chat", "--quality-tolerance", "7", *here)
    assert "says so already" in unchanged.stderr
    taken = call("roles", "policy", "chat", "--quality-tolerance", "", "--fallback", "", *here)
    assert taken.stdout == "chat: quality_tolerance as by default\nchat: fallback as by default\n"
    assert "a running server follows when it is started again" in taken.stderr
    assert "roles" not in settings.read_text()


def test_an_element_of_a_list_is_refused_by_the_name_of_the_list(here: tuple[str, ...], tmp_path: Path) -> None:
    """A list has no fields; the message names it as it was written, without places of the file."""
    curated(tmp_path).write_text(
        '[{ "name": "small", "backend": "llama_cpp", "backend_config": { "extra_args": ["x"] } }]'
    )
    result = call("models", "set", "small", "backend_config.extra_args.0=y", *here)
    assert result.exit_code == 1
    assert "backend_config.extra_args.0: extra_args is no object, so it has no '0'" in result.stderr
