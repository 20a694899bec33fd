"""rolecall as a service: what it tells, what SIGHUP means, and a restart that nobody notices."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from cli.invoke import call, configured, environment
from harness import CHAT, DEADLINE_S, Rolecall, eventually, fake_entry, prompt, rest_of, text_of, with_socket, words
from unused_ports import unused_port

pytestmark = pytest.mark.long

KEEP = {"keep_engines_on_exit": True}


class Notices:
    """The socket at which a service manager reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0)
        self.seen: list[list[str]] = []

    def all(self) -> list[list[str]]:
        """Return the lines of each datagram so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.seen.append(self._socket.recv(65536).decode().splitlines())
        return self.seen

    def await_line(self, line: str, count: int = 1) -> list[str]:
        """Return the first datagram with that line, once there are ``count`` of them."""

        def found() -> list[str] | None:
            each = [lines for lines in self.all() if line in lines]
            return each[count - 1] if len(each) >= count else None

        return eventually(found)


@pytest.fixture
def notices(tmp_path: Path) -> Notices:
    """Return a service manager's inbox."""
    return Notices(tmp_path / "notify")


@dataclass
class Service(Rolecall):
    """A rolecall without a terminal, as services are; with a ``listening`` socket if one is given."""

    listening: socket.socket | None = None

    def launch(self) -> None:
        """Start the process in a session of its own."""
        argv, environ, fds = self.argv, dict(self.environment), []
        if self.listening is not None:
            fds = [self.listening.fileno()]
            argv = with_socket(self.listening, argv)
        with self.terminal.open("wb") as terminal:
            self.process = subprocess.Popen(
                argv,
                env=environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                start_new_session=True,
            )


def test_the_life_of_a_service_is_told(tmp_path: Path, notices: Notices) -> None:
    """READY comes with the first answer, signs of life and what goes on meanwhile, STOPPING when the end begins."""
    environ = {"NOTIFY_SOCKET": str(notices.path), "WATCHDOG_USEC": "400000"}
    with Service(tmp_path / "r", [fake_entry("m")], environ=environ) as server:
        ready = notices.await_line("READY=1")
        assert f"MAINPID={server.process.pid}" in ready
        assert httpx.get(f"{server.base_url}/health", trust_env=False).status_code == 200
        assert server.chat("m").status_code == 200
        notices.await_line("WATCHDOG=1", count=3)
        with server.stream("m", fake={"tokens": 10, "token_delay_s": 0.05}) as answer:
            lines = answer.iter_lines()
            next(lines)
            eventually(lambda: any("STATUS=1 request in progress" in line for told in notices.all() for line in told))
            server.terminate()
            assert "STATUS=finishing 1 answer in flight" in notices.await_line("STOPPING=1")
            beats = sum("WATCHDOG=1" in told for told in notices.all())
            assert rest_of(lines)[1]
        assert server.ended() == 0
        assert sum("WATCHDOG=1" in told for told in notices.all()) >= beats
        assert [told for told in notices.all() if "READY=1" in told] == [ready]


def test_signs_of_life_go_on_until_the_last_engine_is_gone(tmp_path: Path, notices: Notices) -> None:
    """A model that takes its time to end must not look like a server that hangs."""
    environ = {"NOTIFY_SOCKET": str(notices.path), "WATCHDOG_USEC": "200000"}
    with Service(tmp_path / "r", [fake_entry("m", "--term-delay-s", "1")], environ=environ) as server:
        server.chat("m")
        server.terminate()
        stopping = notices.await_line("STOPPING=1")
        assert stopping[1:] == [f"EXTEND_TIMEOUT_USEC={40_000_000}", "STATUS=ending"]
        before = len(notices.all())
        assert server.ended() == 0
        assert sum("WATCHDOG=1" in told for told in notices.all()[before:]) >= 5


def test_engines_do_not_inherit_what_the_service_manager_gave(tmp_path: Path, notices: Notices) -> None:
    """An engine could otherwise say READY in our name, or hold our socket."""
    environ = {"NOTIFY_SOCKET": str(notices.path), "WATCHDOG_USEC": "10000000"}
    with Service(tmp_path / "r", [fake_entry("m")], environ=environ) as server:
        server.chat("m")
        pid = server.row("m")["pid"]
        inherited = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert not [each for each in inherited if each.startswith((b"NOTIFY_", b"WATCHDOG_", b"LISTEN_"))]


