"""Ports for what a test starts, or leaves alone, a moment later: nobody else takes them meanwhile.

A port that the kernel gives (port 0) and that is closed again may be the next test's a millisecond later, or that of an
outgoing connection. These lie below what the kernel gives, and each process has a block of them for itself.
"""

from __future__ import annotations

import functools
import random
import socket

_BLOCK = 200
_BLOCKS = range(12_000, 24_000, _BLOCK)  # then come those of vLLM's driver; Linux gives 32768 and above


def unused_port() -> int:
    """Return a port on which nobody listens, and which only this process will get."""
    return unused_ports(1)[0]


def unused_ports(count: int) -> range:
    """Return so many of them in a row; raises ``RuntimeError`` if there are none."""
    return _block().take(count)


class _Block:
    """The ports after the one that stands for the block, in turn."""

    def __init__(self, claim: socket.socket) -> None:
        self._claim = claim  # goes with the process
        self._first = claim.getsockname()[1] + 1
        self._next = self._first

    def take(self, count: int) -> range:
        end = self._first + _BLOCK - 1
        for _ in range(_BLOCK):
            start = self._next if self._next + count <= end else self._first
            self._next = start + count
            if all(map(_is_unused, range(start, start + count))):
                return range(start, start + count)
        raise RuntimeError(f"of the ports {self._first} to {end - 1} no {count} in a row are unused")


@functools.cache
def _block() -> _Block:
    """Claim a block by a UDP socket, which other processes see: tests use those numbers for TCP alone."""
    for first in random.sample(_BLOCKS, len(_BLOCKS)):
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", first))
        except OSError:
            claim.close()
        else:
            return _Block(claim)
    raise RuntimeError(f"other processes have all blocks of ports from {_BLOCKS[0]} on")


def _is_unused(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are over do not count
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
