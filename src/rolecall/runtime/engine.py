"""One loaded model as the supervisor keeps it, and how it is made from an entry: port, command line, devices."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import httpx

from rolecall.backends.base import LOOPBACK, Backend, Launch, RemoteLoad, Upstream
from rolecall.backends.smaller import reduced
from rolecall.core.models import ModelEntry
from rolecall.core.reductions import Reduction
from rolecall.core.vram import HOST, Placement
from rolecall.runtime.gpu import GpuReport
from rolecall.runtime.instance import Exit, Instance, Patience
from rolecall.runtime.launcher import Launcher
from rolecall.runtime.lease import Lease
from rolecall.runtime.leftovers import EngineRecord, EngineRoll, boot_s
from rolecall.runtime.ports import free_port, hold_port, holder, is_free
from rolecall.runtime.progress import Progress
from rolecall.runtime.remote import RemoteInstance

log = logging.getLogger(__name__)

_KEY_BYTES = 32
_MAX_MOVES = 3

_DECISIVE = ("backend_config", "served_model_id", "context_tokens", "sizes", "sleep_level", "max_parallel", "gpus")
"""Fields of an entry that a running engine has to be started anew for, as by ``Spec.starts_like``.

What it is started for (text, embeddings) stands in the command line.
"""


@dataclass(slots=True)
class Engine:
    """An engine from Start to Exited, with the entry that it was started with."""

    entry: ModelEntry
    backend: Backend
    placement: Placement = ()
    port: int = 0
    held_port: socket.socket | None = None
    """Keeps the port for it until it listens there."""
    reduction: Reduction | None = None
    """How it was started smaller than the registry's entry says; ``entry`` is the smaller one."""
    fingerprint: str = ""
    """Stands for its command line and environment: an engine of an earlier run is taken over only if it is the same."""
    key: str | None = field(default=None, repr=False)
    """What it wants to be shown with each request; None for one that nobody gave a key."""
    instance: Instance | RemoteInstance | None = None
    started_at: float = field(default_factory=time.monotonic)
    """When it was started, or began to wake."""
    ready_at: float | None = None
    seen_before: GpuReport | None = None
    """The GPUs right before its start; None once something else came or went on them meanwhile."""
    ended: Exit | None = None
    """How its process ended; None while it runs, and for an engine without one."""
    is_measured: bool = False
    """Whether it was learnt what this very load holds."""
    seen_mb: int = 0
    """What it was last seen to hold; more may be reserved, since earlier loads came to hold more."""
    is_weighed_again: bool = False
    """Whether it was looked at after its first answer."""
    moves: int = 0
    """How often it was started anew because it lost its port."""
    leases: set[Lease] = field(default_factory=set)
    _upstream: tuple[Upstream | None, ModelEntry | None] = field(default=(None, None), init=False, repr=False)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is ready for the first time, or gone."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.entry.name

    @property
    def reserved_mb(self) -> Mapping[str, int]:
        """What it was given, MB by GPU; nothing of the host's RAM, which nobody measures."""
        return {share.device: share.mb for share in self.placement if share.device != HOST}

    @property
    def pid(self) -> int | None:
        """The engine's process, if it is one of ours."""
        return self.instance.pid if self.instance else None

    def upstream(self) -> Upstream:
        """Return where its requests go, and what they must show."""
        known, of = self._upstream
        if known is None or of is not self.entry or known.key != self.key:
            known = replace(self.backend.upstream(self.entry, self.port), key=self.key)
            self._upstream = known, self.entry
        return known

    def release_port(self) -> None:
        """Let go of what keeps its port for it: it listens there, or is gone."""
        if self.held_port is not None:
            self.held_port.close()
            self.held_port = None

    def moved_to(self, port: int) -> None:
        """Take in that it will listen on another port, and begins its load anew."""
        self.release_port()
        self.started_at = time.monotonic()
        self.port, self.moves, self._upstream = port, self.moves + 1, (None, None)

    def ran_out(self) -> bool:
        """Whether it ended for want of memory."""
        return self.ended is not None and self.ended.out_of_memory

    def take_over(self, entry: ModelEntry) -> None:
        """Go by the registry's new entry, which differs in nothing that concerns the process."""
        self.entry = reduced(entry, self.reduction)

    def is_progressing(self, within_s: float) -> bool:
        """Whether an answer of it got on a moment ago."""
        return any(lease.moved_within(within_s) for lease in self.leases)

    def members(self) -> frozenset[int]:
        """Return its processes; a look at all of ``/proc``, some milliseconds."""
        return frozenset(self.instance.members()) if isinstance(self.instance, Instance) else frozenset()

    def told_mb(self) -> dict[str, int] | None:
        """Return what a daemon says that the model holds, in equal parts on its devices; None if nobody says."""
        if not isinstance(self.instance, RemoteInstance) or not self.instance.held_mb or not self.placement:
            return None
        part_mb = -(-self.instance.held_mb // len(self.placement))
        return {share.device: part_mb for share in self.placement}

    def progress(self, expected_s: float) -> Progress:
        """Return how far its load or its waking is."""
        if isinstance(self.instance, Instance):
            return self.instance.progress(expected_s, None)
        return Progress()


@dataclass(frozen=True, slots=True)
class EngineMaker:
    """Makes engines; ``load_timeout_s`` is for entries and drivers that say nothing."""

    launcher: Launcher
    http: httpx.AsyncClient
    backend_for: Callable[[ModelEntry], Backend]
    roll: EngineRoll
    load_timeout_s: float = 120
    patience: Patience = field(default_factory=Patience)
    _not_held_for: set[str] = field(default_factory=set, init=False)
    """Models whose last failed load may have been for that: their servers may share no port."""

    def make(
        self,
        entry: ModelEntry,
        placement: Placement,
        given: Collection[int] = (),
        reduction: Reduction | None = None,
    ) -> Engine:
        """Return an engine that is not started yet; raises ``OSError`` or ``ValueError`` for one that cannot be.

        ``given`` are the ports of other engines: one that is starting may not listen on its port yet.
        """
        backend, entry = self.backend_for(entry), reduced(entry, reduction)
        engine = Engine(entry, backend, placement, reduction=reduction)
        if not backend.managed:
            return engine
        is_any = backend.has_port and backend.ports is None and not entry.backend_config.port
        if is_any and engine.name not in self._not_held_for:
            engine.held_port = hold_port()
            engine.port = engine.held_port.getsockname()[1]
        elif backend.has_port:
            engine.port = _port_for(entry, backend, given)
        try:
            launch = backend.launch(entry, engine.port, placement)
        except (OSError, ValueError):
            engine.release_port()
            raise
        if isinstance(launch, RemoteLoad):
            timeout_s = entry.load_timeout_s or launch.load_timeout_s or self.load_timeout_s
            engine.instance = RemoteInstance(entry.name, launch, self.http, timeout_s)
        else:
            self._equip(engine, launch)
        return engine

    def move(self, engine: Engine, given: Collection[int]) -> bool:
        """Equip an engine that lost its port for a start on another; False if that makes no sense.

        Between the choice of a port and the engine's own ``bind`` anybody may take it, unless it is held; the few
        servers that share no port cannot have one that is held.
        """
        if engine.moves >= _MAX_MOVES or engine.entry.backend_config.port or not engine.backend.has_port:
            return False
        try:
            port = _port_for(engine.entry, engine.backend, {*given, engine.port})
            launch = engine.backend.launch(engine.entry, port, engine.placement)
        except (OSError, ValueError):
            return False
        if isinstance(launch, RemoteLoad):
            return False
        log.warning("%s could not have its port %d and is started on %d", engine.name, engine.port, port)
        engine.moved_to(port)
        self._equip(engine, launch)
        return True

    def adopt(self, entries: Mapping[str, ModelEntry], devices: Collection[str]) -> list[Engine]:
        """Return the engines of an earlier run that match their entries, and end all others; it may take seconds.

        Engines on devices that are not among ``devices``, those that models may use now, are ended as well.
        """
        found: dict[str, Engine] = {}

        def is_wanted(record: EngineRecord) -> bool:
            entry = entries.get(record.model)
            engine = None if entry is None else self._remade(entry, record)
            is_elsewhere = any(share.device not in devices for share in record.placement)
            if engine is None or engine.fingerprint != record.fingerprint or is_elsewhere:
                return False
            found[record.model] = engine
            return True

        records, ended = self.roll.adopt(is_wanted)
        for model in ended:
            log.warning("ended %s, an engine left over from an earlier run", model)
        return [self._take_over(found[record.model], record) for record in records]

    def note_ended(self, engine: Engine) -> None:
        """Take in that it ended by itself. If its port was still held, that may be why, whatever it says."""
        if engine.held_port is not None:
            self._not_held_for.add(engine.name)

    def note_ready(self, engine: Engine) -> None:
        """Write down that the engine answers, so that a later run may take it over."""
        if isinstance(engine.instance, Instance):
            self.roll.ready(engine.name, fingerprint=engine.fingerprint, placement=engine.placement)

    def note_held(self, engine: Engine, held_mb: Mapping[str, int]) -> None:
        """Write down what it was seen to hold, MB by GPU; not for one whose command line says what it was given."""
        if isinstance(engine.instance, Instance) and not engine.backend.takes_share:
            shares = (replace(share, mb=held_mb.get(share.device, share.mb)) for share in engine.placement)
            self.roll.place(engine.name, tuple(shares))

    def note_unready(self, engine: Engine) -> None:
        """Write down that the engine is about to end or to sleep."""
        if isinstance(engine.instance, Instance):
            self.roll.unready(engine.name)

    def _remade(self, entry: ModelEntry, record: EngineRecord) -> Engine | None:
        backend = self.backend_for(entry)
        if not (backend.managed and backend.has_port and record.port):
            return None
        engine = Engine(entry, backend, record.placement, record.port)
        try:
            launch = backend.launch(entry, record.port, record.placement)
        except (OSError, ValueError):
            return None
        engine.fingerprint = "" if isinstance(launch, RemoteLoad) else _fingerprint(entry, _on_devices(launch, engine))
        return engine

    def _take_over(self, engine: Engine, record: EngineRecord) -> Engine:
        launch = engine.backend.launch(engine.entry, engine.port, engine.placement)
        if isinstance(launch, RemoteLoad):
            raise TypeError(f"{engine.name} is no process")
        self._equip(engine, launch, record)
        engine.started_at = time.monotonic() - max(0.0, boot_s() - record.started_boot_s)
        return engine

    def _equip(self, engine: Engine, launch: Launch, adopted: EngineRecord | None = None) -> None:
        entry = engine.entry
        launch = _on_devices(launch, engine)
        engine.fingerprint = _fingerprint(entry, launch)
        launch = launch.keyed(secrets.token_urlsafe(_KEY_BYTES) if adopted is None else adopted.key)
        engine.key = launch.key
        engine.instance = Instance(
            entry.name,
            launch,
            self.launcher,
            self.http,
            load_timeout_s=entry.load_timeout_s or launch.load_timeout_s or self.load_timeout_s,
            served_id=engine.backend.served_id(entry),
            kind="embedding" if "text" not in entry.all_capabilities else "chat",
            adopted=self.launcher.adopt(adopted) if adopted else None,
            patience=self.patience,
        )


def _port_for(entry: ModelEntry, backend: Backend, given: Collection[int]) -> int:
    """Return the entry's own port, one of the driver's, or any free one; raises ``OSError`` saying who has it."""
    fixed = entry.backend_config.port
    if fixed:
        if fixed in given:
            raise OSError(f"backend_config.port {fixed} is that of another model that is loaded")
        if not is_free(LOOPBACK, fixed):
            raise OSError(f"backend_config.port {fixed} is taken by {holder(fixed)}")
        return fixed
    if backend.ports is None:
        return next(port for port in iter(free_port, 0) if port not in given)
    for port in backend.ports:
        if port not in given and is_free(LOOPBACK, port):
            return port
    first, last = backend.ports[0], backend.ports[-1]
    by = "models that are loaded" if first in given else holder(first)
    raise OSError(f"the ports {first} to {last} are all taken, {first} by {by}")


def _on_devices(launch: Launch, engine: Engine) -> Launch:
    """Return the launch with the GPUs of the placement made the only visible ones, unless the entry says otherwise."""
    gpus = [share.device for share in engine.placement if share.device != HOST]
    if not gpus or "CUDA_VISIBLE_DEVICES" in launch.env:
        return launch
    return replace(launch, env={**launch.env, "CUDA_VISIBLE_DEVICES": ",".join(gpus)})


def _fingerprint(entry: ModelEntry, launch: Launch) -> str:
    """Return a text that differs wherever an engine would have to be started anew."""
    said = [repr(getattr(entry, name)) for name in _DECISIVE]
    text = json.dumps([launch.argv, sorted(launch.env.items()), launch.base_url, launch.key_variable, said])
    return hashlib.sha256(text.encode()).hexdigest()
