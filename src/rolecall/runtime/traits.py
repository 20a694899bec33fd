"""What the chat template of a model says, read from its files; it blocks on the disk, call it off the event loop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rolecall.backends.base import Backend
from rolecall.core.models import ModelEntry, dashed, flag_value
from rolecall.core.traits import Traits, traits_of
from rolecall.runtime.file_memory import FileMemory
from rolecall.runtime.gguf_header import is_gguf_name, read_gguf

MOST_BYTES = 32 * 2**20
"""A tokenizer_config.json that lists a large vocabulary has some MB, a template some kB."""

_GGUF_KEY = "tokenizer.chat_template"
_TOKENIZER = "tokenizer_config.json"
_IN_FOLDER = ("chat_template.jinja", "chat_template.json", _TOKENIZER, "additional_chat_templates/*.jinja")
_ARGUMENTS = ("--chat-template", "--chat-template-file")


class TraitsReader:
    """Reads templates; those of a file are remembered for as long as it stays the same."""

    def __init__(self) -> None:
        self._memory = FileMemory[tuple[str, ...]]()

    def of(self, entry: ModelEntry, backend: Backend) -> Traits:
        """Return what is known of a model; a file that cannot be read says nothing. Safe to call from threads."""
        return traits_of(
            self._templates(entry, backend),
            developer_role=entry.developer_role,
            reasons="reasoning" in entry.all_capabilities,
            passes=backend.keeps_roles,
        )

    def _templates(self, entry: ModelEntry, backend: Backend) -> tuple[str, ...]:
        with suppress(OSError, ValueError):
            files = tuple(_files(entry, backend))
            if files:
                return self._memory.recall(files, lambda: _read(files))
            # No such file: llama.cpp takes the text of a template here, or the name of one that it brings.
            return tuple(filter(None, [_argument(entry)]))
        return ()


def folder_templates(folder: Path) -> tuple[str, ...]:
    """Return the chat templates in a model's folder; none if they cannot be read."""
    return _read(tuple(_in(folder)))


def _in(folder: Path) -> Iterator[Path]:
    return (file for name in _IN_FOLDER for file in sorted(folder.glob(name)) if file.is_file())


def _argument(entry: ModelEntry) -> str | None:
    config = entry.backend_config
    return flag_value(tuple(map(dashed, (*config.command, *config.extra_args))), *_ARGUMENTS)


def _files(entry: ModelEntry, backend: Backend) -> Iterator[Path]:
    """Yield the files that hold the template: that of the engine's arguments takes the place of the model's."""
    word = _argument(entry)
    if word is not None:
        with suppress(OSError, ValueError):  # a text may be no name of a file
            if (path := Path(word)).is_file():
                yield path
        return
    for path in backend.files(entry)[:1]:
        if path.is_dir():
            yield from _in(path)
        elif is_gguf_name(path):
            yield path


def _read(files: Sequence[Path]) -> tuple[str, ...]:
    """Return the templates in files; none if one of them makes no sense."""
    try:
        return tuple(text for file in files for text in _templates_in(file))
    except (OSError, ValueError, RecursionError):
        return ()


def _templates_in(file: Path) -> Iterable[str]:
    if is_gguf_name(file):
        metadata = read_gguf(file).metadata
        return [text for key, text in metadata.items() if key.startswith(_GGUF_KEY) and isinstance(text, str)]
    if file.stat().st_size > MOST_BYTES:
        return []
    text = file.read_text(encoding="utf-8", errors="replace")
    return _named(json.loads(text)) if file.suffix == ".json" else [text]


def _named(config: Any) -> Iterator[str]:
    """Yield the templates of a tokenizer: one, or several with names."""
    found = config.get("chat_template") if isinstance(config, dict) else None
    for each in found if isinstance(found, list) else [found]:
        template = each.get("template") if isinstance(each, dict) else each
        if isinstance(template, str):
            yield template
