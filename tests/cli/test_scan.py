"""``rolecall models scan``: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.invoke import answer, call, configured, in_terminal, rolecall
from model_places import CONFIG, into_hub, listing, model_folder, model_gguf, ollama_model, projector_gguf
from process.fake_ollama import FakeOllama

FILE = "model_registry.discovered.json"
NO_OLLAMA = {"OLLAMA_HOST": "127.0.0.1:9"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home in which all known places are, and no Ollama."""
    for variable in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def file_of(folder: Path) -> Any:
    """Return the discovered registry."""
    return json.loads((folder / "configs" / FILE).read_text())


def test_all_known_places(tmp_path: Path, home: Path) -> None:
    """Models of each program are found, registered, listed, and a second run changes nothing."""
    here = configured(tmp_path, [])
    into_hub(home / ".cache/huggingface/hub", "Qwen/Qwen3-0.6B", model_folder(tmp_path / "x"))
    model_gguf(home / ".cache/llama.cpp/ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M.gguf")
    model_gguf(home / ".lmstudio/models/lmstudio-community/Phi-4-GGUF/Phi-4-Q8_0.gguf")
    model_gguf(home / ".cache/lm-studio/models/TheBloke/Old-7B-GGUF/Old-7B.Q5_K_M.gguf")
    ollama_model(home / ".ollama/models", "llama3.2:3b", model=model_gguf(tmp_path / "m"))
    model_gguf(tmp_path / "mine" / "Own-1B-F16.gguf")
    before = listing(home)
    report = answer("models", "scan", tmp_path / "mine", *here)
    expected = ["gemma-3-4b-it_(Q4_K_M)", "llama3.2-3b", "old-7b_(Q5_K_M)", "own-1b_(F16)", "phi-4_(Q8_0)"]
    expected = sorted([*expected, "qwen3-0.6b_(BF16)"])
    assert [model["name"] for model in report["models"]] == expected
    assert {model["state"] for model in report["models"]} == {"new"}
    assert [(place["provider"], place["models"]) for place in report["places"]] == [
        ("huggingface", 1),
        ("llama.cpp", 1),
        ("lmstudio", 1),
        ("lmstudio", 1),
        ("ollama", 1),
        ("folder", 1),
    ]
    assert (report["written"], report["left_out"], report["same_name"]) == (True, [], [])
    assert "refused" in report["ollama"]
    assert [entry["name"] for entry in file_of(tmp_path)] == expected
    written = (tmp_path / "configs" / FILE).read_bytes()
    again = answer("models", "scan", tmp_path / "mine", *here)
    assert (again["written"], {model["state"] for model in again["models"]}) == (False, {"known"})
    assert (tmp_path / "configs" / FILE).read_bytes() == written
    assert listing(home) == before
    assert call("models", "validate", *here[:2]).exit_code == 0
    listed = answer("models", "list", "--all", *here)
    assert sorted(row["name"] for row in listed) == expected


def test_a_dry_run_writes_nothing(tmp_path: Path, home: Path) -> None:
    """It shows what would be, and how to have it."""
    here = configured(tmp_path, [])
    model_gguf(tmp_path / "mine" / "Own-1B-F16.gguf")
    result = call("models", "scan", tmp_path / "mine", "--dry-run", *here)
    assert result.exit_code == 0
    assert "own-1b_(F16)" in result.stdout
    assert "not written (--dry-run)" in result.stdout
    assert not (tmp_path / "configs" / FILE).exists()


def test_explain_says_why(tmp_path: Path, home: Path) -> None:
    """The file, how it was read, which projector and why, and each rule with what it did."""
    here = configured(tmp_path, [])
    model_gguf(tmp_path / "mine" / "Own-VL-8B-F16.gguf", general__file_type=1)
    projector_gguf(tmp_path / "mine" / "mmproj-F16.gguf")
    text = call("models", "scan", tmp_path / "mine", "--explain", *here).stdout
    for part in (
        f"{tmp_path}/mine/Own-VL-8B-F16.gguf",
        "quantization by the file's name and its metadata",
        "projector mmproj-F16.gguf: it lies beside this model alone",
        "sees: it has a projector, or a processor for images → can vision",
        "role-vision: it reads pictures and writes text → roles caption 20",
    ):
        assert part in text
    lines = in_terminal("models", "scan", tmp_path / "mine", "--explain", *here, columns=80)
    assert max(map(len, lines)) <= 80 or "/" in max(lines, key=len)


