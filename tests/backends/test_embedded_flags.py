"""llama-server's options as the embedded engine reads them: values only, no engine is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

xllamacpp: Any = pytest.importorskip("xllamacpp", reason="the embedded engine is an extra: rolecall[llama]")

from rolecall.backends import embedded_flags  # noqa: E402 - it needs xllamacpp
from rolecall.backends.embedded_parser import FlagError, apply_flags, setting  # noqa: E402 - the same


def parse(*argv: str) -> Any:
    return embedded_flags.parse(["--model", "m.gguf", *argv])


def attribute(params: Any, path: str) -> Any:
    for name in path.split("."):
        params = getattr(params, name)
    return params


def member(enum: str, end: str) -> Any:
    return getattr(getattr(xllamacpp, enum), f"{enum.upper()}_{end}")


@pytest.mark.parametrize(
    ("argv", "path", "expected"),
    [
        (["-m", "other.gguf"], "model.path", "other.gguf"),
        (["--mmproj", "p.gguf"], "mmproj.path", "p.gguf"),
        (["--no-mmproj-offload"], "mmproj_use_gpu", False),
        (["--no-mmproj"], "no_mmproj", True),
        (["--image-min-tokens", "8"], "image_min_tokens", 8),
        (["-c", "4096"], "n_ctx", 4096),
        (["--ctx-size", "0"], "n_ctx", 0),
        (["-n", "-1"], "n_predict", -1),
        (["-b", "1024"], "n_batch", 1024),
        (["-ub", "256"], "n_ubatch", 256),
        (["-np", "4"], "n_parallel", 4),
        (["-kvu"], "kv_unified", True),
        (["--kv-unified", "--no-kv-unified"], "kv_unified", False),
        (["--swa-full"], "swa_full", True),
        (["--context-shift"], "ctx_shift", True),
        (["-cram", "0"], "cache_ram_mib", 0),
        (["-nocb"], "cont_batching", False),
        (["--no-warmup"], "warmup", False),
        (["-t", "3"], "cpuparams.n_threads", 3),
        (["-tb", "2"], "cpuparams_batch.n_threads", 2),
        (["-ngl", "20"], "n_gpu_layers", 20),
        (["--gpu-layers", "auto"], "n_gpu_layers", -1),
        (["--n-gpu-layers", "all"], "n_gpu_layers", -2),
        (["-mg", "1"], "main_gpu", 1),
        (["-nkvo"], "no_kv_offload", True),
        (["--fit", "off"], "fit_params", False),
        (["--rope-freq-base", "10000"], "rope_freq_base", 10000.0),
        (["--rope-scale", "4"], "rope_freq_scale", 0.25),
        (["--yarn-orig-ctx", "8192"], "yarn_orig_ctx", 8192),
        (["--yarn-ext-factor", "0.5"], "yarn_ext_factor", 0.5),
        (["--top-k", "7"], "sampling.top_k", 7),
        (["--temp", "-1"], "sampling.temp", 0.0),
        (["--presence-penalty", "1.5"], "sampling.penalty_present", 1.5),
        (["--frequency-penalty", "-0.5"], "sampling.penalty_freq", -0.5),
        (["-s", "-1"], "sampling.seed", 2**32 - 1),
        (["--reasoning-budget", "0"], "sampling.reasoning_budget_tokens", 0),
        (["--no-jinja"], "use_jinja", False),
        (["--chat-template", "chatml"], "chat_template", "chatml"),
        (["--embeddings"], "embedding", True),
        (["--host", "127.0.0.1,::1"], "hostnames", ["127.0.0.1", "::1"]),
        (["--port", "24001"], "port", 24001),
        (["--timeout", "60"], "timeout_read", 60),
        (["-to", "60"], "timeout_write", 60),
        (["--threads-http", "2"], "n_threads_http", 2),
        (["--sse-ping-interval", "-1"], "sse_ping_interval", -1),
        (["--sleep-idle-seconds", "300"], "sleep_idle_seconds", 300),
        (["--metrics"], "endpoint_metrics", True),
        (["--props"], "endpoint_props", True),
        (["--no-slots"], "endpoint_slots", False),
        (["--api-key", "a,b"], "api_keys", ["a", "b"]),
        (["-lv", "1"], "verbosity", 1),
        (["--log-disable"], "verbosity", 0),
        (["--ui"], "ui", False),
        (["--no-webui"], "ui", False),
        (["-md", "draft.gguf"], "speculative.draft.mparams.path", "draft.gguf"),
    ],
)
def test_an_option_sets_its_attribute(argv: list[str], path: str, expected: object) -> None:
    """Each option lands in the attribute that llama-server's own parser would set."""
    assert attribute(parse(*argv), path) == expected


