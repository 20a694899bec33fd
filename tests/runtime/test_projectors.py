"""Projectors that lie beside their model, and entries as they are in force."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from builders import entry
from rolecall.backends.base import Places
from rolecall.core.api_config import ApiConfig, LlmParams
from rolecall.core.models import ModelEntry
from rolecall.runtime.effective import Effective
from rolecall.runtime.projectors import belonging, may_have_one

QWEN = "Qwen2.5-VL-7B-Instruct-UD-Q4_K_XL.gguf"


@pytest.mark.parametrize(
    ("model", "others", "expected"),
    [
        (QWEN, [], None),
        (QWEN, ["mmproj-F16.gguf"], "mmproj-F16.gguf"),
        (QWEN, ["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
        (QWEN, ["mmproj-Q8_0.gguf", "mmproj-BF16.gguf"], "mmproj-BF16.gguf"),
        (QWEN, ["mmproj.gguf"], "mmproj.gguf"),
        (QWEN, ["anything_mmproj_at_all.gguf"], "anything_mmproj_at_all.gguf"),
        (QWEN, ["Qwen2.5-VL-7B-Instruct-IQ2_M.gguf", "mmproj-model-f16.gguf"], "mmproj-model-f16.gguf"),
        (QWEN, ["gemma-3-4b-it-Q4_K_M.gguf", "mmproj-F16.gguf"], None),
        (
            QWEN,
            ["gemma-3-4b-it-Q4_K_M.gguf", "mmproj-gemma-3-4b-it-f16.gguf", "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf"],
            "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf",
        ),
        (QWEN, ["Qwen2.5-VL-3B-Instruct-Q8_0.gguf", "Qwen2.5-VL-3B-Instruct-mmproj-f16.gguf"], None),
        ("phi-3.gguf", ["phi-4.gguf", "mmproj-phi-4.gguf"], None),
        ("a-vision.gguf", ["a.gguf", "mmproj-a-vision.gguf"], "mmproj-a-vision.gguf"),
        ("big-00001-of-00002.gguf", ["big-00002-of-00002.gguf", "mmproj-big-bf16.gguf"], "mmproj-big-bf16.gguf"),
        ("a-Q4_K_M.GGUF", ["b-Q4_K_M.gguf", "mmproj-a-F32.GGUF", "mmproj-a-q8_0.gguf"], "mmproj-a-q8_0.gguf"),
        ("x.i1-Q4_K_M.gguf", ["y.gguf", "x.mmproj-f16.gguf"], "x.mmproj-f16.gguf"),
        ("a.gguf", ["comm-project-7b.gguf"], None),
        ("tiny.MXFP4.gguf", ["tiny.mmproj-Q8_0.gguf"], "tiny.mmproj-Q8_0.gguf"),
    ],
)
def test_which_projector_belongs_to_a_model(model: str, others: list[str], expected: str | None) -> None:
    """One of the model's name but for the quantization; any, if no other model is in the folder; else none."""
    assert belonging(model, [model, *others]) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"backend": "vllm"},
        {"capabilities": ["text"]},
        {"backend_config": {"command": ["x"]}},
        {"backend_config": {"mmproj_path": "p.gguf"}},
        {"backend_config": {"mmproj_id": "p.gguf"}},
        {"backend_config": {"extra_args": ["--mmproj=/p.gguf"]}},
        {"backend_config": {"extra_args": ["--no-mmproj"]}},
        {"backend_config": {"env": {"LLAMA_ARG_MMPROJ": "/p.gguf"}}},
    ],
)
def test_for_whom_none_is_looked_for(fields: dict[str, Any]) -> None:
    """Who names one in any way, brings a command, is of another engine, or says that it reads text only."""
    assert not may_have_one(entry(**fields))
    assert may_have_one(entry())
    assert may_have_one(entry(capabilities=["text", "vision"]))


class Folder:
    """A folder of models, and entries in force over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own_context: int | None = None
        (path / "m.gguf").write_bytes(b"model")
        self.effective = Effective(Places(path, path), lambda _: self.own_context)

    def entry(self, **fields: Any) -> ModelEntry:
        return entry("m", backend_config={"model_path": "m.gguf"}, **fields)

    def of(self, known: ModelEntry, config: ApiConfig = ApiConfig()) -> ModelEntry:  # noqa: B008 - frozen
        return self.effective.of([known], config)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_projector_gives_its_model_eyes(folder: Folder) -> None:
    """An entry that says nothing of what it can do sees once a projector is there, and no longer when it is gone."""
    known = folder.entry()
    assert folder.of(known) is known
    (folder.path / "mmproj-m-f16.gguf").write_bytes(b"projector")
    seeing = folder.of(known)
    assert seeing.backend_config.mmproj_id == "mmproj-m-f16.gguf"
    assert "vision" in seeing.all_capabilities
    assert folder.of(known) is seeing
    (folder.path / "mmproj-m-f16.gguf").unlink()
    assert folder.of(known) is known


def test_a_model_without_its_projector_does_not_see(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """Vision that is only listed is not believed, so that pictures are refused before a load; it is said once."""
    known = folder.entry(capabilities=["text", "vision"])
    with caplog.at_level(logging.WARNING):
        assert "vision" not in folder.of(known).all_capabilities
        folder.of(known)
    assert [record.getMessage().count("no projector (mmproj) lies beside") for record in caplog.records] == [1]
    (folder.path / "mmproj.gguf").write_bytes(b"projector")
    assert "vision" in folder.of(known).all_capabilities


def test_models_that_are_not_there_are_left_alone(folder: Folder) -> None:
    """Nothing is known of what will lie beside them."""
    known = entry("x", backend_config={"model_path": "x.gguf"}, capabilities=["vision"])
    assert folder.of(known) is known
    folderless = entry("y", backend_config={"model_path": "a\0b.gguf"})
    assert folder.of(folderless) is folderless


def test_what_was_set_is_in_force(folder: Folder) -> None:
    """A context that was set holds for an entry without one, up to what the model's file says."""
    known, config = folder.entry(), ApiConfig(llm_params=LlmParams(ctx_size=8192))
    folder.own_context = 4096
    assert folder.of(known, config).context_tokens == 4096
    folder.own_context = None
    assert folder.of(known, config).context_tokens == 8192
    assert folder.of(known) is known
