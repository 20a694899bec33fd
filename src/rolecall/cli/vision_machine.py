"""What a running rolecall says of the models that tasks will ask: which, how many at once, and what fits together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rolecall.cli.client import Client, KeyNeeded
from rolecall.cli.common import CommandError
from rolecall.vision.plan import Chosen, Room

_LOADED = frozenset({"ready", "sleeping"})


@dataclass(slots=True)
class Machine:
    """The model of each role, the room for them, and why a role has none."""

    chosen: dict[str, Chosen] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    room: Room | None = None


def look(client: Client, roles: Sequence[str], model: str | None) -> Machine:
    """Ask for the models of roles, or for the one ``model`` that takes their place; raises ``CommandError``.

    A key without the scope ``admin`` is not told what fits together.
    """
    machine = Machine()
    try:
        health: Mapping[str, Any] | None = client.health()
    except KeyNeeded:
        client.admit()
        health = None
    rows: dict[str, Any] = {}
    if health is not None:
        models = client.models()
        rows = {row["model"]: row for row in models["data"]}
        active = client.profile()["active_profile"]
        gpus = tuple(gpu["usable_mb"] for gpu in models["gpus"])
        machine.room = Room(health["budget_mb"], gpus, active["max_concurrent_models"])
    for role in dict.fromkeys(roles):
        try:
            machine.chosen[role] = _chosen(client, role, model, rows)
        except CommandError as error:
            if model is not None:
                raise
            machine.problems[role] = str(error)
    return machine


def _chosen(client: Client, role: str, model: str | None, rows: Mapping[str, Any]) -> Chosen:
    if model is None:
        choice = client.choice(role)
        name, needs_mb = choice["model"], choice["vram_estimate_mb"]
        card = client.card(name)
    else:
        card = client.card(model)
        name = card.get("resolves_to", card["id"])
        needs_mb = card["vram_estimate_mb"]
    row = rows.get(name, {})
    return Chosen(
        name,
        needs_mb if row.get("footprint_mb") is None else row["footprint_mb"],
        places=card["max_parallel"],
        taken=row.get("in_flight", 0) + row.get("waiting", 0),
        loaded=card["state"] in _LOADED,
    )
