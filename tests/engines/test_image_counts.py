"""The formulas for images against llama.cpp itself: for each type of projector, the same tokens for many sizes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rolecall.core.image_tokens import image_tokens
from rolecall.runtime.gguf_header import read_gguf
from rolecall.runtime.projector_images import projector_spec

pytest.importorskip("xllamacpp", reason="the embedded engine is an extra: rolecall[llama]")

SIZES = [
    *((64, 64), (100, 100), (51, 33), (337, 336), (449, 448), (640, 480), (480, 640), (1000, 300), (300, 1000)),
    *((97, 1500), (1536, 1024), (1920, 1080), (1999, 2345)),
]
PINPOINTS = (336, 672, 672, 336, 672, 672, 1008, 336, 336, 1008)
SCALE = "projector.scale_factor"


def picture(width: int, height: int) -> dict[str, Any]:
    """A black image as a part of a message."""
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


@pytest.fixture(scope="module")
def marked_model(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo model that knows the marks of images."""
    from projectors import write_marked_model

    return write_marked_model(tmp_path_factory.mktemp("marked") / "chat.gguf", demo_models / "demo-vision.gguf")


@pytest.mark.parametrize(
    ("kind", "vision", "plain", "pinpoints"),
    [
        ("qwen2vl_merger", {"image_size": 560, "patch_size": 14}, {}, ()),
        ("qwen2.5vl_merger", {"image_size": 560, "patch_size": 14, "n_wa_pattern": 8}, {}, ()),
        ("qwen3vl_merger", {"image_size": 768, "patch_size": 16, "spatial_merge_size": 2}, {}, ()),
        ("mlp", {"image_size": 336, "patch_size": 14}, {}, ()),
        ("mlp", {"image_size": 336, "patch_size": 14}, {}, PINPOINTS),
        ("pixtral", {"image_size": 1024, "patch_size": 16}, {}, ()),
        ("pixtral", {"image_size": 1540, "patch_size": 14, "spatial_merge_size": 2}, {}, ()),
        ("gemma3", {"image_size": 896, "patch_size": 14}, {}, ()),
        ("gemma4v", {"image_size": 768, "patch_size": 16}, {}, ()),
        ("internvl", {"image_size": 448, "patch_size": 14, SCALE: 2}, {}, ()),
        ("internvl", {"image_size": 448, "patch_size": 14, SCALE: 2, "preproc_max_tiles": 6}, {}, ()),
        ("resampler", {"image_size": 448, "patch_size": 14}, {"minicpmv_version": 3, "minicpmv_query_num": 64}, ()),
        ("minicpmv4_6", {"image_size": 448, "patch_size": 14}, {}, ()),
        ("minicpmv4_6", {"image_size": 448, "patch_size": 14, SCALE: 2}, {}, ()),
        ("idefics3", {"image_size": 512, "patch_size": 16, SCALE: 4, "preproc_image_size": 2048}, {}, ()),
        ("lfm2", {"image_size": 256, "patch_size": 16, SCALE: 2}, {}, ()),
        ("llama4", {"image_size": 336, "patch_size": 14, SCALE: 2}, {}, ()),
        ("kimivl", {"image_size": 896, "patch_size": 14, SCALE: 2}, {}, ()),
        ("phi4", {"image_size": 448, "patch_size": 16, "image_min_pixels": 65536, "image_max_pixels": 921600}, {}, ()),
        ("lightonocr", {"image_size": 1540, "patch_size": 14, "spatial_merge_size": 2}, {}, ()),
    ],
)
def test_llama_cpp_counts_the_same(  # noqa: PLR0917 - cases
    start_engine: Callable[..., Any],
    marked_model: Path,
    tmp_path: Path,
    kind: str,
    vision: Mapping[str, int],
    plain: Mapping[str, int],
    pinpoints: Sequence[int],
) -> None:
    """What llama.cpp counts is the formula's figure and, for all sizes alike, that of the text around.

    The marks that the formula counts as one token each have one a byte here, which is part of that difference.
    """
    from projectors import write_projector

    path = write_projector(tmp_path / "mmproj.gguf", kind, vision, plain, pinpoints)
    spec = projector_spec(read_gguf(path))
    engine = start_engine("--model", str(marked_model), "--mmproj", str(path), "--no-warmup")
    differences = set()
    for size in SIZES:
        body = {"messages": [{"role": "user", "content": [picture(*size)]}]}
        answer = engine.post("/v1/chat/completions/input_tokens", body)
        assert answer.status_code == 200, answer.text
        differences.add(answer.json()["input_tokens"] - image_tokens(spec, *size))
    assert len(differences) == 1