def test_sighup_has_a_service_read_its_configuration_again(tmp_path: Path, notices: Notices) -> None:
    """It goes on, with the new registry and settings; it tells that it reloads, and what waits for a restart."""
    environ = {"NOTIFY_SOCKET": str(notices.path)}
    with Service(tmp_path / "r", [fake_entry("m")], environ=environ) as server:
        with server.stream("m", fake={"tokens": 10, "token_delay_s": 0.05}) as answer:
            lines = answer.iter_lines()
            next(lines)
            toml = server.config_dir / "rolecall.toml"
            toml.write_text(toml.read_text() + "max_messages = 1\nmax_queue = 7\n")
            server.process.send_signal(signal.SIGHUP)
            reloading = notices.await_line("RELOADING=1")
            assert any(line.startswith("MONOTONIC_USEC=") for line in reloading)
            ready = notices.await_line("READY=1", count=2)
            assert "STATUS=reloaded; in force: max_messages; after a restart: max_queue" in ready
            rest, is_whole = rest_of(lines)
        assert (text_of(rest), is_whole) == (words(10), True)
        two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
        assert server.http.post(CHAT, json={"model": "m", "messages": two}).status_code == 400
        toml.write_text("max_messages = 'rubbish'\n")
        server.process.send_signal(signal.SIGHUP)
        told = notices.await_line("READY=1", count=3)
        assert any("not reloaded" in line and "max_messages" in line for line in told)
        assert server.chat("m").status_code == 200


def test_a_reload_tells_what_keeps_its_last_good_state(tmp_path: Path, notices: Notices) -> None:
    """Broken experiments or a broken registry: settings are in force, and the status says what is not."""
    with Service(tmp_path / "r", [fake_entry("m")], environ={"NOTIFY_SOCKET": str(notices.path)}) as server:
        (server.config_dir / "experiments.toml").write_text("[x")
        server.process.send_signal(signal.SIGHUP)
        told = "\n".join(notices.await_line("READY=1", count=2))
        assert "STATUS=reloaded in part; no setting has changed; the experiments cannot be read" in told
        refused = call("reload", "--url", server.base_url)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "The experiments cannot be read, so there are none: " in refused.stderr
        (server.config_dir / "experiments.toml").unlink()
        (server.config_dir / "model_registry.curated.json").write_text("[")
        server.process.send_signal(signal.SIGHUP)
        told = "\n".join(notices.await_line("READY=1", count=3))
        assert "STATUS=reloaded in part; no setting has changed; the registry is broken" in told


def test_sighup_of_a_terminal_that_hangs_up_is_the_end(tmp_path: Path) -> None:
    """Who closes the window does not leave a server behind; the end is as orderly as any other."""
    server = Rolecall(tmp_path / "r", [fake_entry("m")])
    ours, theirs = pty.openpty()
    with server.terminal.open("wb") as terminal:
        server.process = subprocess.Popen(
            ["setsid", "--ctty", *server.argv],
            env=server.environment,
            cwd=server.folder,
            stdin=theirs,
            stdout=terminal,
            stderr=subprocess.STDOUT,
        )
    os.close(theirs)
    try:
        url = eventually(lambda: server.words().partition(" ready at ")[2].partition("/v1 ")[0])
        assert httpx.post(f"{url}{CHAT}", json=prompt("m"), timeout=DEADLINE_S, trust_env=False).status_code == 200
        engines = server.engine_processes()
        assert engines
        os.close(ours)
        assert server.process.wait(10) == 0
        server.assert_gone(engines)
        assert "SIGHUP: finishing answers in flight" in server.words()
    finally:
        server.process.kill()


def test_a_given_socket_needs_keys_as_any_other(tmp_path: Path) -> None:
    """A service whose socket others can reach does not start without keys."""
    with socket.create_server(("0.0.0.0", 0)) as listening:
        server = Service(tmp_path / "r", [fake_entry("m")], listening=listening)
        server.launch()
        assert server.process.wait(DEADLINE_S) == 2
    assert "can be reached by other machines" in server.words()


