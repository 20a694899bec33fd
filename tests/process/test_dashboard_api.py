"""The endpoints behind the dashboard, of a running server: history, one request, stopping, pinning, engine output."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import Rolecall, events, eventually, fake_entry, new_agent, rest_of, upstream_entry
from insight.screen import read_events
from rolecall.core.keys import ApiKey, hashed

KEYS = (
    ApiKey(name="boss", sha256=hashed(b"rc-admin"), scopes=("inference", "admin")),
    ApiKey(name="user", sha256=hashed(b"rc-user")),
)
BOSS, USER = ({"authorization": f"Bearer rc-{name}"} for name in ("admin", "user"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    entries = (
        fake_entry("a", "--chatty=1", role_priority={"tag": 80}),
        fake_entry("b", role_priority={"tag": 70}, model_aliases=["bee"]),
        fake_entry("odd/name:1", "--chatty=1"),
        fake_entry("silent"),
        upstream_entry("far", "http://127.0.0.1:9/v1"),
    )
    with Rolecall(tmp_path_factory.mktemp("dashboard"), entries) as running:
        yield running


# -- history


def test_history_is_the_log_backwards(server: Rolecall) -> None:
    """Pages by a limit, each going on where the one before ended, and filters."""
    for number in range(7):
        server.chat("a" if number % 2 else "role:tag", headers={"user-agent": new_agent()})
    server.log_lines(7)
    lines = server.log_lines()
    first = server.get("/v1/requests", limit=3)
    rest = server.get("/v1/requests", limit=500, before=first["next"])
    assert [*first["data"], *rest["data"]] == lines[::-1]
    assert (rest["next"], rest["skipped"]) == (None, 0)
    by_role = server.get("/v1/requests", role="role:tag", status="ok", since="1h", model="?")["data"]
    assert by_role == [line for line in lines[::-1] if line["role"] == "tag" and line["status"] == 200]
    assert server.get("/v1/requests", key="nobody")["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("limit=%D9%A3", "limit"),
        (f"limit={'9' * 5000}", "limit"),
        ("status=nope", "status"),
        ("status=4xxx", "status"),
        ("since=yesterday", "since"),
        ("before=zzz", "before"),
        (f"model={'m' * 301}", "model"),
    ],
)
def test_wrong_queries_are_refused_in_words(server: Rolecall, query: str, param: str) -> None:
    """With what is wrong, and the name of it."""
    refused = server.http.get(f"/v1/requests?{query}")
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"]


def test_a_page_that_is_gone(server: Rolecall) -> None:
    """A file that is no part of the log any more is told by its code."""
    refused = server.http.get("/v1/requests", params={"before": "1-1"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "page_gone")


def test_any_query_has_an_answer(server: Rolecall) -> None:
    """Whatever is put into a query, the answer is one, or a 400 that names the parameter."""
    chosen = random.Random(8)
    letters = "0123456789-+:.TZxm*?[]&=%\x00é \n\"'/\\"
    names = ("model", "role", "status", "since", "key", "before", "limit", "lines", "follow")
    for _ in range(300):
        query = {chosen.choice(names): "".join(chosen.choices(letters, k=chosen.randrange(9))) for _ in range(3)}
        for path in ("/v1/requests", "/v1/models/silent/output"):
            if path.endswith("output"):
                query.pop("follow", None)
            answer = server.http.get(path, params=query)
            assert answer.status_code in {200, 400}, (path, query, answer.text)
            if answer.status_code == 400:
                assert answer.json()["error"]["param"] in query


# -- one request


def test_a_finished_request_with_its_decision(server: Rolecall) -> None:
    """The whole line, and who else could have served."""
    answer = server.chat("role:tag")
    line = server.line_of(answer)
    told = server.get(f"/v1/requests/{line['request_id']}")
    assert (told["state"], told["line"]) == ("finished", line)
    assert told["decision"]["words"] == line["role_selector"]
    assert [candidate["model"] for candidate in told["decision"]["candidates"]] == ["a", "b"]
    assert told["decision"]["rejected"] == []
    named = server.line_of(server.chat("a"))
    assert server.get(f"/v1/requests/{named['request_id']}")["decision"] is None


def test_no_such_request(server: Rolecall) -> None:
    """Neither one that is in no log, nor half an id, nor an odd one."""
    for name in ("req_nope", "req_", "%00", "é", "a" * 500):
        refused = server.http.get(f"/v1/requests/{name}")
        assert refused.status_code in {400, 404}
        assert "error" in refused.json()


def test_the_same_words_everywhere(server: Rolecall) -> None:
    """The log, the explanation of a role and the request opened later tell the same."""
    line = server.line_of(server.chat("role:tag"))
    explained = server.get("/v1/models/select_by_role", role="tag", explain=1)
    assert explained["reason"] == line["role_selector"]
    assert server.get(f"/v1/requests/{line['request_id']}")["decision"]["words"] == line["role_selector"]


# -- stopping


def test_a_stream_is_stopped_by_hand(server: Rolecall) -> None:
    """Its client gets the error as the last event, its line says who it was, and the model is free."""
    with server.stream("a", fake={"tokens": 100_000, "token_delay_s": 0.01}) as answer:
        lines = answer.iter_lines()
        next(lines)
        request_id = answer.headers["x-request-id"]
        eventually(lambda: server.get(f"/v1/requests/{request_id}")["state"] == "answering")
        stopped = server.http.post(f"/v1/requests/{request_id}/cancel")
        assert (stopped.status_code, stopped.json()) == (200, {"request_id": request_id, "cancelled": True})
        seen, is_whole = rest_of(lines)
    assert seen[-1]["error"]["code"] == "request_cancelled"
    assert not is_whole
    line = server.line(request_id)
    assert (line["status"], line["error"]) == (200, "request_cancelled: by hand")
    server.await_in_flight("a", 0)
    again = server.http.post(f"/v1/requests/{request_id}/cancel")
    assert (again.status_code, again.json()["error"]["type"]) == (404, "not_found_error")


def test_a_waiting_request_is_stopped_by_hand(tmp_path: Path) -> None:
    """It leaves the queue, and its client is answered with an error that nobody tries again."""
    with Rolecall(tmp_path, [fake_entry("slow", "--load-s=20")]) as server:
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(server.chat("slow")))
        asking.start()
        server.await_waiting(1)
        with server.http.stream("GET", "/v1/events") as feed:
            snapshot = next(read_events(feed.iter_lines()))
        (row,) = snapshot["live"]["data"]
        assert (row["state"], row["model"]) == ("loading", "slow")
        (waits,) = snapshot["queue"]["data"]
        assert (waits["request_id"], waits["purpose"]) == (row["request_id"], "request")
        told = server.get(f"/v1/requests/{row['request_id']}")
        assert (told["state"], told["line"]["requested_model"], told["line"]["status"]) == ("loading", "slow", None)
        assert server.http.post(f"/v1/requests/{row['request_id']}/cancel").status_code == 200
        asking.join(10)
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (400, "request_cancelled")
        server.await_waiting(0)


def test_a_load_that_is_waited_for_says_what_for(tmp_path: Path) -> None:
    """One at the start of the server is told apart from one by hand; neither is a request."""
    with Rolecall(tmp_path, [fake_entry("slow", "--load-s=20", preload=True)]) as server:
        server.await_waiting(1)
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/models/slow/load", timeout=0.5)
        with server.http.stream("GET", "/v1/events") as feed:
            snapshot = next(read_events(feed.iter_lines()))
    assert [(row["request_id"], row["purpose"]) for row in snapshot["queue"]["data"]] == [
        (None, "preload"),
        (None, "hand"),
    ]


# -- pinning


def test_a_model_is_pinned_and_unpinned(tmp_path: Path) -> None:
    """What is pinned keeps its place; the row and the timeline say so."""
    entries = [fake_entry("a"), fake_entry("b", model_aliases=["bee"])]
    with Rolecall(tmp_path, entries, profile="development") as server:
        server.chat("a")
        pinned = server.http.post("/v1/models/a/pin")
        assert (pinned.status_code, pinned.json()["pinned"], pinned.json()["state"]) == (200, True, "ready")
        refused = server.chat("b")
        assert refused.status_code == 503
        assert "pinned models (a)" in refused.json()["error"]["message"]
        assert server.http.post("/v1/models/a/unpin").json()["pinned"] is False
        assert server.chat("bee").status_code == 200
        with server.http.stream("GET", "/v1/events") as feed:
            snapshot = next(read_events(feed.iter_lines()))
        told = [(entry["event"], entry["reason"]) for entry in snapshot["timeline"]]
        assert ("pinned", "by hand") in told
        assert ("evicted", "made room for b") in told


def test_what_cannot_be_pinned(server: Rolecall) -> None:
    """A role, a model that is not there, one that somebody else runs."""
    for name, status in (("role:tag", 400), ("nope", 404), ("far", 400)):
        for verb in ("pin", "unpin"):
            refused = server.http.post(f"/v1/models/{name}/{verb}")
            assert refused.status_code == status, refused.text


# -- engine output


def test_the_last_lines_of_an_engine(server: Rolecall) -> None:
    """As a list, by name or alias; none of what was never started."""
    server.chat("odd/name:1")
    told = server.get("/v1/models/odd/name:1/output", lines=1)
    assert (told["object"], told["model"], len(told["data"])) == ("list", "odd/name:1", 1)
    assert server.get("/v1/models/silent/output")["data"] == []
    for name, status in (("role:tag", 400), ("nope", 404), ("far", 400)):
        assert server.http.get(f"/v1/models/{name}/output").status_code == status
    for lines in ("-1", "2001", "x"):
        refused = server.http.get("/v1/models/a/output", params={"lines": lines})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "lines")


def test_output_is_followed_over_a_new_start(server: Rolecall) -> None:
    """What the engine prints comes as it prints it, and a new start is told."""
    server.chat("a")
    with server.http.stream("GET", "/v1/models/a/output", params={"follow": 1, "lines": 5}) as answer:
        told = read_events(answer.iter_lines())
        first = next(told)
        assert (first["type"], first["model"]) == ("output", "a")
        assert 0 < len(first["lines"]) <= 5
        server.chat("a", text="once more")
        assert next(told)["lines"]
        server.http.post("/v1/models/a/unload")
        server.chat("a")
        restart = next(event for event in told if event["type"] == "restart")
        assert restart["lines"] or next(told)["lines"]  # it is told as soon as the file is a new one


# -- keys


def test_all_of_it_needs_an_admin(tmp_path: Path) -> None:
    """Without a key, or with another one, nothing is told and nothing done; the line names whose key stopped it."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"version": 1, "keys": [json.loads(key.model_dump_json()) for key in KEYS]}))
    path.chmod(0o600)
    with Rolecall(tmp_path / "server", [fake_entry("a")], settings={"api_keys_file": str(path)}) as server:
        gets = ("/v1/requests", "/v1/requests/req_1", "/v1/models/a/output")
        posts = ("/v1/requests/req_1/cancel", "/v1/models/a/pin", "/v1/models/a/unpin")
        for method, paths in (("GET", gets), ("POST", posts)):
            for each in paths:
                assert server.http.request(method, each).status_code == 401
                assert server.http.request(method, each, headers=USER).status_code == 403
                assert server.http.request(method, each, headers=BOSS).status_code in {200, 404}
        body: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "x"}], "stream": True}
        body["fake"] = {"tokens": 100_000, "token_delay_s": 0.01}
        with server.http.stream("POST", "/v1/chat/completions", json=body, headers=USER) as answer:
            request_id = answer.headers["x-request-id"]
            assert server.http.post(f"/v1/requests/{request_id}/cancel", headers=BOSS).status_code == 200
            text = "\n".join(rest for rest in _lines(answer))
        assert "boss" not in json.dumps(events(text))
        assert server.line(request_id)["error"] == "request_cancelled: by the key boss"


def _lines(answer: httpx.Response) -> Iterator[str]:
    try:
        yield from answer.iter_lines()
    except httpx.RemoteProtocolError:
        return


def test_prompts_are_shown_only_while_they_are_logged(tmp_path: Path) -> None:
    """In the whole of one request, and never in lists or events."""
    with Rolecall(tmp_path, [fake_entry("a")], settings={"log_prompts": True}) as server:
        line = server.line_of(server.chat("a", text="my secret"))
        assert "my secret" in json.dumps(server.get(f"/v1/requests/{line['request_id']}"))
        assert "my secret" not in json.dumps(server.get("/v1/requests"))
        with server.http.stream("GET", "/v1/events") as feed:
            assert "my secret" not in json.dumps(next(read_events(feed.iter_lines())))
    with Rolecall(tmp_path, [fake_entry("a")]) as server:
        assert "my secret" not in json.dumps(server.get(f"/v1/requests/{line['request_id']}"))
