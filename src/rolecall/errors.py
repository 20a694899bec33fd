"""Every failure a client can meet, in OpenAI's shape.

    RolecallError                      500 server_error
    ├── BadRequest                     400 invalid_request_error
    │   ├── BodyTooLarge               413
    │   │   └── ImageTooLarge          413 image_too_large       one image above max_image_bytes
    │   ├── TooManyImages              400 too_many_images       more than max_images
    │   ├── InvalidImage               400 invalid_image         there is none, it is cut off, or unpacks to too much
    │   ├── InvalidImageUrl            400 invalid_image_url     it is none, may not be fetched, or could not
    │   ├── InvalidMediaUrl            400 invalid_media_url     audio, video or a file by its address
    │   ├── HeadersTooLarge            431 headers_too_large
    │   ├── UnsupportedMediaType       415 unsupported_media_type  the body is not called JSON, or is compressed
    │   ├── RequestTimeout             408 request_timeout       head or body came too slowly
    │   ├── UnsupportedInput           400 unsupported_input     an image for a model that reads text only
    │   ├── ModelTooLarge              400 model_too_large       never fits this machine's budget
    │   ├── RequestCancelled           400 request_cancelled     somebody stopped it by hand
    │   ├── PageGone                   400 page_gone             a page of the log that is deleted by now
    │   ├── ContextLengthExceeded      400 context_length_exceeded  even without its history, too long for the model
    │   ├── InvalidApiKey              401 invalid_api_key       no key, a wrong one, or one too many
    │   ├── HostNotAllowed             421 host_not_allowed      a Host header that is not ours
    │   └── MethodNotAllowed           405
    ├── Forbidden                      403 permission_error      the key is right, but not for this
    │   └── OriginNotAllowed           403 origin_not_allowed    a web page that is not listed
    ├── NotFound                       404 not_found_error
    │   ├── ModelNotFound              404 model_not_found       no such name, alias or role
    │   └── NoModelForRole             404 no_model_for_role     the role exists, no model of it can serve
    ├── Conflict                       409 conflict              it is so already, or under way
    │   └── JobRunning                 409 job_running           the dataset is being tagged
    ├── NotImplementedByEngine         501 not_supported         the engine has no such endpoint
    ├── TooManyRequests                429 rate_limit_error      the queue is full
    │   └── RateLimited                429 rate_limit_exceeded   the key has used what it may
    ├── Unavailable                    503 service_unavailable_error  try again later
    │   ├── StartFailed                503 model_start_failed    with the engine's last lines
    │   ├── ModelLoading               503 model_loading         waited for max_wait_s, unstreamed
    │   ├── NotLoaded                  503 model_not_loaded      autostart is off
    │   ├── TooManyConnections         503 too_many_connections
    │   ├── DiskFull                   503 disk_full               no room for an upload, or for what is kept
    │   ├── DatasetsUnavailable        503 datasets_unavailable  their file is held by another process, or damaged
    │   ├── EngineBusy                 503 engine_busy           the engine itself says so
    │   └── ShuttingDown               503 shutting_down
    └── UpstreamError                  502 engine_error          the engine broke off or answered rubbish
        ├── UpstreamRefused            502 engine_refused        the engine does not know our key, or its model
        ├── UpstreamUnreachable        502                       nobody listens: nothing was sent
        └── UpstreamTimeout            504 engine_timeout

Statuses follow what OpenAI's SDKs do with them: 408, 409, 429 and ≥ 500 are retried, so what no retry can mend is 400
or 404.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

MAX_RETRY_AFTER_S = 120
"""OpenAI's SDKs do not retry at all when Retry-After is longer."""


