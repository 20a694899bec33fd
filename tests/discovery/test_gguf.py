"""GGUF files as models: what their headers say, parts, and projectors with their models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gguf_shapes import write_gguf
from model_places import hostile_gguf, listing, model_gguf, projector_gguf, split_gguf
from rolecall.discovery.found import Model
from rolecall.discovery.places import Place
from rolecall.discovery.scan import Findings, scan
from rolecall.runtime.gguf_header import gguf_parts, is_gguf_name


def look(folder: Path) -> Findings:
    """Scan one folder."""
    return scan([Place("folder", folder)])


def only(folder: Path) -> Model:
    """Return the one model in a folder, which must be all that is found."""
    findings = look(folder)
    assert findings.skipped == []
    (model,) = findings.models
    return model


def reasons(findings: Findings) -> dict[str, str]:
    """Return why files are not offered, by their names."""
    return {Path(each.path).name: each.reason for each in findings.skipped}


def test_what_a_header_says(tmp_path: Path) -> None:
    """Architecture, quantization, context, size, template and license."""
    path = model_gguf(tmp_path / "Qwen3-8B-Q4_K_M.gguf", "qwen3", general__file_type=15, general__license="apache-2.0")
    model = only(tmp_path)
    assert (model.bare, model.quantization, model.backend) == ("qwen3-8b", "Q4_K_M", "llama_cpp")
    assert (model.path, model.files, model.size_bytes) == (path, (path,), path.stat().st_size)
    assert (model.context_tokens, model.family, model.license) == (40960, "qwen3", "apache-2.0")
    assert "messages" in model.found.template
    assert model.found.parameters_b == (256 * 32 + 256 * 256) / 1e9
    assert (model.found.pooling, model.found.sees) == ("", False)


@pytest.mark.parametrize(
    ("kind", "pooling"), [(0, "none"), (1, "mean"), (2, "cls"), (3, "last"), (4, "rank"), (9, ""), ("x", "")]
)
def test_pooling(tmp_path: Path, kind: object, pooling: str) -> None:
    """The number in the header by its name; one that is not known, or no number, is none."""
    model_gguf(tmp_path / "e.gguf", "bert", bert__pooling_type=kind)
    assert only(tmp_path).found.pooling == pooling


@pytest.mark.parametrize(
    ("name", "file_type", "quantization"),
    [
        ("m-Q4_K_M", 15, "Q4_K_M"),
        ("m-UD-Q4_K_XL", 15, "UD-Q4_K_XL"),
        ("m-Q8_0", 15, "Q4_K_M"),
        ("m", 1 | 1024, "F16"),
        ("m-IQ3_M", None, "IQ3_M"),
        ("m-bf16", 32, "BF16"),
        ("m-mxfp4", 38, "MXFP4"),
        ("m", 4, None),
        ("m", 5000, None),
        ("m", "many", None),
        ("m", None, None),
    ],
)
def test_quantization(tmp_path: Path, name: str, file_type: object, quantization: str | None) -> None:
    """The header counts, unless the name says more of the same; the name where the header says nothing."""
    metadata: dict[str, Any] = {} if file_type is None else {"general__file_type": file_type}
    model_gguf(tmp_path / f"{name}.gguf", **metadata)
    assert only(tmp_path).quantization == quantization


@pytest.mark.parametrize(
    ("file", "metadata", "bare"),
    [
        ("ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M.gguf", {}, "gemma-3-4b-it"),
        ("model-q4_0.gguf", {"general__name": "Phi 4 Mini"}, "phi-4-mini"),
        ("Q8_0.gguf", {"general__basename": "Llama", "general__size_label": "3B"}, "llama-3b"),
        ("my-folder/model.gguf", {}, "my-folder"),
        ("model.gguf/model.gguf", {"general__name": "model"}, "model"),
    ],
)
def test_a_name_without_meaning_gives_way(tmp_path: Path, file: str, metadata: dict[str, Any], bare: str) -> None:
    """To that in the header, then to the folder's."""
    model_gguf(tmp_path / file, **metadata)
    assert only(tmp_path).bare == bare


