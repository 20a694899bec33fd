"""One engine from its start to its end: real processes of the fake engine, and a fake process where order matters."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import FakeLauncher, FakeProcess, sleep_calls
from harness import FAKE_ENGINE, is_running
from rolecall.backends.base import Call, Launch
from rolecall.runtime.instance import Exit, Instance, Listener, Patience
from rolecall.runtime.launcher import EngineLauncher, Launcher
from rolecall.runtime.progress import Progress
from unused_ports import unused_port

Make = Callable[..., "Life"]

URL = "http://127.0.0.1:9"
LAUNCH = Launch(("engine",), f"{URL}/v1")
SLEEPS = replace(LAUNCH, sleeps=(sleep_calls(URL),))
BRISK = Patience(probe_every_s=0.01, term_grace_s=0.05, last_grace_s=0.02)


class Life:
    """An instance that runs, and what it told its listener."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.told: list[str] = []
        self.exit: Exit | None = None
        self.is_progressing = False
        self.port = 0
        self.changed = asyncio.Event()
        listener = Listener(
            on_started=self._on_started,
            on_ready=lambda: self._tell("ready"),
            on_asleep=lambda: self._tell("asleep"),
            on_exit=self._on_exit,
            is_progressing=lambda: self.is_progressing,
        )
        self.task = asyncio.create_task(instance.run(listener))

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self.changed.set()

    def _on_started(self, pid: int) -> None:
        self.pid = pid
        self._tell("started")

    def _on_exit(self, exit_: Exit | None) -> None:
        self.exit = exit_
        self._tell("exit")

    @property
    def error(self) -> str:
        """What it told of its end; empty for an end that was asked for."""
        return self.exit.error if self.exit else ""

    async def end(self) -> str:
        """Wait for its end and return the reason; nothing of the process is left then."""
        await asyncio.wait_for(self.task, 20)
        assert self.told.count("exit") == 1
        assert "started" not in self.told or not is_running(self.pid)
        return self.error

    async def tells(self, what: str, times: int = 1) -> None:
        """Wait until it has told something so often; fail when it ends before."""

        async def wait() -> None:
            while self.told.count(what) < times:
                assert what == "exit" or "exit" not in self.told, self.error
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), 20)


async def until(question: Callable[[], object]) -> None:
    """Wait until the answer is true."""

    async def ask() -> None:
        while not question():  # noqa: ASYNC110 - of what fakes count there is no event
            await asyncio.sleep(0.002)

    await asyncio.wait_for(ask(), 20)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """Return a client as the supervisor has one."""
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


@pytest.fixture
async def lives() -> AsyncIterator[list[Life]]:
    """Return a list of lives that are ended afterwards."""
    begun: list[Life] = []
    yield begun
    for life in begun:
        life.instance.stop()
    await asyncio.gather(*(life.task for life in begun), return_exceptions=True)


@pytest.fixture
def make(tmp_path: Path, http: httpx.AsyncClient, lives: list[Life]) -> Make:
    """Return a maker of instances of the fake engine, a real process with these flags."""

    def begin(*flags: str, sleeps: int = 0, launcher: Launcher | None = None, **options: Any) -> Life:
        port = unused_port()
        url = f"http://127.0.0.1:{port}"
        argv = (sys.executable, str(FAKE_ENGINE), "--port", str(port), *flags)
        launch = Launch(argv, f"{url}/v1", sleeps=(sleep_calls(url, sleeps),) if sleeps else ())
        engines = launcher or EngineLauncher(tmp_path, os.environ)
        lives.append(Life(Instance("m", launch, engines, http, **{"load_timeout_s": 20, **options})))
        lives[-1].port = port
        return lives[-1]

    return begin


