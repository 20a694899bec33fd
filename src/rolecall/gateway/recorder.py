"""The record of each request: one JSON object a line, written by a thread of its own.

The event loop only encodes the line and appends it to a queue, which costs it about 1 µs: less than to leave the
encoding to the writer, which would take the interpreter's lock from the loop for the same time and then some. The
writer thread owns the file and sits out a disk that is full, read-only or gone.
"""

from __future__ import annotations

import atexit
import json
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from rolecall.gateway.rotating_file import RotatingFile, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

# Lines per write; what a failed write has to put back stays small.
_BATCH_LINES = 256
# Writes are at least this far apart, so that a busy server wakes the writer 50 times a second and not once per request
# (each wake-up takes the interpreter's lock from the event loop). A single request's line is written at once.
_GATHER_S = 0.02
_RETRY_WHILE_CLOSING_S = 0.1
_NEWLINE = orjson.OPT_APPEND_NEWLINE


def timestamp(now_s: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC with milliseconds: ``2026-01-31T12:00:00.123Z``."""
    second, ms = divmod(round(now_s * 1e6) // 1000, 1000)
    return f"{_to_the_second(second)}.{ms:03d}Z"


@lru_cache(maxsize=2)  # thousands of requests arrive in one second
def _to_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, timezone.utc).isoformat()[:-6]


@dataclass
class RequestLine:
    """What is written about one request; the gateway fills it as it goes and records it once, on whichever exit.

    The order of the fields is the order of the keys. ``None`` means not known or not applicable. It has no slots: its
    ``__dict__`` is the line, and nothing is copied.
    """

    ts: str = field(default_factory=lambda: timestamp(time.time()))
    """When the request arrived (ISO 8601, UTC, ms); by default when this object was made."""
    request_id: str | None = None
    endpoint: str | None = None
    """Path of the URL, without the query."""
    client: str | None = None
    """Address of the client and its User-Agent."""
    key: str | None = None
    """Name of the API key, where one was needed."""
    requested_model: str | None = None
    """Name, alias or ``role:x`` as the client sent it."""
    role: str | None = None
    model: str | None = None
    """Name in the registry of the model that served."""
    backend: str | None = None
    profile: str | None = None
    stream: bool = False
    status: int | None = None
    """HTTP status; 499 when the client left before its answer was complete."""
    error: str | None = None
    """``code: message``; also set with status 200 when a stream broke off after its headers were sent."""
    messages: int = 0
    """Messages in the request as the client sent it."""
    images: int = 0
    """Images in the request as the client sent it."""
    truncate_history: str | None = None
    """What was left out of the history, ``messages=4 images=1``."""
    role_selector: str | None = None
    """Why this model was chosen for the role, in words."""
    memory: str | None = None
    """What was made smaller for want of memory, ``instead-of=big, context=4096``."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    """Part of the completion tokens."""
    finish_reason: str | None = None
    queue_ms: float | None = None
    """From arrival until a lease was granted, loading excluded."""
    load_ms: float | None = None
    """Time spent waiting for the model to load."""
    ttft_ms: float | None = None
    """From arrival until the first byte of content was sent (time to first token)."""
    duration_ms: float | None = None
    """From arrival until the last byte was sent."""
    tokens_per_second: float | None = None
    """Completion tokens per second after the first one."""
    prompt_id: str | None = None
    prompt_version: str | None = None
    bytes_in: int = 0
    """Size of the request's body."""
    bytes_out: int = 0
    """Size of the answer's body, as far as it was sent."""
    output_bytes: int | None = None
    """Size of what the model wrote, as far as it was read: text, thoughts and calls of tools, in UTF-8."""
    markers: list[str] | None = field(default=None, init=False)
    """Groups of phrases found at the beginning of the answer; absent where nothing was looked at."""
    trace_id: str | None = field(default=None, init=False)
    """The trace that the request belongs to, 32 hexadecimal digits; the key is absent where there is none."""
    wanted_model: str | None = field(default=None, init=False)
    """The one model that the request was for and did not get; the key is absent where it got one."""
    experiment: str | None = field(default=None, init=False)
    """The experiment that the request took part in; this key and the next three are absent where there was none."""
    variant: str | None = field(default=None, init=False)
    """The variant that it was assigned."""
    variant_note: str | None = field(default=None, init=False)
    """What it did not get of it, ``fallback model_not_found``, ``kept temperature``; ``forced`` by its header."""
    experiment_unit: str | None = field(default=None, init=False)
    """A hash of the key or session that was given the variant."""
    prompt: str | list[Any] | None = field(default=None, init=False)
    """Messages or prompt; only with ``log_prompts``, the key is absent until it is set."""
    response: str | None = field(default=None, init=False)
    """Text of the answer; only with ``log_prompts``, the key is absent until it is set."""
    log_begins: bool | None = field(default=None, init=False)
    """That there was no line before this one; put into the file by whoever opens it, the key is absent elsewhere."""

    @classmethod
    def begun(cls, ts: str, request_id: str, endpoint: str, client: str) -> RequestLine:
        """Return a line of which so much is known; copying the rest is many times as fast as setting it."""
        line = cls.__new__(cls)
        line.__dict__ = {**_BLANK, "ts": ts, "request_id": request_id, "endpoint": endpoint, "client": client}
        return line

    def as_dict(self) -> dict[str, Any]:
        """Return the line with its keys in order; it is the line itself, no copy."""
        return vars(self)


_BLANK = vars(RequestLine(ts=""))


def encode(line: Mapping[str, Any]) -> bytes:
    """Return the line as JSON with a newline; what JSON cannot hold becomes text, so no line is lost for a value."""
    try:
        return orjson.dumps(line if type(line) is dict else dict(line), default=_words, option=_NEWLINE)
    except (TypeError, RecursionError):  # orjson's JSONEncodeError is a TypeError
        members = (member(str(key)) + b":" + member(value) for key, value in line.items())
        return b"{" + b",".join(members) + b"}\n"


def member(value: Any) -> bytes:
    """Return a value as JSON; what JSON cannot hold becomes text."""
    try:
        return orjson.dumps(value, default=_words)
    except (TypeError, RecursionError):
        pass
    # The standard library's writer takes what orjson refuses: integers over 64 bits, keys that are no strings, lone
    # surrogates (which UTF-8 cannot hold: they are replaced below).
    try:
        text = json.dumps(value, default=_words, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(_words(value), ensure_ascii=False)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _words(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything, and the line is still to be written
        return object.__repr__(value)


class Recorder:
    """Writes request lines to a file without ever blocking the caller.

    What cannot be written (disk full, read-only, folder gone) waits in memory, in order, and is tried again every
    ``retry_s``. The memory is bounded by ``max_waiting_lines`` and ``max_waiting_bytes``: beyond them the oldest
    waiting lines are dropped and counted, as the newest tell what is happening now. An outage is reported through
    ``logging`` once when it begins and once when it ends.

    ``max_bytes`` is the size at which the file is rotated, ``backups`` how many older files are kept; 0 for either
    never rotates.

    ``listeners`` are called with each line on the caller's way, which a request pays for: they put it on a queue of
    their own, and raise nothing. They may keep a line and do not change it.
    """

    def __init__(  # noqa: PLR0913 - the settings of a log are independent of each other
        self,
        path: Path,
        max_bytes: int = 25_000_000,
        backups: int = 5,
        *,
        max_waiting_lines: int = 50_000,
        max_waiting_bytes: int = 64 * 2**20,
        retry_s: float = 1.0,
    ) -> None:
        self.path = path
        self.dropped = 0
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        self._max_waiting_lines = max_waiting_lines
        self._max_waiting_bytes = max_waiting_bytes
        self._retry_s = retry_s
        self._file = RotatingFile(path, max_bytes, backups)
        self._lock = threading.Lock()  # a plain one: the caller takes it in C
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._batch: deque[bytes] = deque()  # taken from _waiting, being written
        self._batch_bytes = 0
        self._outage: str | None = None
        self._dropped_before_outage = 0
        self._closing = threading.Event()
        self._deadline_s = float("inf")
        self._written_s = 0.0
        self._ended = False
        # A daemon, so that a server that ends by an exception is not kept alive by its log. Such an end never reaches
        # close(), and the last lines before it are the interesting ones: atexit gives them one second.
        self._thread = threading.Thread(target=self._run, name="rolecall-recorder", daemon=True)
        self._thread.start()
        atexit.register(self.close, 1.0)

    @property
    def problem(self) -> str | None:
        """What is wrong with the log now, in words; None when all is well."""
        if self._outage is not None:
            waiting = f"{len(self._waiting) + len(self._batch)} lines wait in memory, {self._dropped_now} dropped"
            return f"request log {self.path} cannot be written: {self._outage}; {waiting}"
        if self._file.rotation_error is not None:
            return f"request log {self.path} cannot be rotated and grows: {reason(self._file.rotation_error)}"
        return None

    @property
    def _dropped_now(self) -> int:
        return self.dropped - self._dropped_before_outage

    def record(self, line: Mapping[str, Any]) -> None:
        """Queue one line for writing. It never blocks and raises nothing for I/O; a line after close() is dropped."""
        data = encode(line)
        with self._lock:
            if self._ended:
                self.dropped += 1
                log.warning("request log %s is closed; a line is lost", self.path)
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._drop_excess()
            if len(self._waiting) == 1:
                self._changed.notify()
        for listener in self.listeners:
            listener(line)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write all that waits and end the writer; what a failing disk has not taken after ``timeout_s`` is lost.

        It blocks: call it from a thread while the event loop still has work. More calls do nothing.
        """
        atexit.unregister(self.close)
        with self._lock:
            if not self._closing.is_set():
                self._deadline_s = time.monotonic() + timeout_s
            self._closing.set()
            self._changed.notify()
        # The writer keeps the deadline itself; only a disk that hangs makes it later than that.
        self._thread.join(timeout_s + 2 * _RETRY_WHILE_CLOSING_S)
        if self._thread.is_alive():
            log.warning("request log %s: the disk does not answer, the last lines may be lost", self.path)

    def _run(self) -> None:
        # The first append has no lines: it opens the file, so that /health tells of a wrong path before any request.
        while True:
            count = len(self._batch)
            error = self._write_batch()
            if error is None:
                self._end_outage(count)
                goes_on = self._wait_for_lines()
            else:
                self._begin_outage(error)
                goes_on = self._pause()
            if not goes_on:
                break
            self._take_batch()
        self._file.close()

    def _write_batch(self) -> OSError | None:
        try:
            self._file.append(self._batch)
        except OSError as error:
            return error
        self._written_s = time.monotonic()
        return None

    def _take_batch(self) -> None:
        with self._lock:
            while self._waiting and len(self._batch) < _BATCH_LINES:
                self._batch.append(self._waiting.popleft())
            self._batch_bytes = sum(map(len, self._batch))
            self._waiting_bytes -= self._batch_bytes

    def _put_back_batch(self) -> None:
        with self._lock:
            self._waiting_bytes += sum(map(len, self._batch))
            self._waiting.extendleft(reversed(self._batch))
            self._batch.clear()
            self._batch_bytes = 0
            self._drop_excess()

    def _drop_excess(self) -> None:
        while len(self._waiting) > 1 and (
            len(self._waiting) + len(self._batch) > self._max_waiting_lines
            or self._waiting_bytes + self._batch_bytes > self._max_waiting_bytes
        ):
            self._waiting_bytes -= len(self._waiting.popleft())
            self.dropped += 1

    def _begin_outage(self, error: OSError) -> None:
        if self._outage is None:
            self._dropped_before_outage = self.dropped
            log.warning(
                "request log %s cannot be written: %s; lines are kept in memory until it can", self.path, reason(error)
            )
        self._outage = reason(error)
        self._put_back_batch()

    def _end_outage(self, written: int) -> None:
        if self._outage is None:
            return
        self._outage = None
        delayed = written + len(self._waiting)
        log.info("request log %s is written again: %d lines delayed, %d dropped", self.path, delayed, self._dropped_now)

    def _pause(self) -> bool:
        """Wait until the next attempt; False when there is to be none."""
        if not self._closing.is_set():
            self._closing.wait(self._retry_s)
            return True
        with self._lock:
            if not self._waiting or time.monotonic() >= self._deadline_s:
                self._abandon()
                return False
        time.sleep(_RETRY_WHILE_CLOSING_S)
        return True

    def _abandon(self) -> None:
        self._ended = True
        if self._waiting:
            log.warning("request log %s: %d lines are lost: %s", self.path, len(self._waiting), self._outage)
        self.dropped += len(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _wait_for_lines(self) -> bool:
        """Wait until there are lines to write; False when the recorder is closed and there are none."""
        with self._lock:
            self._batch_bytes = 0
            if self._waiting:
                return True
            self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
        self._closing.wait(max(0.0, self._written_s + _GATHER_S - time.monotonic()))
        with self._lock:
            self._ended = not self._waiting
            return not self._ended
