"""Machines with GPUs that are not there: a stand-in for NVIDIA's library, and an environment that points to it.

nvidia-ml-py finds it through ``LD_LIBRARY_PATH``, which the loader reads when a process starts: what looks at GPUs
has to be a subprocess.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from c_compiler import NoCompiler, compile_c
from rolecall.core.profiles import GpuSnapshot
from simulator.memory import ALLOCATIONS_VARIABLE, GPUS_VARIABLE, Simulation

SOURCE = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Machine:
    """GPUs in NVML's order (a number: a GPU that fails with that NVML error), or a driver that fails or is absent.

    ``processes`` says how the GPUs answer the question for their processes, one kind for all or one for each:
    ``listed``, ``empty``, ``unmeasured`` (without figures), ``host-pids`` (as in a container) or an NVML error.
    """

    gpus: tuple[GpuSnapshot | int, ...] = ()
    driver_error: int = 0
    driver: bool = True
    processes: str | int | tuple[str | int, ...] = "listed"

    def text(self) -> str:
        """Return the file that the stand-in reads."""
        if self.driver_error:
            return f"error {self.driver_error}\n"
        kinds = self.processes if isinstance(self.processes, tuple) else (self.processes,) * len(self.gpus)
        lines: list[str] = []
        kind: str | int = "listed"
        for gpu, own in zip(self.gpus, kinds, strict=True):
            lines += [_line(gpu)] if own == kind else [f"processes {own}\n", _line(gpu)]
            kind = own
        return "".join(lines)

    def write(self, path: Path) -> None:
        """Make this the machine that processes with this file see from their next look on."""
        fresh = path.with_suffix(".new")
        fresh.write_bytes(os.fsencode(self.text()))
        fresh.replace(path)


def card(index: int, total_mb: int, free_mb: int | None = None, name: str = "NVIDIA Test GPU") -> GpuSnapshot:
    """Return a GPU of that size, 300 MB of it taken where ``free_mb`` is not given."""
    free_mb = max(0, total_mb - 300) if free_mb is None else free_mb
    return GpuSnapshot(index, name, f"GPU-00000000-0000-0000-0000-{index:012}", total_mb, free_mb)


def cards(*totals_mb: int) -> Machine:
    """Return a machine with one GPU of each of these sizes."""
    return Machine(tuple(card(index, total_mb) for index, total_mb in enumerate(totals_mb)))


ONE_8GB = cards(8192)
ONE_16GB = cards(16376)
ONE_24GB = cards(24564)
TWO_16GB = cards(16376, 16376)
UNLIKE_PAIR = cards(16376, 24564)
ONE_96GB = cards(97887)
ONE_141GB = cards(143771)
FOUR_24GB = cards(24564, 24564, 24564, 24564)
NO_GPU = Machine()
NO_DRIVER = Machine(driver=False)
DRIVER_NOT_LOADED = Machine(driver_error=9)
DRIVER_MISMATCH = Machine(driver_error=18)
DRIVER_ERROR = Machine(driver_error=999)


def build(folder: Path) -> Path:
    """Compile the stand-in into ``folder`` and return its path; skips the test where there is no C compiler."""
    # Here, so that a machine can be simulated by hand without the tests' packages.
    import pytest

    try:
        return compile_library(folder)
    except NoCompiler as error:
        pytest.skip(str(error))


def compile_library(folder: Path) -> Path:
    """Compile the stand-in into ``folder`` and return its path; raises ``NoCompiler``, and ``RuntimeError``."""
    return compile_c(SOURCE, folder / LIBRARY, "-shared", "-fPIC", "-O1")


def environment(library: Path, machine: Machine, folder: Path) -> dict[str, str]:
    """Return this process's environment with the machine in it, for a subprocess; see ``variables``."""
    return {**os.environ, **variables(library, machine, folder)}


def simulation(folder: Path) -> Simulation:
    """Return the simulation whose files are in ``folder``, for the functions of ``simulator.memory``."""
    return Simulation(folder / "gpus.txt", folder / "allocations")


def variables(library: Path, machine: Machine, folder: Path) -> dict[str, str]:
    """Return what the environment of a process needs that is to see the machine; its files go to ``folder``.

    ``folder/gpus.txt`` describes the GPUs (``Machine.write`` changes them while a process runs),
    ``folder/allocations`` is what processes hold of their memory, and ``folder/nvml_calls.txt`` will list the calls
    that opened and closed the library.
    """
    places = simulation(folder)
    places.allocations.mkdir(exist_ok=True)
    machine.write(places.machine)
    if not machine.driver:
        library = folder / "no-driver" / LIBRARY
        library.parent.mkdir(exist_ok=True)
        # The loader stops at a file that is no library, so that a real driver further down its path is not found.
        library.write_text("no library\n")
    return {
        "LD_LIBRARY_PATH": str(library.parent),
        GPUS_VARIABLE: str(places.machine),
        ALLOCATIONS_VARIABLE: str(places.allocations),
        "NVML_STUB_CALLS": str(folder / "nvml_calls.txt"),
    }


def _line(gpu: GpuSnapshot | int) -> str:
    if isinstance(gpu, int):
        return f"gpu-error {gpu}\n"
    return f"{gpu.vram_total_mb} {gpu.vram_free_mb} {gpu.uuid} {gpu.name}\n"
