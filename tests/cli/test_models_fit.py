"""``rolecall models fit``: what models need on some cards, with which context, and beside which others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cli.invoke import answer, call, configured, environment, in_terminal, rolecall
from gguf_shapes import HEAD, transformer, write_gguf
from model_places import model_folder, projector_gguf, split_gguf
from rolecall.core.footprint import MB
from simulator import nvml

KV_BYTES = 16 * 2 * 8 * HEAD * 2
"""Of a token in `large`: 16 layers, keys and values of 8 heads, 16 bits."""


def large(path: Path) -> Path:
    """Write a model of 270 MB that caches 32 KB per token and was trained for 32768."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_gguf(path, *transformer("llama", 16, 1024, 16, 8, 4096, 8000))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that is in no registry."""
    return large(tmp_path / "models" / "large.gguf")


@pytest.fixture
def here(tmp_path: Path, model: Path) -> tuple[str, ...]:
    """The options of a folder with three models of one file: as it is, with 4096 tokens, and declared too large."""
    config = {"model_path": str(model)}
    entries: list[dict[str, Any]] = [
        {"name": "whole", "backend": "llama_cpp", "backend_config": config, "role_priority": {"chat": 10}},
        {"name": "short", "backend": "llama_cpp", "backend_config": config, "context_length": 4096, "roles": ["chat"]},
        {"name": "heavy", "backend": "llama_cpp", "backend_config": config, "vram_estimate_mb": 10**7},
        {"name": "gone", "backend": "llama_cpp", "backend_config": {"model_path": "/no/such/file.gguf"}},
        {"name": "elsewhere", "backend": "openai", "backend_config": {"base_url": "http://127.0.0.1:9/v1"}},
    ]
    return configured(tmp_path, entries)


def fit(*arguments: str | Path) -> dict[str, Any]:
    """Return the one model that a command tells of; whether it fits or not."""
    result = call("models", "fit", *arguments, "--json")
    assert result.exit_code in (0, 1), result.output
    found: dict[str, Any] = json.loads(result.stdout)["models"][0]
    return found


# -- one truth


@pytest.mark.parametrize("name", ["whole", "short", "heavy"])
def test_the_figures_are_those_of_the_scheduler(here: tuple[str, ...], name: str) -> None:
    """What `models show` says that a model is given is what it needs here; another estimate there is none."""
    shown = answer("models", "show", name, *here)
    found = fit(name, *here)
    assert (found["needs_mb"], found["source"]) == (shown["given_mb"], shown["footprint_source"])
    assert {key: shown["computed"][key] for key in found["computed"]} == found["computed"]


def test_all_that_rolecall_loads_is_listed(here: tuple[str, ...]) -> None:
    """The best first; not what is not installed, and not what others run."""
    report = answer("models", "fit", *here)
    assert [each["name"] for each in report["models"]] == ["short", "whole", "heavy"]
    assert report["together"] == [
        {"models": ["short", "whole"], "mb": sum(each["needs_mb"] for each in report["models"][:2])}
    ]


# -- other sizes


@pytest.mark.parametrize(
    ("options", "context", "tokens", "request_tokens"),
    [
        ((), 4096, 4096, 4096),
        (("--context", "1000"), 1024, 1024, 1024),
        (("--context", "65536", "--parallel", "2"), 65536, 65536, 65536),
        (("--parallel", "16"), 4096, 4096, 4096),
    ],
)
def test_sizes_are_asked_for(
    here: tuple[str, ...], options: tuple[str, ...], context: int, tokens: int, request_tokens: int
) -> None:
    """The KV cache is that of the context, which all slots share as rolecall starts llama-server."""
    found = fit("short", *options, *here)
    assert found["computed"]["kv_cache_mb"] == context * KV_BYTES / MB
    assert (found["context_tokens"], found["request_tokens"]) == (tokens, request_tokens)


def test_slots_of_their_own_divide_the_context(tmp_path: Path, model: Path) -> None:
    """An entry with ``-np`` goes on without one cache for all: each request has its part."""
    config = {"model_path": str(model), "extra_args": ["-c", "8192", "-np", "2"]}
    here = configured(tmp_path, [{"name": "divided", "backend": "llama_cpp", "backend_config": config}])
    found = fit("divided", "--context", "16384", "--parallel", "8", *here)
    assert (found["parallel"], found["context_tokens"], found["request_tokens"]) == (8, 16384, 2048)


