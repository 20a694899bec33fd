"""How vLLM cuts images up for a model, from the configurations in its folder.

vLLM has the processors of transformers count (``_get_num_multimodal_tokens``, or the like in its own model files). The
numbers stand in config.json and in preprocessor_config.json or processor_config.json; where they do not, they are the
defaults of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rolecall.core.image_tokens import ImageSpec
from rolecall.runtime.fields import Fields

LARGEST = 2**20


def folder_spec(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageSpec | None:
    """Return how the model type of a config.json cuts images up; None for one that is not known here.

    ``processor`` is the processor's configuration, empty if there is none. Raises ``ValueError`` for nonsense.
    """
    kind = config.get("model_type")
    make = _MAKERS.get(kind) if isinstance(kind, str) else None
    return None if make is None else make(_Folder(config, processor))


class _Folder:
    """Numbers of a model, wherever they stand."""

    def __init__(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> None:
        self.config = Fields(config)
        self.processor = Fields(processor)
        vision = config.get("vision_config", config.get("thinker_config", {}))
        vision = vision.get("vision_config", vision) if isinstance(vision, Mapping) else {}
        self.vision = Fields(vision if isinstance(vision, Mapping) else {})

    def side(self, key: str, default: int, *, of: Fields | None = None) -> int:
        """A length in pixels; where there are two, of width and height, the first."""
        value = (of or self.vision).raw(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Mapping):
            value = value.get("height", value.get("shortest_edge"))
        if value is None:
            return default
        if not isinstance(value, int) or not 0 < value <= LARGEST:
            raise ValueError(f"{key} is {value!r:.80}")
        return value

    def edge(self, which: str, default: int, *, key: str = "size") -> int:
        """``shortest_edge`` or ``longest_edge`` of the processor's size: pixels, or a length."""
        size = self.processor.raw(key)
        number = Fields(size).number(which, default) if isinstance(size, Mapping) else default
        return number or default

    def count(self, key: str, default: int) -> int:
        """A small number of the processor, else of the model."""
        number = self.processor.first(key) or self.config.first(key) or default
        if number > LARGEST:
            raise ValueError(f"{key} is {number}")
        return number


def _qwen(least: int, most: int, patch: int) -> Callable[[_Folder], ImageSpec]:
    def make(folder: _Folder) -> ImageSpec:
        return ImageSpec(
            "smart",
            patch_size=folder.side("patch_size", folder.side("patch_size", patch), of=folder.processor),
            merge=folder.processor.first("merge_size") or folder.vision.first("spatial_merge_size") or 2,
            min_pixels=folder.processor.first("min_pixels") or folder.edge("shortest_edge", least),
            max_pixels=folder.processor.first("max_pixels") or folder.edge("longest_edge", most),
            around=2,
        )

    return make


def _llava(folder: _Folder) -> ImageSpec:
    return ImageSpec("fixed", image_size=folder.side("image_size", 336), patch_size=folder.side("patch_size", 14))


def _llava_next(folder: _Folder) -> ImageSpec:
    listed = folder.processor.raw("image_grid_pinpoints") or folder.config.raw("image_grid_pinpoints") or ()
    pinpoints = tuple((int(width), int(height)) for height, width in listed)  # the files have the height first
    if not all(0 < side <= LARGEST for pair in pinpoints for side in pair):
        raise ValueError("image_grid_pinpoints makes no sense")
    size, patch = folder.side("image_size", 336), folder.side("patch_size", 14)
    return ImageSpec("anyres", image_size=size, patch_size=patch, pinpoints=pinpoints)


def _pixtral(folder: _Folder) -> ImageSpec:
    return ImageSpec(
        "longest",
        patch_size=folder.side("patch_size", 16),
        merge=folder.count("spatial_merge_size", 1),
        longest_edge=folder.edge("longest_edge", folder.side("image_size", 1024)),
        per_row=1,
    )


def _gemma(tokens: int, key: str, around: int) -> Callable[[_Folder], ImageSpec]:
    """Gemma 3 has blank lines around its marks; of Gemma 4 the most that an image takes."""
    return lambda folder: ImageSpec("fixed", tokens=folder.count(key, tokens), around=around)


