"""Single values of a JSON text changed, added and taken away; what is not touched stays as somebody wrote it.

A path is a sequence of keys and of positions in lists. New text takes the indentation, the line ends and the way of
writing of what stands around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rolecall.core.json_tree import JsonNode, Member, parse_tree

Path: TypeAlias = Sequence[str | int]

_WIDTH = 120


def put(text: str, path: Path, value: Any) -> str:
    """Return the text with the value at a path, which is added to its object where it is missing.

    Objects on the way are made where there is nothing or a null. Raises ``ValueError`` for a way that leads through
    anything else, naming the place.
    """
    node = parse_tree(text)
    for depth, step in enumerate(path):
        member = _step(node, step)
        if member is None:
            if node.kind != "{" and text[node.start : node.end] != "null":
                raise ValueError(f"{_dotted(path[:depth])} is no object, so it has no {step!r}")
            value = _nested(path[depth + 1 :], value)
            if node.kind != "{":
                return _replaced(text, node, {step: value})
            return _added(text, node, str(step), value)
        node = member.value
    return _replaced(text, node, value)


def append(text: str, path: Path, value: Any) -> str:
    """Return the text with a value added to the end of the list at a path."""
    node = parse_tree(text)
    for step in path:
        member = _step(node, step)
        if member is None:
            raise ValueError(f"there is no {_dotted(path)}")
        node = member.value
    return _added(text, node, None, value)


def drop(text: str, path: Path) -> str:
    """Return the text without the value at a path; the same text if there is none."""
    node = parse_tree(text)
    for step in path[:-1]:
        member = _step(node, step)
        if member is None:
            return text
        node = member.value
    while (member := _step(node, path[-1])) is not None:
        text = _cut(text, node, node.members.index(member))
        if node.kind == "[":
            return text
        again = parse_tree(text)
        for step in path[:-1]:
            again = _known(again, step)
        node = again
    return text


def _known(node: JsonNode, step: str | int) -> JsonNode:
    member = _step(node, step)
    assert member is not None  # noqa: S101 - it was there before its own member went
    return member.value


def _step(node: JsonNode, step: str | int) -> Member | None:
    if isinstance(step, str):
        return node.member(step) if node.kind == "{" else None
    return node.members[step] if node.kind == "[" and step < len(node.members) else None


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "the whole"


def _nested(path: Path, value: Any) -> Any:
    for step in reversed(path):
        value = {str(step): value}
    return value


def _cut(text: str, node: JsonNode, index: int) -> str:
    members = node.members
    if len(members) == 1:
        return text[: node.start + 1] + text[node.end - 1 :]
    if index + 1 < len(members):
        return text[: members[index].start] + text[members[index + 1].start :]
    return text[: members[index - 1].value.end] + text[members[index].value.end :]


def _replaced(text: str, node: JsonNode, value: Any) -> str:
    written = _written(text, value, _indent(text, node.start), _column(text, node.start))
    return text[: node.start] + written + text[node.end :]


def _added(text: str, node: JsonNode, key: str | None, value: Any) -> str:
    """Return the text with a member added to a container, in a line of its own if the others have theirs."""
    newline = _newline(text)
    if not node.members and key is not None:
        return _replaced(text, node, {key: value})
    if not node.members:
        indent = _indent(text, node.start)
        inner = indent + _unit(text)
        written = _written(text, value, inner, len(inner), entry=True)
        return f"{text[: node.start]}[{newline}{inner}{written}{newline}{indent}]{text[node.end :]}"
    prefix = "" if key is None else json.dumps(key, ensure_ascii=False) + ": "
    last = node.members[-1]
    if "\n" in text[node.start : node.members[0].start]:
        indent = _indent(text, last.start)
        written = _written(text, value, indent, len(indent) + len(prefix), entry=key is None)
        return f"{text[: last.value.end]},{newline}{indent}{prefix}{written}{text[last.value.end :]}"
    return f"{text[: last.value.end]}, {prefix}{_compact(value)}{text[last.value.end :]}"


def _written(text: str, value: Any, indent: str, column: int, *, entry: bool = False) -> str:
    """Return a value in one line if it fits there and the text has such lines, else with a line for each member.

    An ``entry`` of the list at the top always has a line for each member.
    """
    flat = _compact(value)
    if not isinstance(value, Mapping | list) or not value or not (entry or "\n" in text.strip()):
        return flat
    return _spread(text, value, indent) if entry else _fitted(text, value, indent, column)


def _fitted(text: str, value: Any, indent: str, column: int) -> str:
    flat = _compact(value)
    is_small = _has_flat(text) and column + len(flat) < _WIDTH
    nested = isinstance(value, Mapping | list) and bool(value)
    return _spread(text, value, indent) if nested and not is_small else flat


def _spread(text: str, value: Any, indent: str) -> str:
    """Return an object with a line for each member, or a list with one for each element or, of words, filled ones."""
    inner, newline = indent + _unit(text), _newline(text)
    if isinstance(value, Mapping):
        opening, closing = "{}"
        keys = [json.dumps(str(key), ensure_ascii=False) + ": " for key in value]
        members = zip(keys, value.values(), strict=True)
        lines = [key + _fitted(text, each, inner, len(inner) + len(key)) for key, each in members]
    else:
        opening, closing = "[]"
        lines = [_fitted(text, each, inner, len(inner)) for each in value]
        lines = _filled(lines, _WIDTH - len(inner)) if _has_flat(text) else lines
    return f"{opening}{newline}{inner}{f',{newline}{inner}'.join(lines)}{newline}{indent}{closing}"


def _filled(words: list[str], width: int) -> list[str]:
    """Return words as lines that hold as many of them as have room."""
    lines = words[:1]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 2 < width:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return lines


def _compact(value: Any) -> str:
    if isinstance(value, Mapping):
        members = (f"{json.dumps(str(key), ensure_ascii=False)}: {_compact(each)}" for key, each in value.items())
        return f"{{ {', '.join(members)} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_compact, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _has_flat(text: str) -> bool:
    """Whether containers stand in one line here, as in a text that a person wrote; one without any may be either."""
    return re.search(r'[\[{] ?["\d\[{][^\n]*[\]}]', text) is not None or re.search(r"[\[{]\n", text.strip()[2:]) is None


def _indent(text: str, position: int) -> str:
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _column(text: str, position: int) -> int:
    return position - text.rfind("\n", 0, position) - 1


def _unit(text: str) -> str:
    """Return what a text is indented by: the first indentation that it has."""
    found = re.search(r"\n([ \t]+)\S", text)
    return found[1] if found else "  "


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
