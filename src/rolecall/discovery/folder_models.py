"""A folder as Hugging Face has them (config.json and safetensors) as a model for vLLM."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rolecall.core.discovery import Found
from rolecall.core.json_text import as_text
from rolecall.core.model_names import bare_name, part_names, size_b, split_part, unquantized_name
from rolecall.discovery.found import Model, Yield, why
from rolecall.discovery.gguf_models import LONGEST_TEXT, path_mark
from rolecall.discovery.walk import Folder
from rolecall.runtime.fields import MOST_HEADER_BYTES, Fields
from rolecall.runtime.json_file import read_object
from rolecall.runtime.safetensors import TEXT_CONFIGS, dtype_sizes
from rolecall.runtime.traits import folder_templates

MOST_CONFIG_BYTES = 4 * 2**20
"""A config.json has some kB; one that lists the layers of a quantization some 100."""
PREFIX = "models--"
"""Of a repository's folder in the cache of the hub."""
INDEX = "model.safetensors.index.json"

_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}
_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0, "fp64": 8.0, "fp8": 1.0, "w8a8": 1.0, "int8": 1.0}
_METHODS = {"fbgemm_fp8": "fp8", "gptq_marlin": "gptq", "awq_marlin": "awq", "intel/auto-round": "auto-round"}
_QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
"""The last is that of MLX, Apple's engine."""
_GENERIC = re.compile(r"(model|models|checkpoint(-\d+)?|snapshots?|hf|main|final|output|[0-9a-f]{40})?$")


def is_model_folder(folder: Folder) -> bool:
    """Whether a folder holds one model in Hugging Face's form, or would if it were complete."""
    return "config.json" in folder.files and (_weight_files(folder) != [] or INDEX in folder.files)


def _weight_files(folder: Folder) -> list[str]:
    tensors = [name for name in (*folder.files, *folder.broken) if name.endswith(".safetensors")]
    return tensors or [name for name in folder.files if re.fullmatch(r"pytorch_model.*\.bin", name)]


def no_model(folder: Folder) -> str | None:
    """Return why a folder that resembles a model's is none; None for one that may be, and for all others."""
    if "model_index.json" in folder.files:
        return "a pipeline that makes pictures (diffusers), which no engine here runs"
    if "adapter_config.json" in folder.files and "config.json" not in folder.files:
        return "an adapter (LoRA), not a model"
    return None


def folder_model(folder: Folder, out: Yield, provider: str, repository: str | None = None) -> Model | None:
    """Return the model of a folder, None and a note in ``out`` for one that is incomplete or makes no sense.

    ``repository`` is its name on the hub, which a folder of the hub's cache tells itself.
    """
    try:
        return _model(folder, out, provider, repository or repository_of(folder.path))
    except (OSError, ValueError) as error:
        out.skip(folder.path, why(error))
        return None


def _model(folder: Folder, out: Yield, provider: str, repository: str | None) -> Model:
    outer = read_object(folder.path / "config.json", MOST_CONFIG_BYTES)
    inner: Mapping[str, Any] = next((outer[key] for key in TEXT_CONFIGS if isinstance(outer.get(key), dict)), {})
    fields = Fields({**outer, **inner})
    weights = _complete(folder)
    out.headers += len(weights)
    sizes = _sizes(folder, weights)
    quantization = _quantization(outer, inner) or _nvidia(folder) or _plain(sizes)
    named = repository or _folder_name(folder.path, outer)
    bare = bare_name(named.rpartition("/")[2])
    is_quantized = quantization not in _DTYPES.values()
    bare = unquantized_name(bare) if is_quantized else re.sub(r"[-_.](bf16|fp16|f16|fp32)$", "", bare) or bare
    sees, hears = _senses(folder, outer)
    return Model(
        found=Found(
            name=bare,
            format="safetensors",
            architecture=_text(outer, "model_type"),
            kinds=_words(outer.get("architectures")),
            pooling=_pooling(folder),
            template="\n".join(folder_templates(folder.path)),
            sees=sees,
            hears=hears,
            quantization=quantization,
            parameters_b=size_b(bare) or sum(sizes.values()) / _BYTES.get(quantization, 0.55) / 1e9,
        ),
        bare=bare,
        quantization=quantization,
        backend="vllm",
        provider=provider,
        path=folder.path,
        files=tuple(folder.path / name for name in weights),
        owners=(named.rpartition("/")[0] if repository else folder.path.parent.name, path_mark(folder.path)),
        ids=(repository,) if repository else (),
        context_tokens=fields.first("max_position_embeddings", "n_positions", "max_seq_len") or None,
        size_bytes=sum(folder.files[name].st_size for name in weights),
        family=_text(outer, "model_type") or None,
        license=_license(folder),
        notes=(f"quantization {quantization} by its configuration" if is_quantized else f"weights are {quantization}",),
    )


