"""What a repository offers by the names of its files, and which of it is meant."""

from __future__ import annotations

import pytest

from rolecall.core.hub_listing import Choice, HubFile, NoSuchChoice, choices, spec, unsafe, wanted


def listing(*paths: str) -> list[HubFile]:
    """Return files of which each is larger than the one before."""
    return [HubFile(path, 1000 + number) for number, path in enumerate(paths)]


def found(*paths: str) -> dict[str, Choice]:
    return {choice.label: choice for choice in choices(listing(*paths))}


def paths(choice: Choice) -> list[str]:
    return [file.path for file in choice.all_files]


def test_each_quantization_is_a_choice_smallest_first() -> None:
    """GGUF files are told apart by the quantization in their names; other files are no models."""
    files = [HubFile("m-Q8_0.gguf", 900), HubFile("m-UD-Q4_K_XL.gguf", 500), HubFile("README.md", 10)]
    files += [HubFile("m-imatrix.gguf", 3), HubFile("odd.gguf", 950), HubFile(".hidden/m-Q2_K.gguf", 1)]
    assert [choice.label for choice in choices(files)] == ["UD-Q4_K_XL", "Q8_0", "odd"]
    assert choices([HubFile("README.md", 10)]) == ()


def test_parts_are_one_model_and_a_part_that_is_missing_makes_it_none() -> None:
    """Split files are one choice, in the order of their numbers; one of two parts alone cannot be run."""
    offered = found(
        "Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf", "m-Q4_0-00001-of-00002.gguf", "m-F16.gguf"
    )
    assert sorted(offered) == ["F16", "Q8_0"]
    assert paths(offered["Q8_0"]) == ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"]
    assert offered["Q8_0"].model_bytes == offered["Q8_0"].size_bytes == 2001


@pytest.mark.parametrize(
    ("projectors", "taken"),
    [
        (["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
        (["mmproj-BF16.gguf", "mmproj-Q8_0.gguf"], "mmproj-BF16.gguf"),
        (["mmproj-seer-4b.gguf", "mmproj-F16.gguf"], "mmproj-seer-4b.gguf"),
        (["seer-4b-it.mmproj-f16.gguf"], "seer-4b-it.mmproj-f16.gguf"),
        (["clip-mmproj-other.gguf"], "clip-mmproj-other.gguf"),
        ([], None),
    ],
)
def test_the_projector_that_belongs_to_a_model(projectors: list[str], taken: str | None) -> None:
    """A projector of the model's name goes first, then one of no name, then the precision that runs everywhere."""
    choice = found("seer-4b-it-Q4_K_M.gguf", *projectors)["Q4_K_M"]
    assert (choice.projector.path if choice.projector else None) == taken
    if taken:
        assert paths(choice) == ["seer-4b-it-Q4_K_M.gguf", taken]
        assert choice.size_bytes > choice.model_bytes


def test_a_projector_among_several_models_belongs_to_its_namesake() -> None:
    """Where a repository has more models than one, a projector is only given to the one that it is named after."""
    offered = {
        choice.first.path: choice
        for choice in choices(listing("seer-2b-Q4_0.gguf", "reader-1b-Q4_0.gguf", "mmproj-seer-2b-F16.gguf"))
    }
    assert offered["seer-2b-Q4_0.gguf"].projector is not None
    assert offered["reader-1b-Q4_0.gguf"].projector is None


def test_a_folder_for_vllm() -> None:
    """Configuration, tokenizer and weights are one choice; the same weights in other forms stay away."""
    offered = found(
        "config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    )
    assert offered["safetensors"].format == "safetensors"
    assert offered["safetensors"].model_bytes == 2005
    more = found(
        "config.json",
        "model.safetensors",
        "consolidated.safetensors",
        "1_Pooling/config.json",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "vocab.txt",
        ".rolecall.json",
    )
    assert paths(more["safetensors"]) == ["1_Pooling/config.json", "config.json", "model.safetensors", "vocab.txt"]
    assert paths(found("config.json", "weights.safetensors")["safetensors"]) == ["config.json", "weights.safetensors"]
    assert found("config.json") == found("model.safetensors") == {}


@pytest.mark.parametrize("name", ["Q4_K_M", "q4_k_m", "m-Q4_K_M.gguf", "sub/m-q4_k_m.GGUF"])
def test_a_quantization_or_a_file_is_named(name: str) -> None:
    """Quantizations and files are named in any case, a file also without its folder."""
    assert wanted(choices(listing("sub/m-Q4_K_M.gguf", "m-Q8_0.gguf")), name).label == "Q4_K_M"


def test_unsloths_names_count_where_there_is_no_plain_one() -> None:
    """``Q4_K_XL`` finds ``UD-Q4_K_XL``, but a plain one goes first."""
    both = choices(listing("m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"))
    assert wanted(both, "q4_k_m").label == "Q4_K_M"
    assert wanted(both, "ud-q4_k_m").label == "UD-Q4_K_M"
    assert wanted(both[:1], "q4_k_m").label == "UD-Q4_K_M"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Q5_0", "there is no Q5_0; it has Q4_0, Q8_0"),
        ("Q4_0", "may be each of a-Q4_0.gguf, b-Q4_0.gguf"),
        ("mmproj-F16.gguf", "comes with its model"),
    ],
)
def test_what_is_not_one_model_is_refused(name: str, reason: str) -> None:
    """The refusal says what there is."""
    with pytest.raises(NoSuchChoice, match=reason):
        wanted(choices(listing("a-Q4_0.gguf", "b-Q4_0.gguf", "a-Q8_0.gguf", "mmproj-F16.gguf")), name)
    with pytest.raises(NoSuchChoice, match="nothing that is run here"):
        wanted((), "Q4_0")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "../m.gguf",
        "a/../../m.gguf",
        "/etc/passwd",
        "C:/m.gguf",
        "a\\b.gguf",
        "a//b.gguf",
        "./m.gguf",
        "a/",
        "m\0.gguf",
        "m\n.gguf",
        "m\x1b[2J.gguf",
        "m\ud800.gguf",
        "m" * 401,
        "é" * 130 + ".gguf",
    ],
)
def test_names_that_lead_elsewhere_are_unsafe(path: str) -> None:
    """What would leave the folder, drive a terminal or exceed a file system is told."""
    assert unsafe(path) is not None


@pytest.mark.parametrize("path", ["m.gguf", "BF16/m-00001-of-00002.gguf", "größe.gguf", "a..b.gguf", "..m.gguf"])
def test_ordinary_names_are_safe(path: str) -> None:
    """Folders, dots within names and letters of any language are ordinary."""
    assert unsafe(path) is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", ("org/name", None)),
        (" org/name:Q4_K_M ", ("org/name", "Q4_K_M")),
        ("org/name:sub/file.gguf", ("org/name", "sub/file.gguf")),
        ("https://huggingface.co/org/name/tree/main", ("org/name", None)),
        ("http://127.0.0.1:80/org/name", ("org/name", None)),
        ("hf.co/org/name:q8_0", ("org/name", "q8_0")),
        ("hf://models/org/name", ("org/name", None)),
        ("name", ("name", None)),
        ("org/name:", ("org/name", None)),
    ],
)
def test_how_a_model_is_named(text: str, meant: tuple[str, str | None]) -> None:
    """A repository with a quantization or file after a colon; a page's address is taken as well."""
    assert spec(text) == meant
    assert HubFile("a", 1, "5" * 64).key == "5" * 64
    assert HubFile("a", 1, None, "6" * 40).key == "6" * 40
    assert HubFile("a", 1).key == ""
