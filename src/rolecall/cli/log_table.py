"""How requests look on a terminal and in a pipe: a row for each of many, all fields of one."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from datetime import datetime

import orjson
import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rolecall.insight.log_reader import Entry, Fields, parse_time

_TITLES = ("time", "stat", "model", "role", "ms", "ttft", "tokens", "tok/s", "result")
_RIGHT = {"ms", "ttft", "tokens", "tok/s"}


def table_printer() -> Callable[[list[Entry]], None]:
    """Print the head of the table and return what prints its rows, in columns that stay the same while following."""
    console = _console()
    widths = _widths(console.width if console.is_terminal else None)
    cells = [(title, "bold") for title in _TITLES]
    _print(console, _row(cells, widths))

    def print_rows(entries: list[Entry]) -> None:
        if entries:
            rows = [_row(_cells(entry.fields, long=widths["time"] > 11), widths) for entry in entries]
            _print(console, Text("\n").join(rows))

    return print_rows


def print_fields(fields: Fields) -> None:
    """Print all fields of one request in two columns."""
    console = _console()
    if console.is_terminal:
        _print(console, _fields_table(fields))
        return
    width = max(map(len, fields))
    for name, value in fields.items():
        typer.echo(f"{_printable(name):{width}}  " + _value(value).replace("\n", "\n" + " " * (width + 2)))


def _fields_table(fields: Fields) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(Text(_printable(name)), Text(_value(value), _status_style(fields) if name == "status" else ""))
    return table


def _console() -> Console:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that is not UTF-8 gets question marks, no traceback
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False, markup=False, emoji=False)


def _print(console: Console, output: Text | Table) -> None:
    # Rich decides on colours and draws, but does not write: it would end with status 1 where a pipe is closed.
    with console.capture() as captured:
        console.print(output, soft_wrap=isinstance(output, Text))
    typer.echo(captured.get(), nl=False, color=True)


def _widths(width: int | None) -> dict[str, int]:
    """Return the columns' widths in a terminal of that width; None: no terminal, nothing is cut."""
    widths = {"time": 19, "stat": 4, "model": 32, "role": 14, "ms": 5, "ttft": 5, "tokens": 9, "tok/s": 5, "result": 0}
    if width is None:
        return widths
    if width < 110:
        widths["time"] = 11
    rest = width - sum(widths[title] + 1 for title in _TITLES if title not in {"model", "role", "result"}) - 2
    widths["model"] = max(8, rest * 45 // 100)
    widths["role"] = max(4, rest * 25 // 100)
    widths["result"] = max(6, rest - widths["model"] - widths["role"])
    return widths


def _row(cells: list[tuple[str, str]], widths: dict[str, int]) -> Text:
    cut = widths["result"] > 0
    return Text(" ").join(
        Text(_fitted(text, widths[title], right=title in _RIGHT, cut=cut), style)
        for title, (text, style) in zip(_TITLES, cells, strict=True)
    )


def _fitted(text: str, width: int, *, right: bool, cut: bool) -> str:
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if cut else text
    padding = " " * (width - length)
    return padding + text if right else text + padding


def _cells(fields: Fields, *, long: bool) -> list[tuple[str, str]]:
    error = fields.get("error")
    return [
        (_time(fields["ts"], long=long), "dim"),
        (_value(fields.get("status")), _status_style(fields)),
        (_name(fields), ""),
        (_text(fields.get("role")), ""),
        (_ms(fields.get("duration_ms")), ""),
        (_ms(fields.get("ttft_ms")), ""),
        (_tokens(fields), ""),
        (_rate(fields.get("tokens_per_second")), ""),
        (_text(error or fields.get("finish_reason")), "red" if error else ""),
    ]


def summary(entry: Entry) -> str:
    """Return the request's id, time and model in one line."""
    fields = entry.fields
    return f"{_text(fields['request_id'])}  {_time(fields['ts'], long=True)}  {_name(fields)}"


def _name(fields: Fields) -> str:
    return _text(fields.get("model") or fields.get("requested_model"))


def _status_style(fields: Fields) -> str:
    status = fields.get("status")
    if not isinstance(status, int) or status >= 500:
        return "red"
    if status >= 400:
        return "yellow"
    return "red" if fields.get("error") else "green"


def _time(text: str, *, long: bool) -> str:
    """Local time: date and time where there is room, else the time of today or the date and minute of other days."""
    time = parse_time(text)
    if time is None:
        return _printable(text)
    time = time.astimezone()
    if long:
        return f"{time:%Y-%m-%d %H:%M:%S}"
    return f"{time:%H:%M:%S}" if time.date() == datetime.now().astimezone().date() else f"{time:%m-%d %H:%M}"


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _ms(value: object) -> str:
    number = _number(value)
    if number is None:
        return "-"
    return f"{number:.0f}" if number < 99_999.5 else f"{number / 1000:.0f}s"


def _tokens(fields: Fields) -> str:
    prompt, completion = _count(fields.get("prompt_tokens")), _count(fields.get("completion_tokens"))
    return "-" if prompt == completion == "-" else f"{prompt}→{completion}"


def _count(value: object) -> str:
    number = _number(value)
    if number is None:
        return "-"
    return f"{number:.0f}" if number < 10_000 else f"{number // 1000:.0f}k"


def _rate(value: object) -> str:
    number = _number(value)
    if number is None:
        return "-"
    return f"{number:.1f}" if number < 999.95 else f"{number:.0f}"


def _text(value: object) -> str:
    return "-" if value is None else _printable(str(value)).replace("\n", " ")


def _value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return _printable(value)
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _printable(text: str) -> str:
    """Replace control characters: a client chose much of what is logged, and it must not drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
