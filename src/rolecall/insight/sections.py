"""How everything stands now, as rows: models, GPUs, the queue, requests that are being served.

All of it is looked up, nothing is measured: that would take milliseconds, and the loop serves requests meanwhile. What
has to be measured (memory of processes, sizes of files) is found out elsewhere, now and then, as `Weights`.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import psutil

from rolecall import __version__
from rolecall.core.catalog import Catalog
from rolecall.core.learning import Footprint
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.slot import Waiting
from rolecall.core.vram import HOST
from rolecall.gateway import views
from rolecall.gateway.exchange import Exchange
from rolecall.gateway.recorder import timestamp
from rolecall.gateway.server import Gateway
from rolecall.insight.board import Values
from rolecall.runtime.launcher import memory_mb
from rolecall.runtime.supervisor import EngineStatus

MOST_ROWS = 100
"""Of a queue, and of requests that are being served."""

_STEP_MB = 256
"""Of the host's RAM that others hold: it moves all the time, and few care for less."""

_UNDESCRIBED: dict[str, Any] = {"display_name": None, "roles": {}, "capabilities": [], "managed": True}
"""A model that runs on although the registry has it no more."""

_MOVES = ("uptime_s", "retry_in_s")
"""Spans that change all the time; moments are told in their place."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What takes long to find out: MB of host RAM by model and of all others, and what each is given of the GPUs."""

    rss_mb: Mapping[str, int] = field(default_factory=dict)
    footprints: Mapping[str, Footprint | None] = field(default_factory=dict)
    foreign_mb: int = 0