class Bench:
    """Fake processes, for lives in which every step is the test's."""

    def __init__(self, lives: list[Life]) -> None:
        self.engines = FakeLauncher(ready={"m"})
        self._lives = lives

    @property
    def process(self) -> FakeProcess:
        """The process that was started last."""
        return self.engines.processes["m"]

    def begin(self, launch: Launch = LAUNCH, *, adopts: bool = False, **options: Any) -> Life:
        """Begin a life; with ``adopts`` of a process that is there already."""
        options = {"load_timeout_s": 20, "patience": BRISK, "served_id": "m", **options}
        if adopts:
            options["adopted"] = self.engines.running("m", launch)
        self._lives.append(Life(Instance("m", launch, self.engines, self.engines.http(), **options)))
        return self._lives[-1]

    async def ready(self, launch: Launch = LAUNCH, **options: Any) -> Life:
        """Begin a life and wait until it is ready."""
        life = self.begin(launch, **options)
        await life.tells("ready")
        return life

    async def probes(self, count: int) -> None:
        """Wait until so many more health probes have come."""
        seen = self.engines.probes
        await until(lambda: self.engines.probes >= seen + count)

    async def asleep(self, **options: Any) -> Life:
        """Begin a life and put it to sleep."""
        life = await self.ready(SLEEPS, **options)
        life.instance.sleep(1)
        await life.tells("asleep")
        return life


@pytest.fixture
def bench(lives: list[Life]) -> Bench:
    """Return a bench."""
    return Bench(lives)


# -- a life in order


async def test_a_life_in_order(make: Make) -> None:
    """Started, ready once requests are answered, and gone after a stop, which is no error."""
    life = make("--load-s", "0.1")
    await life.tells("ready")
    assert life.instance.pid == life.pid
    assert life.pid in life.instance.members()
    assert is_running(life.pid)
    life.instance.stop()
    life.instance.stop()
    await life.end()
    assert life.exit is None
    assert life.told == ["started", "ready", "exit"]


async def test_an_exit_while_loading(make: Make) -> None:
    """The reason has the exit code and the engine's last lines."""
    life = make("--fail-start", "cannot load: no such tensor", "--exit-code", "3")
    assert (await life.end()).splitlines()[0] == "exit code 3. The engine's last lines:"
    assert "cannot load: no such tensor" in life.error
    assert life.told == ["started", "exit"]


@pytest.mark.parametrize("code", [0, 1])
async def test_an_exit_while_ready(bench: Bench, code: int) -> None:
    """An end that nobody asked for is an error, whatever the exit code."""
    life = await bench.ready()
    bench.process.exit(code)
    assert await life.end() == f"exit code {code}, without a word"
    assert life.told == ["started", "ready", "exit"]


@pytest.mark.parametrize("lines", [[], ["it begins"]])
async def test_a_log_that_cannot_be_written_any_more(bench: Bench, lines: list[str]) -> None:
    """It is told with the end of an engine, for which it may be the reason, and which can't say so itself."""
    life = await bench.ready()
    bench.process.lines = lines
    bench.process.problem_of_log = "its log m.log cannot be written: No space left on device"
    bench.process.exit(1)
    told = "exit code 1, and its log m.log cannot be written: No space left on device"
    assert await life.end() == "\n".join([told + ". The engine's last lines:", *lines] if lines else [told])


async def test_a_kill_while_ready(make: Make) -> None:
    """The signal is named."""
    life = make()
    await life.tells("ready")
    os.kill(life.pid, signal.SIGKILL)
    assert (await life.end()).startswith("killed by SIGKILL. The engine's last lines:")


