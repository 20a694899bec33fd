"""A whole rolecall as a process of its own, with fake engines, for tests over real sockets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from typing_extensions import Self

from rolecall.core.profiles import RESERVE_MB
from simulator import memory, nvml
from simulator.nvml import Machine

T = TypeVar("T")

DEADLINE_S = 20.0
CHAT = "/v1/chat/completions"
FAKE_ENGINE = Path(__file__).parent / "process" / "fake_engine.py"
CONFIGS = Path(__file__).parents[1] / "configs"
ROOMY = """
[profiles.roomy]
max_vram_mb = 1000000
max_concurrent_models = 100
preferred_quantizations = ["q4_k_m"]
strategy = "concurrent_full"
bias = "quality"
idle_unload_s = 3600
"""
"""A profile under which no test disturbs another by eviction."""

PYTHON_VARIABLE = "ROLECALL_TEST_PYTHON"
"""Names the interpreter that runs rolecall, where the tests themselves run in an environment without it."""

_AGENTS = itertools.count()
_SETTINGS_VARIABLES = ("CHAT_PROXY_", "IMAGEWORKS_")


def eventually(question: Callable[[], T | None], *, within_s: float = DEADLINE_S) -> T:
    """Return the first answer that is true; fail if there is none before the deadline."""
    deadline = time.monotonic() + within_s
    while not (answer := question()):
        assert time.monotonic() < deadline, f"still {answer!r} after {within_s:g} s"
        time.sleep(0.01)
    return answer


def is_running(pid: int) -> bool:
    """Whether there is such a process and it is no zombie."""
    try:
        return _is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_engine(process: psutil.Process) -> bool:
    try:
        return not any("guardian_process" in word for word in process.cmdline())
    except psutil.Error:
        return False


TOKEN_VARIABLE = "ROLECALL_TEST_RUN"
"""In the environment of a rolecall whose processes are to be found again, all that it starts included."""


def new_token() -> str:
    """Return what no other test's processes have; a number, so that ``sleep`` takes it."""
    return f"{random.randrange(10**12):012}"


def processes_of(token: str) -> dict[int, str]:
    """Return the command lines of all processes with ``token`` in their environment or on their command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (folder / "cmdline").read_bytes()
            if token.encode() in argv or f"{TOKEN_VARIABLE}={token}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = argv.replace(b"\0", b" ").decode(errors="replace").strip()
    return {pid: words for pid, words in found.items() if words and is_running(pid)}


def end_all(token: str) -> None:
    """Kill what a test left, whatever it is."""
    while found := processes_of(token):
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


BROOD = """
import os, signal, sys
token, *command = sys.argv[1:]

def start(*steps, environ=os.environ):
    if os.fork() == 0:
        for step in steps:
            step()
        os.execve("/bin/sleep", ["sleep", "600." + token], environ)

def orphan():
    if os.fork():
        os._exit(0)

def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

start()
start(ignore_sigterm)
start(environ={})
start(os.setsid, ignore_sigterm)
start(orphan)
start(orphan, os.setsid, orphan, ignore_sigterm)
os.execvp(command[0], command)
"""
"""Starts six processes that are hard to end, and becomes an engine: in its session and in others, as children and as
orphans, some that ignore SIGTERM, one without an environment."""
BROOD_SIZE = 6


def _number(file: Path) -> int:
    """Return which rotated file of a log it is, 0 for the present one."""
    number = file.suffix[1:]
    return int(number) if number.isdecimal() else 0


_GIVES_SOCKET = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execvp(sys.argv[3], sys.argv[3:])
"""


def with_socket(given: socket.socket | BufferedWriter, argv: Sequence[str], count: int = 1) -> list[str]:
    """Return a command line by which a process gets a socket as systemd gives it; it goes with ``pass_fds``."""
    return [sys.executable, "-I", "-S", "-c", _GIVES_SOCKET, str(given.fileno()), str(count), *argv]


def brood(token: str, *command: str) -> list[str]:
    """Return the command line of an engine that has started ``BROOD``."""
    return [sys.executable, "-I", "-S", "-c", BROOD, token, *command]


def brood_of(token: str) -> list[int]:
    """Return the processes that engines with a brood have started."""
    return [pid for pid, words in processes_of(token).items() if words == f"sleep 600.{token}"]


