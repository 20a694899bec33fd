"""Limits of API keys over a whole rolecall: requests, tokens, models and roles; what was used outlives the process."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from harness import CHAT, Rolecall, eventually, fake_entry, http_request, new_agent, prompt, read_to_end, words
from rolecall.core.keys import hashed
from rolecall.runtime.usage import USAGE, read_usage

KEYS: Mapping[str, Mapping[str, Any]] = {
    "rc-free": {},
    "rc-few": {"requests_per_minute": 2},
    "rc-tokens": {"tokens_per_day": 20},
    "rc-bound": {"models": ["one"]},
    "rc-role": {"roles": ["sort"]},
    "rc-admin": {"scopes": ["admin"]},
}


@pytest.fixture
def rolecall(tmp_path: Path) -> Rolecall:
    """Return a rolecall with keys, not started yet."""
    entries = (fake_entry("one", role_priority={"sort": 1}), fake_entry("two", role_priority={"sort": 2, "other": 1}))
    made = Rolecall(tmp_path, entries, settings={"api_keys_file": "keys.json"})
    rows = [{"name": key[3:], "sha256": hashed(key.encode()), **fields} for key, fields in KEYS.items()]
    path = made.config_dir / "keys.json"
    path.write_text(json.dumps({"version": 1, "keys": rows}))
    path.chmod(0o600)
    return made


def ask(running: Rolecall, key: str, model: str = "one", **body: Any) -> httpx.Response:
    return running.http.post(CHAT, json=prompt(model, **body), headers={"Authorization": f"Bearer {key}"})


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_requests_a_minute(rolecall: Rolecall) -> None:
    """One too many is a 429 with the time to wait; other keys are not held up; the log names the key."""
    with rolecall as running:
        assert [ask(running, "rc-few").status_code for _ in range(2)] == [200, 200]
        refused = ask(running, "rc-few")
        error = error_of(refused, 429)
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert ask(running, "rc-free").status_code == 200
        line = running.line_of(refused)
        assert (line["status"], line["key"], line["model"]) == (429, "few", None)


BIG = b"x" * (8 * 2**20)


def refusals_of_big_bodies(running: Rolecall, path: str, content_type: str, key: str) -> Iterator[tuple[int, bytes]]:
    """Send large bodies that are no JSON and no upload as three kinds of clients do; return what each is told."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": content_type}
    answer = running.http.post(path, content=BIG, headers=headers)
    yield answer.status_code, answer.content
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.request("POST", path, BIG, headers)
    plain = connection.getresponse()
    yield plain.status, plain.read()
    connection.close()
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    asks = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BIG)}\r\nExpect: 100-continue\r\n{head}\r\n"
    )
    with running.raw(asks.encode()) as raw:
        told = read_to_end(raw)
    yield int(told[9:12]), told.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("path", "content_type"),
    [(CHAT, "application/json"), ("/v1/audio/transcriptions", "multipart/form-data; boundary=x")],
)
def test_one_too_many_is_refused_before_its_body_is_read(rolecall: Rolecall, path: str, content_type: str) -> None:
    """A body that could not even be read is a 429, which clients get that are still sending; each has one line."""
    with rolecall as running:
        assert [ask(running, "rc-few").status_code for _ in range(2)] == [200, 200]
        lines = len(running.log_lines(2))
        for status, content in refusals_of_big_bodies(running, path, content_type, "rc-few"):
            assert (status, json.loads(content)["error"]["code"]) == (429, "rate_limit_exceeded")
        told = running.log_lines(lines + 3)[lines:]
        assert [(line["status"], line["key"], line["bytes_in"]) for line in told] == [(429, "few", 0)] * 3


def test_a_connection_goes_on_after_a_refusal(rolecall: Rolecall) -> None:
    """What was sent of a refused body is not taken for the next request."""
    with rolecall as running:
        assert [ask(running, "rc-few").status_code for _ in range(2)] == [200, 200]
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
        connection.connect()
        socket, told = connection.sock, []
        for key in ("rc-few", "rc-free"):
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            connection.request("POST", CHAT, json.dumps(prompt("one")), headers)
            answer = connection.getresponse()
            answer.read()
            told.append((answer.status, connection.sock is socket))
        connection.close()
        assert told == [(429, True), (200, True)]


def test_tokens_a_day(rolecall: Rolecall) -> None:
    """Prompt and answer count, streamed or not; OpenAI's client does not try again until tomorrow."""
    with rolecall as running:
        first = ask(running, "rc-tokens", stream=True)
        assert first.status_code == 200
        assert ask(running, "rc-tokens", stream=False).status_code == 200
        eventually(lambda: ask(running, "rc-tokens").status_code == 429)
        client = openai.OpenAI(base_url=f"{running.base_url}/v1", api_key="rc-tokens")
        with pytest.raises(openai.RateLimitError, match="tokens today, and may use 20 a day"):
            client.chat.completions.create(model="one", messages=[{"role": "user", "content": "hi"}])
        assert len(eventually(lambda: lines_of(running, "OpenAI/Python"))) == 1


