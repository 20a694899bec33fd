"""A model of a daemon from its load to its unload, against a server that follows Ollama's documented API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from builders import entry
from process.fake_ollama import FakeOllama
from rolecall.backends.ollama import OllamaDaemon
from rolecall.runtime.instance import Exit, Listener
from rolecall.runtime.remote import RemoteInstance

TAG = "llama3.2:latest"
Make = Callable[..., "Life"]


class Life:
    """A remote instance that runs, and what it told its listener."""

    def __init__(self, instance: RemoteInstance) -> None:
        self.instance = instance
        self.told: list[str] = []
        self.exit: Exit | None = None
        self.ready = asyncio.Event()
        listener = Listener(
            on_started=lambda pid: self.told.append(f"started {pid}"),
            on_ready=self._on_ready,
            on_asleep=lambda: self.told.append("asleep"),
            on_exit=self._on_exit,
        )
        self.task = asyncio.create_task(instance.run(listener))

    def _on_ready(self) -> None:
        self.told.append("ready")
        self.ready.set()

    def _on_exit(self, reason: Exit | None) -> None:
        self.told.append("exit")
        self.exit = reason

    async def until_ready(self) -> None:
        """Wait for the load."""
        await asyncio.wait_for(self.ready.wait(), 20)

    async def end(self) -> str:
        """Wait for its end and return the reason, empty if it was asked for."""
        await asyncio.wait_for(self.task, 20)
        assert self.told[-1] == "exit"
        return self.exit.error if self.exit else ""


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    """Return a daemon that has pulled two models."""
    with FakeOllama(TAG, embedders=("nomic-embed-text:latest",)) as daemon:
        yield daemon


@pytest.fixture
async def make(ollama: FakeOllama) -> AsyncIterator[Make]:
    """Return a maker of instances; they are ended afterwards."""
    lives: list[Life] = []
    async with httpx.AsyncClient(trust_env=False) as http:

        def begin(name: str = "llama3.2", load_timeout_s: float = 20, **fields: Any) -> Life:
            load = OllamaDaemon(ollama.base_url).launch(entry(name, backend="ollama", **fields), 0)
            lives.append(Life(RemoteInstance(name, load, http, load_timeout_s, poll_s=0.05, unload_limit_s=1)))
            return lives[-1]

        yield begin
        for life in lives:
            life.instance.stop()
        await asyncio.gather(*(life.task for life in lives), return_exceptions=True)


async def happens(question: Callable[[], Any]) -> None:
    """Wait until a question is answered with yes."""
    deadline = time.monotonic() + 20
    while not question():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_daemon_that_wants_a_key(ollama: FakeOllama, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading, watching and unloading show the key of the entry; one that HTTP does not allow is not quoted."""
    ollama.key = "canary-key"
    assert "401" in await make().end()
    monkeypatch.setenv("OLLAMA_TEST_KEY", "canary-key")
    life = make(backend_config={"api_key_env": "OLLAMA_TEST_KEY"})
    await life.until_ready()
    life.instance.stop()
    assert await life.end() == ""
    assert not ollama.running()
    for key in ("canary-key\nx: y", "canary-ключ"):
        monkeypatch.setenv("OLLAMA_TEST_KEY", key)
        reason = await make(backend_config={"api_key_env": "OLLAMA_TEST_KEY"}).end()
        assert "its API key holds characters that HTTP does not allow" in reason
        assert "canary" not in reason


async def test_a_life_in_order(make: Make, ollama: FakeOllama) -> None:
    """Loaded for good, ready with what it holds, and unloaded after a stop, which is no error."""
    life = make()
    await life.until_ready()
    assert (life.instance.pid, life.instance.held_mb) == (None, 2500)
    assert ollama.loaded[TAG].keep_alive_s is None
    life.instance.stop()
    life.instance.stop()
    assert await life.end() == ""
    assert life.told == ["ready", "exit"]
    assert ollama.running() == []
    assert life.instance.held_mb is None


async def test_requests_leave_it_loaded_and_as_it_is(make: Make, ollama: FakeOllama) -> None:
    """Requests under /v1, even with a num_ctx and keep_alive of the client, neither load it again nor let it expire."""
    life = make(context_length=8192)
    await life.until_ready()
    ollama.keep_alive_s = 0.01
    body = {"model": "llama3.2", "messages": [], "num_ctx": 99, "options": {"num_ctx": 99}, "keep_alive": 0}
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"{ollama.base_url}/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert ollama.loads == [TAG]
    assert ollama.loaded[TAG].keep_alive_s is None
    assert not life.task.done()


async def test_a_model_that_only_embeds(make: Make, ollama: FakeOllama) -> None:
    """It is loaded by an empty list of inputs."""
    life = make("nomic-embed-text", capabilities=["embedding"])
    await life.until_ready()
    assert ollama.seen == [("/api/embed", {"model": "nomic-embed-text", "input": [], "keep_alive": -1})]
    life.instance.stop()
    assert await life.end() == ""
    assert ollama.running() == []


