"""Registries of ImageWorks and of another rolecall, and how a kind of file is recognised."""

from __future__ import annotations

import json
from typing import Any

import pytest

from elsewhere.reading import entries, entry, read, remarks, said
from rolecall.elsewhere.tree import SourceError


def row(**fields: Any) -> str:
    """A registry with one entry."""
    return json.dumps([{"name": "a", "backend": "vllm", **fields}])


def test_an_entry_is_taken_over_as_it_is() -> None:
    """What rolecall wrote itself comes back unchanged."""
    fields = {
        "role_priority": {"x": 1},
        "metadata": {"k": [1]},
        "backend_config": {"model_path": "/m", "extra_args": "-a"},
    }
    assert entry(row(**fields)) == {"name": "a", "backend": "vllm", **fields}


@pytest.mark.parametrize("fields", [{"backend": "\ud800"}, {"capabilities": {"\ud800": True}}])
def test_an_entry_with_half_a_character_is_refused_with_its_field(fields: dict[str, Any]) -> None:
    """In the words of the registry, with its line."""
    with pytest.raises(SourceError, match=f"line 1: entry 1 'a' gives no valid entry: field {next(iter(fields))}"):
        read(row(**fields))


def test_notes_of_its_tools_are_left_out_and_told_once() -> None:
    """What its tools noted for themselves is told once a field, with the first line and how often there is more."""
    rows = [{"name": name, "backend": "ollama", "artifacts": {}, "downloaded_at": "x"} for name in "ab"]
    outcome = read(json.dumps(rows, indent=1))
    assert entries(outcome) == [{"name": "a", "backend": "ollama"}, {"name": "b", "backend": "ollama"}]
    assert remarks(outcome) == [(5, "lost", "artifacts"), (6, "lost", "downloaded_at")]
    assert "(and of 1 more)" in said(outcome)


def test_places_and_addresses_of_another_machine() -> None:
    """A location that is no path, hosts and ports of containers are left out, each with a word."""
    config = {"host": "box", "port": 24001, "model_path": "/m", "env": {}}
    outcome = read(row(download_location="linux_wsl", backend_config=config))
    assert entries(outcome) == [{"name": "a", "backend": "vllm", "backend_config": {"model_path": "/m"}}]
    assert [(kind, subject.rpartition(".")[2]) for _, kind, subject in remarks(outcome)] == [
        ("lost", "download_location"),
        ("lost", "host"),
        ("changed", "port"),
    ]
    kept = {"command": ["x"], "port": 1}
    assert entry(row(backend_config=kept, download_location="/m"))["backend_config"] == kept


def test_a_backend_that_is_not_driven_is_told() -> None:
    """An engine that rolecall does not know needs a command."""
    assert "rolecall does not drive 'lmdeploy'" in said(read(row(backend="lmdeploy")))
    assert said(read(row(backend="lmdeploy", backend_config={"command": ["x", "{port}"]}))) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[3]", "line 1: entry 1 must be an object, not a number"),
        ('[{"name": "a"}]', "line 1: entry 1 'a' gives no valid backend: Field required"),
        ('[\n{"name": "", "backend": "x"}]', "line 2: entry 1 '' gives no valid name"),
        (row(role_priority={"x": 101}), "entry 1 'a' gives no valid role_priority.x"),
        ("just words", "holds a text, and no configuration of llama-swap"),
        ("a: 1\nb: 2", "its keys are a, b"),
        ("models: {a: {ttl: 1}}", "its keys are models"),
    ],
)
def test_what_is_no_registry_is_refused(text: str, words: str) -> None:
    """A wrong entry is told with its line, and a file of another kind with what it holds."""
    with pytest.raises(SourceError) as raised:
        read(text)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("text", "format_"),
    [
        ("models: {a: {cmd: 'x ${PORT}'}}", "llama-swap"),
        ("macros: {}\nmodels: {}", "llama-swap"),
        ("peers: {p: {proxy: 'http://h', models: [m]}}", "llama-swap"),
        ("model_list: []", "LiteLLM"),
        ("general_settings: {}", "LiteLLM"),
        ("models: [{name: a, backend: vllm}]", "registry"),
        ('[{"name": "a", "backend": "vllm"}]', "registry"),
        ("[]", "registry"),
    ],
)
def test_a_file_is_recognised_by_its_content(text: str, format_: str) -> None:
    """Its name does not matter, nor whether it is YAML or JSON."""
    assert read(text).format == format_


def test_sizes_and_names_of_capabilities() -> None:
    """The longest edge of an image becomes a number of pixels, unless there is one; a list stays a list."""
    vision = {"vision": {"enabled": True, "target_long_edge": 1000}, "o1": False}
    found = entry(row(capabilities=vision, served_model_id="None"))
    assert found == {"name": "a", "backend": "vllm", "capabilities": ["vision"], "max_image_pixels": 1_000_000}
    assert entry(row(capabilities=vision, max_image_pixels=5))["max_image_pixels"] == 5
    assert entry(row(capabilities=["vl"]))["capabilities"] == ["vl"]
