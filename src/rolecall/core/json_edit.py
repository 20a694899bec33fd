"""Single values of a JSON text changed, added and taken away; what is not touched stays as somebody wrote it.

A path is a sequence of keys and of positions in lists. New text takes the indentation, the line ends and the way of
writing of what stands around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rolecall.core.json_tree import JsonNode, Member, parse_tree

Path: TypeAlias = Sequence[str | int]

_WIDTH = 120


def put(text: str, path: Path, value: Any) -> str:
    """Return the text with the value at a path, which is added to its object where it is missing.

    Objects on the way are made where there is nothing or a null. Raises ``ValueError`` for a way that leads through
    anything else, naming it by the last step to it.
    """
    node = parse_tree(text)
    for depth, step in enumerate(path):
        member = _step(node, step)
        if member is None:
            if node.kind != "{" and text[node.start : node.end] != "null":
                raise ValueError(f"{_dotted(path[:depth][-1:])} is no object, so it has no {step!r}")
            value = _nested(path[depth + 1 :], value)
            if node.kind != "{":
                return _replaced(text, node, {step: value}, _Style.of(text))
            return _added(text, node, str(step), value)
        node = member.value
    return _replaced(text, node, value, _Style.of(text))


def append(text: str, path: Path, *values: Any) -> str:
    """Return the text with values added to the end of the list at a path."""
    node = parse_tree(text)
    for step in path:
        member = _step(node, step)
        if member is None:
            raise ValueError(f"there is no {_dotted(path)}")
        node = member.value
    return _extended(text, node, values) if values else text


def exchange(text: str, path: Path, values: Mapping[int, Any]) -> str:
    """Return the text with other elements at these positions of the list at a path."""
    node = parse_tree(text)
    for step in path:
        node = _known(node, step)
    style = _Style.of(text)
    for at in sorted(values, reverse=True):  # from the end: what stands before keeps its place
        text = _replaced(text, node.members[at].value, values[at], style)
    return text


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


def _replaced(text: str, node: JsonNode, value: Any, style: _Style) -> str:
    written = style.written(value, _indent(text, node.start), _column(text, node.start))
    return text[: node.start] + written + text[node.end :]


def _added(text: str, node: JsonNode, key: str, value: Any) -> str:
    """Return the text with a member added to an object, in a line of its own if the others have theirs."""
    style = _Style.of(text)
    if not node.members:
        return _replaced(text, node, {key: value}, style)
    prefix = _key(key)
    last = node.members[-1]
    if _has_lines(text, node):
        indent = _indent(text, last.start)
        written = style.written(value, indent, len(indent) + len(prefix))
        return f"{text[: last.value.end]},{style.newline}{indent}{prefix}{written}{text[last.value.end :]}"
    return f"{text[: last.value.end]}, {prefix}{_compact(value)}{text[last.value.end :]}"


def _extended(text: str, node: JsonNode, values: Sequence[Any]) -> str:
    """Return the text with elements added to a list, with a line for each of their members unless it has no lines."""
    style = _Style.of(text)
    if node.members and not _has_lines(text, node):
        end = node.members[-1].value.end
        return f"{text[:end]}, {', '.join(map(_compact, values))}{text[end:]}"
    indent = _indent(text, node.start)
    inner = _indent(text, node.members[-1].start) if node.members else indent + style.unit
    lines = f",{style.newline}".join(inner + style.entry(value, inner) for value in values)
    if node.members:
        end = node.members[-1].value.end
        return f"{text[:end]},{style.newline}{lines}{text[end:]}"
    return f"{text[: node.start]}[{style.newline}{lines}{style.newline}{indent}]{text[node.end :]}"


def _has_lines(text: str, node: JsonNode) -> bool:
    return "\n" in text[node.start : node.members[0].start]


@dataclass(frozen=True, slots=True)
class _Style:
    """How a text is written: its line ends, what it is indented by, whether it has containers in one line."""

    newline: str
    unit: str
    is_flat: bool
    has_lines: bool

    @classmethod
    def of(cls, text: str) -> _Style:
        indented = re.search(r"\n([ \t]+)\S", text)
        flat = re.search(r'[\[{] ?["\d\[{][^\n]*[\]}]', text) is not None
        return cls(
            newline="\r\n" if "\r\n" in text else "\n",
            unit=indented[1] if indented else "  ",
            is_flat=flat or re.search(r"[\[{]\n", text.strip()[2:]) is None,
            has_lines="\n" in text.strip(),
        )

    def written(self, value: Any, indent: str, column: int) -> str:
        """Return a value in one line if it fits there and the text has such lines, else with a line for each member."""
        return self._fitted(value, indent, column) if self.has_lines else _compact(value)

    def entry(self, value: Any, indent: str) -> str:
        """Return an element of the list at the top, which has a line for each member however short it is."""
        return self._spread(value, indent) if _is_container(value) else _compact(value)

    def _fitted(self, value: Any, indent: str, column: int) -> str:
        flat = _compact(value)
        is_small = self.is_flat and column + len(flat) < _WIDTH
        return self._spread(value, indent) if _is_container(value) and not is_small else flat

    def _spread(self, value: Any, indent: str) -> str:
        """Return an object with a line for each member, a list with one for each element or with filled ones."""
        inner = indent + self.unit
        if isinstance(value, Mapping):
            opening, closing = "{}"
            members = ((_key(str(key)), each) for key, each in value.items())
            lines = [key + self._fitted(each, inner, len(inner) + len(key)) for key, each in members]
        else:
            opening, closing = "[]"
            lines = [self._fitted(each, inner, len(inner)) for each in value]
            lines = _filled(lines, _WIDTH - len(inner)) if self.is_flat else lines
        joined = f",{self.newline}{inner}".join(lines)
        return f"{opening}{self.newline}{inner}{joined}{self.newline}{indent}{closing}"


def _is_container(value: Any) -> bool:
    return isinstance(value, Mapping | list) and bool(value)


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False) + ": "


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


def _indent(text: str, position: int) -> str:
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _column(text: str, position: int) -> int:
    return position - text.rfind("\n", 0, position) - 1
