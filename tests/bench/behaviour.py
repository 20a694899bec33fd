"""What a proxy has to do when something goes wrong, or is unusual: checks that any of them can be put to.

Each check says what it saw, and whether that is right. What a request is to meet in the upstream is told in ``stop``.
"""

from __future__ import annotations

import gzip
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.programs import Mock
from bench.running import PATH, Target
from bench.wire import STREAM, Answer, Wire, pieces

TOLD_WITHIN_MS = 50.0
"""So fast the upstream is to know that a client left."""

_GIVES_UP_S = 3.0
_TRIES = 3
_CHUNKS = 160_000
"""Of a stream that nobody reads: 40 MB, more than sockets hold."""
_MOST_HELD = 24 * 2**20
"""What the sockets between upstream and client may hold of it, and the proxy."""
_MOST_GROWTH_MB = 32.0
_MS = 1e-6


@dataclass(frozen=True)
class Situation:
    """Who is put to the check. ``is_ours`` asks for more: errors are told in OpenAI's shape."""

    target: Target
    mock: Mock
    is_ours: bool = False
    within_ms: float = TOLD_WITHIN_MS

    def wire(self, **options: Any) -> Wire:
        """Return a new connection to it."""
        return Wire(self.target, **options)

    def ask(self, extra: str = "", **body: Any) -> Answer:
        """Send one request over a connection of its own."""
        with self.wire() as wire:
            return wire.ask(extra, **body)


@dataclass(frozen=True)
class Finding:
    """What a check saw."""

    passed: bool
    seen: str


@dataclass(frozen=True)
class Check:
    """A question and how it is asked."""

    name: str
    about: str
    put: Callable[[Situation], Finding]


# -- clients that leave


def _leaves_before_head(at: Situation) -> Finding:
    return _leaves(at, lambda wire: wire.send(**STREAM, max_tokens=2, stop="wait:6000"))


def _leaves_in_stream(at: Situation) -> Finding:
    def begin(wire: Wire) -> None:
        wire.send(**STREAM, max_tokens=300, seed=20)
        wire.read_chunk()

    return _leaves(at, begin)


def _resets_stream(at: Situation) -> Finding:
    def begin(wire: Wire) -> None:
        wire.send(**STREAM, max_tokens=300, seed=20)
        wire.read_chunk()

    return _leaves(at, begin, by=Wire.reset)


def _leaves_silence(at: Situation) -> Finding:
    def begin(wire: Wire) -> None:
        wire.send(**STREAM, max_tokens=2, seed=6000)
        wire.read_chunk()

    return _leaves(at, begin)


def _leaves_whole(at: Situation) -> Finding:
    return _leaves(at, lambda wire: wire.send(stop="hang"))


def _leaves(at: Situation, begin: Callable[[Wire], None], by: Callable[[Wire], None] | None = None) -> Finding:
    """Have a client leave some times, and see when the upstream knows."""
    times: list[float] = []
    for _ in range(_TRIES):
        ms = _one_leaves(at, begin, by or (lambda wire: wire.socket.close()))
        if ms is None:
            at.mock.is_drained(2 * _GIVES_UP_S)
            return Finding(passed=False, seen=f"the upstream did not know after {_GIVES_UP_S:g} s")
        times.append(ms)
    ms = statistics.median(times)
    return Finding(ms <= at.within_ms, f"{ms:.1f} ms")


def _one_leaves(at: Situation, begin: Callable[[Wire], None], leave: Callable[[Wire], None]) -> float | None:
    before = at.mock.seen()
    with at.wire() as wire:
        begin(wire)
        _until(lambda: at.mock.seen().active > before.active)
        left_ns = time.monotonic_ns()
        leave(wire)
        if not _until(lambda: at.mock.seen().aborted > before.aborted):
            return None
        return (at.mock.seen().last_abort_ns - left_ns) * _MS


def _until(question: Callable[[], bool]) -> bool:
    until = time.monotonic() + _GIVES_UP_S
    while not question():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def _leaves_in_body(at: Situation) -> Finding:
    """Nothing of a request whose body never came may stay: the next one is answered."""
    requests = at.mock.seen().requests
    for _ in range(_TRIES):
        with at.wire() as wire:
            wire.socket.sendall(wire.request()[:-20])
    answer = at.ask()
    more = at.mock.seen().requests - requests
    return Finding(answer.status == 200 and more == 1, f"next {answer.status}, upstream asked {more} ×")


# -- upstreams that break off


