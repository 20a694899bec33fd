"""What NVIDIA's management library (NVML) says of the GPUs, through nvidia-ml-py; no driver is not an error.

NVML ignores ``CUDA_VISIBLE_DEVICES``: a report names every GPU of the machine or container.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pynvml

from rolecall.core.profiles import GpuSnapshot
from rolecall.runtime.gpu import NO_LIBRARY, GpuReport

MB = 2**20

# What it means that NVML cannot be opened, and the way out; other errors are told as they come.
_REASONS: dict[int, str] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NO_LIBRARY,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA driver is installed but its kernel module is not loaded: 'sudo modprobe nvidia', or reboot"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "driver/library version mismatch: the NVIDIA driver was updated while its kernel module was in use; reboot"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "this user may not open the NVIDIA devices: check the permissions of /dev/nvidia* and the user's groups"
    ),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the NVIDIA driver is too old for nvidia-ml-py: update the driver",
}


class NvmlProbe:
    """Reports from NVML, which is opened by the first report and again after it failed.

    Thread-safe: one call at a time, so one that hangs in the driver holds up the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened = False

    def report(self) -> GpuReport:
        """Return every GPU with its memory in MB; one that fails is left out and named in ``problem``."""
        with self._lock:
            try:
                self._open()
                return self._read()
            except pynvml.NVMLError as error:
                self._close()
                return GpuReport((), _driver_problem(error), None)

    def close(self) -> None:
        """Let go of the driver; a later report opens it again."""
        with self._lock:
            self._close()

    def _open(self) -> None:
        if not self._opened:
            pynvml.nvmlInit()
            self._opened = True

    def _close(self) -> None:
        if self._opened:
            self._opened = False
            # A driver that went away cannot be told good-bye.
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _read(self) -> GpuReport:
        version = _driver_version()
        answers = [_ask(index) for index in range(pynvml.nvmlDeviceGetCount())]
        gpus = tuple(answer for answer in answers if isinstance(answer, GpuSnapshot))
        processes = _all_processes(gpus)
        failures = {index: answer for index, answer in enumerate(answers) if isinstance(answer, pynvml.NVMLError)}
        if any(isinstance(error, pynvml.NVMLError_GpuIsLost) for error in failures.values()):
            # NVML lists the devices when it is opened: one that comes back is seen by the next opening only.
            self._close()
        if answers:
            problem = "; ".join(map(_device_problem, failures, failures.values())) or None
            return GpuReport(gpus, problem, version, processes)
        return GpuReport((), "the NVIDIA driver runs but sees no GPU: 'nvidia-smi -L' should list one", version)


def _ask(index: int) -> GpuSnapshot | pynvml.NVMLError:
    try:
        return _snapshot(index)
    except pynvml.NVMLError as error:
        return error


def _snapshot(index: int) -> GpuSnapshot:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    if not memory.total:
        # Parts that share the host's memory answer this or 0, by driver.
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return GpuSnapshot(
        index=index,
        name=_text(lambda: pynvml.nvmlDeviceGetName(handle)),
        uuid=_text(lambda: pynvml.nvmlDeviceGetUUID(handle)),
        vram_total_mb=memory.total // MB,
        vram_free_mb=memory.free // MB,
    )


def _all_processes(gpus: tuple[GpuSnapshot, ...]) -> dict[str, dict[int, int]]:
    answers = {gpu.uuid: _processes(gpu.index) for gpu in gpus}
    return {uuid: processes for uuid, processes in answers.items() if processes is not None}


def _processes(index: int) -> dict[int, int] | None:
    """Return the MB of each process on a GPU, None if the driver does not tell all of them.

    NVML's documentation of nvmlDeviceGetComputeRunningProcesses: in MIG mode a GPU answers for all its instances, so
    that a process can be listed more than once, and only to callers with privileges.
    """
    try:
        # With an old driver the name without a version raises an error that is no NVMLError.
        listed = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError:
        return None
    held: Counter[int] = Counter()
    for process in listed:
        if process.usedGpuMemory is None:
            return None
        held[process.pid] += process.usedGpuMemory
    return {pid: size // MB for pid, size in held.items()}


def _driver_version() -> str | None:
    try:
        return _text(pynvml.nvmlSystemGetDriverVersion)
    except pynvml.NVMLError:
        # The GPUs matter more: if they fail too, their failure is the one that is told.
        return None


def _text(call: Callable[[], str | bytes]) -> str:
    try:
        text = call()
    except UnicodeDecodeError as error:
        # nvidia-ml-py decodes strictly, and some drivers put other bytes into names.
        text = error.object
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def _device_problem(index: int, error: pynvml.NVMLError) -> str:
    if isinstance(error, pynvml.NVMLError_NotSupported):
        return f"GPU {index} is left out: it has no memory of its own for NVML to count (it shares the host's)"
    return f"GPU {index} is left out: {_words(error)}; see 'nvidia-smi' and the kernel log"


def _driver_problem(error: pynvml.NVMLError) -> str:
    return _REASONS.get(error.value, f"the NVIDIA driver fails: {_words(error)}; 'nvidia-smi' has to work first")


def _words(error: pynvml.NVMLError) -> str:
    return f"{str(error).rstrip('.')} (NVML error {error.value})"
