"""Ports of loopback: a free one for an engine, and who holds one that is taken."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Collection, Iterable
from typing import Any

import psutil

from rolecall.core.hosts import is_loopback
from rolecall.errors import ConfigurationError

_BACKLOG = 2048
_UNSEEN = "a process that cannot be seen"
_TAKEN = re.compile(r"couldn't bind HTTP server socket|[Aa]ddress already in use|EADDRINUSE")
"""In the words of llama-server (seen with xllamacpp), of vLLM, uvicorn and whatever is written in Go, and of Node."""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def hold_port() -> socket.socket:
    """Return a socket with a free port of loopback, which is held while it is open.

    The kernel gives it to nobody else then, neither to who wants any port nor to an outgoing connection. A server that
    is told the number can listen there if it sets SO_REUSEADDR or SO_REUSEPORT, as nearly all do: Linux lets it, as
    this socket has them as well and does not listen.
    """
    held = socket.socket()
    held.bind(("127.0.0.1", 0))  # before the options, with which it could be given one that another socket holds
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        held.setsockopt(socket.SOL_SOCKET, option, 1)
    return held


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def says_port_is_taken(lines: Iterable[str]) -> bool:
    """Whether an engine that ended as it started says that somebody else had its port."""
    return any(_TAKEN.search(line) for line in lines)


def stranger_on(port: int, family: Collection[int]) -> str | None:
    """Return who listens on a port, such as ``process 4711 (python3)``, if none of ``family`` does; else None.

    None as well where nobody is seen: of other users' processes only root sees the sockets.
    """
    pids = _listeners(port)
    if not pids or not pids.isdisjoint(family):
        return None
    return holder(port)


def _listeners(port: int) -> set[int]:
    try:
        return {each.pid for each in _sockets(port) if each.status == psutil.CONN_LISTEN and each.pid}
    except psutil.Error:
        return set()


def _sockets(port: int) -> list[Any]:
    """Return the sockets with that port of ours; those of other users have no ``pid``. Raises ``psutil.Error``."""
    over = {psutil.CONN_TIME_WAIT, psutil.CONN_NONE}  # nobody has it any more, or not yet
    return [c for c in psutil.net_connections("tcp") if tuple(c.laddr)[1:2] == (port,) and c.status not in over]


def holder(port: int) -> str:
    """Return who has a port, such as ``process 4711 (python3)``, as far as we may see.

    Where nobody listens, a connection may have it: the kernel gives ports to outgoing ones as well.
    """
    try:
        found = _sockets(port)
        listening = [each for each in found if each.status == psutil.CONN_LISTEN]
        pid = min((each.pid for each in listening or found if each.pid), default=None)
        process = f"process {pid} ({psutil.Process(pid).name()})" if pid else "a process of another user"
    except psutil.Error:
        return _UNSEEN
    if not found:
        return _UNSEEN
    return process if listening else f"a connection of {process}"


def listening_socket(host: str, port: int, *, has_keys: bool = False) -> socket.socket:
    """Return a socket that listens on the address; raises ``ConfigurationError`` naming who holds the port.

    Without keys it is refused to listen where other machines could reach it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        check_guarded(bound, has_keys=has_keys, host=host)
        bound.listen(_BACKLOG)  # at once: two sockets may be bound to one port as long as none listens
    except ConfigurationError:
        bound.close()
        raise
    except socket.gaierror as error:
        bound.close()
        raise ConfigurationError(f"host: {host!r} is not an address of this machine ({error.strerror})") from None
    except PermissionError:
        bound.close()
        raise ConfigurationError(f"port: {port} needs more rights than this user has; take one above 1023") from None
    except OSError as error:
        bound.close()
        if error.errno != errno.EADDRINUSE:
            raise ConfigurationError(f"host: {host!r} is not an address of this machine ({error.strerror})") from None
        message = f"port: {port} is taken by {holder(port)}; stop it, or take another port with --port"
        raise ConfigurationError(message) from None
    return bound


def check_guarded(bound: socket.socket, *, has_keys: bool, host: str = "") -> None:
    """Raise ``ConfigurationError`` if other machines could reach a socket, and nobody there would need a key.

    The address itself is looked at: what a name stands for is known only now, and nobody can connect yet.
    """
    address = bound.getsockname()[0]
    if not (has_keys or is_loopback(address)):
        raise ConfigurationError(
            f"host: {(host or address)!r} can be reached by other machines, and without API keys everybody there could "
            "use this server. Listen on 127.0.0.1, or let callers need a key: name a file by api_keys_file "
            "(CHAT_PROXY_API_KEYS_FILE) and make a key with `rolecall keys add NAME`"
        )
