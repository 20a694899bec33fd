"""The vision projector (mmproj) that lies beside a model's GGUF without being named by its entry."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from rolecall.core.model_names import is_projector_name, projector_rank, split_label, split_part, without_mark
from rolecall.core.models import ModelEntry

_NAMED_BY = frozenset({"-mm", "--mmproj", "-mmu", "--mmproj-url", "--no-mmproj"})
_VARIABLES = frozenset({"LLAMA_ARG_MMPROJ", "LLAMA_ARG_MMPROJ_URL"})
_SEPARATORS = re.compile(r"[-_. ]+")
_EMPTY = frozenset({"", "model", "i1"})
"""Words that say nothing of which model a file is."""


def may_have_one(entry: ModelEntry) -> bool:
    """Whether a projector is to be looked for: an entry of llama.cpp that may see, and names none in any way."""
    config = entry.backend_config
    is_named = config.mmproj_path or config.mmproj_id or not _VARIABLES.isdisjoint(config.env)
    has_flag = any(word.partition("=")[0] in _NAMED_BY for word in config.extra_args)
    may_see = "vision" in entry.capabilities or not entry.capabilities
    return entry.backend == "llama_cpp" and may_see and not (config.command or is_named or has_flag)


def beside(model: Path) -> str | None:
    """Return the file name of the projector that belongs to a model's file; None if there is none, or it is not clear.

    It has the model's name but for the quantization, or it is for the only model of the folder. Raises ``OSError``.
    """
    names = [name for name in os.listdir(model.parent) if name.lower().endswith(".gguf")]  # noqa: PTH208 - names alone
    return belonging(model.name, names)


def belonging(model: str, names: Iterable[str]) -> str | None:
    """Return which of the file ``names`` of a folder is the projector of the ``model`` in it."""
    listed = sorted(names)
    projectors = [name for name in listed if is_projector_name(_stem(name))]
    own = _plain(model)
    fitting = [name for name in projectors if _plain(name) == own]
    if not fitting and {_plain(name) for name in listed if name not in projectors} == {own}:
        fitting = projectors
    return min(fitting, key=_rank, default=None)


def _plain(name: str) -> str:
    """Return a file's name without what says nothing of the model: the quantization, the part, the mark."""
    stem = _stem(name)
    stem = without_mark(stem) if is_projector_name(stem) else stem
    while (found := split_label(stem))[1] is not None:
        stem = found[0]
    return " ".join(word for word in _SEPARATORS.split(stem.lower()) if word not in _EMPTY)


def _rank(name: str) -> tuple[int, str]:
    return projector_rank(split_label(_stem(name))[1]), name


def _stem(name: str) -> str:
    stem = name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
    part = split_part(stem)
    return part[0] if part else stem