def _cut_stream(at: Situation) -> Finding:
    return _broken(at, **STREAM, max_tokens=10, seed=5, stop="cut:4")


def _reset_stream(at: Situation) -> Finding:
    return _broken(at, **STREAM, max_tokens=10, seed=5, stop="rst:4")


def _broken(at: Situation, **body: Any) -> Finding:
    """The client must see it: by an end that is none, or by an error; from us by both."""
    answer = at.ask(**body)
    has_error = b'"error"' in answer.body
    seen = f"{answer.status}, {answer.chunks} chunks, {_ending(answer)}{', error event' if has_error else ''}"
    is_shown = not answer.is_clean or has_error
    is_right = is_shown and b"[DONE]" not in answer.body
    if at.is_ours:
        is_right = is_right and not answer.is_clean and has_error and answer.chunks == 4
    return Finding(is_right, seen)


def _cut_whole(at: Situation) -> Finding:
    return _failed(at, stop="cut:1")


def _reset_whole(at: Situation) -> Finding:
    return _failed(at, stop="rst:1")


def _dropped(at: Situation) -> Finding:
    return _failed(at, stop="drop")


def _failed(at: Situation, **body: Any) -> Finding:
    """A whole answer that breaks off is an error, not half an answer with a proper end."""
    answer = at.ask(**body)
    is_right = answer.status >= 500 or not answer.is_clean
    if at.is_ours:
        is_right = answer.status >= 500 and answer.is_clean and "error" in _json(answer)
    return Finding(is_right, f"{answer.status}, {_ending(answer)}")


def _errors(at: Situation) -> Finding:
    """An engine's errors keep their status, and their time to wait."""
    found = [at.ask(stop=knob, **more) for knob in ("err400", "err500", "ratelimit") for more in ({}, STREAM)]
    statuses = [answer.status for answer in found]
    after = {answer.headers.get("retry-after") for answer in found[-2:]}
    is_right = statuses[:2] == [400, 400] and min(statuses[2:4]) >= 500 and statuses[4:] == [429, 429]
    if at.is_ours:
        is_right = is_right and all("error" in _json(answer) for answer in found)
    return Finding(
        is_right and after == {"7"}, f"{' '.join(map(str, statuses))}, retry-after {'/'.join(map(str, after))}"
    )


# -- connections


def _reuse(at: Situation) -> Finding:
    """Fifty requests over one connection of a client need one or two to the upstream."""
    accepted, lost = at.mock.seen().accepted, 0
    wire = at.wire()
    for number in range(50):
        answer = wire.ask(**({**STREAM, "max_tokens": 3} if number % 2 else {}))
        if answer.ending != "whole" or answer.headers.get("connection") == "close":
            lost += 1
            wire.socket.close()
            wire = at.wire()
    wire.socket.close()
    opened = at.mock.seen().accepted - accepted
    return Finding(lost == 0 and opened <= 2, f"{opened} opened upstream, the client's lost {lost} ×")


def _stale(at: Situation) -> Finding:
    """An upstream that closes a kept connection, at once or a moment later, is no client's error."""
    failed = 0
    for number in range(20):
        at.ask(stop="closeafter")
        if number % 2:
            time.sleep(0.05)
        failed += at.ask().status != 200
    return Finding(failed == 0, f"{failed} of 20 failed")


def _pipelining(at: Situation) -> Finding:
    """Three requests in one write are answered one after the other."""
    with at.wire() as wire:
        wire.socket.sendall(wire.request() + wire.request(**STREAM, max_tokens=3) + wire.request())
        found = [wire.answer() for _ in range(3)]
    is_right = [answer.status for answer in found] == [200] * 3 and [answer.chunks for answer in found] == [0, 3, 0]
    return Finding(is_right and all(answer.is_clean for answer in found), " ".join(_said(each) for each in found))


def _split_request(at: Situation) -> Finding:
    """A request may come in any number of pieces."""
    with at.wire() as wire:
        for piece in pieces(wire.request(**STREAM, max_tokens=3), 40):
            wire.socket.sendall(piece)
            time.sleep(0.001)
        answer = wire.answer()
    return Finding(answer.status == 200 and answer.chunks == 3 and answer.is_clean, _said(answer))


def _chunked_request(at: Situation) -> Finding:
    """A request without a length, in chunks."""
    with at.wire() as wire:
        body = wire.request().partition(b"\r\n\r\n")[2]
        lines = "content-type: application/json\r\ntransfer-encoding: chunked\r\n"
        parts = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces(body, 7))
        wire.socket.sendall(wire.head(f"POST {PATH}", lines) + parts + b"0\r\n\r\n")
        answer = wire.answer()
    return Finding(_is_answer(answer), _said(answer))


