"""The embedded llama.cpp server: ``python -m rolecall.backends.embedded`` with llama-server's own options.

A process of its own that serves one model through xllamacpp, which is llama.cpp's server as a Python package. Command
line, HTTP interface and exit codes are those of a ``llama-server`` binary: a registry entry works with either.

Signals. xllamacpp loads a model inside one C++ call that holds Python's lock, so that no handler in Python would run,
and llama.cpp's own orderly end waits for open streams. SIGTERM and SIGINT therefore keep the kernel's default, which
ends the process at once in any state: an engine has nothing to save.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LOG_DRAIN_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a model until a signal ends the process.

    Returns 1 when it cannot begin, with the reason on stderr, and 0 after ``--help`` and ``--version``.
    """
    # Before the imports, which take a tenth of a second in which Ctrl-C would show a traceback.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        import xllamacpp  # noqa: PLC0415 - an extra

        from rolecall.backends import embedded_flags, embedded_parser  # noqa: PLC0415 - they need xllamacpp
    except ImportError as error:
        return _fail(f"error: the embedded engine needs xllamacpp ({error}): pip install 'rolecall[llama]'")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not {"-h", "--help", "--usage"}.isdisjoint(arguments):
        return _tell(embedded_flags.usage())
    if "--version" in arguments:
        return _tell(embedded_flags.version())
    try:
        params = embedded_flags.parse(arguments, os.environ)
    except embedded_parser.FlagError as error:
        return _fail(str(error))
    for path in filter(None, (params.model.path, params.mmproj.path)):
        if not Path(path).exists():
            return _fail(f"error: no such file: {path}")
    _warn_of_environment()
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError, MemoryError) as error:
        # llama.cpp's reason is written by a thread of its own, which must not end in the middle of our line.
        time.sleep(LOG_DRAIN_S)
        return _fail(f"error: the engine did not start, for the reason in the lines above: {error}")
    sys.stderr.write(f"serving {params.model.path} on {server.listening_address}\n")
    while True:
        signal.pause()


def _warn_of_environment() -> None:
    ignored = sorted(name for name in os.environ if name.startswith("LLAMA_ARG_"))
    if ignored:
        sys.stderr.write(f"warning: the embedded engine does not read {', '.join(ignored)}\n")


def _tell(text: str) -> int:
    sys.stdout.write(f"{text}\n")
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
