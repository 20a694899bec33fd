"""W3C Trace Context: the headers by which a request is known to belong to a trace (https://www.w3.org/TR/trace-context/).

What does not keep to it is dropped, as the recommendation says: a trace must never spoil a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

PARENT, STATE = b"traceparent", b"tracestate"
MAX_STATE = 1024
"""Characters of a ``tracestate`` that are passed on; the recommendation asks for 512 at the least."""

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]{0,200})?", re.ASCII)
_MEMBER = re.compile(
    r"([a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]",
    re.ASCII,
)
"""A member of the list, as the recommendation's grammar has it, with its key."""

_MOST_MEMBERS = 32
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace. Ids are hexadecimal, of 32 and 16 digits; ``span_id`` is that of whoever asks.

    ``is_sampled`` says that the trace is kept. ``text`` is the ``traceparent``, ``state`` the ``tracestate``, which may
    be empty.
    """

    trace_id: str
    span_id: str
    is_sampled: bool
    state: str
    text: str

    def headers(self) -> dict[str, str]:
        """Return the headers for the next one in line."""
        headers = {"traceparent": self.text}
        if self.state:
            headers["tracestate"] = self.state
        return headers


def context_of(trace_id: str, span_id: str, *, is_sampled: bool, state: str = "") -> TraceContext:
    """Return the context of a span of ours."""
    return TraceContext(trace_id, span_id, is_sampled, state, f"00-{trace_id}-{span_id}-{is_sampled:02x}")


def read_context(parent: str, states: Iterable[str] = ()) -> TraceContext | None:
    """Return what a request's headers say; None where there is no trace or its header is none.

    ``states`` are the values of ``tracestate``, of which there may be several: they are one list.
    """
    found = _PARENT.fullmatch(parent.strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = ",".join(value.strip() for value in states if value.strip()).replace("\t", " ")
    if len(state) > MAX_STATE or not _is_state(state):
        state = ""
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), state, found[0])


def _is_state(state: str) -> bool:
    """Whether it is a list of members, none of them twice; empty ones are allowed."""
    members = [member for each in state.split(",") if (member := each.strip(" "))]
    found = [_MEMBER.fullmatch(member) for member in members]
    return 0 < len(members) <= _MOST_MEMBERS and all(found) and len({one and one[1] for one in found}) == len(found)