def fake_entry(name: str, *faults: str, **fields: Any) -> dict[str, Any]:
    """Return a registry entry whose engine is the fake one, with ``faults`` on its command line."""
    command = ["{python}", str(FAKE_ENGINE), "--port", "{port}", "--alias", "{alias}", *faults]
    config = {"command": command, **fields.pop("backend_config", {})}
    return {"name": name, "backend": "llama_cpp", "backend_config": config, "vram_estimate_mb": 100, **fields}


def upstream_entry(name: str, base_url: str, **fields: Any) -> dict[str, Any]:
    """Return a registry entry for a server that somebody else runs."""
    config = {"base_url": base_url, **fields.pop("backend_config", {})}
    return {"name": name, "backend": "openai", "backend_config": config, **fields}


def prompt(model: str, text: str = "hi", **body: Any) -> dict[str, Any]:
    """Return a chat request with one user message; ``fake`` sets the knobs of the fake engine."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **body}


def picture(size: int = 8, scheme: str = "data:image/png;base64,") -> dict[str, Any]:
    """Return an image part of about ``size`` bytes of base64."""
    return {"type": "image_url", "image_url": {"url": scheme + "A" * size}}


def events(text: str) -> list[Any]:
    """Return the JSON of each SSE event; ``[DONE]`` as it is."""
    data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def text_of(stream: Sequence[Any]) -> str:
    """Return the content that the chunks of a stream carry."""
    chunks = [event for event in stream if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))


def words(count: int) -> str:
    """Return the fake engine's answer of that many tokens."""
    return " ".join(f"w{number}" for number in range(count))


class Gpus:
    """Simulated GPUs for one rolecall and its engines; ``index`` is NVML's everywhere, amounts are MB."""

    def __init__(self, library: Path, folder: Path, machine: Machine) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.machine = folder, machine
        self.environ = nvml.variables(library, machine, folder)
        self.simulation = nvml.simulation(folder)
        self.cards = memory.cards(self.simulation)

    def rolecall(self, *entries: Mapping[str, Any], profile_text: str = "", **fields: Any) -> Rolecall:
        """Return a rolecall for all that these GPUs offer, however many models that is; not started yet.

        ``profile_text`` is added to its ``profiles.toml``.
        """
        usable_mb = sum(card.total_mb - RESERVE_MB for card in self.cards)
        settings = {"max_vram_mb": usable_mb, **fields.pop("settings", {})}
        made = Rolecall(self.folder, entries, settings=settings, environ=self.environ, **fields)
        with (made.config_dir / "profiles.toml").open("a", encoding="utf-8") as file:
            file.write(profile_text)
        return made

    def uuid(self, index: int = 0) -> str:
        """Return the UUID of a GPU."""
        return self.cards[index].uuid

    def free_mb(self, index: int = 0) -> int:
        """Return what NVML shows as free."""
        return memory.free_mb(self.simulation)[self.uuid(index)]

    def held_mb(self, pid: int) -> dict[int, int]:
        """Return what a process holds, by GPU."""
        held = memory.held_mb(self.simulation, pid)
        return {card.index: held[card.uuid] for card in self.cards if card.uuid in held}

    def lost_mb(self) -> int:
        """Return what is taken beyond foreign use, over all GPUs."""
        free = memory.free_mb(self.simulation)
        return sum(card.free_mb - free[card.uuid] for card in memory.cards(self.simulation))

    def set_foreign_mb(self, mb: int, index: int = 0) -> None:
        """Let others hold so much from now on."""
        memory.set_foreign_mb(self.simulation, self.uuid(index), mb)


def rest_of(lines: Iterator[str]) -> tuple[list[Any], bool]:
    """Return the events that are left of a stream's lines, and whether it came to its proper end."""
    seen: list[str] = []
    try:
        seen.extend(lines)
    except httpx.RemoteProtocolError:
        return events("\n".join(seen)), False
    return events("\n".join(seen)), True