@pytest.mark.parametrize(
    ("argv", "path", "enum", "end"),
    [
        (["-sm", "row"], "split_mode", "llama_split_mode", "ROW"),
        (["-ctk", "q8_0"], "cache_type_k", "ggml_type", "Q8_0"),
        (["--cache-type-v", "iq4_nl"], "cache_type_v", "ggml_type", "IQ4_NL"),
        (["--rope-scaling", "yarn"], "rope_scaling_type", "llama_rope_scaling_type", "YARN"),
        (["--pooling", "cls"], "pooling_type", "llama_pooling_type", "CLS"),
        (["--reranking"], "pooling_type", "llama_pooling_type", "RANK"),
        (["--reasoning-format", "deepseek-legacy"], "reasoning_format", "common_reasoning_format", "DEEPSEEK_LEGACY"),
        (["--numa", "isolate"], "numa", "ggml_numa_strategy", "ISOLATE"),
        (["--prio", "2"], "cpuparams.priority", "ggml_sched_priority", "HIGH"),
        (["--load-mode", "mmap+mlock"], "load_mode", "llama_load_mode", "MMAP_MLOCK"),
        (["-lm", "dio"], "load_mode", "llama_load_mode", "DIRECT_IO"),
        (["--mlock"], "load_mode", "llama_load_mode", "MMAP_MLOCK"),
        (["--no-mmap"], "load_mode", "llama_load_mode", "NONE"),
        (["--mlock", "--no-mmap"], "load_mode", "llama_load_mode", "MLOCK"),
        (["--no-mmap", "--mlock"], "load_mode", "llama_load_mode", "MLOCK"),
        (["-fa", "off"], "flash_attn_type", "llama_flash_attn_type", "DISABLED"),
        (["--flash-attn", "auto"], "flash_attn_type", "llama_flash_attn_type", "AUTO"),
        (["-fa"], "flash_attn_type", "llama_flash_attn_type", "ENABLED"),
        (["-fa", "--metrics"], "flash_attn_type", "llama_flash_attn_type", "ENABLED"),
    ],
)
def test_a_word_sets_an_enum_member(argv: list[str], path: str, enum: str, end: str) -> None:
    """Words become members of llama.cpp's enums, also those of options that newer versions have renamed."""
    prefix = {"ggml_sched_priority": "GGML_SCHED_PRIO"}.get(enum, enum.upper())
    assert attribute(parse(*argv), path) == getattr(getattr(xllamacpp, enum), f"{prefix}_{end}")


def test_an_optional_value_does_not_swallow_the_next_option() -> None:
    """After a bare ``-fa`` the next option is read as one."""
    assert parse("-fa", "--metrics").endpoint_metrics


@pytest.mark.parametrize(
    ("flag", "config"),
    [
        ("--temp", "TEMP"),
        ("--top-k", "TOP_K"),
        ("--top-p", "TOP_P"),
        ("--min-p", "MIN_P"),
        ("--repeat-penalty", "PENALTY_REPEAT"),
        ("--mirostat", "MIROSTAT"),
        ("--mirostat-lr", "MIROSTAT_ETA"),
        ("--mirostat-ent", "MIROSTAT_TAU"),
    ],
)
def test_a_sampling_default_is_marked_as_the_users(flag: str, config: str) -> None:
    """llama.cpp lets the model file's recommendation replace sampling values that are not so marked."""
    assert parse().sampling.user_sampling_config == 0
    marked = parse(flag, "1").sampling.user_sampling_config
    assert marked == member("common_params_sampling_config", config)


def test_the_defaults_are_those_of_llama_server() -> None:
    """Slots are automatic, the page is off, and only this machine gets in."""
    params = parse()
    assert (params.n_parallel, params.n_ctx, params.port, params.hostnames) == (-1, 0, 8080, ["127.0.0.1"])
    assert (params.ui, params.cors_origins, params.endpoint_slots, params.use_jinja) == (False, "localhost", True, True)


