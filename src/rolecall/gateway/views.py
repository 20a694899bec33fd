"""What is shown of models and of the state: the JSON of the GET endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rolecall import __version__
from rolecall.core.catalog import Catalog
from rolecall.core.learning import Footprint
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.profiles import ActiveProfile
from rolecall.core.slot import ModelStatus
from rolecall.core.vram import HOST, Device, Ledger
from rolecall.gateway.recorder import Recorder
from rolecall.runtime.gpu import GpuReport
from rolecall.runtime.roster import Roster
from rolecall.runtime.supervisor import EngineStatus, Supervisor
from rolecall.settings import Settings


def model_card(entry: ModelEntry, catalog: Catalog, state: State, created: int, parallel: int) -> dict[str, Any]:
    """Return a model as OpenAI lists it, with what rolecall knows beside it.

    ``parallel`` is how many requests it answers at once.
    """
    return {
        "id": entry.name,
        "object": "model",
        "created": created,
        "owned_by": entry.source_provider or "rolecall",
        "display_name": entry.display_name or entry.name,
        "aliases": list(entry.model_aliases),
        "backend": entry.backend,
        "capabilities": sorted(entry.all_capabilities),
        "roles": dict(sorted(entry.priorities.items())),
        "quantization": entry.quantization,
        "context_length": entry.context_tokens,
        "max_parallel": parallel,
        "vram_estimate_mb": entry.vram_estimate_mb,
        "installed": entry.name not in catalog.unavailable,
        "state": state.value,
    }


def engine_row(status: EngineStatus, footprint: Footprint | None, ledger: Ledger) -> dict[str, Any]:
    """Return a model's state, requests, memory (MB) and times (s).

    ``vram_reserved_mb`` is what it holds of the budget now, ``footprint_mb`` what its next start is given, ``rss_mb``
    what its processes hold of the host's RAM.
    """
    model = status.model
    return {
        "model": model.name,
        "backend": status.backend,
        "state": model.state.value,
        "sleep_level": model.sleep_level,
        "reduced": model.reduced,
        "pinned": model.pinned,
        "in_flight": model.in_flight,
        "waiting": model.waiting,
        "devices": [{"index": gpu.index, "uuid": gpu.id} for gpu in _gpus(ledger, _lies_on(model))],
        "vram_reserved_mb": model.vram_mb,
        "footprint_mb": footprint and footprint.mb,
        "footprint_source": footprint and footprint.source,
        "rss_mb": status.rss_mb,
        "pid": status.pid,
        "port": status.port,
        "uptime_s": _rounded(status.uptime_s),
        "load_s": _rounded(model.load_s),
        "load_fraction": _rounded(status.load_fraction, 2),
        "load_eta_s": _rounded(status.load_eta_s),
        "failures": model.failures,
        "retry_in_s": _rounded(model.retry_in_s),
        "error": model.error,
    }


def _lies_on(model: ModelStatus) -> tuple[str, ...]:
    return () if model.state in (State.STOPPED, State.FAILED) else model.devices


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


def _gpus(ledger: Ledger, ids: Iterable[str]) -> list[Device]:
    return [ledger.devices[id_] for id_ in ids if id_ != HOST and id_ in ledger.devices]


def gpu_rows(ledger: Ledger, report: GpuReport | None) -> list[dict[str, Any]]:
    """Return the GPUs that models may use, in MB: the whole card, what models may take of it, and who holds what.

    ``used_mb`` is what the driver says now, null while it says nothing; ``reserved_mb`` is planned for models, and
    ``foreign_mb`` is held by others, as last seen.
    """
    seen = {gpu.uuid: gpu for gpu in report.gpus} if report else {}
    rows = []
    for device in _gpus(ledger, ledger.devices):
        gpu = seen.get(device.id)
        used_mb = None if gpu is None else gpu.vram_total_mb - gpu.vram_free_mb
        rows.append(device_row(ledger, device, None if gpu is None else gpu.name) | {"used_mb": used_mb})
    return rows


def device_row(ledger: Ledger, device: Device, name: str | None) -> dict[str, Any]:
    """Return what is known of a device without the driver."""
    return {
        "index": device.index,
        "uuid": device.id,
        "name": name,
        "total_mb": device.total_mb,
        "usable_mb": ledger.usable_mb(device.id),
        "reserved_mb": ledger.used_on(device.id),
        "foreign_mb": ledger.foreign_mb.get(device.id, 0),
    }


def models_health(
    supervisor: Supervisor, catalog: Catalog, footprints: Mapping[str, Footprint | None], report: GpuReport | None
) -> dict[str, Any]:
    """Return the state of every model that is installed, and of those that run all the same; and the GPUs."""
    ledger = supervisor.scheduler.ledger
    rows = [engine_row(status, footprints.get(status.model.name), ledger) for status in supervisor.status()]
    shown = [row for row in rows if _is_shown(row, catalog)]
    return {"object": "list", "data": shown, "gpus": gpu_rows(ledger, report)}


def _is_shown(row: dict[str, Any], catalog: Catalog) -> bool:
    return row["model"] not in catalog.unavailable or row["state"] != State.STOPPED.value


def health(
    roster: Roster,
    supervisor: Supervisor,
    recorder: Recorder,
    problems: Mapping[str, str | None],
) -> dict[str, Any]:
    """Return the state of rolecall itself: ``ok``, or ``degraded`` with the ``problems`` in words."""
    named = {name: problem for name, problem in problems.items() if problem}
    ledger = supervisor.scheduler.ledger
    return {
        "status": "degraded" if named else "ok",
        "version": __version__,
        "problems": named,
        "registry": {"entries": len(roster.registry.entries), "warnings": list(roster.registry.warnings)},
        "profile": roster.active.profile.name,
        "budget_mb": ledger.budget_mb,
        "reserved_mb": ledger.used_mb,
        "queue": supervisor.scheduler.waiting(),
        "log_lines_dropped": recorder.dropped,
    }


def short_health(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return what everybody may know of ``health``: that this is a rolecall, and whether all is well."""
    return {"status": whole["status"], "name": "rolecall"}


def profile_view(active: ActiveProfile, gpus: GpuReport) -> dict[str, Any]:
    """Return the profile in force with all its fields and its budget, and the GPUs with the memory that is free now."""
    return {
        "active_profile": {**active.profile.model_dump(mode="json"), "budget_mb": active.budget_mb},
        "detected_gpus": [
            {
                "index": gpu.index,
                "name": gpu.name,
                "uuid": gpu.uuid,
                "vram_total_mb": gpu.vram_total_mb,
                "vram_free_mb": gpu.vram_free_mb,
            }
            for gpu in gpus.gpus
        ],
        "source": active.source,
        "gpu_problem": gpus.problem,
    }


def settings_view(settings: Settings) -> dict[str, Any]:
    """Return all settings; none of them is a secret, keys are only ever named by their environment variable."""
    return settings.model_dump(mode="json")


def model_list(cards: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return OpenAI's list object."""
    return {"object": "list", "data": list(cards)}