@contextmanager
def naming(file: object) -> Iterator[None]:
    """Have an ``OSError`` name the file that it is about, unless it names one: a write on a full disk names none.

    One that is not the system's, as that of what is no gzip file, stays as it is: its words would be gone.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(file)
        raise


class ConfigurationError(Exception):
    """What was configured cannot work; the message names the place, the value and what is allowed."""


class RolecallError(Exception):
    """A failure with an HTTP status and OpenAI's four error fields."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = "internal_error"
    discreet: str | None = None
    """The message without what an engine may quote of the request or its answer, where its words are in it."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None, code: str | None = None
    ) -> None:
        """``code`` stands before the one of the class: that of an engine that has one of its own."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.code = code or self.code

    def body(self) -> dict[str, Any]:
        """Return ``{"error": {"message", "type", "param", "code"}}``."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that go with it: ``retry-after`` in whole seconds, rounded up, 1 to 120."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(min(MAX_RETRY_AFTER_S, max(1, math.ceil(self.retry_after_s))))}

    def summary(self, *, discreetly: bool = False) -> str:
        """Return ``code: message`` for the log; ``discreetly`` where that may hold no prompts."""
        return f"{self.code}: {self.discreet if discreetly and self.discreet is not None else self.message}"


class BadRequest(RolecallError):
    """The request itself is wrong; sending it again changes nothing."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class BodyTooLarge(BadRequest):
    """The body is over the limit."""

    status = 413
    code = "body_too_large"


class ImageTooLarge(BodyTooLarge):
    """An image is over the limit of bytes."""

    code = "image_too_large"


class TooManyImages(BadRequest):
    """More images than a request may have."""

    code = "too_many_images"


class InvalidImage(BadRequest):
    """A part holds no image, or one that has to be scaled down cannot be read, or would fill the memory."""

    code = "invalid_image"


class InvalidImageUrl(BadRequest):
    """The image of an address may not be fetched, or could not, or the address is none."""

    code = "invalid_image_url"


class InvalidMediaUrl(BadRequest):
    """Nothing but images is fetched, and engines may not fetch by themselves."""

    code = "invalid_media_url"


class HeadersTooLarge(BadRequest):
    """The head is over a limit."""

    status = 431
    code = "headers_too_large"


class UnsupportedMediaType(BadRequest):
    """The headers do not say that the body is plain JSON."""

    status = 415
    code = "unsupported_media_type"


class RequestTimeout(BadRequest):
    """The client sends too slowly; unlike other client errors it may be better the next time."""

    status = 408
    code = "request_timeout"


class UnsupportedInput(BadRequest):
    """The model cannot take this kind of input."""

    code = "unsupported_input"


class ModelTooLarge(BadRequest):
    """The model's footprint is over what the profile allows at all."""

    code = "model_too_large"


class RequestCancelled(BadRequest):
    """Somebody who may do that stopped the request; who it was is for the log alone."""

    code = "request_cancelled"

    def __init__(self, who: str) -> None:
        super().__init__("The request was stopped by who runs this server.")
        self._who = who

    def summary(self, *, discreetly: bool = False) -> str:
        """Return who it was."""
        del discreetly
        return f"{self.code}: by {self._who}"


class PageGone(BadRequest):
    """What was to be read on from is no longer in the log."""

    code = "page_gone"


class ContextLengthExceeded(BadRequest):
    """The conversation is longer than the model's context, and nothing more of it may be left out; OpenAI's code.

    An engine may leave the numbers unsaid. Clients know the error by the beginning of its text, too.
    """

    code = "context_length_exceeded"

    def __init__(
        self, needed_tokens: int | None, context_tokens: int | None, way_out: str, field: str | None = "messages"
    ) -> None:
        """``field`` is the one that is too long; None where it is not known."""
        limit = f"is {context_tokens} tokens" if context_tokens is not None else "was exceeded"
        needed = f"{needed_tokens} tokens" if needed_tokens is not None else "more"
        what = "your messages need" if field == "messages" else "your input needs"
        super().__init__(
            f"This model's maximum context length {limit}. However, {what} {needed}. {way_out}",
            param=field,
        )
        self.needed_tokens = needed_tokens
        self.context_tokens = context_tokens


class InvalidApiKey(BadRequest):
    """Nobody knows who is calling."""

    status = 401
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        """Return the scheme to use, which every 401 has to name (RFC 9110, 15.5.2)."""
        return {**super().headers(), "www-authenticate": "Bearer"}


class HostNotAllowed(BadRequest):
    """The request was meant for another host (421 Misdirected Request)."""

    status = 421
    code = "host_not_allowed"