def test_a_split_model_is_one(tmp_path: Path) -> None:
    """The engine gets the first part; size and parameters are those of all."""
    parts = split_gguf(tmp_path / "Big-70B-Q4_K_M.gguf", 3)
    model = only(tmp_path)
    assert (model.path, model.files, model.bare) == (parts[0], tuple(parts), "big-70b")
    assert model.size_bytes == sum(part.stat().st_size for part in parts)
    assert model.found.parameters_b == (256 * 32 + 3 * 256 * 256) / 1e9


def test_a_split_model_that_is_incomplete_is_not_offered(tmp_path: Path) -> None:
    """Whichever part is missing, the first one too, it says which."""
    for name, gone in (("a", [2]), ("b", [1, 3])):
        parts = split_gguf(tmp_path / f"{name}.gguf", 3)
        for number in gone:
            parts[number - 1].unlink()
    findings = look(tmp_path)
    assert findings.models == []
    assert reasons(findings) == {
        "a-00001-of-00003.gguf": "incomplete: of its 3 parts 2 is missing",
        "b-00001-of-00003.gguf": "incomplete: of its 3 parts 1, 3 are missing",
    }


def test_a_name_that_claims_99999_parts(tmp_path: Path) -> None:
    """It is answered at once, and in few words."""
    model_gguf(tmp_path / "x-00001-of-99999.gguf")
    (reason,) = reasons(look(tmp_path)).values()
    assert "2, 3, 4, 5, 6 and 99993 more are missing" in reason


def test_a_download_that_goes_on_is_not_offered(tmp_path: Path) -> None:
    """Files of downloads have other names, or one beside them says so."""
    model_gguf(tmp_path / "a.gguf")
    (tmp_path / "a.gguf.aria2").touch()
    model_gguf(tmp_path / "b.gguf.downloadInProgress")
    findings = look(tmp_path)
    assert findings.models == []
    assert reasons(findings) == {"a.gguf": "incomplete: a.gguf.aria2 says that its download is not finished"}


def test_bad_files_are_named_and_the_rest_is_found(tmp_path: Path) -> None:
    """Cut short, hostile, of another kind, or no file at all: each with its reason, at once."""
    model_gguf(tmp_path / "good.gguf")
    cut = model_gguf(tmp_path / "cut.gguf")
    os.truncate(cut, cut.stat().st_size - 1000)
    os.truncate(model_gguf(tmp_path / "head.gguf"), 40)
    hostile_gguf(tmp_path / "counts.gguf")
    hostile_gguf(tmp_path / "tensors.gguf", tensors=2**50, entries=0)
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("version https://git-lfs.github.com/spec/v1")
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "self.gguf").symlink_to(tmp_path / "self.gguf")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    model_gguf(tmp_path / "lora.gguf", general__type="adapter")
    model_gguf(tmp_path / "what.gguf", general__architecture=7)
    findings = look(tmp_path)
    assert [model.bare for model in findings.models] == ["good"]
    assert reasons(findings) == {
        "cut.gguf": "it is cut short: it should go on for its tensors",
        "head.gguf": "it is cut short in its header",
        "counts.gguf": f"its header claims {2**60} entries",
        "tensors.gguf": f"its header claims {2**50} entries",
        "empty.gguf": "it is cut short in its header",
        "text.gguf": "it is no GGUF",
        "pipe.gguf": f"{tmp_path}/pipe.gguf is no file",
        "lora.gguf": "an adapter (LoRA), not a model",
        "what.gguf": "it names no architecture",
    }


def test_only_a_vocabulary(tmp_path: Path) -> None:
    """llama.cpp ships such files for its tests."""
    write_gguf(tmp_path / "ggml-vocab.gguf", {"general.architecture": "llama"})
    assert reasons(look(tmp_path)) == {"ggml-vocab.gguf": "it has no weights, only a vocabulary"}


def test_a_header_with_long_texts(tmp_path: Path) -> None:
    """Of what a registry would hold only the beginning is taken."""
    model_gguf(tmp_path / "model.gguf", general__license="x" * 10**6, general__name="n" * 10**6)
    model = only(tmp_path)
    assert len(str(model.license)) == 200
    assert len(model.bare) <= 120


