"""One task on one picture: which questions go out, and what is made of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fakes import chat_client
from photographs import photograph
from rolecall.settings import shipped
from rolecall.vision.ask import Asker, AskError
from rolecall.vision.photos import prepare
from rolecall.vision.runner import Outcome, run_task
from rolecall.vision.tasks import WrongVariable, load_tasks

TASKS = load_tasks(shipped("tasks"))
PHOTO = prepare(photograph(4))
QUESTIONS = TASKS["tags"].model_copy(update={"mode": "questions"})
SAID = {"How is the light": "Dark.", "How clear": "crisp", "Where was": "indoor", "What weather": "unknown"}


def by_question(body: dict[str, Any]) -> str:
    words = body["messages"][-1]["content"][-1]["text"]
    return next((said for start, said in SAID.items() if words.startswith(start)), "teeming")


async def run(
    answer: Callable[[dict[str, Any]], str | httpx.Response], task: Any, *variables: Any, **options: Any
) -> tuple[Outcome, list[dict[str, Any]]]:
    """The outcome, and the bodies that went out."""
    bodies: list[dict[str, Any]] = []

    def noted(body: dict[str, Any]) -> str | httpx.Response:
        bodies.append(body)
        return answer(body)

    async with chat_client(noted) as client:
        return await run_task(Asker(client), task, PHOTO, *variables, **options), bodies


async def test_a_text() -> None:
    """A caption is one request with the picture first, for the task's role, with its parameters."""
    outcome, (body,) = await run(lambda _: "A dog.", TASKS["caption"], {"language": "French"})
    assert (outcome.value, outcome.model, outcome.problem) == ("A dog.", "the model", None)
    assert (outcome.task_id, outcome.version, outcome.requests) == ("caption", "1", 1)
    assert (body["model"], body["temperature"], body["stream"]) == ("role:caption", 0.2, False)
    system, user = body["messages"]
    assert system["role"] == "system"
    picture, words = user["content"]
    assert picture == {"type": "image_url", "image_url": {"url": PHOTO.data_url}}
    assert "in French" in words["text"]
    assert "response_format" not in body


async def test_another_model_and_confidence() -> None:
    """Who names a model gets it, and who wants to know how sure it is has the engine asked."""
    _, (body,) = await run(lambda _: "A dog.", TASKS["caption"], model="mine", wants_confidence=True)
    assert (body["model"], body["logprobs"]) == ("mine", True)


async def test_tags_in_one_request() -> None:
    """Structured tags ask once, with a schema; the prompt lists the words for engines that know none."""
    said = {"lighting": "Dark", "clarity": "sharp", "setting": "indoor", "weather": ["unknown"], "density": "teeming"}
    outcome, (body,) = await run(lambda _: json.dumps(said), TASKS["tags"])
    assert outcome.tags == ("dark", "sharp", "indoor")
    assert outcome.missing == ("density",)
    assert [each.text for each in outcome.discarded] == ["teeming"]
    assert body["response_format"]["type"] == "json_schema"
    assert "- density: " in body["messages"][-1]["content"][-1]["text"]


async def test_tags_one_by_one() -> None:
    """Five questions differ in their last part alone, and go to the model that answered first."""
    outcome, bodies = await run(by_question, QUESTIONS)
    assert outcome.tags == ("dark", "sharp", "indoor")
    assert (outcome.missing, outcome.requests, outcome.usage["total_tokens"]) == (("density",), 5, 60)
    assert [body["model"] for body in bodies] == ["role:vision_general", *["the model"] * 4]
    starts = []
    for body in bodies:
        words = body["messages"][-1]["content"].pop()["text"]
        assert "{" not in words
        starts.append(json.dumps(body["messages"]))
    assert len(set(starts)) == 1
    assert words.endswith("Answer with one of: empty, sparse, moderate, crowded. Nothing else, no sentence.")


@pytest.mark.parametrize("status", [403, 404])
async def test_who_may_not_name_models_asks_by_role(status: int) -> None:
    """A key for roles alone gets its tags all the same."""

    def answer(body: dict[str, Any]) -> str | httpx.Response:
        return by_question(body) if body["model"].startswith("role:") else httpx.Response(status, json={})

    outcome, bodies = await run(answer, QUESTIONS)
    assert outcome.tags == ("dark", "sharp", "indoor")
    assert (outcome.requests, len(bodies)) == (5, 9)


async def test_an_error_of_one_question_is_one_of_the_task() -> None:
    """A picture of which only some questions were answered is not half tagged."""

    def answer(body: dict[str, Any]) -> str | httpx.Response:
        words = body["messages"][-1]["content"][-1]["text"]
        return "dark" if "light" in words else httpx.Response(502, json={"error": {"message": "it died"}})

    with pytest.raises(AskError, match="it died"):
        await run(answer, QUESTIONS)


async def test_rubbish_is_told() -> None:
    """An answer without any value comes with the reason, and as it was, so that it can be looked at."""
    outcome, _ = await run(lambda _: "", TASKS["caption"])
    assert (outcome.value, outcome.problem) == (None, "the answer is empty")
    outcome, _ = await run(lambda _: "blah", TASKS["tags"])
    assert (outcome.value, outcome.tags, outcome.text) == (None, (), "blah")
    assert outcome.problem == "the answer names no dimension and no tag"


async def test_an_answer_that_was_cut_says_so() -> None:
    """A model that thinks until its limit has not answered; the reason names the limit."""
    choice = {"message": {"content": "<think>hm"}, "finish_reason": "length"}
    outcome, _ = await run(lambda _: httpx.Response(200, json={"choices": [choice]}), TASKS["caption"])
    assert outcome.problem == "the answer is empty; it was cut off at max_tokens"


async def test_narration_has_the_measured_colours() -> None:
    """The colours of the picture are in the prompt, unless others are given."""
    _, (measured,) = await run(lambda _: "Blue over green, calm.", TASKS["narration"])
    assert "On the whole: " in measured["messages"][-1]["content"][-1]["text"]
    _, (given,) = await run(lambda _: "Blue over green, calm.", TASKS["narration"], {"colours": "only mauve"})
    words = given["messages"][-1]["content"][-1]["text"]
    assert "only mauve" in words
    assert "On the whole" not in words


async def test_the_result_of_a_check_goes_in_as_it_is() -> None:
    """JSON with braces is no template."""
    check = '{"verdict": "{language}", "a": {"b": 1}}'
    _, (body,) = await run(lambda _: "It is monochrome, by {b}.", TASKS["mono_interpretation"], {"check": check})
    assert check in body["messages"][-1]["content"][-1]["text"]
    with pytest.raises(WrongVariable, match="needs the variable 'check'"):
        await run(lambda _: "x", TASKS["mono_interpretation"])
