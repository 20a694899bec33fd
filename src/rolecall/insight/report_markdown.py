"""A report as Markdown: tables that no name of a prompt or a model can break out of."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from rolecall.insight.prompt_report import Report, Table, tables
from rolecall.insight.report_words import period, printable, remarks

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~>:@.-])")
_JOINER = "\N{WORD JOINER}"


def markdown(report: Report) -> str:
    """Return the whole report."""
    head = ["# Prompts", "", escaped(period(report)), *(f"\n{escaped(remark)}" for remark in remarks(report))]
    return "\n".join([*head, *map(_table, tables(report))]) + "\n"


def _table(table: Table) -> str:
    rows = markdown_table(table.heads, table.rows, table.right)
    return "\n".join(["", f"## {table.title}", "", escaped(table.note), "", rows])


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return a table; the columns ``right`` are those of numbers."""
    marks = ["---:" if at in right else "---" for at in range(len(heads))]
    first, *lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in (heads, *rows)]
    return "\n".join([first, f"|{'|'.join(marks)}|", *lines])


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it stands: no markup, no HTML, no cell of its own, no link.

    GitHub looks for addresses of mail, and for those to notify, in the text that is left when all escapes are undone:
    behind each @ stands a character without width, by which it is none.
    """
    plain = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(r"\\\1", plain).replace("@", f"@{_JOINER}")
