"""Engines that outlive their rolecall: written down while they run, adopted or ended at the next start."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rolecall.core.vram import Placement, Share
from rolecall.runtime import family
from rolecall.runtime.family import Family
from rolecall.runtime.kept_file import KeptFile
from rolecall.runtime.registry import write_atomically

log = logging.getLogger(__name__)

_WAIT_S = 3.0
ENGINES = "engines"
"""The folder in the state folder."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, told apart from every other of its number by when it was born: this boot, and the ticks since then.

    Not by the time of day, which is set right now and then.
    """

    pid: int
    born: str

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Return the identity of a process; of one that is gone nothing is known of its birth."""
        seen = family.look_at(pid)
        return cls(pid, "" if seen is None else seen.born)

    def is_running(self) -> bool:
        """Whether this very process is there and no zombie."""
        seen = family.look_at(self.pid)
        return seen is not None and seen.born == self.born and not seen.is_gone


def boot_s() -> float:
    """Return the seconds since the machine was started, asleep or not: a clock that outlives rolecall."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """An engine as it is written down, with all that the next rolecall must know to go on with it.

    ``pid`` and ``born`` identify its process, ``mark`` everything that it started (``family.ENGINE_VARIABLE``).
    ``started_at`` is in seconds since 1970, ``started_boot_s`` by ``boot_s``. ``fingerprint`` stands for the entry and
    the command line that it was started with. ``is_kept`` says that it is meant to outlive its rolecall, ``is_ready``
    that it answers. ``key`` is what the engine wants to be shown.
    """

    model: str
    pid: int
    born: str
    mark: str = ""
    base_url: str = ""
    health_path: str = "/health"
    killed_last: str | None = None
    log_path: str = ""
    started_at: float = 0.0
    started_boot_s: float = 0.0
    placement: Placement = ()
    fingerprint: str = ""
    is_kept: bool = False
    is_ready: bool = False
    key: str = field(default="", repr=False)

    @property
    def identity(self) -> Identity:
        """The engine's own process."""
        return Identity(self.pid, self.born)

    @property
    def port(self) -> int | None:
        """The port that it listens on."""
        return urlsplit(self.base_url).port

    @property
    def can_be_adopted(self) -> bool:
        """Whether it was left running on purpose, and nothing speaks against going on with it."""
        return self.is_kept and self.is_ready and bool(self.mark) and self.identity.is_running()

    def family(self, *, watched: bool) -> Family:
        """Return what its processes are known by; ``watched`` as in ``Family``."""
        return Family(self.mark, self.pid, self.born, self.killed_last or "", watched=watched)

    def row(self) -> dict[str, Any]:
        """Return it as it stands in the file, where the model is the key."""
        return {name: value for name, value in asdict(self).items() if name != "model"}

    @classmethod
    def from_row(cls, model: str, row: Mapping[str, Any]) -> EngineRecord:
        """Read it; raises ``KeyError``, ``TypeError`` or ``ValueError`` for what makes no sense.

        Only ``pid`` and ``born`` must be there, and unknown fields are left out: other versions wrote them.
        """
        known = {each.name: row[each.name] for each in fields(cls) if each.name in row}
        placement = tuple(Share(**share) for share in row.get("placement", ()))
        return cls(**{**known, "model": model, "pid": int(row["pid"]), "born": row["born"], "placement": placement})


@dataclass(frozen=True, slots=True)
class SeenEngine:
    """An engine that is written down and has processes, ``pid`` one of them; ``is_owned``: its rolecall runs."""

    record: EngineRecord
    pid: int
    is_owned: bool


