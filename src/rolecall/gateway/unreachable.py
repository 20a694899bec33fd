"""Engines that nobody reaches: named by model to the client, by address on the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from rolecall.errors import UpstreamUnreachable
from rolecall.gateway.upstream import UNREACHABLE
from rolecall.runtime.lease import Lease

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 10.0


class Unreachable:
    """Tells of each such engine once in ten seconds at the most, however many requests ask for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at: dict[str, float] = {}

    def named(self, error: UpstreamUnreachable, lease: Lease) -> UpstreamUnreachable:
        """Return the error with the name of the model; the address is for those who run the server."""
        name, reason = lease.entry.name, error.message.removeprefix(UNREACHABLE)
        now = self._clock()
        if now >= self._told_at.get(name, -_REPORT_EVERY_S) + _REPORT_EVERY_S:
            self._told_at[name] = now
            log.warning("the engine of %r at %s cannot be reached%s", name, _shown(lease.upstream.base_url), reason)
        return UpstreamUnreachable(f"The engine of {name!r} cannot be reached{reason}")


def _shown(url: str) -> str:
    """Return an address without the password that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
