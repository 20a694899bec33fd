"""Values that many tests build, and effects in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rolecall.core.events import (
    Arrived,
    BecameReady,
    Configured,
    Effect,
    Event,
    Exited,
    Freed,
    Grant,
    Reject,
    Released,
    Sleep,
    Spec,
    Start,
)
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Demand, Rules
from rolecall.core.vram import HOST, Device


def row(name: str = "alpha", **fields: Any) -> dict[str, Any]:
    """Return an entry as it stands in a registry file."""
    return {"name": name, "backend": "llama_cpp", **fields}


def entry(name: str = "alpha", **fields: Any) -> ModelEntry:
    """Return a valid entry; ``fields`` are those of the registry."""
    return ModelEntry.model_validate(row(name, **fields))


_OF_SPEC = ("load_s", "devices", "spread", "sleep", "smaller", "cpu_mb")


def spec(
    name: str = "alpha",
    footprint_mb: int | None = 1000,
    *,
    unavailable: str | None = None,
    managed: bool = True,
    max_parallel: int = 1,
    idle_unload_s: float = 0,
    **fields: Any,
) -> Spec:
    """Return a model as the scheduler sees it; ``fields`` are those of its registry entry, and of ``Spec``."""
    more = {field: fields.pop(field) for field in _OF_SPEC if field in fields}
    return Spec(entry(name, **fields), footprint_mb, unavailable, managed, max_parallel, idle_unload_s, **more)


def configured(
    *specs: Spec,
    budget_mb: int = 1000,
    max_models: int = 10,
    rules: Rules | None = None,
    gpus_mb: Iterable[int] = (),
    **more: Any,
) -> Configured:
    """Return a configuration under which, by default, one of the default specs fits at a time.

    ``gpus_mb`` are the capacities of GPUs ``g0``, ``g1`` …; without any there is one device of the whole budget.
    """
    devices = tuple(Device(f"g{index}", mb, mb, index) for index, mb in enumerate(gpus_mb))
    budget_mb = sum(device.capacity_mb for device in devices) or budget_mb
    devices = devices or (Device(HOST, budget_mb, budget_mb),)
    return Configured(specs, rules or Rules(limit_mb=budget_mb), devices, budget_mb, max_models, **more)


def ask(waiter: int, *models: str, role: str | None = None) -> Arrived:
    """Return a request for one of these models."""
    return Arrived(waiter, Demand(role=role), models)


_OF_SCHEDULER = ("max_overtake_s", "max_queue", "drain_limit_s", "linger_share")


class Bench:
    """A scheduler, the effects of the last events, and a clock that stands until a test moves it.

    ``fields`` are the scheduler's own and those of ``configured``; idle models are not kept for their next request
    unless ``linger_share`` says so. ``frees``: the memory of an engine is free as soon as it has exited.
    """

    def __init__(self, *specs: Spec, frees: bool = False, **fields: Any) -> None:
        own = {field: fields.pop(field) for field in _OF_SCHEDULER if field in fields}
        self.scheduler = Scheduler(**{"linger_share": 0, **own})
        self.frees = frees
        self.now = 0.0
        self.effects: list[Effect] = []
        self.post(configured(*specs, **fields))

    def post(self, *events: Event, at: float | None = None) -> list[str]:
        """Hand in events, at a new time if there is one, and return their effects as ``told``."""
        self.now = self.now if at is None else at
        self.effects = []
        for event in events:
            self.effects += self.scheduler.handle(event, self.now)
            if self.frees and isinstance(event, Exited):
                self.effects += self.scheduler.handle(Freed(event.model), self.now)
        return self.told(self.effects)

    def told(self, effects: list[Effect]) -> list[str]:
        """Return effects in words."""
        return words(effects)

    def ready(self, *names: str) -> None:
        """Load models and leave them idle, in this order, 1 s apart."""
        for name in names:
            waiter = -1 - self.scheduler.waiting()
            self.post(ask(waiter, name))
            assert [effect.model for effect in self.effects if isinstance(effect, Start)] == [name]
            self.post(BecameReady(name), Released(name))
            assert words(self.effects) == [f"grant {waiter} {name}"]
            assert self.scheduler.state(name) is State.READY
            self.now += 1


def words(effects: list[Effect]) -> list[str]:
    """Return effects as ``start a``, ``stop a``, ``grant 1 a`` (waiter, model), ``reject 1 queue_full``.

    A start on GPUs names them: ``start a g0 g1``; one with less memory says so: ``start a g0 context=4096``.
    """
    return [_in_words(effect) for effect in effects]


def _in_words(effect: Effect) -> str:
    match effect:
        case Grant(waiter, model):
            return f"grant {waiter} {model}"
        case Reject(waiter, error):
            return f"reject {waiter} {error.code}"
        case Start(model, placement, reduction):
            where = (share.device for share in placement if share.device != HOST)
            return " ".join(["start", model, *where, *([str(reduction)] if reduction else [])])
        case Sleep(model, level):
            return f"sleep {model} {level}"
        case _:
            return f"{type(effect).__name__.lower()} {effect.model}"
