"""How a model cuts images up is read from its files, else known by its name; rubbish tells nothing."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import entry
from fakes import FakeBackend
from rolecall.core.image_tokens import ImageSpec, image_tokens
from rolecall.core.models import ModelEntry
from rolecall.runtime.file_memory import MOST_REMEMBERED
from rolecall.runtime.folder_images import folder_spec
from rolecall.runtime.gguf_header import GgufHeader
from rolecall.runtime.image_specs import ImageSpecs, named_spec
from rolecall.runtime.projector_images import projector_spec

SIZES = [(64, 64), (640, 480), (1920, 1080)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


class Files(FakeBackend):
    """A backend whose entries have these files."""

    def __init__(self, *paths: Path) -> None:
        super().__init__()
        self.paths = paths

    def files(self, entry: ModelEntry) -> tuple[Path, ...]:
        return self.paths


def header(
    kind: str, *tensors: str, image_size: int = 448, patch_size: int = 14, plain: Any = None, **vision: Any
) -> GgufHeader:
    """The header of a projector."""
    fields = {"image_size": image_size, "patch_size": patch_size, **vision}
    metadata = {"clip.projector_type": kind, **{f"clip.{key}": value for key, value in (plain or {}).items()}}
    metadata |= {f"clip.vision.{key}": value for key, value in fields.items()}
    return GgufHeader(metadata, dict.fromkeys(tensors, ((1,), 4)))


def projector(kind: str, *tensors: str, flags: Any = None, **vision: Any) -> ImageSpec:
    """What is read from the header of a projector."""
    spec = projector_spec(header(kind, *tensors, **vision), flags)
    assert spec is not None
    assert spec.engine == "llama_cpp"
    return spec


def tokens(spec: ImageSpec | None) -> list[int]:
    """The tokens of some sizes."""
    assert spec is not None
    return [image_tokens(spec, *size) for size in SIZES]


# -- llama.cpp's projectors


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (projector("qwen2vl_merger"), [11, 393, 2693]),
        (projector("qwen3vl_merger", patch_size=16, spatial_merge_size=2), [11, 302, 2042]),
        (projector("pixtral", "v.token_embd.img_break", image_size=1024, patch_size=16), [20, 999, 1032]),
        (projector("pixtral", image_size=1540, spatial_merge_size=2), [12, 408, 1032]),
        (projector("gemma3", image_size=896), [258, 258, 258]),
        (projector("gemma3", image_size=896, **{"projector.scale_factor": 2}), [1026, 1026, 1026]),
        (projector("gemma3nv", image_size=256, patch_size=1), [258, 258, 258]),
        (projector("mlp", image_size=336), [576, 576, 576]),
        (projector("mlp", image_size=336, image_grid_pinpoints=(336, 672, 672, 336, 672, 672)), [576, 2880, 2880]),
        (projector("ldp", image_size=336), [144, 144, 144]),
        (projector("adapter", "adapter.boi", image_size=672), [578, 578, 578]),
        (projector("cogvlm", image_size=490), [1227, 1227, 1227]),
        (projector("yasa2"), [66, 66, 66]),
        (projector("internvl", **{"projector.scale_factor": 2}), [258, 1282, 3330]),
        (projector("internvl", preproc_max_tiles=1, **{"projector.scale_factor": 2}), [258, 514, 514]),
        (projector("resampler", plain={"minicpmv_version": 3}), [66, 198, 595]),
        (projector("resampler"), [98, 294, 883]),
        (projector("minicpmv4_6"), [66, 209, 597]),
        (projector("lfm2", patch_size=16, **{"projector.scale_factor": 2}), [66, 236, 2311]),
        (
            projector(
                "idefics3", image_size=512, patch_size=16, preproc_image_size=2048, **{"projector.scale_factor": 4}
            ),
            [1127, 862, 862],
        ),
        (projector("llama4", image_size=336, **{"projector.scale_factor": 2}), [146, 722, 1010]),
        (projector("lightonocr", image_size=1540, spatial_merge_size=2), [3027, 2312, 1707]),
        (projector("phi4", image_min_pixels=50000, image_max_pixels=200000), [256, 972, 966]),
        (projector("hunyuanvl", image_min_pixels=0, image_max_pixels=0), [10, 412, 2734]),
        (projector("gemma4v", patch_size=16, projection_dim=2560), [83, 132, 922]),
    ],
)
def test_what_llama_cpp_does(spec: ImageSpec, expected: list[int]) -> None:
    """Each type of projector has the preprocessing and the limits of clip.cpp."""
    assert tokens(spec) == expected


def test_the_limits_of_the_command_line_count() -> None:
    """``--image-min-tokens`` and ``--image-max-tokens`` go before the limits of the type."""
    spec = projector("qwen2vl_merger", flags={"--image-min-tokens": 1024, "--image-max-tokens": 2000})
    assert 1024 <= image_tokens(spec, 64, 64) <= 1100
    assert 1900 <= image_tokens(spec, 4000, 3000) <= 2002


def test_an_image_that_is_seen_at_once_fits_into_a_micro_batch() -> None:
    """The larger Gemma 4 have no more tokens an image than ``--ubatch-size``; the smaller ones do not care."""
    assert image_tokens(projector("gemma4v", projection_dim=5376), 4000, 3000) <= 514
    assert image_tokens(projector("gemma4v", projection_dim=5376, flags={"-ub": 1024}), 4000, 3000) > 900
    assert image_tokens(projector("gemma4v", projection_dim=2560), 4000, 3000) > 1000
    assert image_tokens(projector("gemma4uv", projection_dim=2560), 4000, 3000) <= 514


def test_a_type_that_is_not_known() -> None:
    """A projector that came later tells nothing."""
    assert projector_spec(header("brand_new")) is None
    assert projector_spec(GgufHeader({"clip.projector_type": 7}, {})) is None


@pytest.mark.parametrize(
    "vision", [{"patch_size": 0}, {"patch_size": 2**30}, {"image_size": -1}, {"spatial_merge_size": 10**6}]
)
def test_a_header_of_nonsense_is_refused(vision: dict[str, Any]) -> None:
    """Numbers that cannot be are a ``ValueError``."""
    with pytest.raises(ValueError, match=r"\d|patch_size"):
        projector("qwen2vl_merger", **vision)


# -- folders


@pytest.mark.parametrize(
    ("config", "processor", "expected"),
    [
        ({"model_type": "qwen2_5_vl"}, {"min_pixels": 3136, "max_pixels": 1003520}, [6, 393, 1224]),
        (
            {"model_type": "qwen3_vl", "vision_config": {"patch_size": 16, "spatial_merge_size": 2}},
            {"size": {"shortest_edge": 65536, "longest_edge": 16777216}},
            [66, 302, 2042],
        ),
        ({"model_type": "llava", "vision_config": {"image_size": 336, "patch_size": 14}}, {}, [576, 576, 576]),
        (
            {"model_type": "llava_next", "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672]]},
            {},
            [1176, 2340, 1948],
        ),
        ({"model_type": "pixtral"}, {}, [20, 1230, 2340]),
        (
            {
                "model_type": "mistral3",
                "spatial_merge_size": 2,
                "vision_config": {"patch_size": 14, "image_size": 1540},
            },
            {"size": {"longest_edge": 1540}},
            [12, 432, 1736],
        ),
        ({"model_type": "gemma3", "mm_tokens_per_image": 256}, {}, [260, 260, 260]),
        ({"model_type": "gemma4"}, {"max_soft_tokens": 560}, [562, 562, 562]),
        (
            {"model_type": "internvl", "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]}},
            {},
            [258, 3330, 2306],
        ),
        ({"model_type": "internvl", "downsample_ratio": 0.5}, {}, [258, 3330, 2306]),
        ({"model_type": "internvl_chat", "force_image_size": 448, "max_dynamic_patch": 6}, {}, [258, 1794, 770]),
        ({"model_type": "minicpmv", "query_num": 64}, {"max_slice_nums": 9}, [69, 201, 598]),
        ({"model_type": "minicpmv4_6"}, {}, [69, 212, 600]),
        ({"model_type": "lfm2_vl"}, {}, [66, 236, 2311]),
        ({"model_type": "florence2"}, {"image_seq_length": 577}, [577, 577, 577]),
        ({"model_type": "paligemma", "vision_config": {"num_image_tokens": 1024}}, {}, [1024, 1024, 1024]),
        (
            {"model_type": "smolvlm", "scale_factor": 4, "vision_config": {"image_size": 512, "patch_size": 16}},
            {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
            [1127, 862, 862],
        ),
    ],
)
def test_what_a_folder_says(config: dict[str, Any], processor: dict[str, Any], expected: list[int]) -> None:
    """Each model type has the numbers of its configuration, and transformers' defaults for what is missing."""
    assert tokens(folder_spec(config, processor)) == expected


