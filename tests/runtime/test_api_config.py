"""The file of what was set at /api/config: kept, replaced as a whole, set aside when it makes no sense."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rolecall.core.api_config import ApiConfig, LlmParams
from rolecall.runtime.api_config import API_CONFIG, ApiConfigFile

SOME = ApiConfig(backend="cli", llm_params=LlmParams(ctx_size=4096, temp=0.2))


def test_what_is_saved_is_there_at_the_next_start(tmp_path: Path) -> None:
    """A folder that is not there yet is made; only the owner can read the file."""
    path = tmp_path / "state" / API_CONFIG
    first = ApiConfigFile(path)
    assert (first.config, first.problem) == (ApiConfig(), None)
    first.save(SOME)
    assert first.config == SOME
    again = ApiConfigFile(path)
    assert (again.config, again.problem) == (SOME, None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == [API_CONFIG]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"version": 2}',
        '{"version": 1, "backend": "docker"}',
        '{"version": 1, "llm_params": {"temp": "hot"}}',
        '{"version": 1, "more": 1}',
        "[" * 100_000,
        " " * 100_000,
        "\0\1\2",
    ],
)
def test_a_damaged_file_is_named_and_set_aside(tmp_path: Path, text: str) -> None:
    """Nothing counts as set, the file is kept under another name, and a new one can be saved."""
    path = tmp_path / API_CONFIG
    path.write_text(text)
    found = ApiConfigFile(path)
    assert found.config == ApiConfig()
    assert str(path) in str(found.problem)
    aside = tmp_path / f"{API_CONFIG}.broken"
    assert aside.read_text() == text
    assert not path.exists()
    found.save(SOME)
    assert found.problem is None
    assert ApiConfigFile(path).config == SOME


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """It stays where it is: a folder, a file of somebody else."""
    path = tmp_path / API_CONFIG
    path.mkdir()
    found = ApiConfigFile(path)
    assert found.config == ApiConfig()
    assert found.problem is not None
    assert "cannot be read" in found.problem
    assert path.is_dir()


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    """The old configuration stays in force, and in the file."""
    path = tmp_path / API_CONFIG
    held = ApiConfigFile(path)
    held.save(SOME)
    (tmp_path / f".{API_CONFIG}.{os.getpid()}").mkdir()  # where the new one would be written
    with pytest.raises(OSError, match="directory"):
        held.save(ApiConfig())
    assert held.config == SOME
    assert json.loads(path.read_text())["backend"] == "cli"
