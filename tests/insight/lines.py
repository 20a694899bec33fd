"""Lines of the request log, as the gateway records them."""

from __future__ import annotations

from typing import Any

from rolecall.gateway.recorder import RequestLine

CHAT = "/v1/chat/completions"


def line(**fields: Any) -> dict[str, Any]:
    """Return the line of a request that the model ``a`` has answered."""
    common = {"request_id": "req_1", "endpoint": CHAT, "requested_model": "a", "model": "a", "status": 200}
    return RequestLine(**{**common, "duration_ms": 100.0, **fields}).as_dict()
