"""The shipped tasks through a whole rolecall to llama.cpp itself, with the demo vision model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image, ImageStat

from harness import CONFIGS, Rolecall
from photographs import encoded, photograph
from rolecall.demo.script import Script
from rolecall.runtime.registry import CURATED
from rolecall.settings import shipped
from rolecall.vision.ask import Asker
from rolecall.vision.photos import Photo, prepare
from rolecall.vision.runner import run_task
from rolecall.vision.task import Task
from rolecall.vision.tasks import load_tasks

pytest.importorskip("xllamacpp", reason="the embedded engine needs an extra: rolecall[llama]")
pytest.importorskip("gguf", reason="the demo models need an extra: rolecall[llama]")

SHIPPED: list[dict[str, Any]] = json.loads((CONFIGS / CURATED).read_text())
TASKS = load_tasks(shipped("tasks"))
CAPTION = Script().caption


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with the demo models."""
    folder: Path = tmp_path_factory.mktemp("vision")
    with Rolecall(folder, SHIPPED, settings={"llama_server": "embedded"}) as running:
        yield running


@pytest_asyncio.fixture
async def asker(server: Rolecall) -> AsyncIterator[Asker]:
    """Ask it over HTTP."""
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False) as client:
        yield Asker(client)


def photo(seed: int) -> Photo:
    return prepare(photograph(seed, size=(320, 240), orientation=6))


def brightness(picture: Photo) -> float:
    """The mean of all channels, 0 to 1: the one thing that the demo model sees."""
    data = base64.b64decode(picture.data_url.partition(",")[2])
    return sum(ImageStat.Stat(Image.open(io.BytesIO(data))).mean) / 3 / 255


def light(picture: Photo) -> str:
    return "bright" if brightness(picture) > 0.5 else "dim"


def asked_one_by_one(task: Task) -> Task:
    return task.model_copy(update={"mode": "questions"})


@pytest.mark.parametrize("name", ["caption", "description", "narration", "ocr", "mono_interpretation"])
async def test_texts(server: Rolecall, asker: Asker, name: str) -> None:
    """Each shipped task that wants a text gets one, and its line in the log tells task and version."""
    variables = {"check": '{"verdict": "pass"}'} if name == "mono_interpretation" else {}
    outcome = await run_task(asker, TASKS[name], photo(1), variables, wants_confidence=True)
    assert (outcome.value, outcome.problem, outcome.model) == (CAPTION, None, "demo-vision")
    assert outcome.confidence == pytest.approx(1, abs=0.01)
    line = server.line(outcome.request_ids[0])
    assert (line["prompt_id"], line["prompt_version"], line["images"]) == (name, TASKS[name].version, 1)
    assert line["role"] == TASKS[name].role


async def test_keywords(asker: Asker) -> None:
    """The demo model has keywords to say."""
    outcome = await run_task(asker, TASKS["keywords"], photo(1))
    assert outcome.value == ["picture", "demo answer", "scripted weights", "placeholder", "no real keywords"]


async def test_structured_tags(asker: Asker) -> None:
    """llama.cpp takes the schema, and the answer is of the vocabulary, with nothing to discard."""
    picture = photo(2)
    outcome = await run_task(asker, TASKS["tags"], picture)
    assert outcome.tags == (light(picture), "sharp", "outdoor", "sunny", "day", "moderate")
    assert (outcome.discarded, outcome.missing, outcome.requests) == ((), (), 1)


async def test_a_schema_holds_for_a_vocabulary_that_the_model_does_not_know(asker: Asker) -> None:
    """Of words that the model would never say, the engine's grammar makes it choose one."""
    other = TASKS["tags"].model_dump()
    other["dimensions"] = {"mood": {"values": ["serene", "tense"], "question": "What mood?"}}
    outcome = await run_task(asker, Task.model_validate(other), photo(2))
    assert len(outcome.tags) == 1
    assert outcome.discarded == ()


