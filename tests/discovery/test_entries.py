"""Entries of the registry: names, aliases, what a person's own entries mean for them, and the file of all."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_places import model_folder, model_gguf, ollama_model, projector_gguf, split_gguf
from rolecall.core.models import ModelEntry
from rolecall.core.registry import read_registry
from rolecall.discovery.discovered_file import following, read_earlier, write
from rolecall.discovery.entries import Entry, Ground, Naming, entries_of, owned_paths
from rolecall.discovery.ollama_models import Daemon
from rolecall.discovery.places import Place
from rolecall.discovery.rules_file import load_rules
from rolecall.discovery.scan import Findings, scan
from rolecall.errors import ConfigurationError

RULES = load_rules(Path("/nowhere"))


def named(folder: Path, *curated: dict[str, Any], known: dict[str, str] | None = None) -> Naming:
    """Return what becomes of the models in a folder beside some curated entries."""
    entries = tuple(map(ModelEntry.model_validate, curated))
    ground = Ground(RULES, entries, known or {}, owned_paths(entries, Path))
    return entries_of(scan([Place("folder", folder)]).models, ground)


def names(naming: Naming) -> list[str]:
    """Return the names of the entries."""
    return [each.name for each in naming.named]


def test_a_whole_entry(tmp_path: Path) -> None:
    """All that is known is in it, the context within bounds, and it validates."""
    path = model_gguf(tmp_path / "Qwen3-VL-8B-Instruct-Q4_K_M.gguf", "qwen3vl", general__license="mit")
    projector_gguf(tmp_path / "mmproj-F16.gguf")
    (each,) = named(tmp_path).named
    size = path.stat().st_size + (tmp_path / "mmproj-F16.gguf").stat().st_size
    facts = {"size_bytes": size, "trained_context": 40960}
    entry: Entry = dict(each.entry)
    rules = entry["metadata"]["discovered"].pop("rules")
    assert entry == {
        "name": "qwen3-vl-8b-instruct_(Q4_K_M)",
        "backend": "llama_cpp",
        "backend_config": {"model_path": str(path), "mmproj_path": "mmproj-F16.gguf"},
        "capabilities": ["text", "vision"],
        "role_priority": dict.fromkeys(
            ("chat", "caption", "keywords", "description", "narration", "vision_general"), 20
        ),
        "quantization": "q4_k_m",
        "family": "qwen3vl",
        "context_length": 32768,
        "source_provider": "folder",
        "download_format": "gguf",
        "license": "mit",
        "metadata": {"discovered": {**facts, **entry["metadata"]["discovered"]}},
    }
    assert rules == ["writes", "sees", "role-chat", "role-vision"]
    registry = read_registry([], [each.entry])
    assert registry.warnings == ()
    assert registry.entries[0].all_capabilities == {"text", "vision"}


def test_a_projector_above_the_model_is_an_argument(tmp_path: Path) -> None:
    """The registry wants projectors in the model's folder; one above it is named to the engine."""
    split_gguf(tmp_path / "Q4" / "big.gguf", 2)
    projector = projector_gguf(tmp_path / "mmproj-F16.gguf")
    (each,) = named(tmp_path).named
    assert each.entry["backend_config"]["extra_args"] == ["--mmproj", str(projector)]
    assert read_registry([], [each.entry]).warnings == ()


def test_two_models_of_one_name(tmp_path: Path) -> None:
    """They are told apart by their folders, or by letters of their own, and reported."""
    for folder in ("bartowski/m", "unsloth/m", "x/unsloth/m", "y/m/m"):
        model_gguf(tmp_path / folder / "Llama-3B-Q4_K_M.gguf")
    model_gguf(tmp_path / "other" / "Llama-3B-Q8_0.gguf")
    naming = named(tmp_path)
    made = [each.name for each in sorted(naming.named, key=lambda each: str(each.model.path))]
    assert made[:1] + made[1:2] == ["llama-3b_(Q4_K_M)", "llama-3b_(Q8_0)"]
    assert made[2:4] == ["llama-3b-m_(Q4_K_M)", "llama-3b-unsloth_(Q4_K_M)"]
    assert re.fullmatch(r"llama-3b-[0-9a-f]{6}_\(Q4_K_M\)", made[4])
    (conflict,) = naming.conflicts
    assert conflict["name"] == "llama-3b_(Q4_K_M)"
    assert {model["name"] for model in conflict["models"]} == {*made} - {"llama-3b_(Q8_0)"}
    assert names(named(tmp_path)) == names(naming)
    read = read_registry([], [each.entry for each in naming.named])
    assert (len(read.entries), read.warnings) == (5, ())


def test_whoever_has_a_name_keeps_it(tmp_path: Path) -> None:
    """A further model of the name does not take it, whatever the order; a name that fits no more is not kept."""
    second = model_gguf(tmp_path / "b" / "m-Q4_K_M.gguf")
    model_gguf(tmp_path / "a" / "m-Q4_K_M.gguf")
    before = {f"path {second}": "m_(Q4_K_M)"}
    made = {each.name: each.model.path for each in named(tmp_path, known=before).named}
    assert made["m_(Q4_K_M)"] == second
    assert "m-a_(Q4_K_M)" in made
    assert "m-b_(Q4_K_M)" in names(named(tmp_path, known={f"path {second}": "former_(Q8_0)"}))


