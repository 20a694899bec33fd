"""How often models are loaded for two tasks whose models don't fit together: by the order, and by the roles' rules.

``benchmarks/vision_loads.py`` counts the same for 100 pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.invoke import call
from harness import Gpus, Rolecall, fake_entry
from simulator import nvml
from vision.pictures import folder

pytestmark = pytest.mark.long

TASK = """
version = "1"
title = "{id}"
role = "{id}"
user = "ECHO boat, sea"
parser = "{parser}"
"""
SEEING = ("--mmproj", "x", "--gpu-mb")
BEST, OTHER = "caption-model", "keywords-model"
PRIORITY = {"role_policy": "priority"}
ADAPTIVE = {"role_policy": "adaptive", "quality_tolerance": 15}


@dataclass(frozen=True)
class Way:
    """Options of the command and settings of the server."""

    name: str
    options: tuple[str, ...]
    settings: Mapping[str, object]


WAYS = (
    Way("picture by picture, one at a time", ("--picture-by-picture", "--jobs", "1"), PRIORITY),
    Way("picture by picture, four at a time", ("--picture-by-picture", "--jobs", "4"), PRIORITY),
    Way("stage by stage", ("--stage-by-stage", "--jobs", "4"), PRIORITY),
    Way("adaptive roles, picture by picture", ("--picture-by-picture", "--jobs", "4"), ADAPTIVE),
    Way("as the command chooses", (), PRIORITY),
)


@dataclass(frozen=True)
class Figures:
    """Loads of models, the seconds that all took, and how many keywords came from the role's best model."""

    loads: int
    seconds: float
    best_keywords: int


def server(gpus: Gpus, settings: Mapping[str, object], load_s: float, starts: Path) -> Rolecall:
    """Return a rolecall with two models of 9,000 and 8,000 MB on a GPU of 16 GB; the first can do both tasks."""
    more = ("--load-s", str(load_s), "--starts-log", str(starts))
    sees = {"capabilities": ["text", "vision"]}
    made = gpus.rolecall(
        fake_entry(
            BEST, *SEEING, "9000", *more, vram_estimate_mb=9000, role_priority={"caption": 90, "keywords": 80}, **sees
        ),
        fake_entry(OTHER, *SEEING, "8000", *more, vram_estimate_mb=8000, role_priority={"keywords": 95}, **sees),
        settings=settings,
    )
    tasks = made.config_dir / "tasks"
    tasks.mkdir()
    for id_, parser in (("caption", "text"), ("keywords", "keywords")):
        (tasks / f"{id_}.toml").write_text(TASK.format(id=id_, parser=parser))
    return made


def count_loads(way: Way, pictures: Path, scratch: Path, library: Path, load_s: float = 0.0) -> Figures:
    """Caption pictures and find keywords, both anew, and return what that took."""
    starts, out = scratch / "starts.txt", scratch / "out.jsonl"
    scratch.mkdir(parents=True)
    starts.touch()
    with server(Gpus(library, scratch / "rolecall", nvml.ONE_16GB), way.settings, load_s, starts) as running:
        options = ("--url", running.base_url, "--config-dir", str(running.config_dir), "--out", str(out), *way.options)
        began = time.monotonic()
        result = call("run", "caption", "keywords", pictures, *options)
        seconds = time.monotonic() - began
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(found) == 2 * len(list(pictures.iterdir()))
    best = sum(each["task"] == "keywords" and each["model"] == OTHER for each in found)
    return Figures(len(starts.read_text().splitlines()), seconds, best)


@pytest.mark.parametrize(
    ("way", "least", "most", "best"),
    [(WAYS[0], 16, 16, 8), (WAYS[1], 4, 16, 8), (WAYS[2], 2, 2, 8), (WAYS[3], 1, 1, 0), (WAYS[4], 2, 2, 8)],
    ids=[way.name for way in WAYS],
)
def test_loads(  # noqa: PLR0917 - figures of each way
    way: Way, least: int, most: int, best: int, nvml_library: Path, tmp_path: Path
) -> None:
    """8 pictures: picture by picture swaps for each, stage by stage loads each model once, and so does the default.

    With a tolerance for the keywords the model that is loaded for captions answers for both, after a single load.
    """
    pictures = folder(tmp_path / "pictures", 8)
    figures = count_loads(way, pictures, tmp_path / "run", nvml_library)
    assert least <= figures.loads <= most, figures
    assert figures.best_keywords == best


def test_the_choice_is_told_with_its_reason(nvml_library: Path, tmp_path: Path) -> None:
    """The dry run knows before anything is loaded that the models do not fit together, and what it would do."""
    pictures = folder(tmp_path / "pictures", 2)
    with server(Gpus(nvml_library, tmp_path / "rolecall", nvml.ONE_16GB), {}, 0.0, tmp_path / "starts") as running:
        options = ("--url", running.base_url, "--config-dir", running.config_dir, "--dry-run")
        text = call("run", "caption", "keywords", pictures, *options).stdout
    usable_mb = 16376 - 2048
    assert f"stage by stage: {BEST} and {OTHER} (9000 + 8000 MB) do not fit together into {usable_mb} MB" in text
    assert "1. caption: 4 pictures at a time" in text
    assert "2. keywords: 4 pictures at a time" in text
