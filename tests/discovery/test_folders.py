"""Folders of Hugging Face as models, and the cache of its hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from model_places import CONFIG, into_hub, model_folder, model_gguf, projector_gguf, safetensors
from rolecall.discovery.found import Model
from rolecall.discovery.places import Place
from rolecall.discovery.scan import Findings, scan

FP8_GROUP = {"group_0": {"weights": {"num_bits": 8, "type": "float"}, "input_activations": {"num_bits": 8}}}
INT_GROUP = {"group_0": {"weights": {"num_bits": 4, "type": "int"}, "input_activations": None}}


def look(folder: Path) -> Findings:
    """Scan one folder."""
    return scan([Place("folder", folder)])


def only(folder: Path) -> Model:
    """Return the one model in a folder, which must be all that is found."""
    findings = look(folder)
    assert findings.skipped == []
    (model,) = findings.models
    return model


def reason(findings: Findings) -> str:
    """Return why the one thing that was found is not offered."""
    assert findings.models == []
    (skipped,) = findings.skipped
    return skipped.reason


def test_what_a_folder_says(tmp_path: Path) -> None:
    """Class, type, context, size, template and license; vLLM gets the folder."""
    path = model_folder(tmp_path / "Qwen3-0.6B", parts=2)
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Qwen3")
    (path / "original").mkdir()
    (path / "onnx").mkdir()
    model = only(tmp_path)
    assert (model.bare, model.quantization, model.backend, model.path) == ("qwen3-0.6b", "bf16", "vllm", path)
    assert (model.context_tokens, model.family, model.license) == (40960, "qwen3", "apache-2.0")
    assert (model.found.kinds, model.found.parameters_b) == (("Qwen3ForCausalLM",), 0.6)
    assert model.size_bytes == sum(file.stat().st_size for file in model.files) > 2**21
    assert "messages" in model.found.template


@pytest.mark.parametrize(
    ("name", "given", "quantization", "bare"),
    [
        ("m-AWQ", {"quant_method": "awq", "bits": 4}, "awq", "m"),
        ("m-GPTQ-Int4", {"quant_method": "gptq", "bits": 4}, "gptq", "m"),
        ("m-FP8", {"quant_method": "fp8"}, "fp8", "m"),
        ("m-FP8-Dynamic", {"quant_method": "compressed-tensors", "config_groups": FP8_GROUP}, "fp8", "m"),
        ("m-quantized.w4a16", {"quant_method": "compressed-tensors", "config_groups": INT_GROUP}, "w4a16", "m"),
        ("m-NVFP4", {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4", "m"),
        ("m", {"quant_method": "compressed-tensors", "config_groups": [1]}, "compressed-tensors", "m"),
        (
            "m",
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": 7}}},
            "compressed-tensors",
            "m",
        ),
        ("gpt-oss-20b", {"quant_method": "mxfp4"}, "mxfp4", "gpt-oss-20b"),
        ("m-bnb-4bit", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb-4bit", "m"),
        ("m", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "m"),
        ("m", {"quant_method": "fbgemm_fp8"}, "fp8", "m"),
        ("m", {"quant_method": 7}, "quantized", "m"),
        ("m-4bit", {"group_size": 64, "bits": 4}, "mlx", "m"),
        ("m", {}, "quantized", "m"),
        ("m-BF16", None, "bf16", "m"),
    ],
)
def test_quantization(tmp_path: Path, name: str, given: dict[str, Any] | None, quantization: str, bare: str) -> None:
    """By the configuration; what the name says of it goes into the parentheses."""
    model_folder(tmp_path / name, {**CONFIG, "quantization_config": given})
    model = only(tmp_path)
    assert (model.quantization, model.bare) == (quantization, bare)


@pytest.mark.parametrize(
    ("dtype", "quantization"), [("F16", "fp16"), ("F32", "fp32"), ("F8_E4M3", "fp8"), ("I8", "i8")]
)
def test_weights_that_are_not_quantized(tmp_path: Path, dtype: str, quantization: str) -> None:
    """By the type of most of the weights."""
    model_folder(tmp_path / "m", dtype=dtype)
    assert only(tmp_path).quantization == quantization


def test_a_quantization_beside_the_configuration(tmp_path: Path) -> None:
    """NVIDIA's tool writes a file of its own."""
    model_folder(tmp_path / "m", hf_quant_config={"quantization": {"quant_algo": "FP8"}})
    assert only(tmp_path).quantization == "fp8"


