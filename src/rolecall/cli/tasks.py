"""``rolecall tasks``: what can be asked about a picture, and the files that say so; no server is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from rolecall.cli.common import AsJson, CommandError, ConfigDir, print_json
from rolecall.cli.table import Column, Row, show, table
from rolecall.settings import load_settings
from rolecall.vision.tasks import TaskError, Tasks, UnknownTask, tasks_of

app = typer.Typer(no_args_is_help=True, invoke_without_command=True, help="List and show the tasks for pictures.")

_COLUMNS = (
    Column("task"),
    Column("version", right=True),
    Column("role"),
    Column("answer"),
    Column("title", below="{}"),
    Column("from", style=lambda text: "green" if text == "own" else "dim"),
)


@app.callback()
def main(context: typer.Context, *, config_dir: ConfigDir = None) -> None:
    """List and show the tasks for pictures; with --config-dir alone, list them."""
    context.obj = config_dir
    if context.invoked_subcommand is None:
        list_tasks(context)


@app.command("list")
def list_tasks(context: typer.Context, *, as_json: AsJson = False, config_dir: ConfigDir = None) -> None:
    """List the tasks; all that do not come with rolecall are your own. Fails for a file that cannot be used."""
    tasks = _tasks(context, config_dir)
    if as_json:
        print_json([{**task.model_dump(mode="json"), "file": str(tasks.file(id_))} for id_, task in tasks.items()])
    else:
        show(lambda width: table(_COLUMNS, list(_rows(tasks)), width))
    if tasks.problems:
        raise TaskError("\n".join(tasks.problems.values()))


def _rows(tasks: Tasks) -> Iterator[Row]:
    for id_, task in tasks.items():
        yield Row((id_, task.version, task.role, task.parser, task.title, "own" if tasks.is_own(id_) else "rolecall"))


@app.command("show")
def show_task(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="Its id.", metavar="TASK")],
    *,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Print a task's file: as tasks/TASK.toml of the config folder, a changed copy takes its place."""
    tasks = _tasks(context, config_dir)
    try:
        found = tasks.find(task)
    except UnknownTask as error:
        raise CommandError(str(error)) from None
    if as_json:
        print_json({**found.model_dump(mode="json"), "file": str(tasks.file(found.id))})
    else:
        typer.echo(tasks.file(found.id).read_text(encoding="utf-8"), nl=False)


def _tasks(context: typer.Context, config_dir: Path | None) -> Tasks:
    """Return the tasks of a folder that was named behind the command, or else before it."""
    return tasks_of(load_settings({"config_dir": config_dir or context.obj}))
