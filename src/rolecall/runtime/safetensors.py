"""What a folder of safetensors says of the memory that vLLM will need for it: its config.json and its headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rolecall.core.vllm_footprint import SafetensorsFacts
from rolecall.runtime.fields import MOST_HEADER_BYTES, Fields, ratio
from rolecall.runtime.json_file import parse_object, read_object

TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
_ARGUMENT_DTYPES = {"half": 2, "float16": 2, "bfloat16": 2, "float": 4, "float32": 4}


def safetensors_facts(folder: Path, dtype: str | None = None) -> SafetensorsFacts:
    """Return what the config.json and the headers of a folder say; ``dtype`` is vLLM's argument.

    Parts that the index names and the folder lacks count with the index' own total. Raises ``ValueError`` for a folder
    without weights or with nonsense in it, ``OSError`` for one that cannot be read.
    """
    outer = read_object(folder / "config.json", MOST_HEADER_BYTES)
    config = next((outer[key] for key in TEXT_CONFIGS if isinstance(outer.get(key), dict)), outer)
    fields = Fields({**outer, **config})
    dtype_bytes = _ARGUMENT_DTYPES.get(dtype or "", 2)
    total, wide = _weights(folder)
    kinds = _layer_kinds(fields)
    return SafetensorsFacts(
        # An unquantized model of 32 bits is loaded with 16 unless asked otherwise (vLLM's --dtype auto).
        weight_bytes=total - wide // 2 if dtype_bytes == 2 and wide > total / 2 else total,
        context_tokens=fields.first("max_position_embeddings", "n_positions", "max_seq_len"),
        full_layers=kinds.count("full"),
        windowed_layers=kinds.count("window"),
        state_bytes=kinds.count("state") * _linear_state_elements(fields) * dtype_bytes,
        window_tokens=fields.number("sliding_window"),
        dtype_bytes=dtype_bytes,
        **_widths(fields),
    )


def _widths(fields: Fields) -> dict[str, int]:
    heads, width = fields.first("num_attention_heads", "n_head"), fields.first("hidden_size", "n_embd")
    experts = fields.first("num_experts_per_tok", "top_k") * fields.number("moe_intermediate_size")
    latent = fields.number("kv_lora_rank")
    return {
        "key_value_heads": fields.first("num_key_value_heads") or heads,
        "head_width": fields.number("head_dim") or ratio(width, heads),
        "latent_width": latent + fields.number("qk_rope_head_dim") if latent else 0,
        "embedding_width": width,
        "feed_forward_width": max(fields.first("intermediate_size", "n_inner"), experts),
        "vocabulary": fields.number("vocab_size"),
    }


def _layer_kinds(fields: Fields) -> list[str]:
    """For each layer ``full``, ``window``, ``state`` or ``none``: how transformers' configs tell them apart."""
    count = fields.layer_count("num_hidden_layers", "n_layer")
    window = fields.number("sliding_window") if fields.raw("use_sliding_window") is not False else 0
    listed = fields.raw("layer_types") or fields.raw("layers_block_type")
    if isinstance(listed, list) and len(listed) == count:
        return [_layer_kind(str(name), window) for name in listed]
    if interval := fields.number("full_attention_interval"):
        return ["full" if (index + 1) % interval == 0 else "state" for index in range(count)]
    period = fields.number("sliding_window_pattern") or (2 if fields.raw("model_type") == "gemma2" else 0)
    if window and period:
        return ["full" if (index + 1) % period == 0 else "window" for index in range(count)]
    return ["window" if window else "full"] * count


def _layer_kind(name: str, window: int) -> str:
    if "linear" in name or "mamba" in name or "conv" in name or "recurrent" in name:
        return "state"
    if "sliding" in name or "chunked" in name:
        return "window" if window else "full"
    return "full" if "attention" in name else "none"


def _linear_state_elements(fields: Fields) -> int:
    """Elements of one recurrent layer's state: heads by widths of key and value (gated delta net), or Mamba's."""
    if heads := fields.number("linear_num_value_heads"):
        return heads * fields.number("linear_value_head_dim") * fields.number("linear_key_head_dim")
    inner = fields.number("mamba_num_heads") * fields.number("mamba_head_dim")
    inner = inner or fields.first("mamba_d_inner", "intermediate_size")
    return inner * fields.first("mamba_d_state", "ssm_state_size", "state_size")


def _weights(folder: Path) -> tuple[int, int]:
    """Return the bytes of all tensors, and of those with 32 bits."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        parts = sorted(folder.glob("*.safetensors"))
        own = [part for part in parts if part.name.startswith("model")]  # beside them may lie consolidated ones
        return _total(own or parts) if parts else _other_weights(folder)
    listed = read_object(index, MOST_HEADER_BYTES)
    names = listed.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and "/" not in name for name in names.values()):
        raise ValueError(f"{index}: names no files of this folder")
    parts = [folder / name for name in sorted(set(names.values()))]
    if all(part.exists() for part in parts):
        return _total(parts)
    metadata = listed.get("metadata")
    total = Fields(metadata).number("total_size") if isinstance(metadata, dict) else 0
    if not total:
        raise ValueError(f"{folder}: {sum(not part.exists() for part in parts)} of its {len(parts)} parts are missing")
    return total, 0


def _other_weights(folder: Path) -> tuple[int, int]:
    total = sum(part.stat().st_size for part in folder.glob("*.bin"))
    if not total:
        raise ValueError(f"{folder}: there are no weights")
    return total, 0


def _total(parts: Iterable[Path]) -> tuple[int, int]:
    sizes = sum(map(dtype_sizes, parts), Counter[str]())
    return sizes.total(), sizes["F32"]


def dtype_sizes(path: Path) -> Counter[str]:
    """Return the bytes of a safetensors file's tensors by dtype, from its header."""
    if not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{path}: is no file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MOST_HEADER_BYTES):
            raise ValueError(f"{path}: it is cut short, or no safetensors file")
        tensors = parse_object(path, file.read(length))
    sizes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if name == "__metadata__":
            continue
        try:
            (begin, end), dtype = map(int, tensor["data_offsets"]), str(tensor["dtype"])
        except (TypeError, KeyError, ValueError, OverflowError):
            raise ValueError(f"{path}: its header makes no sense at {name[:80]!r}") from None
        if not 0 <= begin <= end <= size - 8 - length:
            raise ValueError(f"{path}: it is cut short: {name[:80]!r} should be in it")
        sizes[dtype] += end - begin
    return sizes