@pytest.mark.parametrize(
    ("config", "files", "senses"),
    [
        ({}, {"preprocessor_config": {"image_processor_type": "X"}}, (True, False)),
        ({}, {"preprocessor_config": {"image_mean": [0.5]}}, (True, False)),
        ({}, {"processor_config": {"image_processor": {}}}, (True, False)),
        ({"vision_config": {}}, {"processor_config": {"processor_class": "X"}}, (True, False)),
        ({"vision_config": {}}, {}, (False, False)),
        ({}, {"preprocessor_config": {"feature_extractor_type": "Whisper"}}, (False, True)),
        ({"thinker_config": {"audio_config": {}, "vision_config": {}}}, {"processor_config": {"a": 1}}, (True, True)),
        ({"vision_config": 7}, {"preprocessor_config": ["image_mean"]}, (False, False)),
    ],
)
def test_a_processor_makes_it_see(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], senses: tuple[bool, bool]
) -> None:
    """Images and sound need a processor; a configuration alone does not make one."""
    model_folder(tmp_path / "m", {**CONFIG, **config}, **files)
    found = only(tmp_path).found
    assert (found.sees, found.hears) == senses


def test_sentence_transformers_embed(tmp_path: Path) -> None:
    """How they pool stands in a folder below, which is no model of its own."""
    path = model_folder(tmp_path / "bge-m3", {"architectures": ["XLMRobertaModel"]}, template="", modules=[])
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    model_folder(path / "0_Transformer")
    assert only(tmp_path).found.pooling == "cls"
    (path / "1_Pooling" / "config.json").write_text("[")
    assert only(tmp_path).found.pooling == "mean"


def test_the_text_model_of_a_larger_one_tells_the_context(tmp_path: Path) -> None:
    """Models that see have a configuration in the configuration."""
    model_folder(tmp_path / "m", {"model_type": "qwen3_vl", "text_config": {"max_position_embeddings": 262144}})
    model = only(tmp_path)
    assert (model.context_tokens, model.family) == (262144, "qwen3_vl")


def test_a_folder_without_a_name(tmp_path: Path) -> None:
    """What the configuration calls it, else the folder above."""
    model_folder(tmp_path / "a" / "model", {**CONFIG, "_name_or_path": "/data/Mistral-7B/"})
    model_folder(tmp_path / "Phi-4" / "checkpoint-500", {**CONFIG, "_name_or_path": 7})
    assert [model.bare for model in look(tmp_path).models] == ["phi-4", "mistral-7b"]


# --- what makes no sense


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "what should be a JSON object is none"),
        ("7", "what should be a JSON object is none"),
        ("{", "what should be JSON is none"),
        ("", "what should be JSON is none"),
        ("[" * 100_000, "what should be JSON is none"),
        ('{"a": ' + "9" * 5000 + "}", "what should be JSON is none"),
        (json.dumps({**CONFIG, "max_position_embeddings": "many"}), "max_position_embeddings is 'many'"),
        (json.dumps({**CONFIG, "max_position_embeddings": -1}), "max_position_embeddings is -1"),
        (json.dumps({**CONFIG, "quantization_config": "awq"}), "its quantization_config is no object"),
        (" " * (4 * 2**20 + 1) + "{}", "{folder}/config.json is missing, or too large"),
    ],
)
def test_a_configuration_with_surprises(tmp_path: Path, content: str, why: str) -> None:
    """No object, no JSON, too deep, too large, or with nonsense where a number should be: a reason, and it goes on."""
    path = model_folder(tmp_path / "m")
    (path / "config.json").write_text(content)
    assert reason(look(tmp_path)) == why.format(folder=path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": 7, "architectures": "x", "text_config": [], "vision_config": None},
        {"architectures": [1, None, "A"], "auto_map": {"x": []}, "_name_or_path": {}},
        {"text_config": {"max_position_embeddings": None}},
    ],
)
def test_wrong_types_that_do_not_matter(tmp_path: Path, config: dict[str, Any]) -> None:
    """What is not needed may be of any type."""
    model_folder(tmp_path / "m", config)
    assert only(tmp_path).bare == "m"


def test_a_configuration_that_is_a_pipe(tmp_path: Path) -> None:
    """It is not waited for; a model card that is one says nothing."""
    path = model_folder(tmp_path / "m")
    os.mkfifo(path / "README.md")
    assert only(tmp_path).license is None
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")
    assert "is missing, or too large" in reason(look(tmp_path))


def test_weights_that_are_cut_short(tmp_path: Path) -> None:
    """A copy that was broken off is noticed by the header."""
    path = model_folder(tmp_path / "m")
    os.truncate(path / "model.safetensors", 1000)
    assert "cut short" in reason(look(tmp_path))


