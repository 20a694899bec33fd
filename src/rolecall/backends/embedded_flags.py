"""llama-server's options, as attributes of xllamacpp's `CommonParams`.

Spellings, values and defaults are those of llama-server b11549 (its README and ``common/arg.cpp``), as far as they make
sense in an engine that rolecall starts. Options that were renamed keep their old spelling, because entries do.

This module needs xllamacpp to be installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import xllamacpp

from rolecall.backends.embedded_parser import (
    ON_OFF,
    Apply,
    Convert,
    Flag,
    FlagError,
    Params,
    apply_flags,
    ignored,
    pair,
    refused,
    sampling,
    setting,
    special,
    switch,
    word,
)

INT32_MAX = 2**31 - 1
CACHE_TYPES = "f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1"
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"


def parse(argv: Sequence[str], environ: Mapping[str, str] = MappingProxyType({})) -> Params:
    """The parameters that a command line without the program's name means.

    Of the environment only ``LLAMA_API_KEY`` counts. Raises FlagError for a command line that llama-server would not
    take either, or that only a real one takes.
    """
    params = _defaults()
    _add_api_keys(params, environ.get("LLAMA_API_KEY", ""))
    apply_flags({name: flag for flag in (*_flags(), *_idle_flags()) for name in flag.names}, params, argv)
    if not params.model.path:
        raise FlagError("error: --model is required")
    return params


def usage() -> str:
    """What ``--help`` says: the options; what each means is in llama-server's documentation."""
    lines = (f"  {', '.join(flag.names)} {flag.value}".rstrip() for flag in _flags())
    return "\n".join(["usage: python -m rolecall.backends.embedded --model FILE [options of llama-server]", "", *lines])


def version() -> str:
    """What ``--version`` says, in llama-server's form; xllamacpp's version ends in its build of llama.cpp."""
    build = xllamacpp.__version__.rpartition(".")[2]
    made = "built with {compiler} for {build_target}".format_map(xllamacpp.BUILD_INFO)
    return f"version: {build} (xllamacpp {xllamacpp.__version__})\n{made}"


def _defaults() -> Params:
    """llama-server's defaults, without what only a browser would need."""
    params = xllamacpp.CommonParams()
    params.n_parallel = -1  # auto: four slots that share one KV cache
    params.port = 8080
    params.ui = False
    # Web pages talk to the gateway; llama-server's own default, "*", would let any page on the internet in.
    params.cors_origins = "localhost"
    params.cors_credentials = False
    return params


def _flags() -> Iterator[Flag]:
    yield from _model_flags()
    yield from _context_flags()
    yield from _device_flags()
    yield from _sampling_flags()
    yield from _chat_flags()
    yield from _server_flags()
    yield from _draft_flags()


def _model_flags() -> Iterator[Flag]:
    yield setting("-m --model", "model.path", str, "FILE")
    yield setting("-mm --mmproj", "mmproj.path", str, "FILE")
    yield from pair("--mmproj-auto", "--no-mmproj --no-mmproj-auto", "no_mmproj", inverted=True)
    yield from pair("--mmproj-offload", "--no-mmproj-offload", "mmproj_use_gpu")
    yield setting("--image-min-tokens", "image_min_tokens", _int)
    yield setting("--image-max-tokens", "image_max_tokens", _int)
    yield setting("--mtmd-batch-max-tokens", "mtmd_batch_max_tokens", _int)
    yield special("--lora", _add_adapters, "FILE,...")
    yield special("--lora-scaled", _add_adapters, "FILE:SCALE,...")
    yield switch("--lora-init-without-apply", "lora_init_without_apply")
    yield switch("--check-tensors", "check_tensors")
    modes = "auto none mmap mlock mmap+mlock=MMAP_MLOCK dio=DIRECT_IO"
    yield word("-lm --load-mode", "load_mode", "llama_load_mode", modes)
    yield from (special(name, _load_mode(name)) for name in LOAD_MODES)
    yield word("-lzm --lazy-mode", "lazy_mode", "llama_lazy_mode", "on auto off")


