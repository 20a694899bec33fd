"""What a question within the process came to, as the answer of the endpoint that asked it."""

from __future__ import annotations

from collections.abc import Mapping

from rolecall.errors import (
    BadRequest,
    BodyTooLarge,
    Forbidden,
    InvalidApiKey,
    NoModelForRole,
    NotImplementedByEngine,
    RolecallError,
    TooManyRequests,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from rolecall.vision.ask import AskError

_BY_STATUS: Mapping[int, type[RolecallError]] = {
    400: BadRequest,
    401: InvalidApiKey,
    403: Forbidden,
    404: NoModelForRole,
    413: BodyTooLarge,
    429: TooManyRequests,
    500: RolecallError,
    501: NotImplementedByEngine,
    502: UpstreamError,
    503: Unavailable,
    504: UpstreamTimeout,
}
_FIELDS = {
    "unsupported_input": "model",
    "model_not_found": "model",
    "no_model_for_role": "model",
    "model_too_large": "model",
    "not_supported": "model",
    "context_length_exceeded": "prompt",
}
"""Which field of a request an error is about; that of the chat within means nothing to who asked."""
_SHOWN = ("x-request-id", "retry-after")
_OURS = "x-rolecall-"


def as_error(error: AskError) -> RolecallError:
    """Return why a question got no answer, with the status and the code that it would have had at `/v1`."""
    kind = _BY_STATUS.get(error.status, BadRequest if 400 <= error.status < 500 else UpstreamError)
    return kind(
        error.message, param=_FIELDS.get(error.code), retry_after_s=error.retry_after_s, code=error.code or None
    )


def shown_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that say what was decided, and under which id the request is in the log."""
    return {name: value for name, value in headers.items() if name in _SHOWN or name.startswith(_OURS)}
