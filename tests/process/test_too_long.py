"""A text that no tokenizer could make short enough for a model is refused before an engine has to look at it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from harness import Rolecall, fake_entry, prompt

LONG = "x" * 600_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall; of one model the registry says how long its context is, of the other its engine alone."""
    entries = [
        fake_entry("listed", context_length=1000, role_priority={"sort": 10}),
        fake_entry("large", context_length=100_000, role_priority={"sort": 90}),
        fake_entry("asked", "--ctx-size", "1000", "--parallel", "1"),
    ]
    with Rolecall(tmp_path_factory.mktemp("long"), entries) as running:
        yield running


def refusal(answer: httpx.Response) -> dict[str, Any]:
    """Return the error, which says how many characters there may be."""
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "is 1000 tokens" in error["message"]
    assert "more than 256000 characters" in error["message"]
    return error


def test_no_model_is_loaded_for_it(server: Rolecall) -> None:
    """What the registry says is enough; white space may be merged, so it is for the engine."""
    before = server.state_of("listed")
    assert refusal(server.chat("listed", LONG))["param"] == "messages"
    assert server.state_of("listed") == before
    assert server.chat("listed", " " * len(LONG)).status_code == 200
    assert server.state_of("listed") != before


def test_a_larger_model_of_the_role_may_take_it(server: Rolecall) -> None:
    """It is not refused by the smallest one's context."""
    answer = server.chat("role:sort", LONG)
    assert (answer.status_code, answer.headers["x-rolecall-model"]) == (200, "large")


def test_what_the_engine_says_of_its_context_is_enough(server: Rolecall) -> None:
    """Where the registry says nothing, the model is loaded, and the engine is not sent the text."""
    assert server.chat("asked", "hi").status_code == 200
    before = server.stats("asked")["started"]
    refusal(server.chat("asked", LONG))
    assert server.stats("asked")["started"] == before


def test_an_engine_that_cuts_it_gets_it(server: Rolecall) -> None:
    """A client may ask vLLM to cut its prompt."""
    answer = server.http.post("/v1/chat/completions", json=prompt("listed", LONG, truncate_prompt_tokens=100))
    assert answer.status_code == 200
