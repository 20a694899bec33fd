"""Tags from a fixed vocabulary: how a model is asked for them, and which of its words become one. Pure.

A tag is given where the answer is beyond doubt. A list of more values than may hold keeps the first ones, for a model
begins with what it is surest of. Of a sentence the one value that it names is taken, unless it is negated; if it names
several, none. The rest is discarded, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from rolecall.vision.answers import BULLET, Answer, Discarded, discarded, json_in, unwrapped
from rolecall.vision.task import UNKNOWN, Dimension, Task, normal

_ABSTENTIONS = frozenset(
    {UNKNOWN, "none", "n/a", "na", "not visible", "not applicable", "unclear", "null", "cannot tell"}
)
_NEGATED = re.compile(r"(?:\bnot?|n['’]t|\bnever|\bwithout|\bnon|\bneither|\bnor|\bhardly)(?:[\s-]+\w+)?[\s-]+\Z")
_LINE = re.compile(r"^[\s\-*•#\"']*([A-Za-z][\w -]{0,40}?)[\s*\"'`]*[:=][\s*\"'`]*(.*?)[\s*\"'`,]*$")
_SEPARATOR = re.compile(r"\s*(?:[,;/|、，\n]|\band\b|&)\s*")


def response_format(task: Task) -> dict[str, Any]:
    """Return the ``response_format`` of a structured request, in the form that llama-server and vLLM both know."""
    schema = {
        "type": "object",
        "properties": {name: _schema(dimension) for name, dimension in task.dimensions.items()},
        "required": list(task.dimensions),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "tags", "strict": True, "schema": schema}}


def _schema(dimension: Dimension) -> dict[str, Any]:
    one = {"type": "string", "enum": list(dimension.choices)}
    if dimension.at_most == 1:
        return one
    return {"type": "array", "items": one, "minItems": 1, "maxItems": dimension.at_most}


def listed(task: Task) -> str:
    """Return the dimensions with their questions and words, one a line."""
    return "\n".join(
        f"- {name}: {dimension.question} ({limit(dimension)} of: {', '.join(dimension.choices)})"
        for name, dimension in task.dimensions.items()
    )


def limit(dimension: Dimension) -> str:
    """Return in words how many values a dimension may have."""
    return "one" if dimension.at_most == 1 else f"one to {dimension.at_most}"


# -- answers


def read_structured(task: Task, text: str) -> Answer:
    """Return the tags of an answer to all questions: an object, or lines, or a list of words."""
    found, unknown = _parts(task, text)
    if not found:
        problem = "the answer is empty" if not unwrapped(text) else "the answer names no dimension and no tag"
        dropped = (discarded(unwrapped(text), problem),) if unwrapped(text) else ()
        return Answer(None, discarded=dropped, missing=tuple(task.dimensions), problem=problem)
    strange = [
        *(discarded(word, "not in the vocabulary") for word in unknown),
        *(
            discarded(f"{name}: {_shown(value)}", "there is no such dimension")
            for name, value in found.items()
            if name not in task.dimensions
        ),
    ]
    reads = {name: _read(name, task.dimensions[name], found[name]) for name in task.dimensions if name in found}
    return joined(task, reads, strange)


class Said(NamedTuple):
    """What an answer says of one dimension; ``counts``: it gives a value, or rightly says that there is none."""

    values: tuple[str, ...] = ()
    discarded: tuple[Discarded, ...] = ()
    counts: bool = False


def read_one(task: Task, name: str, text: str) -> Said:
    """Return what an answer to the question of one dimension says of that."""
    dimension = task.dimensions[name]
    value = json_in(text)
    if isinstance(value, dict):
        value = value.get(name, next(iter(value.values()), None))
    return _read(name, dimension, unwrapped(text) if value is None else value)


def joined(task: Task, reads: Mapping[str, Said], more: Iterable[Discarded] = ()) -> Answer:
    """Return the answer that consists of what was read for each dimension."""
    value = {name: list(reads[name].values) for name in task.dimensions if name in reads and reads[name].values}
    missing = tuple(name for name in task.dimensions if name not in reads or not reads[name].counts)
    dropped = (*(each for said in reads.values() for each in said.discarded), *more)
    problem = "the answer has no tag of the vocabulary" if len(missing) == len(task.dimensions) else None
    tags = tuple(tag for values in value.values() for tag in values)
    return Answer(None if problem else value, tags, dropped, missing, problem)


def _parts(task: Task, text: str) -> tuple[dict[str, Any], list[str]]:
    """Return what an answer says of which dimension, and the words of a mere list that no dimension knows."""
    value = json_in(text)
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        value = {name: said for each in value for name, said in each.items()}
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(inner := next(iter(value.values())), dict):
            value = inner
        named = {normal(str(name)): said for name, said in value.items()}
        value = None if named.keys() & task.dimensions.keys() else _mere_list(named.values())
        if value is None:
            return named, []
    if isinstance(value, list):
        return _sorted_in(task, [_shown(each) for each in value])
    words = unwrapped(text)
    lines = [found for line in words.splitlines() if (found := _LINE.match(line))]
    named = {normal(found[1]): found[2] for found in lines if normal(found[1]) in task.dimensions}
    return (named, []) if named else _sorted_in(task, _listed_in(words))


def _mere_list(values: Collection[Any]) -> list[Any] | None:
    """Return the words of an object that names no dimension: of its only list, or of the only text that it holds."""
    lists = [each for each in values if isinstance(each, list)]
    if len(lists) == 1:
        return lists[0]
    return _listed_in(text) if len(values) == 1 and isinstance(text := next(iter(values)), str) else None


def _listed_in(words: str) -> list[str]:
    return _SEPARATOR.split("\n".join(BULLET.sub("", line) for line in words.splitlines()))


def _sorted_in(task: Task, words: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Return words by the dimension whose value or synonym they are, none is of two; and those that are of none."""
    found: dict[str, Any] = {}
    unknown: list[str] = []
    for word in words:
        owners = (name for name, each in task.dimensions.items() if _value(each, normal(word)) is not None)
        if (name := next(owners, None)) is not None:
            found.setdefault(name, []).append(word)
        elif normal(word) and normal(word) not in _ABSTENTIONS:
            unknown.append(word)
    return found, unknown


