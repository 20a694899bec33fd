"""The process: everything put together, served by uvicorn, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import httpx
import uvicorn

from rolecall.core.api_config import ApiConfig
from rolecall.core.scheduler import Scheduler
from rolecall.gateway.app import create_app
from rolecall.gateway.counting import Counting
from rolecall.gateway.door import Keys
from rolecall.gateway.http_edge import EdgeLimits, edge_protocol
from rolecall.gateway.http_server import Duties, Server
from rolecall.gateway.images import Images
from rolecall.gateway.inference import Inference
from rolecall.gateway.loopback import ByAddress, LoopbackTransport
from rolecall.gateway.pictures import Pictures
from rolecall.gateway.recorder import Recorder
from rolecall.gateway.routes import ScopedRoute
from rolecall.gateway.services import Services
from rolecall.gateway.tidy import Tidy
from rolecall.gateway.upstream import HttpxTransport
from rolecall.runtime.api_keys import open_keys
from rolecall.runtime.decision_log import DecisionLog
from rolecall.runtime.engine import EngineMaker
from rolecall.runtime.experiments import EXPERIMENTS, ExperimentsFile
from rolecall.runtime.guardian import Guardian
from rolecall.runtime.instance import Patience
from rolecall.runtime.launcher import ENGINE_LOGS, EngineLauncher
from rolecall.runtime.leftovers import ENGINES, EngineRoll
from rolecall.runtime.markers import MarkersFile
from rolecall.runtime.memory import MemoryWatch
from rolecall.runtime.overseer import Overseer
from rolecall.runtime.plain_http import plain_client
from rolecall.runtime.registry import registry_state, write_snapshot
from rolecall.runtime.roster import Roster
from rolecall.runtime.settings_reload import Reread
from rolecall.runtime.state_folder import in_use
from rolecall.runtime.supervisor import TICK_S, Supervisor
from rolecall.runtime.token_memory import LEARNT_TOKENS, TokenMemory
from rolecall.runtime.usage import SAVE_EVERY_S, USAGE, UsageBook
from rolecall.settings import Settings

log = logging.getLogger(__name__)

_REGISTRY_S = 0.4
_SETTLE_S = 0.2
_REFRESH_S = 2.0
_TIDY_S = 5.0
_EXPERIMENTS_S = 1.0
_KEYS_S = 0.5
"""How long a key that was revoked may go on to be taken."""
_KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that none is closed under a request that is on its way."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running rolecall without its socket."""

    services: Services
    inference: Inference
    keys: Keys | None = None

    def problems(self) -> dict[str, str | None]:
        """Return what is wrong, in words, with each thing that can be; None where all is well."""
        return self.services.problems(self.keys.store.problem if self.keys else None)

    def configure(self) -> None:
        """Act on the registry as it was last read, and write the merged one down."""
        roster = self.services.roster
        self.services.supervisor.configure(roster.configured())
        write_snapshot(roster.settings.config_dir, roster.registry)

    async def reload(self) -> Reread:
        """Read registry and settings again and act on them; returns which settings changed.

        Raises ``ConfigurationError`` for wrong settings or profiles, and then nothing has changed. A broken registry is
        told as the roster's ``problem``, and the last good one stays in force.
        """
        roster = self.services.roster
        found = await asyncio.to_thread(roster.reread)
        roster.settings = found.settings
        if "log_level" in found.applied:
            logging.getLogger().setLevel(found.settings.log_level.upper())
        self._reload_registry()
        return found

    def _reload_registry(self) -> None:
        self.services.roster.reload()
        self.services.experiments.read()
        self.services.markers.read()
        self.configure()

    def reconfigure(self, config: ApiConfig) -> None:
        """Put what was set at `/api/config` in force, and keep it; models that answer take it over once they are idle.

        Raises ``OSError`` where it cannot be written; then nothing has changed.
        """
        self.services.roster.reconfigure(config)
        self.services.supervisor.configure(self.services.roster.configured(at_idle=True))

    async def watch_registry(self) -> None:
        """Reload if a registry file has changed and is left alone for a moment: it may be half written.

        It is looked at, not watched: two calls of the kernel find more than it tells of, as files behind a symbolic
        link or on a network drive, and folders that were replaced.
        """
        if not self.services.roster.is_outdated():
            return
        folder = self.services.settings.config_dir
        found = registry_state(folder)
        await asyncio.sleep(_SETTLE_S)
        await asyncio.to_thread(self.services.roster.read_ahead)
        if registry_state(folder) == found:
            self._reload_registry()
            if self.services.roster.problem is None:
                log.info("the registry changed, and is in force")

    async def watch_experiments(self) -> None:
        """Take over a file of experiments that changed and is left alone for a moment: it may be half written."""
        experiments = self.services.experiments
        if experiments.is_outdated():
            await asyncio.sleep(_SETTLE_S)
            await asyncio.to_thread(experiments.read)

    async def watch_keys(self) -> None:
        """Take over a key file that changed. It is looked at, not watched: that finds it behind symbolic links too."""
        if self.keys is not None:
            await asyncio.to_thread(self.keys.store.refresh)

    async def write_usage(self) -> None:
        """Write down what the keys have used."""
        if self.keys is not None:
            await self.keys.usage.write()

    async def watch_files(self, launcher: EngineLauncher) -> None:
        """Look at the models' files, and at the engines' logs."""
        roster = self.services.roster
        if roster.accept(await asyncio.to_thread(roster.look_at_files)):
            self.configure()
        await asyncio.to_thread(launcher.trim_logs)


