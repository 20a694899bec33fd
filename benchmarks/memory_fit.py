# ruff: noqa: INP001 - a script of its own
"""What rolecall says that models need, beside what a real llama.cpp takes: made-up GGUFs of many architectures.

    python benchmarks/memory_fit.py [--only llama,mamba2] [--json]

Models of 18 to 470 MB are written (their weights are holes), loaded by the embedded engine on the CPU, and asked with
a prompt of 2040 tokens at the most. Three things are compared, in MB and percent: the KV cache and the compute buffer
with what llama.cpp prints of them; all buffers with the estimate of `xllamacpp.estimate_gpu_layers`; and the sum with
the memory that the process then holds (see tests/engine_memory.py for how that is measured).

Exit code 1 if a sum is wrong by 10 % or more. Takes some minutes, and 1 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import xllamacpp

from engine_memory import Case, computed, measure
from gguf_shapes import (
    Shape,
    bert,
    deepseek2,
    falcon_h1,
    gpt_oss,
    granite_hybrid,
    lfm2,
    mamba,
    nemotron_h,
    phi3,
    projector,
    qwen3next,
    rwkv7,
    transformer,
    write_gguf,
)
from rolecall.core.footprint import MB

LIMIT = 0.1
ONE = ("-c", "2048", "-np", "1")
FOUR = ("-c", "2048", "-np", "4", "-kvu")


def _llama(layers: int = 16, kv_heads: int = 8) -> Shape:
    return transformer(layers=layers, width=1024, heads=16, kv_heads=kv_heads, feed_forward=4096, words=8000)


def cases(folder: Path) -> Iterator[tuple[str, Case]]:
    """Yield what is measured, by name; the files are written when their turn comes."""

    def made(shape: Shape, *arguments: str, **more: Any) -> Case:
        return Case(write_gguf(folder / "model.gguf", *shape), arguments, **more)

    yield "llama, GQA", made(_llama(), *ONE)
    yield "llama, four share 2048", made(_llama(), *FOUR)
    yield "llama, 4096 divided by 4", made(_llama(), "-c", "4096", "-np", "4")
    yield "llama, 16384 tokens", made(_llama(28), "-c", "16384", "-np", "1")
    yield "llama, q8_0 cache", made(_llama(), *FOUR, "-ctk", "q8_0", "-ctv", "q8_0")
    yield "llama, q4_0 cache", made(_llama(), *FOUR, "-ctk", "q4_0", "-ctv", "q4_0")
    yield "llama, no flash attention", made(_llama(), *ONE, "-fa", "off")
    yield "llama, one head each", made(_llama(8, 16), *ONE)
    windowed = transformer("gemma3", 12, 1024, 16, 8, 4096, 8000, **{"attention.sliding_window": 512})
    yield "gemma3, sliding window", made(windowed, "-c", "8192", "-np", "1")
    yield "gemma3, four share 8192", made(windowed, "-c", "8192", "-np", "4", "-kvu")
    yield "gemma3, --swa-full", made(windowed, "-c", "8192", "-np", "1", "--swa-full")
    yield "gpt-oss, window and MoE", made(gpt_oss(), *FOUR)
    yield "qwen3moe, MoE", made(transformer("qwen3moe", 8, 512, 8, 4, 2048, 8000, experts=16), *FOUR)
    yield "deepseek2, MLA and MoE", made(deepseek2(), *FOUR)
    yield "mamba2, recurrent", made(mamba(words=8000, width=768, inner=1536), *FOUR)
    yield "rwkv7, recurrent", made(rwkv7(width=768), *FOUR)
    yield "granitehybrid", made(granite_hybrid(), *FOUR)
    yield "falcon-h1, both", made(falcon_h1(), *FOUR)
    yield "lfm2, convolutions", made(lfm2(), *FOUR)
    yield "qwen3next, delta net", made(qwen3next(), *FOUR)
    yield "phi3, fused (not fitted)", made(phi3(), *FOUR)
    yield "nemotron_h, of three kinds (not fitted)", made(nemotron_h(), *FOUR)
    yield "bert, embeddings", made(bert(), "-c", "512", "-np", "1", "-b", "512", "-ub", "512", embeds=True)
    seeing = write_gguf(folder / "mmproj.gguf", *projector())
    yield "llama and mmproj", made(_llama(), *ONE, projector=seeing)


def compared(case: Case) -> dict[str, Any]:
    """Return what was computed and what was measured, in MB."""
    found, ours = measure(case), computed(case)
    return {
        "file_mb": round(case.model.stat().st_size / MB),
        "kv_mb": ours.kv_cache_mb,
        "kv_printed_mb": round(found.printed["KV"] + found.printed["RS"], 1),
        "compute_mb": ours.compute_mb,
        "compute_printed_mb": round(found.printed["compute"], 1),
        "xllamacpp_error": _xllamacpp_error(case, found.buffers_mb),
        "computed_mb": ours.mb,
        "resident_mb": round(found.resident_mb, 1),
        "error": round(ours.mb / found.resident_mb - 1, 4),
    }


def _xllamacpp_error(case: Case, buffers_mb: float) -> float | None:
    """How far the package's own estimate is from the buffers; None where it fails. It is Ollama's older formula."""
    gpu = {"name": "any", "memory_free": 2**40, "memory_min": 0}
    files = [str(case.projector)] if case.projector else []
    kind = case.arguments[case.arguments.index("-ctk") + 1] if "-ctk" in case.arguments else "f16"
    try:
        estimate = xllamacpp.estimate_gpu_layers(
            [gpu], str(case.model), files, case.number("-c"), case.number("-ub", 512), case.number("-np"), kind
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    weights = case.projector.stat().st_size / MB if case.projector else 0
    return round(estimate.total_size / MB / (buffers_mb + weights) - 1, 4)


def _percent(share: float | None) -> str:
    return "fails" if share is None else f"{100 * share:+.1f} %"


def _line(name: str, row: Mapping[str, Any]) -> str:
    cells = [
        f"{row['file_mb']}",
        f"{row['kv_mb']} / {row['kv_printed_mb']}",
        f"{row['compute_mb']} / {row['compute_printed_mb']}",
        _percent(row["xllamacpp_error"]),
        f"{row['computed_mb']} / {row['resident_mb']}",
        _percent(row["error"]),
    ]
    return f"| {name} | " + " | ".join(cells) + " |\n"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words of the names, with commas")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = [word for word in options.only.split(",") if word]
    rows: dict[str, dict[str, Any]] = {}
    if not options.json:
        sys.stdout.write(
            "| | file MB | cache | buffer | xllamacpp's | sum / measured | error |\n|---|---|---|---|---|---|---|\n"
        )
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)):
            if wanted and not any(word in name for word in wanted):
                continue
            rows[name] = compared(case)
            if not options.json:
                sys.stdout.write(_line(name, rows[name]))
                sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    return int(any(abs(row["error"]) >= LIMIT for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
