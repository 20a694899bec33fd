"""``rolecall simulate TRACE``: a trace of requests in simulated time, under rolecall's scheduler and under others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from rolecall.cli.common import AsJson, ConfigDir, StateDir, print_json
from rolecall.cli.offline import open_roster
from rolecall.cli.table import NOTHING, Column, Row, show, table
from rolecall.core.events import Spec
from rolecall.errors import ConfigurationError
from rolecall.runtime.roster import load_profiles
from rolecall.settings import load_settings
from rolecall.simulation.bounds import Bound
from rolecall.simulation.comparison import Comparison, compare
from rolecall.simulation.measures import Measures, Waits
from rolecall.simulation.policies import DEFAULT_POLICIES, POLICIES
from rolecall.simulation.requests import LOAD_S, parse_log
from rolecall.simulation.traces import find_spec, read_spec, shipped_specs
from rolecall.simulation.workload import Machine, Model, Workload

_COLUMNS = (
    Column("policy"),
    Column("served", right=True),
    Column("errors", right=True, below="errors {}"),
    Column("loads", right=True),
    Column("swaps", right=True),
    Column("total s", right=True),
    Column("per s", right=True, below="{} per s"),
    Column("p50 s", right=True),
    Column("p95 s", right=True),
    Column("max s", right=True),
    Column("overtaken s", right=True, below="overtaken for {} s"),
    Column("idle VRAM", right=True, below="idle VRAM {}"),
)


def command(  # noqa: PLR0913 - each is an option of its own
    trace: Annotated[
        str | None, typer.Argument(help="A shipped trace, a description (.toml, .json), or a request log.")
    ] = None,
    *,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", help=f"May be repeated: {', '.join(POLICIES)}.", show_default=", ".join(DEFAULT_POLICIES)
        ),
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="Usable MB of each GPU: 14336,14336.", metavar="MB,MB")] = None,
    profile: Annotated[str | None, typer.Option(help="The GPUs and the number of models of this profile.")] = None,
    max_overtake_s: Annotated[float | None, typer.Option(min=0, help="Instead of the trace's, or 20.")] = None,
    tolerance: Annotated[float | None, typer.Option(min=0, max=100, help="Quality tolerance of all roles.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw a description's requests with this seed.")] = None,
    models_max: Annotated[int | None, typer.Option(min=1, help="N of lru-count; else as many as always fit.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="For a request log: a model that the registry lacks, or other figures for it; may be repeated.",
            metavar="NAME=VRAM_MB[,LOAD_S[,PARALLEL]]",
        ),
    ] = None,
    details: Annotated[bool, typer.Option("--details", help="And the waits for each model and role.")] = False,
    names: Annotated[bool, typer.Option("--list", help="List the shipped traces.")] = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Replay a trace in simulated time: the production scheduler beside simpler policies, and what none can beat."""
    if names:
        _list(as_json=as_json)
        return
    if trace is None:
        raise ConfigurationError("which trace? `rolecall simulate --list` names those that are shipped")
    source, told = find_spec(trace), dict(map(_told, models or ()))
    machine = _machine(gpus, profile, config_dir)
    if source is not None:
        if told:
            raise ConfigurationError("--model is for request logs; a description has its own models")
        workload = read_spec(source, seed)
    else:
        if seed is not None:
            raise ConfigurationError("--seed is for descriptions; a request log is what it is")
        workload = _from_log(Path(trace), told, machine, config_dir, state_dir)
    workload = _changed(workload, machine, max_overtake_s, tolerance)
    result = compare(workload, policies or DEFAULT_POLICIES, models_max)
    if as_json:
        print_json(result.as_dict())
    else:
        show(lambda width: _report(result, width, details=details))


def _list(*, as_json: bool) -> None:
    found = {name: read_spec(source).about for name, source in shipped_specs().items()}
    if as_json:
        print_json([{"name": name, "about": about} for name, about in found.items()])
    else:
        show(lambda width: table((Column("trace"),), [Row((name,), about) for name, about in found.items()], width))


# -- the workload


def _machine(gpus: str | None, profile: str | None, config_dir: Path | None) -> Machine | None:
    if gpus is not None and profile is not None:
        raise ConfigurationError("--gpus and --profile: name one of them")
    if profile is not None:
        profiles = load_profiles(load_settings({"config_dir": config_dir}).config_dir)
        if profile not in profiles:
            raise ConfigurationError(f"--profile {profile!r} is none; there are {', '.join(profiles)}")
        known = profiles[profile]
        each_mb = known.max_vram_mb // known.gpu_count
        return Machine((each_mb,) * known.gpu_count, known.max_concurrent_models)
    if gpus is None:
        return None
    words = gpus.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ConfigurationError(f"--gpus {gpus!r}: MB of each GPU are whole numbers above 0, as in 14336,14336")
    return Machine(tuple(map(int, words)))


