"""``python -I -S guardian_process.py ROOT`` waits until rolecall is gone, then ends its engines and itself.

Its standard input is one end of a socket pair whose other end only rolecall holds, so that the end of file means that
rolecall is gone, in whatever way. Before that each message names one engine, or takes it back. ``ROOT`` is the folder
that the package ``rolecall`` is in.
"""

from __future__ import annotations

import os
import signal
import sys

_LONGEST_MESSAGE = 1 << 16


def main() -> None:
    """Follow the messages, and act on their end."""
    sys.path.append(sys.argv[1])
    from rolecall.runtime.family import Family, end  # noqa: PLC0415 - without a site there is no path to it before

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    families: dict[str, Family] = {}
    while message := _receive():
        mark, *rest = message.split("\0")
        if len(rest) == 3:
            families[mark] = Family(mark, int(rest[0]), born=rest[1], spare=rest[2])
        else:
            families.pop(mark, None)
    end(families.values())


def _receive() -> str:
    """Return the next message; empty once rolecall is gone."""
    try:
        return os.read(0, _LONGEST_MESSAGE).decode()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
