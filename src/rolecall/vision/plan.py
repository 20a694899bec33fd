"""In which order many pictures and several tasks are worked off: pure, from what the server says of its models.

Picture by picture is the better order where nothing has to be loaded in between: a picture is read and prepared once,
and its results are complete early. Where the models do not fit into memory together it would swap them up to once for
each request; stage by stage each is loaded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

MAX_JOBS = 16
"""More requests at once than this only fill queues; ``--jobs`` may ask for more."""


class Order(str, Enum):
    """Which of the two loops is the outer one."""

    PICTURE = "picture by picture"
    STAGE = "stage by stage"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model that a role stands for now; ``needs_mb`` is None where nothing is known.

    ``places`` are the requests that it answers at once, ``taken`` those of them that others have.
    """

    model: str
    needs_mb: int | None = None
    places: int = 1
    taken: int = 0
    loaded: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """What may be loaded at a time: MB in all, MB of each GPU (none: host RAM), and so many models."""

    budget_mb: int
    gpus_mb: tuple[int, ...] = ()
    most_models: int = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks that are done together for each picture, and how many pictures are worked on at once."""

    tasks: tuple[str, ...]
    models: tuple[str, ...]
    jobs: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages, one after the other, and why it is this order."""

    order: Order
    reason: str
    stages: tuple[Stage, ...] = field(default=())

    @property
    def words(self) -> str:
        """The choice and its reason in one sentence."""
        return f"{self.order.value}: {self.reason}"


def plan(
    tasks: Sequence[tuple[str, str]],
    chosen: Mapping[str, Chosen],
    room: Room | None,
    *,
    wish: Order | None = None,
    jobs: int | None = None,
) -> Plan:
    """Return how tasks (id and role) are worked off.

    ``chosen`` has the model of each role that is known, ``room`` is None where the server does not tell. ``wish`` and
    ``jobs`` go before what is best.
    """
    order, reason = _order(tasks, chosen, room)
    if wish is not None and len(tasks) > 1:
        order, reason = wish, f"as asked; {reason}" if wish is order else f"as asked, although {reason}"
    groups = _by_model(tasks, chosen) if order is Order.STAGE else [list(tasks)]
    if wish is Order.STAGE and len(groups) == 1:
        groups = [[task] for task in tasks]
    return Plan(order, reason, tuple(_stage(group, chosen, jobs) for group in groups))


def _order(tasks: Sequence[tuple[str, str]], chosen: Mapping[str, Chosen], room: Room | None) -> tuple[Order, str]:
    if len(tasks) == 1:
        return Order.PICTURE, "there is one task"
    models = list({found.model: found for _, role in tasks if (found := chosen.get(role))}.values())
    if any(role not in chosen for _, role in tasks):
        return Order.STAGE, "it is not known which models will serve"
    if len(models) == 1:
        return Order.PICTURE, f"{models[0].model} serves {'both' if len(tasks) == 2 else f'all {len(tasks)}'} tasks"
    obstacle = _obstacle(models, room)
    if obstacle is None:
        return Order.PICTURE, f"{_listed(m.model for m in models)} fit into memory together"
    return Order.STAGE, obstacle


def _obstacle(models: Sequence[Chosen], room: Room | None) -> str | None:
    """Return why models cannot be loaded at the same time; None if they can."""
    names = _listed(model.model for model in models)
    if room is None:
        return f"the server does not tell whether {names} fit into memory together"
    if len(models) > room.most_models:
        return f"{names} are {len(models)} models, and {room.most_models} may be loaded at once"
    needs = [model.needs_mb for model in models if model.needs_mb is not None]
    if len(needs) < len(models):
        unknown = _listed(model.model for model in models if model.needs_mb is None)
        return f"it is not known how much memory {unknown} will take"
    if not _placed(needs, room):
        places = room.gpus_mb if len(room.gpus_mb) > 1 else (min([room.budget_mb, *room.gpus_mb]),)
        return f"{names} ({_sum(needs)} MB) do not fit together into {_sum(places)} MB"
    return None


def _placed(needs: Iterable[int], room: Room) -> bool:
    """Whether each model finds a place, the largest first, in what is then the fullest GPU that has room."""
    free = sorted(room.gpus_mb or (room.budget_mb,))
    left_mb = room.budget_mb
    for need in sorted(needs, reverse=True):
        at = next((at for at, mb in enumerate(free) if mb >= need), None)
        left_mb -= need
        if at is None or left_mb < 0:
            return False
        free[at] -= need
        free.sort()
    return True


def _by_model(tasks: Sequence[tuple[str, str]], chosen: Mapping[str, Chosen]) -> list[list[tuple[str, str]]]:
    """Return the tasks of each model together: the one that is loaded first, the others as they were asked for."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for task, role in tasks:
        model = chosen[role].model if role in chosen else f"role:{role}"
        groups.setdefault(model, []).append((task, role))
    loaded = {found.model for found in chosen.values() if found.loaded}
    return [groups[model] for model in sorted(groups, key=lambda model: model not in loaded)]


def _stage(tasks: Sequence[tuple[str, str]], chosen: Mapping[str, Chosen], jobs: int | None) -> Stage:
    models = {found.model: found for _, role in tasks if (found := chosen.get(role))}
    free = max((model.places - model.taken for model in models.values()), default=1)
    return Stage(tuple(task for task, _ in tasks), tuple(models), jobs or min(max(free, 1), MAX_JOBS))


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _sum(numbers: Sequence[int]) -> str:
    return " + ".join(map(str, numbers))
