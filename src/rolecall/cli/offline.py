"""The registry and the machine as ``rolecall serve`` would see them, without a server."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from rolecall.core.registry import Registry
from rolecall.runtime.api_config import API_CONFIG
from rolecall.runtime.drivers import backends
from rolecall.runtime.gpu import GpuProbe
from rolecall.runtime.roster import LEARNT, Roster, load_roster
from rolecall.settings import Settings, load_settings


def open_roster(config_dir: Path | None, state_dir: Path | None) -> Roster:
    """Return the roster for these folders; raises ``ConfigurationError`` for anything that cannot work."""
    return load_roster(load_settings({"config_dir": config_dir, "state_dir": state_dir}))


def roster_to_look_at(settings: Settings, probe: GpuProbe, registry: Registry | None = None) -> Roster:
    """Return the roster of a folder, or of another ``registry``, without touching anything.

    What was learnt, and what was set at `/api/config`, are read from copies: a broken one would be set aside. Raises
    ``ConfigurationError`` as `load_roster` does.
    """
    with tempfile.TemporaryDirectory(prefix="rolecall-") as copy:
        for name in (LEARNT, API_CONFIG):
            with suppress(OSError):
                shutil.copyfile(settings.state_dir / name, Path(copy, name))
        roster = Roster(settings.model_copy(update={"state_dir": Path(copy)}), backends(settings), probe)
        roster.load(registry)
    return roster
