"""What stands at the head of a report, and how foreign names are made harmless in it."""

from __future__ import annotations

from collections.abc import Iterator

from rolecall.insight.prompt_report import Report


def period(report: Report) -> str:
    """Return which requests the report is about."""
    if report.first is None or report.last is None:
        return "No request with a prompt id."
    requests = sum(each.values["requests"] for each in report.figures)
    first, last = (f"{time.astimezone():%Y-%m-%d %H:%M}" for time in (report.first, report.last))
    noun = "request" if requests == 1 else "requests"
    return f"{requests:,} {noun} with a prompt id, from {first} to {last}."


def remarks(report: Report) -> Iterator[str]:
    """Yield what of the log is not in the figures, in sentences."""
    yield from (f"{words[0].upper()}{words[1:]}." for words in report.tally.words())


def printable(text: str) -> str:
    """Return a text in one line, without control characters and those that turn the direction of writing."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text).split())