def _told(text: str) -> tuple[str, Model]:
    name, _, figures = text.rpartition("=")
    try:
        vram_mb, load_s, parallel, *rest = [*figures.split(","), "", ""][: max(3, figures.count(",") + 1)]
        model = Model(name, int(vram_mb), float(load_s or LOAD_S), max_parallel=int(parallel or 1))
    except ValueError:
        rest = [text]
    if rest or not name or min(model.vram_mb, model.load_s, model.max_parallel - 1) < 0:
        raise ConfigurationError(f"--model {text!r}: it is NAME=VRAM_MB[,LOAD_S[,PARALLEL]], as in caption=9000,12,4")
    return name, model


def _from_log(
    path: Path, told: dict[str, Model], machine: Machine | None, config_dir: Path | None, state_dir: Path | None
) -> Workload:
    """Read a request log; the registry is not needed if the models and the GPUs are told."""
    models = told
    if not told or machine is None:
        configured = open_roster(config_dir, state_dir).configured()
        models = {spec.name: _known(spec) for spec in configured.specs if spec.managed} | told
        capacities = tuple(device.capacity_mb for device in configured.devices)
        machine = machine or Machine(capacities, configured.max_models, configured.sleep_mb, configured.groups)
    with path.open("rb") as lines:
        return parse_log(lines, path.name, models, machine)


def _known(spec: Spec) -> Model:
    return Model(
        name=spec.name,
        vram_mb=spec.footprint_mb or 0,
        load_s=spec.load_s,
        max_parallel=spec.max_parallel,
        roles=tuple(spec.entry.priorities.items()),
        idle_unload_s=spec.idle_unload_s,
        spread=spec.spread,
        sleep=spec.sleep,
        pinned=spec.entry.pinned,
    )


def _changed(
    workload: Workload, machine: Machine | None, max_overtake_s: float | None, tolerance: float | None
) -> Workload:
    if machine is not None:
        groups, sleep_mb = workload.machine.groups, workload.machine.sleep_mb
        workload = replace(workload, machine=replace(machine, groups=groups, sleep_mb=sleep_mb))
    if max_overtake_s is not None:
        workload = replace(workload, max_overtake_s=max_overtake_s)
    if tolerance is not None:
        workload = replace(workload, tolerance=tolerance)
    return workload


# -- the report


def _report(result: Comparison, width: int | None, *, details: bool) -> Iterator[Text]:
    workload = result.workload
    if workload.about:
        yield Text(workload.about)
    yield from (Text(f"note: {note}") for note in workload.notes)
    gpus = " + ".join(f"{mb} MB" for mb in workload.machine.gpus_mb)
    yield Text(f"{workload.requests} requests, {len(workload.models)} models, {gpus}", "dim")
    yield Text()
    rows = [_row(name, measures) for name, measures in result.measures.items()]
    yield from table(_COLUMNS, [*rows, *_bounds(result)], width)
    if details:
        yield Text()
        yield from _details(result, width)


def _row(name: str, measures: Measures) -> Row:
    loads = f"{measures.loads} + {measures.wakes} wakes" if measures.wakes else str(measures.loads)
    return Row(
        (
            name,
            str(measures.served),
            str(measures.errors),
            loads,
            str(measures.swaps),
            f"{measures.total_s:.1f}",
            f"{measures.throughput_per_s:.3f}",
            *_waits(measures.wait),
            f"{measures.longest_overtaken_s:.1f}",
            f"{measures.idle_vram_share:.1%}",
        )
    )


def _waits(waits: Waits) -> tuple[str, str, str]:
    return f"{waits.p50_s:.1f}", f"{waits.p95_s:.1f}", f"{waits.max_s:.1f}"


def _bounds(result: Comparison) -> Iterator[Row]:
    yield _bound("clairvoyant", result.unlimited)
    if result.limited is not None:
        yield _bound(f"clairvoyant, waits <= {result.limited.wait_limit_s:g} s", result.limited)


def _bound(name: str, bound: Bound) -> Row:
    cells = dict.fromkeys((column.title for column in _COLUMNS), NOTHING)
    cells |= {"policy": name, "loads": f">= {bound.loads}", "total s": f">= {bound.total_s:.1f}"}
    return Row(tuple(cells.values()))


def _details(result: Comparison, width: int | None) -> Iterator[Text]:
    columns = (Column("policy"), Column("asked for"), *(Column(t, right=True) for t in ("served", "mean s")))
    columns += tuple(column for column in _COLUMNS if column.title in {"p50 s", "p95 s", "max s"})
    rows = [
        Row((name, wanted, str(waits.served), f"{waits.mean_s:.1f}", *_waits(waits)))
        for name, measures in result.measures.items()
        for wanted, waits in measures.waits.items()
    ]
    yield from table(columns, rows, width)
