"""Three models that swap under load on a simulated card: the page, `/metrics` and the request log tell the same.

It takes 9 s; ``ROLECALL_TEST_SCENARIO_S=60`` is a minute of it. Two would be too many: a swap is four steps, and the
table of loads has the last 500.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from browser.page import Page
from harness import Gpus, Rolecall, eventually, fake_entry
from process.test_metrics import samples, values
from simulator.nvml import ONE_16GB

SECONDS = float(os.environ.get("ROLECALL_TEST_SCENARIO_S", "9"))
ROUNDS = 3
LEAST = 20
"""Requests of a round, however slow the machine is."""
WORKERS = 5
MB = 2**20
NAMES = ("ant", "bee", "cat")
FIGURES = """
return Object.fromEntries([...document.querySelectorAll('[data-total]')].map((e) => [e.dataset.total, e.textContent]));
"""
MEMORY = """
return Object.fromEntries([...document.querySelectorAll('.gpu .legend li')].map((e) => [e.dataset.of, +e.dataset.mb]));
"""
ENTRIES = """
const rows = [...document.querySelectorAll('#timeline tbody tr')];
return rows.map((row) => [1, 2].map((number) => row.cells[number].textContent.trim()));
"""
TEXTS = """
const done = arguments[arguments.length - 1];
import('/ui/static/dashboard/format.js').then((f) => done(arguments[0].map((line) => [
  f.moment(line.ts),
  `${line.status}`,
  f.millis(line.ttft_ms),
  `${f.count(line.prompt_tokens)} → ${f.count(line.completion_tokens)}`,
  f.rate(line.tokens_per_second),
  f.millis(line.duration_ms),
])));
"""
"""What the page's own formatting makes of lines of the log."""
ROWS = """
return [...document.querySelectorAll('#history tbody tr')].map((row) => {
  const cells = [...row.cells].map((cell) => cell.textContent.trim());
  return [row.dataset.request, [cells[0], row.querySelector('.badge').textContent, ...cells.slice(5, 9)]];
});
"""


@pytest.fixture
def server(nvml_library: Path, tmp_path: Path) -> Iterator[Rolecall]:
    """Run one rolecall with three models on a card that holds two of them."""
    entries = [
        fake_entry(name, "--gpu-mb", "6000", "--load-s", "0.3", vram_estimate_mb=6000, role_priority={"talk": priority})
        for name, priority in zip(NAMES, (80, 70, 60), strict=True)
    ]
    with Gpus(nvml_library, tmp_path, ONE_16GB).rolecall(*entries) as running:
        yield running


class Load:
    """Clients that ask one model after another, now and then one that is not there, or leave before the end."""

    def __init__(self, server: Rolecall, seed: int) -> None:
        self._server = server
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(seed * 100 + number,)) for number in range(WORKERS)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._is_over.is_set():
            model = chance.choice([*NAMES, "role:talk"] * 4 + ["nobody"])
            tokens = chance.randint(2, 30)
            knobs = {"tokens": tokens, "token_delay_s": 0.01}
            with contextlib.suppress(httpx.HTTPError), self._server.stream(model, fake=knobs) as answer:
                if chance.random() < 0.05:
                    continue  # which closes it
                answer.read()


def number(text: str) -> int:
    """Return a whole number as the page writes it."""
    return int(text.replace(",", ""))


def test_all_tell_the_same(page: Page, server: Rolecall) -> None:
    """After each round every number of the page is that of `/metrics` and of the log; within it the bar adds up."""
    page.open(f"{server.base_url}/ui")
    page.wait(lambda: page.text("#link") == "live")
    total_mb = server.get("/v1/models/health")["gpus"][0]["total_mb"]
    seen = 0
    for seed in range(ROUNDS):
        with Load(server, seed):
            end = time.monotonic() + SECONDS / ROUNDS
            while time.monotonic() < end or seen < LEAST * (seed + 1):
                held = page.run(MEMORY)
                assert sum(mb for name, mb in held.items() if name != "models may take") == total_mb
                assert sum(name in NAMES for name in held) <= 2
                now = number(page.run(FIGURES)["requests"])
                assert seen <= now <= len(server.log_lines()) + WORKERS
                seen = now
        check(page, server)
    check_requests(page, server)