def engines_seen(state_dir: Path) -> Iterator[SeenEngine]:
    """Yield the engines that run, whoever started them with this state folder; files that make no sense are none."""
    processes = family.look()
    for path in sorted((state_dir / ENGINES).glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            roll = json.loads(path.read_text(encoding="utf-8"))
            owned = Identity(**roll["owner"]).is_running()
            for record in [EngineRecord.from_row(*row) for row in roll["engines"].items()]:
                pids = [seen.pid for seen in record.family(watched=False).members(processes)]
                if pids:
                    yield SeenEngine(record, record.pid if record.pid in pids else pids[0], owned)


class EngineRoll:
    """The engines of this rolecall, in a file of its own in the state folder: ``engines/PID.json``.

    It holds their keys, so nobody else may read it. It stays behind with engines that are kept, or that nobody could
    strike off.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owner = Identity.of(os.getpid())
        self.file = KeptFile(folder / f"{self._owner.pid}.json", "which engines run")
        self._engines: dict[str, EngineRecord] = {}

    @property
    def path(self) -> Path:
        """The file of this process."""
        return self.file.path

    def add(self, record: EngineRecord) -> None:
        """Write an engine down; the launcher does it before the engine begins."""
        self._engines[record.model] = record
        self._write()

    def ready(self, model: str, *, fingerprint: str, placement: Placement = ()) -> None:
        """Note that an engine answers, with what it takes for the next rolecall to adopt it."""
        self._change(model, is_ready=True, fingerprint=fingerprint, placement=placement)

    def place(self, model: str, placement: Placement) -> None:
        """Note what an engine turned out to hold."""
        self._change(model, placement=placement)

    def unready(self, model: str) -> None:
        """Note that an engine is to be stopped or put to sleep: the next rolecall shall end it."""
        self._change(model, is_ready=False)

    def remove(self, model: str) -> None:
        """Strike an engine off; the file goes with the last one."""
        if self._engines.pop(model, None) is not None:
            self._write()

    def _change(self, model: str, **changes: Any) -> None:
        if model in self._engines:
            self.add(replace(self._engines[model], **changes))

    async def write_again(self) -> None:
        """Write what a disk did not take the last time; to be called now and then."""
        if self.file.problem is not None:
            self._write()

    def _write(self) -> None:
        self.file.written(self._put)

    def _put(self) -> None:
        engines = {model: record.row() for model, record in self._engines.items()}
        try:
            if engines or self.file.problem is not None:  # without any it shows whether it can be written by now
                text = json.dumps({"owner": asdict(self._owner), "engines": engines})
                write_atomically(self.path, text, private=True)
        finally:
            if not engines:
                self.path.unlink(missing_ok=True)

    def reap(self) -> list[str]:
        """End the engines whose rolecall is gone and return their models; those of a running one are left alone."""
        return self.adopt(lambda _: False)[1]

    def adopt(self, wanted: Callable[[EngineRecord], bool]) -> tuple[list[EngineRecord], list[str]]:
        """Take over the engines whose rolecall is gone, as far as they were kept, are ready, and are ``wanted``.

        Returns those that are ours now, and the models of the others, which are ended. It takes some seconds if they
        end slowly. No two rolecalls with one state folder adopt the same engine.
        """
        with self._alone():
            orphaned = dict(self._orphaned())
            left = {record.identity: record for records in orphaned.values() for record in records}
            adopted = [each for each in left.values() if each.can_be_adopted and self._takes(each, wanted)]
            ended = _end([record for record in left.values() if record not in adopted])
            self._write()  # before the others go: whenever we are killed, each engine stands in one file at least
            for path in {*orphaned, *self._half_written()} - {self.path}:
                with suppress(OSError):
                    path.unlink()
        return adopted, ended

    def _takes(self, record: EngineRecord, wanted: Callable[[EngineRecord], bool]) -> bool:
        if record.model in self._engines or not wanted(record):
            return False
        self._engines[record.model] = record
        return True

    def _orphaned(self) -> Iterator[tuple[Path, list[EngineRecord]]]:
        """Yield the files whose rolecall is gone; one that makes no sense names no engine."""
        for path in sorted(self._folder.glob("*.json")):
            rows: list[tuple[str, Any]] = []
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                data = json.loads(path.read_text(encoding="utf-8"))
                if Identity(**data["owner"]).is_running():
                    continue
                rows = list(data["engines"].items())
            yield path, [record for model, row in rows if (record := _read(path, model, row))]

    def _half_written(self) -> Iterator[Path]:
        """Yield what rolecalls left that were killed while they wrote their file."""
        for path in self._folder.glob(".*.json.*"):
            writer = path.suffix.removeprefix(".")
            if writer.isdecimal() and family.look_at(int(writer)) is None:
                yield path

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other rolecalls from reading the files of the dead at the same time; the lock ends with its holder."""
        try:
            folder = os.open(self._folder, os.O_RDONLY)
        except OSError:  # there is nothing to read either
            yield
            return
        try:
            with suppress(OSError):  # not every network file system has locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def _read(path: Path, model: str, row: Any) -> EngineRecord | None:
    try:
        return EngineRecord.from_row(model, row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: what it says of the engine of %r makes no sense: %r", path, model, error)
        return None


def _end(records: list[EngineRecord]) -> list[str]:
    """End what is left of these engines, so that ports and memory are free again; return the models that had any."""
    processes = family.look()
    families = [(record.model, record.family(watched=False)) for record in records]
    left = [(model, each) for model, each in families if each.members(processes)]
    if not family.end([each for _, each in left], _WAIT_S):
        log.warning("engines of an earlier run do not end: %s", ", ".join(model for model, _ in left))
    return [model for model, _ in left]
