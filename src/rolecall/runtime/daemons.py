"""Which models the daemons have that other people run."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, TypeAlias

import httpx

from rolecall.backends.base import Backend, Call, RemoteLoad
from rolecall.core.models import ModelEntry
from rolecall.runtime.remote import BAD_KEY

_Asked: TypeAlias = tuple[str, str | None]
"""The address, and the variable of the key that is shown there."""

_FRESH_S = 2.0
_TIMEOUT_S = 1.0


class Daemons:
    """Asks each daemon for its models, at most every two seconds; safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[_Asked, tuple[float, Any]] = {}

    def why_missing(self, entry: ModelEntry, backend: Backend, *, ask: bool = True) -> str | None:
        """Return why the entry's daemon cannot serve it; None if it can, or where there is no daemon.

        It waits for the daemon, up to a second, and for other threads that ask: call it off the event loop. Without
        ``ask`` it waits for nothing, and goes by the last answer however old that is.
        """
        if not backend.managed or backend.has_port:
            return None
        load = backend.launch(entry, 0)
        if not isinstance(load, RemoteLoad) or load.list_installed is None:
            return None
        url = load.list_installed.url
        asked = url, load.api_key_env
        if not ask and asked not in self._answers:
            return f"not installed: {backend.name} was not asked yet at {url}"
        answer = self._ask(load.list_installed, load, asked) if ask else self._answers[asked][1]
        if isinstance(answer, str):
            return f"not installed: {backend.name} cannot be asked at {url}: {answer}"
        return None if load.has_model(answer) else f"not installed: {load.missing}"

    def _ask(self, call: Call, load: RemoteLoad, asked: _Asked) -> Any:
        """Return the JSON of the answer, or in words why there is none."""
        with self._lock:
            asked_at, answer = self._answers.get(asked, (0.0, None))
            if not asked_at or time.monotonic() - asked_at > _FRESH_S:
                answer = _answer(call, load.headers())
                self._answers[asked] = time.monotonic(), answer
            return answer


def _answer(call: Call, headers: Mapping[str, str]) -> Any:
    try:
        response = httpx.request(call.method, call.url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        response.raise_for_status()
        return response.json()
    except (httpx.LocalProtocolError, UnicodeEncodeError):
        return BAD_KEY  # httpx would quote the header
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return str(error) or type(error).__name__
