"""``rolecall report prompts``: which model suits which prompt, from the request log."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rolecall.cli.common import AsJson, ConfigDir, fail, one_at_most, print_json
from rolecall.cli.log_output import tell
from rolecall.cli.log_place import ENVVAR, Memory, default_log_path, ending_quietly, missing, parsed
from rolecall.cli.table import Column, Row, say, show, table
from rolecall.insight.log_database import QueryError, opened_database
from rolecall.insight.log_reader import parse_since
from rolecall.insight.log_statistics import Conditions
from rolecall.insight.pairings import LEAST_REQUESTS
from rolecall.insight.prompt_figures import COLUMNS
from rolecall.insight.prompt_report import MOST_PAIRS, Report, make_report, tables
from rolecall.insight.report_html import html as as_html
from rolecall.insight.report_markdown import markdown as as_markdown
from rolecall.insight.report_words import not_shown, period
from rolecall.runtime.private_file import write_in_place

STDOUT = Path("-")

Time = Annotated[str | None, typer.Option(help="30s, 10m, 2h, 1d ago, or an ISO time.", metavar="TIME")]


def prompts(  # noqa: PLR0913 - one argument for each option
    *,
    since: Time = None,
    until: Time = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt id; * and ? are wildcards.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, served or asked for; * and ? are wildcards.")] = None,
    least: Annotated[
        int, typer.Option("--least", min=1, help="Requests below which nothing is recommended.")
    ] = LEAST_REQUESTS,
    html: Annotated[
        Path | None, typer.Option(help="Write a web page with plots to this file; - is stdout.", metavar="FILE")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of tables.")] = False,
    as_json: AsJson = False,
    file: Annotated[Path | None, typer.Option(help="The log to read.", metavar="PATH", envvar=ENVVAR)] = None,
    memory: Memory = 1024,
    config_dir: ConfigDir = None,
) -> None:
    """Report on requests with a prompt id: success, speed, lengths, refusals, and the model that suits each prompt."""
    to_stdout = html == STDOUT
    one_at_most(json=as_json, markdown=markdown, **{"html -": to_stdout})
    now = datetime.now().astimezone()
    begin, end = (
        parsed(option, lambda text: parse_since(text, now), given)
        for option, given in (("--since", since), ("--until", until))
    )
    wanted = Conditions(model, None, prompt, None, None, begin, end)
    report = _report(file or default_log_path(config_dir), wanted, least, memory, now, None if as_json else MOST_PAIRS)
    if not report.figures:
        tell(report.tally)
        fail(_nothing(wanted))
    page = None if html is None else as_html(report).encode("utf-8", "replace")
    if html is not None and page is not None and not to_stdout:
        _write(html, page)
    with ending_quietly():
        if to_stdout:
            typer.echo(page, nl=False)
            tell(report.tally)
        else:
            _print(report, html, markdown=markdown, as_json=as_json)


def _write(file: Path, page: bytes) -> None:
    """Put the page in the place of an older one, whole or not at all."""
    try:
        file.absolute().parent.stat()  # a folder that is misspelt is not made
        write_in_place(file, page)
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror}")


def _report(  # noqa: PLR0913, PLR0917 - what is asked, and how
    path: Path, wanted: Conditions, least: int, memory_mb: int, now: datetime, most: int | None
) -> Report:
    with ending_quietly():
        try:
            with opened_database(path, COLUMNS, since=wanted.since, memory_mb=memory_mb) as database:
                return make_report(database, wanted, now, least, most)
        except FileNotFoundError:
            fail(missing(path))
        except QueryError as error:
            fail(str(error))


def _nothing(wanted: Conditions) -> str:
    if wanted != Conditions():
        return "no request with a prompt id matches"
    return "no request has a prompt id: clients name theirs in metadata.prompt_id, or in the header x-prompt-id"


def _print(report: Report, page: Path | None, *, markdown: bool, as_json: bool) -> None:
    if as_json:
        print_json(report.as_dict())
    elif markdown:
        typer.echo(as_markdown(report), nl=False)
    elif page is None:
        _print_tables(report)
    else:
        say(f"{period(report)} The report is {page.absolute()}")
    tell(report.tally)


def _print_tables(report: Report) -> None:
    typer.echo(period(report))
    for sentence in not_shown(report):
        typer.echo(sentence)
    for each in tables(report):
        columns = [
            Column(head, right=at in each.right, below="{}" if head == "why" else None)
            for at, head in enumerate(each.heads)
        ]
        rows = [Row(row) for row in each.rows]
        typer.echo(f"\n{each.title}")
        show(partial(table, columns, rows))
