"""How llama.cpp cuts images up for a projector, from the header of its GGUF.

Source: ``load_hparams`` and ``clip_n_output_tokens`` in llama.cpp's `tools/mtmd/clip.cpp`, ``init_vision`` in
`mtmd.cpp` (which preprocessor, which marks), read at build 11434. Limits in tokens are those that clip.cpp sets for
each type, unless ``--image-min-tokens`` and ``--image-max-tokens`` say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from rolecall.core.image_tokens import ImageSpec
from rolecall.runtime.fields import Fields, ratio
from rolecall.runtime.gguf_header import GgufHeader

LARGEST = 2**20
"""No side of an image or of a patch is larger, and no count of tokens."""
DEFAULT_UBATCH_TOKENS = 512
_PINPOINTS_LLAMA_4 = 3

_LIMITS: dict[str, tuple[int, int]] = {
    "qwen2vl_merger": (8, 4096),
    "qwen2.5vl_merger": (8, 4096),
    "qwen2.5o": (8, 4096),
    "qwen3vl_merger": (8, 4096),
    "ling3vl": (8, 4096),
    "glm4v": (8, 4096),
    "minimax_m3": (8, 576),
    "pixtral": (8, 1024),
    "kimivl": (8, 1024),
    "kimik25": (2, 4096),
    "gemma4v": (70, 1120),
    "gemma4uv": (70, 1120),
    "lfm2": (64, 256),
    "hunyuanvl": (256, 16384),
}
"""The fewest and the most tokens of an image, for each type whose size follows the image's."""
_FROM_FILE = frozenset({"kimik25", "hunyuanvl", "mimovl", "exaone4_5", "dots_ocr", "dots3note_v", "paddleocr", "phi4"})
"""Types whose limits stand in the file, in pixels."""
_UNMARKED = frozenset({"phi4", "mlp", "ldp", "ldpv2", "adapter", "cogvlm", "janus_pro"})
"""Types without marks around an image."""
_MERGES = {
    **dict.fromkeys(("qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger", "ling3vl", "glm4v"), 2),
    **dict.fromkeys(("minimax_m3", "hunyuanvl", "mimovl", "exaone4_5", "paddleocr"), 2),
    **dict.fromkeys(("gemma4v", "gemma4uv"), 3),
    **dict.fromkeys(("gemma3", "minicpmv4_6"), 4),
}
"""Types that merge patches even if the file does not say so."""
_SQUARES = frozenset(
    {"mlp", "mlp_norm", "ldp", "ldpv2", "adapter", "cogvlm", "janus_pro", "gemma3", "gemma3nv", "yasa2"}
)


@dataclass(frozen=True, slots=True)
class _Projector:
    """What of a header counts, and the flags that the engine is started with."""

    kind: str
    plain: Fields
    vision: Fields
    image_size: int
    patch_size: int
    merge: int
    tensors: frozenset[str]
    flags: Mapping[str, int]

    def limits(self) -> tuple[int, int]:
        """Return the fewest and the most pixels."""
        area = (self.patch_size * self.merge) ** 2
        least, most = (tokens * area for tokens in _LIMITS.get(self.kind, (0, 0)))
        if self.kind in _FROM_FILE:
            least = _small(self.vision.number("image_min_pixels", least), LARGEST**2)
            most = _small(self.vision.number("image_max_pixels", most), LARGEST**2)
        if self.kind in _LIMITS:
            least = self.flags.get("--image-min-tokens", 0) * area or least
            most = min(self.flags.get("--image-max-tokens", 0) * area or most, self._most_of_batch() * area)
        return min(least, most), most

    def _most_of_batch(self) -> int:
        """Where all of an image is attended to at once, it must fit into a micro-batch; not in the smallest Gemma 4."""
        causal = self.kind != "gemma4uv" and (
            self.kind != "gemma4v" or self.vision.number("projection_dim") in (1536, 2560)
        )
        if causal:
            return LARGEST
        return self.flags.get("-ub") or self.flags.get("--ubatch-size") or DEFAULT_UBATCH_TOKENS


def projector_spec(header: GgufHeader, flags: Mapping[str, int] | None = None) -> ImageSpec | None:
    """Return how the projector's type cuts images up; None for a type that is not known here.

    ``flags`` are those of llama-server that bear on it, by their names. Raises ``ValueError`` for nonsense.
    """
    plain, vision = Fields(header.metadata, "clip."), Fields(header.metadata, "clip.vision.")
    kind = plain.raw("projector_type") or vision.raw("projector_type") or "mlp"
    make = _MAKERS.get(kind) if isinstance(kind, str) else None
    if make is None:
        return None
    patch_size = _small(vision.number("patch_size"))
    if not patch_size:
        raise ValueError("it names no patch_size")
    default = _MERGES.get(kind, 1)
    merge = _small(vision.first("spatial_merge_size", "projector.scale_factor") or default, 64)
    size = _small(vision.number("image_size"))
    projector = _Projector(kind, plain, vision, size, patch_size, merge, frozenset(header.tensors), flags or {})
    spec = make(projector)
    size = spec.image_size or size
    return replace(spec, engine="llama_cpp", image_size=size, patch_size=patch_size, merge=merge)