def _context_flags() -> Iterator[Flag]:
    yield special("-c --ctx-size", _context, "N")
    yield setting("-n --predict --n-predict", "n_predict", _int)
    yield setting("-b --batch-size", "n_batch", _int)
    yield setting("-ub --ubatch-size", "n_ubatch", _int)
    yield setting("--keep", "n_keep", _int)
    yield setting("-np --parallel", "n_parallel", _not_zero)
    yield from pair("-kvu --kv-unified", "-no-kvu --no-kv-unified", "kv_unified")
    yield setting("--kv-unified-per-slot", "kv_unified_per_slot", _int)
    yield word("-ctk --cache-type-k", "cache_type_k", "ggml_type", CACHE_TYPES)
    yield word("-ctv --cache-type-v", "cache_type_v", "ggml_type", CACHE_TYPES)
    yield word("-fa --flash-attn", "flash_attn_type", "llama_flash_attn_type", FLASH_WORDS, alone="on")
    yield switch("--swa-full", "swa_full")
    yield from pair("--context-shift", "--no-context-shift", "ctx_shift")
    yield from pair("--cache-prompt", "--no-cache-prompt", "cache_prompt")
    yield setting("--cache-reuse", "n_cache_reuse", _int)
    yield setting("-cram --cache-ram", "cache_ram_mib", _int, "MIB")
    yield from pair("--cache-idle-slots", "--no-cache-idle-slots", "cache_idle_slots")
    yield setting("-ctxcp --ctx-checkpoints --swa-checkpoints", "n_ctx_checkpoints", _int)
    yield setting("-cms --checkpoint-min-step", "checkpoint_min_step", _int)
    yield setting("-sps --slot-prompt-similarity", "slot_prompt_similarity", _float)
    yield from pair("-cb --cont-batching", "-nocb --no-cont-batching", "cont_batching")
    yield from pair("--warmup", "--no-warmup", "warmup")
    yield word("--rope-scaling", "rope_scaling_type", "llama_rope_scaling_type", "none linear yarn")
    yield setting("--rope-scale", "rope_freq_scale", lambda text: 1 / _float(text))
    yield setting("--rope-freq-base", "rope_freq_base", _float)
    yield setting("--rope-freq-scale", "rope_freq_scale", _float)
    yield setting("--yarn-orig-ctx", "yarn_orig_ctx", _int)
    for name in ("ext-factor", "attn-factor", "beta-slow", "beta-fast"):
        yield setting(f"--yarn-{name}", f"yarn_{name.replace('-', '_')}", _float)


def _device_flags() -> Iterator[Flag]:
    yield setting("-ngl --gpu-layers --n-gpu-layers", "n_gpu_layers", _gpu_layers, "N|auto|all")
    yield word("-sm --split-mode", "split_mode", "llama_split_mode", "none layer row tensor")
    yield special("-ts --tensor-split", _tensor_split, "N,N,...")
    yield setting("-mg --main-gpu", "main_gpu", _int)
    yield special("-ot --override-tensor", _override_tensors, "PATTERN=BUFFER,...")
    yield special("-cmoe --cpu-moe", lambda params, _: _override_tensors(params, f"{EXPERTS}=CPU"))
    yield special("-ncmoe --n-cpu-moe", _experts_on_cpu, "N")
    yield setting("-fit --fit", "fit_params", _on_off, "on|off")
    yield special("-fitt --fit-target", _fit_target, "MIB,...")
    yield setting("-fitc --fit-ctx", "fit_params_min_ctx", _int)
    yield from pair("-kvo --kv-offload", "-nkvo --no-kv-offload", "no_kv_offload", inverted=True)
    yield from pair("--op-offload", "--no-op-offload", "no_op_offload", inverted=True)
    yield from pair("--repack", "-nr --no-repack", "no_extra_bufts", inverted=True)
    yield switch("--no-host", "no_host")
    yield setting("-t --threads", "cpuparams.n_threads", _threads)
    yield setting("-tb --threads-batch", "cpuparams_batch.n_threads", _threads)
    yield setting("--poll", "cpuparams.poll", _int)
    yield setting("--prio", "cpuparams.priority", lambda text: xllamacpp.ggml_sched_priority(_int(text)))
    yield word("--numa", "numa", "ggml_numa_strategy", "distribute isolate numactl")


