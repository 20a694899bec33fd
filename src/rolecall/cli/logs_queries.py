"""``rolecall logs stats`` and ``rolecall logs query``: the request log as a database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rolecall.cli.common import AsJson, ConfigDir, fail, one_at_most
from rolecall.cli.log_output import print_rows_csv, print_rows_json, print_rows_table, tell
from rolecall.cli.log_place import Memory, ending_quietly, log_path, missing, parsed
from rolecall.insight.log_columns import column_types
from rolecall.insight.log_database import VIEW, QueryError, foreign_query, opened_database
from rolecall.insight.log_reader import parse_since, parse_status
from rolecall.insight.log_statistics import BY, COLUMNS, FIGURES, Conditions, statistics

File = Annotated[Path | None, typer.Option(help="The log to read.", metavar="PATH")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]
Since = Annotated[str | None, typer.Option(help="30s, 10m, 2h, 1d ago, or an ISO time.", metavar="TIME")]
Until = Annotated[str | None, typer.Option(help="The same; requests that came before.", metavar="TIME")]

_HEADS = {
    "prompt_tokens": "tokens in",
    "completion_tokens": "tokens out",
    "ttft_ms_p50": "ttft p50",
    "ttft_ms_p95": "p95",
    "duration_ms_p50": "ms p50",
    "duration_ms_p95": "p95",
    "tokens_per_second_p50": "tok/s",
    "queue_ms_p95": "queue p95",
    "load_ms_mean": "load mean",
}


def stats(  # noqa: PLR0913 - one argument for each option
    ctx: typer.Context,
    *,
    by: Annotated[str, typer.Option(help=f"Any of {', '.join(BY)}; several with commas.")] = "model",
    model: Annotated[str | None, typer.Option(help="Model, served or asked for; * and ? are wildcards.")] = None,
    role: Annotated[str | None, typer.Option(help="Role; * and ? are wildcards.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt id; * and ? are wildcards.")] = None,
    key: Annotated[str | None, typer.Option(help="Name of the API key; * and ? are wildcards.")] = None,
    status: Annotated[str | None, typer.Option(help="404, 4xx, >=400, ok or error.")] = None,
    since: Since = None,
    until: Until = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    file: File = None,
    memory: Memory = 1024,
    config_dir: ConfigDir = None,
) -> None:
    """Count requests, errors and tokens, and say how long things took: by model, or --by role,prompt,hour,day …"""
    one_at_most(json=as_json, csv=as_csv)
    groups = parsed("--by", _groups, by)
    now = datetime.now().astimezone()
    parsed("--status", parse_status, status)
    begin, end = (
        parsed(option, lambda text: parse_since(text, now), given)
        for option, given in (("--since", since), ("--until", until))
    )
    wanted = Conditions(model, role, prompt, key, status, begin, end)
    path = log_path(ctx, file, config_dir)
    with _failing(path), opened_database(path, COLUMNS, since=begin, memory_mb=memory) as database:
        rows = statistics(database, groups or [], wanted)
        columns = [*(groups or []), *FIGURES]
        values = [[row[name] for name in columns] for row in rows]
        if as_json:
            print_rows_json(columns, [values])
        elif as_csv:
            print_rows_csv(columns, [values])
        else:
            print_rows_table(columns, [[_rounded(row) for row in values]], _HEADS)
        tell(database.tally)
    if not any(row["requests"] for row in rows):
        fail(f"no request in {path.absolute()}" + (" matches" if wanted != Conditions() else ""))


def query(  # noqa: PLR0913 - one argument for each option
    ctx: typer.Context,
    sql: Annotated[str, typer.Argument(help=f"A query of the view {VIEW}, in DuckDB's SQL.", metavar="SQL")],
    *,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    file: File = None,
    memory: Memory = 1024,
    config_dir: ConfigDir = None,
) -> None:
    """Ask the log, its rotated and compressed files included, in SQL: the view requests has a column for each key."""
    one_at_most(json=as_json, csv=as_csv)
    path = log_path(ctx, file, config_dir)
    with _failing(path, columns=True), foreign_query(path, sql, memory) as (database, answer):
        printer = print_rows_json if as_json else print_rows_csv if as_csv else print_rows_table
        printer(answer.columns, answer.batches)
        tell(database.tally)


class CommentedCommand(TyperCommand):
    """A command whose argument is SQL: what begins with ``--`` and has a blank in its first word is a comment."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Have a comment taken for no option: with a blank before it, it is the same SQL."""
        return super().parse_args(ctx, [f" {each}" if re.match(r"--[^=\s]*\s", each) else each for each in args])


@contextmanager
def _failing(path: Path, *, columns: bool = False) -> Iterator[None]:
    """Fail with the reason where there is no log, or a statement cannot be carried out; with the columns on demand."""
    with ending_quietly():
        try:
            yield
        except FileNotFoundError:
            fail(missing(path))
        except QueryError as error:
            named = ", ".join(f"{name} {kind}" for name, kind in column_types().items())
            fail(f"{error}\n{VIEW} has the columns {named}" if columns else str(error))


def _groups(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in BY]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is none of {', '.join(BY)}")
    return list(dict.fromkeys(names))


def _rounded(row: list[Any]) -> list[Any]:
    """Return a row as people read it: milliseconds without, rates with one decimal."""
    return [
        round(value, 1)
        if isinstance(value, float) and value < 100
        else round(value)
        if isinstance(value, float)
        else value
        for value in row
    ]
