"""The vision projector (mmproj) that lies beside a model's GGUF without being named by its entry."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from rolecall.core.models import ModelEntry

_MARK = "mmproj"
_NAMED_BY = frozenset({"-mm", "--mmproj", "-mmu", "--mmproj-url", "--no-mmproj"})
_VARIABLES = frozenset({"LLAMA_ARG_MMPROJ", "LLAMA_ARG_MMPROJ_URL"})
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_QUANTIZATION = re.compile(
    r"[-_.](?:ud[-_.]|i1[-_.])?(?:i?q\d(?:[-_.](?:[01k]|nl|xxs|xs|xl|s|m|l))*|tq\d_0|mxfp4|bf16|f16|f32|fp16|fp32)$"
)
_SEPARATORS = re.compile(r"[-_. ]+")
_BEST = ("f16", "bf16", "f32", "q8_0")
"""Of several that fit: most are published as f16, and every engine can read it."""


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
    projectors = [name for name in listed if _MARK in name.lower()]
    own = _plain(model)
    fitting = [name for name in projectors if _plain(name) == own]
    if not fitting and {_plain(name) for name in listed if name not in projectors} == {own}:
        fitting = projectors
    return min(fitting, key=_rank, default=None)


def _plain(name: str) -> str:
    """Return a file's name without what says nothing of the model: the quantization, the part, the mark."""
    stem = _PART.sub("", name.lower().removesuffix(".gguf"))
    while (short := _QUANTIZATION.sub("", stem)) != stem:
        stem = short
    words = _SEPARATORS.split(_QUANTIZATION.sub("", stem.replace(_MARK, "-")))
    return " ".join(word for word in words if word and word not in {"model", *_BEST})


def _rank(name: str) -> tuple[int, str]:
    found = (place for place, kind in enumerate(_BEST) if re.search(rf"(?:^|[-_.]){kind}(?:[-_.]|$)", name.lower()))
    return next(found, len(_BEST)), name
