"""The file of the experiments: read, and read again whenever it changes."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.errors import ConfigurationError

if TYPE_CHECKING:
    from rolecall.core.experiments import Experiments

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXPERIMENTS = "experiments.toml"
_MOST_BYTES = 2**20

log = logging.getLogger(__name__)

FileState = tuple[int, int, int] | None


def load_experiments(path: Path) -> Experiments | None:
    """Return the experiments of a file, None if it has none or is not there.

    Raises ``ConfigurationError`` that names the file, and for each problem the experiment and the field.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigurationError(f"{path}: is no regular file")
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ConfigurationError(f"{path}: is too large to be a file of experiments")
        data = tomllib.loads(text.decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: is no TOML: {error}") from None
    if not data:
        return None
    from rolecall.core.experiments import read_experiments  # noqa: PLC0415 - a server without any pays nothing for them

    try:
        return read_experiments(data)
    except ConfigurationError as error:
        raise ConfigurationError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a named pipe would wait for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


class ExperimentsFile:
    """The experiments in force; ``defined`` is None while there are none.

    A broken file keeps the last good ones, and ``problem`` says so. A file that is gone has no experiments.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.defined: Experiments | None = None
        self.problem: str | None = None
        self._path = path
        self._state: FileState = None
        if path is not None:
            self.read()

    def is_outdated(self) -> bool:
        """Whether the file is no longer the one that was read last."""
        return self._path is not None and file_state(self._path) != self._state

    def read(self) -> None:
        """Read the file again. It blocks and raises nothing."""
        if self._path is None:
            return
        self._state = file_state(self._path)
        try:
            self.defined, self.problem = load_experiments(self._path), None
        except ConfigurationError as error:
            kept = "the last good ones stay in force" if self.defined else "so there are none"
            self.problem = f"the experiments cannot be read, {kept}: {error}"
            log.warning("%s", self.problem)
        else:
            if self.defined is not None:
                log.info("experiments: %s", ", ".join(experiment.name for experiment in self.defined.all))


def file_state(path: Path) -> FileState:
    """Return what tells one state of a file from another; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
