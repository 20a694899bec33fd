"""What a server may tell the dashboard: an ordinary afternoon, many models, nothing at all, trouble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from browser.told import ago, entry, gpu_of, line, live_row, model, snapshot

NAMES = ("qwen3-vl-8b", "florence-2", "gemma-3-12b", "llama-3.2-3b")
HOSTILE = (
    '<img src=x onerror="document.title=1">',
    "\u202egnp.exe\u202c-\u2067אבג\u2069",
    "x" * 200,
    "a/b c?d#e%2F",
)
DECISION = {
    "words": "florence-2 95 would need a swap of 14 s; qwen3-vl-8b at 80 is loaded; tolerance 15",
    "role": "caption",
    "candidates": [
        {"model": "qwen3-vl-8b", "priority": 80, "loaded": True, "costs_swap": False, "swap_s": None},
        {"model": "florence-2", "priority": 95, "loaded": False, "costs_swap": True, "swap_s": 14.0},
    ],
    "rejected": [{"model": "old-vl", "why": "unavailable", "reason": "its file is missing"}],
}


def history(count: int, names: Sequence[str] = NAMES) -> list[dict[str, Any]]:
    """Return lines, the oldest first; one failed, and of one the client left."""
    odd: dict[int, dict[str, Any]] = {
        1: {"model": names[0], "requested_model": "role:caption"},
        3: {"status": 502, "error": "engine_crashed: The engine ended within the answer.", "completion_tokens": None},
        5: {"status": 499, "error": "client_disconnected: The client left."},
    }
    rows = ((number, names[number % len(names)], "caption" if number % 2 else None) for number in range(count, 0, -1))
    return [line(number, name, role=role, **odd.get(number, {})) for number, name, role in rows]


def afternoon() -> dict[str, Any]:
    """Return three models on a card, one of which is being loaded, and requests at them."""
    sees = ["text", "vision"]
    nothing: dict[str, Any] = {"ttft_ms": None, "tokens": 0, "tokens_per_second": None}
    return snapshot(
        gpus=[gpu_of([("qwen3-vl-8b", 9000), ("llama-3.2-3b", 3100), ("gemma-3-12b", 6200)])],
        models=[
            model("florence-2", roles={"caption": 95, "tags": 80}, capabilities=sees, footprint_mb=1800, waiting=2),
            model("gemma-3-12b", "starting", roles={"chat": 70}, load_fraction=0.62, load_eta_s=5.4, waiting=1)
            | {"vram_reserved_mb": 6200},
            model("llama-3.2-3b", "ready", pinned=True, roles={"chat": 40, "summary": 60}, in_flight=1)
            | {"vram_reserved_mb": 3100, "ready_since": ago(3000)},
            model("qwen3-vl-8b", "ready", display_name="Qwen3-VL 8B", capabilities=sees, in_flight=2)
            | {"roles": {"caption": 80, "chat": 60, "description": 90}}
            | {"vram_reserved_mb": 9000, "ready_since": ago(700)},
            model("remote", "ready", managed=False, backend="openai", roles={"chat": 10}, devices=[]),
        ],
        live=[
            live_row(1, "qwen3-vl-8b", role="caption", key="laptop", images=1),
            live_row(2, "qwen3-vl-8b", started=ago(1), **nothing),
            live_row(3, "llama-3.2-3b", tokens=412, tokens_per_second=88.0, started=ago(9)),
            live_row(4, "gemma-3-12b", role="chat", state="loading", started=ago(6), **nothing),
            live_row(5, "florence-2", role="caption", state="waiting", started=ago(2), **nothing),
        ],
        queue=[
            waiting("req_live4", "gemma-3-12b", "chat", 6, 1, "starting", 5.4),
            waiting("req_live5", "florence-2", "caption", 2, 1, "stopped", 19.0),
            waiting(None, "florence-2", None, 1, 2, "stopped", None) | {"purpose": "hand"},
        ],
        history=history(40),
        timeline=swaps(),
        totals={"requests": 1284, "errors": 3, "prompt_tokens": 912400, "completion_tokens": 412100, "loads": 7}
        | {"evictions": 2},
    )


def waiting(  # noqa: PLR0917 - the fields of a row
    request_id: str | None, name: str, role: str | None, since_s: float, position: int, state: str, eta_s: float | None
) -> dict[str, Any]:
    """Return a row of the queue."""
    return {
        "request_id": request_id,
        "model": name,
        "role": role,
        "purpose": "request",
        "waiting_since": ago(since_s),
        "position": position,
        "state": state,
        "eta_s": eta_s,
    }


def swaps(gone: str = "florence-2", stays: str = "qwen3-vl-8b", comes: str = "gemma-3-12b") -> list[dict[str, Any]]:
    """Return what three models did in the last quarter of an hour."""
    return [
        entry(880, gone, "load", None, "a request for role:caption"),
        entry(870, gone, "ready", 9.8),
        entry(720, gone, "evicted", 150.0, f"made room for {stays}"),
        entry(719, gone, "unloaded", 1.0),
        entry(719, stays, "load", None, "a request for role:caption"),
        entry(700, stays, "ready", 18.8),
        entry(500, comes, "load", None, "a request"),
        entry(480, comes, "failed", 20.0, "CUDA error: out of memory"),
        entry(470, comes, "load", None, "a request"),
        entry(450, comes, "ready", 20.0),
        entry(200, comes, "sleep", 250.0, "idle for 4 min"),
        entry(150, comes, "wake", None, "a request"),
        entry(147, comes, "awake", 3.0),
        entry(60, comes, "unload", 87.0, "idle"),
        entry(59, comes, "unloaded", 1.0),
        entry(8, comes, "load", None, "a request for role:chat"),
    ]


def crowd() -> dict[str, Any]:
    """Return 20 models on two cards and 100 requests, as many as the server tells of; the last waits for a model."""
    rows = [_one_of_many(number) for number in range(20)]
    gone, stays, comes = rows[1], rows[0], rows[9]
    comes |= {"state": "starting", "load_fraction": 0.62, "load_eta_s": 5.4, "waiting": 1}
    comes |= {"devices": [{"index": 1, "uuid": "GPU-1"}], "vram_reserved_mb": comes["footprint_mb"]}
    up = [row for row in rows if row["state"] == "ready"]
    live = [
        live_row(number, up[number % len(up)]["model"], started=ago(number / 9 + 1), tokens=4 * number + 20)
        for number in range(99)
    ]
    for row in up:
        row["in_flight"] = sum(each["model"] == row["model"] for each in live)
    live.append(live_row(99, comes["model"], state="loading", ttft_ms=None, tokens=0, tokens_per_second=None))
    held: tuple[list[tuple[str, int]], ...] = ([], [])
    for row in rows:
        for device in row["devices"]:
            held[device["index"]].append((row["model"], row["vram_reserved_mb"]))
    return snapshot(
        gpus=[gpu_of(models, index) for index, models in enumerate(held)],
        models=rows,
        live=live,
        queue=[waiting("req_live99", comes["model"], None, 6, 1, "starting", 5.4)],
        history=history(50, [row["model"] for row in up]),
        timeline=swaps(gone["model"], stays["model"], comes["model"]),
        totals={"requests": 18230, "errors": 12, "prompt_tokens": 924130, "completion_tokens": 312048, "loads": 96}
        | {"evictions": 71},
    )


def _one_of_many(number: int) -> dict[str, Any]:
    state = ("ready", "stopped", "sleeping", "ready", "stopped")[number % 5]
    roles = ({"caption": 90, "chat": 40}, {"chat": 70}, {"tags": 60, "description": 55, "ocr": 40}, {"embed": 80})
    mb = (4600, 1800, 5600, 2400)[number % 4]
    row = model(
        f"{NAMES[number % 4]}-q{number % 7 + 2}_k_m-{number:02}", state, roles=roles[number % 4], footprint_mb=mb
    )
    row["devices"] = [{"index": number % 2, "uuid": f"GPU-{number % 2}"}] if state != "stopped" else []
    if state == "ready":
        row |= {"vram_reserved_mb": mb, "ready_since": ago(700 + 170 * number)}
    elif state == "sleeping":
        row |= {"vram_reserved_mb": 300, "sleep_level": 1, "backend": "vllm"}
    return row


def trouble() -> dict[str, Any]:
    """Return a model whose engine does not start, and a log that cannot be written."""
    words = (
        "The engine exited with status 1 before it was ready. Its last lines:\n"
        "ggml_cuda_init: found 1 CUDA devices\n"
        "llama_model_load: error loading model: tensor 'blk.12.ffn_down.weight' data is not within the file bounds\n"
        "llama_model_load_from_file_impl: failed to load model"
    )
    return snapshot(
        gpus=[gpu_of([("llama-3.2-3b", 3100)])],
        models=[
            model("gemma-3-12b", "failed", roles={"chat": 70}, failures=3, retry_at=ago(-40), error=words),
            model("llama-3.2-3b", "ready", vram_reserved_mb=3100, ready_since=ago(100)),
        ],
        timeline=[entry(30, "gemma-3-12b", "load"), entry(10, "gemma-3-12b", "failed", 20.0, "failed to load model")],
        server={"problems": {"log": "The request log cannot be written: No space left on device."}},
    )


def hostile() -> dict[str, Any]:
    """Return models, requests and reasons with names that mean harm."""
    return snapshot(
        gpus=[gpu_of([(name, 1000) for name in HOSTILE])],
        models=[
            model(name, "ready", roles={HOSTILE[0]: 50, HOSTILE[1]: 40}, display_name=HOSTILE[1]) for name in HOSTILE
        ],
        live=[live_row(number, name, role=HOSTILE[0], key=HOSTILE[1]) for number, name in enumerate(HOSTILE)],
        queue=[waiting(f"req_{name}", name, HOSTILE[0], 1, 1, "starting", 3.0) for name in HOSTILE],
        history=[line(number, name, role=HOSTILE[0], error=HOSTILE[0]) for number, name in enumerate(HOSTILE)],
        timeline=[entry(5, name, "load", None, HOSTILE[0]) for name in HOSTILE],
    )
