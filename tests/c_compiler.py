"""A C compiler for what the tests build: the machine's, or that of the ziglang package, which ``make`` installs."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


class NoCompiler(Exception):
    """There is none."""


def compile_c(source: Path, target: Path, *options: str) -> Path:
    """Compile one file and return ``target``; raises ``NoCompiler``, and ``RuntimeError`` with what is wrong."""
    compiler = next(_compilers(), None)
    if compiler is None:
        raise NoCompiler(f"no C compiler ($CC, cc, gcc, clang or the ziglang package) for {source.name}")
    argv = [*compiler, *options, "-o", str(target), str(source)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(argv)} failed:\n{done.stderr}")
    return target


def _compilers() -> Iterator[list[str]]:
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        argv = shlex.split(command)
        if argv and shutil.which(argv[0]):
            yield argv
    if importlib.util.find_spec("ziglang"):
        yield [sys.executable, "-m", "ziglang", "cc"]
