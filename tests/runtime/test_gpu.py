"""NVML through nvidia-ml-py itself, against a stand-in for NVIDIA's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rolecall.core.profiles import GpuSnapshot, activate, parse_profiles
from rolecall.runtime.gpu import GpuReport
from simulator import memory, nvml
from simulator.nvml import Machine, card, cards

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parents[2] / "configs"
HOST_RAM_MB = 32_000

# Each argument is the next content of the stand-in's file; "close" closes the probe, "threads" asks from eight of them.
OBSERVER = """
import dataclasses, json, os, pathlib, sys
from concurrent.futures import ThreadPoolExecutor
from rolecall.runtime.nvml import NvmlProbe
probe = NvmlProbe()
for step in sys.argv[1:]:
    if step == "close":
        probe.close()
    elif step == "threads":
        with ThreadPoolExecutor(8) as pool:
            reports = set(pool.map(lambda _: probe.report(), range(64)))
        print(json.dumps([dataclasses.asdict(report) for report in reports]))
    else:
        pathlib.Path(os.environ["NVML_STUB_GPUS"]).write_bytes(os.fsencode(step))
        print(json.dumps([dataclasses.asdict(probe.report())]))
"""


class Observer:
    """Runs one NvmlProbe in one subprocess over a machine and what becomes of it."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library, self.folder = library, folder

    def __call__(self, machine: Machine, *later: Machine | str) -> list[GpuReport]:
        """Return the reports, in order; of "threads" only the differing ones."""
        env = nvml.environment(self.library, machine, self.folder)
        steps = [step if isinstance(step, str) else step.text() for step in (machine, *later)]
        argv = [sys.executable, "-c", OBSERVER, *steps]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return [_report(report) for line in done.stdout.splitlines() for report in json.loads(line)]

    def calls(self) -> list[str]:
        """Return what opened and closed the library."""
        return (self.folder / "nvml_calls.txt").read_text().split()


def _report(fields: dict[str, Any]) -> GpuReport:
    gpus = tuple(GpuSnapshot(**gpu) for gpu in fields.pop("gpus"))
    listed = fields.pop("processes_mb")
    processes = {uuid: {int(pid): mb for pid, mb in held.items()} for uuid, held in listed.items()}
    return GpuReport(gpus=gpus, processes_mb=processes, **fields)


@pytest.fixture
def observe(nvml_library: Path, tmp_path: Path) -> Observer:
    return Observer(nvml_library, tmp_path)


@pytest.mark.parametrize(
    ("machine", "profile", "budget_mb", "problem"),
    [
        pytest.param(nvml.ONE_8GB, "development", 6144, None, id="8 GB"),
        pytest.param(nvml.ONE_16GB, "constrained_16gb", 14328, None, id="16376"),
        pytest.param(nvml.ONE_24GB, "balanced_24gb", 22516, None, id="24564"),
        pytest.param(nvml.TWO_16GB, "multi_gpu_2x16gb", 28656, None, id="2x16376"),
        pytest.param(nvml.UNLIKE_PAIR, "balanced_24gb", 22516, None, id="16+24"),
        pytest.param(nvml.ONE_96GB, "generous_96gb", 95839, None, id="97887"),
        pytest.param(nvml.ONE_141GB, "generous_96gb", 141723, None, id="143771"),
        pytest.param(nvml.FOUR_24GB, "generous_96gb", 90064, None, id="4x24564"),
        pytest.param(nvml.NO_DRIVER, "development", 29952, "no NVIDIA driver was found", id="no driver"),
        pytest.param(nvml.NO_GPU, "development", 29952, "sees no GPU", id="no GPU"),
        pytest.param(nvml.DRIVER_NOT_LOADED, "development", 29952, "sudo modprobe nvidia", id="not loaded"),
        pytest.param(nvml.DRIVER_MISMATCH, "development", 29952, "version mismatch", id="mismatch"),
        pytest.param(nvml.DRIVER_ERROR, "development", 29952, "Unknown Error (NVML error 999)", id="error"),
    ],
)
def test_machine_is_detected(
    observe: Observer, machine: Machine, profile: str, budget_mb: int, problem: str | None
) -> None:
    """A machine's GPUs come through nvidia-ml-py as they are and decide its profile and budget."""
    (report,) = observe(machine)
    assert report.gpus == machine.gpus
    assert (report.problem is None) == (problem is None)
    assert (problem or "") in (report.problem or "")
    assert (report.driver_version is not None) == (machine.driver and not machine.driver_error)
    shipped = parse_profiles(tomllib.loads((CONFIGS / "profiles.toml").read_text()))
    active = activate(shipped, report.gpus, HOST_RAM_MB, forced=None)
    assert (active.profile.name, active.source, active.budget_mb) == (profile, "auto", budget_mb)


