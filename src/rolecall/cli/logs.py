"""``rolecall logs``: the request log as a table that can follow, one request in full, figures and queries."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from rolecall.cli.common import ConfigDir, fail
from rolecall.cli.log_place import ENVVAR, default_log_path, ending_quietly, log_path, missing, parsed
from rolecall.cli.log_table import print_fields, summary, table_printer
from rolecall.cli.logs_queries import CommentedCommand, query, stats
from rolecall.insight.log_files import LogFiles, open_log
from rolecall.insight.log_reader import (
    Entry,
    LineFilter,
    Tail,
    Wanted,
    find_request,
    parse_since,
    parse_status,
)

_POLL_S = 0.2
_MAX_CANDIDATES = 10

app = typer.Typer(invoke_without_command=True)
app.command()(stats)
app.command(cls=CommentedCommand)(query)


@app.callback()
def logs(  # noqa: PLR0913 - one argument for each option
    ctx: typer.Context,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new requests as they come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last that match.")] = 20,
    model: Annotated[str | None, typer.Option(help="Model, served or asked for; * and ? are wildcards.")] = None,
    role: Annotated[str | None, typer.Option(help="Role; * and ? are wildcards.")] = None,
    status: Annotated[str | None, typer.Option(help="404, 4xx, >=400, ok or error.")] = None,
    since: Annotated[str | None, typer.Option(help="30s, 10m, 2h, 1d ago, or an ISO time.", metavar="TIME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The lines as they stand in the log.")] = False,
    file: Annotated[Path | None, typer.Option(help="The log to read.", metavar="PATH", envvar=ENVVAR)] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Show the last requests, the newest at the bottom."""
    if ctx.invoked_subcommand is not None:
        return
    wanted = Wanted(
        model,
        role,
        parsed("--status", parse_status, status),
        parsed("--since", lambda text: parse_since(text, datetime.now().astimezone()), since),
    )
    with ending_quietly(interruptible=follow):
        _show_last(file or default_log_path(config_dir), LineFilter(wanted), lines, follow=follow, as_json=as_json)


@app.command()
def show(
    ctx: typer.Context,
    request_id: Annotated[str, typer.Argument(help="The request's id, or the first characters of it.")],
    as_json: Annotated[bool, typer.Option("--json", help="The line as it stands in the log.")] = False,
    file: Annotated[Path | None, typer.Option(help="The log to read.", metavar="PATH")] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Show all that is known of one request."""
    path = log_path(ctx, file, config_dir)
    with ending_quietly(), ExitStack() as stack:
        log = _opened(path, stack)
        if log is None:
            fail(missing(path))
        found = find_request(log.files, request_id)
        if not found:
            fail(f"no request with the id {request_id!r} in {path.absolute()}")
        if len(found) > 1:
            fail("\n".join([f"{len(found)} requests begin with {request_id!r}:", *_candidates(found)]))
        if as_json:
            typer.echo(found[0].raw)
        else:
            print_fields({**found[0].fields, **_judged(path, str(found[0].fields["request_id"]))})


def _judged(path: Path, request_id: str) -> dict[str, object]:
    """Return what was thought of a request, as more fields of it."""
    from rolecall.insight.feedback import judgement_of  # noqa: PLC0415 - many logs have none

    found = judgement_of(path, request_id)
    given = {} if found is None else {"score": found.score, "label": found.label, "comment": found.comment}
    return {f"feedback.{name}": value for name, value in given.items() if value is not None}


def _show_last(path: Path, keep: LineFilter, count: int, *, follow: bool, as_json: bool) -> None:
    with ExitStack() as stack:
        log = _opened(path, stack, keep.wanted.since)
        if log is None and not follow:
            fail(missing(path))
        if log is None:
            typer.echo(f"waiting for {path.absolute()}", err=True)
        files, parts = (log.files, log.parts) if log else ((), ())
        tail = Tail(path, parts, stack) if follow else None
        entries = keep.last(tail.before(files) if tail else files, count)
        if not entries and not tail and count:
            _tell_skipped(keep)
            fail(f"no request in {path.absolute()}" + (" matches" if keep.wanted != Wanted() else ""))
        printer = _print_raw if as_json else table_printer()
        printer(entries)
        told = _tell_skipped(keep)
        if tail:
            _follow(tail, keep, printer, told=told)


def _opened(path: Path, stack: ExitStack, since: datetime | None = None) -> LogFiles | None:
    """Open the files of a log; None where there are none."""
    try:
        return open_log(path, stack, since)
    except FileNotFoundError:
        return None


def _follow(tail: Tail, keep: LineFilter, printer: Callable[[list[Entry]], None], *, told: bool) -> NoReturn:
    pause = _pause()
    while True:
        printer(list(keep(tail.new_lines())))
        told = told or _tell_skipped(keep)
        pause()


def _pause() -> Callable[[], None]:
    """Return what waits until the next look; it raises BrokenPipeError as soon as nobody reads our output any more."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)

    def pause() -> None:
        if output.poll(_POLL_S * 1000):
            raise BrokenPipeError

    return pause


def _tell_skipped(keep: LineFilter) -> bool:
    if keep.skipped:
        typer.echo(f"{keep.skipped} lines are no records of requests (half-written or foreign), skipped", err=True)
    return keep.skipped > 0


def _candidates(found: list[Entry]) -> list[str]:
    lines = ["  " + summary(entry) for entry in found[:_MAX_CANDIDATES]]
    return lines if len(found) <= _MAX_CANDIDATES else [*lines, f"  and {len(found) - _MAX_CANDIDATES} more"]


def _print_raw(entries: list[Entry]) -> None:
    for entry in entries:
        typer.echo(entry.raw)
