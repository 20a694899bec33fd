"""OpenAI's Python client when things go wrong: what it sends again, what it gives up."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from clients.entries import HELLO, PASSING, REFUSING, statuses
from harness import Rolecall, eventually, fake_entry, words

pytestmark = pytest.mark.long


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The client with its defaults: two retries."""
    with openai.OpenAI(base_url=base_url, api_key="none") as each:
        yield each


def ask(client: openai.OpenAI, model: str, **fake: Any) -> Any:
    """Return the raw response to a request; ``fake`` sets the fake engine's knobs."""
    return client.chat.completions.with_raw_response.create(model=model, messages=HELLO, extra_body={"fake": fake})


def text(raw: Any) -> str:
    """Return what a raw response says."""
    return str(raw.parse().choices[0].message.content)


# -- retries


@pytest.mark.parametrize(("status", "seen"), PASSING.items())
def test_a_failure_that_passes_is_sent_again(client: openai.OpenAI, server: Rolecall, status: int, seen: int) -> None:
    """The engine fails once: the client comes again by itself and gets its answer."""
    answer = ask(client, f"fails-{status}")
    assert text(answer) == words(8)
    assert statuses(server, f"fails-{status}", answer.headers["x-request-id"]) == [seen, 200]


@pytest.mark.parametrize(("status", "seen"), REFUSING.items())
def test_a_refusal_is_sent_once(client: openai.OpenAI, server: Rolecall, status: int, seen: int) -> None:
    """What the engine refuses is raised at once, with the engine's words."""
    with pytest.raises(openai.APIStatusError, match="fake engine error") as refusal:
        ask(client, f"refuses-{status}")
    assert refusal.value.status_code == seen
    assert statuses(server, f"refuses-{status}", refusal.value.request_id) == [seen]


def test_a_full_queue_is_waited_out(tmp_path: Path) -> None:
    """With 429 and Retry-After the client comes again when there is room."""
    entry = fake_entry("busy", max_parallel=1)
    with (
        Rolecall(tmp_path, [entry], settings={"max_queue": 1}) as server,
        openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none") as client,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(ask, client, "busy", tokens=8, token_delay_s=0.1)
        server.await_in_flight("busy", 1)
        second = pool.submit(ask, client, "busy")
        server.await_waiting(1)
        third = ask(client, "busy")
        assert [text(each) for each in (first.result(), second.result(), third)] == [words(8)] * 3
        lines = server.log_lines(4)
    assert sorted(line["status"] for line in lines) == [200, 200, 200, 429]


def test_a_load_that_takes_longer_than_one_request(tmp_path: Path) -> None:
    """After max_wait_s an answer that is not streamed is 503 with the time to come back: the client does."""
    with (
        Rolecall(tmp_path, [fake_entry("m", "--load-s", "2")], settings={"max_wait_s": 1}) as server,
        openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none") as client,
    ):
        answer = ask(client, "m")
        assert text(answer) == words(8)
        *early, last = statuses(server, "m", answer.headers["x-request-id"])
    assert (set(early), last) == ({503}, 200)


def test_a_model_that_cannot_start(tmp_path: Path) -> None:
    """After its retries the client raises what the engine said when it ended."""
    entry = fake_entry("broken", "--fail-start", "no such tensor")
    with (
        Rolecall(tmp_path, [entry]) as server,
        openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=1) as client,
        pytest.raises(openai.InternalServerError, match="no such tensor") as failure,
    ):
        ask(client, "broken")
    assert (failure.value.status_code, failure.value.code) == (503, "model_start_failed")


def test_an_engine_that_dies_in_a_stream(client: openai.OpenAI) -> None:
    """The client raises an error; it never takes half an answer for a whole one."""
    options: Any = {"stream": True, "extra_body": {"fake": {"drop_after_tokens": 3}}}
    chunks = client.chat.completions.create(model="fake", messages=HELLO, **options)
    seen: list[str] = []
    with pytest.raises(openai.APIError, match="engine") as failure:
        seen.extend(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert failure.value.code == "engine_error"
    assert "".join(seen) in {"", words(3)}


def test_no_event_has_an_id(client: openai.OpenAI, server: Rolecall) -> None:
    """Streams hold data and comments with a text, and nothing on which the client's parser has stumbled."""
    with client.chat.completions.with_streaming_response.create(
        model="fake", messages=HELLO, stream=True, extra_body={"fake": {"first_token_delay_s": 0.5}}
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert {line[:2] for line in lines} <= {"da", ": "}


# -- giving up


def test_a_client_that_times_out(client: openai.OpenAI, server: Rolecall) -> None:
    """The time limit of the client ends the engine's work, at each of its tries."""
    client.models.list()  # a connection
    before = _aborted(server)
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.3, max_retries=1), "fake", head_delay_s=60)
    eventually(lambda: _aborted(server) == before + 2)
    server.await_in_flight("fake", 0)


def _aborted(server: Rolecall) -> int:
    server.http.post("/v1/models/fake/load")
    count: int = server.stats("fake")["aborted"]
    return count
