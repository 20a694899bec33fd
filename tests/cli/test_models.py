"""``rolecall models``: the registry as a table, one model in full, and what is wrong with a registry."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cli.invoke import answer, call, configured, environment, in_terminal, rolecall
from harness import CONFIGS, Rolecall, eventually, fake_entry, upstream_entry
from rolecall.cli.table import Column, Row, table
from rolecall.core.registry import registry_schema
from rolecall.demo.gguf import make_demo_models
from simulator import nvml

LONG = "an-instruction-tuned-model-with-a-long-name_(Q4_K_M)"


@pytest.fixture
def here(tmp_path: Path) -> tuple[str, ...]:
    """Return the options of two installed models, and of one each without its file, its program and a known backend."""
    entries = [
        fake_entry("small", roles=["chat"], role_priority={"caption": 20}, model_aliases=["s"]),
        fake_entry(LONG, role_priority={"caption": 90, "chat": 10}, quantization="q4_k_m", context_length=131072),
        {"name": "absent", "backend": "llama_cpp", "backend_config": {"model_path": "/no/such/file.gguf"}},
        {"name": "gone", "backend": "vllm", "backend_config": {"command": ["/no/such/engine", "{port}"]}},
        {"name": "strange", "backend": "mystery", "role_priority": {"caption": 95}, "vram_estimate_mb": 9000},
    ]
    return configured(tmp_path, entries)


def read(path: Path) -> str:
    """The text of a file; none while there is no file."""
    return path.read_text() if path.exists() else ""


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in rows]


# --- list -------------------------------------------------------------------------------------------------------------


def test_list_has_the_installed_models_and_tells_of_the_others(here: tuple[str, ...]) -> None:
    """Only models that can be served are listed on stdout; stderr says how many more there are."""
    result = call("models", "list", *here)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["model", "small", LONG]
    assert "3 of 5 are not installed; --all shows them" in result.stderr


def test_list_all_says_why_a_model_is_not_installed(here: tuple[str, ...]) -> None:
    """--all adds the models that cannot be served, each with its reason on the same line when piped."""
    lines = call("models", "list", "--all", *here).stdout.splitlines()
    absent = next(line for line in lines if line.startswith("absent"))
    assert "not installed" in absent
    assert absent.endswith("/no/such/file.gguf does not exist")
    gone = next(line for line in lines if line.startswith("gone"))
    assert "not installed" in gone
    assert gone.endswith("command /no/such/engine is not there")
    assert "command /no/such/engine is not there" in call("models", "show", "gone", *here).stdout
    assert any(line.startswith("strange") and "'mystery' is not supported" in line for line in lines)


def test_list_json_carries_every_figure(here: tuple[str, ...]) -> None:
    """--json gives an object per model, with null where nothing is known."""
    small, _, absent, _, strange = answer("models", "list", "--all", *here)
    assert small == {
        "name": "small",
        "aliases": ["s"],
        "backend": "llama_cpp",
        "roles": {"chat": 50, "caption": 20},
        "capabilities": ["text"],
        "vram_estimate_mb": 100,
        "quantization": None,
        "context_length": None,
        "installed": True,
        "reason": None,
    }
    assert (absent["installed"], absent["vram_estimate_mb"]) == (False, None)
    assert "mystery" in strange["reason"]


def test_list_of_a_role_is_ordered_by_priority(here: tuple[str, ...]) -> None:
    """--role leaves the models that play it, the best first, with or without the prefix."""
    assert names(answer("models", "list", "--role", "caption", "--all", *here)) == ["strange", LONG, "small"]
    assert names(answer("models", "list", "--role", "role:chat", *here)) == ["small", LONG]


def test_list_of_an_unknown_role_names_the_known_ones(here: tuple[str, ...]) -> None:
    """A role that nobody plays ends with exit code 1 and the roles there are."""
    result = call("models", "list", "--role", "capton", *here)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Known roles: caption, chat." in result.stderr
    assert "Did you mean 'role:caption'?" in result.stderr


def test_list_of_an_empty_registry_names_the_folder(tmp_path: Path) -> None:
    """A registry without entries is told as such, with the folder that was looked at."""
    result = call("models", "list", *configured(tmp_path, []))
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{tmp_path / 'configs'} has no models" in result.stderr


def test_list_fits_a_terminal_of_eighty_columns(tmp_path: Path) -> None:
    """The shipped registry fits 80 columns with names and paths whole; what has no room stands under its model."""
    lines = in_terminal("models", "list", "--all", *configured(tmp_path), columns=80)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    shipped = names(json.loads((CONFIGS / "model_registry.curated.json").read_text()))
    assert [line.split("  ")[0] for line in lines[1:] if not line.startswith(" ")] == shipped
    assert any("keywords:95, object_detection:90" in line for line in lines)


def test_a_pipe_is_never_cut(here: tuple[str, ...]) -> None:
    """In a pipe each model is one line, however long, without control sequences."""
    done = rolecall("models", "list", "--all", *here, env=environment(COLUMNS="40"))
    assert len(done.stdout.splitlines()) == 6
    assert "\x1b" not in done.stdout
    assert LONG in done.stdout


def test_table_cuts_names_only_when_nothing_else_helps() -> None:
    """Columns that may move do so first, the last one first; then the first column is cut, and marked as cut."""
    columns = (Column("name"), Column("fixed"), Column("size", right=True, below="size {}"), Column("x", below="x {}"))
    rows = [Row(("a" * 20, "yes", "1000", "more"), note="because")]
    shown = {width: [line.plain for line in table(columns, rows, width)] for width in (40, 33, 26, 20)}
    assert shown[40][1:] == ["a" * 20 + "  yes    1000  more", "    because"]
    assert shown[33][1:] == ["a" * 20 + "  yes    1000", "    x more", "    because"]
    assert shown[26][1:] == ["a" * 18 + "…  yes", "    size 1000; x more", "    because"]
    assert shown[20][1] == "a" * 12 + "…  yes"


def test_table_disarms_control_characters() -> None:
    """What a registry or an engine says cannot drive the terminal."""
    rows = [Row(("a\x1b[2Jb",), note="\x1b]0;title\x07oops")]
    text = "\n".join(line.plain for line in table((Column("name"),), rows, 60))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "oops" in text


# --- show -------------------------------------------------------------------------------------------------------------


def test_show_has_the_command_line_of_the_engine(here: tuple[str, ...]) -> None:
    """The command line is shown quoted for a shell, as it would be started, with a port filled in."""
    known = answer("models", "show", LONG, *here)
    argv = known["engine"]["argv"]
    assert argv[0] == sys.executable
    assert argv[argv.index("--alias") + 1] == LONG
    assert argv[argv.index("--port") + 1].isdecimal()
    shown = call("models", "show", LONG, *here).stdout.splitlines()[-1]
    without_port = [word for word in shlex.split(shown) if not word.isdecimal()]
    assert without_port == [word for word in argv if not word.isdecimal()]


def test_show_keeps_unknown_fields(tmp_path: Path) -> None:
    """Fields that rolecall does not know are shown, and named as unknown."""
    here = configured(tmp_path, [fake_entry("odd", color="blue", backend_config={"turbo": True})])
    known = answer("models", "show", "odd", *here)
    assert known["unknown_fields"] == ["color", "backend_config.turbo"]
    assert known["registry"]["color"] == known["fields"]["color"] == "blue"
    text = call("models", "show", "odd", *here).stdout
    assert "color" in text
    assert "unknown fields  color, backend_config.turbo" in text


def test_show_tells_which_files_exist(tmp_path: Path) -> None:
    """Paths are shown expanded, each with whether it exists; the reason for "not available" names the missing one."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "m.gguf").write_bytes(b"\0" * (3 * 2**20))
    config = {"model_path": "${STATE_DIR}/m.gguf", "mmproj_path": "proj.gguf"}
    here = configured(tmp_path, [{"name": "seeing", "backend": "llama_cpp", "backend_config": config}])
    known = answer("models", "show", "seeing", *here)
    model, mmproj = str(tmp_path / "state" / "m.gguf"), str(tmp_path / "state" / "proj.gguf")
    assert known["paths"] == [
        {"what": "model", "path": model, "exists": True},
        {"what": "mmproj", "path": mmproj, "exists": False},
    ]
    assert not known["available"]
    assert mmproj in known["reason"]