def check(page: Page, server: Rolecall) -> None:
    """Compare what the dashboard shows, once nothing is served any more."""
    eventually(lambda: server.get("/health")["queue"] == 0 and not any(in_flight(server).values()))
    page.wait(lambda: number(page.run(FIGURES)["requests"]) == len(server.log_lines()))
    lines = server.log_lines()
    metrics = eventually(lambda: counted(server, len(lines)))
    page.wait(lambda: page.run(FIGURES)["active"] == "0")
    shown = {name: number(text) for name, text in page.run(FIGURES).items() if name != "speed"}

    def metric(name: str, *labels: str) -> dict[tuple[str, ...], float]:
        return values(metrics, f"rolecall_{name}", *labels)

    assert shown["requests"] == metric("requests_total")[()] == len(lines)
    errors = [line for line in lines if line["error"] or line["status"] >= 400]
    assert shown["errors"] == sum(metric("request_errors_total").values()) == len(errors)
    for field, name in (("prompt_tokens", "input_tokens_total"), ("completion_tokens", "output_tokens_total")):
        assert shown[field] == metric(name).get((), 0) == sum(line[field] or 0 for line in lines)
    loads = metric("model_load_seconds_count", "model")
    assert shown["loads"] == sum(loads.values())
    made_room = {key: count for key, count in metric("evictions_total", "model", "reason").items() if key[1] == "room"}
    assert shown["evictions"] == sum(made_room.values())
    assert shown["waiting"] == sum(metric("queue_length").values()) == 0
    check_memory(page, server, metrics)
    check_timeline(page, loads, made_room)


def counted(server: Rolecall, count: int) -> Any:
    """Return the samples of `/metrics` once it has counted so many requests, and none is in flight."""
    found = samples(server.http.get("/metrics").text)
    is_new = values(found, "rolecall_requests_total") == {(): count}
    return found if is_new and not values(found, "rolecall_requests_in_flight") else None


def in_flight(server: Rolecall) -> Counter[str]:
    """Return how many requests each model answers."""
    return Counter({row["model"]: row["in_flight"] for row in server.get("/v1/models/health")["data"]})


def check_memory(page: Page, server: Rolecall, metrics: Any) -> None:
    """The card's bar and the models' states are those of `/metrics`."""

    def agree() -> bool:
        held = page.run(MEMORY)
        reserved = values(metrics, "rolecall_model_vram_reserved_bytes", "model")
        is_held = {(name,): held[name] * MB for name in NAMES if name in held} == reserved
        foreign = values(metrics, "rolecall_vram_foreign_bytes").get((), 0)
        return is_held and held.get("other programs", 0) * MB == foreign

    page.wait(agree)
    states = {key[0]: key[1] for key in values(metrics, "rolecall_model_state", "model", "state")}
    words = {"ready": "ready", "stopped": "not loaded"}
    for name in NAMES:
        assert page.text(f"[data-model='{name}'] .badge") == words[states[name]]
        assert server.state_of(name) == states[name]


def check_timeline(page: Page, loads: dict[tuple[str, ...], float], made_room: dict[tuple[str, ...], float]) -> None:
    """The rows of the timeline are as many as were counted, by model."""
    page.click("#timeline-table-button")
    found = Counter(map(tuple, page.wait(lambda: page.run(ENTRIES))))
    for name in NAMES:
        assert found[name, "loaded"] == loads.get((name,), 0)
        assert found[name, "made room"] == made_room.get((name, "room"), 0)


def check_requests(page: Page, server: Rolecall) -> None:
    """The rows of the history are the last lines of the log, figure by figure."""
    page.click("nav a[href='/ui/requests']")
    page.wait(lambda: len(page.all("#history tbody tr")) == 50)
    lines = {line["request_id"]: line for line in server.log_lines()}
    rows = page.run(ROWS)
    expected = page.driver.execute_async_script(TEXTS, [lines[id_] for id_, _ in rows])
    assert [cells for _, cells in rows] == expected
    assert {id_ for id_, _ in rows} <= lines.keys()
