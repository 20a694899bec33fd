"""All processes of an engine, found in ``/proc`` wherever they went, and ended together.

The guardian loads this module and nothing else of rolecall: it imports the smallest parts of the standard library only,
which is why its values are no dataclasses.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

ENGINE_VARIABLE = "ROLECALL_ENGINE"
"""In the environment of everything that an engine starts: a mark that no other start of an engine has."""
_VARIABLE = f"{ENGINE_VARIABLE}=".encode()
_CLEAN_UP_S = 1.0
"""How long those that are spared have for their work once they are alone; they need some milliseconds."""
_EXITING = 0x4
"""PF_EXITING (linux/sched.h): the thread is on its way out and takes no signal; set before it closes its files."""
_FIRST_LOOK_S, _LAST_LOOK_S = 0.01, 0.1


class Seen:
    """A process as ``/proc`` shows it; ``born`` is the boot and the ticks since then (proc_pid_stat(5), field 22)."""

    __slots__ = ("_mark", "born", "is_exiting", "is_gone", "is_headless", "parent", "pid", "session")

    def __init__(self, pid: int, stat: str, boot: str) -> None:
        fields = stat.rpartition(")")[2].split()
        self.pid = pid
        self.parent = int(fields[1])
        self.session = int(fields[3])
        self.born = f"{boot} {fields[19]}"
        is_zombie = fields[0] in {"Z", "X"}
        # Other threads can outlive the first one, and hold all memory as long as they do.
        self.is_headless = is_zombie and int(fields[17]) > 1
        self.is_gone = is_zombie and not self.is_headless
        self.is_exiting = is_zombie or bool(int(fields[6]) & _EXITING)  # this very thread
        self._mark: str | None = None

    @property
    def mark(self) -> str:
        """The value of ``ROLECALL_ENGINE``; empty if there is none, or the process belongs to somebody else."""
        if self._mark is None:
            variables = _environment(self).split(b"\0")
            found = (each.partition(b"=")[2] for each in variables if each.startswith(_VARIABLE))
            self._mark = next(found, b"").decode("utf-8", "replace")
        return self._mark

    def is_called(self, words: str) -> bool:
        """Whether its command line contains ``words``."""
        return words.encode() in _read(f"/proc/{self.pid}/cmdline").replace(b"\0", b" ")


def look_at(pid: int) -> Seen | None:
    """Return one process; None if there is none of that number, or no ``/proc``."""
    return _see(pid, _boot())


def is_ending(pid: int, born: str) -> bool:
    """Whether a process is gone or on its way out, all threads of it; False where there is no ``/proc``.

    It is so before anybody finds its connections closed by its end.
    """
    seen = look_at(pid)
    if seen is None or seen.born != born:
        return bool(born)
    if seen.is_gone or not seen.is_exiting:
        return seen.is_gone
    folder = f"/proc/{pid}/task"
    stats = [_read(f"{folder}/{name}/stat") for name in _names(folder)]
    return all(Seen(pid, stat.decode("ascii", "replace"), "").is_exiting for stat in stats if stat)


def look() -> dict[int, Seen]:
    """Return all processes by their numbers, zombies too; empty where there is no ``/proc``."""
    boot = _boot()
    found = (_see(int(name), boot) for name in _names("/proc") if name.isdigit())
    return {seen.pid: seen for seen in found if seen is not None}


def _see(pid: int, boot: str) -> Seen | None:
    stat = _read(f"/proc/{pid}/stat")
    return Seen(pid, stat.decode("ascii", "replace"), boot) if boot and stat else None


def _environment(seen: Seen) -> bytes:
    folder = f"/proc/{seen.pid}"
    if not seen.is_headless:
        return _read(f"{folder}/environ")
    threads = (_read(f"{folder}/task/{name}/environ") for name in _names(f"{folder}/task"))
    return next((each for each in threads if each), b"")


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - pathlib would be most of what the guardian loads
    except OSError:
        return []


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id").decode("ascii", "replace").strip()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:  # it is gone, or somebody else's
        return b""


class Family:
    """An engine with everything that it started.

    ``mark`` is the value of ``ROLECALL_ENGINE``; a process that overwrote its environment is known by its session or by
    its parents, and whoever was seen once stays a member: a process that ends loses its environment first and then,
    for a GPU's memory after a while, the rest. ``pid`` and ``born`` are the engine's own process, which leads the
    session; 0 and "" before it is started. ``spare`` is a part of the command line of those that end last, "" for none.
    ``watched`` says that somebody has looked after the family without a gap: then the session's number cannot have come
    again, and all in it are ours.
    """

    __slots__ = ("_known", "born", "mark", "pid", "spare", "watched")

    def __init__(self, mark: str, pid: int = 0, born: str = "", spare: str = "", *, watched: bool = True) -> None:
        self.mark = mark
        self.pid = pid
        self.born = born
        self.spare = spare
        self.watched = watched
        self._known: dict[int, str] = {}

    def members(self, processes: dict[int, Seen]) -> list[Seen]:
        """Return those of ``processes`` that are of this family and no zombies."""
        leader = processes.get(self.pid)
        is_led = leader is not None and leader.born == self.born
        marked = {seen.pid for seen in processes.values() if self.mark and seen.mark == self.mark}
        # Nobody enters a session from outside: one that holds a marked process is ours.
        is_ours = self.watched or any(processes[pid].session == self.pid for pid in marked)
        owns_session = self.pid != 0 and (is_led or (is_ours and leader is None))
        ours = marked | {
            seen.pid
            for seen in processes.values()
            if (is_led and seen.pid == self.pid)
            or (owns_session and seen.session == self.pid)
            or self._known.get(seen.pid) == seen.born
        }
        _add_descendants(ours, processes)
        members = [processes[pid] for pid in sorted(ours) if not processes[pid].is_gone and pid != os.getpid()]
        self._known = {seen.pid: seen.born for seen in members}
        return members

    def spares(self, seen: Seen) -> bool:
        """Whether a member is to end last."""
        return bool(self.spare) and seen.is_called(self.spare)


def _add_descendants(pids: set[int], processes: dict[int, Seen]) -> None:
    """Add to ``pids`` the children of all that are in it, and their children."""
    children: dict[int, list[int]] = {}
    for seen in processes.values():
        children.setdefault(seen.parent, []).append(seen.pid)
    todo = list(pids)
    while todo:
        new = [pid for pid in children.get(todo.pop(), ()) if pid not in pids]
        pids.update(new)
        todo += new


def send(seen: Seen, number: int) -> None:
    """Signal this very process and never another one that got its number; nothing happens if it is gone."""
    try:
        handle = os.pidfd_open(seen.pid)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):  # a kernel before 5.3, or a Python built for one
        handle = -1
    try:
        now = look_at(seen.pid)
        if now is not None and now.born == seen.born:
            _signal(seen.pid, handle, number)
    finally:
        if handle >= 0:
            os.close(handle)


def _signal(pid: int, handle: int, number: int) -> None:
    try:
        if handle >= 0:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def end(families: Iterable[Family], limit_s: float = float("inf")) -> bool:
    """Kill all members, those that are spared last; return whether nothing is left.

    It goes on until nobody is found twice in a row: what is forked in the moment of a look is seen by the next one.
    """
    ends = [_End(family) for family in families]
    deadline, pause_s, empty_looks = time.monotonic() + limit_s, _FIRST_LOOK_S, 0
    while True:
        processes = look()
        is_empty = not [each for each in ends if each.go_on(processes)]
        empty_looks = empty_looks + 1 if is_empty else 0
        if empty_looks == 2 or time.monotonic() > deadline:
            return is_empty
        time.sleep(_FIRST_LOOK_S if is_empty else pause_s)
        pause_s = min(_LAST_LOOK_S, pause_s * 1.3)


class _End:
    """The end of one family."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._spared_until: float | None = None

    def go_on(self, processes: dict[int, Seen]) -> bool:
        """Kill who is to be killed now; return whether anybody was left."""
        members = self._family.members(processes)
        rest = [member for member in members if not self._family.spares(member)]
        if members and not rest:
            now = time.monotonic()
            self._spared_until = self._spared_until or now + _CLEAN_UP_S
            rest = members if now >= self._spared_until else []
        for member in rest:
            send(member, signal.SIGKILL)
        return bool(members)