def test_curated_names_are_a_persons(tmp_path: Path) -> None:
    """A curated entry without a file is filled by the model of its name; with another file or backend it is not."""
    model_gguf(tmp_path / "m-Q4_K_M.gguf")
    name, other = "m_(Q4_K_M)", f"m-{tmp_path.name}_(Q4_K_M)"
    assert names(named(tmp_path, {"name": name, "backend": "llama_cpp"})) == [name]
    for fields in (
        {"name": name, "backend": "vllm"},
        {"name": name, "backend": "llama_cpp", "backend_config": {"model_path": "/other.gguf"}},
        {"name": "x", "backend": "llama_cpp", "model_aliases": [name]},
    ):
        assert names(named(tmp_path, fields)) == [other]


def test_what_a_person_registered_is_not_offered_again(tmp_path: Path) -> None:
    """Under a name of their own it is left out; under the same name it is merged, however the path is written."""
    path = model_gguf(tmp_path / "m-Q4_K_M.gguf")
    (tmp_path / "link.gguf").symlink_to(path)
    config = {"model_path": str(tmp_path / "link.gguf")}
    naming = named(tmp_path, {"name": "mine", "backend": "llama_cpp", "backend_config": config})
    assert names(naming) == []
    assert naming.skipped[0].reason == "the curated registry has it as 'mine'"
    same: dict[str, Any] = {"name": "m_(Q4_K_M)", "backend": "llama_cpp", "backend_config": config}
    naming = named(tmp_path, {**same, "role_priority": {"chat": 90}})
    merged = read_registry([{**same, "role_priority": {"chat": 90}}], [naming.named[0].entry]).entries
    assert [entry.priorities["chat"] for entry in merged] == [90]
    assert merged[0].quantization == "q4_k_m"


def test_names_of_others_become_aliases(tmp_path: Path) -> None:
    """The tag of Ollama's, unless somebody has that name already."""
    store = tmp_path / "s"
    ollama_model(store, "m:1b", model=model_gguf(tmp_path / "m"))
    assert named(store).named[0].entry["model_aliases"] == ["m:1b"]
    assert "model_aliases" not in named(store, {"name": "m:1b", "backend": "openai"}).named[0].entry


def test_refused_models_are_told_of(tmp_path: Path) -> None:
    """With the reason of the rule."""
    model_gguf(tmp_path / "flux1-Q4_0.gguf", "flux")
    naming = named(tmp_path)
    assert naming.named == []
    assert (naming.skipped[0].path, naming.skipped[0].reason[:8]) == (str(tmp_path / "flux1-Q4_0.gguf"), "it makes")


def test_an_entry_of_a_daemon() -> None:
    """Its tag, its size, and its address where that is not what the settings say; the context is the daemon's."""
    daemon = Daemon("http://127.0.0.1:1")
    row = {"model": "qwen3:8b", "size": 2**30, "details": {"quantization_level": "Q4_K_M"}}
    daemon.tags = lambda: [row]  # type: ignore[method-assign] # what it answers
    findings = scan([], daemon)
    for url, config in ((None, None), ("http://b:1", {"base_url": "http://b:1"})):
        (each,) = entries_of(findings.models, Ground(RULES, ollama_url=url)).named
        assert (each.entry["name"], each.entry["served_model_id"]) == ("qwen3-8b_(Q4_K_M)", "qwen3:8b")
        assert (each.entry["vram_estimate_mb"], each.entry.get("backend_config")) == (2048, config)
        assert each.entry["model_aliases"] == ["qwen3:8b"]
        assert "context_length" not in each.entry


def test_a_rules_file_of_ones_own(tmp_path: Path) -> None:
    """It takes the place of the shipped one; a broken one says where."""
    (tmp_path / "discovery.toml").write_text('[[rules]]\nname = "all"\nwhy = "x"\ncapabilities = ["text"]')
    assert [rule.name for rule in load_rules(tmp_path).rules] == ["all"]
    for text, said in (("[[rules]", "discovery.toml: "), ('[[rules]]\nname = "a"', "rule 1 'a', why: Field required")):
        (tmp_path / "discovery.toml").write_text(text)
        with pytest.raises(ConfigurationError, match=r"discovery\.toml: ") as caught:
            load_rules(tmp_path)
        assert said in str(caught.value)


# --- the file


def registered(config: Path, folder: Path, *, forget: bool = False, findings: Findings | None = None) -> dict[str, str]:
    """Scan a folder into a registry, and return the states of its models."""
    findings = findings or scan([Place("folder", folder)])
    earlier = read_earlier(config)
    naming = entries_of(findings.models, Ground(RULES, known=earlier.names()))
    result = following(earlier, naming.named, findings, forget=forget)
    write(earlier.path, result.entries)
    return {**result.states, **dict.fromkeys(result.dropped, "dropped")}


