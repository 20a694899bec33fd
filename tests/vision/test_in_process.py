"""Questions within the process that serves: the same way as over HTTP, bound by the caller's key, ended when left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from harness import Rolecall, eventually, fake_entry, picture
from rolecall.core.keys import ApiKey
from rolecall.gateway.caller import Anyone, Caller, KeyHolder
from rolecall.gateway.server import Gateway, running_gateway
from rolecall.runtime.roster import load_roster
from rolecall.runtime.usage import UsageBook
from rolecall.settings import load_settings
from rolecall.vision.ask import Asker, AskError, Question, Unreachable
from rolecall.vision.in_process import client_of

SEES = {"capabilities": ["text", "vision"], "roles": ["caption"]}
ENTRIES = [fake_entry("eye", "--mmproj", "x", **SEES), fake_entry("blind", capabilities=["text"])]


@asynccontextmanager
async def gateway_in(folder: Path) -> AsyncIterator[Gateway]:
    """A whole rolecall without a socket, with fake engines."""
    written = Rolecall(folder, ENTRIES)
    settings = load_settings(
        {"config_dir": written.config_dir, "state_dir": written.state, "log_path": written.log_path}, {}
    )
    async with running_gateway(load_roster(settings)) as gateway:
        yield gateway


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def question(model: str = "role:caption", **parameters: Any) -> Question:
    content = [picture(), {"type": "text", "text": "What is it?"}]
    return Question(model, [{"role": "user", "content": content}], parameters, "caption", "7")


@contextmanager
def holder(tmp_path: Path, **limits: Any) -> Iterator[Caller]:
    usage = UsageBook(tmp_path / "usage.json")
    yield KeyHolder(ApiKey(name="bob", sha256="0" * 64, **limits), usage)
    usage.close()


async def test_it_goes_the_whole_way(tmp_path: Path) -> None:
    """A question starts the model, is answered, and has its line in the log, with prompt id and version."""
    async with gateway_in(tmp_path) as gateway, client_of(gateway.inference, Anyone()) as client:
        reply = await Asker(client).ask(question(fake={"tokens": 2}))
    assert (reply.text, reply.model, reply.headers["x-rolecall-role"]) == ("w0 w1", "eye", "caption")
    (line,) = lines(tmp_path)
    assert (line["request_id"], line["prompt_id"], line["prompt_version"]) == (reply.request_id, "caption", "7")
    assert (line["images"], line["model"], line["key"], line["status"]) == (1, "eye", None, 200)


async def test_refusals_are_those_of_the_server(tmp_path: Path) -> None:
    """A model that sees nothing, and one that there is not, are refused before anything is loaded."""
    async with gateway_in(tmp_path) as gateway, client_of(gateway.inference, Anyone()) as client:
        for model, status, code in (("blind", 400, "unsupported_input"), ("nobody", 404, "model_not_found")):
            with pytest.raises(AskError) as caught:
                await Asker(client).ask(question(model))
            assert (caught.value.status, caught.value.code) == (status, code)


async def test_a_key_bounds_it(tmp_path: Path) -> None:
    """Who asks on behalf of a key may do what the key may, uses up what it has, and is named in the log."""
    async with gateway_in(tmp_path) as gateway:
        with holder(tmp_path, roles=["chat"]) as caller:
            async with client_of(gateway.inference, caller) as client:
                with pytest.raises(AskError) as caught:
                    await Asker(client).ask(question())
        assert caught.value.status == 403
        with holder(tmp_path, requests_per_minute=1) as caller:
            async with client_of(gateway.inference, caller) as client:
                await Asker(client).ask(question())
                with pytest.raises(AskError) as caught:
                    await Asker(client, patience_s=0).ask(question())
        assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert {line["key"] for line in lines(tmp_path)} == {"bob"}


async def test_who_is_cancelled_has_left(tmp_path: Path) -> None:
    """A question that is given up ends the engine's work, and the log says that the client left."""
    async with gateway_in(tmp_path) as gateway, client_of(gateway.inference, Anyone()) as client:
        await Asker(client).ask(question())
        port = next(row.port for row in gateway.services.supervisor.status() if row.model.name == "eye")
        stats = f"http://127.0.0.1:{port}/stats"
        task = asyncio.create_task(Asker(client).ask(question(fake={"head_delay_s": 60})))
        await asyncio.to_thread(eventually, lambda: httpx.get(stats, trust_env=False).json()["in_flight"] == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(eventually, lambda: httpx.get(stats, trust_env=False).json()["aborted"] == 1)
    assert [line["status"] for line in lines(tmp_path)] == [200, 499]
    assert lines(tmp_path)[1]["error"].startswith("client_gone")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"crash_after_tokens": 1}, 502, "engine_error"),
        ({"drop_after_tokens": 1}, 502, "engine_error"),
        ({"bad_json": True}, 502, "engine_error"),
        ({"garbage": True}, 502, "engine_error"),
        ({"error_status": 500}, 502, "engine_error"),
        ({"error_status": 400}, 400, "invalid_request"),
    ],
    ids=str,
)
async def test_a_fault_of_the_engine_costs_one_question(
    tmp_path: Path, fault: dict[str, Any], status: int, code: str
) -> None:
    """An engine that is killed, breaks off or answers rubbish is an error with a code; the next question is served."""
    async with gateway_in(tmp_path) as gateway, client_of(gateway.inference, Anyone()) as client:
        with pytest.raises(AskError) as caught:
            await Asker(client).ask(question(fake=fault))
        assert (caught.value.status, caught.value.code) == (status, code)
        assert not caught.value.is_ours
        assert (await Asker(client).ask(question())).text


async def test_an_answer_that_breaks_off_is_none() -> None:
    """An application that ends without its last part has not answered."""

    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        assert (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})

    async with client_of(half, Anyone()) as client:
        with pytest.raises(Unreachable, match="the answer broke off"):
            await Asker(client).ask(question())


async def test_a_bug_comes_out() -> None:
    """What the application raises is not taken for an answer."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async with client_of(broken, Anyone()) as client:
        with pytest.raises(ZeroDivisionError):
            await Asker(client).ask(question())


async def test_any_number_at_once(tmp_path: Path) -> None:
    """Questions of several pictures run side by side on one client."""
    async with gateway_in(tmp_path) as gateway, client_of(gateway.inference, Anyone()) as client:
        asker = Asker(client)
        replies = await asyncio.gather(*(asker.ask(question(fake={"tokens": n})) for n in range(1, 30)))
    assert [len(reply.text.split()) for reply in replies] == list(range(1, 30))
