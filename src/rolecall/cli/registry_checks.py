"""The checks of ``rolecall doctor`` that look at models, roles, and who may change what is configured."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rolecall.backends.base import Backend
from rolecall.cli.checks import Finding, Subject, few
from rolecall.cli.init_plan import cast
from rolecall.cli.offline import roster_to_look_at
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Rejected
from rolecall.core.wording import counted
from rolecall.errors import ConfigurationError
from rolecall.runtime.experiments import EXPERIMENTS, load_experiments
from rolecall.runtime.registry import DISCOVERED, missing_program
from rolecall.settings import SHIPPED
from rolecall.vision.tasks import tasks_of

_NOT_LOOKED_AT = Finding("warn", "not looked at, because of another failed check")


def models(subject: Subject) -> Finding:
    """Report how many models are installed, what others have lost, and which files cannot be read."""
    try:
        roster = roster_to_look_at(subject.settings, subject.probe)
    except ConfigurationError:
        return _NOT_LOOKED_AT
    entries, installed = roster.catalog.entries, roster.catalog.listed()
    drivers = {entry.name: roster.backend(entry) for entry in entries}
    text = f"{len(installed)} of {len(entries)} are installed"
    gone = [line for entry in entries if entry.enabled for line in _absent(entry, drivers[entry.name])]
    shut = [line for entry in entries if entry.enabled for line in _unreadable(entry, drivers[entry.name])]
    if shut:
        return Finding("warn", f"{text}\n{few(shut)}", "change the owner or the mode of these files")
    if gone:
        advice = "bring these back, or have those that were found taken out: `rolecall models scan --forget`"
        return Finding("warn", f"{text}\n{few(gone)}", advice)
    if installed:
        return Finding("ok", text)
    advice = (
        "`rolecall init` looks for models, `rolecall serve` makes the demo models; `rolecall models list --all`: why"
    )
    return Finding("warn", text, advice)


def _absent(entry: ModelEntry, backend: Backend) -> Iterator[str]:
    """What the entry names and is not there; the demo models are made when they are needed."""
    if (entry.backend_config.model_path or "").startswith("${STATE_DIR}/") or backend.unavailable(entry) is not None:
        return
    if (problem := missing_program(entry, backend)) is not None:
        yield f"{entry.name}: {problem}"
    for path in backend.files(entry):
        with suppress(OSError, ValueError):
            if not path.exists():
                yield f"{entry.name}: {path} is gone"


def _unreadable(entry: ModelEntry, backend: Backend) -> Iterator[str]:
    if backend.unavailable(entry) is not None:
        return
    for path in backend.files(entry):
        with suppress(OSError, ValueError):
            if path.exists() and not os.access(path, os.R_OK):
                yield f"{entry.name}: {path} cannot be read by this user"


def roles(subject: Subject) -> Finding:
    """Report the roles that no model plays here, and whether somebody counts on them."""
    try:
        roster = roster_to_look_at(subject.settings, subject.probe)
    except ConfigurationError:
        return _NOT_LOOKED_AT
    played, without = cast(roster)
    text = f"{len(played)} {'role has' if len(played) == 1 else 'roles have'} a model"
    missed = [line for role, rejected in without.items() for line in _missed(role, rejected)]
    asked = [
        f"{role}: rolecall.toml has a table for it, and no model plays it"
        for role, table in subject.settings.roles.items()
        if role not in {part.role for part in played} and not table.get("fallback")
    ]
    if lines := [*asked, *missed]:
        advice = "`rolecall select ROLE --explain` says why; `rolecall roles set ROLE MODEL PRIORITY` gives it a model"
        return Finding("warn", f"{text}\n{few(lines)}", advice)
    return Finding("ok", f"{text}; none for {', '.join(without)}" if without else text)


def _missed(role: str, rejected: Sequence[Rejected]) -> Iterator[str]:
    """A role whose models are here and cannot be loaded; what is not installed is told as such elsewhere."""
    large = [each for each in rejected if each.why == "too_large"]
    if large:
        yield f"{role}: {'; '.join(f'{each.name}: {each.reason}' for each in large)}"


def tasks(subject: Subject) -> Finding:
    """Report the tasks for pictures, and the files of those that cannot be used."""
    found = tasks_of(subject.settings)
    text = f"{len(found)} can be used, {sum(map(found.is_own, found))} of them your own"
    if lines := [line for problem in found.problems.values() for line in problem.splitlines()]:
        return Finding("warn", f"{text}\n{few(lines)}", "mend these files; until then their tasks are refused")
    return Finding("ok", text)


def experiments(subject: Subject) -> Finding:
    """Report whether the file of the experiments can be read; a server that starts with a broken one has none."""
    try:
        found = load_experiments(subject.settings.config_dir / EXPERIMENTS)
    except ConfigurationError as error:
        advice = "mend it; until then there are none, or the last good ones; `rolecall experiments validate` checks it"
        return Finding("warn", few(str(error).splitlines()), advice)
    return Finding("ok", counted(len(found.all) if found else 0, "experiment"))


def permissions(subject: Subject) -> Finding:
    """Report whether others can change what is configured: an entry names the program that is started."""
    settings = subject.settings
    places = [settings.config_dir, settings.state_dir]
    places += [settings.config_dir / name for name in (*SHIPPED, DISCOVERED)]
    there = [path for path in places if path.exists()]
    if open_to_all := [str(path) for path in there if _others_write(path)]:
        text = f"everybody on this machine can change {', '.join(open_to_all)}, and thereby what is started as you"
        return Finding("warn", text, f"chmod o-w {' '.join(open_to_all)}")
    if locked := [str(path) for path in there if not os.access(path, os.R_OK)]:
        return Finding("fail", f"{', '.join(locked)} cannot be read", "change the owner or the mode")
    if settings.config_dir.exists() and not os.access(settings.config_dir, os.W_OK):
        return Finding("ok", f"{settings.config_dir} can be read and not written: commands that change it will fail")
    return Finding("ok", "others cannot change what is configured")


def _others_write(path: Path) -> bool:
    """Whether everybody can write there; in a folder with the sticky bit nobody replaces what others own."""
    mode = path.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not (path.is_dir() and mode & stat.S_ISVTX)