def _sampling_flags() -> Iterator[Flag]:
    yield sampling("--temp --temperature", "temp", lambda text: max(0.0, _float(text)), "TEMP")
    yield sampling("--top-k", "top_k", _int, "TOP_K")
    yield sampling("--top-p", "top_p", _float, "TOP_P")
    yield sampling("--min-p", "min_p", _float, "MIN_P")
    yield sampling("--xtc-probability", "xtc_probability", _float, "XTC_PROBABILITY")
    yield sampling("--xtc-threshold", "xtc_threshold", _float, "XTC_THRESHOLD")
    yield sampling("--repeat-last-n", "penalty_last_n", _at_least(0), "PENALTY_LAST_N")
    yield sampling("--repeat-penalty", "penalty_repeat", _float, "PENALTY_REPEAT")
    yield sampling("--mirostat", "mirostat", _int, "MIROSTAT")
    yield sampling("--mirostat-lr", "mirostat_eta", _float, "MIROSTAT_ETA")
    yield sampling("--mirostat-ent", "mirostat_tau", _float, "MIROSTAT_TAU")
    yield setting("--presence-penalty", "sampling.penalty_present", _float)
    yield setting("--frequency-penalty", "sampling.penalty_freq", _float)
    yield setting("--typical --typical-p", "sampling.typ_p", _float)
    yield setting("--dry-multiplier", "sampling.dry_multiplier", _float)
    yield setting("--dry-base", "sampling.dry_base", _float)
    yield setting("--dry-allowed-length", "sampling.dry_allowed_length", _int)
    yield setting("--dry-penalty-last-n", "sampling.dry_penalty_last_n", _at_least(0))
    yield setting("--dynatemp-range", "sampling.dynatemp_range", _float)
    yield setting("--dynatemp-exp", "sampling.dynatemp_exponent", _float)
    yield setting("-s --seed", "sampling.seed", lambda text: _int(text) % 2**32)
    yield switch("--ignore-eos", "sampling.ignore_eos")


def _chat_flags() -> Iterator[Flag]:
    yield from pair("--jinja", "--no-jinja", "use_jinja")
    yield setting("--chat-template", "chat_template", str, "TEMPLATE")
    yield setting("--chat-template-file", "chat_template", _content, "FILE")
    yield special("--chat-template-kwargs", _template_kwargs, "JSON")
    formats = "none auto deepseek deepseek-legacy"
    yield word("--reasoning-format", "reasoning_format", "common_reasoning_format", formats)
    yield special("-rea --reasoning", _reasoning, "on|off|auto")
    yield special("--reasoning-effort", _reasoning_effort, "LEVEL")
    yield setting("--reasoning-budget", "sampling.reasoning_budget_tokens", _at_least(-1))
    yield setting("--reasoning-budget-message", "sampling.reasoning_budget_message", str, "TEXT")
    yield special("--reasoning-preserve", lambda params, _: _preserve_reasoning(params, preserve=True))
    yield special("--no-reasoning-preserve", lambda params, _: _preserve_reasoning(params, preserve=False))
    yield from pair("--skip-chat-parsing", "--no-skip-chat-parsing", "force_pure_content_parser")
    yield from pair("--prefill-assistant", "--no-prefill-assistant", "prefill_assistant")
    yield switch("-sp --special", "special")
    yield switch("--embedding --embeddings", "embedding")
    yield word("--pooling", "pooling_type", "llama_pooling_type", "none mean cls last rank")
    yield setting("--embd-normalize", "embd_normalize", _int)
    yield special("--rerank --reranking", _rerank)


def _server_flags() -> Iterator[Flag]:
    yield setting("--host", "hostnames", _list, "HOST,...")
    yield setting("--port", "port", _int)
    yield switch("--reuse-port", "reuse_port")
    yield special("-a --alias", _add_aliases, "NAME,...")
    yield setting("--tags", "model_tags", lambda text: set(_list(text)), "TAG,...")
    yield setting("--api-prefix", "api_prefix", str, "PREFIX")
    yield special("--api-key", _add_api_keys, "KEY,...")
    yield special("--api-key-file", _add_api_key_file, "FILE")
    yield setting("-to --timeout", "timeout_read timeout_write", _int, "SECONDS")
    yield setting("--threads-http", "n_threads_http", _int)
    yield setting("--sse-ping-interval", "sse_ping_interval", _int, "SECONDS")
    yield setting("--sleep-idle-seconds", "sleep_idle_seconds", _at_least(1, or_minus_one=True), "SECONDS")
    yield switch("--metrics", "endpoint_metrics")
    yield switch("--props", "endpoint_props")
    yield from pair("--slots", "--no-slots", "endpoint_slots")
    yield special("--cors-origins", _cors_origins, "ORIGIN,...")
    yield setting("--cors-methods", "cors_methods", str, "METHOD,...")
    yield setting("--cors-headers", "cors_headers", str, "HEADER,...")
    yield from pair("--cors-credentials", "--no-cors-credentials", "cors_credentials")
    yield setting("-lv --verbosity --log-verbosity", "verbosity", _int)
    yield special("-v --verbose --log-verbose", _verbosity(INT32_MAX))
    yield special("--log-disable", _verbosity(0))
    yield from pair("--perf", "--no-perf", "no_perf", inverted=True)