def test_a_persons_choice_wins(tmp_path: Path, home: Path) -> None:
    """A curated entry of the same name goes before what was found, field by field, and its priority too."""
    path = model_gguf(tmp_path / "mine" / "Own-8B-F16.gguf")
    model_gguf(tmp_path / "mine" / "Other-70B-F16.gguf")
    mine = {"name": "own-8b_(F16)", "backend": "llama_cpp", "role_priority": {"chat": 50}, "context_length": 1024}
    here = configured(tmp_path, [mine])
    call("models", "scan", tmp_path / "mine", *here)
    card = answer("models", "show", "own-8b_(F16)", *here)
    assert card["registry"]["backend_config"]["model_path"] == str(path)
    assert card["registry"]["context_length"] == 1024
    assert answer("select", "chat", *here)["model"] == "own-8b_(F16)"


def test_a_vanished_file_is_not_installed(tmp_path: Path, home: Path) -> None:
    """It is shown as that, until it is back or is to be forgotten."""
    here = configured(tmp_path, [])
    path = model_gguf(tmp_path / "mine" / "Own-1B-F16.gguf")
    call("models", "scan", tmp_path / "mine", *here)
    path.unlink()
    report = answer("models", "scan", tmp_path / "mine", *here)
    assert [model["state"] for model in report["models"]] == ["vanished"]
    (row,) = answer("models", "list", "--all", *here)
    assert (row["installed"], "does not exist" in row["reason"]) == (False, True)
    report = answer("models", "scan", tmp_path / "mine", "--forget", *here)
    assert (report["models"], report["taken_out"]) == ([], ["own-1b_(F16)"])
    assert file_of(tmp_path) == []


def test_what_deserves_a_look_is_on_stderr(tmp_path: Path, home: Path) -> None:
    """Files of no use, models of one name and broken files, each with the reason; the table stays a table."""
    here = configured(tmp_path, [])
    for folder in ("a", "b"):
        model_gguf(tmp_path / "mine" / folder / "Own-1B-F16.gguf")
    (tmp_path / "mine" / "bad.gguf").write_text("x")
    (tmp_path / "configs" / FILE).write_text("[")
    result = call("models", "scan", tmp_path / "mine", *here)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-2] == "2 models: 2 new"
    assert f"{tmp_path}/mine/bad.gguf: it is cut short in its header" in result.stderr
    assert "2 models would be called own-1b_(F16): " in result.stderr
    assert "the earlier registry was broken" in result.stderr
    assert "127.0.0.1:9" not in result.stdout


def test_an_ollama_elsewhere(tmp_path: Path, home: Path) -> None:
    """OLLAMA_HOST says where it is, and its models are registered with that address."""
    here = configured(tmp_path, [])
    with FakeOllama("qwen3:8b") as ollama:
        address = ollama.base_url.removeprefix("http://")
        report = answer("models", "scan", *here, env={"OLLAMA_HOST": address})
        (model,) = report["models"]
        assert model["entry"]["backend_config"] == {"base_url": f"http://{address}"}
        (row,) = answer("models", "list", *here)
        assert (row["name"], row["installed"]) == ("qwen3-8b", True)
        by_setting = configured(tmp_path, [], f'ollama_base_url = "http://{address}"\n')
        report = answer("models", "scan", *by_setting)
    assert "backend_config" not in report["models"][0]["entry"]


def test_only_these_folders(tmp_path: Path, home: Path) -> None:
    """--only leaves the known places and Ollama alone, and needs a folder."""
    here = configured(tmp_path, [])
    model_gguf(home / ".cache/llama.cpp/x.gguf")
    model_gguf(tmp_path / "mine" / "y.gguf")
    report = answer("models", "scan", tmp_path / "mine", "--only", *here)
    assert ([model["name"] for model in report["models"]], report["ollama"]) == (["y"], None)
    result = call("models", "scan", "--only", *here)
    assert (result.exit_code, "name the folders" in result.stderr) == (1, True)


def test_nothing_there(tmp_path: Path, home: Path) -> None:
    """That is no failure, and nothing is written."""
    here = configured(tmp_path, [])
    result = call("models", "scan", *here)
    assert result.exit_code == 0
    assert result.stdout.startswith("0 models: none")
    assert not (tmp_path / "configs" / FILE).exists()


def test_a_folder_that_is_none(tmp_path: Path, home: Path) -> None:
    """A folder that was named must be there."""
    here = configured(tmp_path, [])
    for path in (tmp_path / "none", tmp_path / "configs" / "rolecall.toml"):
        result = call("models", "scan", path, *here)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"{path} is no folder" in result.stderr


