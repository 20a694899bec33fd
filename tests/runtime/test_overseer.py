"""What the service manager is told, over a real datagram socket, and the socket that it gives."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path

import pytest

from harness import with_socket
from rolecall.errors import ConfigurationError
from rolecall.runtime.overseer import Overseer


@pytest.fixture(params=["path", "abstract"])
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Yield the value of NOTIFY_SOCKET, and the socket at which a service manager would read."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@rolecall-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind("\0" + name[1:] if name.startswith("@") else name)
        inbox.settimeout(5)
        yield name, inbox


def test_each_state_is_told_as_the_protocol_wants_it(told: tuple[str, socket.socket]) -> None:
    """Ready, reloading and stopping arrive with their fields, each in one datagram, the status in one line."""
    name, inbox = told
    overseer = Overseer.of_environment({"NOTIFY_SOCKET": name})
    before_us = time.monotonic_ns() // 1000
    overseer.ready("ready\nat last")
    overseer.reloading()
    overseer.stopping("2 answers", 40.5)
    ready, reloading, stopping = (inbox.recv(4096).decode().splitlines() for _ in range(3))
    assert ready == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=ready at last"]
    assert stopping == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=40500000", "STATUS=2 answers"]
    assert reloading[0] == "RELOADING=1"
    moment = reloading[1].removeprefix("MONOTONIC_USEC=")
    assert before_us <= int(moment) <= time.monotonic_ns() // 1000


async def test_signs_of_life_come_while_the_loop_runs_and_only_then(told: tuple[str, socket.socket]) -> None:
    """WATCHDOG=1 comes twice in the watchdog's time; with the loop held up there is none, which is the point of it."""
    name, inbox = told
    inbox.settimeout(0)
    overseer = Overseer.of_environment(
        {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())}
    )
    living = asyncio.create_task(overseer.accompany(lambda: "idle"))
    seen: list[list[str]] = []
    while len(seen) < 4:
        await asyncio.sleep(0.005)
        seen += [data.decode().splitlines() for data in _all_of(inbox)]
    assert seen[0] == ["STATUS=idle", "WATCHDOG=1"]
    assert seen[1:] == [["WATCHDOG=1"]] * (len(seen) - 1)
    time.sleep(0.2)  # noqa: ASYNC251 - a loop that is held up
    assert _all_of(inbox) == []
    living.cancel()


def _all_of(inbox: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(inbox.recv(4096))
    except BlockingIOError:
        return found


async def test_without_a_service_manager_nothing_is_told() -> None:
    """An empty environment makes every call a matter of nothing, and the company ends at once."""
    overseer = Overseer.of_environment({})
    overseer.ready("ready")
    overseer.reloading()
    overseer.stopping("", 1)
    await asyncio.wait_for(overseer.accompany(lambda: "idle"), 1)
    assert overseer.watchdog_s is None
    assert not overseer.listens
    assert overseer.listening_socket() is None


def test_what_is_meant_for_another_process_is_left_alone(tmp_path: Path) -> None:
    """A watchdog and sockets of whoever started us are not taken, and engines inherit none of the variables."""
    environ = {
        "NOTIFY_SOCKET": str(tmp_path / "x"),
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": "1",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "PATH": "/bin",
    }
    overseer = Overseer.of_environment(environ)
    assert overseer.watchdog_s is None
    assert not overseer.listens
    assert environ == {"PATH": "/bin"}


def test_a_watchdog_without_a_process_is_ours() -> None:
    """WATCHDOG_PID may be missing, as sd_watchdog_enabled(3) has it."""
    assert Overseer.of_environment({"WATCHDOG_USEC": "30000000"}).watchdog_s == 30


def test_a_socket_that_nobody_reads_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A service manager that cannot be reached is one warning, and nothing raises."""
    overseer = Overseer(str(tmp_path / "nobody"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            overseer.ready("ready")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the service manager cannot be told how it goes (NOTIFY_SOCKET)"
    ]


def test_a_service_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """When its queue is full, what is told is lost, and we go on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(str(tmp_path / "full"))
        overseer = Overseer(str(tmp_path / "full"))
        for _ in range(2000):
            overseer.reloading()
        assert inbox.recv(100).startswith(b"RELOADING=1")


GIVEN = """
import os, socket, sys
from rolecall.errors import ConfigurationError
from rolecall.runtime.overseer import Overseer
overseer = Overseer.of_environment(os.environ)
try:
    given = overseer.listening_socket()
except ConfigurationError as error:
    print(error)
else:
    print(given.getsockname()[1], given.get_inheritable(), overseer.listens, [n for n in os.environ if "LISTEN" in n])
"""


def _with_fd_3(opened: socket.socket | BufferedWriter, count: int = 1) -> str:
    argv = with_socket(opened, [sys.executable, "-c", GIVEN], count)
    done = subprocess.run(argv, pass_fds=[opened.fileno()], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_socket_that_is_given_is_used_and_not_handed_on() -> None:
    """File descriptor 3 becomes our listening socket, which no engine inherits."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert _with_fd_3(listening) == f"{listening.getsockname()[1]} False True []"


def test_other_sockets_are_refused_in_words(tmp_path: Path) -> None:
    """Two sockets, one of another kind, and one that does not listen are a wrong configuration."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert _with_fd_3(listening, 2).startswith("the service gives 2 sockets; rolecall listens on one")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "x"))
        assert "is no listening TCP socket" in _with_fd_3(other)
    with socket.socket() as idle:
        assert "is no listening TCP socket" in _with_fd_3(idle)
    with (tmp_path / "file").open("wb") as file:
        assert _with_fd_3(file).endswith("file descriptor 3 is none: Socket operation on non-socket")


def test_a_socket_that_is_missing_is_told() -> None:
    """The variables may have come from elsewhere, and nothing is open there."""
    code = f"import os; os.closerange(3, 9); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n{GIVEN}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("file descriptor 3 is none: Bad file descriptor")


def test_the_error_is_one_of_configuration() -> None:
    """So it ends the start with exit code 2, as any other wrong setting."""
    with pytest.raises(ConfigurationError, match="3 sockets"):
        Overseer(fds=3).listening_socket()