def test_underscores_after_two_dashes_are_dashes() -> None:
    """``--ctx_size`` is ``--ctx-size``, as for llama-server."""
    assert parse("--ctx_size", "512").n_ctx == 512


def test_a_value_may_begin_with_a_dash() -> None:
    """What follows an option is its value, whatever it looks like."""
    assert parse("--chat-template", "--metrics").chat_template == "--metrics"


def test_of_several_the_last_wins() -> None:
    """An entry's own arguments, which come later, replace ours."""
    assert parse("-c", "1024", "--ctx-size", "2048").n_ctx == 2048


def test_the_whole_context_asked_for_is_not_fitted_away() -> None:
    """``--ctx-size 0`` keeps --fit from making the context smaller than the model's own."""
    assert parse().fit_params_min_ctx == 4096
    assert parse("-c", "0").fit_params_min_ctx == 2**31 - 1


def test_a_tensor_split_is_filled_up_for_all_devices() -> None:
    """Devices that are not named get no share."""
    split = parse("-ts", "3,1").tensor_split
    assert split[:2] == [3.0, 1.0]
    assert len(split) == len(xllamacpp.CommonParams().tensor_split)
    assert not any(split[2:])


def test_one_fit_target_holds_for_all_devices() -> None:
    """A single margin is broadcast; several are given in order and leave the rest as it was."""
    assert set(parse("--fit-target", "512").fit_params_target) == {512 * 2**20}
    assert [size // 2**20 for size in parse("--fit-target", "1,2").fit_params_target[:3]] == [1, 2, 1024]


def test_tensor_overrides_add_up() -> None:
    """``--override-tensor``, ``--cpu-moe`` and ``--n-cpu-moe`` can be combined."""
    overrides = parse("-ot", r"blk\.0\.=CPU", "--n-cpu-moe", "2", "--cpu-moe").tensor_buft_overrides.split(",")
    experts = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"
    assert overrides == [r"blk\.0\.=CPU", rf"blk\.0{experts}", rf"blk\.1{experts}", experts]


def test_adapters_add_up() -> None:
    """``--lora`` takes several files, ``--lora-scaled`` a scale with each."""
    adapters = parse("--lora", "a,b", "--lora-scaled", "c:0.5").lora_adapters
    assert [(adapter.path, adapter.scale) for adapter in adapters] == [("a", 1.0), ("b", 1.0), ("c", 0.5)]


def test_aliases_are_a_list() -> None:
    """Several names for the model are separated by commas."""
    assert parse("-a", "one, two").model_alias == {"one", "two"}


def test_keys_add_up(tmp_path: Path) -> None:
    """Keys of the environment, of a file with a line for each, and of the command line are all good."""
    (tmp_path / "keys").write_text("# of the house\nthree\n\nfour\n")
    argv = ["-m", "x", "--api-key", "two", "--api-key-file", str(tmp_path / "keys")]
    assert embedded_flags.parse(argv, {"LLAMA_API_KEY": "one"}).api_keys == ["one", "two", "three", "four"]
    assert embedded_flags.parse(["-m", "x"], {"LLAMA_API_KEY": "", "OTHER": "x"}).api_keys == []


def test_template_arguments_are_merged_as_json() -> None:
    """Reasoning switches are arguments of the chat template, like those of --chat-template-kwargs."""
    params = parse("--chat-template-kwargs", '{"a":1,"b":"x"}', "--reasoning", "off", "--reasoning-effort", "low")
    arguments = {name: json.loads(value) for name, value in params.default_template_kwargs.items()}
    assert arguments == {"a": 1, "b": "x", "enable_thinking": False, "reasoning_effort": "low"}
    assert params.enable_reasoning == 0


def test_a_chat_template_is_read_from_a_file(tmp_path: Path) -> None:
    """``--chat-template-file`` is the file's content as --chat-template."""
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}", encoding="utf-8")
    assert parse("--chat-template-file", str(file)).chat_template == "{{ messages }}"


