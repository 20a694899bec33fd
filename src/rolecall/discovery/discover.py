"""From folders and a daemon to the registry file: what ``rolecall models scan`` does, for other commands as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolecall.backends.base import Places
from rolecall.core.models import ModelEntry
from rolecall.core.registry import RegistryError, read_registry
from rolecall.discovery.discovered_file import Earlier, Next, following, keep_broken, read_earlier, write
from rolecall.discovery.entries import Ground, Naming, entries_of, identity, owned_paths
from rolecall.discovery.found import Skipped
from rolecall.discovery.ollama_models import TIMEOUT_S, Daemon
from rolecall.discovery.places import Place, known_places, ollama_address
from rolecall.discovery.pulled_models import PROVIDER, renewed
from rolecall.discovery.rules_file import load_rules
from rolecall.discovery.scan import Findings, Progress, scan
from rolecall.runtime.private_file import locked
from rolecall.runtime.registry import CURATED, read_list
from rolecall.settings import Settings, standing


@dataclass
class Discovery:
    """What was found, what is made of it, and the file as it is to stand."""

    findings: Findings
    naming: Naming
    earlier: Earlier
    next: Next
    backup: Path | None = None
    """The copy of an earlier file that was broken."""

    @property
    def left_out(self) -> list[Skipped]:
        """What looks like a model and gets no entry, and why."""
        return [*self.findings.skipped, *self.naming.skipped]

    @property
    def replaced(self) -> str | None:
        """What is to be told of an earlier file that was broken, once this one was written; None if it was not."""
        if self.earlier.problem is None:
            return None
        kept = f"; it is kept as {self.backup}" if self.backup else ""
        return f"the earlier registry was broken: {self.earlier.problem}{kept}"

    def write(self) -> bool:
        """Write the file; False if it stands so already.

        What somebody else has added since it was read, such as a pull that ended meanwhile, stays in it. Of a file that
        was broken a copy is kept. Raises ``OSError``, and ``RegistryError`` where that copy cannot be made.
        """
        path = self.earlier.path
        with locked(path.parent):
            known = {*self.earlier.names(), *(identity(each.entry) for each in self.naming.named)}
            now = read_earlier(path.parent)
            self.backup = keep_broken(now)
            added = [entry for entry in now.scanned if identity(entry) not in known]
            return write(path, [*self.next.entries, *added])


def discover(  # noqa: PLR0913 - where to look, and how
    settings: Settings,
    environ: Mapping[str, str],
    home: Path,
    folders: Sequence[Path] = (),
    *,
    known: bool = True,
    forget: bool = False,
    progress: Progress | None = None,
    daemon_timeout_s: float = TIMEOUT_S,
) -> Discovery:
    """Look at the known places and at ``folders``, and return what the discovered registry should hold.

    Nothing is written. With ``known`` False only ``folders`` count, and no daemon is asked. ``forget`` leaves out
    models whose files are gone. Raises ``ConfigurationError`` for rules or a curated registry that are broken.
    """
    daemon = Daemon(own_ollama(settings, environ), daemon_timeout_s) if known else None
    own = [Place(PROVIDER, settings.models_folder)] if known and settings.models_folder.is_dir() else []
    places = [*own, *(known_places(environ, home) if known else ()), *(Place("folder", folder) for folder in folders)]
    return discover_in(settings, places, daemon, forget=forget, progress=progress)


def own_ollama(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return the address at which a scan asks Ollama."""
    is_given = settings.origin("ollama_base_url") != "by default"
    return ollama_address(environ, settings.ollama_base_url, is_given=is_given)


def discover_in(
    settings: Settings,
    places: Sequence[Place],
    daemon: Daemon | None = None,
    *,
    forget: bool = False,
    progress: Progress | None = None,
) -> Discovery:
    """Look at these places and this daemon, and at nothing else; the rest is as for `discover`."""
    rules = load_rules(settings.config_dir)
    curated = _curated(settings.config_dir / CURATED)
    earlier = read_earlier(settings.config_dir)
    findings = scan(places, daemon, progress)
    ground = Ground(
        rules,
        (*curated, *_foreign(earlier)),
        renewed(earlier.names(), findings.models),
        owned_paths((*curated, *_foreign(earlier)), Places(settings.config_dir, settings.state_dir).expand),
        daemon.base_url if daemon and daemon.base_url != settings.ollama_base_url else None,
    )
    naming = entries_of(findings.models, ground)
    return Discovery(findings, naming, earlier, following(earlier, naming.named, findings, forget=forget))


def _curated(path: Path) -> Sequence[ModelEntry]:
    rows = read_list(standing(path))
    try:
        return read_registry(rows).entries
    except RegistryError as error:
        raise RegistryError([f"{path}: {problem}" for problem in error.problems]) from None


def _foreign(earlier: Earlier) -> Sequence[ModelEntry]:
    """Return the entries of the file that others wrote, which are left to them."""
    rows: list[Any] = earlier.foreign
    with suppress(RegistryError):
        return read_registry([], rows).entries
    return ()