@pytest.mark.parametrize(
    ("count", "said"),
    [("1", "file descriptor 3 is none: Bad file descriptor"), ("99", "rolecall listens on one (ListenStream=)")],
)
def test_what_the_service_gives_wrongly_is_told_once(tmp_path: Path, count: str, said: str) -> None:
    """Exit code 2, so that systemd does not try again, one line, and no setting that is to blame."""
    there = shlex.join([sys.executable, "-m", "rolecall", "serve", "--port", "0", *configured(tmp_path, [])])
    started = ["sh", "-c", f"exec 3<&-; LISTEN_PID=$$ LISTEN_FDS={count} exec {there}"]
    done = subprocess.run(started, env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith(said)


@dataclass
class Outcome:
    """What became of one client's requests."""

    whole: int = 0
    failed: list[str] = field(default_factory=list)


def _ask(url: str, done: threading.Event, outcome: Outcome, *, stream: bool) -> None:
    """Send one request after the other over connections that are kept, and look at each answer to its end."""
    body = prompt("m", stream=stream, fake={"tokens": 6, "token_delay_s": 0.02})
    with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as http:
        while not done.is_set():
            try:
                answer = http.post(CHAT, json=body)
                text = answer.text
            except httpx.HTTPError as error:
                outcome.failed.append(repr(error))
                continue
            is_whole = text.endswith("data: [DONE]\n\n") if stream else words(6) in text
            if answer.status_code == 200 and is_whole:
                outcome.whole += 1
            else:
                outcome.failed.append(f"{answer.status_code} {text[-300:]}")


@contextlib.contextmanager
def load_on(url: str, clients: int) -> Iterator[list[Outcome]]:
    """Keep clients busy, half of them with streams."""
    done, outcomes = threading.Event(), [Outcome() for _ in range(clients)]
    threads = [
        threading.Thread(target=_ask, args=(url, done, outcome), kwargs={"stream": number % 2 == 0})
        for number, outcome in enumerate(outcomes)
    ]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        done.set()
        for thread in threads:
            thread.join()


def await_more(outcomes: list[Outcome]) -> None:
    """Wait until each client has had three more answers."""
    before = [outcome.whole for outcome in outcomes]
    eventually(lambda: all(o.whole > b + 2 for o, b in zip(outcomes, before, strict=True)))


def test_a_restart_under_load_loses_no_answer_and_no_request(tmp_path: Path) -> None:
    """With the service's socket and kept engines, clients notice two restarts by nothing but a longer wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:

        def make() -> Service:
            entries = [fake_entry("m", max_parallel=20)]
            return Service(tmp_path / "r", entries, settings=KEEP, listening=listening)

        server = make()
        server.__enter__()
        server.chat("m")
        pid = server.row("m")["pid"]
        with load_on(server.base_url, 10) as outcomes:
            for _ in range(2):
                await_more(outcomes)
                server.process.terminate()
                assert server.process.wait(30) == 0
                server.http.close()
                server = make()
                server.__enter__()
                assert server.row("m")["pid"] == pid
            await_more(outcomes)
        assert [outcome.failed for outcome in outcomes] == [[]] * 10
        answered = sum(outcome.whole for outcome in outcomes) + 1
        lines = server.log_lines(answered)
        assert {line["status"] for line in lines} == {200}
        assert len(lines) == answered
        assert server.http.post("/v1/models/m/unload").status_code == 200
        assert server.stop() == 0


def test_a_client_that_comes_during_the_restart_waits_for_the_next_run(tmp_path: Path) -> None:
    """Between two runs a connection is taken by the socket, and answered by the run that comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        port = listening.getsockname()[1]
        first = Service(tmp_path / "r", [fake_entry("m")], listening=listening)
        with first:
            pass
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as waiting:
            waiting.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with Service(tmp_path / "r", [fake_entry("m")], listening=listening):
                assert waiting.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_what_goes_beyond_the_grace_is_told(tmp_path: Path) -> None:
    """With the service's socket too, an endless answer ends with an error after shutdown_grace_s."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        settings = {"shutdown_grace_s": 0.3}
        with Service(tmp_path / "r", [fake_entry("m")], settings=settings, listening=listening) as server:
            with server.stream("m", fake={"tokens": 10_000, "token_delay_s": 0.05}) as answer:
                lines = answer.iter_lines()
                next(lines)
                began = time.monotonic()
                server.terminate()
                rest, is_whole = rest_of(lines)
            assert not is_whole
            assert rest[-1]["error"]["code"] == "shutting_down"
            assert server.ended(5) == 0
            assert time.monotonic() - began < 4


def test_systemds_own_tool_starts_it(tmp_path: Path) -> None:
    """systemd-socket-activate gives the socket as systemd does; the first connection starts the server."""
    tool = "/usr/bin/systemd-socket-activate"
    if not Path(tool).exists():
        pytest.skip("systemd-socket-activate is not here")
    server = Rolecall(tmp_path / "r", [fake_entry("m")])
    port = unused_port()
    with server.terminal.open("wb") as terminal:
        process = subprocess.Popen(
            [tool, "--listen", f"127.0.0.1:{port}", *server.argv],
            env=server.environment,
            cwd=server.folder,
            stdout=terminal,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: "Listening on" in server.words())
        answer = httpx.post(f"http://127.0.0.1:{port}{CHAT}", json=prompt("m"), trust_env=False, timeout=DEADLINE_S)
        assert answer.status_code == 200, json.dumps(answer.json())
        assert f"ready at http://127.0.0.1:{port}/v1" in server.words()
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