async def test_a_model_that_is_not_pulled(make: Make) -> None:
    """The reason says how to get it."""
    reason = await make("qwen3:8b").end()
    assert "ollama pull qwen3:8b" in reason
    assert "model 'qwen3:8b' not found" in reason


async def test_a_load_that_fails_for_memory(make: Make, ollama: FakeOllama) -> None:
    """Ollama's own words are the reason, and lack of memory is told from other failures."""
    ollama.load_error = "model requires more system memory (12.0 GiB) than is available (3.1 GiB)"
    life = make()
    assert "model requires more system memory (12.0 GiB)" in await life.end()
    assert life.exit is not None
    assert life.exit.out_of_memory
    ollama.load_error = "llama runner process has terminated: exit status 2"
    other = make()
    assert "exit status 2" in await other.end()
    assert other.exit is not None
    assert not other.exit.out_of_memory


async def test_a_load_that_takes_too_long(make: Make, ollama: FakeOllama) -> None:
    """After load_timeout_s it is given up, and unloaded once it has come all the same."""
    ollama.load_s = 0.4
    assert "within 0.1 s" in await make(load_timeout_s=0.1).end()
    await happens(lambda: ollama.loads == [TAG])
    assert ollama.running() == []


async def test_a_stop_while_loading(make: Make, ollama: FakeOllama) -> None:
    """A stop does not wait for the load to be ready, and leaves nothing loaded."""
    ollama.load_s = 0.4
    life = make()
    await happens(lambda: ollama.loads)
    life.instance.stop()
    assert await life.end() == ""
    assert life.told == ["exit"]
    assert ollama.running() == []


async def test_the_daemon_unloads_it(make: Make, ollama: FakeOllama) -> None:
    """A model that Ollama evicts, or that another client sent away, is an exit with that reason."""
    life = make()
    await life.until_ready()
    ollama.evict(TAG)
    assert "the daemon unloaded it" in await life.end()
    again = make()
    await again.until_ready()
    assert ollama.loads == [TAG, TAG]


async def test_the_daemon_goes_away(make: Make, ollama: FakeOllama) -> None:
    """A daemon that does not listen any more is an exit with that reason; nothing waits for the unload."""
    life = make()
    await life.until_ready()
    ollama.__exit__()
    reason = await life.end()
    assert "not to be reached" in reason
    assert "ollama serve" in reason


async def test_a_daemon_that_is_not_there(make: Make, ollama: FakeOllama) -> None:
    """The same is said when it was never there."""
    ollama.__exit__()
    life = make()
    assert "ollama serve" in await life.end()
    assert life.told == ["exit"]


async def test_an_unload_that_takes_its_time(make: Make, ollama: FakeOllama) -> None:
    """Its memory counts as taken until /api/ps does not show it any more."""
    life = make()
    await life.until_ready()
    ollama.unload_s = 0.4
    life.instance.stop()
    await life.end()
    assert ollama.loaded == {}


async def test_an_unload_that_never_ends(make: Make, ollama: FakeOllama, caplog: pytest.LogCaptureFixture) -> None:
    """A request of another client that keeps it loaded is waited for up to the limit, and then said."""
    life = make()
    await life.until_ready()
    ollama.loaded[TAG].in_flight = 1
    life.instance.stop()
    assert await life.end() == ""
    assert "still loaded 1 s after it was unloaded" in caplog.text


async def test_what_is_let_go_stays_loaded(make: Make, ollama: FakeOllama) -> None:
    """Without us the model stays, and nobody is told."""
    life = make()
    await life.until_ready()
    life.instance.let_go()
    await asyncio.wait_for(life.task, 20)
    assert life.told == ["ready"]
    assert TAG in ollama.loaded


async def test_what_runs_it_may_be_cancelled(make: Make, ollama: FakeOllama) -> None:
    """Even then the model is unloaded and its end is told."""
    life = make()
    await life.until_ready()
    life.task.cancel()
    await asyncio.gather(life.task, return_exceptions=True)
    assert life.told == ["ready", "exit"]
    await happens(lambda: not ollama.running())


@pytest.mark.parametrize("error", [OSError("no buffer space"), AttributeError("'NoneType' has no attribute 'write'")])
async def test_a_connection_that_is_lost_while_it_is_made(error: Exception) -> None:
    """What the network library raises then is a daemon that cannot be reached, not a failure of ours."""

    def lose(request: httpx.Request) -> httpx.Response:
        raise error

    async with httpx.AsyncClient(transport=httpx.MockTransport(lose)) as http:
        load = OllamaDaemon("http://127.0.0.1:9").launch(entry("llama3.2", backend="ollama"), 0)
        life = Life(RemoteInstance("llama3.2", load, http, 20))
        reason = await life.end()
    assert "not to be reached" in reason
    assert str(error) in reason