async def _go_on(what: Callable[[], Awaitable[None]], pause_s: float) -> None:
    """Do something again and again; a failure is told and does not end it, because nobody would notice."""
    while True:
        try:
            await what()
        except Exception:
            log.exception("a background task failed; it goes on")
        await asyncio.sleep(pause_s)


@contextlib.asynccontextmanager
async def running_gateway(roster: Roster) -> AsyncIterator[Gateway]:
    """Run everything but the HTTP server; at the end no engine is left and every line is written."""
    settings = roster.settings
    roll = EngineRoll(settings.state_dir / ENGINES)
    async with plain_client() as http, contextlib.AsyncExitStack() as stack:
        stack.enter_context(in_use(settings.state_dir))
        guardian = Guardian()
        stack.push_async_callback(guardian.close)
        launcher = EngineLauncher(
            settings.state_dir / ENGINE_LOGS,
            os.environ,
            keep=settings.keep_engines_on_exit,
            guardian=guardian,
            roll=roll,
        )
        supervisor = _supervisor(roster, launcher, http, roll)
        if settings.record_decisions is not None:
            decisions = DecisionLog(settings.record_decisions, supervisor.scheduler)
            stack.callback(decisions.close)
            supervisor.record = decisions.record
        recorder = Recorder(settings.log_path, settings.max_log_bytes, settings.log_backups)
        stack.callback(recorder.close)
        loopback, elsewhere = LoopbackTransport(), HttpxTransport()
        stack.push_async_callback(loopback.aclose)
        stack.push_async_callback(elsewhere.aclose)
        transport = ByAddress(loopback, elsewhere)
        supervisor.hang_up = loopback.disconnect
        pictures = Pictures()
        images = Images(settings, pictures=pictures)
        stack.push_async_callback(images.aclose)
        tokens = TokenMemory(settings.state_dir / LEARNT_TOKENS)
        stack.callback(tokens.close)
        counting = Counting.of(settings, tokens, pictures, http)
        experiments = ExperimentsFile(settings.config_dir / EXPERIMENTS)
        markers = MarkersFile(settings.config_dir)
        keys = _keys(roster.settings, stack)
        kept = [roster.footprints.store.file, roll.file, tokens.file, *([keys.usage.file] if keys else [])]
        services = Services(roster, supervisor, transport, recorder, images, counting, experiments, markers, kept=kept)
        gateway = Gateway(services, Inference(services), keys)
        gateway.configure()
        stack.push_async_callback(supervisor.close)
        await supervisor.adopt()
        for work in (
            _go_on(supervisor.tick, TICK_S),
            _go_on(gateway.watch_registry, _REGISTRY_S),
            _go_on(Tidy().look, _TIDY_S),
            _go_on(lambda: gateway.watch_files(launcher), _REFRESH_S),
            _go_on(gateway.watch_keys, _KEYS_S),
            _go_on(gateway.watch_experiments, _EXPERIMENTS_S),
            _go_on(gateway.write_usage, SAVE_EVERY_S),
            _go_on(tokens.write, SAVE_EVERY_S),
            _go_on(roll.write_again, SAVE_EVERY_S),
        ):
            stack.push_async_callback(_cancelled, asyncio.create_task(work))
        supervisor.preload()
        yield gateway


