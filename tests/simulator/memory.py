"""The memory of simulated GPUs, which processes take and give back.

The rule, which nvml_stub.c follows too. A process that holds memory has a file in the folder of allocations:

- Its name is ``PID-BIRTH``, BIRTH being field 22 of ``/proc/PID/stat``. Its lines are ``UUID MB LATE_S``.
- The memory is held while that process lives; a zombie does not.
- Who first finds it dead, while looking for whatever reason, leaves an empty file ``PID-BIRTH.dead``. For LATE_S after
  the time of that file the memory still shows as held, and then it is free. Nobody has to be told of a death.
- Who takes more holds a lock on the file ``lock``. Files are replaced whole, so that a reader needs no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

GPUS_VARIABLE = "NVML_STUB_GPUS"
ALLOCATIONS_VARIABLE = "NVML_STUB_ALLOCATIONS"


class OutOfMemory(Exception):
    """A GPU has less free than was asked for beyond what the process holds; ``mb`` is that amount."""

    def __init__(self, index: int, mb: int) -> None:
        super().__init__(f"GPU {index} has no {mb} MB")
        self.index, self.mb = index, mb


@dataclass(frozen=True)
class Card:
    """A GPU as the machine file has it; ``free_mb`` is what is not held by others outside the simulation."""

    index: int
    uuid: str
    total_mb: int
    free_mb: int


@dataclass(frozen=True)
class Simulation:
    """Where a simulation lives: the file that describes its machine, and the folder of allocations."""

    machine: Path
    allocations: Path


def from_environment(environ: Mapping[str, str]) -> Simulation | None:
    """Return the simulation that the variables name, None without them."""
    machine, allocations = environ.get(GPUS_VARIABLE), environ.get(ALLOCATIONS_VARIABLE)
    return Simulation(Path(machine), Path(allocations)) if machine and allocations else None


def cards(simulation: Simulation) -> list[Card]:
    """Return the GPUs that work, by NVML's index."""
    lines = [line for line in _lines(simulation) if not line.startswith(("processes ", "error "))]
    return [_card(index, line) for index, line in enumerate(lines) if not line.startswith("gpu-error ")]


def visible(simulation: Simulation, cuda_visible_devices: str | None) -> list[Card]:
    """Return the GPUs that a process with this ``CUDA_VISIBLE_DEVICES`` sees, in its order; GPU 0 where it is unset.

    As in CUDA a word is an index or the beginning of a UUID, and the first word that names no GPU ends the list.
    """
    known = cards(simulation)
    if cuda_visible_devices is None:
        return known[:1]
    seen: list[Card] = []
    for word in cuda_visible_devices.split(","):
        named = [card for card in known if _names(word.strip(), card)]
        if len(named) != 1:
            break
        seen += named
    return seen


def free_mb(simulation: Simulation) -> dict[str, int]:
    """Return what NVML shows as free on each GPU, by UUID."""
    taken: Counter[str] = Counter()
    for held in _holdings(simulation).values():
        taken.update(held)
    return {card.uuid: max(0, card.free_mb - taken[card.uuid]) for card in cards(simulation)}


def held_mb(simulation: Simulation, pid: int) -> dict[str, int]:
    """Return what a process holds of each GPU, by UUID; nothing for one that is dead."""
    birth = birth_of(pid)
    return _read(simulation.allocations / f"{pid}-{birth}")[0] if birth is not None else {}


def hold(simulation: Simulation, mb: Mapping[str, int], *, late_s: float = 0.0, pid: int | None = None) -> None:
    """Make this what a living process (default: this one) holds of each GPU by UUID, more or less than before.

    After its death the memory is free ``late_s`` late. Raises ``OutOfMemory`` and changes nothing where it does not
    fit, and ``ProcessLookupError`` for a process that is dead.
    """
    pid = os.getpid() if pid is None else pid
    birth = birth_of(pid)
    if birth is None:
        raise ProcessLookupError(pid)
    with _locked(simulation):
        _sweep(simulation)
        before, free = held_mb(simulation, pid), free_mb(simulation)
        for card in cards(simulation):
            more = mb.get(card.uuid, 0) - before.get(card.uuid, 0)
            if more > free[card.uuid]:
                raise OutOfMemory(card.index, more)
        lines = (f"{uuid} {amount} {late_s}\n" for uuid, amount in mb.items())
        _replace(simulation.allocations / f"{pid}-{birth}", "".join(lines))


def set_foreign_mb(simulation: Simulation, uuid: str, mb: int) -> None:
    """Let others outside the simulation hold so much of a GPU from now on: a game, another user."""
    total = next(card.total_mb for card in cards(simulation) if card.uuid == uuid)
    lines = [
        f"{total} {total - mb} {line.split(' ', 2)[2]}" if f" {uuid} " in line else line for line in _lines(simulation)
    ]
    _replace(simulation.machine, "".join(f"{line}\n" for line in lines))


def birth_of(pid: int) -> int | None:
    """Return when a process began, in clock ticks after the boot; None for one that is dead or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def _lines(simulation: Simulation) -> list[str]:
    return os.fsdecode(simulation.machine.read_bytes()).splitlines()


def _card(index: int, line: str) -> Card:
    total, free, uuid, _ = line.split(" ", 3)
    return Card(index, uuid, int(total), int(free))


def _names(word: str, card: Card) -> bool:
    return int(word) == card.index if word.isdigit() else word.startswith("GPU-") and card.uuid.startswith(word)


def _holdings(simulation: Simulation) -> dict[Path, dict[str, int]]:
    """What every process holds, the dead ones included until their time is over."""
    names = (path for path in simulation.allocations.iterdir() if re.fullmatch(r"\d+-\d+", path.name))
    held = ((path, *_read(path)) for path in names)
    return {path: mb for path, mb, late_s in held if _is_alive(path) or _dead_for_s(path) < late_s}


def _read(path: Path) -> tuple[dict[str, int], float]:
    """The MB by UUID in a file of allocations, and how late they are free."""
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except FileNotFoundError:
        rows = []
    return {uuid: int(mb) for uuid, mb, _ in rows}, max((float(late_s) for *_, late_s in rows), default=0.0)


def _is_alive(path: Path) -> bool:
    pid, _, birth = path.name.partition("-")
    return birth_of(int(pid)) == int(birth)


def _dead_for_s(path: Path) -> float:
    mark = path.with_name(f"{path.name}.dead")
    with contextlib.suppress(FileExistsError):
        mark.touch(exist_ok=False)
    return time.time() - mark.stat().st_mtime


def _sweep(simulation: Simulation) -> None:
    """Remove what is free again; the marks stay, for readers that have such a file open."""
    held = _holdings(simulation)
    for path in simulation.allocations.iterdir():
        if re.fullmatch(r"\d+-\d+", path.name) and path not in held and not _is_alive(path):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(simulation: Simulation) -> Iterator[None]:
    with (simulation.allocations / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(os.fsencode(text))
    fresh.replace(path)
