"""``rolecall status``: what a running rolecall holds, and who waits for it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NoReturn

import typer
from rich.live import Live
from rich.text import Text

from rolecall.cli.client import Client, Url, connect
from rolecall.cli.common import AsJson, CommandError, ConfigDir, print_json
from rolecall.cli.table import NOTHING, Column, Row, console_for, labelled, show, table
from rolecall.core.wording import counted

_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "sleeping": "cyan",
    "failed": "red",
    "stopped": "dim",
}
_COLUMNS = (
    Column("model"),
    Column("state", style=lambda text: _STYLES.get(text.split(" ")[0], "")),
    Column("in flight", right=True),
    Column("waiting", right=True),
    Column("MB", right=True),
    Column("GPU", right=True, below="GPU {}"),
    Column("needs MB", right=True, below="needs {} MB"),
    Column("RSS MB", right=True, below="RSS {} MB"),
    Column("pid", right=True, below="pid {}"),
    Column("port", right=True, below="port {}"),
    Column("up", right=True, below="up {}"),
)
_WATCH_S = 1.0

Snapshot = dict[str, Any]
"""What ``status --json`` prints: ``url``, ``health``, ``models``, ``gpus``, ``profile`` as the server gives them."""


def status(
    *,
    url: Url = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Show the models' states, who holds how much memory, and the queue.

    MB is what a model has reserved of the memory budget now, needs MB what its next start is given, RSS MB what its
    processes hold of the host's memory.
    """
    with connect(url, config_dir) as client:
        if watch:
            _watch(client, as_json=as_json)
        else:
            _print(client, as_json=as_json)


def _print(client: Client, *, as_json: bool) -> None:
    snapshot = _snapshot(client)
    if as_json:
        print_json(snapshot)
    else:
        show(lambda width: _lines(snapshot, width))


def _snapshot(client: Client) -> Snapshot:
    health, models = client.health(), client.models()
    return {
        "url": client.url,
        "health": health,
        "models": models["data"],
        "gpus": models["gpus"],
        "profile": client.profile(),
    }


def _watch(client: Client, *, as_json: bool) -> None:
    """Show it every second; a server that was never there ends it, one that goes away may come back."""
    client.health()
    console = console_for()
    try:
        if as_json or not console.is_terminal:
            _print_on(client, as_json=as_json)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(Text("\n").join(_lines_or_reason(client, console.width)), refresh=True)
                time.sleep(_WATCH_S)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _print_on(client: Client, *, as_json: bool) -> NoReturn:
    while True:
        _print(client, as_json=as_json)
        if not as_json:
            typer.echo()
        time.sleep(_WATCH_S)


def _lines_or_reason(client: Client, width: int) -> Iterator[Text]:
    try:
        yield from _lines(_snapshot(client), width)
    except CommandError as error:
        yield Text(str(error), "red")


def _lines(snapshot: Snapshot, width: int | None) -> Iterator[Text]:
    health = snapshot["health"]
    style = "green" if health["status"] == "ok" else "red"
    yield Text.assemble(f"rolecall {health['version']} at {snapshot['url']}: ", (health["status"], style))
    yield from labelled(_facts(health, snapshot["profile"], snapshot["gpus"]), width)
    yield Text()
    if snapshot["models"]:
        rows = [_row(model) for model in snapshot["models"]]
        yield from table(_COLUMNS, rows, width, notes="error")
    else:
        yield Text("no model is installed; `rolecall models list --all` says why")


def _facts(
    health: Mapping[str, Any], profile: Mapping[str, Any], gpus: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    active = profile["active_profile"]
    most = active["max_concurrent_models"]
    yield (
        "memory",
        f"{health['reserved_mb']} of {health['budget_mb']} MB reserved, at most {counted(most, 'model')} at once",
    )
    yield "profile", f"{active['name']} ({profile['source']})"
    used = {gpu["uuid"]: gpu for gpu in gpus}
    for gpu in profile["detected_gpus"]:
        if gpu["uuid"] not in used:
            yield f"GPU {gpu['index']}", f"not used; {gpu['vram_free_mb']} of {gpu['vram_total_mb']} MB free"
    for gpu in used.values():
        yield f"GPU {gpu['index']}", _gpu(gpu)
    if profile["gpu_problem"]:
        yield "GPU", profile["gpu_problem"]
    yield "queue", f"{counted(health['queue'], 'request')} waiting"
    for name, problem in health["problems"].items():
        yield f"problem: {name}", problem
    if health["log_lines_dropped"]:
        yield "problem: log", f"{health['log_lines_dropped']} lines could not be written"


def _gpu(gpu: Mapping[str, Any]) -> str:
    held = "?" if gpu["used_mb"] is None else gpu["used_mb"]
    use = f"{held} of {gpu['total_mb']} MB used, {gpu['foreign_mb']} by others"
    reserved = f"{gpu['reserved_mb']} of {gpu['usable_mb']} reserved"
    return f"{use}; {reserved}; {gpu['name'] or 'it does not answer'} ({_short(gpu['uuid'])})"


def _short(uuid: str) -> str:
    """The beginning of a UUID, which CUDA takes for the whole one."""
    return "-".join(uuid.split("-")[:2])


def _row(model: Mapping[str, Any]) -> Row:
    cells = (
        model["model"],
        _state(model),
        str(model["in_flight"]),
        str(model["waiting"]),
        str(model["vram_reserved_mb"]),
        ",".join(str(gpu["index"]) for gpu in model["devices"]) or NOTHING,
        _needs(model),
        *(NOTHING if model[key] is None else str(model[key]) for key in ("rss_mb", "pid", "port")),
        NOTHING if model["uptime_s"] is None else _duration(model["uptime_s"]),
    )
    return Row(cells, _trouble(model))


def _state(model: Mapping[str, Any]) -> str:
    """``starting 40% eta 12s``, ``sleeping 1``, ``ready cpu``, or the state alone."""
    words = [model["state"]]
    if model.get("reduced") is not None:
        words.append(model["reduced"])
    if model["sleep_level"] is not None:
        words.append(str(model["sleep_level"]))
    if model["load_fraction"] is not None:
        words.append(f"{model['load_fraction']:.0%}")
    if model["load_eta_s"] is not None:
        words.append(f"eta {_duration(math.ceil(model['load_eta_s']))}")
    return " ".join(words)


def _needs(model: Mapping[str, Any]) -> str:
    mb, source = model["footprint_mb"], model["footprint_source"]
    return NOTHING if mb is None else f"{mb} {source}"


def _trouble(model: Mapping[str, Any]) -> str:
    """``failed 3 times, next try in 4s: reason``; nothing of a model that is well."""
    if not model["error"]:
        return ""
    count, retry_s = model["failures"], model["retry_in_s"]
    often = "" if count == 0 else " once" if count == 1 else f" {count} times"
    when = ""
    if retry_s is not None:
        when = f", next try in {_duration(math.ceil(retry_s))}" if retry_s else ", next try with the next request"
    return f"failed{often}{when}: {_brief(model['error'])}"


def _brief(error: str) -> str:
    """The reason and the engine's last word; the lines between them are in ``--json`` and in the engine's log."""
    lines = error.splitlines()
    return error if len(lines) < 3 else f"{lines[0].partition('. ')[0]}: {lines[-1].strip()}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes}m"
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02}h"
