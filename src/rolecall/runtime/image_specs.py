"""How a model cuts images up, read from its files: a GGUF's projector, or the configuration of a folder.

Files that make no sense tell nothing, and raise nothing: then the family goes by what the entry is called. Sources:
``load_hparams`` in llama.cpp's `tools/mtmd/clip.cpp` and ``init_vision`` in `mtmd.cpp`, read at build 11434; the
processors of transformers 5.24.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rolecall.backends.base import Backend
from rolecall.core.image_tokens import ImageSpec
from rolecall.core.models import ModelEntry, dashed, flag_value
from rolecall.runtime.file_memory import FileMemory
from rolecall.runtime.folder_images import folder_spec
from rolecall.runtime.gguf_header import read_gguf
from rolecall.runtime.json_file import read_object
from rolecall.runtime.projector_images import projector_spec

log = logging.getLogger(__name__)

MOST_JSON_BYTES = 2**22
_FLAGS = ("--image-min-tokens", "--image-max-tokens", "-ub", "--ubatch-size")

_QWEN_2 = ImageSpec("smart", patch_size=14, merge=2, min_pixels=3136, max_pixels=12845056, around=2)
_BY_NAME: tuple[tuple[str, ImageSpec], ...] = (
    (
        r"qwen-?3([.-]?5)?-?vl|qwen-?3[.-]?5",
        ImageSpec("smart", patch_size=16, merge=2, min_pixels=65536, max_pixels=16777216, around=2),
    ),
    (r"qwen-?2([.-]?5)?-?(vl|omni)", _QWEN_2),
    (
        r"llava-?(v|ov)?-?(1[.-]?6|next)",
        ImageSpec(
            "anyres",
            image_size=336,
            patch_size=14,
            pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
        ),
    ),
    (r"bakllava|llava", ImageSpec("fixed", image_size=336, patch_size=14)),
    (r"pixtral", ImageSpec("longest", patch_size=16, longest_edge=1024, per_row=1)),
    (
        r"mistral-?small-?3|ministral-?3|magistral|devstral-?2",
        ImageSpec("longest", patch_size=14, merge=2, longest_edge=1540, per_row=1),
    ),
    (r"gemma-?4", ImageSpec("fixed", tokens=280, around=2)),
    (r"gemma-?3|medgemma", ImageSpec("fixed", tokens=256, around=4)),
    (r"intern-?vl", ImageSpec("tiles", image_size=448, patch_size=14, merge=2, around=2)),
    (r"minicpm-?(v|o)", ImageSpec("slices", image_size=448, tokens=64, max_tiles=9, around=5, per_tile=2, per_row=1)),
    (r"florence-?2", ImageSpec("fixed", tokens=577)),
    (
        r"smolvlm-?2?|idefics-?3",
        ImageSpec("rows", image_size=512, longest_edge=2048, tokens=64, around=3, per_tile=2, per_row=1),
    ),
)
"""What the published models of each family have, by their names."""


class ImageSpecs:
    """Specs of entries; what was read of files is remembered for as long as the files stay the same."""

    def __init__(self) -> None:
        self._memory = FileMemory[ImageSpec | None]()

    def of(self, entry: ModelEntry, backend: Backend) -> ImageSpec | None:
        """Return how the entry's model cuts images up; None if nothing tells.

        It looks at the disk: call it off the event loop, from any thread.
        """
        arguments = tuple(map(dashed, entry.backend_config.extra_args))
        try:
            files = tuple(_telling(backend.files(entry)))
            known = self._memory.recall(files, lambda: _read(files, arguments), arguments)
        except (OSError, ValueError):
            known = None
        return known or named_spec(entry)


def named_spec(entry: ModelEntry) -> ImageSpec | None:
    """Return what a model of its family has, by the entry's ``family`` or else its names."""
    for name in (entry.family, entry.served_model_id, *entry.ids):
        plain = re.sub(r"[\s_]+", "-", (name or "").lower())
        for pattern, spec in _BY_NAME:
            if re.search(pattern, plain):
                return spec
    return None


def _telling(files: tuple[Path, ...]) -> list[Path]:
    """The projector of a GGUF, or the configurations in a folder."""
    if files and files[0].is_dir():
        names = ("config.json", "preprocessor_config.json", "processor_config.json")
        return [path for name in names if (path := files[0] / name).is_file()]
    return [path for path in files[1:2] if path.is_file()]


def _read(files: tuple[Path, ...], arguments: tuple[str, ...]) -> ImageSpec | None:
    try:
        if not files:
            return None
        if files[0].suffix != ".json":
            header = read_gguf(files[0])
            flags = {flag: value for flag in _FLAGS if (value := _count(flag_value(arguments, flag))) is not None}
            return projector_spec(header, flags)
        config, *others = (read_object(path, MOST_JSON_BYTES) for path in files)
        processor: dict[str, Any] = {}
        for other in others:
            processor |= other | _inner(other)
        return folder_spec(config, processor | _inner_json(flag_value(arguments, "--mm-processor-kwargs")))
    except (ValueError, OSError, KeyError, TypeError, ZeroDivisionError, OverflowError, RecursionError) as error:
        log.warning("how %s cuts images up cannot be read: %s: %s", files[0], type(error).__name__, error)
        return None


def _inner(processor: Mapping[str, Any]) -> dict[str, Any]:
    """What newer files hold of images, in an object of its own."""
    inner = processor.get("image_processor")
    return dict(inner) if isinstance(inner, Mapping) else {}


def _inner_json(text: str | None) -> dict[str, Any]:
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}


def _count(word: str | None) -> int | None:
    return int(word) if word and word.isdecimal() and 0 < int(word) < 2**20 else None
