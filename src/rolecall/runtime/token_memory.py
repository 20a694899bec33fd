"""What was learnt of each model's tokens, kept on disk from one run to the next."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rolecall.core.token_estimate import TokenModel
from rolecall.runtime.kept_file import KeptFile
from rolecall.runtime.registry import write_atomically

log = logging.getLogger(__name__)

LEARNT_TOKENS = "token_models.json"
VERSION = 1
MOST_MODELS = 500
"""Those that were not used for longest go first."""
MOST_BYTES = 16 * 2**20
_MOST_NAME = 512


class TokenMemory:
    """One `TokenModel` a model name, on the event loop; a JSON file keeps them, which is this process' alone.

    The name is enough of a key: if another tokenizer comes under it, its counts soon agree with each other and not with
    what was learnt, which is then forgotten. A file that makes no sense is moved aside, a model in it is left out.
    """

    def __init__(self, path: Path) -> None:
        self.file = KeptFile(path, "what was learnt of tokens")
        self._models = dict(_read(path))
        self._written: dict[str, tuple[int, str]] = {
            name: (model.revision, json.dumps(model.to_json())) for name, model in self._models.items()
        }
        self._writing = threading.Lock()  # at the end, the thread of an earlier write may still be at it

    def model(self, name: str) -> TokenModel:
        """Return what is known of a model; what is learnt into it is kept."""
        model = self._models.pop(name, None) or TokenModel()
        self._models[name] = model
        while len(self._models) > MOST_MODELS:
            gone = next(iter(self._models))
            del self._models[gone]
            self._written.pop(gone, None)
        return model

    @property
    def is_dirty(self) -> bool:
        """Whether something was learnt that is not on disk."""
        return any(model.revision != self._revision(name) for name, model in self._models.items())

    async def write(self) -> None:
        """Write what has changed, without holding up the loop."""
        if self.is_dirty or self.file.problem is not None:
            await asyncio.to_thread(self._write, self._text())

    def close(self) -> None:
        """Write what has changed, now."""
        if self.is_dirty or self.file.problem is not None:
            self._write(self._text())

    def _revision(self, name: str) -> int:
        return self._written[name][0] if name in self._written else 0

    def _text(self) -> str:
        for name, model in self._models.items():
            if model.revision != self._revision(name):
                self._written[name] = model.revision, json.dumps(model.to_json())
        rows = (f"{json.dumps(name)}: {self._written[name][1]}" for name in self._models if name in self._written)
        return f'{{"version": {VERSION}, "models": {{\n' + ",\n".join(rows) + "\n}}\n"

    def _write(self, text: str) -> None:
        with self._writing:
            self.file.written(lambda: write_atomically(self.file.path, text))


def _read(path: Path) -> Iterator[tuple[str, TokenModel]]:
    try:
        with path.open("rb") as file:
            models = _models(file.read(MOST_BYTES + 1))
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("what was learnt of tokens cannot be read from %s: %s", path, error)
        return
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _move_aside(path, error)
        return
    for name, data in list(models.items())[-MOST_MODELS:]:
        try:
            if len(name) <= _MOST_NAME:
                yield name, TokenModel.from_json(data)
        except ValueError as error:
            log.warning("what was learnt of the tokens of %s makes no sense (%s); it is learnt anew", name, error)


def _models(text: bytes) -> dict[str, Any]:
    if len(text) > MOST_BYTES:
        raise ValueError("it is too large")
    data = json.loads(text)
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']!r:.80}, known is {VERSION}")
    models = data["models"]
    if not isinstance(models, dict):
        raise ValueError("it holds no models")  # noqa: TRY004 - the file's fault
    return models


def _move_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(f"{path.name}.broken")
    log.warning("what was learnt of tokens makes no sense (%s); it is kept as %s", error, aside)
    with suppress(OSError):
        path.replace(aside)
