"""Counts in a rolecall what its garbage collector finds; on PYTHONPATH Python runs this at its start.

On SIGUSR2 the collector is run and the number of objects that it has found since the start is written to the file that
``ROLECALL_GARBAGE_PROBE`` names.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

TARGET = os.environ.get("ROLECALL_GARBAGE_PROBE")


class Probe:
    """Adds up what collections find, the server's own included."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._found = 0

    def note(self, phase: str, info: dict[str, Any]) -> None:
        """Take in what a collection has found, as ``gc.callbacks`` are told it."""
        if phase == "stop":
            self._found += info["collected"]

    def tell(self, _number: int, _frame: FrameType | None) -> None:
        """Collect, and write down what was found so far."""
        gc.collect()
        self._target.with_suffix(".new").write_text(str(self._found))
        self._target.with_suffix(".new").replace(self._target)


if TARGET and "serve" in sys.orig_argv:
    probe = Probe(Path(TARGET))
    gc.callbacks.append(probe.note)
    signal.signal(signal.SIGUSR2, probe.tell)