def test_a_curated_registry_that_is_broken(tmp_path: Path, home: Path) -> None:
    """Exit code 2, with the file, the entry and the field; nothing is written."""
    here = configured(tmp_path, [{"name": "one", "backend": 7}])
    model_gguf(tmp_path / "mine" / "y.gguf")
    result = call("models", "scan", tmp_path / "mine", *here)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "model_registry.curated.json: entry 1 'one': field backend" in result.stderr
    assert not (tmp_path / "configs" / FILE).exists()


def test_on_a_terminal(tmp_path: Path, home: Path) -> None:
    """It shows that it is at work, and the table fits."""
    here = configured(tmp_path, [])
    model_gguf(tmp_path / "mine" / "y-Q4_K_M.gguf")
    text = "\n".join(in_terminal("models", "scan", tmp_path / "mine", "--only", *here, columns=80, kind="xterm"))
    assert "looking for models" in text
    assert "y_(Q4_K_M)" in text


def test_rules_that_are_broken(tmp_path: Path, home: Path) -> None:
    """Exit code 2, with the file, the rule and the field, as for any configuration."""
    here = configured(tmp_path, [])
    (tmp_path / "configs" / "discovery.toml").write_text('[[rules]]\nname = "a"\nwhy = "b"\nskpi = true')
    result = call("models", "scan", *here)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "discovery.toml: rule 1 'a', skpi: " in result.stderr


def test_names_that_are_not_utf8_can_be_printed(tmp_path: Path, home: Path) -> None:
    """Whatever the terminal can show; the command does not end in a traceback."""
    here = configured(tmp_path, [])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a\udcff.gguf").write_bytes(b"x")
    for options in ((), ("--json",)):
        done = rolecall("models", "scan", tmp_path / "mine", *here, *options)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False)
        assert "is not UTF-8" in done.stdout + done.stderr


def test_a_configuration_that_names_half_a_character(tmp_path: Path, home: Path) -> None:
    """The entry holds the sign for what cannot be read, so that it can be printed and served."""
    here = configured(tmp_path, [])
    quantization = {"quant_method": "a\ud800b"}
    names = {"architectures": ["A\ud800"], "model_type": "t\ud800", "quantization_config": quantization}
    model_folder(tmp_path / "mine" / "Odd-1B", {**CONFIG, **names})
    report = answer("models", "scan", tmp_path / "mine", "--only", *here)
    (model,) = report["models"]
    assert (model["entry"]["quantization"], model["entry"]["family"]) == ("a�b", "t�")
    assert [each["name"] for each in answer("models", "list", "--all", *here)] == [model["name"]]


def test_a_file_that_is_broken_is_kept(tmp_path: Path, home: Path) -> None:
    """It may have been somebody's work: a copy stays beside the new one, and is named, once."""
    here = configured(tmp_path, [])
    model_gguf(tmp_path / "mine" / "Own-1B-F16.gguf")
    (tmp_path / "configs" / FILE).write_text('[{"name": "mine",')
    told = call("models", "scan", tmp_path / "mine", "--only", *here)
    assert told.exit_code == 0, told.output
    (backup,) = (tmp_path / "configs").glob(f"{FILE}.*.bak")
    assert backup.read_text() == '[{"name": "mine",'
    assert backup.name in "".join(told.stderr.split())
    assert len(file_of(tmp_path)) == 1
    assert answer("models", "scan", tmp_path / "mine", "--only", *here)["backup"] is None
    assert len(list((tmp_path / "configs").glob(f"{FILE}.*.bak"))) == 1


def test_a_broken_file_that_cannot_be_copied_stays(tmp_path: Path, home: Path) -> None:
    """Nothing is written over what could not be kept; the way out is told."""
    here = configured(tmp_path, [])
    model_gguf(tmp_path / "mine" / "Own-1B-F16.gguf")
    (tmp_path / "configs" / FILE).mkdir()
    told = call("models", "scan", tmp_path / "mine", "--only", *here)
    assert told.exit_code == 2
    assert "so it is left as it is: move it aside" in told.output
    assert (tmp_path / "configs" / FILE).is_dir()


def test_a_dry_run_in_an_empty_home_writes_nothing(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the config folder, whose shipped registry counts all the same."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    model_gguf(tmp_path / "mine" / "Own-1B-F16.gguf")
    result = call("models", "scan", tmp_path / "mine", "--dry-run")
    assert result.exit_code == 0, result.output
    assert list(home.rglob("*")) == []
