"""What ``rolecall init`` finds, and what it would write: nothing is written here."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rolecall.cli import machine_checks
from rolecall.cli.checks import Finding, Subject
from rolecall.cli.init_engines import Port, changed_values, find_engines, find_port, needed
from rolecall.cli.offline import roster_to_look_at
from rolecall.core.events import Spec
from rolecall.core.json_edit import drop
from rolecall.core.registry import Registry, RegistryError, read_registry
from rolecall.core.selection import Candidate, Demand, Rejected, select
from rolecall.core.together import Company, companies
from rolecall.discovery.discover import Discovery, discover
from rolecall.discovery.discovered_file import as_text
from rolecall.discovery.rules_file import RULES
from rolecall.discovery.scan import Progress
from rolecall.errors import ConfigurationError, naming
from rolecall.runtime.config_folder import PlannedFile, read_file
from rolecall.runtime.driver_probe import DriverProbe
from rolecall.runtime.registry import CURATED, DISCOVERED, read_list
from rolecall.runtime.roster import Roster
from rolecall.runtime.settings_edit import check_settings, with_settings
from rolecall.settings import SETTINGS_FILE, SHIPPED, Settings, shipped

DEMO_FOLDER = "${STATE_DIR}/demo/"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for. ``demo``: the demo models, None where there are no others."""

    folders: Sequence[Path] = ()
    known: bool = True
    port: int | None = None
    demo: bool | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A role and the model that gets it; ``others`` are those that could play it as well, the best first."""

    role: str
    model: Candidate
    others: tuple[str, ...] = ()

    @property
    def is_demo(self) -> bool:
        """Whether a demo model plays it."""
        return is_demo(self.model)


@dataclass(frozen=True)
class Plan:
    """All of it; ``settings`` are those that will be in force, ``values`` what ``rolecall.toml`` gets for that."""

    settings: Settings
    machine: Finding
    engines: Mapping[str, Finding]
    port: Port
    found: Discovery
    roster: Roster
    parts: tuple[Part, ...]
    without: Mapping[str, tuple[Rejected, ...]]
    companies: Sequence[Company]
    values: Mapping[str, Any]
    files: tuple[PlannedFile, ...]
    specs: Mapping[str, Spec] = field(default_factory=dict)

    @property
    def changed(self) -> list[PlannedFile]:
        """The files that are new or become others."""
        return [file for file in self.files if file.state != "unchanged"]

    @property
    def has_models(self) -> bool:
        """Whether there is a model that is no demo, and can be served."""
        return any(not is_demo(each) and each.unavailable is None for each in self.roster.candidates())


def is_demo(candidate: Candidate) -> bool:
    """Whether a model is one of those that ``rolecall serve`` makes."""
    return (candidate.entry.backend_config.model_path or "").startswith(DEMO_FOLDER)


def make_plan(
    settings: Settings, wishes: Wishes, environ: Mapping[str, str], home: Path, progress: Progress | None = None
) -> Plan:
    """Look at the machine, the engines, the models and the port, and return what would be written.

    Raises ``ConfigurationError`` for a configuration that is there and broken, ``CommandError`` for a port that cannot
    be had.
    """
    probe = DriverProbe()
    port = find_port(settings, wishes.port)
    engines = find_engines(settings, probe, home)
    values = changed_values(engines, port)
    with _registry_as_it_will_be(settings) as there:
        found = discover(there, environ, home, wishes.folders, known=wishes.known, progress=progress)
    ahead = settings.model_copy(update={**values, "port": port.number})
    has_found = any(state != "vanished" for state in found.next.states.values())
    demo = not has_found if wishes.demo is None else wishes.demo
    files = _files(settings, values, found, demo=demo)
    roster = roster_to_look_at(ahead, probe, _registry(settings.config_dir, files))
    parts, without = cast(roster)
    return Plan(
        settings=ahead,
        machine=machine_checks.gpu(Subject(ahead, probe=probe)),
        engines=needed(engines.findings, Counter(each.model.backend for each in found.naming.named)),
        port=port,
        found=found,
        roster=roster,
        parts=parts,
        without=without,
        companies=_companies(roster, parts),
        values=values,
        files=files,
        specs={spec.name: spec for spec in roster.configured().specs},
    )


@contextmanager
def _registry_as_it_will_be(settings: Settings) -> Iterator[Settings]:
    """Yield settings by whose folder models are looked for: the real one, or a copy where the registry lacks yet.

    The shipped registry knows priorities of some models, and names that discovered ones must not take.
    """
    folder = settings.config_dir
    if (folder / CURATED).exists():
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="rolecall-") as copy:
        with naming(copy):
            Path(copy, CURATED).write_bytes(shipped(CURATED).read_bytes())
            for name in (DISCOVERED, RULES):
                if (there := read_file(folder / name)) is not None:
                    Path(copy, name).write_bytes(there)
        yield settings.model_copy(update={"config_dir": Path(copy)})


# --- what is written


def _files(settings: Settings, values: Mapping[str, Any], found: Discovery, *, demo: bool) -> tuple[PlannedFile, ...]:
    folder = settings.config_dir
    files = []
    for name in SHIPPED:
        before = read_file(folder / name)
        after = shipped(name).read_bytes() if before is None else before
        if name == SETTINGS_FILE and values:
            after = _set(folder, after, values)
        if name == CURATED and before is None and not demo:
            after = _without_demo(after)
        files.append(PlannedFile(name, after, before))
    before = read_file(folder / DISCOVERED)
    if before is not None or found.next.entries:
        after = as_text(found.next.entries).encode("utf-8", "backslashreplace")
        files.append(PlannedFile(DISCOVERED, after, before, by_hand=found.earlier.problem is not None))
    return tuple(files)


def _set(folder: Path, data: bytes, values: Mapping[str, Any]) -> bytes:
    try:
        text = with_settings(data.decode(), values)
    except (ConfigurationError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{folder / SETTINGS_FILE}: {error}") from None
    check_settings(folder, text)
    return text.encode()


def _without_demo(data: bytes) -> bytes:
    text = data.decode()
    rows = json.loads(text)
    for at in reversed(range(len(rows))):
        if str(rows[at].get("backend_config", {}).get("model_path", "")).startswith(DEMO_FOLDER):
            text = drop(text, (at,))
    return text.encode()


def _registry(folder: Path, files: Sequence[PlannedFile]) -> Registry:
    by_name = {file.name: file.after for file in files}
    curated = json.loads(by_name[CURATED]) if read_file(folder / CURATED) is None else read_list(folder / CURATED)
    try:
        return read_registry(curated, json.loads(by_name.get(DISCOVERED, b"[]")))
    except RegistryError as error:
        raise ConfigurationError("\n".join(f"{folder / CURATED}: {each}" for each in error.problems)) from None


# --- who plays what


def cast(roster: Roster) -> tuple[tuple[Part, ...], dict[str, tuple[Rejected, ...]]]:
    """Return the roles that a model gets, and for each of the others who cannot play it.

    Demo models count as there: the first start makes them.
    """
    candidates = [_made(each, roster) for each in roster.candidates()]
    parts: list[Part] = []
    without: dict[str, tuple[Rejected, ...]] = {}
    for role in roster.catalog.roles:
        names = {entry.name for entry in roster.catalog.role(role).entries}
        chosen = select(Demand(role=role), [each for each in candidates if each.name in names], roster.rules())
        if chosen.ranked:
            parts.append(Part(role, chosen.ranked[0], tuple(each.name for each in chosen.ranked[1:])))
        else:
            without[role] = chosen.rejected
    return tuple(sorted(parts, key=lambda part: (part.role != "chat", part.role))), without


def _made(candidate: Candidate, roster: Roster) -> Candidate:
    if not is_demo(candidate) or candidate.unavailable is None or not roster.settings.demo_models:
        return candidate
    is_absent = roster.backend(candidate.entry).unavailable(candidate.entry) is None and candidate.entry.enabled
    return replace(candidate, unavailable=None) if is_absent else candidate


def _companies(roster: Roster, parts: Sequence[Part]) -> Sequence[Company]:
    there = roster.configured()
    by_name = {spec.name: spec for spec in there.specs}
    cast = [by_name[name] for name in dict.fromkeys(part.model.name for part in parts)]
    return companies(cast, there.devices, there.budget_mb, there.max_models)