async def test_a_kill_that_is_noticed_after_a_stop(make: Make) -> None:
    """An engine that was dead before it was asked to end has crashed, with its last lines, whoever knew of it."""
    life = make()
    await life.tells("ready")
    os.kill(life.pid, signal.SIGKILL)
    os.waitid(os.P_PID, life.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the loop must not turn
    life.instance.stop()
    assert (await life.end()).startswith("killed by SIGKILL. The engine's last lines:")
    assert life.told == ["started", "ready", "exit"]


async def test_a_connection_that_breaks_before_a_stop(make: Make) -> None:
    """Whoever sees an answer cut off by a crash may ask for the end at once: the engine was on its way out by then."""
    life = make("--crash-after-tokens", "1", "--spawn-child")
    await life.tells("ready")
    reader, writer = await asyncio.open_connection("127.0.0.1", life.port)
    body = b'{"messages": [], "stream": true, "fake": {"tokens": 2}}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    with suppress(ConnectionResetError):
        await reader.read()
    life.instance.stop()
    writer.close()
    assert (await life.end()).startswith("killed by SIGKILL. The engine's last lines:")


async def test_an_engine_that_crashes_when_it_is_asked_to_end(bench: Bench) -> None:
    """That is no crash: it was to go."""
    bench.engines.obeys = ()
    life = await bench.ready()
    life.instance.stop()
    await until(lambda: bench.process.signals)
    bench.process.exit(-signal.SIGSEGV)
    assert not await life.end()
    assert life.exit is None


async def test_an_engine_that_is_given_up_before_it_is_to_stop(bench: Bench) -> None:
    """It was not well, and that is told, though somebody wants its room while it is being ended for it."""
    bench.engines.obeys = ()
    life = await bench.ready(patience=replace(BRISK, term_grace_s=20))
    bench.engines.ready.clear()
    await until(lambda: bench.process.signals)
    life.instance.stop()
    bench.process.exit(0)
    assert "health" in await life.end()


@pytest.mark.parametrize("asleep", [False, True])
async def test_an_engine_that_is_told_to_stop_after_it_broke_down(bench: Bench, *, asleep: bool) -> None:
    """Its process lives on, and says that it is not well: that is told, but of one that sleeps nothing is expected."""
    begin = bench.asleep if asleep else bench.ready
    life = await begin(patience=replace(BRISK, probe_every_s=60))
    bench.engines.ready.clear()
    life.instance.stop()
    said = await life.end()
    assert said.startswith("" if asleep else "it had broken down: HTTP 503")
    assert (life.exit is None) is asleep


async def test_an_engine_that_takes_its_time_has_not_broken_down(bench: Bench) -> None:
    """One that does not answer soon may be well: it is ended as any other."""
    life = await bench.ready(patience=replace(BRISK, probe_every_s=60, last_probe_s=0.01))
    bench.engines.is_silent = True
    life.instance.stop()
    assert not await life.end()
    assert life.exit is None


async def test_a_stop_before_the_start(make: Make) -> None:
    """A stop that comes before the process is there ends it all the same."""
    life = make()
    life.instance.stop()
    assert not await life.end()
    assert "ready" not in life.told


@pytest.mark.parametrize("flag", ["--never-ready", "--never-bind"])
async def test_a_stop_while_loading(make: Make, flag: str) -> None:
    """A stop does not wait for the load."""
    life = make(flag)
    await life.tells("started")
    life.instance.stop()
    assert not await life.end()
    assert life.told == ["started", "exit"]


async def test_a_stop_as_it_becomes_ready(lives: list[Life]) -> None:
    """Whoever asked for the end is not told any more that it is ready."""

    def answer(_: httpx.Request) -> httpx.Response:
        lives[0].instance.stop()
        return httpx.Response(200)

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    lives.append(Life(Instance("m", LAUNCH, FakeLauncher(), http, load_timeout_s=20)))
    assert not await lives[0].end()
    assert lives[0].told == ["started", "exit"]


async def test_a_program_that_is_not_there(tmp_path: Path, http: httpx.AsyncClient) -> None:
    """The reason names it."""
    launch = Launch(("/no/such/engine",), "http://127.0.0.1:9/v1")
    life = Life(Instance("m", launch, EngineLauncher(tmp_path, {}), http, load_timeout_s=20))
    reason = await life.end()
    assert "exit code 127" in reason
    assert "/no/such/engine: No such file or directory" in reason


@pytest.mark.parametrize("words", [("\0",), ("true", "a\0b")])
async def test_a_command_that_no_process_can_have(
    tmp_path: Path, http: httpx.AsyncClient, words: tuple[str, ...]
) -> None:
    """The reason is told as for any other start that fails."""
    life = Life(Instance("m", Launch(words, ""), EngineLauncher(tmp_path, {}), http, load_timeout_s=20))
    assert (await life.end()).startswith("it cannot be started: ")
    assert life.told == ["exit"]


async def test_a_launcher_that_fails(make: Make) -> None:
    """Without a process there is only the end, with its reason."""
    life = make(launcher=FakeLauncher(error=OSError("no space left")))
    assert await life.end() == "it cannot be started: no space left"
    assert life.told == ["exit"]


async def test_what_runs_an_instance_may_be_cancelled(make: Make) -> None:
    """Even then the process is ended and its end is told."""
    life = make()
    await life.tells("ready")
    life.task.cancel()
    await asyncio.gather(life.task, return_exceptions=True)
    assert life.told == ["started", "ready", "exit"]
    assert life.exit is None
    assert not is_running(life.pid)


async def test_an_engine_that_is_let_go(bench: Bench) -> None:
    """It lives on, and nobody is told anything."""
    life = await bench.ready()
    life.instance.let_go()
    await asyncio.wait_for(life.task, 20)
    assert life.told == ["started", "ready"]
    assert bench.process.signals == []


async def test_a_stop_goes_before_letting_go(bench: Bench) -> None:
    """An engine that is to end is not let go."""
    life = await bench.ready()
    life.instance.stop()
    life.instance.let_go()
    await life.end()
    assert bench.process.signals == [signal.SIGTERM]


# -- patience


@pytest.mark.parametrize("flag", ["--never-ready", "--never-bind"])
async def test_an_engine_that_is_never_ready(make: Make, flag: str) -> None:
    """After load_timeout_s without a sign of progress it is ended and the reason says so."""
    life = make(flag, load_timeout_s=0.3)
    assert "not ready after 0.3 s (load_timeout_s) without a sign of progress" in await life.end()
    assert life.told == ["started", "exit"]


async def test_a_load_that_is_slow_but_gets_on(make: Make) -> None:
    """A log that grows keeps a load alive far beyond load_timeout_s."""
    life = make("--load-s", "1.5", "--progress-log", load_timeout_s=0.4, patience=Patience(load_limit=50))
    await life.tells("ready")


async def test_a_load_that_computes(tmp_path: Path, bench: Bench) -> None:
    """CPU time is a sign too, but not for ever: beyond the limit it is ended, and that is said in words."""
    launch = Launch((sys.executable, "-c", "while True: pass"), LAUNCH.base_url)
    engines, patience = EngineLauncher(tmp_path, os.environ), Patience(load_limit=2)
    life = Life(Instance("m", launch, engines, bench.engines.http(), load_timeout_s=1, patience=patience))
    limit = "not ready after 2 s, which is 2 times load_timeout_s, though it still seemed to be at work"
    assert (await life.end()).startswith(limit)


async def test_a_model_that_hangs(tmp_path: Path, bench: Bench) -> None:
    """An engine that waits for a FIFO gives no sign, and is ended after load_timeout_s."""
    os.mkfifo(tmp_path / "model.gguf")
    launch = Launch((sys.executable, "-c", f"open({str(tmp_path / 'model.gguf')!r})"), LAUNCH.base_url)
    engines = EngineLauncher(tmp_path, os.environ)
    life = Life(Instance("m", launch, engines, bench.engines.http(), load_timeout_s=0.5))
    assert (await life.end()).startswith("not ready after 0.5 s (load_timeout_s)")


async def test_progress_of_a_load(bench: Bench) -> None:
    """It is known while the engine loads and has been loaded before, and nothing once it is ready."""
    bench.engines.ready.clear()
    life = bench.begin()
    assert life.instance.progress(100, 10) == Progress()
    await life.tells("started")
    done = life.instance.progress(100, None)
    assert done.fraction is not None
    assert 0 < done.fraction < 0.5
    assert done.eta_s == pytest.approx(100, abs=50)
    assert life.instance.progress(None, 10) == Progress()
    bench.engines.ready.add("m")
    await life.tells("ready")
    assert life.instance.progress(100, None) == Progress()


# -- health


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--health-dies-after-s", "HTTP 503"), ("--hang-health-after-s", "no answer within 0.05 s")],
)
async def test_an_engine_that_is_no_longer_well(make: Make, flag: str, words: str) -> None:
    """Three probes in a row that fail, and it is ended as a crash that says why."""
    life = make(flag, "0.5", patience=Patience(slowest_poll_s=0.02, probe_every_s=0.02, probe_timeout_s=0.05))
    reason = await life.end()
    assert life.told == ["started", "ready", "exit"]
    assert reason.startswith(f"its health probe failed 3 times: {words}")