def test_a_model_type_that_is_not_known() -> None:
    """A text model, and one that came later, tell nothing."""
    assert folder_spec({"model_type": "llama"}, {}) is None
    assert folder_spec({"model_type": ["llava"]}, {}) is None


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llava_next", "image_grid_pinpoints": [[-1, 5]]},
        {"model_type": "llava", "vision_config": {"image_size": "large"}},
        {"model_type": "internvl", "downsample_ratio": 0},
        {"model_type": "gemma3", "mm_tokens_per_image": 2**30},
        {"model_type": "internvl", "downsample_ratio": "half"},
    ],
)
def test_a_folder_of_nonsense_is_refused(config: dict[str, Any]) -> None:
    """Numbers that cannot be are a ``ValueError``."""
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        folder_spec(config, {})


# -- entries


def folder(path: Path, config: Any, processor: Any = None, name: str = "preprocessor_config.json") -> Path:
    """A model's folder."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (path / name).write_text(json.dumps(processor))
    return path


def write_projector(path: Path, kind: str) -> Path:
    """A GGUF that holds nothing but the metadata of a projector."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    numbers = {"clip.vision.image_size": 448, "clip.vision.patch_size": 14}
    rows = [text("clip.projector_type") + struct.pack("<I", 8) + text(kind)]
    rows += [text(key) + struct.pack("<II", 4, value) for key, value in numbers.items()]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(rows)) + b"".join(rows) + bytes(64))
    return path