def test_show_says_where_the_footprint_comes_from(tmp_path: Path) -> None:
    """Without a GPU it is what was declared, else the files' size, else unknown; an engine elsewhere takes nothing."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "m.gguf").write_bytes(b"\0" * (3 * 2**20))
    entries = [
        fake_entry("told"),
        fake_entry("weighed", vram_estimate_mb=None, backend_config={"model_path": "${STATE_DIR}/m.gguf"}),
        fake_entry("gone", vram_estimate_mb=None, backend_config={"model_path": "/no/such.gguf"}),
        upstream_entry("elsewhere", "http://127.0.0.1:9"),
    ]
    here = configured(tmp_path, entries)
    known = [answer("models", "show", entry["name"], *here) for entry in entries]
    assert [(each["footprint_mb"], each["footprint_source"]) for each in known] == [
        (100, "declared"),
        (3, "files"),
        (None, "unknown"),
        (0, "declared"),
    ]
    assert [each["given_mb"] for each in known] == [100, 3, None, 0]
    text = call("models", "show", "told", *here).stdout
    assert re.search(r"^footprint +100 MB \(declared: vram_estimate_mb\)$", text, re.MULTILINE)
    assert re.search(r"^load time +about 1\.1 s, guessed: no load was seen$", text, re.MULTILINE)
    assert re.search(r"^footprint +\? MB \(unknown: ", call("models", "show", "gone", *here).stdout, re.MULTILINE)


def test_show_has_the_parts_of_a_computed_footprint(tmp_path: Path) -> None:
    """What its files say is shown by part, and the parts add up."""
    pytest.importorskip("gguf")
    make_demo_models(tmp_path / "state")
    config = {"model_path": "${STATE_DIR}/demo-vision.gguf", "mmproj_path": "mmproj-demo-vision.gguf"}
    entry = {"name": "seeing", "backend": "llama_cpp", "backend_config": config, "context_length": 4096}
    here = configured(tmp_path, [entry])
    known = answer("models", "show", "seeing", *here)
    computed = known["computed"]
    parts = {name: computed[f"{name}_mb"] for name in ("weights", "kv_cache", "compute", "projector", "fixed")}
    assert known["footprint_source"] == "computed"
    assert known["footprint_mb"] == computed["mb"] == sum(parts.values())
    assert min(parts.values()) > 0
    text = call("models", "show", "seeing", *here).stdout
    shown = f"{computed['mb']} MB = weights {parts['weights']} + KV cache {parts['kv_cache']} + compute"
    assert re.search(rf"^computed +{re.escape(shown)}", text, re.MULTILINE)


def test_show_tells_what_loads_have_taught(tmp_path: Path, nvml_library: Path) -> None:
    """After two loads on a GPU the footprint is learnt, with the number of loads, and the time of a load; offline."""
    environ = nvml.environment(nvml_library, nvml.ONE_16GB, tmp_path)
    entries = [fake_entry("m", "--gpu-mb", "5000", vram_estimate_mb=9000)]
    with Rolecall(tmp_path / "server", entries, profile=None, environ=environ) as server:
        for count in (1, 2):
            server.http.post("/v1/models/m/load")
            eventually(lambda count=count: f'"count": {count}' in read(server.state / "learnt.json"))  # type: ignore[misc]
            server.http.post("/v1/models/m/unload")
    here = ("--config-dir", str(server.config_dir), "--state-dir", str(server.state))
    known = json.loads(rolecall("models", "show", "m", "--json", *here, env=server.environment).stdout)
    assert (known["footprint_mb"], known["footprint_source"], known["declared_mb"]) == (5000, "learnt", 9000)
    (row,) = known["learnt"]
    assert (row["device"], row["footprint_mb"], row["loads"]) == ("NVIDIA Test GPU", 5000, 2)
    assert 0 < row["load_s"] < 20
    text = rolecall("models", "show", "m", *here, env=server.environment).stdout
    assert re.search(r"^footprint +5000 MB \(learnt: from the last 2 loads\)$", text, re.MULTILINE)
    assert re.search(r"^learnt +on NVIDIA Test GPU: 5000 MB \(2 loads\), loads in \d+\.\d s$", text, re.MULTILINE)
    assert re.search(r"^declared +9000 MB", text, re.MULTILINE)


def test_show_of_a_daemons_model_has_its_address(tmp_path: Path) -> None:
    """A model that Ollama loads has no command line, but the address at which it answers."""
    here = configured(tmp_path, [{"name": "far", "backend": "ollama", "served_model_id": "llama3:8b"}])
    engine = {"url": "http://127.0.0.1:11434/v1", "api_key_env": None, "api_key_is_set": False}
    assert answer("models", "show", "far", *here)["engine"] == engine


def test_show_says_by_how_much_a_model_is_too_large(tmp_path: Path) -> None:
    """A model above the budget is not available, whatever is installed."""
    here = configured(tmp_path, [fake_entry("huge", vram_estimate_mb=20000)], 'deployment_profile = "development"')
    text = call("models", "show", "huge", *here).stdout
    assert "no: needs 20000 MB, 10000 MB more than the 10000 MB it may use" in text


def test_show_names_a_key_without_showing_it(tmp_path: Path) -> None:
    """Of an upstream's API key only the variable is shown, and whether it is set."""
    here = configured(tmp_path, [upstream_entry("far", "https://x.test", backend_config={"api_key_env": "FAR_KEY"})])
    secret = {"FAR_KEY": "sk-secret"}
    assert answer("models", "show", "far", *here, env=secret)["engine"] == {
        "url": "https://x.test/v1",
        "api_key_env": "FAR_KEY",
        "api_key_is_set": True,
    }
    text = call("models", "show", "far", *here, env=secret).output
    assert "$FAR_KEY (set)" in text
    assert "sk-secret" not in text