def http_request(body: Any, *, path: str = CHAT, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a POST that asks for the connection to be closed afterwards."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(data))}
    fields |= {"Connection": "close", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def new_agent() -> str:
    """Return a user agent that no other request has; by it a line can be found whose client never got an id."""
    return f"test-{next(_AGENTS)}"


def read_to_end(raw: socket.socket) -> bytes:
    """Return all bytes until the other side closes."""
    return b"".join(iter(lambda: raw.recv(65536), b""))


def unchunked(body: bytes) -> tuple[bytes, bool]:
    """Return the content of a chunked body, and whether its terminating chunk was there."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            return content, True
        content, body = content + rest[:count], rest[count + 2 :]
    return content, False


@dataclass
class Rolecall:
    """``python -m rolecall serve`` on a free port, with a config folder, state folder and log of its own in ``folder``.

    It is ended by ``stop`` or by leaving the ``with`` block, and then no engine may be left.
    """

    folder: Path
    entries: Sequence[Mapping[str, Any]] = ()
    profile: str | None = "roomy"
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    state_dir: Path | None = None

    def __post_init__(self) -> None:
        """Write the configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_dir = self.folder / "configs"
        self.config_dir.mkdir(exist_ok=True)
        self.state = self.state_dir or self.folder / "state"
        self.log_path = self.folder / "log.jsonl"
        self.terminal = self.folder / "terminal.txt"
        (self.config_dir / "profiles.toml").write_text((CONFIGS / "profiles.toml").read_text() + ROOMY)
        self.write_registry(*self.entries)
        values = {"deployment_profile": self.profile, **self.settings} if self.profile else dict(self.settings)
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        (self.config_dir / "rolecall.toml").write_text("".join(lines))

    def write_registry(self, *entries: Mapping[str, Any], name: str = "curated") -> None:
        """Replace a registry file in one step."""
        self.write_registry_text(json.dumps(entries), name)

    def write_registry_text(self, text: str, name: str = "curated") -> None:
        """Replace a registry file in one step by any text."""
        path = self.config_dir / f"model_registry.{name}.json"
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    # -- its life

    @property
    def argv(self) -> list[str]:
        """Its command line."""
        options = {"--port": "0", "--config-dir": self.config_dir, "--state-dir": self.state}
        options |= {} if "log_path" in self.settings else {"--log-path": self.log_path}
        words = [str(word) for option in options.items() for word in option]
        return [os.environ.get(PYTHON_VARIABLE, sys.executable), "-m", "rolecall", "serve", *words, *self.arguments]

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment without settings of rolecall, and with ``environ``."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS_VARIABLES)}
        return {**clean, **self.environ}

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run it to its end; for starts that are to be refused."""
        env, folder = self.environment, self.folder
        return subprocess.run(
            self.argv, env=env, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )

    def launch(self) -> None:
        """Start the process without waiting for anything."""
        with self.terminal.open("wb") as terminal:
            self.process = subprocess.Popen(
                self.argv, env=self.environment, cwd=self.folder, stdout=terminal, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Self:
        """Start it and wait until it says where it is ready."""
        self.launch()
        try:
            ready = eventually(self._ready_line)
        except BaseException:
            self.kill()
            raise
        self.base_url = ready.partition(" ready at ")[2].partition("/v1 ")[0]
        self.port = int(self.base_url.rpartition(":")[2])
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self.http = httpx.Client(base_url=self.base_url, timeout=DEADLINE_S, limits=limits, trust_env=False)
        return self

    def _ready_line(self) -> str | None:
        assert self.process.poll() is None, self.words()
        return next((line for line in self.words().splitlines() if " ready at " in line and "/v1 " in line), None)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End it; after a failed test without asking how."""
        if self.process.poll() is None:
            if kind is None:
                assert self.stop() == 0, self.words()
            else:
                self.kill()
        self.http.close()

    def engine_processes(self) -> list[psutil.Process]:
        """Return every process that descends from it, but for the guardian of the engines."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in psutil.Process(self.process.pid).children(recursive=True) if _is_engine(child)]
        return []

    def stop(self, within_s: float = 30.0) -> int:
        """End it by SIGTERM and return the exit code; fails if an engine is left."""
        self.terminate()
        return self.ended(within_s)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, and return at once."""
        self.engines = self.engine_processes()
        self.process.send_signal(number)

    def ended(self, within_s: float = 30.0) -> int:
        """Wait until it has ended and return the exit code; fails if an engine is left."""
        code = self.process.wait(within_s)
        self.assert_gone(self.engines)
        return code

    def kill(self) -> None:
        """End it by SIGKILL, and its engines with it as far as the kernel does that."""
        engines = self.engine_processes()
        self.process.kill()
        self.process.wait()
        for engine in engines:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.kill()

    @staticmethod
    def assert_gone(engines: Sequence[psutil.Process]) -> None:
        """Fail unless all these processes end at once; a group that was killed needs a moment."""
        eventually(lambda: not any(_is_alive(engine) for engine in engines), within_s=2)

    def words(self) -> str:
        """Return what it has said on the terminal."""
        return self.terminal.read_text(errors="replace")

    # -- what is asked of it

    def chat(self, model: str, text: str = "hi", **body: Any) -> httpx.Response:
        """Send a chat request and return the whole answer."""
        return self.http.post(CHAT, json=prompt(model, text, **body))

    def stream(self, model: str, text: str = "hi", **body: Any) -> contextlib.AbstractContextManager[httpx.Response]:
        """Send a streamed chat request."""
        return self.http.stream("POST", CHAT, json=prompt(model, text, stream=True, **body))

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON of a GET that succeeds."""
        answer = self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def row(self, model: str) -> dict[str, Any]:
        """Return a model's row of /v1/models/health."""
        rows: list[dict[str, Any]] = self.get("/v1/models/health")["data"]
        return next(row for row in rows if row["model"] == model)

    def state_of(self, model: str) -> str:
        """Return the state of a model in words."""
        return str(self.row(model)["state"])

    def await_state(self, model: str, state: str) -> None:
        """Wait until a model is in that state."""
        eventually(lambda: self.state_of(model) == state)

    def await_in_flight(self, model: str, count: int) -> None:
        """Wait until so many leases of a model are out."""
        eventually(lambda: self.row(model)["in_flight"] == count)

    def await_waiting(self, count: int) -> None:
        """Wait until so many requests are in the queue."""
        eventually(lambda: self.get("/health")["queue"] == count)

    def stats(self, model: str) -> dict[str, Any]:
        """Return what the fake engine of a loaded model has seen."""
        seen: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.row(model)['port']}/stats", trust_env=False).json()
        return seen

    def raw(self, data: bytes = b"") -> socket.socket:
        """Return a connection on which ``data`` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        connection.sendall(data)
        return connection

    def exchange(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send raw bytes and return status, headers and body of an answer that ends with its connection."""
        with self.raw(data) as connection:
            head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        return int(start.split(" ")[1]), {name.lower(): value for name, _, value in pairs}, body

    def log_lines(self, count: int = 0) -> list[dict[str, Any]]:
        """Return the lines of the request log once there are at least ``count``."""
        eventually(lambda: len(self._lines()) >= count)
        return self._lines()

    def _lines(self) -> list[dict[str, Any]]:
        files = self.log_path.parent.glob(self.log_path.name + "*")
        found: list[dict[str, Any]] = []
        # The oldest first, by number: one that is moved on meanwhile may be missed, and is never read twice.
        for file in sorted(files, key=_number, reverse=True):
            with contextlib.suppress(FileNotFoundError):
                lines = file.read_text().splitlines(keepends=True)
                found += [json.loads(line) for line in lines if line[-1:] == "\n"]
        return found

    def line_of(self, answer: httpx.Response) -> dict[str, Any]:
        """Return the log line of an answer."""
        return self.line(answer.headers["x-request-id"])

    def line(self, request_id: str) -> dict[str, Any]:
        """Return the one log line of a request, once it is there."""
        found = eventually(lambda: [line for line in self._lines() if line["request_id"] == request_id])
        assert len(found) == 1
        return found[0]

    def line_by(self, client: str) -> dict[str, Any]:
        """Return the one log line of a request that came with this user agent, once it is there."""
        found = eventually(lambda: [line for line in self._lines() if line["client"].split(" ")[1:] == [client]])
        assert len(found) == 1
        return found[0]


class Upstream:
    """A server on loopback that answers each POST by whatever ``answer`` does with the connection and the request."""

    def __init__(self, answer: Callable[[socket.socket, bytes], None]) -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = read_request(connection)
            self.requests.append(request)
            self._answer(connection, request)

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


@contextlib.contextmanager
def upstream(answer: Callable[[socket.socket, bytes], None]) -> Iterator[Upstream]:
    """Run an ``Upstream`` for a while."""
    server = Upstream(answer)
    try:
        yield server
    finally:
        server.close()


def read_request(connection: socket.socket) -> bytes:
    """Return one HTTP request with its body as it came."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += _some(connection)
    return head + b"\r\n\r\n" + body


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionResetError
    return data
