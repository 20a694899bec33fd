"""Photographs tagged by the command with llama.cpp itself and the demo vision model, killed and gone on with.

``benchmarks/vision_batch.py`` does it with 300 photographs, and measures how fast it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli.invoke import environment
from harness import CONFIGS, Rolecall, eventually
from rolecall.runtime.registry import CURATED
from rolecall.vision.batch import WRITING
from rolecall.vision.tasks import load_tasks
from vision.pictures import ORIENTATION, folder

pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")

SIZE = (640, 480)
PATIENCE_S = 300


def serving(scratch: Path) -> Rolecall:
    """Return a rolecall with the shipped registry and the real engine, not started yet."""
    shipped = json.loads((CONFIGS / CURATED).read_text())
    return Rolecall(scratch, shipped, settings={"llama_server": "embedded"})


def tag(running: Rolecall, pictures: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """Start ``rolecall tag`` on a folder."""
    argv = [sys.executable, "-m", "rolecall", "tag", str(pictures), "--out", str(out), "--url", running.base_url]
    return subprocess.Popen(
        [*argv, *options], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def tag_killed_once(running: Rolecall, pictures: Path, out: Path, after: int) -> list[dict[str, Any]]:
    """Tag a folder; kill -9 the command once there are ``after`` records; go on, and return all records."""
    options = ("--write-sidecar", "xmp")
    with tag(running, pictures, out, *options) as process:
        eventually(lambda: out.exists() and out.read_bytes().count(b"\n") >= after, within_s=PATIENCE_S)
        process.kill()
        process.communicate()
    with tag(running, pictures, out, *options, "--resume") as process:
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    return [json.loads(line) for line in out.read_text().splitlines()]


def check_all_accounted_for(running: Rolecall, pictures: Path, found: list[dict[str, Any]], jobs: int = 4) -> None:
    """Each picture has one record with tags of the vocabulary, and a sidecar; none was asked for twice but in work."""
    vocabulary = set(load_tasks(CONFIGS / "tasks")["tags"].tags)
    names = sorted(path.name for path in pictures.glob("*.jpg"))
    assert sorted(Path(each["file"]).name for each in found) == names
    for each in found:
        assert each["status"] == "ok", each
        assert each["tags"], each
        assert set(each["tags"]) <= vocabulary
        assert all(f">{word}<" in Path(each["sidecar"]).read_text() for word in each["tags"])
        with Image.open(each["file"]) as image:
            lies = image.getexif()[ORIENTATION] == 6
        assert (each["height"] > each["width"]) == lies
    asked = eventually(lambda: [line for line in running.log_lines() if line["prompt_id"] == "tags"])
    assert len(names) <= len(asked) <= len(names) + jobs + WRITING
    assert {line["prompt_version"] for line in asked} == {found[0]["version"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with the demo models."""
    with serving(tmp_path_factory.mktemp("batch")) as running:
        yield running


def test_every_picture_is_accounted_for_after_a_kill(server: Rolecall, tmp_path: Path) -> None:
    """Whatever was tagged before the kill is there; the rest is done by --resume; EXIF's orientation is followed."""
    pictures = folder(tmp_path / "pictures", 24, size=SIZE)
    found = tag_killed_once(server, pictures, tmp_path / "out.jsonl", after=8)
    check_all_accounted_for(server, pictures, found)