@pytest.mark.parametrize("named", [{"w": "../x.safetensors"}, {"w": 7}, [], None])
def test_an_index_that_names_other_files(tmp_path: Path, named: Any) -> None:
    """Nothing outside of the folder is looked at."""
    path = model_folder(tmp_path / "m", parts=2)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    assert reason(look(tmp_path)) == "model.safetensors.index.json names no files of this folder"


def test_parts_that_are_missing(tmp_path: Path) -> None:
    """By the index, or by the numbers in the names; a link that leads nowhere counts as missing."""
    path = model_folder(tmp_path / "m", parts=3)
    (path / "model-00002-of-00003.safetensors").unlink()
    expected = "incomplete: 1 of its 3 parts are missing (model-00002-of-00003.safetensors)"
    assert reason(look(tmp_path)) == expected
    (path / "model-00002-of-00003.safetensors").symlink_to("nowhere")
    (path / "model.safetensors.index.json").unlink()
    assert reason(look(tmp_path)) == expected


def test_only_an_index(tmp_path: Path) -> None:
    """Nothing of the weights is there."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    assert reason(look(tmp_path)) == "it has no weights"


def test_older_weights_count(tmp_path: Path) -> None:
    """A folder with PyTorch's files alone is a model as well; files of another kind do not make one."""
    path = model_folder(tmp_path / "m")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert only(tmp_path).files == (path / "pytorch_model.bin",)
    (path / "pytorch_model.bin").rename(path / "training_args.bin")
    assert look(tmp_path).models == []


