"""What a model's files say of the memory it needs: headers of GGUF and safetensors files, never their weights.

The reader of GGUF headers is our own: `gguf.GGUFReader` makes an object of every token and takes 4 s for a vocabulary
of 150,000, this one steps over them in 10 ms. Everything here blocks on the disk: it is called off the event loop.
"""

from __future__ import annotations

import json
import logging
import re
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeAlias

from rolecall.backends.base import Backend
from rolecall.core.footprint import (
    Demands,
    Estimate,
    GgufFacts,
    Layer,
    ProjectorFacts,
    SafetensorsFacts,
    gguf_estimate,
    vllm_estimate,
)
from rolecall.core.models import ModelEntry, flag_value

log = logging.getLogger(__name__)

MOST_HEADER_BYTES = 64 * 2**20
"""A vocabulary of 262,144 tokens with its merges takes 12 MB."""
MOST_ENTRIES = 200_000
"""Of metadata and of tensors; the largest models have some thousands."""
MOST_KEPT = 4096
"""Longer arrays are of the vocabulary."""
MOST_LAYERS = 4096
MOST = 2**40
"""No number that counts here is larger."""
MOST_REMEMBERED = 256
READ_BYTES = 2**20

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALARS = {
    kind: struct.Struct(f"<{letter}")
    for kind, letter in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata without the long arrays, and each tensor's shape (innermost first) and bytes, padding included."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[tuple[int, ...], int]]


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of a GGUF (version 2 or 3) and of its further parts, if its name ends in ``-00001-of-0000N``.

    Raises ``ValueError`` that names the file for one that is no GGUF, is cut short or makes no sense, ``OSError`` for
    one that cannot be read. At most `MOST_HEADER_BYTES` are read, whatever the file says of itself.
    """
    headers = [_read_part(part) for part in _parts(path)]
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    return GgufHeader(headers[0].metadata, tensors)


def _parts(path: Path) -> list[Path]:
    split = re.fullmatch(r"(.*-)00001(-of-(\d{5})\.gguf)", path.name)
    if split is None:
        return [path]
    return [path.with_name(f"{split[1]}{number:05}{split[2]}") for number in range(1, int(split[3]) + 1)]


def _read_part(path: Path) -> GgufHeader:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise ValueError(f"{path} is no file")
    with path.open("rb") as file:
        try:
            return _parse(_Header(file), status.st_size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


class _Header:
    """The beginning of a file, read as far as it is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = bytearray()
        self.position = 0

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        start = self.skip(layout.size)
        return layout.unpack_from(self._data, start)

    def number(self, layout: struct.Struct) -> int:
        return int(self.unpack(layout)[0])

    def text(self) -> str:
        length = self.number(_U64)
        start = self.skip(length)
        return self._data[start : start + length].decode("utf-8", "replace")

    def skip(self, size: int) -> int:
        start, self.position = self.position, self.position + size
        self._reach(self.position)
        return start

    def skip_texts(self, count: int) -> None:
        position, length_at = self.position, _U64.unpack_from
        for _ in range(count):
            try:
                position += 8 + length_at(self._data, position)[0]
            except (struct.error, OverflowError):
                self._reach(position + 8)
                position += 8 + length_at(self._data, position)[0]
        self.skip(position - self.position)

    def _reach(self, end: int) -> None:
        if end > MOST_HEADER_BYTES:
            raise ValueError("its header claims more than 64 MB")
        while len(self._data) < end:
            more = self._file.read(max(end - len(self._data), READ_BYTES))
            if not more:
                raise ValueError("it is cut short in its header")
            self._data += more


def _parse(header: _Header, file_bytes: int) -> GgufHeader:
    if header.unpack(struct.Struct("<4s"))[0] != b"GGUF":
        raise ValueError("it is no GGUF")
    version = header.number(_U32)
    if version not in (2, 3):
        raise ValueError(f"its version {version} is not known here (a big-endian file has such, too)")
    tensor_count, entry_count = _count(header), _count(header)
    metadata = dict(_entry(header) for _ in range(entry_count))
    infos = [_tensor_info(header) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise ValueError(f"its alignment is {alignment!r}")
    data_bytes = file_bytes - -(-header.position // alignment) * alignment
    return GgufHeader(metadata, _sizes(infos, data_bytes))


def _count(header: _Header) -> int:
    count = header.number(_U64)
    if count > MOST_ENTRIES:
        raise ValueError(f"its header claims {count} entries")
    return count


def _entry(header: _Header) -> tuple[str, Any]:
    key, kind = header.text(), header.number(_U32)
    if kind == _TEXT:
        return key, header.text()
    if kind != _ARRAY:
        return key, header.unpack(_layout(kind))[0]
    kind, count = header.number(_U32), header.number(_U64)
    if kind == _TEXT:
        header.skip_texts(count)
        return key, None
    layout = _layout(kind)
    if count > MOST_KEPT:
        header.skip(count * layout.size)
        return key, None
    return key, header.unpack(struct.Struct(f"<{count}{layout.format[-1]}"))


def _layout(kind: int) -> struct.Struct:
    if kind not in _SCALARS:
        raise ValueError(f"its header has a value of type {kind}, which is not known")
    return _SCALARS[kind]


def _tensor_info(header: _Header) -> tuple[str, tuple[int, ...], int]:
    name, dimensions = header.text(), header.number(_U32)
    if dimensions > 8:
        raise ValueError(f"its tensor {name[:80]!r} has {dimensions} dimensions")
    shape = header.unpack(struct.Struct(f"<{dimensions}Q"))
    header.skip(_U32.size)
    return name, shape, header.number(_U64)


def _sizes(
    infos: Iterable[tuple[str, tuple[int, ...], int]], data_bytes: int
) -> dict[str, tuple[tuple[int, ...], int]]:
    """A tensor reaches to the next one, so that no type has to be known (new quantizations come every month)."""
    tensors, end = {}, data_bytes
    for name, shape, offset in sorted(infos, key=lambda info: info[2], reverse=True):
        if offset > end:
            raise ValueError("it is cut short: it should go on for its tensors")
        tensors[name] = (shape, end - offset)
        end = offset
    return tensors


class _Fields:
    """Metadata of one architecture: numbers that are checked, one per layer where a file may have a list."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        self._metadata, self._prefix = metadata, prefix

    def raw(self, key: str) -> Any:
        return self._metadata.get(f"{self._prefix}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        return _checked(key, value) if (value := self.raw(key)) is not None else default

    def each(self, key: str, layers: int, default: Sequence[int]) -> Sequence[int]:
        value = self.raw(key)
        if not isinstance(value, tuple):
            return default if value is None else [_checked(key, value)] * layers
        values = [_checked(key, one) for one in value[:layers]]
        return values + [0] * (layers - len(values))

    def most(self, key: str, layers: int) -> int:
        return max(self.each(key, layers, [0]), default=0)


def _checked(key: str, value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= MOST:
        raise ValueError(f"{key} is {value!r:.80}")
    return int(value)


_ENCODERS = frozenset(
    {
        *("bert", "modern-bert", "neo-bert", "eurobert", "gemma-embedding"),
        *("nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3"),
    }
)
_WITHOUT_CACHE = _ENCODERS | {"wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1", "clef"}
_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_INTERVALS = frozenset({"qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01"})
"""Where every fourth layer has attention and the others are recurrent, if the file says nothing else."""
_INPUTS = frozenset({"token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight"})
_EXPERTS = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps")
_DEFAULT_WINDOWS = {"gemma2": 4096, "llama4": 8192}
_PERIODS = {
    "gemma2": 2,
    "gpt-oss": 2,
    "gemma3n": 5,
    "gemma3": 6,
    "plamo3": 8,
    **dict.fromkeys(("llama4", "exaone4", "exaone-moe", "cohere2", "olmo2", "afmoe", "mellum", "muse-glimmer"), 4),
    **dict.fromkeys(("cohere2moe", "laguna", "smallthinker"), 4),
}
"""One of so many layers has no sliding window, if the file says nothing else."""
_DENSE_FIRST = frozenset({"cohere2moe", "laguna", "smallthinker"})


def gguf_facts(header: GgufHeader) -> GgufFacts:
    """Return what llama.cpp reads from the metadata to lay out its memory; raises ``ValueError`` for nonsense.

    Source: ``load_hparams`` and ``create_memory`` in llama.cpp's `llama-model.cpp`, ``load_arch_hparams`` in
    `models/*.cpp`, and the sizes in `llama-hparams.cpp`.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("it names no architecture")  # noqa: TRY004 - the file's fault, not the caller's
    fields = _Fields(header.metadata, architecture)
    count = fields.number("block_count")
    if count > MOST_LAYERS:
        raise ValueError(f"it claims {count} layers")
    heads = fields.each("attention.head_count", count, [0] * count)
    most_heads, width = max(heads, default=0), fields.number("embedding_length")
    shape, embedding_bytes = header.tensors.get("token_embd.weight", ((), 0))
    is_tied = "output.weight" not in header.tensors and architecture not in _ENCODERS
    blocks, input_bytes, output_bytes = _tensor_bytes(header, count)
    has_dense = any(name.endswith(".ffn_down.weight") for name in header.tensors)
    feed_forward, used = fields.most("feed_forward_length", count), fields.most("expert_used_count", count)
    recurrent = fields.number("ssm.inner_size") + fields.number("ssm.group_count") * fields.number("ssm.state_size")
    return GgufFacts(
        architecture=architecture,
        layers=tuple(_layers(fields, architecture, heads, blocks)),
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        tied_bytes=embedding_bytes if is_tied else 0,
        context_tokens=fields.number("context_length"),
        vocabulary=min(shape[-1], MOST) if shape and architecture not in _ENCODERS else 0,
        embedding_width=width,
        query_width=most_heads * fields.number("attention.key_length", _ratio(width, most_heads)),
        heads=most_heads,
        feed_forward_width=feed_forward if has_dense else 0,
        expert_width=used * (fields.most("expert_feed_forward_length", count) or _ratio(feed_forward, used)),
        experts_used=used,
        window_tokens=fields.number("attention.sliding_window", _DEFAULT_WINDOWS.get(architecture, 0)),
        recurrent_width=2 * recurrent,
    )


def _ratio(total: int, parts: int) -> int:
    return total // parts if parts else 0


def _tensor_bytes(header: GgufHeader, count: int) -> tuple[list[tuple[int, int]], int, int]:
    """Return for each block all bytes and those of its experts, then those of the input and of the output layer."""
    blocks = [[0, 0] for _ in range(count)]
    ends = [0, 0]
    for name, (_, size) in header.tensors.items():
        block = re.match(r"blk\.(\d{1,5})\.", name)
        if block is None or int(block[1]) >= count:
            ends[name not in _INPUTS] += size
            continue
        blocks[int(block[1])][0] += size
        blocks[int(block[1])][1] += size if _EXPERTS.search(name) else 0
    return [(total, experts) for total, experts in blocks], ends[0], ends[1]


def _layers(
    fields: _Fields, architecture: str, heads: Sequence[int], blocks: Sequence[tuple[int, int]]
) -> Iterable[Layer]:
    count = len(blocks)
    kv_heads = fields.each("attention.head_count_kv", count, heads)
    windowed, recurrent = _windowed(fields, architecture, count), _recurrent(fields, architecture, kv_heads)
    state = 4 * _state_elements(fields, max(heads, default=0))
    width = _ratio(fields.number("embedding_length"), max(heads, default=0))
    key, value = fields.number("attention.key_length", width), fields.number("attention.value_length", width)
    window_key = fields.number("attention.key_length_swa", key)
    window_value = fields.number("attention.value_length_swa", value)
    is_latent = bool(fields.number("attention.key_length_mla") and fields.number("attention.value_length_mla"))
    indexer = fields.number("attention.indexer.key_length")
    for index, (total, experts) in enumerate(blocks):
        caches = index < _caching(fields, architecture, count) and kv_heads[index]
        if recurrent[index] and architecture != "falcon-h1":
            caches = 0
        k, v = (window_key, window_value) if windowed[index] else (key, value)
        yield Layer(
            tensor_bytes=total,
            expert_bytes=experts,
            key_width=caches * k + indexer if caches else 0,
            value_width=0 if is_latent else caches * v,
            windowed=windowed[index],
            state_bytes=state if recurrent[index] else 0,
        )


def _caching(fields: _Fields, architecture: str, count: int) -> int:
    """How many of the first layers have a KV cache of their own."""
    if architecture in _WITHOUT_CACHE or architecture in _RECURRENT:
        return 0
    trunk = count - min(count, fields.number("nextn_predict_layers"))
    shared = fields.number("attention.shared_kv_layers", max(0, count - 20) if architecture == "gemma3n" else 0)
    return min(trunk or count, max(0, count - shared))


def _windowed(fields: _Fields, architecture: str, count: int) -> Sequence[bool]:
    pattern = fields.raw("attention.sliding_window_pattern")
    if not fields.number("attention.sliding_window", _DEFAULT_WINDOWS.get(architecture, 0)):
        return [False] * count
    if isinstance(pattern, tuple):
        return [bool(flag) for flag in pattern[:count]] + [False] * (count - len(pattern))
    period = fields.number("attention.sliding_window_pattern", _PERIODS.get(architecture, 0))
    dense = 0 if architecture in _DENSE_FIRST else period - 1
    return [bool(period) and index % period != dense for index in range(count)]


def _recurrent(fields: _Fields, architecture: str, kv_heads: Sequence[int]) -> Sequence[bool]:
    count = len(kv_heads)
    if architecture in _RECURRENT or architecture == "falcon-h1":
        return [True] * count
    listed = fields.raw("attention.recurrent_layers")
    if isinstance(listed, tuple):
        return [bool(flag) for flag in listed[:count]] + [False] * (count - len(listed))
    if architecture in _INTERVALS:
        interval = fields.number("full_attention_interval", 4) or 1
        trunk = count - fields.number("nextn_predict_layers")
        return [index < trunk and (index + 1) % interval != 0 for index in range(count)]
    is_mixed = architecture.startswith("nemotron_h")  # there, a layer without attention may be a feed-forward one
    feed_forward = fields.each("feed_forward_length", count, [0] * count) if is_mixed else [0] * count
    return [not heads and not rows for heads, rows in zip(kv_heads, feed_forward, strict=True)]


def _state_elements(fields: _Fields, heads: int) -> int:
    """Elements of a recurrent layer's state for one slot: ``n_embd_r`` and ``n_embd_s`` of `llama-hparams.cpp`."""
    width, conv = fields.number("embedding_length"), fields.number("ssm.conv_kernel")
    if wkv := fields.number("wkv.head_size"):
        return width * (fields.number("token_shift_count", 2) + wkv)
    if short := fields.number("shortconv.l_cache"):
        return width * (short - 1)
    if kda := fields.number("kda.head_dim"):
        return 3 * (conv - 1 if conv else 3) * heads * kda + kda * kda * heads
    inner, state = fields.number("ssm.inner_size"), fields.number("ssm.state_size")
    return max(0, conv - 1) * (inner + 2 * fields.number("ssm.group_count") * state) + inner * state


def projector_facts(header: GgufHeader) -> ProjectorFacts:
    """Return what a vision projector says; raises ``ValueError`` for nonsense."""
    fields = _Fields(header.metadata, "clip.vision")
    return ProjectorFacts(
        tensor_bytes=sum(size for _, size in header.tensors.values()),
        patches=_ratio(fields.number("image_size"), fields.number("patch_size")) ** 2,
        embedding_width=fields.number("embedding_length"),
        feed_forward_width=fields.number("feed_forward_length"),
    )


def safetensors_facts(folder: Path, dtype: str | None = None) -> SafetensorsFacts:
    """Return what the config.json and the headers of a folder say; ``dtype`` is vLLM's argument.

    Parts that the index names and the folder lacks count with the index' own total. Raises ``ValueError`` for a folder
    without weights or with nonsense in it, ``OSError`` for one that cannot be read.
    """
    outer = _read_json(folder / "config.json")
    config = next((outer[key] for key in _TEXT_CONFIGS if isinstance(outer.get(key), dict)), outer)
    fields = _Fields({f"text.{key}": value for key, value in {**outer, **config}.items()}, "text")
    dtype_bytes = _ARGUMENT_DTYPES.get(dtype or "", 2)
    total, wide = _weights(folder)
    kinds = _layer_kinds(fields)
    return SafetensorsFacts(
        # An unquantized model of 32 bits is loaded with 16 unless asked otherwise (vLLM's --dtype auto).
        weight_bytes=total - wide // 2 if dtype_bytes == 2 and wide > total / 2 else total,
        context_tokens=_first(fields, "max_position_embeddings", "n_positions", "max_seq_len"),
        full_layers=kinds.count("full"),
        windowed_layers=kinds.count("window"),
        state_bytes=kinds.count("state") * _linear_state_elements(fields) * dtype_bytes,
        window_tokens=fields.number("sliding_window"),
        dtype_bytes=dtype_bytes,
        **_widths(fields),
    )


_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
_ARGUMENT_DTYPES = {"half": 2, "float16": 2, "bfloat16": 2, "float": 4, "float32": 4}


def _first(fields: _Fields, *keys: str) -> int:
    return next((number for key in keys if (number := fields.number(key))), 0)


def _widths(fields: _Fields) -> dict[str, int]:
    heads, width = _first(fields, "num_attention_heads", "n_head"), _first(fields, "hidden_size", "n_embd")
    experts = _first(fields, "num_experts_per_tok", "top_k") * fields.number("moe_intermediate_size")
    latent = fields.number("kv_lora_rank")
    return {
        "key_value_heads": _first(fields, "num_key_value_heads") or heads,
        "head_width": fields.number("head_dim") or _ratio(width, heads),
        "latent_width": latent + fields.number("qk_rope_head_dim") if latent else 0,
        "embedding_width": width,
        "feed_forward_width": max(_first(fields, "intermediate_size", "n_inner"), experts),
        "vocabulary": fields.number("vocab_size"),
    }


def _layer_kinds(fields: _Fields) -> list[str]:
    """For each layer ``full``, ``window``, ``state`` or ``none``: how transformers' configs tell them apart."""
    count = _first(fields, "num_hidden_layers", "n_layer")
    if count > MOST_LAYERS:
        raise ValueError(f"it claims {count} layers")
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


def _linear_state_elements(fields: _Fields) -> int:
    """Elements of one recurrent layer's state: heads by widths of key and value (gated delta net), or Mamba's."""
    if heads := fields.number("linear_num_value_heads"):
        return heads * fields.number("linear_value_head_dim") * fields.number("linear_key_head_dim")
    inner = fields.number("mamba_num_heads") * fields.number("mamba_head_dim") or _first(
        fields, "mamba_d_inner", "intermediate_size"
    )
    return inner * _first(fields, "mamba_d_state", "ssm_state_size", "state_size")


def _weights(folder: Path) -> tuple[int, int]:
    """Return the bytes of all tensors, and of those with 32 bits."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        parts = sorted(folder.glob("*.safetensors"))
        own = [part for part in parts if part.name.startswith("model")]  # beside them may lie consolidated ones
        return _total(own or parts) if parts else _other_weights(folder)
    listed = _read_json(index)
    names = listed.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and "/" not in name for name in names.values()):
        raise ValueError(f"{index}: names no files of this folder")
    parts = [folder / name for name in sorted(set(names.values()))]
    if all(part.exists() for part in parts):
        return _total(parts)
    total = _Fields({"index": None, **_prefixed(listed.get("metadata"))}, "index").number("total_size")
    if not total:
        raise ValueError(f"{folder}: {sum(not part.exists() for part in parts)} of its {len(parts)} parts are missing")
    return total, 0


def _prefixed(metadata: object) -> dict[str, Any]:
    return {f"index.{key}": value for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _other_weights(folder: Path) -> tuple[int, int]:
    total = sum(part.stat().st_size for part in folder.glob("*.bin"))
    if not total:
        raise ValueError(f"{folder}: there are no weights")
    return total, 0


def _total(parts: Iterable[Path]) -> tuple[int, int]:
    sizes = [_dtype_sizes(part) for part in parts]
    return sum(sum(size.values()) for size in sizes), sum(size.get("F32", 0) for size in sizes)


def _dtype_sizes(path: Path) -> dict[str, int]:
    """Return the bytes of a safetensors file's tensors by dtype, from its header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = _U64.unpack(start)[0] if len(start) == 8 else MOST
        if length > min(size - 8, MOST_HEADER_BYTES):
            raise ValueError(f"{path}: it is cut short, or no safetensors file")
        tensors = _parsed(path, file.read(length))
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name == "__metadata__":
            continue
        try:
            (begin, end), dtype = map(int, tensor["data_offsets"]), str(tensor["dtype"])
        except (TypeError, KeyError, ValueError, OverflowError):
            raise ValueError(f"{path}: its header makes no sense at {name[:80]!r}") from None
        if not 0 <= begin <= end <= size - 8 - length:
            raise ValueError(f"{path}: it is cut short: {name[:80]!r} should be in it")
        sizes[dtype] = sizes.get(dtype, 0) + end - begin
    return sizes


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > MOST_HEADER_BYTES:
        raise ValueError(f"{path} is missing, or too large")
    return _parsed(path, path.read_bytes())


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: its header is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: its header is no JSON object")  # noqa: TRY004 - the file's fault
    return value


# -- from an entry to an estimate


class ModelFiles:
    """Estimates for entries; what was read of a file is remembered for as long as the file stays the same."""

    def __init__(self) -> None:
        self._known: dict[_State, _Facts | None] = {}
        self._lock = Lock()

    def estimate_mb(self, entry: ModelEntry, backend: Backend, *, on_gpu: bool = True) -> Estimate | None:
        """Return what the entry needs on its GPUs, or in host RAM; None where the files do not tell.

        A file that makes no sense is warned about once. Safe to call from several threads. What a draft model or an
        adapter takes besides is not known here, nor that older builds of llama.cpp lay out the logits of a whole
        micro-batch: such is learnt.
        """
        flags = _Flags(entry)
        files, dtype = backend.files(entry), flags.word("--dtype")
        if not files:
            return None
        try:
            state = (_state(files), dtype)
        except (OSError, ValueError):  # not installed, or a name that no file can have
            return None
        with self._lock:
            facts = self._facts(state, files, dtype)
        return None if facts is None else _estimate(facts, flags, entry, backend, on_gpu=on_gpu)

    def _facts(self, state: _State, files: Sequence[Path], dtype: str | None) -> _Facts | None:
        if state not in self._known:
            while len(self._known) >= MOST_REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[state] = _read(files, dtype)
        return self._known[state]


def estimate_mb(entry: ModelEntry, backend: Backend, *, on_gpu: bool = True) -> Estimate | None:
    """Return what the entry needs, without remembering anything; see `ModelFiles`."""
    return ModelFiles().estimate_mb(entry, backend, on_gpu=on_gpu)


@dataclass(frozen=True, slots=True)
class _Gguf:
    model: GgufFacts
    projector: ProjectorFacts | None


_Facts: TypeAlias = _Gguf | SafetensorsFacts
_State: TypeAlias = tuple[tuple[tuple[str, int, int], ...], str | None]


def _state(files: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Path, size and time of every file that an estimate reads."""
    read = [part for file in files for part in (sorted(_in_folder(file)) if file.is_dir() else _parts(file))]
    statuses = [(path, path.stat()) for path in read]
    return tuple((str(path), status.st_size, status.st_mtime_ns) for path, status in statuses)


def _in_folder(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin") and path.exists())


def _read(files: Sequence[Path], dtype: str | None) -> _Facts | None:
    model = files[0]
    try:
        if model.is_dir():
            return safetensors_facts(model, dtype)
        if model.suffix != ".gguf":
            return None
        projector = projector_facts(read_gguf(files[1])) if len(files) > 1 else None
        return _Gguf(gguf_facts(read_gguf(model)), projector)
    except (ValueError, OSError) as error:
        log.warning("the memory that %s needs cannot be computed: %s", model.name, error)
        return None


def _estimate(facts: _Facts, flags: _Flags, entry: ModelEntry, backend: Backend, *, on_gpu: bool) -> Estimate:
    if isinstance(facts, _Gguf):
        demands = replace(_llama_demands(flags, entry, backend), on_gpu=on_gpu)
        return gguf_estimate(facts.model, demands, facts.projector)
    return vllm_estimate(facts, replace(_vllm_demands(flags, entry, backend), on_gpu=on_gpu))


class _Flags:
    """The engine's arguments of an entry; ``--ctx_size`` is ``--ctx-size``, as for the engines."""

    def __init__(self, entry: ModelEntry) -> None:
        config = entry.backend_config
        self._argv = tuple(map(_dashed, (*config.command, *config.extra_args)))
        self._defaults = entry.generation_defaults

    def word(self, *names: str) -> str | None:
        return flag_value(self._argv, *names)

    def number(self, *names: str) -> int | None:
        return _whole(self.word(*names))

    def has(self, *names: str) -> bool:
        return any(word.partition("=")[0] in names for word in self._argv)

    def default(self, name: str) -> int | None:
        value = self._defaults.get(name)
        return value if isinstance(value, int) and 0 < value <= MOST else None


def _dashed(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word.startswith("--") else word


def _whole(word: str | None) -> int | None:
    """Read ``4096``, ``-1``, and vLLM's ``32k`` (thousands) and ``32K`` (1024)."""
    match = re.fullmatch(r"(-?\d{1,12})([kKmM]?)", word or "")
    return int(match[1]) * {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}[match[2]] if match else None


def _llama_demands(flags: _Flags, entry: ModelEntry, backend: Backend) -> Demands:
    """What llama-server is asked for, by the flags that the driver or the entry gives it."""
    slots = flags.number("-np", "--parallel")
    context = flags.number("-c", "--ctx-size")
    layers = flags.number("-ngl", "--gpu-layers", "--n-gpu-layers")
    is_divided = flags.has("-no-kvu", "--no-kv-unified") or (
        slots is not None and slots > 0 and not flags.has("-kvu", "--kv-unified")
    )
    return Demands(
        context_tokens=(entry.context_tokens or flags.default("ctx_size") if context is None else max(0, context))
        or None,
        parallel=slots if slots and slots > 0 else backend.parallel(entry),
        unified=not is_divided,
        batch_tokens=flags.number("-b", "--batch-size") or flags.default("batch_size") or 2048,
        ubatch_tokens=flags.number("-ub", "--ubatch-size") or flags.default("ubatch_size") or 512,
        cache_type_k=flags.word("-ctk", "--cache-type-k") or "f16",
        cache_type_v=flags.word("-ctv", "--cache-type-v") or "f16",
        flash_attention=flags.word("-fa", "--flash-attn") not in ("off", "0", "false", "disabled"),
        full_window=flags.has("--swa-full"),
        gpu_layers=layers if layers is not None and layers >= 0 else None,
        host_expert_layers=MOST_LAYERS
        if flags.has("-cmoe", "--cpu-moe")
        else flags.number("-ncmoe", "--n-cpu-moe") or 0,
        kv_on_gpu=not flags.has("-nkvo", "--no-kv-offload"),
        projector_on_gpu=not flags.has("--no-mmproj-offload"),
        scores_all=flags.has("--embedding", "--embeddings", "--rerank", "--reranking")
        or flags.word("--pooling") not in (None, "none"),
        may_fit=context is None and flags.word("-fit", "--fit") != "off",
        gpus=backend.spread(entry).asked or 1,
    )


def _vllm_demands(flags: _Flags, entry: ModelEntry, backend: Backend) -> Demands:
    """What vLLM is asked for; 8192 tokens a step is its default for a server on a large GPU."""
    gpus = (flags.number("-tp", "--tensor-parallel-size") or 1) * (flags.number("-pp", "--pipeline-parallel-size") or 1)
    cache = flags.word("--kv-cache-dtype") or "auto"
    context = flags.number("--max-model-len") or 0
    return Demands(
        context_tokens=context if context > 0 else entry.context_tokens,
        parallel=flags.number("--max-num-seqs") or backend.parallel(entry),
        batch_tokens=flags.number("--max-num-batched-tokens") or 8192,
        cache_bytes=1 if cache.startswith("fp8") else None,
        eager=flags.has("--enforce-eager"),
        gpus=max(gpus, backend.spread(entry).asked or 1),
    )