def _expect(at: Situation) -> Finding:
    """A client that waits for 100 before it sends its body gets it, and then the answer."""
    with at.wire(patience_s=2) as wire:
        head, _, body = wire.request("expect: 100-continue\r\n").partition(b"\r\n\r\n")
        wire.socket.sendall(head + b"\r\n\r\n")
        try:
            first = str(wire.read_head()[0])
        except (TimeoutError, EOFError) as error:
            first = type(error).__name__
        wire.socket.sendall(body)
        answer = wire.answer()
    return Finding(first == "100" and _is_answer(answer), f"{first}, then {_said(answer)}")


def _head(at: Situation) -> Finding:
    """HEAD has no body, and the connection goes on."""
    with at.wire() as wire:
        wire.socket.sendall(wire.head("HEAD /v1/models"))
        head = wire.answer(has_body=False)
        answer = wire.ask()
    return Finding(head.status == 200 and _is_answer(answer), f"{head.status}, then {_said(answer)}")


# -- answers


def _split_events(at: Situation) -> Finding:
    """Events that the upstream writes in pieces arrive whole and in order."""
    answer = at.ask(**STREAM, max_tokens=50, seed=1, stop="split:3")
    times = [int(part.split(b" ")[0]) for part in answer.body.split(b'"@')[1:]]
    return Finding(answer.chunks == 50 and answer.is_clean and times == sorted(times), _said(answer))


def _gzip(at: Situation) -> Finding:
    """An upstream that compresses without being asked: the client can read it."""
    answer = at.ask("accept-encoding: gzip\r\n", stop="gzip")
    coding = answer.headers.get("content-encoding", "identity")
    try:
        said = json.loads(gzip.decompress(answer.body) if coding == "gzip" else answer.body)
    except (ValueError, OSError):
        said = {}
    return Finding(answer.status == 200 and said.get("object") == "chat.completion", f"{answer.status}, {coding}")


def _hints(at: Situation) -> Finding:
    """103 before the answer does not hide it."""
    whole, stream = at.ask(stop="hints"), at.ask(stop="hints", **STREAM, max_tokens=3)
    is_right = _is_answer(whole) and stream.status == 200 and stream.chunks == 3 and stream.is_clean
    return Finding(is_right, f"{_said(whole)}, {_said(stream)}")


def _no_content(at: Situation) -> Finding:
    """204 has no body, and neither connection is out of step afterwards."""
    with at.wire() as wire:
        empty = wire.ask(stop="nocontent")
        answer = wire.ask()
    is_right = (empty.status == 204 or empty.status >= 500) and _is_answer(answer)
    return Finding(is_right, f"{empty.status}, then {_said(answer)}")


def _until_close(at: Situation) -> Finding:
    """A body without a length, that ends with the upstream's connection, is whole."""
    whole, stream = at.ask(stop="untilclose"), at.ask(stop="untilclose", **STREAM, max_tokens=3)
    is_right = _is_answer(whole) and stream.status == 200 and stream.chunks == 3 and stream.is_clean
    return Finding(is_right, f"{_said(whole)}, {_said(stream)}")


def _trailer(at: Situation) -> Finding:
    """A trailer of the upstream, kept or not, does not spoil the end."""
    answer = at.ask(**STREAM, max_tokens=3, stop="trailer")
    is_kept = b"x-bench" in answer.trailer
    is_right = answer.chunks == 3 and answer.ending == "whole" and b"[DONE]" in answer.body
    return Finding(is_right, f"{_said(answer)}, trailer {'kept' if is_kept else 'dropped'}")


def _headers(at: Situation) -> Finding:
    """A stream is one by its headers, and not compressed."""
    answer = at.ask("accept-encoding: gzip\r\n", **STREAM, max_tokens=1)
    kind, coding = answer.headers.get("content-type", ""), answer.headers.get("content-encoding", "identity")
    return Finding(kind.startswith("text/event-stream") and coding == "identity", f"{kind}, {coding}")


def _prompt_chunks(at: Situation) -> Finding:
    """The first chunk is passed on when it comes, not with the second one."""
    with at.wire(patience_s=2) as wire:
        wire.send(**STREAM, max_tokens=2, seed=6000)
        began = time.monotonic()
        try:
            wire.read_chunk()
        except (TimeoutError, EOFError):
            return Finding(passed=False, seen="held back")
        return Finding(passed=True, seen=f"{(time.monotonic() - began) * 1000:.1f} ms")


