"""What `/metrics` tells, as plain values: taken on the event loop in a moment, and written elsewhere.

Each metric stands here once, with its help and its labels.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rolecall import __version__
from rolecall.core import endpoints
from rolecall.core.slot import ModelStatus
from rolecall.core.vram import HOST, Device, Ledger
from rolecall.gateway.server import Gateway
from rolecall.insight.load_tally import LoadTally
from rolecall.insight.tally import Histogram, Tallied, summed
from rolecall.runtime.gpu import GpuReport

_MB = 2**20

_FAILED = "5xx"

Value = int | float | Histogram
_Row = tuple[tuple[str, ...], Value]


@dataclass(slots=True)
class Family:
    """A metric: its name without the suffix of its kind, and its rows, each the values of its labels and its own."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    rows: list[_Row] = field(default_factory=list)


def request_families(tallied: Tallied, models: Iterable[str] = ()) -> Iterator[Family]:
    """Yield what is counted of finished requests; ``models`` have failures of 0 until there are any."""
    rows = sorted(tallied.rows, key=operator.itemgetter(0))
    of_request = ("model", "role", "endpoint", "status")
    yield Family(
        "rolecall_requests",
        "counter",
        "Requests that are over, one for each line of the request log.",
        of_request,
        _with_zeros(
            [(key, counted.requests) for key, counted in rows],
            [(model, "", endpoints.CHAT, _FAILED) for model in models],
        ),
    )
    yield Family(
        "rolecall_request_errors",
        "counter",
        "Requests that failed, also in the middle of an answer, by the code of the error.",
        (*of_request[:3], "code"),
        sorted(tallied.errors),
    )
    for name, field_, help_ in (
        ("input_tokens", "input_tokens", "Tokens of prompts, as engines told them."),
        ("output_tokens", "output_tokens", "Tokens that models wrote, as engines told them."),
        ("reasoning_tokens", "reasoning_tokens", "Tokens of thoughts, a part of the output tokens."),
        ("input_images", "images", "Images in requests."),
    ):
        sums: dict[tuple[str, ...], int] = {}
        for key, counted in rows:
            sums[key[:3]] = sums.get(key[:3], 0) + getattr(counted, field_)
        yield Family(f"rolecall_{name}", "counter", help_, of_request[:3], list(sums.items()))
    for name, kind, parts, help_ in (
        ("request_duration_seconds", "duration", 4, "From arrival until the last byte was sent."),
        ("time_to_first_token_seconds", "first", 3, "From arrival until the first content of a stream."),
        ("queue_wait_seconds", "queue", 1, "Time in the queue, loads excluded, of requests that got a model."),
        ("load_wait_seconds", "load", 1, "Time that requests waited for a model to load, where they did."),
        ("output_tokens_per_second", "rate", 1, "Speed of streamed answers after the first token."),
    ):
        found = summed(rows, kind, parts)
        yield Family(f"rolecall_{name}", "histogram", help_, of_request[:parts], list(found.items()))


def _with_zeros(rows: Iterable[tuple[tuple[str, ...], int]], keys: Iterable[tuple[str, ...]]) -> list[_Row]:
    """Return rows in order, with one of 0 for each key that has none.

    A counter has to be seen at 0 before it can be seen to grow.
    """
    return sorted({**dict.fromkeys(keys, 0), **dict(rows)}.items())


def load_families(loads: LoadTally, models: Collection[str] = ()) -> Iterator[Family]:
    """Yield what is counted of engines and of the scheduler; ``models`` have swaps and failures of 0 until then."""
    yield Family(
        "rolecall_model_load_seconds",
        "histogram",
        "How long models took to become ready, by starting or by waking.",
        ("model", "kind"),
        [(key, histogram.copy()) for key, histogram in sorted(loads.loads.items())],
    )
    yield Family(
        "rolecall_swaps",
        "counter",
        "Starts and wakings of a model for which others were sent away.",
        ("model",),
        _with_zeros(loads.swaps.items(), [(model,) for model in models]),
    )
    yield Family(
        "rolecall_evictions",
        "counter",
        "Models that were stopped or put to sleep, by the reason.",
        ("model", "how", "reason"),
        sorted(loads.departures.items()),
    )
    yield Family(
        "rolecall_model_failures",
        "counter",
        "Starts and wakings that failed, and engines that ended by themselves (crash).",
        ("model", "kind"),
        _with_zeros(loads.failures.items(), [(model, kind) for model in models for kind in ("start", "crash")]),
    )
    yield Family(
        "rolecall_decision_seconds",
        "histogram",
        "How long the scheduler thought about an event; requests that are served at once are not among them.",
        (),
        [((), loads.decisions.copy())],
    )


