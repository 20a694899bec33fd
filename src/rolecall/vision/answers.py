"""What a model wrote, read: its text without what surrounds it, as a value that is validated or not used. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from rolecall.core.thoughts import TAGS
from rolecall.vision.task import Task, Validation, normal

Value: TypeAlias = "str | list[str] | dict[str, Any] | list[Any]"

_SHOWN = 200
"""Characters of what was discarded that are kept."""
_THOUGHT = re.compile("|".join(rf"{re.escape(a)}.*?(?:{re.escape(z)}|\Z)" for a, z in TAGS.items()), re.DOTALL)
_END_OF_THOUGHT = re.compile(rf"\A.*(?:{'|'.join(map(re.escape, TAGS.values()))})", re.DOTALL)
"""Of a thought that the model's template began."""
_SPECIAL = re.compile(r"<\|[^<>|\n]{1,40}\|>|</s>|<s>")
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_MOST_STARTS = 100
_LONG_INTEGER = 19
"""Digits. Fewer fit into 64 bits, and what reads the value later may take no more."""
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "„": "“", "「": "」"}
BULLET = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.):])\s+")
_SEPARATOR = re.compile(r"[,;、，\n]+")


@dataclass(frozen=True, slots=True)
class Discarded:
    """A part of an answer that is not used, and why; ``dimension`` is that of a tag, else empty."""

    dimension: str
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was read: ``value`` is None, and ``problem`` says why, if nothing of it can be used.

    ``tags`` are its words, of tasks that tag or ask for keywords. For tasks that tag, ``value`` has the values of each
    dimension that has any; ``missing`` are the dimensions of which nothing usable was said.
    """

    value: Value | None
    tags: tuple[str, ...] = ()
    discarded: tuple[Discarded, ...] = ()
    missing: tuple[str, ...] = ()
    problem: str | None = None


def discarded(text: str, reason: str, dimension: str = "") -> Discarded:
    """Return a part that is not used, shortened."""
    return Discarded(dimension, text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…", reason)


def read_answer(task: Task, text: str) -> Answer:
    """Return the answer to a task that does not tag."""
    words = unwrapped(text)
    if normal(words) in {normal(empty) for empty in task.validation.empty}:
        return Answer("" if task.parser == "text" else [] if task.parser == "keywords" else {})
    if problem := _problem(words, task.validation):
        return Answer(None, problem=problem, discarded=(discarded(words, problem),) if words else ())
    if task.parser == "keywords":
        return _keywords(words, task.validation)
    if task.parser == "json":
        return _object(words, task.validation)
    return Answer(words)


def unwrapped(text: str) -> str:
    """Return an answer without thoughts, special tokens, and a code fence or quotation marks around all of it."""
    words = _END_OF_THOUGHT.sub("", _THOUGHT.sub("", text))
    words = _SPECIAL.sub("", words).strip()
    fence = _FENCE.fullmatch(words)
    if fence and "```" not in fence[1]:
        words = fence[1].strip()
    if len(words) > 1 and _QUOTES.get(words[0]) == words[-1] and words[0] not in words[1:-1]:
        words = words[1:-1].strip()
    return words


def _problem(words: str, rules: Validation) -> str | None:
    if not words:
        return "the answer is empty"
    if len(words) < rules.min_chars:
        return f"the answer has {len(words)} characters, fewer than {rules.min_chars}"
    if len(words) > rules.max_chars:
        return f"the answer has {len(words)} characters, more than {rules.max_chars}"
    start = _plain(words)
    refusal = next((each for each in rules.reject if start.startswith(_plain(each))), None)
    return refusal and f"the answer begins with {refusal!r}"


def _plain(words: str) -> str:
    return " ".join(words.replace("’", "'").split()).casefold()


# -- JSON


def json_in(text: str) -> Any:
    """Return the first JSON object or list in an answer, in a code fence or among words; None if there is none.

    What is left open at the end, as of an answer that was cut, is none. All of it can be written as JSON in UTF-8.
    """
    words = unwrapped(text)
    for candidate in (words, *(fence[1] for fence in _FENCE.finditer(words))):
        value, end = _parsed(candidate, 0)
        if isinstance(value, dict | list) and not candidate[end:].strip():
            return writable(value)
    for start in islice(re.finditer(r"[{\[]", words), _MOST_STARTS):
        value, _ = _parsed(words, start.start())
        if value:
            return writable(value)
    return None


def _parsed(text: str, start: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number


def _no_number(word: str) -> float:
    raise ValueError(word)


_DECODER = json.JSONDecoder(
    parse_float=_number,
    parse_int=lambda digits: int(digits) if len(digits.lstrip("-")) < _LONG_INTEGER else _number(digits),
    parse_constant=_no_number,
)


def writable(value: Any) -> Any:
    """Return a JSON value with a mark for each half character (surrogate), which JSON can name and no file can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list | tuple):
        return [writable(each) for each in value]
    if isinstance(value, Mapping):
        return {writable(name): writable(each) for name, each in value.items()}
    return value


def _object(words: str, rules: Validation) -> Answer:
    value = json_in(words)
    if not isinstance(value, dict) and (value is None or rules.required):
        problem = "the answer is no JSON object"
        return Answer(None, problem=problem, discarded=(discarded(words, problem),))
    if lacking := [name for name in rules.required if name not in value]:
        problem = f"the answer's object lacks {', '.join(lacking)}"
        return Answer(None, problem=problem, discarded=(discarded(words, problem),))
    return Answer(value)


# -- keywords


def _keywords(words: str, rules: Validation) -> Answer:
    kept: dict[str, str] = {}
    dropped: list[Discarded] = []
    for item in _items(words):
        word = " ".join(item.split()).strip(" .,;:!?#\"'`*_“”‘’。")
        if not word:
            continue
        if len(word.split()) > rules.max_words or len(word) > 60:
            dropped.append(discarded(word, f"more than {rules.max_words} words or 60 characters"))
        elif len(kept) == rules.max_items and word.casefold() not in kept:
            dropped.append(discarded(word, f"more than {rules.max_items} keywords"))
        else:
            kept.setdefault(word.casefold(), word)
    if len(kept) < rules.min_items:
        problem = f"the answer has {len(kept)} keywords, fewer than {rules.min_items}"
        return Answer(None, problem=problem, discarded=tuple(dropped))
    return Answer([*kept.values()], tuple(kept.values()), tuple(dropped))


def _items(words: str) -> Iterator[str]:
    """Yield what a list holds: in JSON, in lines, or between commas; a line that only announces it is left out."""
    value = json_in(words)
    if isinstance(value, dict):
        value = next((each for each in value.values() if isinstance(each, list)), None)
    if isinstance(value, list):
        yield from (str(each) for each in value if isinstance(each, str | int | float))
        return
    for line in words.splitlines():
        if line.rstrip().endswith(":"):
            continue
        head, colon, rest = line.partition(": ")
        yield from _SEPARATOR.split(BULLET.sub("", rest if colon and len(head) < 30 else line))
