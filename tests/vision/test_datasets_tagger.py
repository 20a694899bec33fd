"""One sample's tags from a model: whose fault a failure is, and what is asked again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from photographs import photograph
from rolecall.errors import BadRequest
from rolecall.gateway.caller import Anyone, caller_of
from rolecall.vision.datasets_records import FileFacts, Sample, Wish
from rolecall.vision.datasets_tagger import ModelTagger
from rolecall.vision.decoding import Decoding
from rolecall.vision.jobs import Interrupted, NothingWorks, SampleFailed, Tagged
from rolecall.vision.tasks import load_tasks
from tagging import TAGS, own_server, place, task_file

Answer = tuple[int, dict[str, Any]]


def said(text: str) -> Answer:
    return 200, {"model": "m", "choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


def error(status: int, code: str) -> Answer:
    return status, {"error": {"message": f"as the test says: {code}", "code": code}}


class Inference:
    """Gives one answer after the other, and the last one again and again; None breaks off."""

    def __init__(self, *answers: Answer | None) -> None:
        self.answers = list(answers)
        self.bodies: list[Any] = []
        self.callers: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        self.bodies.append(json.loads((await receive())["body"]))
        self.callers.append(caller_of(scope).name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return
        status, body = answer
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-rolecall-model", b"seer")]})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


@pytest.fixture
def tag(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that tags a photograph, or another file, with these answers of models."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tags.toml").write_text(task_file())
    words = 'title = "Words"\nrole = "words"\nparser = "keywords"\nuser = "Words?"\n'
    (tmp_path / "tasks" / "words.toml").write_text('version = "1"\n' + words)
    (tmp_path / "tasks" / "say.toml").write_text('version = "1"\ntitle = "Say"\nrole = "say"\nuser = "Say?"\n')
    tasks = load_tasks(tmp_path / "tasks")

    async def run(
        inference: Inference, data: bytes | None = None, wish: Wish | None = None, *, is_known: bool = True
    ) -> Tagged:
        (tmp_path / "a.jpg").write_bytes(photograph() if data is None else data)
        server = own_server(inference, knows_callers=is_known)
        tagger = ModelTagger(server, lambda: tasks, Decoding(), pauses_s=(0.0, 0.0))
        sample = Sample(1, 1, FileFacts("a.jpg", 1, 1))
        return await tagger.tag(wish or Wish("tags@1"), tmp_path, sample, place())

    run.tagger = ModelTagger(own_server(Inference(None)), lambda: tasks, Decoding())  # type: ignore[attr-defined]
    return run


async def test_a_picture_is_tagged(tag: Callable[..., Any]) -> None:
    """By the task's role, or by the model that the job names; the tags are those of the vocabulary."""
    inference = Inference(said(json.dumps({**TAGS, "clarity": "purple"})))
    assert await tag(inference) == Tagged(("dark", "indoor"), "seer")
    await tag(inference, wish=Wish("tags@1", model="other"))
    assert [body["model"] for body in inference.bodies] == ["role:tags", "other"]


async def test_keywords_are_tags(tag: Callable[..., Any]) -> None:
    """A task whose answer is a list of words tags by them."""
    assert await tag(Inference(said("boat, sea, boat")), wish=Wish("words@1")) == Tagged(("boat", "sea"), "seer")


@pytest.mark.parametrize("failure", [None, error(502, "engine_error"), error(503, "model_start_failed")])
async def test_an_engine_that_failed_is_asked_again(tag: Callable[..., Any], failure: Answer | None) -> None:
    """Twice; then it is the sample's failure, by the engine."""
    inference = Inference(failure, failure, said(json.dumps(TAGS)))
    assert (await tag(inference)).tags == ("dark", "indoor", "sharp")
    broken = Inference(failure)
    with pytest.raises(SampleFailed) as failed:
        await tag(broken)
    assert (failed.value.by_engine, len(broken.bodies)) == (True, 3)


async def test_a_request_that_is_wrong_is_not_asked_again(tag: Callable[..., Any]) -> None:
    """It would be as wrong the next time."""
    inference = Inference(error(400, "context_length_exceeded"))
    with pytest.raises(SampleFailed, match="context_length_exceeded"):
        await tag(inference)
    assert len(inference.bodies) == 1


@pytest.mark.parametrize(
    "answer",
    [
        error(404, "no_model_for_role"),
        error(403, "permission_denied"),
        error(400, "unsupported_input"),
        error(429, "rate_limit_exceeded"),
    ],
)
async def test_what_all_samples_would_meet(tag: Callable[..., Any], answer: Answer) -> None:
    """No model, no right, no sight, no tokens left: nothing works."""
    with pytest.raises(NothingWorks, match="as the test says"):
        await tag(Inference(answer))


async def test_the_servers_end_is_no_failure(tag: Callable[..., Any]) -> None:
    """The sample is left for the next start."""
    with pytest.raises(Interrupted):
        await tag(Inference(error(503, "shutting_down")))


async def test_rubbish_is_the_models_failure(tag: Callable[..., Any]) -> None:
    """The model is named; it is not taken for an engine that fails."""
    with pytest.raises(SampleFailed, match=r"^seer: ") as failed:
        await tag(Inference(said("I like it!")))
    assert not failed.value.by_engine


async def test_a_picture_that_is_none_asks_nobody(tag: Callable[..., Any]) -> None:
    """It fails before a model is asked, which might have to be loaded for it."""
    inference = Inference(said(""))
    for data in (b"", b"no picture", photograph()[:500], b"<svg></svg>"):
        with pytest.raises(SampleFailed) as failed:
            await tag(inference, data)
        assert not failed.value.by_engine
    assert inference.bodies == []


async def test_a_key_or_a_task_that_is_gone(tag: Callable[..., Any]) -> None:
    """Nothing works, and it is said why."""
    with pytest.raises(NothingWorks, match="'ci'"):
        await tag(Inference(said("")), wish=Wish("tags@1", key="ci"), is_known=False)
    with pytest.raises(NothingWorks, match="no task 'gone'"):
        await tag(Inference(said("")), wish=Wish("gone@1"))
    with pytest.raises(NothingWorks, match="has become version 1 meanwhile"):
        await tag(Inference(said("")), wish=Wish("tags@0"))


def test_tasks_that_tag(tag: Callable[..., Any]) -> None:
    """Others are refused before a job begins, and so are unknown ones."""
    tagger: ModelTagger = tag.tagger  # type: ignore[attr-defined]
    assert [task.id for task in tagger.tasks()] == ["tags", "words"]
    assert tagger.wish("tags", model=None, again=True, caller=Anyone()) == Wish("tags@1", None, True)  # noqa: FBT003
    for name, words in (("say", "gives no tags"), ("tegs", "did you mean")):
        with pytest.raises(BadRequest, match=words) as refusal:
            tagger.wish(name, model=None, again=False, caller=Anyone())
        assert refusal.value.param == "task"