# --- projectors


def pairs(findings: Findings) -> dict[str, str | None]:
    """Return models and the names of their projectors."""
    return {model.bare: model.projector.name if model.projector else None for model in findings.models}


def test_a_projector_beside_its_model(tmp_path: Path) -> None:
    """One without a name of its own belongs to the one model that it lies beside, in any quantization."""
    model_gguf(tmp_path / "Qwen3-VL-8B-Q4_K_M.gguf")
    model_gguf(tmp_path / "Qwen3-VL-8B-Q8_0.gguf")
    for precision in ("F32", "BF16", "F16"):
        projector_gguf(tmp_path / f"mmproj-{precision}.gguf")
    findings = look(tmp_path)
    assert [(model.projector and model.projector.name) for model in findings.models] == ["mmproj-F16.gguf"] * 2
    assert all(model.found.sees and not model.found.hears for model in findings.models)
    assert "chosen of 3 for its precision F16" in findings.models[0].notes[-1]


def test_metadata_pairs_before_names(tmp_path: Path) -> None:
    """Of two projectors of one width that the model could have by name, the header's base model decides."""
    url = "https://huggingface.co/org/gemma-3-4b-it"
    model_gguf(tmp_path / "gemma-3-4b-it-Q4_K_M.gguf", general__base_model__0__repo_url=url)
    projector_gguf(tmp_path / "mmproj-gemma-3-4b-it.gguf")
    projector_gguf(tmp_path / "other-f16.gguf", general__base_model__0__repo_url=url)
    (model,) = look(tmp_path).models
    assert model.projector == tmp_path / "other-f16.gguf"
    assert "repo_url is the model's" in model.notes[-1]


def test_the_whole_name_goes_before_a_part_of_it(tmp_path: Path) -> None:
    """A variant has its own projector where there is one."""
    for name in ("gemma-3-4b-it", "gemma-3-4b-it-qat"):
        model_gguf(tmp_path / f"{name}-Q4_0.gguf")
        projector_gguf(tmp_path / f"mmproj-{name}-f16.gguf")
    model_gguf(tmp_path / "gemma-3-4b-it-new-Q4_0.gguf")
    assert pairs(look(tmp_path)) == {
        "gemma-3-4b-it": "mmproj-gemma-3-4b-it-f16.gguf",
        "gemma-3-4b-it-qat": "mmproj-gemma-3-4b-it-qat-f16.gguf",
        "gemma-3-4b-it-new": "mmproj-gemma-3-4b-it-f16.gguf",
    }


def test_many_models_in_one_folder(tmp_path: Path) -> None:
    """Names tell whose a projector is; one without a name could be anybody's, and one of another width is nobody's."""
    for name in (
        "gemma-3-4b-it-Q4_K_M",
        "gemma-3-4b-it-qat-Q4_0",
        "qwen2-vl-2b-Q8_0",
        "qwen2-vl-7b-Q8_0",
        "plain-Q8_0",
    ):
        model_gguf(tmp_path / f"{name}.gguf")
    projector_gguf(tmp_path / "mmproj-gemma-3-4b-it-f16.gguf", clip__has_audio_encoder=True)
    projector_gguf(tmp_path / "qwen2-vl-2b-vision-f16.gguf")
    projector_gguf(tmp_path / "mmproj-qwen2-vl-7b-f16.gguf", width=512)
    projector_gguf(tmp_path / "mmproj-F16.gguf")
    findings = look(tmp_path)
    assert pairs(findings) == {
        "gemma-3-4b-it": "mmproj-gemma-3-4b-it-f16.gguf",
        "gemma-3-4b-it-qat": "mmproj-gemma-3-4b-it-f16.gguf",
        "qwen2-vl-2b": "qwen2-vl-2b-vision-f16.gguf",
        "qwen2-vl-7b": None,
        "plain": None,
    }
    assert {model.bare for model in findings.models if model.found.hears} == {"gemma-3-4b-it", "gemma-3-4b-it-qat"}


