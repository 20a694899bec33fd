"""Lines of a request log, made up."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from rolecall.gateway.recorder import RequestLine, encode, timestamp

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def line(n: int = 0, **fields: Any) -> bytes:
    """Return a request's line, ``n`` seconds after noon."""
    known: dict[str, Any] = {"model": "demo-chat", "role": "chat", "status": 200, "finish_reason": "stop"}
    known.update(ts=timestamp((NOON + timedelta(seconds=n)).timestamp()), request_id=f"req-{n:04d}")
    known.update(fields)
    extra: dict[str, Any] = {key: known.pop(key) for key in ("prompt", "response") if key in known}
    return encode({**RequestLine(**known).as_dict(), **extra})


def lines(*numbers: int, **fields: Any) -> bytes:
    """Return the lines of those numbers."""
    return b"".join(line(n, **fields) for n in numbers)