def test_the_largest_context_is_what_the_card_leaves(here: tuple[str, ...]) -> None:
    """With it the model fits, with 256 tokens more it would not; a card of 14000 MB holds more than it can use."""
    small = ("--profile", "tiny", *here)
    with Path(here[1], "profiles.toml").open("a") as profiles:
        profiles.write(
            "[profiles.tiny]\nmax_vram_mb = 1100\nmax_concurrent_models = 1\npreferred_quantizations = []\n"
            'strategy = "load_unload"\nbias = "balanced"\nidle_unload_s = 60\n'
        )
    tokens = fit("whole", *small)["largest_context_tokens"]
    assert 1000 < tokens < 32768
    assert fit("whole", "--context", str(tokens), *small)["fits"]
    assert not fit("whole", "--context", str(tokens + 256), *small)["fits"]
    assert fit("whole", "--profile", "constrained_16gb", *here)["largest_context_tokens"] == 32768


def test_cards_of_another_profile_need_not_be_here(here: tuple[str, ...]) -> None:
    """They are those that the profile is made for; a GPU takes a CUDA context more and the input layer less."""
    report = answer("models", "fit", "short", "--profile", "multi_gpu_2x16gb", *here)
    assert report["cards"] == [{"id": "card 0", "mb": 14000}, {"id": "card 1", "mb": 14000}]
    on_gpu, in_ram = report["models"][0]["computed"], fit("short", *here)["computed"]
    assert (on_gpu["fixed_mb"], report["on"]) == (512, "gpu")
    assert on_gpu["weights_mb"] - in_ram["weights_mb"] in (0, 1)  # tied to the output: it is on the GPU as well


def test_what_does_not_fit_ends_with_1(here: tuple[str, ...]) -> None:
    """And says how much is missing; the list of all models ends with 0 whatever fits."""
    result = call("models", "fit", "heavy", "--profile", "constrained_16gb", *here)
    assert result.exit_code == 1
    assert "one model may take 14000 MB here, 9986000 MB too little" in result.output
    assert call("models", "fit", "--profile", "constrained_16gb", *here).exit_code == 0


def test_who_fits_beside_a_model(here: tuple[str, ...]) -> None:
    """Each of the others for itself."""
    assert fit("short", "--profile", "constrained_16gb", *here)["beside"] == ["whole"]


def test_many_sets_are_cut_for_people(tmp_path: Path, model: Path) -> None:
    """The first ten, and how many more there are; JSON has all of them."""
    fields = {"backend": "llama_cpp", "backend_config": {"model_path": str(model)}}
    entries = [{"name": f"m{number:02}", "vram_estimate_mb": 6000 + 100 * number, **fields} for number in range(1, 16)]
    here = (*configured(tmp_path, entries), "--profile", "constrained_16gb")
    sets = answer("models", "fit", *here)["together"]
    assert len(sets) > 10
    assert f"and {len(sets) - 10} other sets, which --json has" in call("models", "fit", *here).stdout


def test_a_large_set_is_named_by_its_first_models(tmp_path: Path, model: Path) -> None:
    """Ten of them, and how many more; JSON has all, and so has a set that is no larger than that."""
    fields = {"backend": "llama_cpp", "backend_config": {"model_path": str(model)}}
    for count, told in ((12, ", m10 and 2 more: "), (10, ", m09, m10: ")):
        entries = [{"name": f"m{number:02}", **fields} for number in range(1, count + 1)]
        here = (*configured(tmp_path, entries), "--profile", "generous_96gb")
        assert told in call("models", "fit", *here).stdout
        assert len(answer("models", "fit", *here)["together"][0]["models"]) == count


def test_the_cards_that_are_here_count(tmp_path: Path, model: Path, nvml_library: Path) -> None:
    """By the driver's figures, on a simulated GPU of 16 GB; what the profile in force is called does not matter."""
    environ = nvml.environment(nvml_library, nvml.ONE_16GB, tmp_path)
    config = {"model_path": str(model)}
    here = configured(tmp_path, [{"name": "m", "backend": "llama_cpp", "backend_config": config}])
    result = rolecall("models", "fit", "--json", *here, env=environment(**environ))
    report = json.loads(result.stdout)
    assert (report["profile"], report["on"], report["budget_mb"]) == ("constrained_16gb", "gpu", 14328)
    assert [card["mb"] for card in report["cards"]] == [14328]
    assert report["models"][0]["computed"]["fixed_mb"] == 512


