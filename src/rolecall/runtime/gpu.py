"""What is known of the GPUs, and who may be asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rolecall.core.profiles import GpuSnapshot

NO_LIBRARY = (
    "no NVIDIA driver was found (libnvidia-ml.so.1 cannot be loaded), so models are planned against host RAM; "
    "if there is an NVIDIA GPU, install its driver, or give the container its GPUs (docker run --gpus all)"
)


@dataclass(frozen=True)
class GpuReport:
    """The GPUs that answered, by index, and in words why others or all did not.

    ``processes_mb`` is what the driver says each process holds, MB by GPU UUID and pid. A GPU is absent from it where
    the driver does not tell, for one process or for all. The pids are the host's, also inside a container, where they
    name other processes or none; and some drivers list nobody there: a process that is not listed may hold memory.
    """

    gpus: tuple[GpuSnapshot, ...]
    problem: str | None
    driver_version: str | None
    processes_mb: Mapping[str, Mapping[int, int]] = field(default_factory=dict, hash=False)


class GpuProbe(Protocol):
    """A source of reports; a call may block for a while, so an event loop makes it in a thread."""

    def report(self) -> GpuReport:
        """Return what is there now; raises nothing for a driver that is absent or broken."""
        ...