def repository_of(snapshot: Path) -> str | None:
    """Return the name on the hub of a folder in its cache, None for any other folder."""
    outer = snapshot.parent.parent.name
    is_snapshot = snapshot.parent.name == "snapshots" and outer.startswith(PREFIX)
    return outer.removeprefix(PREFIX).replace("--", "/") if is_snapshot else None


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return as_text(value[:LONGEST_TEXT]) if isinstance(value, str) else ""


def _words(value: Any) -> tuple[str, ...]:
    return tuple(as_text(word) for word in value if isinstance(word, str)) if isinstance(value, list) else ()


def _folder_name(path: Path, config: Mapping[str, Any]) -> str:
    """The first name that says something: of the folder, in the configuration, of the folder above."""
    candidates = (path.name, _text(config, "_name_or_path").rstrip("/").rpartition("/")[2], path.parent.name)
    return next((name for name in candidates if not _GENERIC.match(bare_name(name))), "model")


# --- weights


def _complete(folder: Folder) -> list[str]:
    """Return the files of the weights; raises ``ValueError`` where some are missing."""
    if INDEX in folder.files:
        names = read_object(folder.path / INDEX, MOST_HEADER_BYTES).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) and "/" not in name for name in names.values()):
            raise ValueError(f"{INDEX} names no files of this folder")
        wanted = sorted(set(names.values()))
    else:
        wanted = _wanted(_weight_files(folder))
    missing = [name for name in wanted if name not in folder.files]
    if missing:
        raise ValueError(f"incomplete: {len(missing)} of its {len(wanted)} parts are missing ({missing[0]})")
    if not wanted:
        raise ValueError("it has no weights")
    return wanted


def _wanted(names: Sequence[str]) -> list[str]:
    """Without an index: those named ``model…`` if there are any, and all parts where names count them."""
    own = [name for name in names if name.startswith(("model", "pytorch_model"))] or list(names)
    parts = [
        (*part, ending) for stem, _, ending in (name.rpartition(".") for name in own) if (part := split_part(stem))
    ]
    if not parts:
        return sorted(own)
    firsts = {f"{stem}-00001-of-{count:05}.{ending}" for stem, _, count, ending in parts}
    return sorted(name for first in firsts for name in part_names(first))


def _sizes(folder: Folder, weights: Iterable[str]) -> dict[str, int]:
    """Return the bytes of the tensors by type; raises ``ValueError`` for a file that is cut short."""
    total: dict[str, int] = {}
    for name in weights:
        if name.endswith(".safetensors"):
            for dtype, size in dtype_sizes(folder.path / name).items():
                total[dtype] = total.get(dtype, 0) + size
        else:
            total["F16"] = total.get("F16", 0) + folder.files[name].st_size
    return total


def _plain(sizes: Mapping[str, int]) -> str:
    most = max(sizes, key=lambda dtype: sizes[dtype], default="F16")
    return _DTYPES.get(most, most.lower().replace("f8_e4m3", "fp8").replace("f8_e5m2", "fp8"))


# --- quantization


