"""Pages of the request log, newest first, for each of which a bounded part of it is read; and single lines.

To be called in a thread. It lets go of the interpreter between pieces of a millisecond, as the event loop serves
requests meanwhile.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rolecall.core.selection import Selection
from rolecall.errors import BadRequest, PageGone
from rolecall.insight.line_search import find_line
from rolecall.insight.log_files import open_log
from rolecall.insight.log_reader import Fields, Part, Wanted, open_parts, parse_entry, parse_time

MOST_BYTES = 16 * 2**20
"""What one page looks through."""

_BLOCK = 2**16
_PIECE = 128
_SLACK = timedelta(seconds=2)
_CURSOR = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16})")


@dataclass(slots=True)
class Page:
    """Lines, newest first; ``next`` is where the page after it begins, None at the end of the log.

    ``searched_to`` is the time of the last line that was looked at, ``skipped`` how many were none.
    """

    lines: list[Fields] = field(default_factory=list)
    next: str | None = None
    searched_to: str | None = None
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """Which lines are asked for; ``before`` is the ``next`` of another page."""

    wanted: Wanted
    key: str | None = None
    limit: int = 50
    before: str | None = None

    def __call__(self, fields: Fields) -> bool:
        """Whether a line is one of them."""
        return (self.key is None or fields.get("key") == self.key) and self.wanted(fields)


def read_page(path: Path, question: Question, most_bytes: int = MOST_BYTES) -> Page:
    """Return a page of the log; raises ``PageGone`` where what it begins at is no longer there, and ``BadRequest``."""
    page, left = Page(), most_bytes
    with ExitStack() as stack:
        for part in _from(open_parts(path, stack), question.before):
            for at, raw in _backwards(part):
                if raw and _is_before(_take(page, question, raw), question.wanted.since):
                    page.next = None
                    return page
                page.next = f"{os.fstat(part.file.fileno()).st_ino:x}-{at:x}"
                if len(page.lines) >= question.limit or left <= part.end - at:
                    return page
            left -= part.end
    page.next = None
    return page


def _take(page: Page, question: Question, raw: bytes) -> Fields | None:
    entry = parse_entry(raw)
    if entry is None:
        page.skipped += 1
        return None
    page.searched_to = entry.fields["ts"]
    if question(entry.fields):
        page.lines.append(entry.fields)
    return entry.fields


def _is_before(fields: Fields | None, since: datetime | None) -> bool:
    """Whether a request was over before ``since``: then so were all before it, as lines come in that order."""
    if fields is None or since is None or (begun := parse_time(fields["ts"])) is None:
        return False
    lasted_ms = fields.get("duration_ms")
    try:
        lasted = timedelta(milliseconds=lasted_ms if isinstance(lasted_ms, int | float) else 0)
        return begun + lasted + _SLACK < since
    except OverflowError:  # numbers that no request has
        return False


def read_line(path: Path, request_id: str) -> Fields | None:
    """Return the newest line of a request, from compressed files too; None if there is none."""
    with ExitStack() as stack:
        try:
            return find_line(open_log(path, stack).files, request_id)
        except FileNotFoundError:
            return None


def _from(parts: Sequence[Part], before: str | None) -> list[Part]:
    """Return the parts of the log before a place in it."""
    if before is None:
        return list(parts)
    found = _CURSOR.fullmatch(before)
    if found is None:
        raise BadRequest("The query's before must be the next of another page.", param="before")
    inode, at = int(found[1], 16), int(found[2], 16)
    for index, part in enumerate(parts):
        if os.fstat(part.file.fileno()).st_ino == inode and at <= part.end:
            return [replace(part, end=at), *parts[index + 1 :]]
    raise PageGone("That part of the log is gone by now; begin again without before.", param="before")


def _backwards(part: Part) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a part and where each begins, last first; empty ones too."""
    tail, end, size, count = b"", part.end, _BLOCK, 0
    while end > 0:
        start = max(0, end - size)
        part.file.seek(start)
        data = part.file.read(end - start) + tail
        first, *lines = data.split(b"\n")
        at = start + len(data)
        for line in reversed(lines):
            at -= len(line)
            yield at, line
            at -= 1
            count += 1
            if count % _PIECE == 0:
                time.sleep(0)  # whoever waits for the interpreter gets it
        tail, end = first, start
        size = _BLOCK if lines else size * 2  # a line of many MB is not joined block by block
    yield 0, tail


def decision(line: Fields, choice: Selection | None) -> dict[str, Any] | None:
    """Return why a request's model was chosen: in words, and the candidates where the ``choice`` is still known."""
    role, words = line.get("role"), line.get("role_selector")
    words = choice.reason if words is None and choice is not None else words
    if role is None or words is None:
        return None
    told: dict[str, Any] = {"words": words, "role": role, "candidates": None, "rejected": None}
    if choice is not None:
        by = choice.demand.role
        told["candidates"] = [
            {
                "model": candidate.name,
                "priority": candidate.priority(by),
                "loaded": candidate.loaded,
                "costs_swap": candidate.costs_swap,
                "swap_s": None if candidate.swap_s is None else round(candidate.swap_s, 1),
            }
            for candidate in choice.ranked
        ]
        told["rejected"] = [{"model": r.name, "why": r.why, "reason": r.reason} for r in choice.rejected]
    return told
