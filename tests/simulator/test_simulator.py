"""Simulated GPUs, seen through nvidia-ml-py by one process while fake engines take and give back their memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import CHAT, FAKE_ENGINE, eventually, prompt
from simulator import memory, nvml
from simulator.memory import OutOfMemory, Simulation
from simulator.nvml import Machine, card
from unused_ports import unused_port

FIRST, SECOND = (card(index, 16000, 15000) for index in (0, 1))
ONE, TWO = Machine((FIRST,)), Machine((FIRST, SECOND))
FREE_MB = 15000

OBSERVER = """
import json, sys
from rolecall.runtime.nvml import NvmlProbe
probe = NvmlProbe()
for _ in sys.stdin:
    report = probe.report()
    free = {gpu.uuid: gpu.vram_free_mb for gpu in report.gpus}
    print(json.dumps([free, report.processes_mb, report.problem]), flush=True)
"""


@dataclass
class Engine:
    """A started fake engine; ``ready`` waits for it."""

    process: subprocess.Popen[bytes]
    base_url: str
    terminal: Path

    def ready(self) -> Engine:
        eventually(lambda: self._health() == 200)
        return self

    def _health(self) -> int | None:
        assert self.process.poll() is None, self.words()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.base_url}/health", trust_env=False).status_code
        return None

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return httpx.post(self.base_url + path, json=body, timeout=10, trust_env=False)

    def chat(self) -> str:
        answer = self.post(CHAT, prompt("any")).json()
        return str(answer["choices"][0]["message"]["content"])

    def stats(self) -> Any:
        return httpx.get(f"{self.base_url}/stats", trust_env=False).json()

    def words(self) -> str:
        return self.terminal.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Box:
    """A machine with simulated GPUs: one process looks at it through NVML, others are started on it."""

    def __init__(self, library: Path, folder: Path, stack: contextlib.ExitStack) -> None:
        self.library, self.folder, self._stack = library, folder, stack
        self.simulation: Simulation = nvml.simulation(folder)

    def boot(self, machine: Machine) -> Box:
        """Make this the machine, and begin to look at it."""
        self.environ = nvml.environment(self.library, machine, self.folder)
        self.environ.pop("CUDA_VISIBLE_DEVICES", None)
        argv = [sys.executable, "-c", OBSERVER]
        pipe = subprocess.PIPE
        self.observer = subprocess.Popen(argv, env=self.environ, stdin=pipe, stdout=pipe, text=True)
        self._stack.callback(_end, self.observer)
        return self

    def look(self) -> tuple[dict[str, int], dict[str, dict[str, int]], str | None]:
        """Return what is free by UUID, what each process holds by UUID and pid, and the problem, of one report."""
        assert self.observer.stdin
        assert self.observer.stdout
        self.observer.stdin.write("\n")
        self.observer.stdin.flush()
        free, processes, problem = json.loads(self.observer.stdout.readline())
        return free, processes, problem

    def free_mb(self, gpu: int = 0) -> int:
        return list(self.look()[0].values())[gpu]

    def start(self, *flags: str, **environ: str) -> Engine:
        """Start a fake engine in a session of its own, and wait for nothing."""
        port = unused_port()
        terminal = self.folder / f"terminal-{port}"
        argv = [sys.executable, str(FAKE_ENGINE), "--port", str(port), *flags]
        with terminal.open("wb") as file:
            process = subprocess.Popen(argv, env={**self.environ, **environ}, stderr=file, start_new_session=True)
        self._stack.callback(_end, process)
        return Engine(process, f"http://127.0.0.1:{port}", terminal)


def _end(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


@pytest.fixture
def box(nvml_library: Path, tmp_path: Path) -> Iterator[Box]:
    with contextlib.ExitStack() as stack:
        yield Box(nvml_library, tmp_path, stack)


class TestTaking:
    def test_a_loaded_engine_holds_its_memory(self, box: Box) -> None:
        """What an engine takes is missing from what NVML shows as free, and is listed under its pid."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "6000").ready()
        free, processes, problem = box.look()
        assert free == {FIRST.uuid: FREE_MB - 6000}
        assert processes == {FIRST.uuid: {str(engine.process.pid): 6000}}
        assert problem is None
        assert engine.stats()["gpu_mb"] == 6000

    def test_engines_add_up(self, box: Box) -> None:
        """Two engines side by side hold the sum, each its own part."""
        box.boot(ONE)
        engines = [box.start("--gpu-mb", str(mb)) for mb in (6000, 7000)]
        pids = [str(engine.ready().process.pid) for engine in engines]
        free, processes, _ = box.look()
        assert free[FIRST.uuid] == FREE_MB - 13000
        assert processes[FIRST.uuid] == dict(zip(pids, (6000, 7000), strict=True))

    def test_it_is_taken_bit_by_bit(self, box: Box) -> None:
        """While an engine loads its part grows, so that a look in between sees less than the whole."""
        box.boot(ONE)
        box.start("--gpu-mb", "8000", "--load-s", "1")
        seen = {FREE_MB}

        def loaded() -> bool:
            seen.add(box.free_mb())
            return min(seen) == FREE_MB - 8000

        eventually(loaded)
        assert len(seen) >= 4
        assert {(FREE_MB - mb) % 800 for mb in seen} == {0}

    def test_too_large_a_model_ends_with_1(self, box: Box) -> None:
        """What does not fit is refused in llama-server's words, and nothing stays taken."""
        box.boot(ONE)
        box.start("--gpu-mb", "10000").ready()
        second = box.start("--gpu-mb", "6000", "--load-s", "0.3")
        assert second.process.wait(10) == 1
        assert "allocating 2000.00 MiB on device 0: cudaMalloc failed: out of memory\n" in second.words()
        assert "error loading model: unable to allocate CUDA0 buffer\n" in second.words()
        assert box.free_mb() == FREE_MB - 10000

    def test_racing_engines_never_take_more_than_there_is(self, box: Box) -> None:
        """Of engines that load at the same time as many fit as fit, whoever comes first."""
        box.boot(ONE)
        engines = [box.start("--gpu-mb", "6000") for _ in range(4)]
        ended = eventually(lambda: [e for e in engines if e.process.poll() is not None][1:])
        assert box.free_mb() >= FREE_MB - 12000
        assert {engine.process.poll() for engine in ended} == {1}
        assert [engine.ready() for engine in engines if engine.process.poll() is None]
        assert box.free_mb() == FREE_MB - 12000

    def test_the_first_completion_may_take_more(self, box: Box) -> None:
        """An engine grows once, by its first completion, as with compute buffers that are made when they are needed."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "1000", "--gpu-grow-mb", "500").ready()
        assert box.free_mb() == FREE_MB - 1000
        assert [engine.chat()[:2] for _ in range(2)] == ["w0", "w0"]
        assert box.free_mb() == FREE_MB - 1500

    def test_growing_without_room_aborts(self, box: Box) -> None:
        """Where the memory for a request is missing the engine ends by SIGABRT with CUDA's words."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "14800", "--gpu-grow-mb", "500").ready()
        with pytest.raises(httpx.TransportError):
            engine.chat()
        assert engine.process.wait(10) == -signal.SIGABRT
        assert "CUDA error: out of memory\n" in engine.words()
        assert box.free_mb() == FREE_MB

    def test_foreign_memory_changes_while_processes_run(self, box: Box) -> None:
        """What others hold can come and go under running engines, and takes room from them."""
        box.boot(ONE)
        box.start("--gpu-mb", "4000").ready()
        memory.set_foreign_mb(box.simulation, FIRST.uuid, 9000)
        assert box.free_mb() == 16000 - 9000 - 4000
        assert box.start("--gpu-mb", "4000").process.wait(10) == 1
        memory.set_foreign_mb(box.simulation, FIRST.uuid, 15000)
        assert box.free_mb() == 0
        Machine((card(0, 16000, 16000),)).write(box.simulation.machine)
        assert box.free_mb() == 12000

    def test_vllm_takes_its_share(self, box: Box) -> None:
        """As vLLM an engine takes a share of the card, or refuses to start where that share is not free."""
        box.boot(ONE)
        box.start("--gpu-memory-utilization", "0.5").ready()
        assert box.free_mb() == FREE_MB - 8000
        second = box.start("--gpu-memory-utilization", "0.5")
        assert second.process.wait(10) == 1
        assert "Free memory on device cuda:0 (6.84/15.62 GiB) on startup is less than desired" in second.words()
        flags = ("--gpu-memory-utilization", "0.9", "--kv-cache-memory-bytes", "2G", "--gpu-mb", "1000")
        box.start(*flags).ready()
        assert box.free_mb() == FREE_MB - 8000 - 3048

    def test_load_time_by_size(self, box: Box) -> None:
        """A load takes its seconds per 1024 MB on top of the fixed ones."""
        box.boot(ONE)
        begun = time.monotonic()
        box.start("--gpu-mb", "2048", "--load-s-per-gb", "0.4", "--load-s", "0.2").ready()
        assert time.monotonic() - begun >= 1.0


