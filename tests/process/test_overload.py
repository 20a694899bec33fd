"""More than fits: two models for one place, a full queue, clients that vanish in the middle of it all."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from harness import (
    CHAT,
    Rolecall,
    eventually,
    fake_entry,
    http_request,
    new_agent,
    prompt,
    rest_of,
    text_of,
    words,
)

REQUESTS, CLIENTS = 1000, 16
PAIR = (
    fake_entry("left", "--load-s", "0.05", vram_estimate_mb=6000, roles=["either"]),
    fake_entry("right", "--load-s", "0.05", vram_estimate_mb=6000, roles=["either"]),
)


def ask(server: Rolecall, client: httpx.Client, model: str, count: int, *, streamed: bool) -> str | None:
    """Send one request and return what is wrong with the answer."""
    body = prompt(model, fake={"tokens": count}, stream=streamed)
    if not streamed:
        whole = client.post(CHAT, json=body)
        fine = whole.status_code == 200 and whole.json()["choices"][0]["message"]["content"] == words(count)
        return None if fine else whole.text
    with client.stream("POST", CHAT, json=body) as answer:
        if answer.status_code != 200:
            return answer.read().decode()
        events, is_whole = rest_of(answer.iter_lines())
    fine = is_whole and events[-1] == "[DONE]" and text_of(events) == words(count)
    return None if fine else str(events[-1:])


@pytest.mark.long
def test_a_thousand_requests_over_two_models_that_do_not_fit_together(tmp_path: Path) -> None:
    """Sixteen clients get a thousand whole answers, streamed and not, and leave a thousand lines and nothing else."""
    problems: list[str] = []
    with Rolecall(tmp_path, PAIR, profile="development", settings={"max_overtake_s": 1}) as server:

        def work(number: int) -> None:
            choice = random.Random(number)
            with httpx.Client(base_url=server.base_url, timeout=60, trust_env=False) as client:
                for at in range(number, REQUESTS, CLIENTS):
                    model = choice.choice(["left", "right", "right", "role:either"])
                    problem = ask(server, client, model, choice.randrange(1, 40), streamed=at % 2 == 0)
                    problems.extend([problem] if problem else [])

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(work, range(CLIENTS)))
        assert problems == []
        health = server.get("/health")
        assert (health["queue"], health["log_lines_dropped"]) == (0, 0)
        assert all(row["in_flight"] == 0 for row in server.get("/v1/models/health")["data"])
        engines = server.engine_processes()
        assert len(engines) == 1
        assert server.stop() == 0
        lines = server.log_lines()
    assert len(lines) == len({line["request_id"] for line in lines}) == REQUESTS
    assert {(line["status"], line["error"], line["finish_reason"]) for line in lines} == {(200, None, "stop")}
    assert Counter(line["stream"] for line in lines) == {True: REQUESTS // 2, False: REQUESTS // 2}
    assert {line["model"] for line in lines} == {"left", "right"}


def test_a_full_queue_turns_the_newest_away(tmp_path: Path) -> None:
    """One more than max_queue is 429 with a Retry-After that clients obey; those who wait are served."""
    with (
        Rolecall(tmp_path, [fake_entry("narrow", max_parallel=1)], settings={"max_queue": 3}) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        first = pool.submit(server.chat, "narrow", fake={"head_delay_s": 0.6})
        server.await_in_flight("narrow", 1)
        waiting = [pool.submit(server.chat, "narrow") for _ in range(3)]
        server.await_waiting(3)
        refused = server.chat("narrow")
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert refused.json()["error"]["code"] == "queue_full"
        assert server.line_of(refused)["status"] == 429
        assert [each.result().status_code for each in (first, *waiting)] == [200] * 4


def test_a_stream_of_requests_for_one_model_does_not_starve_another(tmp_path: Path) -> None:
    """However many ask for the loaded model, a request for another one is served soon after max_overtake_s."""
    with Rolecall(tmp_path, PAIR, profile="development", settings={"max_overtake_s": 0.5}) as server:
        enough = threading.Event()
        problems: list[str] = []

        def keep_asking(pause_s: float) -> None:
            with httpx.Client(base_url=server.base_url, timeout=60, trust_env=False) as client:
                while not enough.is_set():
                    answer = client.post(CHAT, json=prompt("left", fake={"head_delay_s": pause_s}))
                    problems.extend([] if answer.status_code == 200 else [answer.text])

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(keep_asking, pause_s) for pause_s in (0.07, 0.11, 0.13, 0.17)]
            server.await_in_flight("left", 4)
            started = time.monotonic()
            assert server.chat("right").status_code == 200
            waited_s = time.monotonic() - started
            enough.set()
            for each in asking:
                each.result()
        assert problems == []
        assert waited_s < 5


def test_two_clients_that_alternate_models_are_both_served(tmp_path: Path) -> None:
    """Clients in opposite phase, each asking for the model that the other has loaded, come through without an error."""
    with Rolecall(tmp_path, PAIR, profile="development", settings={"max_overtake_s": 0.2}) as server:

        def alternate(first: int) -> list[str | None]:
            models = ["left", "right"] * 5
            with httpx.Client(base_url=server.base_url, timeout=60, trust_env=False) as client:
                return [ask(server, client, model, 5, streamed=True) for model in models[first:]]

        with ThreadPoolExecutor(2) as pool:
            assert [problem for found in pool.map(alternate, (0, 1)) for problem in found if problem] == []


def test_clients_that_leave_and_engines_that_crash_leave_nothing_behind(tmp_path: Path) -> None:
    """After a storm of disconnects, crashes and swaps every request has its line, and everything is at rest."""
    count = 60
    with Rolecall(tmp_path, PAIR, profile="development", settings={"max_overtake_s": 0.3}) as server:
        agents = [new_agent() for _ in range(count)]

        def disturb(number: int) -> None:
            choice = random.Random(number)
            fake = {"tokens": 20, "token_delay_s": 0.005}
            if number in {7, 37}:
                fake["crash_after_tokens"] = 3
            body = prompt(choice.choice(["left", "right"]), fake=fake, stream=choice.random() < 0.5)
            with server.raw(http_request(body, headers={"User-Agent": agents[number]})) as connection:
                connection.settimeout(choice.uniform(0.01, 0.5) if number % 3 == 0 else 30)
                try:
                    while connection.recv(65536):
                        pass
                except TimeoutError:
                    return

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(disturb, range(count)))
        eventually(lambda: server.get("/health")["queue"] == 0)
        eventually(lambda: all(row["in_flight"] == 0 for row in server.get("/v1/models/health")["data"]))
        lines = server.log_lines(count)
        assert Counter(line["client"].split(" ")[1] for line in lines) == Counter(agents)
        assert {line["status"] for line in lines} <= {200, 499, 502, 503}
        for model in ("left", "right"):
            eventually(lambda model=model: server.chat(model).status_code == 200)  # type: ignore[misc]
        assert server.get("/health")["reserved_mb"] == 6000
        assert "Traceback" not in server.words()
