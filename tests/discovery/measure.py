"""Measure how long a scan of many models takes: headers with whole vocabularies, and holes instead of weights.

    .venv/bin/python tests/discovery/measure.py --models 500 --vocabulary 150000 [--folder FOLDER]

Writes about 12 bytes a token and merge for each GGUF (4 MB with 150,000), and removes all of it at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model_places import model_folder, model_gguf
from rolecall.discovery.discovered_file import following, read_earlier, write
from rolecall.discovery.entries import Ground, entries_of
from rolecall.discovery.places import Place
from rolecall.discovery.rules_file import load_rules
from rolecall.discovery.scan import scan

_GB = 2**30


def main() -> None:
    """Write models, scan them three times, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=500, help="four of five are GGUFs, the others folders")
    parser.add_argument("--vocabulary", type=int, default=150_000, help="tokens, and as many merges")
    parser.add_argument("--folder", type=Path, help="where to write them; else where temporary files are")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        _write(Path(folder) / "models", asked.models, asked.vocabulary)
        os.sync()  # or the disk would be busy with them
        for attempt in (1, 2, 3):
            _measure(Path(folder), attempt)


def _write(folder: Path, count: int, words: int) -> None:
    tokens = [f"token{number % 9973}" for number in range(words)]
    for number in range(count):
        if number % 5 == 0:
            model_folder(folder / "hf" / f"Model-{number}-8B", parts=4, tokenizer_config={"added": tokens[:2000]})
            continue
        tokenizer = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": [1] * words}
        tokenizer |= {"tokenizer__ggml__merges": tokens, "tokenizer__ggml__eos_token_id": 2}
        path = model_gguf(folder / "gguf" / f"Model-{number}-8B-Q4_K_M.gguf", "qwen3", **tokenizer)
        with path.open("ab") as file:
            file.truncate(4 * _GB)


def _measure(folder: Path, attempt: int) -> None:
    began, worked, read_before = time.perf_counter(), time.process_time(), _megabytes_read()
    findings = scan([Place("folder", folder / "models")])
    earlier = read_earlier(folder)
    naming = entries_of(findings.models, Ground(load_rules(folder), known=earlier.names()))
    write(earlier.path, following(earlier, naming.named, findings).entries)
    took = time.perf_counter() - began
    size_gb = sum(model.size_bytes for model in findings.models) // _GB
    print(  # noqa: T201 - that is what it is for
        f"scan {attempt}: {len(naming.named)} models of {size_gb} GB in {took:.2f} s "
        f"({time.process_time() - worked:.2f} s of CPU), {_megabytes_read() - read_before} MB read"
    )


def _megabytes_read() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1]) >> 20


if __name__ == "__main__":
    main()
