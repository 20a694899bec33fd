"""One workload under several policies, and the bounds that none of them can beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rolecall.simulation import bounds
from rolecall.simulation.bounds import Bound
from rolecall.simulation.measures import Measures
from rolecall.simulation.policies import make_policy
from rolecall.simulation.workload import Workload
from rolecall.simulation.world import World


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of each policy by its name, and the bounds; ``limited`` is None where it is not known."""

    workload: Workload
    measures: dict[str, Measures]
    unlimited: Bound
    limited: Bound | None

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        machine = self.workload.machine
        return {
            "about": self.workload.about,
            "notes": list(self.workload.notes),
            "gpus_mb": list(machine.gpus_mb),
            "max_overtake_s": self.workload.max_overtake_s,
            "tolerance": self.workload.tolerance,
            "requests": self.workload.requests,
            "policies": {name: asdict(measures) for name, measures in self.measures.items()},
            "bounds": {
                "unlimited": asdict(self.unlimited),
                "limited": None if self.limited is None else asdict(self.limited),
            },
        }


def compare(workload: Workload, policies: Iterable[str], models_max: int | None = None) -> Comparison:
    """Run the workload under each policy; ``models_max`` is the N of ``lru-count``.

    Raises ``ConfigurationError`` for a policy that there is not, ``SimulationError`` if one cannot serve the workload.
    """
    measures = {name: World(workload, make_policy(name, workload, models_max)).run() for name in policies}
    return Comparison(workload, measures, bounds.unlimited(workload), bounds.limited(workload))
