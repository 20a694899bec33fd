"""Ports: free ones, taken ones, and who holds them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from rolecall.errors import ConfigurationError
from rolecall.runtime.ports import free_port, hold_port, holder, is_free, listening_socket, says_port_is_taken


@pytest.fixture(params=["127.0.0.1", "127.0.0.2", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Listen on a port of one address; give address and port."""
    host = request.param
    try:
        sock = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with sock:
        yield host, sock.getsockname()[1]


def test_a_free_port_can_be_listened_on() -> None:
    """It is free, and differs while it is taken."""
    port = free_port()
    assert is_free("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free("127.0.0.1", port)
        assert free_port() != port


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_held_port(option: int) -> None:
    """Who is told it listens there and is reached, with either option; without one nobody has it."""
    with hold_port() as held, socket.socket() as server, socket.socket() as stranger:
        address = held.getsockname()
        with pytest.raises(OSError, match="in use"):
            stranger.bind(address)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        server.setsockopt(socket.SOL_SOCKET, option, 1)
        server.bind(address)
        server.listen()
        held.close()
        with socket.create_connection(address):
            pass


def test_a_held_port_is_given_to_nobody_else() -> None:
    """Neither as another one that is held, nor to a server that wants any, nor to a connection."""
    with contextlib.ExitStack() as stack:
        held = {stack.enter_context(hold_port()).getsockname()[1] for _ in range(100)}
        assert len(held) == 100
        with socket.create_server(("127.0.0.1", 0)) as server:
            given = {stack.enter_context(socket.create_connection(server.getsockname())).getsockname()[1] for _ in held}
            given |= {free_port() for _ in range(1000)}
        assert not given & held


def test_a_taken_port(listener: tuple[str, int]) -> None:
    """It is not free, and its holder is this process, by number and name."""
    host, port = listener
    assert not is_free(host, port)
    assert holder(port).startswith(f"process {os.getpid()} (")


def test_a_port_of_an_outgoing_connection() -> None:
    """The kernel gave it to a connection: it is taken, and that is said, with the process that has it."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = client.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        assert holder(port).startswith(f"a connection of process {os.getpid()} (")
        with pytest.raises(ConfigurationError, match=f"port: {port} is taken by a connection of process"):
            listening_socket("127.0.0.1", port)


def test_a_port_that_is_only_bound() -> None:
    """No list of the kernel has such a socket: nothing is said of its user."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert holder(bound.getsockname()[1]) == "a process that cannot be seen"


def test_a_port_that_nobody_holds() -> None:
    """The answer never invents a process."""
    assert "process" in holder(free_port())
    assert str(os.getpid()) not in holder(free_port())


def test_the_socket_listens_at_once() -> None:
    """From the moment it is returned nobody else can take the port; port 0 takes a free one."""
    with listening_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        with pytest.raises(ConfigurationError, match=str(port)):
            listening_socket("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_port_of_connections_that_are_over_can_be_taken_again() -> None:
    """A restart need not wait until the kernel has forgotten the connections of before."""
    with listening_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server, _ = sock.accept()
        server.close()  # the side that closes first is the one that lingers
        client.close()
    with listening_socket("127.0.0.1", port) as again:
        assert again.getsockname()[1] == port


def test_a_taken_port_names_its_holder(listener: tuple[str, int]) -> None:
    """The refusal names port, process and the way out, on whichever address the port is taken."""
    host, port = listener
    with pytest.raises(ConfigurationError) as refusal:
        listening_socket(host, port)
    words = [f"port: {port} is taken", f"process {os.getpid()}", "--port"]
    assert [word for word in words if word not in str(refusal.value)] == []


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "2001:db8::1", "not an address"])
def test_a_host_that_is_not_ours(host: str) -> None:
    """An address of another machine, or of none, is refused as the host, not the port."""
    with pytest.raises(ConfigurationError, match=f"host: '{host}' is not an address of this machine"):
        listening_socket(host, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may take any port")
def test_a_port_for_root_only() -> None:
    """The refusal says which ports anybody may take."""
    if is_free("127.0.0.1", 80):
        pytest.skip("this machine lets anybody take low ports")
    with pytest.raises(ConfigurationError, match="1023"):
        listening_socket("127.0.0.1", 80)


@pytest.mark.parametrize(
    "line",
    [
        "srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 24001",
        "(APIServer pid=71) OSError: [Errno 98] Address already in use",
        "listen tcp 127.0.0.1:8080: bind: address already in use",
        "Error: listen EADDRINUSE: address already in use 127.0.0.1:8080",
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8080): address already in use",
    ],
)
def test_an_engine_that_says_its_port_is_taken(line: str) -> None:
    """The words of llama-server, vLLM, uvicorn, Go and Node are known, wherever they stand among the last lines."""
    assert says_port_is_taken(["loading", line, "bye"])
    assert not says_port_is_taken(["loading", "error: failed to load model", "bye"])
