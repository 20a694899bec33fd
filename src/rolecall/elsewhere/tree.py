"""A configuration as a tree whose values know their lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A value with the lines, from 1, on which it begins and ends; in a mapping it begins with its key."""

    value: Scalar | dict[str, Node] | list[Node]
    line: int
    end_line: int

    def __getitem__(self, key: str) -> Node | None:
        """Return a member of a mapping; None if there is none, if it is null, or if this is no mapping."""
        found = self.value.get(key) if isinstance(self.value, dict) else None
        return None if found is None or found.value is None else found

    def members(self) -> Iterator[tuple[str, Node]]:
        """Yield the members of a mapping that say something, in order; nothing for any other value."""
        if isinstance(self.value, dict):
            yield from ((key, node) for key, node in self.value.items() if node.value is not None)

    def elements(self) -> list[Node]:
        """Return the elements of a list; a value that is no list is one of itself, as for most programs."""
        return self.value if isinstance(self.value, list) else [self]

    @property
    def plain(self) -> Any:
        """The value without lines, as ``json`` would have it."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value

    @property
    def kind(self) -> str:
        """What it is, in words."""
        kinds: dict[type, str] = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false"}
        return "nothing" if self.value is None else kinds.get(type(self.value), "a number")


class SourceError(Exception):
    """A file that cannot be understood; one line a problem, each with the line of the file where there is one."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
