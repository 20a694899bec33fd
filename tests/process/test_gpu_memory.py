"""Engines on simulated GPUs: others' memory, memory that is given back late, several cards, a driver that fails, sleep.

rolecall, its engines and NVML's answers are those of a real machine; the GPUs are the simulator's (docs/simulator.md).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from harness import FAKE_ENGINE, Gpus, Rolecall, eventually, fake_entry, is_running, words
from simulator import memory, nvml
from simulator.nvml import Machine

FOREIGN_MB = 300
"""What others hold of each card at the start."""
MakeGpus = Callable[[Machine], Gpus]


@pytest.fixture
def make_gpus(nvml_library: Path, tmp_path: Path) -> MakeGpus:
    """Return a maker of simulated GPUs in the test's folder."""
    return lambda machine: Gpus(nvml_library, tmp_path, machine)


def gpu_entry(on: Gpus, name: str, mb: int, *flags: str, **fields: Any) -> dict[str, Any]:
    """Return a model that takes ``mb``, says so unless ``vram_estimate_mb`` does, and writes down its starts."""
    log = str(on.folder / f"{name}.starts")
    fields = {"vram_estimate_mb": mb, **fields}
    return fake_entry(name, "--gpu-mb", str(mb), "--starts-log", log, *flags, **fields)