async def test_an_engine_whose_port_is_gone(bench: Bench) -> None:
    """A refused connection is a probe that failed."""
    life = await bench.ready()
    bench.engines._models.clear()
    assert (await life.end()).startswith("its health probe failed 3 times: connection refused")
    assert bench.process.signals == [signal.SIGTERM]


async def test_one_that_recovers(bench: Bench) -> None:
    """Failures count in a row only."""
    life = await bench.ready(patience=replace(BRISK, probe_failures=3))
    for _ in range(4):
        bench.engines.ready.clear()
        await bench.probes(1)
        bench.engines.ready.add("m")
        await bench.probes(1)
    assert life.told == ["started", "ready"]


async def test_an_engine_whose_answers_get_on(bench: Bench) -> None:
    """It is not ended however often its health path fails, until nothing moves any more."""
    life = await bench.ready()
    life.is_progressing = True
    bench.engines.ready.clear()
    await bench.probes(7)
    assert life.told == ["started", "ready"]
    life.is_progressing = False
    assert (await life.end()).startswith("its health probe failed ")


# -- the end


async def test_an_engine_that_ignores_sigterm(make: Make) -> None:
    """It is asked first, given a while, and then killed."""
    life = make("--ignore-term", patience=Patience(term_grace_s=0.1))
    await life.tells("ready")
    life.instance.stop()
    assert not await life.end()


