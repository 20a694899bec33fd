"""A model of a llama-swap configuration on its way to an entry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rolecall.elsewhere.tree import Node


@dataclass
class Model:
    """A model with its macros filled in, and the words of its command; ``words`` is empty where there is none."""

    name: str
    node: Node
    words: list[str]
    env: dict[str, str]
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The way to it."""
        return f"models.{self.name}"
