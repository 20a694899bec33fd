"""`/v1/events` of a running server: what a page of the dashboard holds is how the server stands."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness import Gpus, Rolecall, eventually, fake_entry
from insight.screen import Screen, read_events
from rolecall.core.keys import ApiKey, hashed
from rolecall.insight.feed import MOST_WATCHERS
from simulator import nvml

EVENTS = "/v1/events"


class Page:
    """A client that reads all the time; ``ended`` says how its stream ended."""

    def __init__(self, server: Rolecall, key: str | None = None) -> None:
        self.screen = Screen()
        self.events: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.ended: str | None = None
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=server.base_url, headers=headers, timeout=30, trust_env=False)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with self._http.stream("GET", EVENTS) as answer:
                if answer.status_code != 200:
                    self.ended = str(answer.status_code)
                    return
                for event in read_events(answer.iter_lines()):
                    self.screen.take(event)
                    self.events.append(event)
                    self.times.append(time.monotonic())
            self.ended = "properly"
        except httpx.HTTPError as error:
            self.ended = repr(error)

    def model(self, name: str) -> dict[str, Any]:
        return next(row for row in self.screen.shown["models"] if row["model"] == name)

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def watch() -> Iterator[Callable[..., Page]]:
    with contextlib.ExitStack() as stack:

        def open_page(server: Rolecall, key: str | None = None) -> Page:
            page = Page(server, key)
            stack.callback(page.close)
            eventually(lambda: page.screen.snapshots or page.ended)
            return page

        yield open_page


def test_a_page_follows_a_request(tmp_path: Path, watch: Callable[..., Page]) -> None:
    """The queue and the load, the live answer, the finished line and the timeline; all of it agrees with the log."""
    with Rolecall(
        tmp_path, [fake_entry("a", "--load-s=1", role_priority={"tag": 80}, display_name="Model A")]
    ) as server:
        page = watch(server)
        assert (page.model("a")["state"], page.model("a")["display_name"]) == ("stopped", "Model A")
        with server.stream("role:tag", fake={"tokens": 4000, "token_delay_s": 0.01}) as answer:
            request_id = answer.headers["x-request-id"]
            live = eventually(
                lambda: [row for row in page.screen.shown["live"]["data"] if row["tokens"] > 5 and row["ttft_ms"]]
            )[0]
            assert (live["request_id"], live["model"], live["role"]) == (request_id, "a", "tag")
            assert (live["state"], live["tokens_estimated"]) == ("answering", True)
            assert 5 < live["tokens_per_second"] < 200
            first = live["tokens"]
            eventually(lambda: page.screen.shown["live"]["data"][0]["tokens"] > first)
        line = server.line(request_id)
        assert line.pop("log_begins")  # the file's, not the request's
        eventually(lambda: line in page.screen.finished)
        eventually(lambda: page.screen.shown["live"] == {"active": 0, "data": []})
        assert page.screen.shown["totals"]["requests"] == 1
        told = [(entry["event"], entry["reason"]) for entry in page.screen.timeline]
        assert told[:2] == [("load", "1 request for the role tag: highest priority that fits"), ("ready", None)]
        states = [row["state"] for event in page.events if event["type"] == "queue" for row in event["data"]]
        assert "starting" in states
        row = server.row("a")
        eventually(lambda: page.model("a")["rss_mb"])
        assert {name: page.model("a")[name] for name in ("state", "pid", "port", "in_flight", "footprint_mb")} == {
            name: row[name] for name in ("state", "pid", "port", "in_flight", "footprint_mb")
        }


def test_events_are_gathered(tmp_path: Path, watch: Callable[..., Page]) -> None:
    """However much happens, there are at most four rounds a second, and none while nothing happens."""
    with Rolecall(tmp_path, [fake_entry("a")]) as server:
        server.chat("a")
        page = watch(server)
        eventually(lambda: page.model("a")["rss_mb"])
        for _ in range(200):
            server.chat("a")
        eventually(lambda: page.screen.shown["totals"]["requests"] == 201)
        kept = len(page.screen.finished) + page.screen.skipped
        assert kept == 201
        rounds = sorted({event["ts"] for event in page.events[1:]})
        firsts = [next(t for t, e in zip(page.times, page.events, strict=True) if e["ts"] == ts) for ts in rounds]
        seconds = max(1.0, firsts[-1] - firsts[0])
        assert len(rounds) <= 4 * seconds + 2, rounds
        eventually(lambda: page.screen.shown["live"]["active"] == 0 and page.model("a")["in_flight"] == 0)
        before = len(page.events)
        server.get("/health")
        assert len(page.events) == before


def test_nobody_watches_unseen(tmp_path: Path, watch: Callable[..., Page]) -> None:
    """Whoever comes later is shown what happened before, and many are shown the same."""
    with Rolecall(tmp_path, [fake_entry("a")]) as server:
        for _ in range(60):
            server.chat("a")
        pages = [watch(server) for _ in range(3)]
        assert {len(page.screen.finished) for page in pages} == {50}
        assert [entry["event"] for entry in pages[0].screen.timeline] == ["load", "ready"]
        server.http.post("/v1/models/a/unload")
        for page in pages:
            timeline = page.screen.timeline
            eventually(partial(_has_ended, timeline))
            assert timeline[-2]["reason"] == "unloaded by hand"
        assert pages[0].screen.shown == pages[1].screen.shown


def test_a_new_page_has_the_whole_timeline(tmp_path: Path, watch: Callable[..., Page]) -> None:
    """All entries that are kept, also beyond those of one round: nothing looks as if it had not been loaded."""
    with Rolecall(tmp_path, [fake_entry("a")]) as server:
        for number in range(205):
            server.http.post(f"/v1/models/a/{'unpin' if number % 2 else 'pin'}").raise_for_status()
        assert [entry["event"] for entry in watch(server).screen.timeline] == ["pinned", "unpinned"] * 102 + ["pinned"]


def test_memory_that_others_hold_is_not_shown_as_free(tmp_path: Path, watch: Callable[..., Page]) -> None:
    """Also where there is no GPU: what other programs hold of the host's RAM is foreign."""
    with Rolecall(tmp_path, [fake_entry("a")]) as server:
        page = watch(server)
        (host,) = eventually(lambda: [row for row in page.screen.shown["gpus"] if row["foreign_mb"]])
        assert (host["uuid"], host["foreign_mb"] % 256) == ("host", 0)
        assert host["free_mb"] == host["total_mb"] - host["reserved_mb"] - host["foreign_mb"] < host["total_mb"]


