"""A JSON text as a tree that knows where everything stands in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(r'[ \t\n\r]*("(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+)')
_CLOSING = {"{": "}", "[": "]"}


@dataclass(slots=True)
class JsonNode:
    """A value: ``text[start:end]`` is what stands there; an object or a list has members."""

    start: int
    end: int = 0
    kind: str = ""
    """``{`` for an object, ``[`` for a list, nothing for all else."""
    members: list[Member] = field(default_factory=list)

    def member(self, key: str) -> Member | None:
        """Return the member of an object that counts: the last one of that key."""
        return next((member for member in reversed(self.members) if member.key == key), None)


@dataclass(frozen=True, slots=True)
class Member:
    """A value in an object or a list (``key`` None); ``start`` is where it begins, with its key."""

    key: str | None
    start: int
    value: JsonNode


def parse_tree(text: str) -> JsonNode:
    """Return the tree of a JSON text; raises ``ValueError`` as ``json.loads`` does, and for one that nests too deep."""
    try:
        json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    root = JsonNode(0)
    open_nodes: list[JsonNode] = []
    current = root
    key: tuple[str, int] | None = None
    for start, word in _tokens(text):
        if word in _CLOSING.values():
            current = open_nodes.pop()
            current.members[-1].value.end = start + 1
        elif word in ",:":
            continue
        elif current.kind == "{" and key is None:
            key = (json.loads(word, strict=False), start)
        else:
            node = JsonNode(start, start + len(word), word if word in _CLOSING else "")
            current.members.append(Member(key and key[0], key[1] if key else start, node))
            key = None
            if node.kind:
                open_nodes.append(current)
                current = node
    return root.members[0].value


def _tokens(text: str) -> Iterator[tuple[int, str]]:
    position = 0
    while (found := _TOKEN.match(text, position)) is not None:
        yield found.start(1), found[1]
        position = found.end()


def value_of(text: str, node: JsonNode) -> Any:
    """Return the value of a node."""
    return json.loads(text[node.start : node.end])


def line_of(text: str, position: int) -> int:
    """Return the line, from 1, in which a position lies."""
    return text.count("\n", 0, position) + 1
