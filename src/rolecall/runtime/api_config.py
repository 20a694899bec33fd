"""What was set at `/api/config`, kept in a file of the state folder from one run to the next."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from rolecall.core.api_config import ApiConfig, read_config
from rolecall.errors import BadRequest
from rolecall.runtime.private_file import write_privately

log = logging.getLogger(__name__)

API_CONFIG = "api_config.json"
VERSION = 1
_MOST_BYTES = 2**16


class ApiConfigFile:
    """The configuration in force; ``problem`` says what was wrong with the file when it was read, None for nothing.

    A file that makes no sense is set aside with a warning, and nothing counts as set.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problem: str | None = None
        self.config = self._load()

    def save(self, config: ApiConfig) -> None:
        """Put another configuration in force, once it is on the disk; raises ``OSError``, and the old one stays."""
        text = json.dumps({"version": VERSION, **_plain(config)}, indent=1) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_privately(self._path, text)
        self.config, self.problem = config, None

    def _load(self) -> ApiConfig:
        try:
            return _read(self._path)
        except FileNotFoundError:
            return ApiConfig()
        except OSError as error:
            self.problem = f"{self._path} cannot be read: {error.strerror or error}; nothing counts as set"
        except (ValueError, RecursionError, BadRequest) as error:
            aside = self._path.with_name(f"{self._path.name}.broken")
            with suppress(OSError):
                self._path.replace(aside)
            self.problem = f"{self._path} makes no sense ({error}); it is kept as {aside}, and nothing counts as set"
        log.warning("%s", self.problem)
        return ApiConfig()


def _read(path: Path) -> ApiConfig:
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError("it is too large")
    data = json.loads(text)
    version = data.pop("version", None) if isinstance(data, dict) else None
    if version != VERSION:
        raise ValueError(f"its version is {version!r:.80}, known is {VERSION}")
    return read_config(data)


def _plain(config: ApiConfig) -> dict[str, Any]:
    return {"backend": config.backend, "llm_params": config.llm_params.given}