def _internvl(folder: _Folder) -> ImageSpec:
    return ImageSpec(
        "tiles",
        image_size=folder.config.first("force_image_size") or folder.side("image_size", 448),
        patch_size=folder.side("patch_size", 14),
        merge=round(1 / _share(folder.config.raw("downsample_ratio"), 0.5)),
        min_tiles=folder.count("min_patches", folder.count("min_dynamic_patch", 1)),
        max_tiles=folder.count("max_patches", folder.count("max_dynamic_patch", 12)),
        around=2,
    )


def _share(value: object, default: float) -> float:
    if value is None:
        return default
    if not isinstance(value, int | float) or not 0.01 <= value <= 1:
        raise ValueError(f"downsample_ratio is {value!r:.80}")
    return float(value)


def _minicpm(folder: _Folder) -> ImageSpec:
    """Around an image are two marks, and a number with marks of its own."""
    return ImageSpec(
        "slices",
        image_size=folder.count("scale_resolution", folder.side("image_size", 448)),
        patch_size=folder.count("patch_size", 14),
        tokens=folder.count("query_num", 64),
        max_tiles=folder.count("max_slice_nums", 9),
        around=5,
        per_tile=2,
        per_row=1,
    )


def _minicpm_4_6(folder: _Folder) -> ImageSpec:
    return ImageSpec(
        "slices",
        image_size=folder.count("scale_resolution", 448),
        patch_size=folder.count("patch_size", 14),
        merge=2 if folder.processor.raw("downsample_mode") == "4x" else 4,
        max_tiles=folder.count("max_slice_nums", 9),
        around=5,
        per_tile=2,
        per_row=1,
    )


def _florence(folder: _Folder) -> ImageSpec:
    return ImageSpec("fixed", tokens=folder.count("image_seq_length", 577))


def _paligemma(folder: _Folder) -> ImageSpec:
    tokens = folder.vision.first("num_image_tokens") or folder.count("image_seq_length", 256)
    return ImageSpec("fixed", tokens=min(tokens, LARGEST))


def _idefics(folder: _Folder) -> ImageSpec:
    size = folder.edge("longest_edge", folder.side("image_size", 364), key="max_image_size")
    merge = folder.count("scale_factor", 2)
    return ImageSpec(
        "rows",
        image_size=min(size, LARGEST),
        patch_size=folder.side("patch_size", 14),
        merge=merge,
        longest_edge=min(folder.edge("longest_edge", 4 * size), LARGEST),
        around=3,
        per_tile=2,
        per_row=1,
    )


def _lfm2(folder: _Folder) -> ImageSpec:
    patch, merge = folder.count("encoder_patch_size", 16), folder.count("downsample_factor", 2)
    return ImageSpec(
        "lfm2",
        image_size=folder.count("tile_size", 512),
        patch_size=patch,
        merge=merge,
        min_pixels=folder.count("min_image_tokens", 64) * (patch * merge) ** 2,
        max_pixels=folder.count("max_image_tokens", 256) * (patch * merge) ** 2,
        min_tiles=folder.count("min_tiles", 2),
        max_tiles=folder.count("max_tiles", 10),
        around=2,
        per_tile=1,
    )


_QWEN_2, _QWEN_3 = _qwen(3136, 12845056, 14), _qwen(65536, 16777216, 16)
_MAKERS: dict[str, Callable[[_Folder], ImageSpec]] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen2_5_omni_thinker"), _QWEN_2),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), _QWEN_3),
    **dict.fromkeys(("llava", "vipllava"), _llava),
    "llava_next": _llava_next,
    **dict.fromkeys(("pixtral", "mistral3"), _pixtral),
    "gemma3": _gemma(256, "mm_tokens_per_image", 4),
    "gemma3n": _gemma(256, "vision_soft_tokens_per_image", 4),
    "gemma4": _gemma(280, "max_soft_tokens", 2),
    **dict.fromkeys(("internvl", "internvl_chat"), _internvl),
    **dict.fromkeys(("minicpmv", "minicpmo"), _minicpm),
    **dict.fromkeys(("minicpmv4_6", "minicpmv4_7"), _minicpm_4_6),
    "florence2": _florence,
    "paligemma": _paligemma,
    **dict.fromkeys(("idefics3", "smolvlm"), _idefics),
    "lfm2_vl": _lfm2,
}
