"""The ids by which answers and lines of the log are found again."""

from __future__ import annotations

import random


def new_request_id() -> str:
    """Return an id for ``x-request-id`` and the log; it is no secret, and nothing is granted for it."""
    return f"req_{random.getrandbits(128):032x}"
