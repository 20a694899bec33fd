"""Make a machine with simulated GPUs in FOLDER, and print the variables that let a shell's programs see them.

    eval "$(.venv/bin/python tests/simulator/simulate.py /tmp/gpus 16376 24564:20000)"

docs/simulator.md has the rest.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

# As pytest has it (pythonpath in pyproject.toml); a script has only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from c_compiler import NoCompiler
from rolecall.core.profiles import GpuSnapshot
from simulator import nvml
from simulator.nvml import Machine, card


def main() -> None:
    """Write the machine and print one ``export`` for each variable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made if need be; the same folder again replaces its machine")
    parser.add_argument("gpus", nargs="+", metavar="MB[:FREE_MB]", help="the GPUs: size, and what is free (size - 300)")
    parser.add_argument(
        "--processes", default="listed", help="listed, empty, unmeasured, host-pids or the number of an NVML error"
    )
    chosen = parser.parse_args()
    folder: Path = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    gpus = tuple(_gpu(index, size) for index, size in enumerate(chosen.gpus))
    try:
        library = nvml.compile_library(folder)
    except NoCompiler as error:
        sys.exit(str(error))
    shown = nvml.variables(library, Machine(gpus, processes=chosen.processes), folder)
    shown["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
    for name, value in shown.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


def _gpu(index: int, text: str) -> GpuSnapshot:
    total, _, free = text.partition(":")
    return card(index, int(total), int(free) if free else None)


if __name__ == "__main__":
    main()