def test_show_takes_aliases_and_roles(here: tuple[str, ...]) -> None:
    """An alias shows its model, a role the model that would be chosen now."""
    assert answer("models", "show", "s", *here)["name"] == "small"
    assert answer("models", "show", "role:caption", *here)["name"] == LONG


def test_show_of_an_unknown_name_suggests_the_nearest(here: tuple[str, ...]) -> None:
    """A name that is not there ends with exit code 1 and the nearest names."""
    result = call("models", "show", "smal", *here)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("rolecall: The model 'smal' does not exist. Did you mean 'small'")


# --- validate ---------------------------------------------------------------------------------------------------------


def test_validate_counts_entries_and_warnings(tmp_path: Path) -> None:
    """A valid registry gives its counts and exit code 0; warnings are told and change nothing."""
    here = configured(tmp_path, [fake_entry("a", quantisation="q8_0")])
    result = call("models", "validate", *here[:2])
    assert result.exit_code == 0
    assert "did you mean 'quantization'?" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("valid, 1 entry, 1 warning")


def test_validate_names_every_wrong_entry_and_field(tmp_path: Path) -> None:
    """All problems are named at once, each with entry and field, and the exit code is 1."""
    entries: list[dict[str, Any]] = [
        {"name": "one", "backend": "llama_cpp", "role_priority": {"caption": 101}},
        {"name": "two"},
        {"name": "three", "backend": "llama_cpp", "backend_config": {"port": "no"}},
    ]
    here = configured(tmp_path, entries)
    result = call("models", "validate", *here[:2])
    assert result.exit_code == 1
    for entry, field in (("one", "role_priority.caption"), ("two", "backend"), ("three", "backend_config.port")):
        assert any(f"'{entry}'" in line and f"field {field}:" in line for line in result.stdout.splitlines())
    report = json.loads(call("models", "validate", "--json", *here[:2]).stdout)
    assert (report["valid"], len(report["errors"])) == (False, 3)