def test_a_projector_beside_a_gguf_tells(tmp_path: Path) -> None:
    """The flags of the entry go along, in either spelling."""
    backend = Files(tmp_path / "model.gguf", write_projector(tmp_path / "mmproj.gguf", "qwen2vl_merger"))
    specs = ImageSpecs()
    assert tokens(specs.of(entry(), backend)) == [11, 393, 2693]
    few = entry(backend_config={"extra_args": ["--image_max_tokens", "100"]})
    assert max(tokens(specs.of(few, backend))) <= 102


def test_a_folder_tells(tmp_path: Path) -> None:
    """Both spellings of the processor's file count, and what vLLM is told on its command line."""
    path = folder(tmp_path / "a", {"model_type": "qwen2_5_vl"}, {"max_pixels": 1003520})
    assert tokens(ImageSpecs().of(entry(), Files(path))) == [6, 393, 1224]
    told = entry(backend_config={"extra_args": ["--mm-processor-kwargs", '{"max_pixels": 100352}']})
    assert max(tokens(ImageSpecs().of(told, Files(path)))) <= 130
    newer = folder(
        tmp_path / "b",
        {"model_type": "qwen2_5_vl"},
        {"image_processor": {"max_pixels": 1003520}},
        "processor_config.json",
    )
    assert tokens(ImageSpecs().of(entry(), Files(newer))) == [6, 393, 1224]