def _draft_flags() -> Iterator[Flag]:
    draft = "speculative.draft"
    yield setting("-md --model-draft --spec-draft-model", f"{draft}.mparams.path", str, "FILE")
    yield special("--spec-type", _speculative_types, "TYPE,...")
    layers = "-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl"
    yield setting(layers, f"{draft}.n_gpu_layers", _gpu_layers, "N|auto|all")
    yield setting("--spec-draft-n-max", f"{draft}.n_max", _int)
    yield setting("--spec-draft-n-min", f"{draft}.n_min", _int)
    yield setting("--draft-p-min --spec-draft-p-min", f"{draft}.p_min", _float)
    yield setting("--draft-p-split --spec-draft-p-split", f"{draft}.p_split", _float)
    for kind in "kv":
        names = f"-ct{kind}d --cache-type-{kind}-draft --spec-draft-type-{kind}"
        yield word(names, f"{draft}.cache_type_{kind}", "ggml_type", CACHE_TYPES)


def _idle_flags() -> Iterator[Flag]:
    """Options that change nothing here, and those that would download."""
    # There is no browser's page here, no colour in a log that goes to a file, nothing to be offline from.
    yield ignored("--ui --webui --no-ui --no-webui --offline -e --escape --no-escape")
    yield ignored("--log-prefix --no-log-prefix --log-timestamps --no-log-timestamps")
    yield ignored("--log-colors", "on|off|auto")
    yield ignored("-dt --defrag-thold", "N")
    download = "the embedded engine downloads nothing; give it local files with --model and --mmproj"
    for names in (
        "-hf -hfr --hf-repo",
        "-hff --hf-file",
        "-hft --hf-token",
        "-mu --model-url",
        "-mmu --mmproj-url",
        "-dr --docker-repo",
        "-hfd -hfrd --hf-repo-draft --spec-draft-hf",
    ):
        yield refused(names, download)


# What values mean.


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _at_least(least: int, *, or_minus_one: bool = False) -> Convert:
    def convert(text: str) -> int:
        number = _int(text)
        if number < least and not (or_minus_one and number == -1):
            raise ValueError(f"{number} is less than {least}")
        return number

    return convert


def _not_zero(text: str) -> int:
    number = _int(text)
    if number == 0:
        raise ValueError("0 is no number of slots")
    return number


def _threads(text: str) -> int:
    threads = _int(text)
    return threads if threads > 0 else os.cpu_count() or 1


def _gpu_layers(text: str) -> int:
    words = {"auto": -1, "all": -2}
    return words[text] if text in words else _int(text)


def _on_off(text: str) -> bool:
    if text not in ON_OFF:
        raise ValueError(f"{text!r} is neither on nor off")
    return ON_OFF[text]


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _numbers(text: str) -> list[float]:
    return [_float(part) for part in text.replace("/", ",").split(",")]


