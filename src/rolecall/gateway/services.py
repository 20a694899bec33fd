"""What serves requests: made once, when rolecall starts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rolecall.core.selection import Selection
from rolecall.gateway.counting import Counting
from rolecall.gateway.images import Images
from rolecall.gateway.recorder import Recorder
from rolecall.gateway.tracing import Tracing
from rolecall.gateway.unreachable import Unreachable
from rolecall.gateway.upstream import Transport
from rolecall.runtime.experiments import ExperimentsFile
from rolecall.runtime.kept_file import KeptFile
from rolecall.runtime.markers import MarkersFile
from rolecall.runtime.roster import Roster
from rolecall.runtime.supervisor import Supervisor
from rolecall.settings import Settings

MOST_CHOICES = 1000


@dataclass(frozen=True, slots=True)
class Services:
    """What an exchange works with."""

    roster: Roster
    supervisor: Supervisor
    transport: Transport
    recorder: Recorder
    images: Images
    counting: Counting
    experiments: ExperimentsFile = field(default_factory=ExperimentsFile)
    markers: MarkersFile = field(default_factory=MarkersFile)
    unreachable: Unreachable = field(default_factory=Unreachable)
    tracing: Tracing = field(default_factory=Tracing)
    choices: deque[tuple[str | None, Selection]] = field(default_factory=lambda: deque(maxlen=MOST_CHOICES))
    """What was chosen for the last requests by a role, by their id: the line has the reason alone."""

    kept: Sequence[KeptFile] = ()
    """The files of the state folder that are written while it runs."""

    additions: dict[str, str | None] = field(default_factory=dict)
    """What is wrong with what was added to the gateway, by its name, in words; None where all is well."""

    def problems(self, key_problem: str | None) -> dict[str, str | None]:
        """Return what is wrong, in words, with each thing that can be; ``key_problem`` is that of the key file."""
        return {
            "registry": self.roster.problem,
            "log": self.recorder.problem,
            "api_keys": key_problem,
            "experiments": self.experiments.problem,
            "markers": self.markers.problem,
            "state": "; ".join(file.problem for file in self.kept if file.problem) or None,
            **self.additions,
        }

    @property
    def settings(self) -> Settings:
        """The settings in force, some of which a reload changes."""
        return self.roster.settings

    def problems_of_configuration(self) -> list[str]:
        """Return what is wrong in the files that were read last, so that others than these are in force."""
        registry = self.roster.problem
        told = [registry and f"the registry is broken, the last good one stays in force: {registry}"]
        return [problem for problem in (*told, self.experiments.problem, self.markers.problem) if problem]