def test_a_draft_model_comes_with_its_type() -> None:
    """Types of speculative decoding are a list of words."""
    types = parse("--spec-type", "draft-simple,ngram-mod").speculative.types
    assert [kind.name for kind in types] == [
        "COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE",
        "COMMON_SPECULATIVE_TYPE_NGRAM_MOD",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--foo"], "error: invalid argument: --foo\nthe embedded engine takes a subset of llama-server's options"),
        (["--ctx-size=4096"], "error: invalid argument: --ctx-size=4096"),
        (["-c4096"], "error: invalid argument: -c4096"),
        (["--ctx"], "error: invalid argument: --ctx"),
        (["stray"], "error: invalid argument: stray"),
        (["--port"], 'error while handling argument "--port": expected value for argument'),
        (["--port", "x"], "error while handling argument \"--port\": 'x' is not a whole number"),
        (["-c", "99999999999"], 'error while handling argument "-c": value too large'),
        (["--temp", "hot"], "error while handling argument \"--temp\": 'hot' is not a number"),
        (["-np", "0"], 'error while handling argument "-np": 0 is no number of slots'),
        (["-ctk", "q9"], "error while handling argument \"-ctk\": 'q9' is none of f32, f16"),
        (["--fit", "maybe"], "error while handling argument \"--fit\": 'maybe' is neither on nor off"),
        (["--sleep-idle-seconds", "0"], 'error while handling argument "--sleep-idle-seconds": 0 is less than 1'),
        (["--reasoning-budget", "-2"], 'error while handling argument "--reasoning-budget": -2 is less than -1'),
        (["--chat-template-kwargs", "[1]"], "not a JSON object"),
        (["--chat-template-kwargs", "{"], 'error while handling argument "--chat-template-kwargs": '),
        (["--chat-template-file", "/nowhere"], "No such file or directory"),
        (["-ts", ",".join("1" * 200)], "200 values are too many"),
        (["--spec-type", "psychic"], "unknown type 'psychic'"),
        (["-hf", "a/b"], "downloads nothing"),
        (["--model-url", "http://x"], "downloads nothing"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(argv: list[str], message: str) -> None:
    """The message names the option and what is wrong with it, in llama-server's words where it has them."""
    with pytest.raises(FlagError) as refusal:
        parse(*argv)
    assert message in str(refusal.value)


def test_an_unknown_tensor_buffer_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """llama.cpp knows the buffer types of its build; it prints them, too."""
    with pytest.raises(FlagError, match="unknown buffer type"):
        parse("-ot", "x=NOWHERE")
    assert "CPU" in capfd.readouterr().out


def test_an_option_of_another_xllamacpp_is_refused() -> None:
    """Where the installed version lacks a parameter, the message names the option and the version."""
    flags = {"--new": setting("--new", "sampling.not_there_yet", int)}
    with pytest.raises(FlagError, match=f"--new is not known to xllamacpp {xllamacpp.__version__}"):
        apply_flags(flags, xllamacpp.CommonParams(), ["--new", "1"])


def test_a_model_is_required() -> None:
    """Without a model there is nothing to serve; llama-server's router is not for us."""
    with pytest.raises(FlagError, match="--model is required"):
        embedded_flags.parse([])


SAMPLES = {"N": "1", "MIB": "1", "MIB,...": "1", "N,N,...": "1,1", "SECONDS": "1", "JSON": "{}", "TYPE,...": "none"}
SAMPLES |= {"PATTERN=BUFFER,...": "x=CPU", "FILE": __file__, "FILE:SCALE,...": "x:1"}


@pytest.mark.parametrize("flag", list(embedded_flags._flags()), ids=lambda flag: flag.names[-1])
def test_every_option_exists_in_this_xllamacpp(flag: Any) -> None:
    """Each option can be given, with each of its words: attributes and enums exist in the installed version."""
    values = [[SAMPLES.get(word, word)] for word in flag.value.split("|")] if flag.value else [[]]
    for name in flag.names:
        assert name in embedded_flags.usage()
        for value in values:
            parse(name, *value)


def test_no_spelling_means_two_things() -> None:
    """No two options share a spelling."""
    names = [name for flag in (*embedded_flags._flags(), *embedded_flags._idle_flags()) for name in flag.names]
    assert len(names) == len(set(names))


def test_the_version_is_that_of_llama_cpp() -> None:
    """The first line reads like llama-server's: ``version: BUILD (…)``."""
    first = embedded_flags.version().splitlines()[0]
    assert first == f"version: {xllamacpp.__version__.split('.')[2]} (xllamacpp {xllamacpp.__version__})"
