"""A rolecall whose fake vision model tags pictures as a test says, and what is asked of its datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp

from harness import Rolecall, eventually, fake_entry
from photographs import write_photographs
from rolecall.gateway.caller import Anyone
from rolecall.vision.datasets_tagger import OwnServer
from rolecall.vision.jobs_places import Line, Place, Places

TAGS = {"lighting": "dark", "setting": "indoor", "clarity": "sharp"}


def task_file(answer: object = None, *, version: str = "1", fake: Mapping[str, object] | None = None) -> str:
    """Return a task ``tags`` that the fake engine answers with ``answer``; ``fake`` are its knobs."""
    said = json.dumps(TAGS if answer is None else answer) if not isinstance(answer, str) else answer
    lines = [
        f'id = "tags"\nversion = "{version}"\ntitle = "Tags"\nrole = "tags"\nparser = "tags"',
        f"user = '''ECHO {said} {{dimensions}}'''",
        "[parameters.fake]",
        *(f"{name} = {json.dumps(value)}" for name, value in (fake or {}).items()),
        '[dimensions.lighting]\nquestion = "Light?"\nvalues = ["dark", "bright"]',
        '[dimensions.setting]\nquestion = "Where?"\nvalues = ["indoor", "outdoor"]',
        '[dimensions.clarity]\nquestion = "Clear?"\nvalues = ["sharp", "blurry"]',
    ]  # fmt: skip
    return "\n".join(lines)


def vision_entry(name: str = "seer", *faults: str, **fields: Any) -> dict[str, Any]:
    """Return the entry of a fake model that sees, and plays the role ``tags``."""
    fields = {"capabilities": ["text", "vision"], "role_priority": {"tags": 10}, **fields}
    return fake_entry(name, "--mmproj", "seen.gguf", *faults, **fields)


def tagging_rolecall(
    folder: Path, *faults: str, task: str | None = None, more: Sequence[dict[str, Any]] = (), **fields: Any
) -> Rolecall:
    """Return a rolecall with one model that tags, and ``more`` entries; not started yet."""
    made = Rolecall(folder, (vision_entry("seer", *faults), *more), **fields)
    (made.config_dir / "tasks").mkdir(exist_ok=True)
    (made.config_dir / "tasks" / "tags.toml").write_text(task or task_file(), encoding="utf-8")
    return made


def own_server(inference: ASGIApp, *, knows_callers: bool = True) -> OwnServer:
    """Return a server for a tagger, where anybody may ask, or nobody; whatever is named can see."""
    return OwnServer(inference, lambda _: Anyone() if knows_callers else None, lambda _caller, _name: None)


def place() -> Place:
    """Return a place for a sample of the only job."""
    return Place(Places(), Line(lambda: None))


def photos(folder: Path, count: int) -> Path:
    """Return a folder with that many photographs."""
    write_photographs(folder, count)
    return folder


def add_dataset(server: Rolecall, name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Register a folder and return the dataset."""
    answer = server.http.post("/datasets", json={"name": name, "folder": str(folder)}, **options)
    assert answer.status_code == 201, answer.text
    added: dict[str, Any] = answer.json()
    return added


def states(server: Rolecall, dataset_id: int, **options: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the progress of a dataset's job as it comes."""
    path = f"/datasets/{dataset_id}/auto-tag/progress"
    with server.http.stream("GET", path, **options) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        event = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                assert event == "progress"
                yield json.loads(line.removeprefix("data: "))


def start(server: Rolecall, dataset_id: int, **body: Any) -> httpx.Response:
    """Ask for a dataset to be tagged."""
    path = f"/datasets/{dataset_id}/auto-tag"
    return server.http.post(path, json=body) if body else server.http.post(path)


def await_processed(server: Rolecall, dataset_id: int, count: int) -> None:
    """Wait until that many samples of a running job are done."""
    eventually(lambda: server.get(f"/datasets/{dataset_id}")["auto_tag"]["processed"] >= count)


def samples(server: Rolecall, dataset_id: int, **query: Any) -> list[dict[str, Any]]:
    """Return a dataset's samples."""
    found: list[dict[str, Any]] = server.get(f"/datasets/{dataset_id}/samples", limit=500, **query)["data"]
    return found