def _quantization(*configs: Mapping[str, Any]) -> str | None:
    """Return how the weights are quantized by ``quantization_config``; None if they are not."""
    listed = [config.get(key) for config in configs for key in _QUANTIZATION_KEYS]
    given = next((each for each in listed if each is not None), None)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ValueError("its quantization_config is no object")  # noqa: TRY004 - the file's fault
    method = (_text(given, "quant_method") or ("mlx" if "group_size" in given else "quantized")).lower()
    if method == "compressed-tensors":
        return _compressed(given)
    if method == "bitsandbytes":
        return "bnb-4bit" if given.get("load_in_4bit") else "bnb-8bit"
    if method == "modelopt":
        return _algorithm(given) or method
    return _METHODS.get(method, method)


def _compressed(given: Mapping[str, Any]) -> str:
    """Return the scheme of compressed-tensors: ``fp8``, ``nvfp4``, ``w8a8``, ``w4a16``."""
    kind = _text(given, "format")
    if "nvfp4" in kind or "mxfp4" in kind:
        return "nvfp4" if "nvfp4" in kind else "mxfp4"
    groups = given.get("config_groups")
    first: Any = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights, inputs = (first.get(key) if isinstance(first, dict) else None for key in ("weights", "input_activations"))
    bits = weights.get("num_bits") if isinstance(weights, dict) else None
    if isinstance(weights, dict) and weights.get("type") == "float" and bits == 8:
        return "fp8"
    given_bits = inputs.get("num_bits") if isinstance(inputs, dict) else 16
    return f"w{bits}a{given_bits}" if isinstance(bits, int) else "compressed-tensors"


def _nvidia(folder: Folder) -> str | None:
    """Return what NVIDIA's Model Optimizer writes beside the configuration."""
    if "hf_quant_config.json" not in folder.files:
        return None
    found = read_object(folder.path / "hf_quant_config.json", MOST_CONFIG_BYTES).get("quantization")
    return _algorithm(found) if isinstance(found, dict) else None


def _algorithm(given: Mapping[str, Any]) -> str | None:
    return _text(given, "quant_algo").lower() or None


# --- what it can do


def _senses(folder: Folder, config: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether it has a processor for images, and one for sound."""
    known: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if name in folder.files:
            with suppress(ValueError):  # one that makes no sense says nothing
                known |= read_object(folder.path / name, MOST_CONFIG_BYTES)
    sees = any(key in known for key in ("image_processor_type", "image_mean", "image_processor", "image_seq_length"))
    hears = any(key in known for key in ("feature_extractor_type", "feature_extractor", "audio_seq_length"))
    has_processor = bool(known) or "video_preprocessor_config.json" in folder.files
    return sees or (has_processor and _has(config, "vision_config")), hears or (
        has_processor and _has(config, "audio_config")
    )


def _has(config: Mapping[str, Any], key: str) -> bool:
    thinker = config.get("thinker_config")
    return isinstance(config.get(key), dict) or (isinstance(thinker, dict) and isinstance(thinker.get(key), dict))


_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


def _pooling(folder: Folder) -> str:
    """How sentence-transformers make one vector of many; ``mean`` where such a folder does not say."""
    if "modules.json" not in folder.files and "config_sentence_transformers.json" not in folder.files:
        return ""
    with suppress(ValueError, OSError):
        pooling = read_object(folder.path / "1_Pooling" / "config.json", MOST_CONFIG_BYTES)
        return next((kind for key, kind in _POOLINGS.items() if pooling.get(key) is True), "mean")
    return "mean"


def _license(folder: Folder) -> str | None:
    """Return the license of the model card's head."""
    if "README.md" not in folder.files or not stat.S_ISREG(folder.files["README.md"].st_mode):
        return None
    with suppress(OSError), (folder.path / "README.md").open("rb") as file:
        head = file.read(4096).decode("utf-8", "replace")
        found = re.search(r"^license: *['\"]?([\w.+-]{1,60})", head, re.MULTILINE) if head.startswith("---") else None
        return found[1] if found else None
    return None
