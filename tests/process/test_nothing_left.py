"""Nothing is left of rolecall, however it ends: not of its engines in any state, nor of what these have started.

Each engine here starts processes that are hard to end (``harness.BROOD``). All are found by a token in their
environment or on their command line: rolecall itself, its guardian, its engines, and everything below them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
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
    rest_of,
)
from rolecall.backends.base import LOOPBACK
from rolecall.runtime.engines import EMBEDDED, has_embedded
from rolecall.runtime.ports import is_free
from simulator import nvml
from unused_ports import unused_port

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")]

LIMIT_S = 5.0
"""In which everything has to be gone."""
ENDLESS = {"tokens": 10_000, "token_delay_s": 0.05}
FAKE_CLI = FAKE_ENGINE.with_name("fake_llama_cli.py")
ROUNDS = 6


@dataclass
class Stage:
    """Where a rolecall is killed: ``m`` is its one engine, on a port of its own; ``library`` stands in for NVML."""

    folder: Path
    token: str
    library: Path | None = None
    port: int = field(default_factory=unused_port)

    def fake(self, *faults: str, **settings: Any) -> Rolecall:
        """Return a rolecall with a fake engine."""
        return self._tracked(Rolecall(self.folder, [self.entry("m", *faults, port=self.port)], settings=settings))

    def entry(self, name: str, *faults: str, **config: Any) -> dict[str, Any]:
        """Return an entry for a fake engine with a brood."""
        entry = fake_entry(name, *faults)
        entry["backend_config"] = {"command": brood(self.token, *entry["backend_config"]["command"]), **config}
        return entry

    def sleeper(self) -> Rolecall:
        """Return a rolecall with a vLLM that can sleep, and a model that needs its room."""
        assert self.library is not None
        gpus = Gpus(self.library, self.folder, nvml.ONE_16GB)
        (self.folder / "weights").mkdir(exist_ok=True)
        config = {"port": self.port, "model_path": str(self.folder / "weights")}
        vllm = {"name": "m", "backend": "vllm", "vram_estimate_mb": 9000, "backend_config": config}
        config["extra_args"] = ["--enable-sleep-mode", "--ignore-term"]
        other = fake_entry("other", "--gpu-mb", "9000", vram_estimate_mb=9000)
        settings = {"vllm_command": self._program("vllm", sys.executable, str(FAKE_ENGINE)), "sleep_ram_mb": 64_000}
        return self._tracked(gpus.rolecall(vllm, other, settings=settings))

    def one_shot(self) -> Rolecall:
        """Return a rolecall whose engine runs a program for each request."""
        (self.folder / "m.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
        config = {"port": self.port, "mode": "cli", "model_path": str(self.folder / "m.gguf")}
        config["extra_args"] = ["--chat-template", "{{ messages[0].content }}"]
        entry = {"name": "m", "backend": "llama_cpp", "vram_estimate_mb": 100, "backend_config": config}
        program = self._program("llama-completion", sys.executable, str(FAKE_CLI), "llama-completion")
        path = f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}"
        environ = {"PATH": path, "FAKE_CLI_JOURNAL": str(self.folder)}
        return self._tracked(Rolecall(self.folder, [entry], environ=environ))

    def embedded(self) -> Rolecall:
        """Return a rolecall with llama.cpp itself."""
        config = {"port": self.port, "model_path": "${STATE_DIR}/demo/demo-chat.gguf"}
        entry = {"name": "m", "backend": "llama_cpp", "vram_estimate_mb": 100, "backend_config": config}
        settings = {"llama_server": self._program("llama-server", *EMBEDDED)}
        return self._tracked(Rolecall(self.folder, [entry], settings=settings))

    def _program(self, name: str, *argv: str) -> str:
        """Return a program that starts a brood and becomes ``argv``."""
        path = self.folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        argv_text = repr(brood(self.token, *argv))
        helps = "if '--help' in sys.argv:\n    sys.exit(print('-no-cnv'))\n"
        path.write_text(
            f"#!{sys.executable}\nimport os, sys\n{helps}os.execv({sys.executable!r}, {argv_text} + sys.argv[1:])\n"
        )
        path.chmod(0o755)
        return str(path)

    def _tracked(self, server: Rolecall) -> Rolecall:
        server.environ = {**server.environ, TOKEN_VARIABLE: self.token, "CHAT_PROXY_SHUTDOWN_GRACE_S": "0.2"}
        return server

    # -- ways into a state

    def start(self, server: Rolecall) -> None:
        """Have the engine start, and wait until it has its brood."""
        in_background(lambda: server.http.post("/v1/models/m/load"))
        server.await_state("m", "starting")
        self.await_brood()

    def load(self, server: Rolecall) -> None:
        """Load the engine."""
        assert server.http.post("/v1/models/m/load").status_code == 200

    def answer(self, server: Rolecall) -> None:
        """Have the engine loaded, and one answer of it."""
        assert server.chat("m").status_code == 200
        self.await_brood()

    def stream(self, server: Rolecall) -> None:
        """Have a stream in flight."""
        in_background(lambda: ask(server, "SLOW"))
        server.await_in_flight("m", 1)
        self.await_brood()

    def drain(self, server: Rolecall) -> None:
        """Have a stream in flight on an engine that is to be unloaded."""
        self.stream(server)
        self.unload(server)

    def stop(self, server: Rolecall) -> None:
        """Have an engine that was told to end."""
        self.load(server)
        self.unload(server)

    def unload(self, server: Rolecall) -> None:
        """Order the unload, and wait until it is under way."""
        in_background(lambda: server.http.post("/v1/models/m/unload"))
        server.await_state("m", "stopping")

    def sleep(self, server: Rolecall) -> None:
        """Have the engine asleep, because another model needed its room."""
        assert server.chat("m").status_code == 200
        assert server.chat("other").status_code == 200
        assert server.state_of("m") == "sleeping"

    def await_brood(self, count: int = 1) -> None:
        """Wait until so many engines have started all that they are to start."""
        eventually(lambda: len(brood_of(self.token)) == count * BROOD_SIZE)


def ask(server: Rolecall, text: str) -> None:
    """Read an endless stream to its end."""
    with server.stream("m", text, fake=ENDLESS) as answer:
        rest_of(answer.iter_lines())


def in_background(work: Callable[[], object]) -> None:
    """Do something that may well be cut off."""

    def do() -> None:
        with contextlib.suppress(httpx.HTTPError):
            work()

    threading.Thread(target=do, daemon=True).start()


@dataclass(frozen=True)
class Scene:
    """A rolecall, and how it comes into the state in which it is killed."""

    rolecall: Callable[[Stage], Rolecall]
    reach: Callable[[Stage, Rolecall], None]


SCENES: Mapping[str, Scene] = MappingProxyType(
    {
        "before the bind": Scene(lambda stage: stage.fake("--bind-delay-s", "60"), Stage.start),
        "loading": Scene(lambda stage: stage.fake("--load-s", "60"), Stage.start),
        "hanging": Scene(lambda stage: stage.fake("--never-bind", "--ignore-term"), Stage.start),
        "ready": Scene(lambda stage: stage.fake(), Stage.load),
        "with a stream": Scene(lambda stage: stage.fake("--slow-stop-with-stream"), Stage.stream),
        "draining": Scene(lambda stage: stage.fake(), Stage.drain),
        "stopping": Scene(lambda stage: stage.fake("--ignore-term"), Stage.stop),
        "asleep": Scene(Stage.sleeper, Stage.sleep),
        "one process per request": Scene(Stage.one_shot, Stage.stream),
        "llama.cpp": Scene(Stage.embedded, Stage.answer),
    }
)


def missing(name: str) -> str | None:
    """Return what a scene lacks here."""
    return "the embedded engine is an extra" if name == "llama.cpp" and not has_embedded() else None


def kill_in(name: str, stage: Stage) -> float:
    """Kill a rolecall in that state; return after how many s nothing was left, the engine's port free."""
    scene = SCENES[name]
    with scene.rolecall(stage) as server:
        scene.reach(stage, server)
        server.process.kill()
        elapsed_s = until_nothing_is_left(stage.token, server.process)
        assert is_free(LOOPBACK, stage.port)
    return elapsed_s


