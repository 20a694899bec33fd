"""llama-swap's macros: ``${name}``, ``${env.NAME}``, ``${MODEL_ID}``, ``${PORT}`` and ``${PID}``.

Its rules (its `config.example.yaml`, August 2026): a macro may use those that stand before it; one of a model goes
before a global one of that name; a value that is a macro and nothing else keeps the macro's type. ``${PORT}`` and
``${PID}`` are known only when an engine starts, and stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.secrets import is_secret
from rolecall.elsewhere.tree import Node, Scalar

PORT = "${PORT}"
LATER = ("PORT", "PID")

_MACRO = re.compile(r"\$\{([a-zA-Z0-9_-]+)\}")
_ENV = re.compile(r"\$\{env\.([a-zA-Z_][a-zA-Z0-9_]*)\}")
_MOST_CHARACTERS = 2**16


@dataclass(frozen=True, slots=True)
class Macros:
    """Names with their values, in the order in which they were declared, and the variables of the environment."""

    values: Mapping[str, Node]
    environ: Mapping[str, str]

    def for_model(self, name: str, own: Mapping[str, Node], line: int) -> Macros:
        """Return the macros of a model: the global ones, its own in their places or after them, and its name."""
        return Macros({"MODEL_ID": Node(name, line, line), **self.values, **own}, self.environ)

    def expand(self, node: Node, subject: str, outcome: Outcome) -> Node:
        """Return a tree with all macros filled in; an unknown one is a problem of its line."""
        if isinstance(node.value, dict):
            members = {key: self.expand(each, f"{subject}.{key}", outcome) for key, each in node.value.items()}
            return Node(members, node.line, node.end_line)
        if isinstance(node.value, list):
            return Node([self.expand(each, subject, outcome) for each in node.value], node.line, node.end_line)
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        return Node(self._filled(node.value, node.line, subject, outcome), node.line, node.end_line)

    def key(self, text: str, line: int, subject: str, outcome: Outcome) -> str:
        """Return a key of a mapping with the macros in it filled in."""
        return str(self._filled(text, line, subject, outcome)) if "${" in text else text

    def _filled(self, text: str, line: int, subject: str, outcome: Outcome) -> Scalar:
        for name, macro in reversed(list(self.values.items())):
            value = macro.value
            mark = f"${{{name}}}"
            if isinstance(value, dict | list) or mark not in text:
                continue
            if text == mark and not isinstance(value, str):
                whole: Scalar = value
                return whole
            text = text.replace(mark, _as_text(value))
            if len(text) > _MOST_CHARACTERS:
                outcome.wrong(line, subject, f"grows beyond {_MOST_CHARACTERS} characters by the macro {name!r}")
                return ""
        for name in _MACRO.findall(text):
            if name not in LATER:
                outcome.wrong(line, subject, f"uses the macro {name!r}, which is not declared before it")
        return _ENV.sub(lambda found: self._variable(found, line, subject, outcome), text)

    def _variable(self, found: re.Match[str], line: int, subject: str, outcome: Outcome) -> str:
        """Return a variable's value; one that is secret stays as it is written, for nobody to copy."""
        name = found[1]
        if is_secret(name):
            return found[0]
        if name not in self.environ:
            outcome.wrong(
                line, subject, f"needs the environment variable {name}, which is not set: set it and try again"
            )
        return self.environ.get(name, "")


def _as_text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def secret_variable(text: str) -> str | None:
    """Return the secret variable that a text refers to, None if it refers to none."""
    found = _ENV.search(text)
    return found[1] if found else None