@pytest.mark.parametrize(
    ("killed_last", "signals", "spared"),
    [
        (None, [signal.SIGTERM, signal.SIGKILL], [None]),
        ("tracker", [signal.SIGTERM, signal.SIGKILL, signal.SIGKILL], ["tracker", None]),
    ],
)
async def test_the_order_of_an_end(
    bench: Bench, killed_last: str | None, signals: list[int], spared: list[str | None]
) -> None:
    """All are asked, then all are killed but those that clean up, then these."""
    bench.engines.obeys = (signal.SIGKILL,)
    life = await bench.ready(replace(LAUNCH, killed_last=killed_last))
    life.instance.stop()
    await life.end()
    assert bench.process.signals == signals
    assert bench.process.spared == spared


async def test_the_grace_of_the_launch(bench: Bench) -> None:
    """An engine that is known to hang is killed sooner than others."""
    bench.engines.obeys = (signal.SIGKILL,)
    launch = replace(LAUNCH, term_grace_s=0.0)
    life = await bench.ready(launch, patience=Patience(term_grace_s=3600))
    life.instance.stop()
    await life.end()
    assert bench.process.signals == [signal.SIGTERM, signal.SIGKILL]


@pytest.mark.parametrize(
    ("last_words", "is_for_memory"),
    [("CUDA error: out of memory", True), ("prompt: 'CUDA error: out of memory'", False)],
)
async def test_an_end_for_lack_of_memory(bench: Bench, last_words: str, is_for_memory: bool) -> None:  # noqa: FBT001
    """It is told apart by the engine's own words."""
    life = await bench.ready()
    bench.process.lines = ["load: a", last_words, *(f"  #{number} ggml_abort" for number in range(40))]
    bench.process.exit(-6)
    await life.end()
    assert life.exit is not None
    assert life.exit.out_of_memory is is_for_memory
    assert life.error.splitlines()[0] == "killed by SIGABRT. The engine's last lines:"
    assert len(life.error.splitlines()) == 13


# -- sleep


async def test_sleep_and_waking(bench: Bench) -> None:
    """The canary is asked twice before the first sleep, and once after each waking, before anybody is told."""
    life = await bench.asleep()
    asked = ["/v1/chat/completions"]
    slept = ["/sleep?level=1", "/is_sleeping"]
    woken = ["/wake_up?tags=weights", "/wake_up?tags=kv_cache", "/is_sleeping", *asked]
    assert bench.engines.calls == [*asked, *asked, *slept]
    life.instance.wake()
    await life.tells("ready", 2)
    life.instance.sleep(1)
    await life.tells("asleep", 2)
    life.instance.wake()
    await life.tells("ready", 3)
    assert bench.engines.calls == [*asked, *asked, *slept, *woken, *slept, *woken]
    assert life.told == ["started", "ready", "asleep", "ready", "asleep", "ready"]