def until_nothing_is_left(token: str, process: subprocess.Popen[bytes]) -> float:
    """Return how many s it takes from now on; fail if it takes too long."""
    began = time.monotonic()
    process.wait()
    while left := processes_of(token):
        assert time.monotonic() < began + LIMIT_S, left
        time.sleep(0.01)
    return time.monotonic() - began


def guardian_of(server: Rolecall) -> psutil.Process:
    """Return the guardian's process."""
    children = psutil.Process(server.process.pid).children()
    return next(each for each in children if any("guardian_process" in word for word in each.cmdline()))


@pytest.fixture
def token() -> Iterator[str]:
    """Return what all processes of a test are known by; what a failed one leaves is ended."""
    token = new_token()
    yield token
    end_all(token)


@pytest.fixture
def stage(tmp_path: Path, token: str, nvml_library: Path) -> Stage:
    """Return a stage in the test's folder."""
    return Stage(tmp_path, token, nvml_library)


@pytest.mark.parametrize("name", SCENES)
def test_a_kill_leaves_nothing(stage: Stage, name: str) -> None:
    """Within 5 s of a SIGKILL of rolecall its engine is gone in whatever state, with all that it started."""
    if reason := missing(name):
        pytest.skip(reason)
    kill_in(name, stage)


def test_a_kill_while_a_second_engine_is_started(tmp_path: Path) -> None:
    """Neither the engine that runs nor the one that is just being started is left, whatever the moment."""
    for number in range(ROUNDS):
        stage = Stage(tmp_path / str(number), new_token())
        server = stage.fake()
        server.write_registry(stage.entry("m", port=stage.port), stage.entry("second"))
        try:
            with server:
                stage.load(server)
                in_background(lambda server=server: server.http.post("/v1/models/second/load"))  # type: ignore[misc]
                time.sleep(random.uniform(0, 0.25))  # the moment is what is tried here: there is nothing to wait for
                server.process.kill()
                until_nothing_is_left(stage.token, server.process)
        finally:
            end_all(stage.token)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("ready", number) for number in (signal.SIGTERM, signal.SIGINT)),
        *((name, signal.SIGTERM) for name in ("hanging", "with a stream", "asleep", "one process per request")),
    ],
)
def test_an_end_in_order_leaves_nothing(stage: Stage, name: str, number: signal.Signals) -> None:
    """When rolecall has ended by a signal nothing is there any more, not even for a moment."""
    scene = SCENES[name]
    with scene.rolecall(stage) as server:
        scene.reach(stage, server)
        server.terminate(number)
        assert server.process.wait(15) == 0
        assert processes_of(stage.token) == {}
        assert is_free(LOOPBACK, stage.port)
        assert "Traceback" not in server.words()


