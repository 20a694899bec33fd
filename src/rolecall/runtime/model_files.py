"""What a model's files say of the memory it needs, for an entry with its arguments.

Headers are read and weights never. Everything here blocks on the disk: it is called off the event loop.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from rolecall.backends.base import Backend
from rolecall.backends.llama_server import embedded_tokens
from rolecall.core.footprint import Demands, Estimate
from rolecall.core.gguf_footprint import GgufFacts, ProjectorFacts, gguf_estimate
from rolecall.core.models import ModelEntry, dashed, flag_value
from rolecall.core.vllm_footprint import SafetensorsFacts, vllm_estimate
from rolecall.runtime.fields import MOST, MOST_LAYERS
from rolecall.runtime.file_memory import FileMemory
from rolecall.runtime.gguf_facts import gguf_facts, projector_facts
from rolecall.runtime.gguf_header import gguf_parts, is_gguf_name, read_gguf
from rolecall.runtime.safetensors import safetensors_facts

log = logging.getLogger(__name__)


class ModelFiles:
    """Estimates for entries; what was read of a file is remembered for as long as the file stays the same."""

    def __init__(self) -> None:
        self._memory = FileMemory[_Facts | None]()

    def estimate_mb(self, entry: ModelEntry, backend: Backend, *, on_gpu: bool = True) -> Estimate | None:
        """Return what the entry needs on its GPUs, or in host RAM; None where the files do not tell.

        A file that makes no sense is warned about once. Safe to call from several threads. What a draft model or an
        adapter takes besides is not known here, nor that older builds of llama.cpp lay out the logits of a whole
        micro-batch: such is learnt.
        """
        facts, flags = self._facts(entry, backend), _Flags(entry)
        return None if facts is None else _estimate(facts, flags, entry, backend, on_gpu=on_gpu)

    def problem(self, entry: ModelEntry, backend: Backend) -> str | None:
        """Return why there is no estimate, in words that name the file; None if there is one. It reads it anew."""
        files = backend.files(entry)
        try:
            read = _understood(files, _Flags(entry).word("--dtype")) if files else None
        except (OSError, ValueError) as error:
            return str(error)
        kinds = "only GGUF files and folders of safetensors tell what a model needs"
        return None if read else f"{files[0].name}: {kinds}" if files else "it has no files of its own"

    def context_tokens(self, entry: ModelEntry, backend: Backend) -> int | None:
        """Return the model's own context; None where the files do not tell."""
        facts = self._facts(entry, backend)
        found = facts.model.context_tokens if isinstance(facts, _Gguf) else facts.context_tokens if facts else 0
        return found or None

    def _facts(self, entry: ModelEntry, backend: Backend) -> _Facts | None:
        files, dtype = backend.files(entry), _Flags(entry).word("--dtype")
        if not files:
            return None
        try:
            return self._memory.recall(_all_read(files), lambda: _read(files, dtype), dtype)
        except (OSError, ValueError):  # not installed, or a name that no file can have
            return None


@dataclass(frozen=True, slots=True)
class _Gguf:
    model: GgufFacts
    projector: ProjectorFacts | None


_Facts: TypeAlias = _Gguf | SafetensorsFacts


def _all_read(files: Sequence[Path]) -> list[Path]:
    """Return every file that an estimate reads."""
    return [part for file in files for part in (sorted(_in_folder(file)) if file.is_dir() else gguf_parts(file))]


def _in_folder(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin") and path.exists())


def _read(files: Sequence[Path], dtype: str | None) -> _Facts | None:
    try:
        return _understood(files, dtype)
    except (ValueError, OSError) as error:
        log.warning("the memory that %s needs cannot be computed: %s", files[0].name, error)
        return None


def _understood(files: Sequence[Path], dtype: str | None) -> _Facts | None:
    """Return what the files say, None for a kind that says nothing; raises ``ValueError`` or ``OSError``."""
    model = files[0]
    if model.is_dir():
        return safetensors_facts(model, dtype)
    if not is_gguf_name(model):
        return None
    projector = projector_facts(read_gguf(files[1])) if len(files) > 1 else None
    return _Gguf(gguf_facts(read_gguf(model)), projector)


def _estimate(facts: _Facts, flags: _Flags, entry: ModelEntry, backend: Backend, *, on_gpu: bool) -> Estimate:
    if isinstance(facts, _Gguf):
        demands = replace(_llama_demands(flags, entry, backend), on_gpu=on_gpu)
        return gguf_estimate(facts.model, demands, facts.projector)
    return vllm_estimate(facts, replace(_vllm_demands(flags, entry, backend), on_gpu=on_gpu))


class _Flags:
    """The engine's arguments of an entry; ``--ctx_size`` is ``--ctx-size``, as for the engines."""

    def __init__(self, entry: ModelEntry) -> None:
        config = entry.backend_config
        self._argv = tuple(map(dashed, (*config.command, *config.extra_args)))
        self._defaults = entry.generation_defaults
        self._read = _with_letters if entry.backend == "vllm" else _whole

    def word(self, *names: str) -> str | None:
        return flag_value(self._argv, *names)

    def number(self, *names: str) -> int | None:
        return self._read(self.word(*names))

    def has(self, *names: str) -> bool:
        return any(word.partition("=")[0] in names for word in self._argv)

    def default(self, *names: str) -> int | None:
        values = (self._defaults.get(name) for name in names)
        return next((value for value in values if isinstance(value, int) and 0 < value <= MOST), None)


def _whole(word: str | None) -> int | None:
    """Read ``4096`` and ``-1``."""
    return int(word) if re.fullmatch(r"-?\d{1,12}", word or "", re.ASCII) and word else None


def _with_letters(word: str | None) -> int | None:
    """Read a number as vLLM does, which knows ``32k`` (thousands) and ``32K`` (1024) as well."""
    match = re.fullmatch(r"(-?\d{1,12})([kKmM]?)", word or "", re.ASCII)
    return int(match[1]) * {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}[match[2]] if match else None


def _llama_demands(flags: _Flags, entry: ModelEntry, backend: Backend) -> Demands:
    """What llama-server is asked for, by the flags that the driver or the entry gives it."""
    slots = flags.number("-np", "--parallel")
    context = flags.number("-c", "--ctx-size")
    layers = flags.number("-ngl", "--gpu-layers", "--n-gpu-layers")
    whole = None if entry.backend_config.command else embedded_tokens(entry)
    is_divided = flags.has("-no-kvu", "--no-kv-unified") or (
        slots is not None and slots > 0 and not flags.has("-kvu", "--kv-unified")
    )
    return Demands(
        context_tokens=(entry.context_tokens if context is None else max(0, context)) or None,
        parallel=slots if slots and slots > 0 else backend.parallel(entry),
        unified=not is_divided,
        batch_tokens=flags.number("-b", "--batch-size") or flags.default("batch_size", "n_batch") or whole or 2048,
        ubatch_tokens=flags.number("-ub", "--ubatch-size") or flags.default("ubatch_size", "n_ubatch") or whole or 512,
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
        scores_all=not entry.started_for <= {"text"} or flags.word("--pooling") not in (None, "none"),
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
