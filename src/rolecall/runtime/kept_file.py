"""What is written to the state folder again and again while rolecall runs: a disk that takes nothing ends nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


class KeptFile:
    """A file, and whether it could be written the last time: ``problem`` says why not, None where all is well.

    ``what`` is what it holds, in words.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.problem: str | None = None
        self._what = what

    def written(self, write: Callable[[], object]) -> bool:
        """Return whether ``write`` wrote it; that it could not is told once, however often it is tried again."""
        try:
            write()
        except OSError as error:
            problem = f"{self._what} cannot be written to {self.path}: {error.strerror or error}"
            if self.problem is None:
                log.warning("%s", problem)
            self.problem = problem
            return False
        self.problem = None
        return True