def state_families(gateway: Gateway, now: float) -> Iterator[Family]:
    """Yield how things stand at ``now`` (s, monotonic)."""
    services = gateway.services
    supervisor = services.supervisor
    problems = gateway.problems()
    yield Family(
        "rolecall_info", "gauge", "1; its labels say what runs.", ("version", "profile"),
        [((__version__, services.roster.active.profile.name), 1)],
    )  # fmt: skip
    yield Family(
        "rolecall_degraded",
        "gauge",
        "1 where something is wrong with the registry, the log, the API keys and so on; /health says what.",
        ("problem",),
        [((name,), int(bool(problem))) for name, problem in problems.items()],
    )
    yield _one(
        "rolecall_log_lines_dropped", "counter", "Lines of the request log that were lost.", services.recorder.dropped
    )
    yield _one(
        "rolecall_traces_dropped",
        "counter",
        "Requests whose spans could not be sent to the collector.",
        services.tracing.lost(),
    )
    yield _one(
        "rolecall_requests_in_flight",
        "gauge",
        "Requests that have arrived and are not over.",
        len(gateway.inference.active),
    )
    yield _one(
        "rolecall_queue_oldest_seconds",
        "gauge",
        "How long the oldest waiting request has waited.",
        supervisor.scheduler.waited_s(now),
    )
    limit = services.settings.max_queue
    yield _one("rolecall_queue_limit", "gauge", "How many may wait; one more is refused.", limit)
    yield from _model_families(supervisor.scheduler.status(now))
    memory = supervisor.memory
    yield from vram_families(supervisor.scheduler.ledger, memory.latest if memory else None, supervisor.names)


def _one(name: str, kind: Literal["counter", "gauge"], help_: str, value: float) -> Family:
    return Family(name, kind, help_, (), [((), value)])


def _model_families(rows: Iterable[ModelStatus]) -> Iterator[Family]:
    queue = Family(
        "rolecall_queue_length", "gauge", "Requests in the queue, by the model that they wait for.", ("model",)
    )
    busy = Family("rolecall_model_requests_in_flight", "gauge", "Requests that a model answers.", ("model",))
    state = Family("rolecall_model_state", "gauge", "1 for the state that a model is in.", ("model", "state"))
    failed = Family(
        "rolecall_model_consecutive_failures", "gauge", "Starts and crashes since a model was last well.", ("model",)
    )
    for row in rows:
        queue.rows.append(((row.name,), row.waiting))
        busy.rows.append(((row.name,), row.in_flight))
        state.rows.append(((row.name, row.state.value), 1))
        failed.rows.append(((row.name,), row.failures))
    yield from (queue, busy, state, failed)


def vram_families(ledger: Ledger, report: GpuReport | None, models: Iterable[str]) -> Iterator[Family]:
    """Yield who holds what of each device; ``host`` is the RAM of a machine without GPUs."""
    devices = list(ledger.devices.values())
    seen = {gpu.uuid: gpu for gpu in report.gpus} if report is not None else {}
    amounts: dict[str, Mapping[str, float]] = {
        "total": {device.id: device.total_mb for device in devices},
        "budget": {device.id: ledger.usable_mb(device.id) for device in devices},
        "reserved": {device.id: ledger.used_on(device.id) for device in devices},
        "foreign": {device.id: ledger.foreign_mb.get(device.id, 0) for device in devices},
        "used": {uuid: gpu.vram_total_mb - gpu.vram_free_mb for uuid, gpu in seen.items()},
        "free": {uuid: gpu.vram_free_mb for uuid, gpu in seen.items()},
    }
    for kind, help_ in (
        ("total", "Memory of a GPU."),
        ("budget", "What models may take of it."),
        ("reserved", "What is reserved for models."),
        ("foreign", "What other programs hold."),
        ("used", "What is taken in all, as the driver says."),
        ("free", "What is free, as the driver says."),
    ):
        mb = amounts[kind]
        rows: list[_Row] = [((_label(device),), mb[device.id] * _MB) for device in devices if device.id in mb]
        yield Family(f"rolecall_vram_{kind}_bytes", "gauge", help_, ("gpu",), rows)
    held = Family(
        "rolecall_model_vram_reserved_bytes", "gauge", "What is reserved for a model on a GPU.", ("model", "gpu")
    )
    for name in models:
        for device, amount in ledger.held_on(name).items():
            if device in ledger.devices:
                held.rows.append(((name, _label(ledger.devices[device])), amount * _MB))
    yield held
    info = Family("rolecall_gpu_info", "gauge", "1; its labels say which GPU has an index.", ("gpu", "uuid", "name"))
    info.rows = [((_label(d), d.id, seen[d.id].name), 1) for d in devices if d.id in seen]
    yield info


def _label(device: Device) -> str:
    return HOST if device.id == HOST else str(device.index)