def test_a_projector_above_its_model(tmp_path: Path) -> None:
    """Large models lie in folders of their own, with the projector above them."""
    split_gguf(tmp_path / "Q4_K_M" / "big-vl-Q4_K_M.gguf", 2)
    projector_gguf(tmp_path / "mmproj-F16.gguf")
    (model,) = look(tmp_path).models
    assert model.projector == tmp_path / "mmproj-F16.gguf"


# --- folders


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    """Each folder is looked at once, and each file is one model, however many names it has."""
    model_gguf(tmp_path / "a" / "m.gguf")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "again.gguf").symlink_to(tmp_path / "a" / "m.gguf")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").mkdir()
    os.link(tmp_path / "a" / "m.gguf", tmp_path / "c" / "hard.gguf")
    (tmp_path / "round").symlink_to("round")
    assert len(look(tmp_path).models) == 1


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    """A file and a folder: both are named so that they can be found, and the rest goes on."""
    model_gguf(tmp_path / "good.gguf")
    folder = os.fsencode(tmp_path) + b"/b\xe9b\xe9"
    Path(os.fsdecode(folder)).mkdir()
    for bad in (folder + b"/m.gguf", os.fsencode(tmp_path) + b"/mod\xe8le.gguf"):
        Path(os.fsdecode(bad)).write_bytes((tmp_path / "good.gguf").read_bytes())
    findings = look(tmp_path)
    assert [model.bare for model in findings.models] == ["good"]
    assert reasons(findings) == dict.fromkeys(
        ("b\ufffdb\ufffd", "mod\ufffdle.gguf"), "its name is not UTF-8, which a registry cannot hold: rename it"
    )
    below = look(Path(os.fsdecode(folder)))
    assert (below.models, len(below.skipped)) == ([], 1)


def test_what_may_not_be_read(ordinary: Path) -> None:
    """A file and a folder without permission are named, and the rest goes on."""
    model_gguf(ordinary / "good.gguf")
    model_gguf(ordinary / "closed.gguf").chmod(0)
    (ordinary / "locked").mkdir(0o000)
    findings = look(ordinary)
    assert [model.bare for model in findings.models] == ["good"]
    assert reasons(findings) == {
        "closed.gguf": "Permission denied",
        "locked": "this folder cannot be read: Permission denied",
    }


def test_a_folder_that_goes_away(tmp_path: Path) -> None:
    """What the system refuses is a reason, not an exception: here a name that is longer than the system takes."""
    findings = look(tmp_path / ("x" * 5000))
    assert findings.models == []
    assert reasons(findings) == {"x" * 5000: "this folder cannot be read: File name too long"}


def test_what_is_no_disk_is_not_entered() -> None:
    """Whoever names the root of all does not look through the processes."""
    findings = look(Path("/proc"))
    assert (findings.models, findings.skipped) == ([], [])


def test_nothing_is_moved(tmp_path: Path) -> None:
    """A look changes no file."""
    model_gguf(tmp_path / "a" / "m.gguf")
    split_gguf(tmp_path / "b" / "s.gguf", 2)
    before = listing(tmp_path)
    assert len(look(tmp_path).models) == 2
    assert listing(tmp_path) == before


def test_an_ending_in_capitals(tmp_path: Path) -> None:
    """Such a file is a model like others; of parts in capitals llama.cpp finds only the first, so they are left out."""
    model_gguf(tmp_path / "one" / "Tiny-1B-Q8_0.GGUF")
    parts = split_gguf(tmp_path / "two" / "Big-70B-Q4_K_M.gguf", 2)
    for part in parts:
        part.rename(part.with_suffix(".GGUF"))
    findings = look(tmp_path)
    (model,) = findings.models
    assert model.path is not None
    assert (model.path.name, model.bare) == ("Tiny-1B-Q8_0.GGUF", "tiny-1b")
    assert is_gguf_name(model.path)
    assert [path.name for path in gguf_parts(parts[0].with_suffix(".GGUF"))] == [
        "Big-70B-Q4_K_M-00001-of-00002.GGUF",
        "Big-70B-Q4_K_M-00002-of-00002.GGUF",
    ]
    (reason,) = reasons(findings).values()
    assert "rename them so" in reason
