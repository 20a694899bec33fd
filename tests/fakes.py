"""One fake for each seam: Backend, Launcher, GpuProbe, Transport, Tagger. Where time matters it is an argument."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from rolecall.backends.base import Call, Launch, Reducible, SleepCalls, Spread, Upstream
from rolecall.core.models import ModelEntry
from rolecall.core.profiles import GpuSnapshot
from rolecall.core.vram import Placement
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.runtime.gpu import GpuReport
from rolecall.runtime.leftovers import EngineRecord
from rolecall.vision.datasets_records import Sample, Wish
from rolecall.vision.jobs import Tagged
from rolecall.vision.jobs_places import Place


@dataclass
class FakeBackend:
    """An engine of which only the base URL is real; ``paths`` are its files, ``reason`` says why it never works."""

    name: str = "llama_cpp"
    managed: bool = True
    reason: str | None = None
    paths: tuple[Path, ...] = ()
    slots: int = 4
    has_port: bool = True
    takes_share: bool = False
    ports: range | None = None
    possible_gpus: tuple[int, ...] = (1,)
    keeps_roles: bool = False
    sleep_level: int | None = None
    reducible: Reducible = field(default_factory=Reducible)
    lacking: Mapping[str, str] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)

    def unavailable(self, entry: ModelEntry) -> str | None:
        """Return the reason that the test gave."""
        return self.reason

    def files(self, entry: ModelEntry) -> tuple[Path, ...]:
        """Return the files that the test gave, else the entry's model path."""
        path = entry.backend_config.model_path
        return self.paths or (() if path is None else (Path(path),))

    def parallel(self, entry: ModelEntry) -> int:
        """Return ``max_parallel`` of the entry, else ``slots``."""
        return entry.max_parallel or self.slots

    def served_id(self, entry: ModelEntry) -> str:
        """Return the entry's name."""
        return entry.name

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> Launch:
        """Return a launch whose one word of argv is the entry's name, and note the placement."""
        self.placements[entry.name] = placement
        sleeps = () if self.sleep_level is None else (sleep_calls(f"http://127.0.0.1:{port}", self.sleep_level),)
        return Launch((entry.name,), f"http://127.0.0.1:{port}/v1", sleeps=sleeps)

    def spread(self, entry: ModelEntry) -> Spread:
        """Return the numbers of GPUs that the test gave."""
        return Spread(possible=self.possible_gpus)

    def build(self) -> str:
        """Return the same build always."""
        return f"{self.name} 1"

    def upstream(self, entry: ModelEntry, port: int) -> Upstream:
        """Return the address of the launch."""
        return Upstream(f"http://127.0.0.1:{port}/v1")

    def lacks(self, entry: ModelEntry, endpoint: str) -> str | None:
        """Return what the test said of the endpoint."""
        return self.lacking.get(endpoint)

    def shares_context(self, entry: ModelEntry) -> bool:
        """Return that each has its own."""
        return False


def sleep_calls(url: str, level: int = 1) -> SleepCalls:
    """Return vLLM's calls, as ``FakeLauncher`` answers them."""
    return SleepCalls(
        sleep=Call("POST", f"{url}/sleep?level={level}"),
        wake=(Call("POST", f"{url}/wake_up?tags=weights"), Call("POST", f"{url}/wake_up?tags=kv_cache")),
        is_sleeping=Call("GET", f"{url}/is_sleeping"),
        level=level,
    )


class FakeProcess:
    """A process that ends when the test says so, or by a signal it obeys; ``spared`` is what ``send_rest`` left out."""

    def __init__(self, pid: int, *, obeys: Iterable[int] = (signal.SIGTERM, signal.SIGKILL)) -> None:
        self.pid = pid
        self.signals: list[int] = []
        self.lines: list[str] = []
        self.problem_of_log: str | None = None
        self.spared: list[str | None] = []
        self._obeys = frozenset(obeys)
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def exit(self, code: int) -> None:
        """End it with an exit code; negative for a signal."""
        if not self._code.done():
            self._code.set_result(code)

    async def wait(self) -> int:
        """Return the exit code once it has ended."""
        return await asyncio.shield(self._code)

    def is_ending(self) -> bool:
        """Whether it has ended."""
        return self._code.done()

    def send(self, signal_number: int) -> None:
        """Note the signal, and end if it is one that this process obeys."""
        self.signals.append(signal_number)
        if signal_number in self._obeys:
            self.exit(-signal_number)

    def send_rest(self, signal_number: int, spare: str | None = None) -> None:
        """Note the signal; one that spares somebody ends nobody here."""
        self.spared.append(spare)
        if spare is None:
            self.send(signal_number)
        else:
            self.signals.append(signal_number)

    def members(self) -> list[int]:
        """Return itself."""
        return [self.pid]

    def tail(self, lines: int) -> list[str]:
        """Return the last of ``lines``."""
        return self.lines[-lines:]

    def log_problem(self) -> str | None:
        """Return what the test says."""
        return self.problem_of_log


