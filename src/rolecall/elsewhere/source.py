"""YAML and JSON texts as trees, with limits on what a small file may unfold to.

YAML is read event by event: duplicate keys, tags that make objects, aliases that grow without end and texts that nest
too deep are errors with their lines. Plain words are read by YAML 1.2's core schema; ``yes`` and ``off`` are texts, and
whoever expects true or false understands them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from rolecall.core.json_tree import JsonNode, line_of, parse_tree, value_of
from rolecall.elsewhere.tree import Node, Scalar, SourceError

MOST_BYTES = 2 * 2**20
"""A configuration of 1,000 models has a tenth of it."""
_MOST_NODES = 200_000
_MOST_DEPTH = 100

_TAG = "tag:yaml.org,2002:"
_KINDS = {"str", "int", "float", "bool", "null", "map", "seq"}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?=[0-9.]*[.eE])(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MERGE = "<<"
_ONE = (1, 1)


def read_source(data: bytes) -> Node:
    """Return the tree of a YAML or JSON file; raises ``SourceError`` with the line of what is wrong."""
    if len(data) > MOST_BYTES:
        raise SourceError(f"is larger than {MOST_BYTES} bytes, which no configuration is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"line {line}: is not UTF-8 text") from None
    if not text.strip():
        raise SourceError("is empty")
    if text.lstrip()[0] in "[{":
        try:
            return _Json(text).node(parse_tree(text))
        except ValueError as error:
            return _yaml(text, json_problem=error)
    return _yaml(text)


def _yaml(text: str, json_problem: ValueError | None = None) -> Node:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Composer(yaml.parse(text, Loader=loader)).document()
    except yaml.YAMLError as error:
        where = ""
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is not None:
            where = f"line {mark.line + 1}: "
        elif isinstance(error, yaml.reader.ReaderError):
            where = f"line {line_of(text, error.position)}: "
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        if json_problem is not None:
            raise SourceError(f"is neither JSON ({json_problem}) nor YAML ({where}{what})") from None
        raise SourceError(f"{where}is not YAML: {what}") from None


@dataclass
class _Json:
    """Turns the tree of a JSON text into nodes."""

    text: str

    def node(self, found: JsonNode, start: int | None = None) -> Node:
        """Return a value; one in an object begins with its key."""
        line = line_of(self.text, found.start if start is None else start)
        if not found.kind:
            return Node(value_of(self.text, found), line, line)
        end = line_of(self.text, found.end)
        if found.kind == "[":
            return Node([self.node(member.value) for member in found.members], line, end)
        members: dict[str, Node] = {}
        for member in found.members:
            key = str(member.key)
            node = self.node(member.value, member.start)
            _refuse_twice(members, key, node.line)
            members[key] = node
        return Node(members, line, end)


def _refuse_twice(members: dict[str, Node], key: str, line: int) -> None:
    if key in members:
        raise SourceError(f"line {line}: the key {key!r} stands in line {members[key].line} already")


@dataclass
class _Composer:
    """Builds the tree of one document from the parser's events."""

    events: Iterator[Any]
    anchors: dict[str, Node | None] = field(default_factory=dict)
    """None while the anchored value is still being read: an alias to it would have no end."""
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """How many values a node stands for, and how deep they lie, its aliases written out."""

    def document(self) -> Node:
        """Return the first document; raises ``SourceError`` for an empty text and for a second one."""
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                root = self.node(next(self.events), 1)
                self._refuse_more()
                return root
        raise SourceError("is empty")

    def _refuse_more(self) -> None:
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise SourceError(f"line {_line(event)}: a second document begins here; one file holds one")

    def node(self, event: Any, depth: int) -> Node:
        """Return the value that an event begins."""
        line = _line(event)
        if depth > _MOST_DEPTH:
            raise SourceError(f"line {line}: is nested too deep")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, line)
        _refuse_tag(event, line)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            made = Node(_scalar(event), line, max(line, event.end_mark.line + (event.end_mark.column > 0)))
        elif isinstance(event, yaml.SequenceStartEvent):
            made = self._list(line, depth)
        else:
            made = self._mapping(line, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = made
        return made

    def _alias(self, event: Any, line: int) -> Node:
        if event.anchor not in self.anchors:
            raise SourceError(f"line {line}: there is no anchor &{event.anchor} before the alias *{event.anchor}")
        target = self.anchors[event.anchor]
        if target is None:
            raise SourceError(f"line {line}: the alias *{event.anchor} holds itself")
        return target

    def _list(self, line: int, depth: int) -> Node:
        elements: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            elements.append(self.node(event, depth + 1))
        return self._counted(Node(elements, line, _line(event)), elements)

    def _mapping(self, line: int, depth: int) -> Node:
        members: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key_line = _line(event)
            key = self.node(event, depth + 1).value
            if isinstance(key, dict | list):
                raise SourceError(f"line {key_line}: a key must be a text, not a list or a mapping")
            name = _key(key)
            value = self.node(next(self.events), depth + 1)
            if name == _MERGE and not getattr(event, "style", "'"):
                merged = self._merged(value, key_line) | merged
                continue
            _refuse_twice(members, name, key_line)
            members[name] = Node(value.value, key_line, max(value.end_line, key_line))
            self._count(members[name], *self.sizes.get(id(value), _ONE))
        whole = {key: value for key, value in merged.items() if key not in members}
        return self._counted(Node(whole | members, line, _line(event)), [*whole.values(), *members.values()])

    def _merged(self, value: Node, line: int) -> dict[str, Node]:
        """Return the members that ``<<`` takes over; of several mappings the first one goes before."""
        found: dict[str, Node] = {}
        for part in value.elements():
            if not isinstance(part.value, dict):
                raise SourceError(f"line {line}: << takes mappings, not {part.kind}")
            found = part.value | found
        return found

    def _counted(self, node: Node, parts: list[Node]) -> Node:
        sizes = [self.sizes.get(id(part), _ONE) for part in parts]
        self._count(node, 1 + sum(size for size, _ in sizes), 1 + max((height for _, height in sizes), default=0))
        return node

    def _count(self, node: Node, size: int, height: int) -> None:
        if size > _MOST_NODES:
            raise SourceError(f"line {node.line}: unfolds to more than {_MOST_NODES} values, by aliases or by itself")
        if height > _MOST_DEPTH:
            raise SourceError(f"line {node.line}: is nested too deep, by aliases")
        if size > 1:
            self._kept.append(node)
            self.sizes[id(node)] = (size, height)

    _kept: list[Node] = field(default_factory=list)
    """So that no id is given twice."""


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _refuse_tag(event: Any, line: int) -> None:
    tag = event.tag
    if tag is None or tag == "!" or (tag.startswith(_TAG) and tag.removeprefix(_TAG) in _KINDS):
        return
    raise SourceError(f"line {line}: the tag {tag.replace(_TAG, '!!')[:80]!r} is not understood")


def _scalar(event: Any) -> Scalar:
    text: str = event.value
    tag = (event.tag or "").removeprefix(_TAG)
    if tag in ("str", "!") or (event.style and not tag):
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text.lower() in ("true", "false") and text in (text.lower(), text.upper(), text.title()):
        return text.lower() == "true"
    if _INT.fullmatch(text) and len(text) < 20:
        return int(text, 0) if text[1:2] in ("x", "o") else int(text)
    if _FLOAT.fullmatch(text) and len(text) < 40:
        return float(text)
    return text


def _key(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