async def test_tags_one_by_one_are_validated(asker: Asker) -> None:
    """What a model says in words is seen through: capitals, marks, synonyms, a sentence; one word is discarded."""
    picture = prepare(encoded(Image.new("RGB", (60, 40), "white")))
    outcome = await run_task(asker, asked_one_by_one(TASKS["tags"]), picture)
    assert outcome.text.splitlines() == [answer for _, answer in Script().sights[2:]]
    assert outcome.tags == ("bright", "sharp", "outdoor", "sunny", "day")
    assert [(each.dimension, each.text) for each in outcome.discarded] == [("density", "Bustling")]
    assert outcome.missing == ("density",)


async def test_the_engines_cache_serves_the_questions(asker: Asker) -> None:
    """From the second question on, the picture and all before the words come from the cache, as the engine counts."""
    task, picture = asked_one_by_one(TASKS["tags"]), photo(4)
    outcome = await run_task(asker, task, picture)
    again = [await run_task(asker, task, picture)]
    words = max(len(each.question) for each in task.dimensions.values()) + 150
    assert outcome.cached_tokens is not None
    assert outcome.usage["prompt_tokens"] - outcome.cached_tokens < 5 * words + len(task.system) + 100
    per_question = outcome.usage["prompt_tokens"] / outcome.requests
    assert outcome.cached_tokens > (outcome.requests - 1) * (per_question - words)
    assert again[0].tags == outcome.tags


async def test_another_picture_is_not_taken_from_the_cache(asker: Asker) -> None:
    """Pictures of the same size are told apart: only what stands before the picture is the same."""
    first = await run_task(asker, TASKS["caption"], photo(5))
    same = await run_task(asker, TASKS["caption"], photo(5))
    other = await run_task(asker, TASKS["caption"], photo(6))
    assert first.cached_tokens is not None
    assert same.cached_tokens is not None
    assert other.cached_tokens is not None
    assert same.cached_tokens == same.usage["prompt_tokens"] - 1
    assert other.cached_tokens <= len(TASKS["caption"].system) + 40


async def test_the_next_task_finds_the_picture_in_the_cache(asker: Asker) -> None:
    """All shipped tasks begin alike: keywords after a caption compute nothing but their own words."""
    await run_task(asker, TASKS["caption"], photo(7))
    outcome = await run_task(asker, TASKS["keywords"], photo(7))
    assert outcome.cached_tokens is not None
    assert outcome.usage["prompt_tokens"] - outcome.cached_tokens < len(TASKS["keywords"].user) + 60


@pytest.mark.parametrize("mode", ["structured", "questions"])
async def test_each_picture_has_its_own_tags(asker: Asker, mode: str) -> None:
    """Of forty pictures at once none gets the tags of another one: the demo model tells light ones from dark ones."""
    task = TASKS["tags"].model_copy(update={"mode": mode})
    pictures = [each for each in map(photo, range(100, 160)) if abs(brightness(each) - 0.5) > 0.05][:40]
    gate = asyncio.Semaphore(8)

    async def tagged(picture: Photo) -> str:
        async with gate:
            return (await run_task(asker, task, picture)).tags[0]

    tags = await asyncio.gather(*map(tagged, pictures))
    assert tags == [light(picture) for picture in pictures]
    assert len(pictures) == 40
    assert set(tags) == {"bright", "dim"}


async def test_doubt_shows_in_the_confidence(asker: Asker) -> None:
    """Near the middle grey the model is less sure than with black or white, and says so in its probabilities."""
    white, grey = (prepare(encoded(Image.new("RGB", (64, 64), 3 * (level,)))) for level in (255, 129))
    sure, unsure = [await run_task(asker, TASKS["tags"], each, wants_confidence=True) for each in (white, grey)]
    assert sure.confidence is not None
    assert unsure.confidence is not None
    assert unsure.confidence < 0.995 < sure.confidence