async def test_an_engine_that_never_sleeps_is_never_asked(bench: Bench) -> None:
    """Models that do not sleep pay nothing."""
    await bench.ready()
    assert bench.engines.calls == []


async def test_a_sleeping_engine_is_not_probed(bench: Bench) -> None:
    """Neither health path sees sleep, and none is asked."""
    life = await bench.asleep()
    bench.engines.ready.clear()
    probes = bench.engines.probes
    await asyncio.wait({life.task}, timeout=10 * BRISK.probe_every_s)
    assert bench.engines.probes == probes
    assert life.told[-1] == "asleep"


async def test_a_waking_that_comes_before_sleep(bench: Bench) -> None:
    """An engine that is woken while it falls asleep does both, one after the other."""
    life = await bench.ready(SLEEPS)
    life.instance.sleep(1)
    life.instance.wake()
    await life.tells("ready", 2)
    assert life.told == ["started", "ready", "asleep", "ready"]


async def test_nonsense_after_waking(bench: Bench) -> None:
    """It is ended as a crash that says what it answered, and nobody is told that it is ready."""
    life = await bench.asleep()
    bench.engines.answers["m"] = "!!!!!!!!"
    life.instance.wake()
    reason = await life.end()
    assert reason.startswith("it answered nonsense after waking: '!!!!!!!!' instead of 'four, five, six'")
    assert life.told == ["started", "ready", "asleep", "exit"]
    assert bench.process.signals == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/chat/completions", "it could not be put to sleep: HTTP 500: "),
        ("/sleep?level=1", "it could not be put to sleep: HTTP 500: "),
        ("/is_sleeping", "it could not be put to sleep: HTTP 500: "),
    ],
)
async def test_a_sleep_that_fails(bench: Bench, path: str, words: str) -> None:
    """The engine is ended, so that its memory is free all the same."""
    life = await bench.ready(SLEEPS)
    bench.engines.faults[path] = 500
    life.instance.sleep(1)
    assert (await life.end()).startswith(words)
    assert "asleep" not in life.told


@pytest.mark.parametrize("path", ["/wake_up?tags=weights", "/wake_up?tags=kv_cache", "/v1/chat/completions"])
async def test_a_waking_that_fails(bench: Bench, path: str) -> None:
    """The engine is ended with the reason."""
    life = await bench.asleep()
    bench.engines.faults[path] = 500
    life.instance.wake()
    assert (await life.end()).startswith("it could not be woken: HTTP 500: ")
    assert life.told.count("ready") == 1


async def test_an_engine_that_does_not_do_as_it_says(bench: Bench) -> None:
    """One that answers 200 and goes on as before is not believed."""
    life = await bench.ready(replace(SLEEPS, sleeps=(replace(sleep_calls(URL), sleep=sleep_calls(URL).is_sleeping),)))
    life.instance.sleep(1)
    assert (await life.end()).startswith("it was put to sleep but says that it does not sleep")
    life = await bench.ready(replace(SLEEPS, sleeps=(replace(sleep_calls(URL), wake=()),)))
    life.instance.sleep(1)
    await life.tells("asleep")
    life.instance.wake()
    assert (await life.end()).startswith("it was woken but says that it sleeps")


async def test_an_exit_while_asleep(bench: Bench) -> None:
    """It is a crash as at any other time."""
    life = await bench.asleep()
    bench.process.exit(-9)
    assert await life.end() == "killed by SIGKILL, without a word"


async def test_a_stop_while_asleep(bench: Bench) -> None:
    """It need not be woken for that."""
    life = await bench.asleep()
    life.instance.stop()
    assert not await life.end()
    assert life.told[-2:] == ["asleep", "exit"]


async def test_requests_that_make_no_sense(bench: Bench) -> None:
    """Sleeping twice, waking what is awake, and a sleep that was not launched for are programming errors."""
    life = await bench.ready(SLEEPS)
    with pytest.raises(ValueError, match="does not sleep"):
        life.instance.wake()
    with pytest.raises(ValueError, match="not launched for sleep level 2"):
        life.instance.sleep(2)
    life.instance.sleep(1)
    with pytest.raises(ValueError, match="sleeps already"):
        life.instance.sleep(1)
    with pytest.raises(ValueError, match="not launched for sleep level 1"):
        Instance("m", LAUNCH, bench.engines, bench.engines.http(), load_timeout_s=1).sleep(1)


