"""A dataset tagged by llama.cpp itself, with the demo vision model, which tells light pictures from dark ones."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from harness import CONFIGS, Rolecall, eventually
from photographs import encoded, exif, scene
from rolecall.runtime.registry import CURATED
from rolecall.settings import shipped
from rolecall.vision.photos import prepare
from rolecall.vision.tasks import load_tasks
from tagging import add_dataset, await_processed, samples, start, states

pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")

SHIPPED: list[dict[str, Any]] = json.loads((CONFIGS / CURATED).read_text())
TASK = load_tasks(shipped("tasks"))["tags"]
COUNT = 300


def write_photos(folder: Path) -> Path:
    """Fill a folder with photographs with EXIF, half of them light and half of them dark."""
    folder.mkdir()
    for number in range(COUNT):
        chance = random.Random(number)
        shade = chance.uniform(0.65, 0.9) if number % 2 else chance.uniform(0.1, 0.35)
        image = Image.blend(
            scene(number, (240, 160)), Image.new("RGB", (240, 160), "white" if number % 2 else 0), shade
        )
        (folder / f"IMG_{number:04}.jpg").write_bytes(
            encoded(image, exif=exif(number, (1, 3, 6, 8)[number % 4]), quality=90)
        )
    return folder


def expected_light(path: Path) -> str:
    """What the demo model says of a picture's light: it goes by the mean of all channels."""
    url = prepare(path, max_side=TASK.image.max_side).data_url
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return "bright" if sum(ImageStat.Stat(image).mean) / 3 / 255 > 0.5 else "dim"


@pytest.mark.long
def test_three_hundred_photographs(tmp_path: Path) -> None:
    """The engine is killed, then rolecall itself by SIGKILL; in the end every picture has the tags that are its own."""
    folder = write_photos(tmp_path / "photos")
    server = Rolecall(tmp_path / "server", SHIPPED, settings={"llama_server": "embedded"})
    with server:
        id_ = add_dataset(server, "all", folder)["id"]
        assert server.state_of("demo-vision") == "stopped"
        assert start(server, id_).status_code == 202
        await_processed(server, id_, 40)
        for engine in server.engine_processes():
            engine.kill()
        await_processed(server, id_, 120)
        server.kill()
    with server:
        seen = list(states(server, id_))
        assert 120 <= seen[0]["processed"] < COUNT
        assert (seen[-1]["status"], seen[-1]["processed"], seen[-1]["total"]) == ("complete", COUNT, COUNT)
        failed = samples(server, id_, failed=1)
        assert len(failed) <= 6
        start(server, id_)
        assert list(states(server, id_))[-1]["status"] == "complete"
        found = samples(server, id_)
        assert len(found) == server.get(f"/datasets/{id_}")["tagged"] == COUNT
        allowed = {value for dimension in TASK.dimensions.values() for value in dimension.values}
        for sample in found:
            assert expected_light(folder / sample["file_name"]) in sample["tags"], sample
            assert set(sample["tags"]) <= allowed
            assert (sample["problem"], sample["model"], sample["task"]) == (None, "demo-vision", "tags@1")
        assert {sample["tags"][0] for sample in found} == {"bright", "dim"}
        eventually(lambda: not (server.state / "datasets" / "running").exists())
