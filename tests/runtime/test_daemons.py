"""What daemons have, and that whoever may not wait gets the answer that was remembered."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from builders import entry
from process.fake_ollama import FakeOllama
from rolecall.backends.ollama import OllamaDaemon
from rolecall.runtime.daemons import Daemons

MODEL = entry("llama3.2", backend="ollama")


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Return a socket that takes connections and answers nothing by itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def backend_at(server: socket.socket) -> OllamaDaemon:
    """Return the driver of a daemon on this socket."""
    return OllamaDaemon(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_what_a_daemon_has() -> None:
    """A model that was pulled is not missing; of another one it is said how to get it."""
    with FakeOllama("llama3.2:latest") as ollama:
        backend = OllamaDaemon(ollama.base_url)
        assert Daemons().why_missing(MODEL, backend) is None
        assert "ollama pull qwen3" in (Daemons().why_missing(entry("qwen3", backend="ollama"), backend) or "")
    assert "cannot be asked" in (Daemons().why_missing(MODEL, backend) or "")


def test_a_daemon_that_wants_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown the key of the entry; one that HTTP does not allow is not quoted."""
    with FakeOllama("llama3.2:latest") as ollama:
        ollama.key = "canary-key"
        backend = OllamaDaemon(ollama.base_url)
        model = entry("llama3.2", backend="ollama", backend_config={"api_key_env": "OLLAMA_TEST_KEY"})
        assert "401" in (Daemons().why_missing(model, backend) or "")
        monkeypatch.setenv("OLLAMA_TEST_KEY", "canary-key")
        daemons = Daemons()
        assert daemons.why_missing(model, backend) is None
        assert "401" in (daemons.why_missing(MODEL, backend) or "")
        for key in ("canary-key\nx: y", "canary-ключ"):
            monkeypatch.setenv("OLLAMA_TEST_KEY", key)
            reason = Daemons().why_missing(model, backend) or ""
            assert "its API key holds characters that HTTP does not allow" in reason
            assert "canary" not in reason


def test_without_asking_nobody_is_asked(silent: socket.socket) -> None:
    """A daemon that has never been asked counts as one without the model, and no connection is made."""
    reason = Daemons().why_missing(MODEL, backend_at(silent), ask=False)
    assert reason is not None
    assert reason.startswith("not installed")
    assert "not asked yet" in reason
    silent.settimeout(0)
    with pytest.raises(BlockingIOError):
        silent.accept()


def test_without_asking_nobody_waits_for_one_who_asks(silent: socket.socket) -> None:
    """While a thread waits for the daemon the last answer is there at once; afterwards it is the new one."""
    daemons, backend = Daemons(), backend_at(silent)
    asking = threading.Thread(target=daemons.why_missing, args=(MODEL, backend))
    asking.start()
    connection, _ = silent.accept()
    with connection:
        connection.recv(65536)
        seen = daemons.why_missing(MODEL, backend, ask=False)
        was_waiting = asking.is_alive()
        body = json.dumps({"models": [{"name": "llama3.2:latest"}]}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        asking.join(10)
    assert was_waiting
    assert "not asked yet" in (seen or "")
    assert daemons.why_missing(MODEL, backend, ask=False) is None