def test_free_memory_is_read_anew(observe: Observer) -> None:
    """Each report has the memory of its moment, from a library that was opened once."""
    taken = [Machine((card(0, 24564, free_mb),)) for free_mb in (24000, 9000, 24000)]
    assert [report.gpus[0].vram_free_mb for report in observe(*taken)] == [24000, 9000, 24000]
    assert observe.calls() == ["nvmlInitWithFlags"]


def test_driver_that_comes_back_is_opened_again(observe: Observer) -> None:
    """A driver that fails later or at first is opened anew by the next report."""
    steps = (nvml.DRIVER_NOT_LOADED, nvml.ONE_16GB, nvml.DRIVER_ERROR, nvml.ONE_16GB)
    assert [len(report.gpus) for report in observe(*steps)] == [0, 1, 0, 1]
    opened = "nvmlInitWithFlags"
    assert observe.calls() == [opened, opened, "nvmlShutdown", opened]


def test_failing_gpu_is_left_out_and_named(observe: Observer) -> None:
    """One GPU that answers with an error does not hide the others, which keep their index."""
    (report,) = observe(Machine((card(0, 16376), 16, card(2, 24564))))
    assert [gpu.index for gpu in report.gpus] == [0, 2]
    assert report.problem
    assert "GPU 1 is left out: GPU requires restart (NVML error 16)" in report.problem
    assert observe.calls() == ["nvmlInitWithFlags"]


def test_lost_gpu_is_looked_for_again(observe: Observer) -> None:
    """A GPU that fell off the bus makes the next report open the library again, which finds it once it is back."""
    whole = cards(16376, 24564)
    lost, back = observe(Machine((whole.gpus[0], 15)), whole)
    assert (lost.gpus, back.gpus) == (whole.gpus[:1], whole.gpus)
    assert back.problem is None
    assert observe.calls() == ["nvmlInitWithFlags", "nvmlShutdown", "nvmlInitWithFlags"]


@pytest.mark.parametrize("shared", [3, card(0, 0)], ids=["not supported", "0 MB"])
def test_gpu_without_memory_of_its_own(observe: Observer, shared: GpuSnapshot | int) -> None:
    """A part that shares the host's memory counts as none, so that the budget is host RAM and not 0."""
    (report,) = observe(Machine((shared,)))
    assert report.gpus == ()
    assert report.problem
    assert "shares the host's" in report.problem


def test_name_of_other_bytes(observe: Observer) -> None:
    """A name that is not UTF-8 is shown with replacement characters instead of failing the GPU."""
    (report,) = observe(Machine((card(0, 8192, name="NVIDIA \udcf8"),)))
    assert [gpu.name for gpu in report.gpus] == ["NVIDIA \ufffd"]


def test_threads_share_one_probe(observe: Observer) -> None:
    """Reports asked for from several threads at once agree, and open the library once."""
    first, *threaded = observe(nvml.FOUR_24GB, "threads")
    assert threaded == [first]
    assert observe.calls() == ["nvmlInitWithFlags"]


