"""Whether somebody who was let in may stay: streams are open for hours, and keys are revoked meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from rolecall.gateway.caller import Caller, KeyHolder
from rolecall.gateway.door import Keys


def staying(keys: Keys | None, caller: Caller) -> Callable[[], bool]:
    """Return what tells whether a caller's key, if there is one, is as much in force as when the request came."""
    if keys is None or not isinstance(caller, KeyHolder):
        return lambda: True
    key = caller.key

    def may_stay() -> bool:
        return key in keys.store.ring.keys and not key.is_expired(datetime.now(timezone.utc))

    return may_stay