class TestPlaces:
    @pytest.mark.parametrize(
        ("visible", "held"),
        [
            pytest.param(None, [3000, 0], id="unset"),
            pytest.param(SECOND.uuid, [0, 3000], id="a UUID"),
            pytest.param("1", [0, 3000], id="an index"),
            pytest.param(f"{SECOND.uuid},{FIRST.uuid}", [1500, 1500], id="two"),
            pytest.param("0,7,1", [3000, 0], id="one that is not there"),
            pytest.param("GPU-0000", [0, 0], id="an ambiguous UUID"),
            pytest.param("", [0, 0], id="none"),
        ],
    )
    def test_visible_devices(self, box: Box, visible: str | None, held: list[int]) -> None:
        """CUDA_VISIBLE_DEVICES says where the memory is taken, evenly; an engine that sees no GPU takes none."""
        box.boot(TWO)
        engine = box.start("--gpu-mb", "3000", **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})).ready()
        assert [FREE_MB - mb for mb in box.look()[0].values()] == held
        assert ("no CUDA-capable device" in engine.words()) == (not any(held))

    def test_so_much_on_each(self, box: Box) -> None:
        """An amount for each GPU is taken on all that are visible, as by tensor parallelism."""
        box.boot(TWO)
        engine = box.start("--gpu-mb-per-gpu", "3000", CUDA_VISIBLE_DEVICES="0,1").ready()
        assert list(box.look()[0].values()) == [FREE_MB - 3000] * 2
        assert [list(held) for held in box.look()[1].values()] == [[str(engine.process.pid)]] * 2

    def test_all_or_nothing(self, box: Box) -> None:
        """One GPU without room is enough to refuse, and it is named."""
        box.boot(Machine((FIRST, card(1, 16000, 1000))))
        engine = box.start("--gpu-mb", "4000", CUDA_VISIBLE_DEVICES="0,1")
        assert engine.process.wait(10) == 1
        assert "on device 1: cudaMalloc failed" in engine.words()
        assert list(box.look()[0].values()) == [FREE_MB, 1000]

    def test_without_a_simulation(self, box: Box) -> None:
        """Where no GPU is simulated an engine with --gpu-mb starts, takes none and says so."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "4000", NVML_STUB_ALLOCATIONS="").ready()
        assert engine.stats()["gpu_mb"] == 0
        assert "no CUDA-capable device" in engine.words()


class TestRelease:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
    def test_the_end_frees_however_it_comes(self, box: Box, number: signal.Signals) -> None:
        """Memory is free after the end of the process, with nobody to free it."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "6000").ready()
        engine.process.send_signal(number)
        engine.process.wait()
        assert box.look() == ({FIRST.uuid: FREE_MB}, {FIRST.uuid: {}}, None)

    def test_a_zombie_holds_nothing(self, box: Box) -> None:
        """A process that nobody has waited for has given its memory back."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "6000").ready()
        engine.process.kill()
        eventually(lambda: box.free_mb() == FREE_MB)
        assert Path(f"/proc/{engine.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def test_late_release(self, box: Box) -> None:
        """Memory can stay taken for a while after the death, from when somebody looks; no process is listed then."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "6000", "--gpu-release-late-s", "0.8").ready()
        engine.kill()
        begun = time.monotonic()
        assert box.look() == ({FIRST.uuid: FREE_MB - 6000}, {FIRST.uuid: {}}, None)
        assert memory.free_mb(box.simulation) == {FIRST.uuid: FREE_MB - 6000}
        with pytest.raises(OutOfMemory):
            memory.hold(box.simulation, {FIRST.uuid: 10000})
        eventually(lambda: box.free_mb() == FREE_MB)
        assert time.monotonic() - begun >= 0.75
        box.start("--gpu-mb", "10000").ready()

    def test_a_pid_that_is_used_again_holds_nothing(self, box: Box) -> None:
        """What a dead process held is not taken for that of a later process with the same pid."""
        box.boot(ONE)
        pid, birth = os.getpid(), memory.birth_of(os.getpid())
        assert birth
        (box.simulation.allocations / f"{pid}-{birth - 1}").write_text(f"{FIRST.uuid} 6000 0.0\n")
        assert box.look() == ({FIRST.uuid: FREE_MB}, {FIRST.uuid: {}}, None)
        assert memory.free_mb(box.simulation) == {FIRST.uuid: FREE_MB}

    def test_a_grandchild_keeps_it(self, box: Box) -> None:
        """Memory that a grandchild holds, as vLLM's EngineCore does, stays taken when its parent alone is killed."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "6000", "--spawn-child", "--child-holds-gpu").ready()
        child = engine.stats()["child_pid"]
        engine.kill()
        free, processes, _ = box.look()
        assert (free[FIRST.uuid], processes) == (FREE_MB - 6000, {FIRST.uuid: {str(child): 6000}})
        os.killpg(engine.process.pid, signal.SIGKILL)
        eventually(lambda: box.free_mb() == FREE_MB)

    def test_nothing_piles_up(self, box: Box) -> None:
        """What is free again leaves the folder when the next process takes memory."""
        box.boot(ONE)
        for _ in range(3):
            box.start("--gpu-mb", "10000").ready().kill()
        box.start("--gpu-mb", "10000").ready()
        held = [path for path in box.simulation.allocations.iterdir() if re.fullmatch(r"\d+-\d+", path.name)]
        assert len(held) == 1


class TestSleep:
    def test_sleeping_gives_back_all_but_a_rest(self, box: Box) -> None:
        """Asleep an engine holds its residue, each tag that wakes takes its part again, and awake it holds all."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "9000", "--sleep-mode", "--sleep-residual-mb", "1000").ready()
        assert engine.post("/sleep?level=1").json() == {"status": "sleeping", "level": 1}
        assert box.free_mb() == FREE_MB - 1000
        assert engine.post("/wake_up?tags=weights").json() == {"status": "sleeping", "tags": ["weights"]}
        assert box.free_mb() == FREE_MB - 5000
        assert engine.post("/wake_up?tags=kv_cache").json() == {"status": "awake", "tags": ["kv_cache"]}
        assert box.free_mb() == FREE_MB - 9000

    def test_waking_without_room_fails_and_can_be_repeated(self, box: Box) -> None:
        """Where another engine took the room, waking is a 500 with CUDA's words; it works once there is room again."""
        box.boot(ONE)
        sleeper = box.start("--gpu-mb", "9000", "--sleep-mode").ready()
        sleeper.post("/sleep?level=1")
        other = box.start("--gpu-mb", "9000").ready()
        refused = sleeper.post("/wake_up")
        assert (refused.status_code, refused.json()["error"]["type"]) == (500, "InternalServerError")
        assert "CUDA Error: out of memory" in refused.json()["error"]["message"]
        assert box.free_mb() == FREE_MB - 500 - 9000
        other.kill()
        assert sleeper.post("/wake_up").json()["status"] == "awake"
        assert sleeper.chat()[:2] == "w0"
        assert box.free_mb() == FREE_MB - 9000

    def test_development_endpoints_alone_free_nothing(self, box: Box) -> None:
        """Without --enable-sleep-mode the engine only pauses."""
        box.boot(ONE)
        engine = box.start("--gpu-mb", "9000", VLLM_SERVER_DEV_MODE="1").ready()
        assert engine.post("/sleep?level=2").status_code == 200
        assert box.free_mb() == FREE_MB - 9000
        assert engine.post("/wake_up").json()["status"] == "awake"
        assert engine.chat()[:2] == "w0"
        assert box.free_mb() == FREE_MB - 9000