def test_what_becomes_of_models(tmp_path: Path) -> None:
    """New, known, changed; vanished if their files are gone, dropped if these are no model any more."""
    here = tmp_path / "here"
    for name in ("a", "b", "c", "d"):
        model_gguf(here / f"{name}.gguf")
    assert registered(tmp_path, here) == dict.fromkeys("abcd", "new")
    file = tmp_path / "model_registry.discovered.json"
    before = file.read_bytes(), file.stat().st_mtime_ns
    assert registered(tmp_path, here) == dict.fromkeys("abcd", "known")
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    (here / "b.gguf").unlink()
    model_gguf(here / "c.gguf", "qwen3")
    (here / "d.gguf").write_text("rubbish")
    assert registered(tmp_path, here) == {"a": "known", "b": "vanished", "c": "changed", "d": "dropped"}
    assert registered(tmp_path, here) == {"a": "known", "b": "vanished", "c": "known"}
    model_gguf(here / "b.gguf")
    assert registered(tmp_path, here)["b"] == "known"
    (here / "b.gguf").unlink()
    assert registered(tmp_path, here, forget=True) == {"a": "known", "b": "dropped", "c": "known"}
    assert [entry["name"] for entry in json.loads(file.read_text())] == ["a", "c"]


def test_where_nobody_looked_nothing_changes(tmp_path: Path) -> None:
    """Models of folders that are not named this time stay."""
    model_gguf(tmp_path / "x" / "a.gguf")
    model_gguf(tmp_path / "y" / "b.gguf")
    registered(tmp_path, tmp_path / "x")
    assert registered(tmp_path, tmp_path / "y") == {"a": "kept", "b": "new"}


def test_a_model_that_was_moved(tmp_path: Path) -> None:
    """It has its name at the new place, and nothing is left of the old one."""
    (tmp_path / "new").mkdir()
    path = model_gguf(tmp_path / "old" / "m.gguf")
    registered(tmp_path, tmp_path)
    path.rename(tmp_path / "new" / "m.gguf")
    assert registered(tmp_path, tmp_path) == {"m": "changed"}


def test_models_of_a_daemon_that_is_silent(tmp_path: Path) -> None:
    """They are kept; once it answers without them they are vanished."""
    daemon = Daemon("http://127.0.0.1:1")
    daemon.tags = lambda: [{"model": "m:1b"}]  # type: ignore[method-assign] # what it answers
    known = scan([], daemon)
    assert registered(tmp_path, tmp_path, findings=known) == {"m-1b": "new"}
    assert registered(tmp_path, tmp_path, findings=Findings()) == {"m-1b": "kept"}
    assert registered(tmp_path, tmp_path, findings=Findings(has_answered=True)) == {"m-1b": "vanished"}


def test_entries_of_others_stay_as_they_are(tmp_path: Path) -> None:
    """What other tools wrote into the file, of whatever kind."""
    file = tmp_path / "model_registry.discovered.json"
    foreign = [{"name": "theirs", "backend": "openai", "metadata": {"discovered": 7}}, 7, {"metadata": []}]
    file.write_text(json.dumps({"models": foreign}))
    model_gguf(tmp_path / "x" / "a.gguf")
    assert registered(tmp_path, tmp_path / "x") == {"a": "new"}
    assert json.loads(file.read_text())[:3] == foreign


@pytest.mark.parametrize("content", ["[", "7", '{"models": 7}', "\udcff"])
def test_a_broken_file_is_replaced(tmp_path: Path, content: str) -> None:
    """It is written by programs; whatever it was, it is a registry afterwards."""
    file = tmp_path / "model_registry.discovered.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    model_gguf(tmp_path / "x" / "a.gguf")
    assert registered(tmp_path, tmp_path / "x") == {"a": "new"}
    assert [entry["name"] for entry in json.loads(file.read_text())] == ["a"]


def test_nothing_to_write(tmp_path: Path) -> None:
    """Where there are no models and was no file, none is made."""
    assert registered(tmp_path, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


# --- many


def test_five_hundred_models_without_their_weights(tmp_path: Path) -> None:
    """Each file is opened once, and of each no more is read than its header, however large it is."""
    for number in range(250):
        path = model_gguf(tmp_path / "gguf" / f"m{number}-Q4_K_M.gguf")
        with path.open("ab") as file:
            file.truncate(2**30)
        model_folder(tmp_path / "hf" / f"m{number}", parts=1)
    read_before = _bytes_read()
    findings = scan([Place("folder", tmp_path)])
    read = _bytes_read() - read_before
    assert (len(findings.models), findings.headers, findings.skipped) == (500, 500, [])
    assert sum(model.size_bytes for model in findings.models) > 250 * 2**30
    assert read < 500 * 2**19


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def test_a_model_with_a_path_and_without(tmp_path: Path) -> None:
    """The same model, once from a blob and once by its daemon, keeps its name."""
    ollama_model(tmp_path / "s", "m:1b", model=model_gguf(tmp_path / "m"))
    (model,) = scan([Place("ollama", tmp_path / "s")]).models
    by_daemon = replace(model, path=None, tag="m:1b", backend="ollama")
    first, second = (entries_of([each], Ground(RULES)).named[0] for each in (model, by_daemon))
    assert first.name == second.name
