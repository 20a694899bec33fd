"""The checks of ``rolecall doctor`` that look at what is installed and configured.

A check looks at one thing, changes nothing, and says what to do. It may raise: the doctor reports that as a failure.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import platformdirs

from rolecall import __version__
from rolecall.core.profiles import ActiveProfile
from rolecall.core.registry import RegistryError
from rolecall.errors import ConfigurationError
from rolecall.runtime.driver_probe import DriverProbe
from rolecall.runtime.registry import CURATED, load_registry
from rolecall.runtime.roster import active_profile, load_profiles
from rolecall.settings import (
    PREFIX,
    SHIPPED,
    Settings,
    find_config_dir,
    load_settings,
    unknown_variables,
)

_PACKAGES = ("starlette", "uvicorn", "httpx", "pydantic", "typer", "psutil", "nvidia-ml-py")
_MOST_PROBLEMS = 5
_BY_DEFAULT = "by default"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, in words, and what to do about it where something is to be done."""

    level: Literal["ok", "warn", "fail"]
    finding: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined. With ``problem`` the settings cannot be read, and ``settings`` are the defaults."""

    settings: Settings
    problem: str | None = None
    probe: DriverProbe = field(default_factory=DriverProbe)

    @classmethod
    def of(cls, config_dir: Path | None, state_dir: Path | None) -> Subject:
        """Return the settings that ``rolecall serve`` would have, or why it would have none."""
        try:
            return cls(load_settings({"config_dir": config_dir, "state_dir": state_dir}))
        except (ConfigurationError, OSError, RuntimeError) as error:
            problem = str(error)
        named = config_dir or os.environ.get(f"{PREFIX}CONFIG_DIR")
        folder = Path(named) if named and os.access(named, os.X_OK) else find_config_dir(None, {})
        state = state_dir or os.environ.get(f"{PREFIX}STATE_DIR") or platformdirs.user_state_path("rolecall")
        return cls(Settings.model_validate({"config_dir": folder, "state_dir": state}), problem)

    def active_profile(self) -> ActiveProfile:
        """Return the profile in force; raises ``ConfigurationError`` as ``rolecall serve`` would."""
        return active_profile(self.settings, load_profiles(self.settings.config_dir), self.probe.report())


# --- this installation ------------------------------------------------------------------------------------------------


def python(_subject: Subject) -> Finding:
    """Report the versions of what rolecall stands on."""
    versions = {name: version_of(name) for name in _PACKAGES}
    shown = ", ".join(f"{name} {number or 'MISSING'}" for name, number in versions.items())
    text = f"rolecall {__version__} on Python {platform.python_version()}; {shown}"
    if None in versions.values():
        return Finding("fail", text, "install rolecall again, with its dependencies")
    return Finding("ok", text)


def version_of(package: str) -> str | None:
    """Return the version of an installed distribution, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def configuration(subject: Subject) -> Finding:
    """Report the config folder and each setting that differs, with where it came from."""
    if subject.problem:
        return Finding("fail", subject.problem, "until this is mended the other checks look at the default settings")
    folder = subject.settings.config_dir
    if not folder.exists():
        return Finding("ok", f"{folder} does not exist yet; the first `rolecall serve` fills it")
    there = [name for name in SHIPPED if (folder / name).exists()]
    lines = [f"{folder}: {', '.join(there) or 'nothing yet'}"]
    given = [name for name in Settings.model_fields if subject.settings.origin(name) != _BY_DEFAULT]
    lines += [f"{name} = {getattr(subject.settings, name)}, {subject.settings.origin(name)}" for name in given]
    strange = unknown_variables(os.environ)
    if strange:
        return Finding("warn", "\n".join([*lines, *strange]), "correct the variable's name, or remove it")
    if not there:
        return Finding("warn", "\n".join(lines), "name the right folder, or let `rolecall serve` use the built-in one")
    return Finding("ok", "\n".join(lines))


# --- what is configured -----------------------------------------------------------------------------------------------


def registry(subject: Subject) -> Finding:
    """Report the registry's entries, errors and warnings."""
    try:
        registry = load_registry(subject.settings.config_dir)
    except RegistryError as error:
        return Finding("fail", few(error.problems), "correct it; `rolecall models validate` checks it again")
    count = f"{len(registry.entries)} entries"
    if registry.warnings:
        return Finding("warn", f"{count}\n{few(registry.warnings)}", "correct the names, or leave them as they are")
    if not registry.entries:
        return Finding("warn", "no entries", f"write some into {subject.settings.config_dir / CURATED}")
    return Finding("ok", count)


def few(lines: Sequence[str]) -> str:
    """Return the first lines, and how many more there are."""
    more = len(lines) - _MOST_PROBLEMS
    return "\n".join([*lines[:_MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])])


def profile(subject: Subject) -> Finding:
    """Report the profile in force and its budget."""
    active = subject.active_profile()
    profile = active.profile
    text = (
        f"{profile.name} ({active.source}): {active.budget_mb} MB for at most {profile.max_concurrent_models} at once"
    )
    return Finding("ok", text)