def _back_pressure(at: Situation) -> Finding:
    """Of a stream whose client reads nothing the upstream gets rid of no more than sockets hold; nothing is lost."""
    before_mb, before = at.target.rss_mb(), at.mock.seen().bytes_out
    with at.wire(receive_buffer=65536, patience_s=20) as wire:
        wire.send(**STREAM, max_tokens=_CHUNKS, seed=0)
        held = _settled(lambda: at.mock.seen().bytes_out - before)
        grown_mb = at.target.rss_mb() - before_mb
        answer = wire.answer()
    is_right = held <= _MOST_HELD and grown_mb <= _MOST_GROWTH_MB
    is_whole = answer.body.count(b'"@') == _CHUNKS and answer.is_clean
    seen = (
        f"{held / 2**20:.1f} MB left the upstream, memory {grown_mb:+.0f} MB, {'all' if is_whole else 'NOT ALL'} read"
    )
    return Finding(is_right and is_whole, seen)


def _settled(count: Callable[[], int]) -> int:
    """Return the count once it has not changed for a while."""
    until = time.monotonic() + _GIVES_UP_S
    last, since = count(), time.monotonic()
    while time.monotonic() < until and (time.monotonic() - since < 0.4 or last == 0):
        time.sleep(0.05)
        if (now := count()) != last:
            last, since = now, time.monotonic()
    return last


# -- words


def _is_answer(answer: Answer) -> bool:
    return answer.status == 200 and answer.is_clean and _json(answer).get("object") == "chat.completion"


def _json(answer: Answer) -> dict[str, Any]:
    try:
        said = json.loads(answer.body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _ending(answer: Answer) -> str:
    return "a clean end" if answer.is_clean else answer.ending


def _said(answer: Answer) -> str:
    chunks = f" {answer.chunks} chunks" if answer.chunks else ""
    return f"{answer.status}{chunks}{'' if answer.is_clean else f' ({answer.ending})'}"


CHECKS = (
    Check("leaves before the head", "the client of a stream leaves before its head", _leaves_before_head),
    Check("leaves in the stream", "it leaves between two tokens", _leaves_in_stream),
    Check("resets the stream", "it does so by a reset", _resets_stream),
    Check("leaves in silence", "it leaves while the upstream says nothing for seconds", _leaves_silence),
    Check("leaves a whole answer", "the client of a whole answer leaves while it is made", _leaves_whole),
    Check("leaves in the body", "a client leaves before its body is complete", _leaves_in_body),
    Check("cut stream", "the upstream closes the connection within a stream", _cut_stream),
    Check("reset stream", "it resets it", _reset_stream),
    Check("cut answer", "the upstream closes the connection within a whole answer", _cut_whole),
    Check("reset answer", "it resets it", _reset_whole),
    Check("no answer", "it closes it without a byte of an answer", _dropped),
    Check("errors", "400, 500, and 429 with retry-after", _errors),
    Check("reuse", "fifty requests over one connection", _reuse),
    Check("stale connections", "the upstream closes those that are kept", _stale),
    Check("pipelining", "three requests in one write", _pipelining),
    Check("split request", "a request in forty pieces", _split_request),
    Check("chunked request", "a request without a length", _chunked_request),
    Check("expect", "a client that waits for 100", _expect),
    Check("head", "HEAD, and another request behind it", _head),
    Check("split events", "each event in three pieces", _split_events),
    Check("gzip", "an answer that is compressed", _gzip),
    Check("early hints", "103 before the answer", _hints),
    Check("no content", "204, and another request behind it", _no_content),
    Check("until close", "a body that ends with the connection", _until_close),
    Check("trailer", "a trailer behind a stream", _trailer),
    Check("headers", "those of a stream", _headers),
    Check("prompt chunks", "one chunk, and then a long silence", _prompt_chunks),
    Check("back-pressure", "40 MB that the client does not read", _back_pressure),
)


def findings(at: Situation) -> Iterator[tuple[Check, Finding]]:
    """Put one after the other to a server; one that breaks down has failed."""
    for check in CHECKS:
        try:
            yield check, check.put(at)
        except (OSError, ValueError, EOFError) as error:
            yield check, Finding(passed=False, seen=f"{type(error).__name__}: {error}"[:60])