@pytest.mark.parametrize("pause_s", [0, 0.05, 0.3])
def test_guardian_and_rolecall_are_killed(stage: Stage, pause_s: float) -> None:
    """The guardian dies and rolecall right after it: what nobody could end then is ended by the next start."""
    with stage.fake("--ignore-term") as server:
        stage.load(server)
        guardian = guardian_of(server)
        guardian.kill()
        time.sleep(pause_s)  # less and more than it takes to start another guardian
        server.process.kill()
        server.process.wait()
        eventually(lambda: is_free(LOOPBACK, stage.port), within_s=LIMIT_S)
    old, stage.token = stage.token, new_token()
    try:
        with stage.fake() as server:
            assert processes_of(old) == {}
            assert server.chat("m").status_code == 200
            server.process.kill()
            until_nothing_is_left(stage.token, server.process)
    finally:
        end_all(old)


class Piped(Rolecall):
    """A rolecall whose output is read through a pipe; ``output_ended`` is set at its end of file."""

    def launch(self) -> None:
        """Start the process, and copy what it says."""
        self.output_ended = threading.Event()
        self.terminal.touch()
        self.process = subprocess.Popen(
            self.argv, env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        threading.Thread(target=self._copy, daemon=True).start()

    def _copy(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout, self.terminal.open("ab", buffering=0) as terminal:
            while data := os.read(self.process.stdout.fileno(), 65536):
                terminal.write(data)
        self.output_ended.set()


def test_nobody_holds_the_output(stage: Stage) -> None:
    """Who reads rolecall's output sees its end at once, though the guardian and what it has to end are still there."""
    fake = stage.fake("--ignore-term")
    with Piped(fake.folder, fake.entries, environ=fake.environ) as server:
        stage.load(server)
        guardian = guardian_of(server)
        guardian.suspend()
        server.process.kill()
        assert server.output_ended.wait(LIMIT_S)
        assert len(brood_of(stage.token)) == BROOD_SIZE
        assert is_running(guardian.pid)
        guardian.resume()
        until_nothing_is_left(stage.token, server.process)
