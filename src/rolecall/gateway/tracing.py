"""Which trace a request belongs to. By itself it is passed on; `insight.tracing` takes part in it where it is on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.types import Scope

from rolecall.core.trace_context import PARENT, STATE, TraceContext, read_context

Begin = Callable[[str, str, TraceContext | None], TraceContext]
"""Is given the request's id, its path and the trace that it came with; returns the one that engines are told."""


@dataclass(slots=True)
class Tracing:
    """``begin`` is None while nobody here takes part in traces; ``lost`` counts requests that could not be told of."""

    begin: Begin | None = None
    lost: Callable[[], int] = int

    def context(self, request_id: str, scope: Scope, headers: Mapping[bytes, bytes]) -> TraceContext | None:
        """Return the trace that engines are told of; None for a request without one."""
        came = None
        if PARENT in headers and sum(name == PARENT for name, _ in scope["headers"]) == 1:  # of two, none is right
            states = [value.decode("latin-1") for name, value in scope["headers"] if name == STATE]
            came = read_context(headers[PARENT].decode("latin-1"), states)
        return came if self.begin is None else self.begin(request_id, scope["path"], came)
