"""The tokens of an image: each formula gives what the model's own code gives, and none misbehaves on odd sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.image_tokens import UNKNOWN_LEAST, UNKNOWN_MOST, ImageSpec, image_tokens

SIZES = [(64, 64), (640, 480), (1920, 1080), (480, 1920), (4000, 3000)]
PINPOINTS = ((672, 336), (336, 672), (672, 672), (336, 1008), (1008, 336))

QWEN_2_5 = ImageSpec("smart", patch_size=14, merge=2, min_pixels=3136, max_pixels=1003520)
QWEN_3 = ImageSpec("smart", patch_size=16, merge=2, min_pixels=65536, max_pixels=16777216)
PIXTRAL = ImageSpec("longest", patch_size=16, longest_edge=1024, per_row=1)
LLAVA_1_6 = ImageSpec("anyres", image_size=336, patch_size=14, pinpoints=PINPOINTS)
INTERNVL = ImageSpec("tiles", image_size=448, merge=2, around=2)
MINICPM = ImageSpec("slices", image_size=448, tokens=64, max_tiles=9, around=2, per_tile=2, per_row=1)
MINICPM_4_6 = replace(MINICPM, tokens=0, merge=4)
SMOLVLM = ImageSpec("rows", image_size=512, longest_edge=2048, tokens=64, around=3, per_tile=2, per_row=1)
LFM_2 = ImageSpec(
    "lfm2",
    image_size=512,
    patch_size=16,
    merge=2,
    min_pixels=64 * 1024,
    max_pixels=256 * 1024,
    min_tiles=2,
    max_tiles=10,
    around=2,
    per_tile=1,
)
LLAMA_CPP = [replace(spec, engine="llama_cpp") for spec in (QWEN_2_5, PIXTRAL, LLAVA_1_6, INTERNVL, MINICPM, SMOLVLM)]
ALL = [QWEN_2_5, QWEN_3, PIXTRAL, LLAVA_1_6, INTERNVL, MINICPM, MINICPM_4_6, SMOLVLM, LFM_2, *LLAMA_CPP]


@pytest.mark.parametrize(
    ("spec", "tokens"),
    [
        (QWEN_2_5, [4, 391, 1222, 1173, 1230]),
        (QWEN_3, [64, 300, 2040, 900, 11750]),
        (PIXTRAL, [20, 1230, 2340, 1088, 3120]),
        (LLAVA_1_6, [1176, 2340, 1948, 1944, 2340]),
        (INTERNVL, [258, 3330, 2306, 1282, 3330]),
        (MINICPM, [66, 198, 595, 333, 662]),
        (MINICPM_4_6, [66, 209, 597, 333, 652]),
        (SMOLVLM, [1127, 862, 862, 335, 862]),
        (LFM_2, [66, 236, 2311, 1287, 1779]),
    ],
    ids=["qwen2.5-vl", "qwen3-vl", "pixtral", "llava-1.6", "internvl", "minicpm-v", "minicpm-v-4.6", "smolvlm", "lfm2"],
)
def test_it_is_what_transformers_counts(spec: ImageSpec, tokens: list[int]) -> None:
    """The numbers were computed by the functions of transformers 5.24 that the docstrings name."""
    assert [image_tokens(spec, *size) for size in SIZES] == tokens


@pytest.mark.parametrize(
    ("spec", "tokens"),
    [
        (ImageSpec("fixed", image_size=336, patch_size=14), 576),
        (ImageSpec("fixed", image_size=896, patch_size=14, merge=4, around=2), 258),
        (ImageSpec("fixed", tokens=577), 577),
    ],
    ids=["llava-1.5", "gemma-3", "florence-2"],
)
def test_a_squeezed_image_takes_the_same_whatever_its_size(spec: ImageSpec, tokens: int) -> None:
    """One square is all that the encoder sees."""
    assert {image_tokens(spec, *size) for size in SIZES} == {tokens}


def test_llama_cpp_keeps_a_small_image_whole() -> None:
    """An image that fits into one square has no tiles beside it there, and for LLaVA 1.6 all tiles stay whole."""
    llava, internvl = LLAMA_CPP[2], LLAMA_CPP[3]
    llava = replace(llava, unpads=False)
    assert [image_tokens(llava, *size) for size in [(336, 336), (337, 336), (640, 480)]] == [576, 3 * 576, 5 * 576]
    assert image_tokens(internvl, 448, 448) == 256 + 2
    assert image_tokens(internvl, 449, 448) == 3 * 256 + 2


def test_llama_cpp_enlarges_to_the_longest_edge() -> None:
    """Where transformers would leave a small image as it is."""
    assert image_tokens(LLAMA_CPP[1], 64, 64) == 64 * 65
    assert image_tokens(replace(PIXTRAL, longest_edge=0), 64, 64) == 20


def test_llama_cpp_decides_by_the_longer_side_whether_to_slice() -> None:
    """A long image of a small area has slices there, and one that fits into a square has none."""
    sliced, small = LLAMA_CPP[4], (100, 900)
    assert image_tokens(MINICPM, *small) == 64 + 2
    assert image_tokens(sliced, 448, 448) == 64 + 2
    assert image_tokens(sliced, *small) == 64 + 2 + 2 * (64 + 2) + 1
    by_size = replace(MINICPM_4_6, engine="llama_cpp")
    assert image_tokens(by_size, 100, 100) == 64 + 2
    assert image_tokens(by_size, *small) == 2 * 16 + 2 + 2 * (4 * 17 + 2) + 1
    assert image_tokens(replace(by_size, merge=2), *small) == 5 * 48 + 2


def test_llama_cpp_has_a_tile_beside_the_overview_of_idefics() -> None:
    """Even if the image is one tile large."""
    one = replace(SMOLVLM, longest_edge=0)
    assert image_tokens(one, 512, 512) == 64 + 3
    assert image_tokens(replace(one, engine="llama_cpp"), 512, 512) == 64 + 3 + 64 + 2 + 1


def test_nothing_known_is_a_cautious_guess() -> None:
    """Without a spec a small image counts as a square of LLaVA, a large one as the tiles of the next version."""
    assert [image_tokens(None, *size) for size in SIZES] == [UNKNOWN_LEAST, UNKNOWN_LEAST, 2691, 1242, UNKNOWN_MOST]


def test_a_spec_without_numbers_counts_as_one_token() -> None:
    """A file that says little does no harm."""
    for family in ("fixed", "smart", "longest", "anyres", "tiles", "slices", "rows", "lfm2"):
        spec = ImageSpec(family, patch_size=0, merge=0, max_tiles=0)
        assert image_tokens(spec, 640, 480) >= 1
        assert image_tokens(replace(spec, engine="llama_cpp"), 640, 480) >= 1


@given(st.sampled_from(ALL), st.integers(-5, 10**7), st.integers(-5, 10**7))
def test_every_size_has_a_count(spec: ImageSpec, width: int, height: int) -> None:
    """Sizes that no image has are counted too, without an error, and never as nothing."""
    assert 1 <= image_tokens(spec, width, height) <= 2**41


@given(st.sampled_from([QWEN_2_5, QWEN_3, LLAMA_CPP[0]]), st.integers(28, 20_000), st.integers(28, 20_000))
def test_the_limits_hold(spec: ImageSpec, width: int, height: int) -> None:
    """Whatever the size, within a sane aspect ratio, there are no more tokens than the pixels allow."""
    if max(width, height) < 100 * min(width, height):
        assert image_tokens(spec, width, height) <= spec.max_pixels // spec.step**2