def _squares(projector: _Projector) -> ImageSpec:
    """One square, or tiles of LLaVA 1.6 where the file lists resolutions."""
    around = 0 if projector.kind in _UNMARKED else 2
    patches = ratio(projector.image_size, projector.patch_size)
    pinpoints = _pinpoints(projector.vision.raw("image_grid_pinpoints"))
    if projector.kind in {"ldp", "ldpv2", "adapter"}:
        marks = 2 if "adapter.boi" in projector.tensors else 0
        return ImageSpec("fixed", tokens=max(1, patches**2 // 4 + marks))
    if projector.kind == "yasa2":
        return ImageSpec("fixed", tokens=64, around=around)
    if projector.kind == "gemma3nv":
        return ImageSpec("fixed", tokens=max(1, patches), around=around)
    if projector.kind == "cogvlm":
        return ImageSpec("fixed", tokens=patches**2 + 2)
    return ImageSpec("anyres" if pinpoints else "fixed", pinpoints=pinpoints, around=around, unpads=False)


def _by_size(projector: _Projector) -> ImageSpec:
    least, most = projector.limits()
    if projector.kind == "pixtral":  # marks between rows, and one at the end
        return ImageSpec("smart", min_pixels=least, max_pixels=most, per_row=1)
    if projector.kind == "hunyuanvl":
        return ImageSpec("smart", min_pixels=least, max_pixels=most, per_row=1, around=4)
    return ImageSpec("smart", min_pixels=least, max_pixels=most, around=0 if projector.kind in _UNMARKED else 2)


def _longest_edge(projector: _Projector) -> ImageSpec:
    edge = _small(projector.vision.number("preproc_image_size", projector.image_size))
    return ImageSpec("longest", longest_edge=edge, around=2)


def _lfm_2(projector: _Projector) -> ImageSpec:
    """Tiles of 512 pixels, whatever the file says, each with its place as a mark."""
    least, most = projector.limits()
    return ImageSpec(
        "lfm2", image_size=512, min_pixels=least, max_pixels=most, min_tiles=2, max_tiles=10, around=2, per_tile=1
    )


def _tiles(projector: _Projector) -> ImageSpec:
    least = _small(projector.vision.number("preproc_min_tiles", 1), 256)
    return ImageSpec(
        "tiles", min_tiles=least, max_tiles=_small(projector.vision.number("preproc_max_tiles", 12), 256), around=2
    )


def _slices(projector: _Projector) -> ImageSpec:
    """MiniCPM-V up to 4.5; without a number in the file the second version has 96 tokens a slice, later ones 64."""
    version = projector.plain.number("minicpmv_version")
    tokens = _small(projector.plain.number("minicpmv_query_num")) or (64 if version > 2 else 96)
    return ImageSpec("slices", tokens=tokens, max_tiles=9, around=2, per_tile=2, per_row=1)


def _slices_by_size(projector: _Projector) -> ImageSpec:
    del projector
    return ImageSpec("slices", max_tiles=9, around=2, per_tile=2, per_row=1)


def _rows(projector: _Projector) -> ImageSpec:
    """Idefics 3: four marks around the overview, two for each tile, one between rows."""
    edge = _small(projector.vision.number("preproc_image_size", projector.image_size))
    return ImageSpec("rows", longest_edge=edge, around=3, per_tile=2, per_row=1)


def _llama_4(projector: _Projector) -> ImageSpec:
    sides = range(1, _PINPOINTS_LLAMA_4 + 1)
    size = projector.image_size
    pinpoints = tuple((columns * size, rows * size) for columns in sides for rows in sides if columns * rows > 1)
    return ImageSpec("anyres", pinpoints=pinpoints, around=2, unpads=False)


def _pinpoints(listed: object) -> tuple[tuple[int, int], ...]:
    """Pairs of width and height, one after the other in the file."""
    sides = (
        [side for side in listed if isinstance(side, int) and 0 < side <= LARGEST] if isinstance(listed, tuple) else []
    )
    return tuple(zip(sides[::2], sides[1::2], strict=False))


def _small(number: int, most: int = LARGEST) -> int:
    if number > most:
        raise ValueError(f"{number} is too large")
    return number


_MAKERS: dict[str, Callable[[_Projector], ImageSpec]] = {
    **dict.fromkeys(_SQUARES, _squares),
    **dict.fromkeys(_LIMITS.keys() | _FROM_FILE, _by_size),
    "lfm2": _lfm_2,
    "lightonocr": _longest_edge,
    "internvl": _tiles,
    "llama4": _llama_4,
    "resampler": _slices,
    "minicpmv4_6": _slices_by_size,
    "idefics3": _rows,
}
