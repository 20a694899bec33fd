"""How many tokens of the prompt an image takes, from its size in pixels: a formula for each way of cutting it up.

Engines differ: llama.cpp's preprocessing (`tools/mtmd`, read at build 11434) is not that of the models' authors in
transformers (read at 5.24), which vLLM counts by. An `ImageSpec` says which one and holds the numbers from the model's
files. The formulas, in the order of `Family`:

- ``fixed``: LLaVA 1.5, Gemma 3, Florence-2 and all whose image is squeezed into one square.
- ``smart``: Qwen2-VL and its kin: sides are rounded to whole patches, then fitted between ``min_pixels`` and
  ``max_pixels``. llama.cpp does the same for Pixtral, Kimi-VL, Gemma 4, GLM-4V and others (`dyn_size`).
- ``longest``: Pixtral: shrunk to the longest edge, then up to whole patches, with a mark for each row.
- ``anyres``: LLaVA 1.6: an overview and the tiles of the best of the listed resolutions.
- ``tiles``: InternVL: tiles of the nearest aspect ratio, and an overview.
- ``slices``: MiniCPM-V: an overview and up to nine slices, each with the same few tokens.
- ``rows``: Idefics 3 and SmolVLM: scaled to the longest edge, tiles in marked rows, and an overview.
- ``lfm2``: LFM2-VL: as Qwen's, but for large ones, which are cut as InternVL's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Family: TypeAlias = Literal["fixed", "smart", "longest", "anyres", "tiles", "slices", "rows", "lfm2"]
Engine: TypeAlias = Literal["llama_cpp", "hf"]
Size: TypeAlias = tuple[int, int]
"""Width and height, in that order everywhere here; pixels, or tiles of a grid."""

UNKNOWN_PATCH, UNKNOWN_LEAST, UNKNOWN_MOST = 28, 576, 2880
"""Of a model of which nothing is known: between a square of LLaVA 1.5 and five of LLaVA 1.6."""
MOST_SIDE = 2**20
"""Longer sides count as this long: no picture has them, and no product may grow without limit."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What of a model decides how many tokens an image takes; 0 is "does not apply".

    ``image_size`` is the side of the square that the encoder sees (of a tile, a slice), ``patch_size`` of a patch, all
    in pixels; ``merge`` patches a side become one token. ``tokens`` are those of one square where they are known, else
    they follow from its patches. ``around`` are the marks of an image as a whole, ``per_tile`` of each tile besides the
    overview, ``per_row`` of each row of tiles, or of patches where there are no tiles. ``unpads`` drops the tokens that
    only show padding and ends each row with a mark (LLaVA 1.6 in transformers).
    """

    family: Family
    engine: Engine = "hf"
    image_size: int = 0
    patch_size: int = 14
    merge: int = 1
    min_pixels: int = 0
    max_pixels: int = 0
    longest_edge: int = 0
    min_tiles: int = 1
    max_tiles: int = 12
    pinpoints: tuple[Size, ...] = ()
    tokens: int = 0
    around: int = 0
    per_tile: int = 0
    per_row: int = 0
    unpads: bool = True

    @property
    def step(self) -> int:
        """The side of the square of pixels that becomes one token."""
        return max(1, self.patch_size * self.merge)

    @property
    def square_tokens(self) -> int:
        """The tokens of one whole square."""
        return self.tokens or (self.image_size // self.step) ** 2


def image_tokens(spec: ImageSpec | None, width: int, height: int) -> int:
    """Return the tokens of an image of this size in pixels, the marks around it included; at least 1.

    Without a spec it is a cautious guess. A side of 0 or less counts as 1 pixel.
    """
    size = min(max(1, width), MOST_SIDE), min(max(1, height), MOST_SIDE)
    if spec is None:
        return min(max(UNKNOWN_LEAST, math.prod(_ceil_to(side, UNKNOWN_PATCH) for side in size)), UNKNOWN_MOST)
    return max(1, _COUNTS[spec.family](spec, size) + spec.around)


def _fixed(spec: ImageSpec, size: Size) -> int:
    """Count one square, whatever the image is.

    Sources: `processing_llava.py` (24 × 24 patches of 336 pixels), `processing_gemma3.py` (``image_seq_length`` 256,
    without pan and scan), `processing_florence2.py` (``image_seq_length`` 577: 24 × 24 and one for all); in llama.cpp
    `mtmd_image_preprocessor_fixed_size` and ``clip_n_output_tokens``.
    """
    del size
    return spec.square_tokens


def _smart(spec: ImageSpec, size: Size) -> int:
    """Count the patches after ``smart_resize``, ``merge`` × ``merge`` to a token, and the marks of the rows.

    Sources: ``smart_resize`` in transformers' `image_processing_qwen2_vl.py`; ``calc_size_preserved_ratio`` in
    llama.cpp's `mtmd-image.cpp`, which computes in 32 bits and rounds halves up instead of to even. Its Pixtral has a
    mark after each row but the last, and one for the end of the image.
    """
    columns, rows = (side // spec.step for side in _smart_resize(spec, size))
    return rows * (columns + spec.per_row)


def _smart_resize(spec: ImageSpec, size: Size) -> Size:
    """Fit the sides, in whole tokens, between ``min_pixels`` and ``max_pixels``."""
    step = spec.step
    single, rounded = _arithmetic(spec)
    width, height = (max(step, rounded(single(side / step)) * step) for side in size)
    area = single(float(size[0]) * size[1])
    if 0 < spec.max_pixels < width * height:
        beta = single(math.sqrt(single(area / spec.max_pixels)))
        width, height = (max(step, math.floor(single(single(side / beta) / step)) * step) for side in size)
    elif width * height < spec.min_pixels:
        beta = single(math.sqrt(single(spec.min_pixels / area)))
        width, height = (math.ceil(single(single(side * beta) / step)) * step for side in size)
    return width, height


def _longest(spec: ImageSpec, size: Size) -> int:
    """Count the patches of an image that is shrunk to the longest edge, and the mark at the end of each row.

    Source: ``get_resize_output_image_size`` in transformers' `image_processing_pixtral.py`, and
    `processing_pixtral.py`: the last mark is the end of the image. llama.cpp (`longest_edge`) enlarges, too.
    """
    single, _ = _arithmetic(spec)
    scale = single(spec.longest_edge / max(size)) if spec.longest_edge else 1.0
    if spec.engine == "llama_cpp":
        columns, rows = (math.ceil(single(single(side * scale) / spec.step)) for side in size)
        return rows * (columns + spec.per_row)
    if scale < 1:
        ratio = max(size) / spec.longest_edge
        size = max(1, math.floor(size[0] / ratio)), max(1, math.floor(size[1] / ratio))
    columns, rows = (_ceil_to(side, spec.step) for side in size)
    return rows * (columns + spec.per_row)


def _anyres(spec: ImageSpec, size: Size) -> int:
    """Count an overview and the tiles of the best resolution of ``pinpoints``.

    Sources: ``_get_number_of_features`` in transformers' `processing_llava_next.py`, where rows end with a mark and
    patches that only hold padding are dropped; `mtmd_image_preprocessor_llava_uhd` in llama.cpp, where all tiles stay
    whole and an image that fits into one square has no other.
    """
    square = spec.square_tokens
    if spec.engine == "llama_cpp" and max(size) <= spec.image_size:
        return square
    best = _best_resolution(size, spec.pinpoints)
    side = max(1, spec.image_size)
    columns, rows = best[0] // side, best[1] // side
    if not spec.unpads:
        return square * (1 + columns * rows) + spec.per_row * rows
    patches = spec.image_size // spec.step
    columns, rows = _unpadded(size, (columns * patches, rows * patches))
    return square + rows * columns + rows


def _unpadded(size: Size, grid: Size) -> Size:
    """What is left of a grid of patches without those that lie outside of the image.

    Source: ``_get_unpadded_features`` in transformers' `processing_llava_next.py`.
    """
    columns, rows = grid
    if not (columns and rows):
        return grid
    width, height = size
    if width / height > columns / rows:
        return columns, rows - (rows - int(round(height * (columns / width), 7))) // 2 * 2
    return columns - (columns - int(round(width * (rows / height), 7))) // 2 * 2, rows


def _best_resolution(size: Size, candidates: Iterable[Size]) -> Size:
    """Return the candidate that keeps most of the image, of those the one that wastes least; (0, 0) of none.

    Source: ``select_best_resolution`` in transformers' `image_processing_utils.py` and in llama.cpp's
    `mtmd-image.cpp`.
    """
    width, height = size
    best, most, least_waste = (0, 0), 0, 0
    for candidate in candidates:
        scale = min(candidate[0] / width, candidate[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = candidate[0] * candidate[1] - kept
        if kept > most or (kept == most and waste < least_waste):
            best, most, least_waste = candidate, kept, waste
    return best


def _tiles(spec: ImageSpec, size: Size) -> int:
    """Count the tiles and, besides more than one, the overview.

    Sources: ``get_optimal_tiled_canvas`` in transformers' `image_processing_got_ocr2.py` (which InternVL uses, and
    vLLM's `internvl.py` alike): the nearest aspect ratio, of those equally near the larger one if the image fills half
    of it. llama.cpp (``set_internvl_dhr_res_candidates``) takes the best resolution instead, and has an overview beside
    a single tile, too, unless the image fits into one square.
    """
    square, side = spec.square_tokens, max(1, spec.image_size)
    if spec.engine == "hf":
        columns, rows = _nearest_grid(spec, size)
        tiles = columns * rows
        return square * (tiles + (tiles > 1))
    if max(size) <= spec.image_size:
        return square
    grids = _grids(spec.min_tiles, spec.max_tiles)
    width, height = _best_resolution(size, ((columns * side, rows * side) for columns, rows in grids))
    columns, rows = width // side, height // side
    return square * (1 + columns * rows) + spec.per_tile * columns * rows + spec.per_row * rows


def _nearest_grid(spec: ImageSpec, size: Size) -> Size:
    ratio, area = size[0] / size[1], size[0] * size[1]
    best, least = (1, 1), math.inf
    for grid in sorted(_grids(spec.min_tiles, spec.max_tiles), key=math.prod):
        difference = abs(ratio - grid[0] / grid[1])
        fills_half = area > spec.image_size**2 * math.prod(grid) / 2
        if difference < least or (difference == least and fills_half):
            best, least = grid, difference
    return best


def _grids(least: int, most: int) -> Iterable[Size]:
    most = min(most, 256)
    sides = range(1, most + 1)
    return ((columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most)


def _slices(spec: ImageSpec, size: Size) -> int:
    """Count an overview and, of an image larger than a square, its slices, with their marks.

    Sources: ``get_sliced_grid`` in transformers' `image_processing_minicpmv4_6.py` and vLLM's `minicpmv.py`, where the
    area decides; `mtmd_image_preprocessor_llava_uhd` in llama.cpp, where the longer side does (not for a ``merge`` of
    2), and an image that is not sliced becomes a square. With ``tokens`` each slice has the same (MiniCPM-V 2 to 4.5),
    without they follow from its size (4.6).
    """
    grid = _sliced_grid(spec, size)
    if grid is None and spec.engine == "llama_cpp" and spec.merge != 2:
        return spec.square_tokens
    overview = spec.tokens or _cells(_slice_size(spec, size, enlarge=grid is None), spec.step)
    if grid is None:
        return overview
    columns, rows = grid
    _, rounded = _arithmetic(spec)
    part = max(1, rounded(size[0] / columns)), max(1, rounded(size[1] / rows))
    each = spec.tokens or _cells(_slice_size(spec, part, enlarge=True), spec.step)
    return overview + (each + spec.per_tile) * columns * rows + spec.per_row * (rows - 1)


def _sliced_grid(spec: ImageSpec, size: Size) -> Size | None:
    """Columns and rows of slices; None for an image that is not sliced."""
    area = max(1, spec.image_size) ** 2
    wanted = min(math.ceil(size[0] * size[1] / area), spec.max_tiles)
    by_side = spec.engine == "llama_cpp" and spec.merge != 2
    if max(size) <= spec.image_size if by_side else wanted <= 1:
        return None
    best, least, log_ratio = (1, 1), math.inf, math.log(size[0] / size[1])
    for count in (wanted - 1, wanted, wanted + 1):
        if count < 2 or count > spec.max_tiles:
            continue
        for columns in (number for number in range(1, count + 1) if count % number == 0):
            error = abs(log_ratio - math.log(columns * columns / count))
            if error < least:
                best, least = (columns, count // columns), error
    return best


def _slice_size(spec: ImageSpec, size: Size, *, enlarge: bool) -> Size:
    """The size that an image or a slice gets: the area of a square, in its own proportions, in whole tokens."""
    single, rounded = _arithmetic(spec)
    width, height = size
    if enlarge or width * height > spec.image_size**2:
        ratio = single(width / height)
        height = int(single(spec.image_size / single(math.sqrt(ratio))))
        width = int(single(height * ratio))
    step = spec.step
    return max(step, rounded(single(width / step)) * step), max(step, rounded(single(height / step)) * step)


def _cells(size: Size, step: int) -> int:
    return (size[0] // step) * (size[1] // step)


def _rows(spec: ImageSpec, size: Size) -> int:
    """Count an overview and the rows of tiles of an image that is scaled to the longest edge.

    Sources: transformers' `image_processing_idefics3.py` and `processing_idefics3.py`;
    `mtmd_image_preprocessor_idefics3` in llama.cpp, which has a tile beside the overview even where one is enough.
    """
    edge, side = spec.longest_edge or spec.image_size, max(1, spec.image_size)
    scaled = (max(2, int(edge * length / max(size))) for length in size)
    columns, rows = (_ceil_to(length + length % 2, side) for length in scaled)
    square, tiles = spec.square_tokens, columns * rows
    if tiles == 1 and spec.engine == "hf":
        return square
    return square + tiles * (square + spec.per_tile) + rows * spec.per_row


def _lfm2(spec: ImageSpec, size: Size) -> int:
    """Count the patches of an image, or those of tiles and of an overview if it is twice as large as the limit.

    Sources: `mtmd_image_preprocessor_lfm2` in llama.cpp; transformers' `image_processing_lfm2_vl.py`.
    """
    step = spec.step
    area = math.prod(max(spec.patch_size, round(side / step) * step) for side in size)
    overview = _cells(_smart_resize(spec, size), step)
    if area <= 2 * spec.max_pixels:
        return overview
    tiles = math.prod(_nearest_grid(spec, size))
    return overview + 1 + tiles * (spec.square_tokens + spec.per_tile)


def _ceil_to(length: int, step: int) -> int:
    """How many steps cover a length."""
    return -(-length // step)


def _arithmetic(spec: ImageSpec) -> tuple[Callable[[float], float], Callable[[float], int]]:
    """Return what happens to each result on its way, and how it is rounded."""
    return (_single, _half_up) if spec.engine == "llama_cpp" else (_same, round)


def _single(value: float) -> float:
    """Return the nearest number of 32 bits, in which llama.cpp computes: it decides on which side of a limit one is."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _same(value: float) -> float:
    return value


def _half_up(value: float) -> int:
    return math.floor(value + 0.5)


_COUNTS: dict[Family, Callable[[ImageSpec, Size], int]] = {
    "fixed": _fixed,
    "smart": _smart,
    "longest": _longest,
    "anyres": _anyres,
    "tiles": _tiles,
    "slices": _slices,
    "rows": _rows,
    "lfm2": _lfm2,
}