class TestProcesses:
    @pytest.mark.parametrize(
        ("kind", "listed"),
        [
            pytest.param("listed", {"{pid}": 6000}, id="listed"),
            pytest.param("empty", {}, id="empty"),
            pytest.param("host-pids", {"{host}": 6000}, id="host pids"),
            pytest.param("unmeasured", None, id="no figures"),
            pytest.param(3, None, id="not supported"),
            pytest.param(4, None, id="no permission"),
            pytest.param(13, None, id="old driver"),
        ],
    )
    def test_what_a_driver_tells_of_processes(self, box: Box, kind: str | int, listed: dict[str, int] | None) -> None:
        """The driver lists pids and figures, or nobody, or no figures, or refuses; the memory is shown anyway."""
        box.boot(Machine((FIRST,), processes=kind))
        pid = box.start("--gpu-mb", "6000").ready().process.pid
        free, processes, problem = box.look()
        named = {"{pid}": str(pid), "{host}": str(pid + 1_000_000)}
        assert processes == ({} if listed is None else {FIRST.uuid: {named[key]: mb for key, mb in listed.items()}})
        assert (free[FIRST.uuid], problem) == (FREE_MB - 6000, None)

    def test_each_gpu_answers_for_itself(self, box: Box) -> None:
        """A GPU that does not tell its processes does not hide those of the others."""
        box.boot(Machine((FIRST, SECOND, card(2, 8000, 8000)), processes=(3, "listed", "unmeasured")))
        engine = box.start("--gpu-mb-per-gpu", "3000", CUDA_VISIBLE_DEVICES="0,1,2").ready()
        free, processes, problem = box.look()
        assert processes == {SECOND.uuid: {str(engine.process.pid): 3000}}
        assert list(free.values()) == [FREE_MB - 3000, FREE_MB - 3000, 5000]
        assert problem is None

    def test_many_processes(self, box: Box) -> None:
        """As many processes as hold memory are listed, also where they are more than at the first look."""
        box.boot(ONE)
        assert box.look()[1] == {FIRST.uuid: {}}
        sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(20)]
        try:
            for sleeper in sleepers:
                memory.hold(box.simulation, {FIRST.uuid: 10}, pid=sleeper.pid)
            assert box.look()[1] == {FIRST.uuid: {str(sleeper.pid): 10 for sleeper in sleepers}}
        finally:
            for sleeper in sleepers:
                sleeper.kill()
                sleeper.wait()
        assert box.look()[1] == {FIRST.uuid: {}}