def test_a_role_is_all_its_models(here: tuple[str, ...]) -> None:
    """As elsewhere."""
    report = answer("models", "fit", "role:chat", *here)
    assert {each["name"] for each in report["models"]} == {"whole", "short"}


# -- what is in no registry


def test_a_file_is_as_good_as_an_entry(here: tuple[str, ...], model: Path) -> None:
    """It is taken as a scan would register it."""
    found = fit(model, *here)
    assert (found["backend"], found["path"]) == ("llama_cpp", str(model))
    assert found["computed"]["weights_mb"] == 271


def test_a_file_may_have_the_name_of_an_entry(tmp_path: Path) -> None:
    """Copies of a registered model, and the registered file itself, are looked at instead of its entry."""
    first, second = (large(tmp_path / folder / "Large-F16.gguf") for folder in "ab")
    large(tmp_path / "a" / "Other-F16.gguf")
    here = configured(tmp_path, [])
    assert call("models", "scan", first.parent, "--only", *here).exit_code == 0
    name, other = sorted(each["name"] for each in answer("models", "fit", *here)["models"])
    assert call("models", "set", name, "context_length=512", *here[:2]).exit_code == 0
    for path in (first, second):
        found = fit(path, *here)
        assert (found["name"], found["path"], found["beside"]) == (name, str(path), [other])


def test_a_projector_beside_it_counts(tmp_path: Path, here: tuple[str, ...], model: Path) -> None:
    """It is loaded with the model."""
    projector_gguf(tmp_path / "models" / "mmproj-large.gguf", width=1024, clip__vision__image_size=32)
    assert fit(model, *here)["computed"]["projector_mb"] > 0


def test_a_folder_is_all_its_models(tmp_path: Path, here: tuple[str, ...]) -> None:
    """GGUF files, split ones as one, and a folder of safetensors for vLLM."""
    place = tmp_path / "place"
    large(place / "one.gguf")
    split_gguf(place / "two.gguf", 3)
    model_folder(place / "three")
    report = answer("models", "fit", place, *here)
    assert sorted(each["backend"] for each in report["models"]) == ["llama_cpp", "llama_cpp", "vllm"]
    assert all(each["needs_mb"] for each in report["models"])


def test_an_unknown_architecture_is_a_guess_that_is_told(tmp_path: Path, here: tuple[str, ...]) -> None:
    """With attention in every layer, which is more than most have."""
    path = write_gguf(tmp_path / "new.gguf", *transformer("frobnicate"))
    found = fit(path, *here)
    assert found["caveat"] == (
        "the architecture 'frobnicate' is not known here: counted as one with attention in every layer"
    )
    assert found["computed"]["kv_cache_mb"] == 32768 * 4 * 2 * 2 * HEAD * 2 / MB


# -- bad input


def broken(folder: Path, kind: str) -> Path:
    """Write a file that is no good in some way."""
    path = folder / f"{kind.replace(' ', '-')}.gguf"
    metadata, tensors = transformer()
    lies = {
        "no heads": ("llama.attention.head_count_kv", 0),
        "many layers": ("llama.block_count", 4000),
        "huge layers": ("llama.block_count", 2**31),
        "huge width": ("llama.embedding_length", 2**31),
    }
    if kind in lies:
        key, content = lies[kind]
        return write_gguf(path, metadata | {key: content}, tensors)
    write_gguf(path, metadata, tensors)
    if kind == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    if kind == "cut in its header":
        os.truncate(path, 500)
    if kind == "no GGUF":
        path.write_bytes(b"PK\x03\x04" + bytes(1000))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no heads", "attention.head_count_kv and others mean 0 elements"),
        ("many layers", "claims 4000 layers, and has tensors of 4"),
        ("huge layers", "claims 2147483648 layers"),
        ("huge width", "embedding_length and others mean 2147483648 elements"),
        ("cut short", "cut short"),
        ("cut in its header", "cut short in its header"),
        ("no GGUF", "it is no GGUF"),
    ],
)
def test_a_file_that_lies_is_refused_with_the_reason(
    tmp_path: Path, here: tuple[str, ...], kind: str, reason: str
) -> None:
    """Named by its path, in one line and without a traceback; beside good ones it is no more than a line."""
    path = broken(tmp_path, kind)
    result = call("models", "fit", path, *here)
    assert (result.exit_code, result.stdout) == (1, "")
    assert reason in result.stderr
    assert str(path) in result.stderr
    assert result.stderr.startswith("rolecall: ")


