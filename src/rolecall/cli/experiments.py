"""``rolecall experiments``: what is tried, whether the file is right, and what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from rolecall.cli.common import AsJson, CommandError, ConfigDir, one_at_most, print_json
from rolecall.cli.log_place import ending_quietly, missing
from rolecall.cli.table import Column, Row, say, show, table
from rolecall.core.experiments import Experiment, Experiments
from rolecall.core.wording import counted
from rolecall.errors import ConfigurationError, ModelNotFound
from rolecall.insight.experiment_lines import open_material
from rolecall.insight.experiment_report import Comparison, Report, report_on, words
from rolecall.insight.report_markdown import escaped, markdown_table
from rolecall.runtime.experiments import EXPERIMENTS, load_experiments
from rolecall.runtime.roster import Roster, load_roster
from rolecall.settings import Settings, load_settings

app = typer.Typer(no_args_is_help=True, help="List and check the experiments.")

LogFile = Annotated[Path | None, typer.Option("--file", help="The log to read.", metavar="PATH")]
_WITHOUT_PART = frozenset({"embedding", "rerank"})
_LIST = (
    Column("experiment"),
    Column("state", style=lambda text: "green" if text == "running" else "dim"),
    Column("on"),
    Column("sticky"),
    Column("metric"),
    Column("variants", below="{}"),
)


def _numbers(*titles: str) -> Iterator[Column]:
    return (Column(title, right=True, below=f"{title} {{}}") for title in titles)


_ARMS = (
    Column("variant"),
    *_numbers("requests", "units", "compared", "success", "ttft ms", "ms", "tok/s", "tokens", "score"),
)
_COMPARISONS = (Column("variant"), *_numbers("difference", "from", "to", "p", "pairs"), Column("", below="{}"))


def defined_experiments(settings: Settings) -> Experiments:
    """Return the experiments of the config folder; raises ``ConfigurationError``."""
    return load_experiments(settings.config_dir / EXPERIMENTS) or Experiments(())


@app.callback()
def main() -> None:
    """List and check the experiments."""


@app.command("list")
def list_experiments(*, as_json: AsJson = False, config_dir: ConfigDir = None) -> None:
    """List the experiments of the config folder."""
    settings = load_settings({"config_dir": config_dir})
    found = defined_experiments(settings).all
    if as_json:
        print_json([{**each.model_dump(mode="json"), "state": _state(each)} for each in found])
    elif found:
        show(lambda width: table(_LIST, list(_listed(found)), width))
    else:
        say(f"no experiments in {settings.config_dir / EXPERIMENTS}")


def _listed(found: tuple[Experiment, ...]) -> Iterator[Row]:
    for each in found:
        shares = ", ".join(f"{name} {variant.weight:g}" for name, variant in each.variants.items())
        yield Row((each.name, _state(each), each.concerns, each.sticky or "no", each.metric, shares))


def _state(experiment: Experiment) -> str:
    now = time.time()
    start, end = experiment.span
    if not experiment.enabled:
        return "off"
    if end is not None and end <= now:
        return "over"
    return "to come" if start is not None and now < start else "running"


@app.command()
def validate(*, as_json: AsJson = False, config_dir: ConfigDir = None) -> None:
    """Check the file: fields and values, and whether models, roles and keys that it counts on are there."""
    settings = load_settings({"config_dir": config_dir})
    problems: list[str] = []
    found: tuple[Experiment, ...] = ()
    try:
        found = defined_experiments(settings).all
    except ConfigurationError as error:
        problems = str(error).splitlines()
    warnings = list(_warnings(found, settings)) if found else []
    if as_json:
        print_json({"experiments": len(found), "problems": problems, "warnings": warnings})
    else:
        say(*(f"warning: {warning}" for warning in warnings))
    if problems:
        if not as_json:
            raise ConfigurationError("\n".join(problems))
        raise typer.Exit(2)
    if not as_json:
        typer.echo(f"{counted(len(found), 'experiment')}, {counted(len(warnings), 'warning')}")


def _warnings(found: tuple[Experiment, ...], settings: Settings) -> Iterator[str]:
    roster = load_roster(settings)
    for number, each in enumerate(found):
        yield from (f"{each.name}: {warning}" for warning in _unable(each, roster))
        if each.sticky == "key" and settings.api_keys_file is None:
            yield f"{each.name}: is sticky by key, and there are no API keys: nobody takes part"
        for earlier in found[:number]:
            if earlier.concerns == each.concerns and _overlap(earlier, each):
                yield f"{each.name}: gets no request that {earlier.name} takes, which stands before it"


def _unable(experiment: Experiment, roster: Roster) -> Iterator[str]:
    """Yield what cannot serve: models that are missing, and those of a role that answers nobody who takes part."""
    role = experiment.role and f"role:{experiment.role}"
    names = {variant.model for variant in experiment.variants.values()} | {role}
    for name in sorted(filter(None, names)):
        try:
            entries = roster.resolve(name).entries
        except ModelNotFound as error:
            yield error.message
            continue
        reasons = [roster.catalog.unavailable.get(entry.name) for entry in entries]
        if all(reasons):
            yield f"{name} cannot serve here: {reasons[0]}"
        elif all(entry.all_capabilities <= _WITHOUT_PART for entry in entries):
            yield f"{name} is for embeddings or rerank, which take no part"


def _overlap(one: Experiment, other: Experiment) -> bool:
    (start, end), (begin, over) = one.span, other.span
    is_apart = (end or math.inf) <= (begin or 0) or (over or math.inf) <= (start or 0)
    return one.enabled and other.enabled and not is_apart


def report_experiment(
    name: Annotated[str, typer.Argument(help="The experiment's name.", metavar="NAME")],
    *,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    file: LogFile = None,
    config_dir: ConfigDir = None,
) -> None:
    """Compare the variants of an experiment; it may be looked at as often as you like."""
    one_at_most(json=as_json, markdown=markdown)
    settings = load_settings({"config_dir": config_dir})
    experiments = defined_experiments(settings)
    experiment = experiments.find(name)
    if experiment is None:
        known = ", ".join(each.name for each in experiments.all) or "none"
        raise CommandError(
            f"there is no experiment {name!r} in {settings.config_dir / EXPERIMENTS}; there are: {known}"
        )
    log_path = file or settings.log_path
    with ending_quietly(), ExitStack() as stack:
        try:
            material = open_material(log_path, experiment, stack)
        except FileNotFoundError:
            raise CommandError(missing(log_path)) from None
        report = report_on(experiment, material, time.time())
    if as_json:
        print_json(report.as_dict())
    elif markdown:
        typer.echo("\n".join(_markdown(report)))
    else:
        _print(report)


def _print(report: Report) -> None:
    typer.echo(_heading(report))
    show(lambda width: table(_ARMS, [Row(_arm(arm.summary())) for arm in report.arms], width))
    typer.echo("")
    show(lambda width: table(_COMPARISONS, [Row(_compared(each, report)) for each in report.comparisons], width))
    typer.echo("")
    for line in _promise(report):
        typer.echo(line)
    say(*(f"note: {remark}" for remark in report.remarks))


def _markdown(report: Report) -> Iterator[str]:
    yield f"## {escaped(_heading(report))}"
    arms = [_arm(arm.summary()) for arm in report.arms]
    compared = [_compared(each, report) for each in report.comparisons]
    for columns, rows in ((_ARMS, arms), (_COMPARISONS, compared)):
        right = [at for at, column in enumerate(columns) if column.right]
        yield from ("", markdown_table([column.title for column in columns], rows, right))
    yield from ("", *map(escaped, _promise(report)))
    yield from ("", *(f"- {escaped(remark)}" for remark in report.remarks)) if report.remarks else ()


def _heading(report: Report) -> str:
    experiment = report.experiment
    unit = f"by {experiment.sticky}" if experiment.sticky else "by request"
    better = "lower" if experiment.is_lower_better else "higher"
    return f"{experiment.name}: {experiment.metric} ({better} is better) of the {experiment.concerns}, {unit}"


def _promise(report: Report) -> Iterator[str]:
    what = f"Differences {'relative to' if report.is_ratio else 'minus'} {report.experiment.control_name}"
    if report.is_complete:
        yield f"{what}, with intervals for {1 - report.alpha:.2%} at all times: look as often as you like."
        yield "That is exact where a variant changes nothing or shifts all alike, else only as good as pairs are many."
    else:
        yield f"{what}, of the lines that are left: they establish nothing."
    if report.forced:
        yield f"{report.forced} requests whose header asked for a variant are not counted."


def _arm(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["variant"]),
        *(str(row[name]) for name in ("requests", "units", "compared")),
        _percent(row["success"]),
        *(
            _number(row[f"median_{name}"])
            for name in ("ttft_ms", "duration_ms", "tokens_per_second", "completion_tokens")
        ),
        "-" if row["feedback"] is None else f"{row['feedback']:.2f} ({row['feedbacks']})",
    )


def _compared(each: Comparison, report: Report) -> tuple[str, ...]:
    shares = report.is_ratio or report.experiment.metric == "success"
    shown = _signed_percent if shares else _signed
    p = "-" if each.p_value is None else "<0.0001" if each.p_value < 0.0001 else f"{each.p_value:.4f}"
    numbers = (shown(value) for value in (each.difference if each.pairs else None, each.low, each.high))
    return (each.variant, *numbers, p, str(each.pairs), words(each, report))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _signed_percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"
