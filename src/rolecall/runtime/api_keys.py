"""The key file: reading, changing, and noticing changes; new keys."""

from __future__ import annotations

import json
import logging
import os
import secrets
import stat
import string
from collections.abc import Callable
from pathlib import Path

from rolecall.core.keys import PREFIX, ApiKey, KeyRing, key_file, read_keys
from rolecall.errors import ConfigurationError
from rolecall.runtime.private_file import locked, write_privately
from rolecall.settings import Settings

log = logging.getLogger(__name__)

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 32
"""Characters; 62 ** 32 are 190 bits."""
_MOST_BYTES = 8 * 2**20

FileState = tuple[int, int, int, int] | None


def new_key() -> str:
    """Return a key that nobody has had yet."""
    return PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file; none if it does not exist.

    Raises ``ConfigurationError`` that names the file, and for each problem the key and the field. A file that others
    may write is refused: they could make keys of their own.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigurationError(f"{path} can be written by others than its owner; chmod 600 it")
            text = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return read_keys(_parsed(text))
    except ConfigurationError as error:
        raise ConfigurationError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _parsed(text: bytes) -> object:
    if len(text) > _MOST_BYTES:
        raise ConfigurationError("is too large to be a key file")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # Not the text around the place, which may be a key.
        where = f" at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigurationError(f"is not JSON{where}") from None


def change_keys(path: Path, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> None:
    """Replace the keys of a file by what ``change`` makes of them; two changes at once come one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        write_privately(path, json.dumps(key_file(change(load_keys(path))), indent=2) + "\n")


class KeyStore:
    """The keys in force, read again whenever their file changes.

    A broken file keeps the last good keys, and ``problem`` says so. A file that is gone is no broken one: with it all
    keys are revoked.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; raises ``ConfigurationError`` where nothing can be understood."""
        self.path = path
        self.problem: str | None = None
        self._secret = secrets.token_bytes(32)
        self._state: FileState = _file_state(path)
        self._take(load_keys(path))

    def refresh(self) -> None:
        """Read the file if it has changed. It blocks and raises nothing; call it from one thread at a time."""
        state = _file_state(self.path)
        if state == self._state:
            return
        self._state = state
        try:
            self._take(load_keys(self.path))
        except ConfigurationError as error:
            self.problem = f"the last good keys stay in force: {error}"
            log.warning("%s", self.problem)
        else:
            log.info("the API keys were read again: %s", self.problem or ", ".join(key.name for key in self.ring.keys))

    def _take(self, keys: tuple[ApiKey, ...]) -> None:
        self.ring = KeyRing(keys, self._secret)
        nobody = f"{self.path} holds no API key, so nobody can use this server; make one with `rolecall keys add NAME`"
        self.problem = None if keys else nobody


def _file_state(path: Path) -> FileState:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def open_keys(settings: Settings) -> KeyStore | None:
    """Return the keys that callers need; None if they need none. Raises ``ConfigurationError``."""
    if settings.api_keys_file is None:
        return None
    try:
        return KeyStore(settings.api_keys_file)
    except ConfigurationError as error:
        raise ConfigurationError(f"api_keys_file: {error}") from None