def test_a_registered_file_that_lies_is_told_beside_the_others(tmp_path: Path, model: Path) -> None:
    """What is not known has a question mark; the list goes on."""
    entries = [
        {"name": name, "backend": "llama_cpp", "backend_config": {"model_path": str(path)}}
        for name, path in (("good", model), ("bad", broken(tmp_path, "no heads")))
    ]
    here = configured(tmp_path, entries)
    report = answer("models", "fit", *here)
    bad = next(each for each in report["models"] if each["name"] == "bad")
    assert (bad["computed"], bad["source"]) == (None, "files")
    assert "mean 0 elements" in bad["problem"]
    assert call("models", "fit", "bad", *here).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("short", "--context", "0"), 2, "--context"),
        (("short", "--context", "-1"), 2, "--context"),
        (("short", "--context", str(2**40)), 2, "--context"),
        (("short", "--context", "many"), 2, "--context"),
        (("short", "--parallel", "0"), 2, "--parallel"),
        (("short", "--parallel", "5000"), 2, "--parallel"),
        (("shrot",), 1, "Did you mean 'short'"),
        (("role:chatt",), 1, "role:chat"),
        (("short", "--profile", "generous"), 2, "did you mean 'generous_96gb'"),
        (("./nowhere.gguf",), 1, "does not exist"),
        (("/etc/hostname",), 1, "is no GGUF"),
        (("nowhere/",), 1, "does not exist"),
        (("no\0name/",), 1, "does not exist"),
    ],
)
def test_wrong_words_are_refused(here: tuple[str, ...], arguments: tuple[str, ...], code: int, words: str) -> None:
    """With what is wrong and what would be right; nothing is on stdout."""
    result = call("models", "fit", *arguments, *here)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr


def test_a_folder_without_models_is_told(tmp_path: Path, here: tuple[str, ...]) -> None:
    """With the reasons of what looks like one."""
    (tmp_path / "empty").mkdir()
    result = call("models", "fit", tmp_path / "empty", *here)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "holds no model" in result.stderr
    broken(tmp_path / "empty", "no GGUF")
    assert "it is no GGUF" in call("models", "fit", tmp_path / "empty", *here).stderr


def test_a_projector_alone_is_no_model(tmp_path: Path, here: tuple[str, ...]) -> None:
    """It is refused as such."""
    path = projector_gguf(tmp_path / "alone" / "mmproj-alone.gguf")
    result = call("models", "fit", path, *here)
    assert result.exit_code == 1
    assert "projector" in result.stderr


def test_a_context_beyond_what_it_was_trained_for_is_told(here: tuple[str, ...]) -> None:
    """It may be asked for, and needs arguments of the engine's."""
    result = call("models", "fit", "short", "--context", "100000", *here)
    assert "it was trained for 32768 tokens" in result.stdout


def test_an_empty_registry_is_told(tmp_path: Path) -> None:
    """And what to do then."""
    here = configured(tmp_path, [])
    assert "name the path of a GGUF" in call("models", "fit", *here).stdout
    assert answer("models", "fit", *here)["models"] == []


# -- as people see it


def test_without_a_gpu_it_is_host_ram(here: tuple[str, ...]) -> None:
    """Which the table says."""
    printed = call("models", "fit", *here).stdout
    assert "no GPU: " in printed
    assert "MB of host RAM for models" in printed


def test_a_narrow_terminal_has_all_of_it(here: tuple[str, ...]) -> None:
    """What does not fit beside each other stands below."""
    lines = in_terminal("models", "fit", *here, columns=80)
    assert max(map(len, lines)) <= 80
    assert any("largest context 32768" in line for line in lines)
