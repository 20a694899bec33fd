"""Engines that outlive rolecall (``keep_engines_on_exit``): taken over by the next start, or ended; none is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from harness import (
    BROOD_SIZE,
    FAKE_ENGINE,
    TOKEN_VARIABLE,
    Gpus,
    Rolecall,
    brood,
    brood_of,
    end_all,
    eventually,
    fake_entry,
    is_running,
    new_token,
    processes_of,
    words,
)
from insight.screen import read_events
from simulator import nvml
from simulator.nvml import Machine
from unused_ports import unused_port

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")]

KEEP = {"keep_engines_on_exit": True}
ROUNDS = 6
BOTH_ENDS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
Start = Callable[..., Rolecall]


@pytest.fixture
def token() -> Iterator[str]:
    """Return what all processes of a test are known by; those that live on are ended."""
    token = new_token()
    yield token
    end_all(token)


@pytest.fixture
def start(tmp_path: Path, token: str) -> Start:
    """Return a maker of rolecalls that keep their engines, all with one state folder."""

    def make(*entries: dict[str, Any], folder: str = "rolecall", **settings: Any) -> Rolecall:
        server = Keeper(tmp_path / folder, entries, settings={**KEEP, **settings}, state_dir=tmp_path / "state")
        server.environ = {TOKEN_VARIABLE: token}
        return server

    return make


class Keeper(Rolecall):
    """A rolecall whose engines may live on."""

    def stop(self, within_s: float = 30.0) -> int:
        """End it by SIGTERM and return the exit code."""
        self.process.terminate()
        return self.process.wait(within_s)


def end(server: Rolecall, number: signal.Signals) -> None:
    """End a rolecall by a signal, whatever becomes of its engines."""
    server.process.send_signal(number)
    assert server.process.wait(15) == (0 if number == signal.SIGTERM else -number)


def brooding(token: str, name: str, *faults: str) -> dict[str, Any]:
    """Return an entry for a fake engine with a brood."""
    entry = fake_entry(name, *faults)
    return {**entry, "backend_config": {"command": brood(token, *entry["backend_config"]["command"])}}


def load(server: Rolecall, name: str = "m") -> int:
    """Load a model and return its process."""
    assert server.http.post(f"/v1/models/{name}/load").status_code == 200
    return int(server.row(name)["pid"])


def content(answer: httpx.Response) -> str:
    """Return what the model said."""
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def engines_of(token: str) -> list[int]:
    """Return the fake engines that run."""
    return [pid for pid, argv in processes_of(token).items() if f" {FAKE_ENGINE} " in argv]


# --- taken over -------------------------------------------------------------------------------------------------------


@BOTH_ENDS
def test_a_ready_engine_lives_on_and_is_taken_over(start: Start, token: str, number: signal.Signals) -> None:
    """The next start and the one after it have it ready at once, in the same process; unloading it leaves nothing."""
    entry = brooding(token, "m")
    with start(entry) as server:
        pid, began = load(server), time.monotonic()
        port = server.row("m")["port"]
        end(server, number)
    assert engines_of(token) == [pid]
    assert len(processes_of(token)) == 1 + BROOD_SIZE
    for _ in range(2):
        with start(entry) as server:
            row = server.row("m")
            assert (row["state"], row["pid"], row["port"], row["vram_reserved_mb"]) == ("ready", pid, port, 100)
            assert row["uptime_s"] >= time.monotonic() - began - 0.5
            answer = server.chat("m")
            assert content(answer) == words(8)
            assert server.line_of(answer)["load_ms"] == 0
            assert "left over" not in server.words()
            end(server, number)
    with start(entry) as server:
        assert server.http.post("/v1/models/m/unload").status_code == 200
        assert not is_running(pid)
        assert brood_of(token) == []
        assert server.get("/health")["reserved_mb"] == 0
        assert server.chat("m").status_code == 200
        assert server.row("m")["pid"] != pid


def test_one_that_crashes_after_that_is_told_as_such(start: Start, token: str) -> None:
    """In the figures and on the dashboard, as any other: both begin with what ran already."""
    with start(brooding(token, "m")) as server:
        load(server)
        end(server, signal.SIGTERM)
    with start(brooding(token, "m")) as server:
        with server.http.stream("GET", "/v1/events") as answer:
            events = read_events(answer.iter_lines())
            (entry,) = next(events)["timeline"]
            assert (entry["event"], entry["reason"]) == ("ready", "it ran already")
            os.kill(int(server.row("m")["pid"]), signal.SIGKILL)
            (entry,) = next(event["data"] for event in events if event["type"] == "timeline")
            assert entry["event"] == "crashed"
        page = server.http.get("/metrics").text
        assert 'rolecall_model_failures_total{kind="crash",model="m"} 1.0' in page


def test_it_is_unloaded_when_idle(start: Start, token: str) -> None:
    """An engine that was taken over is stopped as any other, though the time for it was changed meanwhile."""
    with start(fake_entry("m")) as server:
        pid = load(server)
        end(server, signal.SIGKILL)
    with start(fake_entry("m", idle_unload_s=1)) as server:
        assert server.row("m")["pid"] == pid
        server.await_state("m", "stopped")
        assert engines_of(token) == []


def test_it_is_started_anew_after_a_crash(start: Start) -> None:
    """The death of an engine that was taken over is a crash as any other: told, and mended by the next request."""
    with start(fake_entry("m")) as server:
        pid = load(server)
        end(server, signal.SIGTERM)
    with start(fake_entry("m")) as server:
        psutil.Process(pid).kill()
        eventually(lambda: server.row("m")["error"])
        assert "an earlier rolecall started it" in server.row("m")["error"]
        assert content(server.chat("m")) == words(8)


@BOTH_ENDS
def test_the_setting_is_turned_off(start: Start, token: str, number: signal.Signals) -> None:
    """Engines are taken over all the same, and end with that rolecall, however it ends."""
    entry = brooding(token, "m", "--ignore-term")
    with start(entry) as server:
        pid = load(server)
        end(server, signal.SIGKILL)
    with start(entry, keep_engines_on_exit=False) as server:
        assert server.row("m")["pid"] == pid
        end(server, number)
        eventually(lambda: processes_of(token) == {}, within_s=5 if number == signal.SIGKILL else 0.5)


def test_two_that_start_at_once(start: Start, token: str) -> None:
    """Of two rolecalls with one state folder that start in the same moment one takes the engine over, once."""
    with start(fake_entry("m")) as server:
        load(server)
        end(server, signal.SIGKILL)
    servers = [start(fake_entry("m"), folder=name) for name in ("first", "second")]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        for server in pool.map(lambda each: each.__enter__(), servers):
            stack.push(server.__exit__)
        assert sorted(server.state_of("m") for server in servers) == ["ready", "stopped"]
        assert all(content(server.chat("m")) == words(8) for server in servers)
        assert len(engines_of(token)) == 2
        for server in servers:
            end(server, signal.SIGKILL)
    with start(fake_entry("m")) as server:
        assert server.state_of("m") == "ready"
        assert engines_of(token) == [server.row("m")["pid"]]


def test_an_engine_of_one_that_runs_is_left_alone(start: Start, token: str) -> None:
    """A second rolecall with the same state folder takes nothing from the first, whatever it does."""
    with start(fake_entry("m"), folder="first") as first:
        pid = load(first)
        with start(fake_entry("m"), folder="second") as second:
            assert second.state_of("m") == "stopped"
            assert load(second) != pid
            end(second, signal.SIGTERM)
        assert len(engines_of(token)) == 2
        assert content(first.chat("m")) == words(8)
        assert first.row("m")["pid"] == pid
        end(first, signal.SIGTERM)


# --- not taken over ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"backend_config": {"extra_args": ["--ctx-size", "1000"]}},
        {"backend_config": {"env": {"ANY": "thing"}}},
        {"backend_config": {"model_path": "/other/model.gguf"}},
        {"backend_config": {"port": -1}},
        {"max_parallel": 2},
        {"context_length": 1000},
    ],
    ids=str,
)
def test_a_changed_entry(start: Start, token: str, change: dict[str, Any]) -> None:
    """An engine whose entry is another one now is ended at the start, with all; a request starts the new one."""
    command = brooding(token, "m")["backend_config"]["command"]
    old = fake_entry("m", "--model", "{model}", backend_config={"model_path": str(FAKE_ENGINE), "command": command})
    config = {**old["backend_config"], **change.get("backend_config", {})}
    if config.get("model_path") != str(FAKE_ENGINE):
        config["model_path"] = __file__
    if "port" in config:
        config["port"] = unused_port()
    new = {**old, **change, "backend_config": config}
    with start(old) as server:
        pid = load(server)
        end(server, signal.SIGTERM)
    with start(new) as server:
        assert engines_of(token) == brood_of(token) == []
        assert "ended m, an engine left over from an earlier run" in server.words()
        assert server.state_of("m") == "stopped"
        assert load(server) != pid


def test_a_removed_entry(start: Start, token: str) -> None:
    """An engine whose model is not in the registry any more is ended."""
    with start(brooding(token, "m"), fake_entry("other")) as server:
        load(server)
        other = load(server, "other")
        end(server, signal.SIGTERM)
    with start(fake_entry("other")) as server:
        assert engines_of(token) == [other]
        assert brood_of(token) == []
        assert [row["model"] for row in server.get("/v1/models/health")["data"]] == ["other"]


def test_one_that_hangs(start: Start, token: str) -> None:
    """An engine that does not answer any more is ended, and the first request is served by a new one."""
    with start(brooding(token, "m")) as server:
        pid = load(server)
        end(server, signal.SIGTERM)
    psutil.Process(pid).suspend()
    with start(brooding(token, "m")) as server:
        assert content(server.chat("m")) == words(8)
        assert server.row("m")["pid"] != pid
        assert not is_running(pid)
        assert len(brood_of(token)) == BROOD_SIZE
        assert server.row("m")["vram_reserved_mb"] == server.get("/health")["reserved_mb"] == 100


def test_one_that_died_meanwhile(start: Start, token: str) -> None:
    """What an engine has started is ended, though the engine itself is no more."""
    with start(brooding(token, "m")) as server:
        pid = load(server)
        end(server, signal.SIGTERM)
    psutil.Process(pid).kill()
    assert len(brood_of(token)) == BROOD_SIZE
    with start(brooding(token, "m")) as server:
        assert brood_of(token) == []
        assert server.state_of("m") == "stopped"


@BOTH_ENDS
def test_one_that_loads(start: Start, token: str, number: signal.Signals) -> None:
    """An engine that is not ready yet ends with rolecall, after a SIGKILL with the next start."""
    entry = brooding(token, "m", "--load-s", "60")
    with start(entry) as server, ThreadPoolExecutor() as pool:
        pool.submit(server.http.post, "/v1/models/m/load")
        server.await_state("m", "starting")
        eventually(lambda: len(brood_of(token)) == BROOD_SIZE)
        end(server, number)
    if number == signal.SIGKILL:
        with start(entry) as server:
            assert engines_of(token) == brood_of(token) == []
            assert server.state_of("m") == "stopped"
    assert processes_of(token) == {}


def test_whatever_the_moment_of_the_kill(start: Start, token: str) -> None:
    """Killed again and again while it starts and takes over, it has one engine in the end, and loses none."""
    entries = brooding(token, "m"), fake_entry("other")
    with start(*entries) as server:
        pid = load(server)
        end(server, signal.SIGKILL)
    for _ in range(ROUNDS):
        server = start(*entries)
        server.launch()
        time.sleep(random.uniform(0.3, 0.8))  # the moment is what is tried here: there is nothing to wait for
        end(server, signal.SIGKILL)
    with start(*entries) as server:
        assert engines_of(token) == [pid]
        assert len(brood_of(token)) == BROOD_SIZE
        assert server.row("m")["pid"] == pid
        assert content(server.chat("m")) == words(8)


@contextlib.contextmanager
def others_come_and_go(gpus: Gpus) -> Iterator[None]:
    """Have others take more and more of the GPU, and give it back, all the time."""
    is_over = threading.Event()

    def change() -> None:
        for mb in itertools.cycle(range(300, 4000, 100)):
            if is_over.wait(0.002):
                return
            gpus.set_foreign_mb(mb)

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        try:
            yield
        finally:
            is_over.set()
            changing.result()


# --- on GPUs ----------------------------------------------------------------------------------------------------------


class TestGpus:
    @pytest.fixture
    def gpus(self, nvml_library: Path, tmp_path: Path) -> Callable[[Machine], Gpus]:
        """Return a maker of simulated GPUs."""
        return lambda machine: Gpus(nvml_library, tmp_path, machine)

    @staticmethod
    def rolecall(gpus: Gpus, token: str, *entries: dict[str, Any], **settings: Any) -> Rolecall:
        """Return a rolecall that keeps its engines."""
        server = gpus.rolecall(*entries, settings={**KEEP, **settings})
        server.environ = {**server.environ, TOKEN_VARIABLE: token}
        return server

    @staticmethod
    def entry(on: Gpus, name: str, mb: int, *flags: str, **fields: Any) -> dict[str, Any]:
        """Return a model that takes ``mb`` and writes down its starts."""
        log = str(on.folder / f"{name}.starts")
        return fake_entry(name, "--gpu-mb", str(mb), "--starts-log", log, *flags, **{"vram_estimate_mb": mb, **fields})

    @pytest.mark.parametrize("processes", ["listed", "empty"])
    def test_their_memory_is_in_the_books(self, gpus: Callable[[Machine], Gpus], token: str, processes: str) -> None:
        """Each holds what it held, where it held it; the next model has what is left, and makes room without a crash.

        So it is where the driver tells nothing of processes, too.
        """
        here = gpus(Machine(nvml.TWO_16GB.gpus, processes=processes))
        entries = [self.entry(here, n, mb, "--gpu-release-late-s", "1") for n, mb in (("a", 9000), ("b", 9000))]
        entries += [self.entry(here, "small", 4000, gpus=[1]), self.entry(here, "large", 8000)]
        with self.rolecall(here, token, *entries) as server:
            pids = [load(server, name) for name in ("a", "b")]
            held = [here.held_mb(pid) for pid in pids]
            before = server.get("/v1/models/health")["gpus"]
            end(server, signal.SIGKILL)
        with self.rolecall(here, token, *entries) as server:
            rows = {row["model"]: row for row in server.get("/v1/models/health")["data"]}
            assert [rows[name]["pid"] for name in ("a", "b")] == pids
            assert [rows[name]["vram_reserved_mb"] for name in ("a", "b")] == [9000, 9000]
            eventually(lambda: [gpu["foreign_mb"] for gpu in server.get("/v1/models/health")["gpus"]] == [300, 300])
            now = [gpu["reserved_mb"] for gpu in server.get("/v1/models/health")["gpus"]]
            assert now == [gpu["reserved_mb"] for gpu in before]
            assert content(server.chat("small")) == words(8)
            assert [here.held_mb(pid) for pid in pids] == held
            assert content(server.chat("large")) == words(8)
            assert sum(server.state_of(name) == "ready" for name in ("a", "b")) == 1
            assert len((here.folder / "large.starts").read_text().splitlines()) == 1
            for name in ("a", "b", "small", "large"):
                server.http.post(f"/v1/models/{name}/unload")
            eventually(lambda: here.lost_mb() == 0 and server.get("/health")["reserved_mb"] == 0)
            assert engines_of(token) == []

    def test_what_was_learnt_stays(self, gpus: Callable[[Machine], Gpus], token: str) -> None:
        """Taking an engine over teaches nothing wrong of what it holds, though others take memory just then."""
        here = gpus(Machine(nvml.ONE_16GB.gpus, processes="empty"))
        entries = [self.entry(here, "m", 6000, vram_estimate_mb=5000)]
        with self.rolecall(here, token, *entries) as server:
            load(server)
            eventually(lambda: server.row("m")["vram_reserved_mb"] == 6000)
            end(server, signal.SIGTERM)
        for _ in range(3):
            with others_come_and_go(here), self.rolecall(here, token, *entries) as server:
                assert server.row("m")["vram_reserved_mb"] == 6000
                end(server, signal.SIGTERM)

    def test_it_is_to_lie_elsewhere(self, gpus: Callable[[Machine], Gpus], token: str) -> None:
        """An engine whose entry names another card now is ended, and started on that one."""
        here = gpus(nvml.TWO_16GB)
        with self.rolecall(here, token, self.entry(here, "m", 6000, gpus=[0])) as server:
            pid = load(server)
            end(server, signal.SIGTERM)
        with self.rolecall(here, token, self.entry(here, "m", 6000, gpus=[1])) as server:
            assert not is_running(pid)
            assert here.held_mb(load(server)) == {1: 6000}
            end(server, signal.SIGTERM)

    def test_one_that_hangs_gives_its_memory_back_first(self, gpus: Callable[[Machine], Gpus], token: str) -> None:
        """The new engine is not started before the memory of the one that was ended is free."""
        here = gpus(nvml.ONE_16GB)
        entries = [self.entry(here, "m", 9000, "--gpu-release-late-s", "1.5"), self.entry(here, "other", 9000)]
        with self.rolecall(here, token, *entries) as server:
            pid = load(server)
            end(server, signal.SIGTERM)
        psutil.Process(pid).suspend()
        with self.rolecall(here, token, *entries) as server:
            assert content(server.chat("other")) == words(8)
            assert len((here.folder / "other.starts").read_text().splitlines()) == 1
            assert content(server.chat("m")) == words(8)
            assert len((here.folder / "m.starts").read_text().splitlines()) == 2
            end(server, signal.SIGKILL)

    @BOTH_ENDS
    def test_one_that_sleeps_ends(
        self, gpus: Callable[[Machine], Gpus], token: str, tmp_path: Path, number: signal.Signals
    ) -> None:
        """Nobody could tell whether it still has its weights: it ends with rolecall, or at the next start."""
        here = gpus(nvml.ONE_16GB)
        program = tmp_path / "vllm"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_ENGINE} "$@"\n')
        program.chmod(0o755)
        (tmp_path / "weights").mkdir()
        config = {"model_path": str(tmp_path / "weights"), "extra_args": ["--enable-sleep-mode"]}
        vllm = {"name": "m", "backend": "vllm", "vram_estimate_mb": 9000, "backend_config": config}
        entries = [vllm, self.entry(here, "other", 9000)]
        settings = {"vllm_command": str(program), "sleep_ram_mb": 64_000}
        with self.rolecall(here, token, *entries, **settings) as server:
            sleeper = load(server)
            other = load(server, "other")
            assert server.state_of("m") == "sleeping"
            end(server, number)
        assert (number == signal.SIGTERM) != is_running(sleeper)
        with self.rolecall(here, token, *entries, **settings) as server:
            assert engines_of(token) == [other]
            assert [server.state_of(name) for name in ("m", "other")] == ["stopped", "ready"]
            assert content(server.chat("m")) == words(8)
            assert server.state_of("other") == "stopped"
            end(server, signal.SIGTERM)
