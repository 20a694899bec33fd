"""Where models are looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rolecall.discovery.places import known_places, ollama_address


def shown(environ: dict[str, str], home: Path) -> list[tuple[str, str]]:
    """Return the places below a home, relative to it."""
    places = known_places(environ, home)
    return [(p.provider, str(p.path.relative_to(home))) for p in places if p.path.is_relative_to(home)]


def make(home: Path, *folders: str) -> None:
    """Make folders."""
    for folder in folders:
        (home / folder).mkdir(parents=True)


def test_the_folders_of_each_program(tmp_path: Path) -> None:
    """Those that exist, in the order of the programs."""
    assert shown({}, tmp_path) == []
    make(tmp_path, ".cache/huggingface/hub", ".cache/llama.cpp", ".lmstudio/models", ".cache/lm-studio/models")
    make(tmp_path, ".ollama/models")
    assert shown({}, tmp_path) == [
        ("huggingface", ".cache/huggingface/hub"),
        ("llama.cpp", ".cache/llama.cpp"),
        ("lmstudio", ".lmstudio/models"),
        ("lmstudio", ".cache/lm-studio/models"),
        ("ollama", ".ollama/models"),
    ]


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"HF_HUB_CACHE": "{home}/a", "HF_HOME": "{home}/b"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "{home}/a"}, "a"),
        ({"HF_HOME": "{home}/b", "XDG_CACHE_HOME": "{home}/c"}, "b/hub"),
        ({"XDG_CACHE_HOME": "{home}/c"}, "c/huggingface/hub"),
        ({"HF_HOME": ""}, ".cache/huggingface/hub"),
    ],
)
def test_the_variables_of_hugging_face(tmp_path: Path, variables: dict[str, str], found: str) -> None:
    """The nearest counts, and an empty one does not."""
    make(tmp_path, "a", "b/hub", "c/huggingface/hub", ".cache/huggingface/hub")
    environ = {name: value.format(home=tmp_path) for name, value in variables.items()}
    assert shown(environ, tmp_path) == [("huggingface", found)]


def test_the_variables_of_the_others(tmp_path: Path) -> None:
    """Each names a folder; the one that is there without it is looked at as well."""
    make(tmp_path, "l", "c/llama.cpp", "o", ".ollama/models")
    environ = {"LLAMA_CACHE": f"{tmp_path}/l", "XDG_CACHE_HOME": f"{tmp_path}/c", "OLLAMA_MODELS": f'"{tmp_path}/o"'}
    assert shown(environ, tmp_path) == [
        ("llama.cpp", "l"),
        ("llama.cpp", "c/llama.cpp"),
        ("ollama", "o"),
        ("ollama", ".ollama/models"),
    ]


def test_lm_studio_points_to_its_home(tmp_path: Path) -> None:
    """A pointer names its home, and settings in a home the folder that a person chose."""
    make(tmp_path, "far/models", "chosen", ".lmstudio/models")
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path}/far\n")
    (tmp_path / "far" / "settings.json").write_text(json.dumps({"downloadsFolder": f"{tmp_path}/chosen"}))
    assert shown({}, tmp_path) == [("lmstudio", "far/models"), ("lmstudio", "chosen"), ("lmstudio", ".lmstudio/models")]


@pytest.mark.parametrize("settings", ["", "[]", "{", '{"downloadsFolder": 7}', '{"downloadsFolder": "a\\u0000"}'])
def test_settings_of_lm_studio_that_make_no_sense(tmp_path: Path, settings: str) -> None:
    """They say nothing."""
    make(tmp_path, ".lmstudio/models")
    (tmp_path / ".lmstudio-home-pointer").write_bytes(b"a\0b")
    (tmp_path / ".lmstudio" / "settings.json").write_text(settings)
    assert shown({}, tmp_path) == [("lmstudio", ".lmstudio/models")]


def test_a_folder_with_two_names_is_one_place(tmp_path: Path) -> None:
    """The name of the first program counts."""
    make(tmp_path, ".cache/huggingface/hub", ".lmstudio")
    (tmp_path / ".lmstudio" / "models").symlink_to(tmp_path / ".cache/huggingface/hub")
    (tmp_path / ".cache" / "llama.cpp").symlink_to("llama.cpp")
    assert shown({"LLAMA_CACHE": f"{tmp_path}/.cache/huggingface/hub"}, tmp_path) == [
        ("huggingface", ".cache/huggingface/hub")
    ]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        (":5000", "http://127.0.0.1:5000"),
        ("gpu-box", "http://gpu-box:11434"),
        ("https://ollama.lan", "https://ollama.lan:443"),
        ("http://ollama.lan/", "http://ollama.lan:80"),
        ("[::]:99", "http://[::1]:99"),
        ("::1", "http://[::1]:11434"),
        (' "10.0.0.5:1234" ', "http://10.0.0.5:1234"),
        ("host:many", "http://127.0.0.1:11434"),
    ],
)
def test_where_ollama_answers(host: str, address: str) -> None:
    """As OLLAMA_HOST says, unless that makes no sense; all addresses mean this machine."""
    assert ollama_address({"OLLAMA_HOST": host}, "http://127.0.0.1:11434", is_given=False) == address


def test_the_setting_goes_before_the_variable() -> None:
    """Where a person gave it."""
    assert ollama_address({"OLLAMA_HOST": "a"}, "http://b:1", is_given=True) == "http://b:1"
