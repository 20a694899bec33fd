"""Adds datasets to the server.

What they need (DuckDB, Pillow) is imported with the first request for them, in a thread: a server that has no datasets
is neither larger nor slower for them. A job that an earlier process has not finished is gone on with at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.core.endpoints import CHAT, needs_of
from rolecall.core.selection import Demand, check_able
from rolecall.errors import DatasetsUnavailable, Forbidden, RolecallError, UnsupportedInput
from rolecall.gateway.caller import Anyone, Caller, KeyHolder
from rolecall.gateway.door import Keys
from rolecall.gateway.server import Addition, Gateway
from rolecall.runtime.roster import Roster
from rolecall.vision.datasets_routes import dataset_routes
from rolecall.vision.decoding import Decoding
from rolecall.vision.jobs import MARKER

if TYPE_CHECKING:
    from rolecall.vision.datasets import Datasets

log = logging.getLogger(__name__)

FOLDER = "datasets"
"""In the state folder."""
RETRY_S = 5.0
_NEEDS = needs_of(CHAT) | {"vision"}


@contextlib.asynccontextmanager
async def datasets(gateway: Gateway, decoding: Decoding | None = None) -> AsyncIterator[Addition]:
    """Add the routes of datasets to a gateway; ``decoding`` is what they share with others."""
    lazy = LazyDatasets(gateway.services.settings.state_dir / FOLDER, partial(_made, gateway, decoding or Decoding()))
    resuming = asyncio.create_task(lazy.resume())
    try:
        yield Addition(tuple(dataset_routes(lazy.get)), lazy.stop)
    finally:
        resuming.cancel()
        await asyncio.wait({resuming})
        await lazy.aclose()


class LazyDatasets:
    """Makes the datasets when they are asked for; ``make`` does that in a thread."""

    def __init__(self, folder: Path, make: Callable[[], Datasets], retry_s: float = RETRY_S) -> None:
        self._folder = folder
        self._make = make
        self._retry_s = retry_s
        self._made: Datasets | None = None
        self._is_resumed = False
        self._lock = asyncio.Lock()

    async def get(self) -> Datasets:
        """Return the datasets, with the jobs of an earlier process running again; raises ``DatasetsUnavailable``."""
        if self._made is not None and self._is_resumed:
            return self._made
        async with self._lock:
            if self._made is None:
                self._made = await self._new()
            if not self._is_resumed:
                if (self._folder / MARKER).exists():
                    await self._made.jobs.resume()
                self._is_resumed = True
            return self._made

    async def _new(self) -> Datasets:
        try:
            return await asyncio.to_thread(self._make)
        except OSError as error:
            raise DatasetsUnavailable(f"{self._folder} cannot be used: {error.strerror or error}.") from None

    async def resume(self) -> None:
        """Go on with what an earlier process has begun, if there is any; again and again while that cannot be read."""
        told = ""
        while not self._is_resumed and (self._folder / MARKER).exists():
            try:
                await self.get()
            except RolecallError as error:
                if error.message != told:
                    log.warning("the tagging that was interrupted cannot go on yet: %s", error)
                told = error.message
                await asyncio.sleep(self._retry_s)

    def stop(self) -> None:
        """Interrupt the jobs, which ends the streams that watch them."""
        if self._made is not None:
            self._made.jobs.stop()

    async def aclose(self) -> None:
        """End all."""
        if self._made is not None:
            await self._made.aclose()


def _made(gateway: Gateway, decoding: Decoding) -> Datasets:
    from rolecall.vision.datasets import Datasets  # noqa: PLC0415 - DuckDB and Pillow, which most servers never need
    from rolecall.vision.datasets_tagger import ModelTagger, OwnServer  # noqa: PLC0415
    from rolecall.vision.tasks import TaskFolder, folders_of  # noqa: PLC0415

    settings, roster = gateway.services.settings, gateway.services.roster
    server = OwnServer(gateway.inference, partial(_caller, gateway.keys), partial(_check_sees, roster))
    tagger = ModelTagger(server, TaskFolder(*folders_of(settings)), decoding)
    return Datasets(settings.state_dir / FOLDER, tagger, decoding)


def _caller(keys: Keys | None, name: str | None) -> Caller | None:
    """Return who asks on behalf of a key; None if it is not in force any more, or if none was needed and now is."""
    if keys is None:
        return Anyone()
    now = datetime.now(timezone.utc)
    found = next((key for key in keys.store.ring.keys if key.name == name and not key.is_expired(now)), None)
    if found is None or "inference" not in found.scopes:
        return None
    return KeyHolder(found, keys.usage)


def _check_sees(roster: Roster, caller: Caller, name: str) -> None:
    """Raise ``ModelNotFound``, ``Forbidden`` or ``UnsupportedInput``, as a request with a picture would.

    What else may be in its way, such as a file that is not there, may have changed by the time that it is asked.
    """
    target = caller.find(roster.resolve, name)
    refusals: list[RolecallError] = []
    for each in (target, *roster.fallbacks(target)):
        try:
            check_able(Demand(each.role, _NEEDS), caller.check(each).entries)
        except UnsupportedInput as error:
            refusals.append(UnsupportedInput(error.message, param="model"))
        except Forbidden as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]
