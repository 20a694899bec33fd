"""What signals that end a command may interrupt, and how; elsewhere than in the main thread nothing can be done."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the signals until it is over."""
    came: list[int] = []
    with _handled(came.append):
        yield
    for late in came:
        signal.raise_signal(late)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Have every such signal end it as Ctrl-C does, by an exception: so what was begun can be taken away again."""

    def end(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    with _handled(end):
        yield


@contextmanager
def _handled(handle: Callable[[int], None]) -> Iterator[None]:
    def called(number: int, _frame: FrameType | None) -> None:
        handle(number)

    before = {}
    with suppress(ValueError):  # not in the main thread
        wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
        before = {number: signal.signal(number, called) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
