"""The probe of GPUs for a machine of which it is not known whether it has NVIDIA's driver."""

from __future__ import annotations

import ctypes
import sys
import threading

from rolecall.runtime.gpu import NO_LIBRARY, GpuProbe, GpuReport


class DriverProbe:
    """Reports from NVIDIA's driver; nvidia-ml-py, which takes 2 MB, is imported where there is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nvml: GpuProbe | None = None

    def report(self) -> GpuReport:
        """Return what the driver says; one that is installed later is found."""
        with self._lock:
            self._nvml = self._nvml or _nvml()
        return GpuReport((), NO_LIBRARY, None) if self._nvml is None else self._nvml.report()


def _nvml() -> GpuProbe | None:
    if sys.platform != "win32":
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return None
    from rolecall.runtime.nvml import NvmlProbe  # noqa: PLC0415 - see above

    return NvmlProbe()