def weigh(gateway: Gateway, pids: Mapping[str, int]) -> Weights:
    """Measure; call it off the event loop. ``pids`` are the engines' processes by model."""
    supervisor, catalog = gateway.services.supervisor, gateway.services.roster.catalog
    footprints = {entry.name: supervisor.footprint(entry.name) for entry in catalog.entries}
    rss_mb = {name: memory_mb(pid) for name, pid in pids.items()}
    memory = psutil.virtual_memory()
    foreign_mb = max(0, ((memory.total - memory.available) >> 20) - sum(rss_mb.values()))
    return Weights(rss_mb, footprints, foreign_mb // _STEP_MB * _STEP_MB)


class Sections:
    """Says how a gateway stands. ``started_at`` (s since the epoch) is when it began."""

    def __init__(self, gateway: Gateway, started_at: float) -> None:
        self._gateway = gateway
        self._started = timestamp(started_at)
        self._catalog: Catalog | None = None
        self._described: dict[str, dict[str, Any]] = {}
        self.is_moving = False
        """Whether figures move by themselves: something loads, or is being answered."""

    def all(self, weights: Weights | None) -> dict[str, Values]:
        """Return the sections that replace each other; without ``weights`` nothing was measured yet."""
        weights = weights or Weights()
        now, at = time.monotonic(), time.time()
        supervisor = self._gateway.services.supervisor
        status = supervisor.status(weigh=False)
        active = self._gateway.inference.active
        waiting = supervisor.scheduler.queue()
        self.is_moving = bool(active) or any(row.model.state is State.STARTING for row in status)
        return {
            "server": {"data": self.server()},
            "gpus": {"data": self._gpus([row.model.name for row in status if row.model.vram_mb], weights.foreign_mb)},
            "models": {"data": self._models(status, weights, at)},
            "queue": self._queue(waiting, {row.model.name: row for row in status}, active, at - now),
            "live": self._live(active, waiting, {row.model.name: row.model.state for row in status}, now),
        }

    def server(self) -> dict[str, Any]:
        """Return what is known of the server itself."""
        services, keys = self._gateway.services, self._gateway.keys
        health = views.health(services.roster, services.supervisor, services.recorder, self._gateway.problems())
        return {
            "version": __version__,
            "profile": health["profile"],
            "started_at": self._started,
            "keys": keys is not None,
            "log_prompts": services.settings.log_prompts,
            "max_image_bytes": services.settings.max_image_bytes,
            "budget_mb": health["budget_mb"],
            "max_models": services.supervisor.scheduler.ledger.max_models,
            "problems": health["problems"],
        }

    # -- memory and models

    def _gpus(self, holders: Iterable[str], host_foreign_mb: int) -> list[dict[str, Any]]:
        services = self._gateway.services
        ledger, memory = services.supervisor.scheduler.ledger, services.supervisor.memory
        held = {name: ledger.held_on(name) for name in holders}
        names = {gpu.uuid: gpu.name for gpu in memory.latest.gpus} if memory and memory.latest else {}
        rows = []
        for device in ledger.devices.values():
            row = views.device_row(ledger, device, names.get(device.id))
            if device.id == HOST:
                row |= {"index": -1, "uuid": "host", "name": "RAM", "foreign_mb": host_foreign_mb}
            row["free_mb"] = max(0, row["total_mb"] - row["reserved_mb"] - row["foreign_mb"])
            row["models"] = [{"model": name, "mb": mb} for name, on in held.items() if (mb := on.get(device.id, 0))]
            rows.append(row)
        return rows

    def _models(self, status: Iterable[EngineStatus], weights: Weights, at: float) -> list[dict[str, Any]]:
        catalog = self._gateway.services.roster.catalog
        if catalog is not self._catalog:
            self._catalog = catalog
            self._described = {entry.name: self._description(entry) for entry in catalog.entries}
        ledger = self._gateway.services.supervisor.scheduler.ledger
        rows = []
        for each in status:
            name = each.model.name
            installed = name not in catalog.unavailable
            if not installed and each.model.state is State.STOPPED:
                continue
            row = views.engine_row(each, weights.footprints.get(name), ledger)
            moments = {
                "ready_since": _moment(at, each.ready_s),
                "retry_at": _moment(at, None if each.model.retry_in_s is None else -each.model.retry_in_s),
                "rss_mb": weights.rss_mb.get(name),
                "installed": installed,
            }
            kept = {key: value for key, value in row.items() if key not in _MOVES}
            rows.append(kept | moments | self._described.get(name, _UNDESCRIBED | {"display_name": name}))
        return rows

    def _description(self, entry: ModelEntry) -> dict[str, Any]:
        return {
            "display_name": entry.display_name or entry.name,
            "roles": dict(sorted(entry.priorities.items())),
            "capabilities": sorted(entry.all_capabilities),
            "managed": self._gateway.services.roster.backend(entry).managed,
        }

    # -- requests

    def _queue(
        self, waiting: list[Waiting], rows: Mapping[str, EngineStatus], active: Iterable[Exchange], epoch: float
    ) -> dict[str, Any]:
        if not waiting:
            return {"waiting": 0, "data": []}
        ids = {each.waiter: each.request_id for each in active}
        loading = {name: row.load_eta_s for name, row in rows.items() if row.model.state is State.STARTING}
        known = {name: eta_s for name, eta_s in loading.items() if eta_s is not None}
        etas = {**self._gateway.services.supervisor.scheduler.etas(known), **loading}
        data = [
            {
                "request_id": ids.get(each.waiter),
                "model": each.model,
                "role": each.role,
                "purpose": each.purpose,
                "waiting_since": timestamp(epoch + each.since),
                "position": each.place,
                "state": rows[each.model].model.state.value,
                "eta_s": None if (eta_s := etas.get(each.model)) is None else round(eta_s, 1),
            }
            for each in waiting[:MOST_ROWS]
        ]
        return {"waiting": len(waiting), "data": data}

    def _live(
        self, active: tuple[Exchange, ...], waiting: list[Waiting], states: Mapping[str, State], now: float
    ) -> dict[str, Any]:
        awaited = {each.waiter: each.model for each in waiting}
        oldest = heapq.nsmallest(MOST_ROWS, active, key=lambda each: each.account.started_at)
        return {"active": len(active), "data": [live_row(each, awaited, states, now) for each in oldest]}


def live_row(exchange: Exchange, awaited: Mapping[int, str], states: Mapping[str, State], now: float) -> dict[str, Any]:
    """Return a request that is being served; ``awaited`` is the model that each waiter waits for."""
    account, line = exchange.account, exchange.account.line
    model = None if exchange.waiter is None else awaited.get(exchange.waiter)
    if model is not None:
        state = "loading" if states.get(model) is State.STARTING else "waiting"
    else:
        model, state = line.model, "waiting" if account.lease is None else "answering"
    tokens, first_at = account.answer.tokens_written, account.first_output_at
    writing_s = 0.0 if first_at is None else now - first_at
    return {
        "request_id": exchange.request_id,
        "endpoint": line.endpoint,
        "model": model,
        "requested_model": line.requested_model,
        "role": line.role,
        "key": line.key,
        "client": line.client,
        "stream": line.stream,
        "images": line.images,
        "started": line.ts,
        "state": state,
        "ttft_ms": None if first_at is None else round((first_at - account.started_at) * 1000, 1),
        "tokens": tokens,
        "tokens_estimated": not (account.answer.is_complete and account.answer.completion_tokens is not None),
        "tokens_per_second": round((tokens - 1) / writing_s, 1) if tokens > 1 and writing_s > 0 else None,
    }


def _moment(at: float, ago_s: float | None) -> str | None:
    """Return the time so long ago, to the second: what is computed anew each time must not differ each time."""
    if ago_s is None:
        return None
    moment = datetime.fromtimestamp(round(at - ago_s), timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
