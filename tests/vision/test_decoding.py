"""How many pictures are decoded at the same time."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path

from harness import eventually
from photographs import photograph
from rolecall.cli.serve import extensions
from rolecall.settings import shipped
from rolecall.vision.datasets import Datasets
from rolecall.vision.datasets_records import FileFacts, Sample, Wish
from rolecall.vision.datasets_tagger import ModelTagger
from rolecall.vision.decoding import AT_A_TIME, Decoding
from rolecall.vision.single_input import Pictures
from rolecall.vision.tasks import load_tasks
from tagging import own_server, place


async def test_two_pictures_at_a_time_over_all_parts_of_a_server(tmp_path: Path) -> None:
    """While two are being decoded, a single request, a thumbnail and a job wait; then all come to their end."""
    decoding, go_on, begun = Decoding(), threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        begun.release()
        go_on.wait(30)

    held = [asyncio.ensure_future(decoding.run(hold)) for _ in range(AT_A_TIME)]
    for _ in held:
        await asyncio.to_thread(begun.acquire)
    (tmp_path / "a.jpg").write_bytes(photograph())
    sample = Sample(1, 1, FileFacts("a.jpg", 1, 1))
    tasks = load_tasks(shipped("tasks"))

    async def inference(_scope: object, _receive: object, _send: object) -> None:
        raise ConnectionError

    tagger = ModelTagger(own_server(inference), lambda: tasks, decoding, pauses_s=())
    datasets = Datasets(tmp_path / "datasets", tagger, decoding)
    waiting = [
        asyncio.ensure_future(work)
        for work in (
            Pictures(decoding).prepared(photograph(), "file", max_side=99, jpeg_quality=90),
            datasets.thumbnails.get(tmp_path, sample, "small"),
            tagger.tag(Wish("tags@1"), tmp_path, sample, place()),
        )
    ]
    await asyncio.to_thread(eventually, lambda: decoding.waiting == len(waiting))
    assert not any(each.done() for each in waiting)
    go_on.set()
    await asyncio.wait(waiting)
    await datasets.aclose()


def test_the_parts_of_a_server_share_the_turns() -> None:
    """What is added to it is given the same ones."""
    given = {id(each.keywords["decoding"]) for each in extensions() if isinstance(each, partial)}
    assert len(given) == 1