def _content(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")


# Options that are more than one assignment.

FLASH_WORDS = "on=ENABLED off=DISABLED auto 1=ENABLED 0=DISABLED true=ENABLED false=DISABLED -1=AUTO"

# llama-server has replaced these by --load-mode. Which mode each leads to depends on the one before ("" is any other).
LOAD_MODES = {
    "--mmap": {"MLOCK": "MMAP_MLOCK", "MMAP_MLOCK": "MMAP_MLOCK", "": "MMAP"},
    "--no-mmap": {"MLOCK": "MLOCK", "MMAP_MLOCK": "MLOCK", "": "NONE"},
    "--mlock": {"NONE": "MLOCK", "MLOCK": "MLOCK", "": "MMAP_MLOCK"},
}


def _load_mode(name: str) -> Apply:
    def apply(params: Params, _: str) -> None:
        prefix = "LLAMA_LOAD_MODE_"
        after = LOAD_MODES[name]
        mode = after.get(params.load_mode.name.removeprefix(prefix), after[""])
        params.load_mode = getattr(xllamacpp.llama_load_mode, prefix + mode)

    return apply


def _context(params: Params, text: str) -> None:
    params.n_ctx = _int(text)
    if params.n_ctx == 0:
        # Asked for in so many words: --fit must not make it less than the model's own.
        params.fit_params_min_ctx = INT32_MAX


def _tensor_split(params: Params, text: str) -> None:
    params.tensor_split = _in_front(_numbers(text), [0.0] * len(params.tensor_split))


def _fit_target(params: Params, text: str) -> None:
    targets = [int(mib) * 2**20 for mib in _numbers(text)]
    rest = params.fit_params_target if len(targets) > 1 else targets * len(params.fit_params_target)
    params.fit_params_target = _in_front(targets, rest)


def _in_front(new: list[Any], rest: list[Any]) -> list[Any]:
    """`rest` with its first values replaced: the engine wants one value for each possible device."""
    if len(new) >= len(rest):
        raise ValueError(f"{len(new)} values are too many")
    return new + rest[len(new) :]


def _override_tensors(params: Params, text: str) -> None:
    params.tensor_buft_overrides = ",".join(filter(None, (params.tensor_buft_overrides, text)))


def _experts_on_cpu(params: Params, text: str) -> None:
    for layer in range(_at_least(0)(text)):
        _override_tensors(params, rf"blk\.{layer}{EXPERTS}=CPU")


def _add_adapters(params: Params, text: str) -> None:
    parts = [item.rpartition(":") if ":" in item else (item, "", "1") for item in _list(text)]
    adapters = [xllamacpp.CommonAdapterLoraInfo(path, _float(scale)) for path, _, scale in parts]
    params.lora_adapters = [*params.lora_adapters, *adapters]


def _add_aliases(params: Params, text: str) -> None:
    params.model_alias = params.model_alias | set(_list(text))


def _add_api_keys(params: Params, text: str) -> None:
    params.api_keys = [*params.api_keys, *_list(text)]


def _add_api_key_file(params: Params, file: str) -> None:
    lines = _content(file).splitlines()
    params.api_keys = [*params.api_keys, *(line for line in lines if line and not line.startswith("#"))]


def _template_kwargs(params: Params, text: str) -> None:
    kwargs = json.loads(text)
    if not isinstance(kwargs, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - a wrong value from the user, as all others here
    _add_kwargs(params, kwargs)


def _add_kwargs(params: Params, kwargs: dict[str, Any]) -> None:
    added = {name: json.dumps(value) for name, value in kwargs.items()}
    params.default_template_kwargs = params.default_template_kwargs | added


def _reasoning(params: Params, text: str) -> None:
    params.enable_reasoning = -1 if text in ("auto", "-1") else int(_on_off(text))
    if params.enable_reasoning >= 0:
        _add_kwargs(params, {"enable_thinking": bool(params.enable_reasoning)})


def _reasoning_effort(params: Params, text: str) -> None:
    if text != "default":
        _add_kwargs(params, {"reasoning_effort": text})


def _preserve_reasoning(params: Params, *, preserve: bool) -> None:
    params.preserve_reasoning_specified = True
    _add_kwargs(params, {"preserve_reasoning": preserve})


def _rerank(params: Params, _: str) -> None:
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


def _cors_origins(params: Params, text: str) -> None:
    params.cors_origins = text
    params.cors_origins_explicit = True


def _verbosity(threshold: int) -> Apply:
    def apply(params: Params, _: str) -> None:
        params.verbosity = threshold

    return apply


def _speculative_types(params: Params, text: str) -> None:
    prefix = "COMMON_SPECULATIVE_TYPE_"
    names = {member.name: member for member in xllamacpp.common_speculative_type}
    unknown = [item for item in _list(text) if prefix + item.upper().replace("-", "_") not in names]
    if unknown:
        raise ValueError(f"unknown type {unknown[0]!r}")
    params.speculative.types = [names[prefix + item.upper().replace("-", "_")] for item in _list(text)]