def lines_of(running: Rolecall, agent: str) -> list[dict[str, Any]]:
    """Return the lines of a client that is called so."""
    return [line for line in running.log_lines() if agent in line["client"]]


SLOW: dict[str, Any] = {"tokens": 1000, "token_delay_s": 0.02}


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
def test_who_leaves_early_pays_too(rolecall: Rolecall, options: Any) -> None:
    """A client that closes its connection before the usage chunk has used the prompt and what it saw."""
    with rolecall as running:
        body = prompt("one", words(50), stream=True, stream_options=options, fake=SLOW)
        with running.http.stream("POST", CHAT, json=body, headers={"Authorization": "Bearer rc-free"}) as answer:
            next(line for line in answer.iter_lines() if "w3" in line)
        line = running.line_of(answer)
        assert (line["error"].partition(":")[0], line["prompt_tokens"]) == ("client_gone", None)
    (used,) = read_usage(running.state / USAGE).values()
    assert (used.requests, 30 < used.tokens < 500) == (1, True), used


def engine_has_one(running: Rolecall) -> bool:
    """Whether the engine has a request in hand; rolecall is asked for its port as an admin."""
    rows = running.http.get("/v1/models/health", headers={"Authorization": "Bearer rc-admin"}).json()["data"]
    port = next((row.get("port") for row in rows if row["model"] == "one" and row["in_flight"]), None)
    return port is not None and httpx.get(f"http://127.0.0.1:{port}/stats", trust_env=False).json()["in_flight"] == 1


def test_who_leaves_before_a_whole_answer_pays_the_prompt(rolecall: Rolecall) -> None:
    """The engine has read it, though nobody has seen a word."""
    agent = new_agent()
    headers = {"Authorization": "Bearer rc-free", "User-Agent": agent}
    with rolecall as running:
        with running.raw(http_request(prompt("one", words(50), fake=SLOW), headers=headers)):
            eventually(lambda: engine_has_one(running))
        assert running.line_by(agent)["status"] == 499
    (used,) = read_usage(running.state / USAGE).values()
    assert (used.requests, 30 < used.tokens < 500) == (1, True), used


def test_a_wish_for_usage_is_a_boolean(rolecall: Rolecall) -> None:
    """Anything else might be read one way here, and another way by an engine."""
    with rolecall as running:
        refused = ask(running, "rc-free", stream=True, stream_options={"include_usage": "false"})
        assert error_of(refused, 400)["param"] == "stream_options.include_usage"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_used_outlives_the_process(rolecall: Rolecall, end: str) -> None:
    """After a stop all of it, after `kill -9` all but the last seconds."""
    with rolecall as running:
        for _ in range(2):
            assert ask(running, "rc-few").status_code == 200
        while ask(running, "rc-tokens").status_code == 200:
            pass
        if end == "kill":
            eventually(lambda: len(read_usage(running.state / USAGE)) == 2)
            eventually(lambda: max(used.requests for used in read_usage(running.state / USAGE).values()) >= 2)
            running.kill()
    with rolecall as running:
        assert error_of(ask(running, "rc-few"), 429)["code"] == "rate_limit_exceeded"
        assert "tokens today" in error_of(ask(running, "rc-tokens"), 429)["message"]


def test_models_and_roles(rolecall: Rolecall) -> None:
    """A key that is bound to a model gets it for a role too; what it may not use is a 403, and starts nothing."""
    with rolecall as running:
        assert ask(running, "rc-free", "role:sort").headers["x-rolecall-model"] == "two"
        assert ask(running, "rc-bound", "role:sort").headers["x-rolecall-model"] == "one"
        assert ask(running, "rc-role", "role:sort").status_code == 200
        refusals = (("bound", "two"), ("bound", "role:other"), ("role", "one"), ("role", "role:other"))
        for name, model in refusals:
            refused = ask(running, f"rc-{name}", model)
            assert error_of(refused, 403)["code"] == "permission_denied"
            assert running.line_of(refused)["key"] == name
        assert error_of(ask(running, "rc-admin"), 403)["message"].endswith("needs inference.")
        assert error_of(ask(running, "rc-free", "nobody"), 404)["code"] == "model_not_found"
        # A bound key cannot find out which names there are: an unknown one is refused in the words of a forbidden one.
        for key, forbidden, unknown in (("rc-bound", "two", "tow"), ("rc-role", "role:other", "role:othre")):
            words = error_of(ask(running, key, forbidden), 403)["message"]
            assert error_of(ask(running, key, unknown), 403)["message"] == words.replace("'other'", "'othre'")
        query: Any = {"params": {"role": "othre"}, "headers": {"Authorization": "Bearer rc-role"}}
        assert error_of(running.http.get("/v1/models/select_by_role", **query), 403)
        path = "/v1/models/tow"
        shown = running.http.get(path, headers={"Authorization": "Bearer rc-bound"})
        assert "two" not in error_of(shown, 403)["message"]