class TestFromATest:
    def test_a_test_takes_memory_itself(self, box: Box) -> None:
        """A test can hold memory as any process does, more and less of it, and is refused what is not there."""
        box.boot(ONE)
        memory.hold(box.simulation, {FIRST.uuid: 5000})
        assert box.look()[1] == {FIRST.uuid: {str(os.getpid()): 5000}}
        with pytest.raises(OutOfMemory, match="GPU 0 has no 10001 MB"):
            memory.hold(box.simulation, {FIRST.uuid: 15001})
        assert memory.held_mb(box.simulation, os.getpid()) == {FIRST.uuid: 5000}
        memory.hold(box.simulation, {FIRST.uuid: 15000})
        memory.hold(box.simulation, {})
        assert (box.free_mb(), memory.free_mb(box.simulation)) == (FREE_MB, {FIRST.uuid: FREE_MB})

    def test_the_dead_take_nothing(self, box: Box) -> None:
        """Memory cannot be taken for a process that has ended."""
        box.boot(ONE)
        with subprocess.Popen(["true"]) as process:
            process.wait()
        with pytest.raises(ProcessLookupError):
            memory.hold(box.simulation, {FIRST.uuid: 1}, pid=process.pid)

    def test_both_readers_agree_under_churn(self, box: Box) -> None:
        """While more comes and goes than fits, never more than there is is taken; at rest both readers agree."""
        assert box.boot(ONE).free_mb() == FREE_MB
        script = "import os, contextlib; from simulator import memory; s = memory.from_environment(os.environ)\n"
        script += "with contextlib.suppress(memory.OutOfMemory):\n"
        script += f"    for mb in range(0, 7700, 700): memory.hold(s, {{{FIRST.uuid!r}: mb}}, late_s=0.5)\n"
        environ = {**box.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        with ThreadPoolExecutor(4) as pool:
            runs = [
                pool.submit(subprocess.run, [sys.executable, "-c", script], env=environ, check=True) for _ in range(20)
            ]
            taken, shown = [], []
            while not all(run.done() for run in runs):
                free, processes, _ = box.look()
                taken.append(sum(processes[FIRST.uuid].values()))
                shown += [free[FIRST.uuid], memory.free_mb(box.simulation)[FIRST.uuid]]
        assert 0 < max(taken) <= FREE_MB
        assert min(shown) < FREE_MB - 7000
        eventually(lambda: box.free_mb() == FREE_MB)
        assert memory.free_mb(box.simulation) == {FIRST.uuid: FREE_MB}


def test_a_machine_by_hand(tmp_path: Path, nvml_library: Path, rolecall_sees: Callable[[dict[str, str]], Any]) -> None:
    """The script prints what a shell exports, and with it rolecall sees the GPUs of its command line."""
    script = Path(nvml.__file__).with_name("simulate.py")
    argv = [sys.executable, str(script), str(tmp_path / "gpus"), "16376", "24564:20000", "--processes", "empty"]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    exported = dict(word.split("=", 1) for line in printed.splitlines() for word in shlex.split(line)[1:])
    free, processes, _ = rolecall_sees({**os.environ, **exported})
    assert list(free.values()) == [16076, 20000]
    assert [list(held) for held in processes.values()] == [[], []]


@pytest.fixture
def rolecall_sees() -> Callable[[dict[str, str]], Any]:
    """Runs one report in a process with that environment."""

    def run(environ: dict[str, str]) -> Any:
        argv = [sys.executable, "-c", OBSERVER]
        done = subprocess.run(argv, env=environ, input="\n", capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run