def test_processes_are_told_where_the_driver_tells_them(observe: Observer) -> None:
    """Each GPU lists its processes by pid; one that refuses or has no figures is absent, and keeps its memory."""
    gpus = cards(16376, 16376, 16376, 16376).gpus
    assert all(isinstance(gpu, GpuSnapshot) for gpu in gpus)
    uuids = [gpu.uuid for gpu in gpus if isinstance(gpu, GpuSnapshot)]
    nvml.environment(observe.library, Machine(gpus), observe.folder)
    memory.hold(nvml.simulation(observe.folder), dict.fromkeys(uuids, 1000))
    (report,) = observe(Machine(gpus, processes=("listed", 3, "unmeasured", "empty")))
    assert report.processes_mb == {uuids[0]: {os.getpid(): 1000}, uuids[3]: {}}
    assert [gpu.vram_free_mb for gpu in report.gpus] == [15076] * 4
    assert report.problem is None


def test_lost_gpu_has_no_processes(observe: Observer) -> None:
    """Only a GPU that answered is asked for its processes, and before the library is opened anew for the lost one."""
    (report,) = observe(Machine((card(0, 16376), 15)))
    assert list(report.processes_mb) == [card(0, 16376).uuid]


def test_process_that_is_listed_twice(observe: Observer) -> None:
    """In MIG mode a process can be listed once for each instance that it uses; its parts add up."""
    nvml.environment(observe.library, nvml.ONE_16GB, observe.folder)
    uuid, owner = card(0, 16376).uuid, f"{os.getpid()}-{memory.birth_of(os.getpid())}"
    (nvml.simulation(observe.folder).allocations / owner).write_text(f"{uuid} 1000 0\n{uuid} 500 0\n")
    (report,) = observe(nvml.ONE_16GB)
    assert report.processes_mb == {uuid: {os.getpid(): 1500}}


def test_report_without_processes() -> None:
    """A report can be made without figures of processes, and reports can be told apart in a set."""
    report = GpuReport((), None, "580")
    assert report.processes_mb == {}
    assert len({report, GpuReport((), None, "580"), GpuReport((), None, "581")}) == 2


def test_close_lets_go_of_the_driver(observe: Observer) -> None:
    """Closing shuts the library once, twice over; a later report opens it again."""
    first, second = observe(nvml.ONE_8GB, "close", "close", nvml.ONE_8GB)
    assert first == second
    assert observe.calls() == ["nvmlInitWithFlags", "nvmlShutdown", "nvmlInitWithFlags"]


def test_driver_that_is_installed_later_is_found(nvml_library: Path, tmp_path: Path) -> None:
    """Without the driver's library nvidia-ml-py is not even imported; the first report that finds it imports it."""
    script = (
        "import shutil, sys; from rolecall.runtime.driver_probe import DriverProbe; probe = DriverProbe()\n"
        "print(probe.report().problem, 'pynvml' in sys.modules); shutil.copy(*sys.argv[1:])\n"
        "print([gpu.vram_total_mb for gpu in probe.report().gpus], 'pynvml' in sys.modules)"
    )
    argv = [sys.executable, "-c", script, str(nvml_library), str(tmp_path / "no-driver" / nvml_library.name)]
    env = nvml.environment(nvml_library, nvml.NO_DRIVER, tmp_path)
    nvml.ONE_8GB.write(tmp_path / "gpus.txt")
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    without, found = done.stdout.splitlines()
    assert without.startswith("no NVIDIA driver was found")
    assert without.endswith(" False")
    assert found == "[8192] True"


def test_both_memory_structures(nvml_library: Path, tmp_path: Path) -> None:
    """The stand-in answers nvidia-ml-py's second memory structure with the figures of the first."""
    script = (
        "import pynvml; pynvml.nvmlInit(); gpu = pynvml.nvmlDeviceGetHandleByIndex(0)\n"
        "infos = [pynvml.nvmlDeviceGetMemoryInfo(gpu, version) for version in (None, pynvml.nvmlMemory_v2)]\n"
        "print([(info.total, info.free, info.used) for info in infos])"
    )
    env = nvml.environment(nvml_library, Machine((card(0, 16376, 1000),)), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    figures = (16376 << 20, 1000 << 20, 15376 << 20)
    assert done.stdout.strip() == str([figures, figures])
