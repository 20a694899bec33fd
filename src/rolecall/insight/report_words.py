"""What stands at the head of a report, and how foreign names are made harmless in it."""

from __future__ import annotations

from collections.abc import Iterator

from rolecall.insight.prompt_report import MOST_PAIRS, Report


def period(report: Report) -> str:
    """Return which requests the report is about."""
    requests, begin, end = report.scope.requests, report.scope.first, report.scope.last
    if begin is None or end is None:
        return "No request with a prompt id."
    first, last = (f"{time.astimezone():%Y-%m-%d %H:%M}" for time in (begin, end))
    noun = "request" if requests == 1 else "requests"
    return f"{requests:,} {noun} with a prompt id, from {first} to {last}."


def not_shown(report: Report) -> Iterator[str]:
    """Yield what is in no table because there is too much of it, in sentences."""
    pairs, single = report.scope.pairs, report.scope.single
    if pairs > MOST_PAIRS:
        yield (
            f"Shown are the {MOST_PAIRS} pairs of prompt and model with most requests, of {pairs:,}; "
            f"{single:,} have one request alone. --json has all."
        )


def remarks(report: Report) -> Iterator[str]:
    """Yield what of the log is not in the figures, in sentences."""
    yield from not_shown(report)
    yield from (f"{words[0].upper()}{words[1:]}." for words in report.tally.words())


def printable(text: str) -> str:
    """Return a text in one line, without control characters and those that turn the direction of writing."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text).split())