class Forbidden(RolecallError):
    """It is known who is calling, and that it may not do this."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class OriginNotAllowed(Forbidden):
    """A web page sent this that nobody allowed to."""

    code = "origin_not_allowed"


class NotFound(RolecallError):
    """There is no such thing at this address."""

    status = 404
    type = "not_found_error"
    code = "not_found"


class MethodNotAllowed(BadRequest):
    """The address exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


class ModelNotFound(NotFound):
    """No model, alias or role of that name."""

    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, message: str, *, nearest: Sequence[str] = (), param: str | None = "model") -> None:
        hint = f" Did you mean {' or '.join(repr(name) for name in nearest)}?" if nearest else ""
        super().__init__(message + hint, param=param)


class NoModelForRole(NotFound):
    """The role is known, but no model that plays it can serve this request here."""

    type = "invalid_request_error"
    code = "no_model_for_role"


class Conflict(RolecallError):
    """What is asked for contradicts what is there; no retry mends it, whatever OpenAI's SDKs think of a 409."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"

    def headers(self) -> dict[str, str]:
        """Return the header by which OpenAI's SDKs know that no retry mends it."""
        return super().headers() | {"x-should-retry": "false"}


class JobRunning(Conflict):
    """A dataset is being worked on already."""

    code = "job_running"


class NotImplementedByEngine(RolecallError):
    """The model's engine has no such endpoint; the message says what to use."""

    status = 501
    type = "invalid_request_error"
    code = "not_supported"

    def headers(self) -> dict[str, str]:
        """Return the header by which OpenAI's SDKs know that no retry mends it."""
        return super().headers() | {"x-should-retry": "false"}


class TooManyRequests(RolecallError):
    """The queue is full."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class RateLimited(TooManyRequests):
    """The caller has used what its key allows. A wait longer than clients wait (``retry_after_s``) is not to be tried.

    OpenAI's SDKs would otherwise try twice more within seconds: they ignore a Retry-After above 120 s, and obey
    ``x-should-retry``.
    """

    code = "rate_limit_exceeded"

    def headers(self) -> dict[str, str]:
        """Return ``retry-after``, or ``x-should-retry: false`` where nobody would wait that long."""
        if self.retry_after_s is not None and self.retry_after_s > MAX_RETRY_AFTER_S:
            return {"x-should-retry": "false"}
        return super().headers()


class Unavailable(RolecallError):
    """The request is fine, this moment is not."""

    status = 503
    type = "service_unavailable_error"
    code = "unavailable"


class StartFailed(Unavailable):
    """The engine did not start; the message ends with its last lines."""

    code = "model_start_failed"


class ModelLoading(Unavailable):
    """The model did not become free within ``max_wait_s``; it goes on loading."""

    code = "model_loading"


class NotLoaded(Unavailable):
    """The model is not running and autostart is off."""

    code = "model_not_loaded"


class TooManyConnections(Unavailable):
    """No more connections are taken for now."""

    code = "too_many_connections"


class DiskFull(Unavailable):
    """The disk that uploads or results are kept on has no room for one more."""

    code = "disk_full"


class DatasetsUnavailable(Unavailable):
    """The file of the datasets cannot be used; the message says why, and what to do."""

    code = "datasets_unavailable"


class EngineBusy(Unavailable):
    """The engine has no room for one more request now."""

    code = "engine_busy"


class ShuttingDown(Unavailable):
    """rolecall is stopping."""

    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("rolecall is shutting down; send the request again when it is back.", retry_after_s=5)


class UpstreamError(RolecallError):
    """The engine broke off, or what came was not an answer."""

    status = 502
    type = "upstream_error"
    code = "engine_error"


class UpstreamRefused(UpstreamError):
    """The engine takes no requests of ours as they are; its entry has to be mended."""

    code = "engine_refused"

    def headers(self) -> dict[str, str]:
        """Return the header by which OpenAI's SDKs know that no retry mends it."""
        return super().headers() | {"x-should-retry": "false"}


class UpstreamUnreachable(UpstreamError):
    """Nobody listens at the engine's address; nothing of the request was sent."""


class UpstreamTimeout(UpstreamError):
    """The engine did not answer in time."""

    status = 504
    code = "engine_timeout"