@dataclass
class FakeLauncher:
    """Starts fake processes, and answers as their engines for whoever uses ``http``.

    ``ready`` holds the models whose health path answers 200, ``asleep`` those that sleep. ``calls`` are the paths that
    were asked for, health apart, ``probes`` how often that was. ``answers`` gives the text that a model answers any
    prompt with, ``faults`` the status of the answer to a path instead of 200; none is given unless ``hold`` is set, and
    none about their health while ``is_silent``.
    """

    error: OSError | None = None
    ready: set[str] = field(default_factory=set)
    asleep: set[str] = field(default_factory=set)
    answers: dict[str, str] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    probes: int = 0
    is_silent: bool = False
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    started: list[str] = field(default_factory=list)
    processes: dict[str, FakeProcess] = field(default_factory=dict)
    obeys: tuple[int, ...] = (signal.SIGTERM, signal.SIGKILL)
    _models: dict[str, str] = field(default_factory=dict)
    _health_urls: set[str] = field(default_factory=set)
    _pids: Iterator[int] = field(default_factory=lambda: itertools.count(2**30))

    def __post_init__(self) -> None:
        """Let answers go."""
        self.hold.set()

    def adopt(self, record: EngineRecord) -> FakeProcess:
        """Take over a process that was started before."""
        return self.processes[record.model]

    async def start(self, model: str, launch: Launch) -> FakeProcess:
        """Start a process with a number that no real process has."""
        if self.error is not None:
            raise self.error
        self.started.append(model)
        return self.running(model, launch)

    def running(self, model: str, launch: Launch) -> FakeProcess:
        """Return a process that nobody started."""
        origin = launch.base_url.removesuffix("/v1")
        self._models[origin] = model
        self._health_urls.add(origin + launch.health_path)
        self.processes[model] = FakeProcess(next(self._pids), obeys=self.obeys)
        return self.processes[model]

    def http(self) -> httpx.AsyncClient:
        """Return a client that is answered by the engines that were started; others refuse the connection."""
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        model = next((name for origin, name in self._models.items() if str(request.url).startswith(origin + "/")), None)
        if model is None:
            raise httpx.ConnectError("refused", request=request)
        if str(request.url) in self._health_urls:
            self.probes += 1
            if self.is_silent:
                await asyncio.Event().wait()
            return httpx.Response(200 if model in self.ready else 503)
        path = request.url.raw_path.decode()
        self.calls.append(path)
        await self.hold.wait()
        if path in self.faults:
            return httpx.Response(self.faults[path], json={"error": {"message": "as the test says"}})
        if path.startswith("/sleep"):
            self.asleep.add(model)
        if path.startswith("/wake_up"):
            self.asleep.discard(model)
        if path == "/is_sleeping":
            return httpx.Response(200, json={"is_sleeping": model in self.asleep})
        message = {"role": "assistant", "content": self.answers.get(model, "four, five, six")}
        return httpx.Response(200, json={"choices": [{"message": message, "finish_reason": "length"}]})


class FakeProbe:
    """A GPU probe that reports the cards that the test set last."""

    def __init__(self, *gpus: GpuSnapshot, problem: str | None = None) -> None:
        self.gpus = gpus
        self.problem = problem
        self.asked = 0

    def report(self) -> GpuReport:
        """Return the cards."""
        self.asked += 1
        return GpuReport(self.gpus, self.problem, None)


class FakeResolver:
    """Gives each name the addresses that the test gave it, one answer after the other; the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): list(rows) for name, rows in answers.items()}
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        """Note the question and return the next answer."""
        self.asked.append(host)
        if host not in self.answers:
            raise OSError("no such host")
        rows = self.answers[host]
        return rows.pop(0) if len(rows) > 1 else rows[0]


class FakeTransport:
    """An upstream that gives every request the answer that ``answer`` makes of its URL and body."""

    def __init__(self, answer: Callable[[str, bytes], UpstreamResponse]) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self._answer = answer

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes | AsyncIterable[bytes], *, head_timeout_s: float
    ) -> UpstreamResponse:
        """Note the request and return its answer."""
        if not isinstance(body, bytes):
            body = b"".join([chunk async for chunk in body])
        self.requests.append((url, body))
        return self._answer(url, body)

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""


def chat_client(answer: Callable[[dict[str, Any]], str | httpx.Response]) -> httpx.AsyncClient:
    """Return a client for which ``answer`` makes an assistant's text, or a whole response, of each chat's body."""

    def respond(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        said = answer(body)
        if isinstance(said, httpx.Response):
            return said
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        headers = {"x-rolecall-model": "the model", "x-request-id": "req_1"}
        return httpx.Response(200, json={"model": "m", "choices": [choice], "usage": usage}, headers=headers)

    return httpx.AsyncClient(transport=httpx.MockTransport(respond), base_url="http://rolecall")


@dataclass
class FakeTagger:
    """Gives every picture the tags ``tags``; ``faults`` holds what is raised for a file name, as often as it is there.

    While ``hold`` is clear it waits. ``asked`` are the file names in the order in which they were asked for.
    """

    tags: tuple[str, ...] = ("dark", "indoor")
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: int = 0
    most_at_once: int = 0
    _awaited: dict[int, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Let answers go."""
        self.hold.set()

    async def tag(self, wish: Wish, folder: Path, sample: Sample, place: Place) -> Tagged:
        """Return the tags, or raise what the test gave."""
        name = sample.file.name
        self.asked.append(name)
        if len(self.asked) in self._awaited:
            self._awaited[len(self.asked)].set()
        async with place.asking():
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                await asyncio.sleep(0)
                await self.hold.wait()
            finally:
                self.at_once -= 1
        if self.faults.get(name):
            raise self.faults[name].pop(0)
        return Tagged(self.tags, "fake")

    async def until_asked(self, count: int) -> None:
        """Wait until it was asked so often."""
        if len(self.asked) < count:
            await asyncio.wait_for(self._awaited.setdefault(count, asyncio.Event()).wait(), 20)