def _has_ended(timeline: list[dict[str, Any]]) -> bool:
    return bool(timeline[-1]["event"] == "unloaded")


def test_who_does_not_read_is_no_burden(tmp_path: Path) -> None:
    """A client that takes nothing keeps nobody from an answer, and one that comes back to it is shown the present."""
    with Rolecall(tmp_path, [fake_entry(f"m{number}") for number in range(30)]) as server:
        request = f"GET {EVENTS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        with server.raw(request) as deaf:
            server.chat("m0")
            for number in range(1000):
                server.chat("m0", text=f"{number}")
            deaf.settimeout(1)
            read = b""
            with contextlib.suppress(TimeoutError):
                while block := deaf.recv(65536):
                    read += block
            assert read.count(b"event: snapshot") >= 1
            screen = Screen()
            for event in read_events(read.partition(b"\r\n\r\n")[2].decode(errors="replace").split("\n")):
                screen.take(event)
            assert screen.shown["totals"]["requests"] == 1001


def test_only_so_many_may_watch(tmp_path: Path) -> None:
    """The next one is told when to come again; when one leaves there is room."""
    with Rolecall(tmp_path) as server:
        request = f"GET {EVENTS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        pages = [server.raw(request) for _ in range(MOST_WATCHERS)]
        for page in pages:
            assert page.recv(12) == b"HTTP/1.1 200"
        refused = server.http.get(EVENTS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_watchers")
        assert int(refused.headers["retry-after"]) > 0
        pages[0].close()

        def is_let_in() -> bool:
            with server.http.stream("GET", EVENTS) as answer:
                return answer.status_code == 200

        eventually(is_let_in)
        for page in pages[1:]:
            page.close()


def test_the_end_of_the_server_ends_the_stream(tmp_path: Path, watch: Callable[..., Page]) -> None:
    """At once, and properly: no answer is waited for, and no watcher."""
    with Rolecall(tmp_path) as server:
        page = watch(server)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
        eventually(lambda: page.ended == "properly")


def keyed(tmp_path: Path, *keys: ApiKey) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"version": 1, "keys": [json.loads(key.model_dump_json()) for key in keys]}))
    path.chmod(0o600)
    return path


def test_a_key_is_needed_and_its_end_ends_the_stream(tmp_path: Path, watch: Callable[..., Page]) -> None:
    """It has to be one for admins; without it, or with another one, nothing is told; a revoked one is noticed."""
    admin = ApiKey(name="boss", sha256=hashed(b"rc-admin"), scopes=("inference", "admin"))
    user = ApiKey(name="user", sha256=hashed(b"rc-user"))
    path = keyed(tmp_path, admin, user)
    with Rolecall(tmp_path / "server", settings={"api_keys_file": str(path)}) as server:
        assert server.http.get(EVENTS).status_code == 401
        assert server.http.get(EVENTS, headers={"authorization": "Bearer rc-user"}).status_code == 403
        page = watch(server, "rc-admin")
        assert page.screen.shown["server"]["keys"] is True
        assert page.ended is None
        keyed(tmp_path, user)
        eventually(lambda: page.ended == "properly", within_s=5)


def test_models_may_take_no_more_of_a_card_than_the_budget(nvml_library: Path, tmp_path: Path) -> None:
    """What the settings leave to models is the limit of a card, where that is less than the card has; so say all."""
    gpus = Gpus(nvml_library, tmp_path, nvml.ONE_16GB)
    with gpus.rolecall(settings={"max_vram_mb": 7000}) as server:
        with server.http.stream("GET", EVENTS) as answer:
            snapshot = next(read_events(answer.iter_lines()))
        (card,) = snapshot["gpus"]
        assert (card["usable_mb"], snapshot["server"]["budget_mb"]) == (7000, 7000)
        assert card["total_mb"] > 7000
        (row,) = server.get("/v1/models/health")["gpus"]
        assert {name: card.get(name, row["used_mb"]) for name in row} == row
        told = text_string_to_metric_families(server.http.get("/metrics").text)
        (budget,) = (row for family in told for row in family.samples if row.name == "rolecall_vram_budget_bytes")
        assert (budget.labels, budget.value) == ({"gpu": "0"}, 7000 * 2**20)


def test_the_settings_that_a_page_heeds(tmp_path: Path) -> None:
    """A snapshot says whether prompts are kept, and how large a picture may be."""
    settings = {"log_prompts": True, "max_image_bytes": 5000}
    with Rolecall(tmp_path, settings=settings) as server, server.http.stream("GET", EVENTS) as answer:
        told = next(read_events(answer.iter_lines()))["server"]
        assert told.items() >= settings.items()
