"""Names of models that were found: what is taken from a file's name, and how two of one name are told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.model_names import (
    bare_name,
    free_name,
    full_name,
    is_named_after,
    is_projector_name,
    label_bits,
    names,
    part_names,
    projector_rank,
    size_b,
    split_label,
    split_part,
    unquantized_name,
    without_mark,
)


@pytest.mark.parametrize(
    ("stem", "bare", "label"),
    [
        ("Qwen3-VL-8B-Instruct-Q4_K_M", "qwen3-vl-8b-instruct", "Q4_K_M"),
        ("gemma-3-4b-it-q4_0", "gemma-3-4b-it", "Q4_0"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL", "qwen3-30b-a3b", "UD-Q4_K_XL"),
        ("qwen2.5-7b-instruct.Q5_K_S", "qwen2.5-7b-instruct", "Q5_K_S"),
        ("gpt-oss-20b-mxfp4", "gpt-oss-20b", "MXFP4"),
        ("x-MXFP4_MOE", "x", "MXFP4_MOE"),
        ("bge-small-en-v1.5-f32", "bge-small-en-v1.5", "F32"),
        ("Phi-3-mini-4k-instruct-q4", "phi-3-mini-4k-instruct", "Q4"),
        ("model.IQ2_XXS", "model", "IQ2_XXS"),
        ("IQ4_XS", "", "IQ4_XS"),
        ("a-Q4_K_M-Q8_0", "a-q4_k_m", "Q8_0"),
        ("plain", "plain", None),
        ("Some Model (v2)-GGUF", "some-model-v2", None),
        ("Modèle", "modele", None),
        ("ünï 模型-F16", "uni", "F16"),
    ],
)
def test_a_file_name_is_taken_apart(stem: str, bare: str, label: str | None) -> None:
    """The last name of a quantization goes; the rest is lower case with plain letters."""
    rest, found = split_label(stem)
    assert (bare_name(rest), found) == (bare, label)


def test_parts_of_a_split_model() -> None:
    """A part has a number and a count; any other name has none."""
    assert split_part("m-Q4_K_M-00002-of-00003") == ("m-Q4_K_M", 2, 3)
    assert split_part("m-2-of-3") is None
    assert part_names("m-00001-of-00002.GGUF") == ["m-00001-of-00002.GGUF", "m-00002-of-00002.GGUF"]
    assert part_names("m-00001-of-00000.gguf") == ["m-00001-of-00000.gguf"]
    assert part_names("m-00002-of-00002.gguf") == ["m-00002-of-00002.gguf"]
    assert part_names("m") == ["m"]


@pytest.mark.parametrize(
    ("label", "bits"),
    [("UD-Q4_K_XL", 4), ("iq2_xxs", 2), ("BF16", 16), ("MXFP4", 4), ("TQ1_0", 1), ("F32", 32), ("safetensors", 0)],
)
def test_the_bits_that_a_label_states(label: str, bits: int) -> None:
    """They are its first number."""
    assert label_bits(label) == bits


def test_names_of_projectors() -> None:
    """The mark stands between separators: a model may have such letters in its name."""
    assert [is_projector_name(stem) for stem in ("mmproj", "x.mm-proj-F16", "x_mmproj", "comm-project-7b")] == [
        *(True, True, True),
        False,
    ]
    assert without_mark("gemma-3-mmproj-model") == "gemma-3-model"
    assert (without_mark("mmproj-demo-vision"), without_mark("demo-vision")) == ("-demo-vision", "demo")
    assert sorted(["F32", "odd", "F16", "Q8_0", "BF16"], key=projector_rank) == ["F16", "BF16", "Q8_0", "F32", "odd"]
    assert projector_rank(None) == 4
    assert is_named_after("a-4b-it-qat", "a-4b-it")
    assert is_named_after("a", "a")
    assert not is_named_after("a-2b", "a-7b")


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("qwen3-vl-8b-instruct-fp8", "qwen3-vl-8b-instruct"),
        ("qwen2.5-7b-gptq-int4", "qwen2.5-7b"),
        ("llama-3-8b-quantized.w4a16", "llama-3-8b"),
        ("x-fp8-dynamic", "x"),
        ("x-bnb-4bit", "x"),
        ("x-8b", "x-8b"),
    ],
)
def test_a_quantization_at_the_end_of_a_name_goes(name: str, rest: str) -> None:
    """What stands in parentheses need not stand in the name as well."""
    assert unquantized_name(name) == rest


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Mixtral-8x7B", 56),
        ("qwen3-30b-a3b", 30),
        ("gemma-3-270m-it", 0.27),
        ("qwen2.5vl-8.3b", 8.3),
        ("phi-4", None),
        ("e4b", None),
    ],
)
def test_the_size_that_a_name_states(name: str, billions: float | None) -> None:
    """In billions; what is active of a mixture is not the size."""
    assert size_b(name) == billions


def test_names_are_told_apart() -> None:
    """First by who a model is from, then by what is left, then by a number."""
    assert full_name("m", None) == "m"
    assert list(names("m-8b", "q4_k_m", ["Unsloth", "", "a1b2c3"])) == [
        "m-8b_(Q4_K_M)",
        "m-8b-unsloth_(Q4_K_M)",
        "m-8b_(Q4_K_M)",
        "m-8b-a1b2c3_(Q4_K_M)",
    ]
    taken: set[str] = set()
    for expected in ("m_(F16)", "m-org_(F16)", "m-2_(F16)", "m-3_(F16)"):
        assert free_name("m", "F16", ["org"], taken) == expected
        taken.add(expected)


@given(st.text(max_size=60))
def test_any_text_becomes_a_name_or_nothing(text: str) -> None:
    """Of letters, digits and a few signs, the same when it is made twice."""
    once = bare_name(text)
    assert set(once) <= set("abcdefghijklmnopqrstuvwxyz0123456789.+_-")
    assert len(once) <= 120
    split_label(text)