def _keys(settings: Settings, stack: contextlib.AsyncExitStack) -> Keys | None:
    store = open_keys(settings)
    if store is None:
        return None
    if store.problem is not None:
        log.warning("%s", store.problem)
    usage = UsageBook(settings.state_dir / USAGE)
    stack.callback(usage.close)
    return Keys(store, usage)


def _supervisor(roster: Roster, launcher: EngineLauncher, http: httpx.AsyncClient, roll: EngineRoll) -> Supervisor:
    settings = roster.settings
    maker = EngineMaker(
        launcher,
        http,
        roster.backend,
        roll,
        load_timeout_s=settings.autostart_grace_period_s,
        patience=Patience(probe_every_s=settings.probe_every_s),
    )
    scheduler = Scheduler(
        max_overtake_s=settings.max_overtake_s,
        max_queue=settings.max_queue,
        drain_limit_s=settings.drain_limit_s,
    )
    return Supervisor(
        scheduler,
        maker,
        roster.backend,
        footprints=roster.footprints,
        memory=MemoryWatch(roster.probe) if roster.gpus.gpus else None,
        autostart=settings.autostart_enabled,
        keeps_engines=settings.keep_engines_on_exit,
    )


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


@dataclass(frozen=True, slots=True)
class Addition:
    """What a room above adds to the server. ``stop`` is called when the server begins to end, before answers finish."""

    routes: Sequence[ScopedRoute] = ()
    stop: Callable[[], None] = lambda: None


Extension = Callable[[Gateway], contextlib.AbstractAsyncContextManager[Addition]]
"""Adds something to a running gateway; it is left before the gateway ends."""


class _CutOnPurpose(logging.Filter):
    """Keeps quiet about answers that we leave without a proper end because their engine broke off."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "without completing response" not in record.getMessage()


async def serve(
    roster: Roster,
    sock: socket.socket,
    announce: Callable[[str], None],
    extensions: Iterable[Extension] = (),
    overseer: Overseer | None = None,
) -> None:
    """Serve on a bound socket until a signal comes; ``announce`` is given the URL once requests are answered."""
    settings, overseer = roster.settings, overseer or Overseer()
    logging.getLogger("uvicorn.error").addFilter(_CutOnPurpose())
    ends = contextlib.AsyncExitStack()
    async with ends, running_gateway(roster) as gateway, contextlib.AsyncExitStack() as stack:
        additions = [await stack.enter_async_context(extend(gateway)) for extend in extensions]
        more = [route for addition in additions for route in addition.routes]
        app = create_app(gateway.services, gateway.inference, gateway.reload, gateway.keys, more)
        config = uvicorn.Config(
            app,
            http=edge_protocol(EdgeLimits.of(settings)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the application has that itself, for those that need it
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=2,  # the answers are over by then
        )
        config.load()
        # What was imported holds next to no garbage, so it is not even collected before: that would take 40 ms.
        gc.freeze()  # a full collection would look through all that is imported, and nothing runs for 50 ms meanwhile
        gc.set_threshold(5000, 10, 1)  # so it is cheap now; at 700 it took a tenth of the time of small requests
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{sock.getsockname()[1]}"
        duties = Duties(
            gateway.services,
            gateway.inference,
            gateway.reload,
            overseer,
            lambda: announce(url),
            tuple(addition.stop for addition in additions),
        )
        watching = asyncio.create_task(overseer.accompany(duties.status))
        ends.push_async_callback(_cancelled, watching)  # the last to go: what ends slowly is not dead
        await Server(config, duties).serve(sockets=[sock])