def test_files_are_read_once_and_again_when_they_change(tmp_path: Path) -> None:
    """What was read is remembered until the file is another."""
    specs, path = ImageSpecs(), tmp_path / "mmproj.gguf"
    backend = Files(tmp_path / "model.gguf", write_projector(path, "qwen2vl_merger"))
    first = specs.of(entry(), backend)
    assert specs.of(entry(), backend) is first
    write_projector(path, "yasa2")
    os.utime(path, ns=(1, 1))
    assert tokens(specs.of(entry(), backend)) == [66, 66, 66]


def test_only_so_many_files_are_remembered(tmp_path: Path) -> None:
    """What was read longest ago is read again when it is asked for."""
    specs, path = ImageSpecs(), tmp_path / "mmproj.gguf"
    backend = Files(tmp_path / "model.gguf", write_projector(path, "yasa2"))
    first = specs.of(entry(), backend)
    for number in range(MOST_REMEMBERED):
        specs.of(entry(backend_config={"extra_args": ["-ub", str(number + 1)]}), backend)
    again = specs.of(entry(), backend)
    assert again == first
    assert again is not first


def test_files_that_cannot_be_looked_at_tell_nothing() -> None:
    """A path that no file can have."""
    assert ImageSpecs().of(entry(), Files(Path("m.gguf"), Path("a\0b"))) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"model_type": "llava", "vision_config": 3}', b'{"model_type": "llava_next"}'],
)
def test_rubbish_in_a_folder_is_no_error(tmp_path: Path, content: bytes) -> None:
    """The name then tells, or nothing does."""
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "preprocessor_config.json").write_bytes(b"\xff")
    assert ImageSpecs().of(entry(), Files(tmp_path)) is None
    assert tokens(ImageSpecs().of(entry("qwen2.5-vl-7b"), Files(tmp_path))) == [6, 393, 2693]


def test_rubbish_for_a_projector_is_no_error(tmp_path: Path) -> None:
    """A file that is none, a huge one, and none at all."""
    (tmp_path / "mmproj.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    assert ImageSpecs().of(entry(), Files(tmp_path / "m.gguf", tmp_path / "mmproj.gguf")) is None
    assert ImageSpecs().of(entry(), Files(tmp_path / "m.gguf", tmp_path / "missing.gguf")) is None
    assert ImageSpecs().of(entry(), Files()) is None
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**23)
    assert ImageSpecs().of(entry(), Files(tmp_path)) is None


@given(st.dictionaries(st.sampled_from(["model_type", "vision_config", "image_grid_pinpoints", "patch_size"]), JSON))
def test_any_configuration_can_be_read(config: dict[str, Any]) -> None:
    """Nonsense is a ``ValueError`` or the like, which ends in nothing known; never a hang or a crash."""
    for kind in ("qwen2_vl", "llava_next", "internvl", "minicpmv", "smolvlm", "gemma3", "pixtral"):
        try:
            spec = folder_spec({**config, "model_type": kind}, config)
        except (ValueError, TypeError, OverflowError):
            continue
        assert image_tokens(spec, 640, 480) >= 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "smart"),
        ("qwen3-vl:8b", "smart"),
        ("qwen3 vl", "smart"),
        ("llava-v1.6-mistral-7b", "anyres"),
        ("llava-1.5-7b", "fixed"),
        ("pixtral-12b", "longest"),
        ("Mistral-Small-3.2-24B", "longest"),
        ("gemma3:12b", "fixed"),
        ("InternVL3-8B", "tiles"),
        ("MiniCPM-V-2_6", "slices"),
        ("Florence-2-large", "fixed"),
        ("SmolVLM2-2.2B", "rows"),
        ("llama-3.1-8b", None),
    ],
)
def test_a_name_tells_the_family(name: str, expected: str | None) -> None:
    """Where no file tells, as with engines that others run."""
    spec = named_spec(entry(name))
    assert (spec and spec.family) == expected


def test_the_family_goes_before_the_name() -> None:
    """An entry may be called anything, if it says what it is."""
    assert tokens(named_spec(entry("llava-like", family="gemma-3"))) == [260, 260, 260]