def test_what_is_no_model(tmp_path: Path) -> None:
    """Pipelines that make pictures, with their parts, and adapters are left out as a whole."""
    model_folder(tmp_path / "sdxl" / "text_encoder")
    (tmp_path / "sdxl" / "model_index.json").write_text("{}")
    safetensors(tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    findings = look(tmp_path)
    assert findings.models == []
    assert [each.reason.partition(",")[0] for each in findings.skipped] == [
        "an adapter (LoRA)",
        "a pipeline that makes pictures (diffusers)",
    ]


# --- the cache of the hub


def test_a_repository_of_the_cache(tmp_path: Path) -> None:
    """It is known by its repository; the folder is the revision's, whose files are links."""
    snapshot = into_hub(tmp_path / "hub", "Qwen/Qwen3-VL-8B-Instruct-FP8", model_folder(
        tmp_path / "x", {**CONFIG, "quantization_config": {"quant_method": "fp8"}}, parts=2
    ))  # fmt: skip
    model = only(tmp_path / "hub")
    assert (model.bare, model.quantization) == ("qwen3-vl-8b-instruct", "fp8")
    assert (model.path, model.ids, model.owners[0]) == (snapshot, ("Qwen/Qwen3-VL-8B-Instruct-FP8",), "Qwen")


def test_a_revision_that_is_named_itself(tmp_path: Path) -> None:
    """Whoever names the folder of a revision gets the repository's name all the same."""
    snapshot = into_hub(tmp_path / "hub", "org/My-8B", model_folder(tmp_path / "x"))
    assert only(snapshot).bare == "my-8b"


def test_weights_of_mlx(tmp_path: Path) -> None:
    """Older tools wrote their quantization under a key of its own."""
    model_folder(tmp_path / "m", {**CONFIG, "quantization": {"group_size": 64, "bits": 4}})
    assert only(tmp_path).quantization == "mlx"


def test_only_the_newest_revision_counts(tmp_path: Path) -> None:
    """That of main; an earlier one with the same files is not a second model."""
    hub = tmp_path / "hub"
    into_hub(hub, "org/m", model_folder(tmp_path / "1"), revision="b" * 40, ref=None)
    newest = into_hub(hub, "org/m", model_folder(tmp_path / "2"), revision="a" * 40)
    assert only(hub).path == newest


def test_an_older_revision_that_is_complete(tmp_path: Path) -> None:
    """If a newer one is not finished, the one before is offered, and nothing is said of the other."""
    hub = tmp_path / "hub"
    older = into_hub(hub, "org/m", model_folder(tmp_path / "1"), revision="b" * 40, ref=None)
    newer = model_folder(tmp_path / "2")
    (newer / "model.safetensors").unlink()
    (newer / "model.safetensors").symlink_to("nowhere")
    into_hub(hub, "org/m", newer, revision="a" * 40)
    (hub / "models--org--m" / "snapshots" / ("a" * 40) / "model.safetensors").symlink_to("../../blobs/none")
    assert only(hub).path == older


def test_a_download_that_is_not_finished(tmp_path: Path) -> None:
    """Blobs without a revision, or a revision that lacks some, are not offered."""
    folder = tmp_path / "models--org--m"
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (folder / "blobs").mkdir()
    assert look(tmp_path).skipped == []
    (folder / "blobs" / "abc.incomplete").touch()
    assert reason(look(tmp_path)) == "incomplete: its download is not finished"
    snapshot = into_hub(tmp_path, "org/n", model_folder(tmp_path / "x", parts=2))
    Path(os.path.realpath(snapshot / "model-00001-of-00002.safetensors")).unlink()
    assert [each.reason for each in look(tmp_path / "models--org--n").skipped] == [
        "incomplete: 1 of its 2 parts are missing (model-00001-of-00002.safetensors)"
    ]


def test_gguf_files_of_several_revisions(tmp_path: Path) -> None:
    """Each quantization comes from the newest revision that has it, with the projector of that revision."""
    hub = tmp_path / "hub"
    model_gguf(tmp_path / "1" / "m-vl-Q8_0.gguf", general__file_type=7)
    projector_gguf(tmp_path / "1" / "mmproj-F16.gguf")
    into_hub(hub, "org/m-vl-GGUF", tmp_path / "1", revision="b" * 40, ref=None)
    model_gguf(tmp_path / "2" / "m-vl-Q4_K_M.gguf", general__file_type=15)
    projector_gguf(tmp_path / "2" / "mmproj-F16.gguf")
    into_hub(hub, "org/m-vl-GGUF", tmp_path / "2", revision="a" * 40)
    findings = look(hub)
    assert findings.skipped == []
    assert [(model.ids, model.projector and model.projector.parent.name[0]) for model in findings.models] == [
        (("org/m-vl-GGUF:Q4_K_M",), "a"),
        (("org/m-vl-GGUF:Q8_0",), "b"),
    ]


def test_surprises_in_the_cache(tmp_path: Path) -> None:
    """References that are no text or lead nowhere, files instead of folders, data sets: the models are found."""
    into_hub(tmp_path, "org/m", model_folder(tmp_path / "x"))
    folder = tmp_path / "models--org--m"
    (folder / "refs" / "main").write_bytes(b"\xff" * 1000)
    (folder / "refs" / "pr").mkdir()
    os.mkfifo(folder / "refs" / "pipe")
    (folder / "snapshots" / "file").touch()
    (tmp_path / "models--a").mkdir()
    (tmp_path / "models--b").touch()
    model_folder(tmp_path / "datasets--org--d" / "snapshots" / "x")
    assert only(tmp_path).bare == "m"


def test_a_pipeline_in_the_cache(tmp_path: Path) -> None:
    """What makes pictures is left out there as well."""
    model_folder(tmp_path / "x" / "text_encoder")
    (tmp_path / "x" / "model_index.json").write_text("{}")
    into_hub(tmp_path / "hub", "org/sdxl", tmp_path / "x")
    assert reason(look(tmp_path / "hub")).startswith("a pipeline that makes pictures")


def test_folders_that_may_not_be_read(ordinary: Path) -> None:
    """A repository, its revisions, a configuration, a card: each is told of, or does without."""
    hub = ordinary / "hub"
    for name in ("a", "b", "c", "d"):
        into_hub(hub, f"org/{name}", model_folder(ordinary / name))
    (hub / "models--org--a" / "snapshots").chmod(0)
    (hub / "models--org--b").chmod(0)
    Path(os.path.realpath(hub / "models--org--c" / "snapshots" / ("a" * 40) / "config.json")).chmod(0)
    (hub / "models--org--d" / "refs").chmod(0)
    findings = look(hub)
    assert [model.bare for model in findings.models] == ["d"]
    assert [each.reason for each in findings.skipped] == [
        "this folder cannot be read: Permission denied",
        "this folder cannot be read: Permission denied",
        "Permission denied",
    ]
    for folder in ("models--org--a/snapshots", "models--org--b", "models--org--d/refs"):
        (hub / folder).chmod(0o700)


def test_a_cache_within_a_cache(tmp_path: Path) -> None:
    """A link from elsewhere into the cache is the model that is known already."""
    model_gguf(tmp_path / "x" / "m.gguf")
    snapshot = into_hub(tmp_path / "hub", "org/m-GGUF", tmp_path / "x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link.gguf").symlink_to(snapshot / "m.gguf")
    findings = scan([Place("huggingface", tmp_path / "hub"), Place("folder", tmp_path / "mine")])
    assert [model.path for model in findings.models] == [snapshot / "m.gguf"]