def test_validate_checks_any_file(tmp_path: Path) -> None:
    """A file may be named; it is only read, and nothing is written beside it."""
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps([{"name": "x", "backend": "vllm"}]))
    assert answer("models", "validate", file)["entries"] == 1
    file.write_text("[{]")
    result = call("models", "validate", file)
    assert result.exit_code == 1
    assert "is not JSON" in result.stdout
    assert list(tmp_path.iterdir()) == [file]


def test_validate_of_a_missing_file_says_so(tmp_path: Path) -> None:
    """A file that is not there is no empty registry."""
    result = call("models", "validate", tmp_path / "none.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "none.json cannot be read" in result.stderr


def test_validate_of_a_folder_without_a_registry_says_so(tmp_path: Path) -> None:
    """A folder with neither file is mostly the wrong one; one of the two is enough."""
    here = configured(tmp_path)
    registry = tmp_path / "configs" / "model_registry.curated.json"
    registry.rename(registry.with_name("model_registry.discovered.json"))
    assert call("models", "validate", *here[:2]).exit_code == 0
    registry.with_name("model_registry.discovered.json").unlink()
    result = call("models", "validate", *here[:2])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{registry} does not exist" in result.stderr


def test_write_schema_writes_into_the_config_folder(tmp_path: Path) -> None:
    """--write-schema writes the schema of this version beside the registry."""
    here = configured(tmp_path)
    written = Path(answer("models", "validate", "--write-schema", *here[:2])["schema"])
    assert written == tmp_path / "configs" / "model_registry.schema.json"
    assert json.loads(written.read_text()) == registry_schema()


def test_shipped_schema_is_made_from_the_models() -> None:
    """The schema in configs/ is the one this version writes; `rolecall models validate --write-schema` renews it."""
    assert json.loads((CONFIGS / "model_registry.schema.json").read_text()) == registry_schema()


def test_shipped_registry_matches_the_schema() -> None:
    """The shipped registry validates against the schema that editors are given, and a wrong one does not."""
    schema = json.loads((CONFIGS / "model_registry.schema.json").read_text())
    entries = json.loads((CONFIGS / "model_registry.curated.json").read_text())
    jsonschema.validate(entries, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{**entries[0], "role_priority": {"chat": 101}}], schema)


def test_a_broken_registry_ends_every_command_with_its_reason(tmp_path: Path) -> None:
    """Commands that need the registry end with exit code 2 and the entry and field that are wrong."""
    here = configured(tmp_path, [{"name": "one", "backend": "llama_cpp", "context_length": -1}])
    for command in (("models", "list"), ("models", "show", "one"), ("select", "chat")):
        done = rolecall(*command, *here)
        assert (done.returncode, done.stdout) == (2, "")
        assert "entry 1 'one': field context_length:" in done.stderr
        assert "Traceback" not in done.stderr
