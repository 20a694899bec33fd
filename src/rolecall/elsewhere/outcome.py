"""What reading a configuration of another program comes to: entries, and remarks with the lines they are about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from rolecall.core.models import ModelEntry
from rolecall.elsewhere.tree import Node, SourceError

Kind: TypeAlias = Literal["lost", "changed", "todo"]
"""Not carried over; carried over as something else; for a person to do."""


@dataclass(frozen=True, slots=True)
class Remark:
    """What is to be known of a line; ``subject`` is the way to it, such as ``models.qwen.ttl``."""

    line: int
    kind: Kind
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry of the registry as it would be written, and the line that it comes from."""

    entry: dict[str, Any]
    line: int
    subject: str


@dataclass
class Outcome:
    """What was read; ``settings`` are lines for ``rolecall.toml`` that would do what the file did."""

    format: str
    drafts: list[Draft] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lost(self, line: int, subject: str, text: str) -> None:
        """Remark that something could not be carried over."""
        self._add(Remark(line, "lost", subject, text))

    def changed(self, line: int, subject: str, text: str) -> None:
        """Remark that something was carried over as something else."""
        self._add(Remark(line, "changed", subject, text))

    def todo(self, line: int, subject: str, text: str) -> None:
        """Remark that a person has to do something."""
        self._add(Remark(line, "todo", subject, text))

    def _add(self, remark: Remark) -> None:
        if remark not in self.remarks:
            self.remarks.append(remark)

    def wrong(self, line: int, subject: str, text: str) -> None:
        """Note what makes the file unusable; all of it is told together by ``finished``."""
        problem = f"line {line}: {subject} {text}"
        if problem not in self.problems:
            self.problems.append(problem)

    def add(self, entry: dict[str, Any], node: Node, subject: str) -> None:
        """Take an entry, without the fields that say nothing; one that is not valid is a problem of its line."""
        kept = {key: value for key, value in entry.items() if value not in (None, "", [], {}, ())}
        try:
            ModelEntry.model_validate(kept)
        except ValidationError as error:
            for each in error.errors():
                where = ".".join(map(str, each["loc"])) or "entry"
                self.wrong(node.line, subject, f"gives no valid {where}: {each['msg'].removeprefix('Value error, ')}")
            return
        if re.search(r"//[^/@]*:[^/@]*@", str(kept.get("backend_config", {}).get("base_url", ""))):
            self.todo(node.line, subject, "the password in its base_url stands in the registry in plain text now")
        self.drafts.append(Draft(kept, node.line, subject))

    def finished(self) -> Outcome:
        """Return the outcome with its remarks in the order of the file; raises ``SourceError`` for what is wrong."""
        if self.problems:
            raise SourceError(*sorted(self.problems, key=lambda problem: int(problem.split()[1].rstrip(":"))))
        self.remarks.sort(key=lambda remark: remark.line)
        return self

    # -- values as they ought to be

    def text(self, parent: Node, key: str, subject: str) -> str | None:
        """Return a member that is a text; a number is one, too."""
        node = parent[key]
        if node is None:
            return None
        if isinstance(node.value, str):
            return node.value
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return str(node.value)
        self.wrong(node.line, f"{subject}.{key}", f"must be a text, not {node.kind}")
        return None

    def number(self, parent: Node, key: str, subject: str) -> float | None:
        """Return a member that is a number, whole where it is written so."""
        node = parent[key]
        if node is None:
            return None
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return node.value
        self.wrong(node.line, f"{subject}.{key}", f"must be a number, not {node.kind}")
        return None

    def flag(self, parent: Node, key: str, subject: str) -> bool | None:
        """Return a member that is true or false, also as ``yes``, ``no``, ``on`` and ``off``."""
        node = parent[key]
        if node is None or isinstance(node.value, bool):
            return None if node is None else bool(node.value)
        words = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
        if isinstance(node.value, str) and node.value.lower() in words:
            return words[node.value.lower()]
        self.wrong(node.line, f"{subject}.{key}", f"must be true or false, not {node.kind}")
        return None

    def texts(self, parent: Node, key: str, subject: str) -> list[Node]:
        """Return the texts of a list, as nodes; one text is a list of one."""
        node = parent[key]
        found = []
        for each in [] if node is None else node.elements():
            if isinstance(each.value, str | int | float) and not isinstance(each.value, bool):
                found.append(each)
            elif each.value is not None:
                self.wrong(each.line, f"{subject}.{key}", f"must be a list of texts, not of {each.kind}")
        return found

    def mapping(self, parent: Node, key: str, subject: str) -> Iterator[tuple[str, Node]]:
        """Yield the members of a member that is a mapping."""
        node = parent[key]
        if node is not None and not isinstance(node.value, dict):
            self.wrong(node.line, f"{subject}.{key}".lstrip("."), f"must be a mapping, not {node.kind}")
        elif node is not None:
            yield from node.members()