def starts(gpus: Gpus, name: str) -> list[float]:
    """Return when the engines of a model began, in s since the epoch."""
    path = gpus.folder / f"{name}.starts"
    return [float(line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []


def states(server: Rolecall) -> dict[str, str]:
    """Return the state of every model."""
    return {row["model"]: row["state"] for row in server.get("/v1/models/health")["data"]}


def content(answer: httpx.Response) -> str:
    """Return what the model said."""
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def see_foreign(gpus: Gpus, server: Rolecall, mb: int) -> None:
    """Let others hold so much, and wait until rolecall has seen it."""
    gpus.set_foreign_mb(mb)
    eventually(lambda: server.get("/v1/models/health")["gpus"][0]["foreign_mb"] == mb)


def pid_of(server: Rolecall, model: str) -> int:
    """Return the process of a loaded model."""
    return int(server.row(model)["pid"])


@pytest.mark.long
class TestOthers:
    def test_a_request_waits_for_memory_that_others_hold(self, make_gpus: MakeGpus) -> None:
        """A model that does not fit beside a foreign program waits, and is started when that ends."""
        gpus = make_gpus(nvml.ONE_16GB)
        with gpus.rolecall(gpu_entry(gpus, "m", 6000)) as server, ThreadPoolExecutor() as pool:
            see_foreign(gpus, server, 12000)
            answer = pool.submit(server.chat, "m")
            server.await_waiting(1)
            assert starts(gpus, "m") == []
            gpus.set_foreign_mb(FOREIGN_MB)
            assert content(answer.result()) == words(8)
            assert gpus.held_mb(pid_of(server, "m")) == {0: 6000}

    def test_who_waited_long_is_told_that_others_hold_it(self, make_gpus: MakeGpus) -> None:
        """After a while it is a 503 that names the model and how much others hold; when they are gone it works."""
        gpus = make_gpus(nvml.ONE_16GB)
        with gpus.rolecall(gpu_entry(gpus, "m", 6000), gpu_entry(gpus, "small", 1000)) as server:
            see_foreign(gpus, server, 12000)
            refused = server.chat("m")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "unavailable"
            assert "'m' needs 6000 MB, but other programs hold 12000 MB" in refused.json()["error"]["message"]
            assert int(refused.headers["retry-after"]) >= 1
            assert starts(gpus, "m") == []
            assert content(server.chat("small")) == words(8)
            see_foreign(gpus, server, FOREIGN_MB)
            assert content(server.chat("m")) == words(8)

    def test_others_took_memory_a_moment_ago(self, make_gpus: MakeGpus) -> None:
        """A start that fails because others took the memory unseen is made again as soon as they give it back."""
        gpus = make_gpus(nvml.ONE_16GB)
        with gpus.rolecall(gpu_entry(gpus, "m", 6000)) as server, ThreadPoolExecutor() as pool:
            see_foreign(gpus, server, FOREIGN_MB + 1)  # the next look is a second away
            gpus.set_foreign_mb(12000)
            began = time.monotonic()
            answer = pool.submit(server.chat, "m")
            server.await_state("m", "failed")
            gpus.set_foreign_mb(FOREIGN_MB)
            assert content(answer.result()) == words(8)
            assert time.monotonic() - began < 8
            assert len(starts(gpus, "m")) == 2

    def test_more_is_held_than_the_books_said(self, make_gpus: MakeGpus) -> None:
        """A model that runs out of memory although it seemed to fit is started again alone, for the same request."""
        gpus = make_gpus(nvml.ONE_16GB)
        entries = [gpu_entry(gpus, "right", 8000), gpu_entry(gpus, "wrong", 9000, vram_estimate_mb=3000)]
        with gpus.rolecall(*entries) as server:
            assert content(server.chat("right")) == words(8)
            assert content(server.chat("wrong")) == words(8)
            assert len(starts(gpus, "wrong")) == 2
            assert states(server) == {"right": "stopped", "wrong": "ready"}
            eventually(lambda: server.row("wrong")["vram_reserved_mb"] == 9000)
            assert server.row("wrong")["error"] is None

    def test_it_runs_out_with_its_first_answer(self, make_gpus: MakeGpus) -> None:
        """A request whose engine ran out of memory before it answered is sent once more, to one that has room."""
        gpus = make_gpus(nvml.ONE_16GB)
        entries = [gpu_entry(gpus, "right", 8000), gpu_entry(gpus, "grows", 5000, "--gpu-grow-mb", "4000")]
        with gpus.rolecall(*entries) as server:
            assert content(server.chat("right")) == words(8)
            assert content(server.chat("grows")) == words(8)
            assert len(starts(gpus, "grows")) == 2
            eventually(lambda: server.row("grows")["footprint_mb"] == 9000)

    def test_a_neighbour_that_says_too_little_harms_nobody(self, make_gpus: MakeGpus) -> None:
        """What a model really took is known before the next one is started beside it."""
        gpus = make_gpus(nvml.ONE_16GB)
        entries = [
            gpu_entry(gpus, "wrong", 9000, "--load-s", "0.5", vram_estimate_mb=4000),
            gpu_entry(gpus, "right", 8000),
        ]
        with gpus.rolecall(*entries) as server, ThreadPoolExecutor() as pool:
            first = pool.submit(server.chat, "wrong")
            eventually(lambda: starts(gpus, "wrong"))
            assert content(server.chat("right")) == content(first.result()) == words(8)
            assert len(starts(gpus, "right")) == 1
            eventually(lambda: server.row("right")["footprint_source"] == "learnt")
            assert server.row("right")["footprint_mb"] == 8000

    def test_what_the_first_answer_takes_is_learnt_without_figures_by_process(self, make_gpus: MakeGpus) -> None:
        """In a container, where the driver names no processes, a model's growth with its first answer is seen too."""
        gpus = make_gpus(replace(nvml.ONE_16GB, processes="empty"))
        with gpus.rolecall(gpu_entry(gpus, "m", 6000, "--gpu-grow-mb", "1000")) as server:
            server.chat("m")
            eventually(lambda: server.row("m")["footprint_mb"] == 7000, within_s=3)
            assert server.row("m")["vram_reserved_mb"] == 7000

    def test_of_unknown_size_beside_others(self, make_gpus: MakeGpus) -> None:
        """A model of which nothing is known is given all that others leave, when that is less than usual."""
        gpus = make_gpus(nvml.ONE_16GB)
        with gpus.rolecall(gpu_entry(gpus, "m", 6000, vram_estimate_mb=None)) as server:
            see_foreign(gpus, server, 3000)
            assert content(server.chat("m")) == words(8)


class TestGivingBack:
    def test_the_next_engine_waits_until_the_driver_shows_the_memory(self, make_gpus: MakeGpus) -> None:
        """An engine that would run out of memory is not started before that of its predecessor is really free."""
        gpus = make_gpus(nvml.ONE_16GB)
        late = ("--gpu-release-late-s", "1.2")
        with gpus.rolecall(gpu_entry(gpus, "a", 9000, *late), gpu_entry(gpus, "b", 9000)) as server:
            assert content(server.chat("a")) == words(8)
            assert content(server.chat("b")) == words(8)
            (died,) = (path.stat().st_mtime for path in gpus.simulation.allocations.glob("*.dead"))
            (begun,) = starts(gpus, "b")
            assert begun >= died + 1.2
            assert begun < died + 3

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_what_holds_the_memory_ends_with_the_engine(self, make_gpus: MakeGpus, number: signal.Signals) -> None:
        """A grandchild in a session of its own, left behind with the GPU memory, is gone, whoever ended the engine."""
        gpus = make_gpus(nvml.ONE_16GB)
        child = ("--spawn-child", "--child-session", "--leave-child", "--child-holds-gpu")
        with gpus.rolecall(gpu_entry(gpus, "m", 9000, *child)) as server:
            server.chat("m")
            holder = server.stats("m")["child_pid"]
            assert gpus.held_mb(holder) == {0: 9000}
            os.kill(pid_of(server, "m"), number)
            eventually(lambda: not is_running(holder))
            eventually(lambda: gpus.lost_mb() == 0 and server.get("/health")["reserved_mb"] == 0)
            assert content(server.chat("m")) == words(8)
            assert server.http.post("/v1/models/m/unload").status_code == 200
            eventually(lambda: gpus.lost_mb() == 0 and server.get("/health")["reserved_mb"] == 0)


class TestSeveralGpus:
    def test_two_models_load_side_by_side(self, make_gpus: MakeGpus) -> None:
        """On two cards two models load at the same time, each on the one card that its process sees by UUID."""
        gpus = make_gpus(nvml.TWO_16GB)
        entries = [gpu_entry(gpus, name, 9000, "--load-s", "1") for name in ("a", "b")]
        with gpus.rolecall(*entries) as server, ThreadPoolExecutor() as pool:
            answers = list(pool.map(server.chat, ("a", "b")))
            assert [content(answer) for answer in answers] == [words(8)] * 2
            (a,), (b,) = (starts(gpus, name) for name in ("a", "b"))
            assert abs(a - b) < 1
            pids = [pid_of(server, name) for name in ("a", "b")]
            held = sorted((psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"], gpus.held_mb(pid)) for pid in pids)
            assert held == [(gpus.uuid(0), {0: 9000}), (gpus.uuid(1), {1: 9000})]

    def test_where_models_lie(self, make_gpus: MakeGpus) -> None:
        """An entry's ``gpus`` name its card; a model too large for one card lies on two, with half on each."""
        gpus = make_gpus(nvml.TWO_16GB)
        entries = [gpu_entry(gpus, "second", 5000, gpus=[1]), gpu_entry(gpus, "large", 20000)]
        with gpus.rolecall(*entries) as server:
            server.chat("second")
            assert gpus.held_mb(pid_of(server, "second")) == {1: 5000}
            assert content(server.chat("large")) == words(8)
            pid = pid_of(server, "large")
            assert gpus.held_mb(pid) == {0: 10000, 1: 10000}
            assert psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] == f"{gpus.uuid(0)},{gpus.uuid(1)}"
            assert states(server) == {"large": "ready", "second": "stopped"}

    def test_a_group_comes_together(self, make_gpus: MakeGpus) -> None:
        """When one model of a group is used the others follow, without anybody asking for them."""
        gpus = make_gpus(nvml.ONE_16GB)
        group = '\n[[groups]]\nname = "photos"\nmodels = ["a", "b"]\n'
        entries = [gpu_entry(gpus, name, 4000) for name in ("a", "b", "c")]
        with gpus.rolecall(*entries, profile_text=group) as server:
            server.chat("a")
            server.await_state("b", "ready")
            assert states(server) == {"a": "ready", "b": "ready", "c": "stopped"}
            assert gpus.held_mb(pid_of(server, "b")) == {0: 4000}


def test_a_driver_that_fails_for_a_while_disturbs_nobody(make_gpus: MakeGpus) -> None:
    """While NVML answers every call with an error models answer and are loaded; afterwards memory is watched again."""
    gpus = make_gpus(nvml.ONE_16GB)
    good = gpus.simulation.machine.read_bytes()
    with gpus.rolecall(gpu_entry(gpus, "a", 5000), gpu_entry(gpus, "b", 5000), gpu_entry(gpus, "c", 9000)) as server:
        assert content(server.chat("a")) == words(8)
        nvml.DRIVER_ERROR.write(gpus.simulation.machine)
        eventually(lambda: server.get("/v1/config/profile")["gpu_problem"])
        assert content(server.chat("a")) == words(8)
        assert content(server.chat("b")) == words(8)
        assert server.row("a")["vram_reserved_mb"] == 5000
        gpus.simulation.machine.with_suffix(".new").write_bytes(good)
        gpus.simulation.machine.with_suffix(".new").replace(gpus.simulation.machine)
        assert content(server.chat("c")) == words(8)
        assert gpus.held_mb(pid_of(server, "c")) == {0: 9000}
        assert server.row("c")["vram_reserved_mb"] == 9000


@pytest.mark.alone  # of the ports that vLLM gets others may take one meanwhile, which costs a start
class TestVllm:
    @pytest.fixture
    def vllm(self, tmp_path: Path) -> str:
        """Return a program that is started as vLLM, and is the fake engine."""
        program = tmp_path / "vllm"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_ENGINE} "$@"\n')
        program.chmod(0o755)
        (tmp_path / "weights").mkdir()
        return str(program)

    @staticmethod
    def entry(gpus: Gpus, name: str, mb: int, *flags: str, **fields: Any) -> dict[str, Any]:
        """Return a vLLM entry that can sleep."""
        log = str(gpus.folder / f"{name}.starts")
        extra = ["--enable-sleep-mode", "--sleep-residual-mb", "500", "--starts-log", log, *flags]
        config = {"model_path": str(gpus.folder / "weights"), "extra_args": extra}
        return {"name": name, "backend": "vllm", "vram_estimate_mb": mb, "backend_config": config, **fields}

    def test_two_that_load_side_by_side_have_ports_of_their_own(self, make_gpus: MakeGpus, vllm: str) -> None:
        """Two vLLMs that start together get two of the driver's ports, though neither listens for a while."""
        gpus = make_gpus(nvml.TWO_16GB)
        entries = [self.entry(gpus, name, 9000, "--bind-delay-s", "0.5") for name in ("v", "w")]
        with gpus.rolecall(*entries, settings={"vllm_command": vllm}) as server, ThreadPoolExecutor() as pool:
            assert [content(answer) for answer in pool.map(server.chat, ("v", "w"))] == [words(8)] * 2
            ports = {server.row(name)["port"] for name in ("v", "w")}
            assert len(ports) == 2
            assert ports <= set(range(24001, 24011))
            assert [len(starts(gpus, name)) for name in ("v", "w")] == [1, 1]

    @pytest.mark.parametrize("level", [1, 2])
    def test_it_sleeps_to_make_room_and_wakes(self, make_gpus: MakeGpus, vllm: str, level: int) -> None:
        """A vLLM makes room by falling asleep, and answers after waking as before, in the same process."""
        gpus = make_gpus(nvml.ONE_16GB)
        entries = [self.entry(gpus, "v", 9000, metadata={"sleep_level": level}), gpu_entry(gpus, "other", 9000)]
        settings = {"vllm_command": vllm, "sleep_ram_mb": 64_000}
        with gpus.rolecall(*entries, settings=settings) as server:
            assert content(server.chat("v")) == words(8)
            pid = pid_of(server, "v")
            assert 8900 < gpus.held_mb(pid)[0] <= 9000
            assert content(server.chat("other")) == words(8)
            assert states(server) == {"other": "ready", "v": "sleeping"}
            assert gpus.held_mb(pid) == {0: 500}
            assert content(server.chat("v")) == words(8)
            assert states(server) == {"other": "stopped", "v": "ready"}
            assert pid_of(server, "v") == pid
            assert len(starts(gpus, "v")) == 1
            assert 8900 < gpus.held_mb(pid)[0] <= 9000

    def test_one_that_wakes_with_nonsense_is_restarted(self, make_gpus: MakeGpus, vllm: str) -> None:
        """A wrong answer to the canary ends the engine: the request is answered by a new one, which sleeps no more."""
        gpus = make_gpus(nvml.ONE_16GB)
        entries = [self.entry(gpus, "v", 9000, "--nonsense-after-wake"), gpu_entry(gpus, "other", 9000)]
        settings = {"vllm_command": vllm, "sleep_ram_mb": 64_000}
        with gpus.rolecall(*entries, settings=settings) as server:
            server.chat("v")
            pid = pid_of(server, "v")
            server.chat("other")
            assert states(server)["v"] == "sleeping"
            assert content(server.chat("v")) == words(8)
            assert pid_of(server, "v") != pid
            assert len(starts(gpus, "v")) == 2
            assert content(server.chat("other")) == words(8)
            assert states(server) == {"other": "ready", "v": "stopped"}


def test_nothing_is_left_of_rolecall(make_gpus: MakeGpus) -> None:
    """When rolecall ends all memory is free, without a wait for what the driver shows late."""
    gpus = make_gpus(nvml.TWO_16GB)
    child = ("--spawn-child", "--child-session", "--leave-child", "--child-holds-gpu")
    with gpus.rolecall(gpu_entry(gpus, "a", 6000, *child), gpu_entry(gpus, "b", 20000)) as server:
        server.chat("a")
        server.chat("b")
        server.chat("a")
        assert gpus.lost_mb() >= 6000
    assert gpus.lost_mb() == 0
    assert memory.free_mb(gpus.simulation) == {card.uuid: 16376 - FOREIGN_MB for card in gpus.cards}