async def test_progress_of_a_waking(bench: Bench) -> None:
    """Nothing is known of one that sleeps; one that wakes counts from then."""
    life = await bench.asleep()
    assert life.instance.progress(100, None) == Progress()
    bench.engines.hold.clear()
    life.instance.wake()
    await until(lambda: life.instance.progress(100, None).fraction)
    assert life.instance.progress(None, 1) == Progress()
    bench.engines.hold.set()
    await life.tells("ready", 2)


# -- engines of an earlier run


async def test_an_engine_that_is_taken_over(bench: Bench) -> None:
    """One that is well is ready at once; it is not started again, and ends as any other."""
    life = await bench.ready(adopts=True)
    assert bench.engines.started == []
    assert life.told == ["started", "ready"]
    life.instance.stop()
    await life.end()
    assert bench.process.signals == [signal.SIGTERM]


async def test_an_engine_that_is_not_worth_it(bench: Bench) -> None:
    """One that is not well is ended and reported."""
    bench.engines.ready.clear()
    life = bench.begin(adopts=True)
    assert (await life.end()).startswith("it was to be taken over but is not well: HTTP 503")
    assert life.told == ["started", "exit"]
    assert bench.process.signals == [signal.SIGTERM]


async def test_an_engine_that_was_left_asleep(bench: Bench) -> None:
    """Its health path says that it is well, but nobody knows what it would answer."""
    bench.engines.asleep.add("m")
    life = bench.begin(SLEEPS, adopts=True)
    assert (await life.end()).startswith("it sleeps, and nothing is known to compare its answers with")


@pytest.mark.parametrize(
    ("faults", "call", "words"),
    [
        ({"/is_sleeping": 404}, "is_sleeping", "it does not say whether it sleeps: HTTP 404"),
        ({}, "chat", "it does not say whether it sleeps: http://127.0.0.1:9/v1/chat/completions does not say"),
    ],
)
async def test_an_engine_that_does_not_say_whether_it_sleeps(
    bench: Bench, faults: dict[str, int], call: str, words: str
) -> None:
    """What might sleep is not taken over."""
    bench.engines.faults = faults
    calls = sleep_calls(URL)
    if call == "chat":
        calls = replace(calls, is_sleeping=Call("POST", f"{URL}/v1/chat/completions"))
    life = bench.begin(replace(LAUNCH, sleeps=(calls,)), adopts=True)
    assert (await life.end()).startswith(words)


# -- the fake engine's sleep mode, end to end


@pytest.mark.parametrize(("kind", "flags"), [("chat", ()), ("completion", ()), ("embedding", ("--embeddings",))])
async def test_a_real_process_sleeps_and_wakes(make: Make, kind: str, flags: Sequence[str]) -> None:
    """Each kind of model is the same after waking."""
    life = make("--sleep-mode", *flags, sleeps=1, kind=kind, served_id="m")
    await life.tells("ready")
    life.instance.sleep(1)
    await life.tells("asleep")
    life.instance.wake()
    await life.tells("ready", 2)
    life.instance.stop()
    assert not await life.end()


async def test_a_real_process_wakes_as_another(make: Make) -> None:
    """An engine that answers rubbish after waking is ended and reported."""
    life = make("--sleep-mode", "--nonsense-after-wake", sleeps=1)
    await life.tells("ready")
    life.instance.sleep(1)
    await life.tells("asleep")
    life.instance.wake()
    assert (await life.end()).startswith("it answered nonsense after waking: '!!!!!!!!' instead of 'w0 w1")


async def test_weights_that_were_not_read_again(make: Make) -> None:
    """At level 2 the weights are gone: calls that do not bring them back are found out."""
    life = make("--sleep-mode", sleeps=2)
    await life.tells("ready")
    life.instance.sleep(2)
    await life.tells("asleep")
    life.instance.wake()
    assert "answered nonsense after waking" in await life.end()