def _read(name: str, dimension: Dimension, said: Any) -> Said:
    """Return what is said of a dimension by a value in JSON or in words."""
    if isinstance(said, bool | int | float | dict):
        return Said(discarded=(discarded(_shown(said), "no word", name),))
    words = [_shown(each) for each in said] if isinstance(said, list) else _words(dimension, said or "")
    kept: dict[str, None] = {}
    dropped: list[Discarded] = []
    abstains = False
    for word in words:
        value = _value(dimension, normal(word))
        if value in kept or not normal(word):
            continue
        if value is None and normal(word) in _ABSTENTIONS:
            abstains = abstains or dimension.optional
            if not dimension.optional:
                dropped.append(discarded(word, "this dimension always has a value", name))
        elif value is None:
            dropped.append(discarded(word, "not in the vocabulary", name))
        elif len(kept) == dimension.at_most:
            dropped.append(discarded(word, f"more than {dimension.at_most}", name))
        else:
            kept[value] = None
    return Said(tuple(kept), tuple(dropped), bool(kept) or abstains)


def _value(dimension: Dimension, word: str) -> str | None:
    return word if word in dimension.values else dimension.synonyms.get(word)


def _words(dimension: Dimension, said: str) -> list[str]:
    """Return the words of an answer: the whole of it, its parts where it is a list, or the values in its sentence."""
    whole = unwrapped(said)
    named = _LINE.match(whole)
    if named and "\n" not in whole:
        whole = named[2]
    if _is_known(dimension, whole):
        return [whole]
    parts = _SEPARATOR.split(whole)
    if all(_is_known(dimension, part) or len(part.split()) < 3 for part in parts):
        return [_resolved(dimension, part) for part in parts]
    return [_resolved(dimension, whole)]


def _is_known(dimension: Dimension, word: str) -> bool:
    return _value(dimension, normal(word)) is not None or normal(word) in _ABSTENTIONS


def _resolved(dimension: Dimension, words: str) -> str:
    """Return the one value that some words name; the words themselves if there is none, or several."""
    found = [] if _is_known(dimension, words) else _named(dimension, words)
    return found[0] if len(found) == 1 else words


def _named(dimension: Dimension, sentence: str) -> list[str]:
    """Return the values that a sentence names without negating them, once each."""
    text = sentence.casefold()
    found: dict[str, None] = {}
    for word in (*dimension.values, *dimension.synonyms):
        for place in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text):
            if not _NEGATED.search(text, 0, place.start()):
                found[_value(dimension, word) or word] = None
    return list(found)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)[:200]
