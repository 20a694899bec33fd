"""The architecture, read from the imports: which room may know which, and which names no room may have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rolecall

SOURCE = Path(rolecall.__file__).parent

BELOW_GATEWAY = {"errors", "core", "backends", "runtime", "settings"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "settings": {"errors", "core"},
    "simulation": {"errors", "core"},
    "elsewhere": {"errors", "core"},
    "backends": {"errors", "core"},
    "demo": {"errors", "core", "backends"},
    "runtime": BELOW_GATEWAY - {"runtime"},
    "discovery": BELOW_GATEWAY,
    "hub": BELOW_GATEWAY | {"discovery"},
    "gateway": BELOW_GATEWAY,
    "pages": BELOW_GATEWAY | {"gateway"},
    "vision": BELOW_GATEWAY | {"gateway"},
    "prompts": BELOW_GATEWAY | {"gateway"},
    "insight": BELOW_GATEWAY | {"gateway"},
    "cli": BELOW_GATEWAY
    | {"gateway", "demo", "discovery", "hub", "pages", "vision", "prompts", "insight", "simulation", "elsewhere"},
    "__main__": {"cli"},
}
"""Room of ``rolecall`` to the other rooms it may import; each may import itself and the package's version."""

NOT_IN_CORE = {"asyncio", "httpx", "logging", "os", "pathlib", "socket", "subprocess", "threading", "time"}
NO_NAME = re.compile(r"utils|helper|manager", re.IGNORECASE)


def modules(source: Path = SOURCE) -> dict[str, str]:
    """Return the text of each module of the package by its dotted name."""
    paths = {path: ".".join(path.relative_to(source.parent).with_suffix("").parts) for path in source.rglob("*.py")}
    return {name.removesuffix(".__init__"): path.read_text(encoding="utf-8") for path, name in paths.items()}


def imports(name: str, text: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)


def room(name: str) -> str | None:
    """Return the room of a dotted name; None for the package itself and for what is not ours."""
    parts = name.split(".")
    return parts[1] if parts[0] == "rolecall" and len(parts) > 1 and parts[1] != "__version__" else None


def wrong_imports(name: str, text: str) -> list[str]:
    """Return what a module imports against the rule."""
    own = room(name)
    allowed = MAY_IMPORT[own] | {own} if own else set()
    found = sorted(set(imports(name, text)))
    wrong = [imported for imported in found if room(imported) is not None and room(imported) not in allowed]
    if own == "core":
        wrong += [imported for imported in found if imported.split(".")[0] in NOT_IN_CORE]
    return wrong


def wrong_names(name: str, text: str) -> list[str]:
    """Return the names of a module and its classes that say nothing."""
    classes = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    return [word for word in (name.rsplit(".", 1)[-1], *classes) if NO_NAME.search(word)]


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Return the modules of an import cycle, empty if there is none."""
    graph = {
        name: {_module(imported, sources) for imported in imports(name, text)} - {name, None}
        for name, text in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(map(str, error.args[1]))
    return []


def _module(imported: str, sources: Mapping[str, str]) -> str | None:
    return next((name for name in (imported, imported.rpartition(".")[0]) if name in sources), None)


MODULES = modules()


def test_every_module_is_found() -> None:
    """No module escapes the rule: all files are read, and their rooms are known to it and those of the design."""
    assert len(MODULES) == sum(1 for _ in SOURCE.rglob("*.py"))
    rooms = {room(name) for name in MODULES} - {None}
    assert rooms <= MAY_IMPORT.keys()
    assert {"errors", "core", "backends", "runtime", "gateway", "cli", "demo", "settings"} <= rooms


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_follow_the_rule(name: str) -> None:
    """A module imports only from the rooms below its own; core imports nothing that acts or keeps time."""
    assert wrong_imports(name, MODULES[name]) == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_names_say_what_they_are(name: str) -> None:
    """No module and no class is named utils, helper or manager."""
    assert wrong_names(name, MODULES[name]) == []


def test_core_has_no_cycle() -> None:
    """The modules of core can be read in an order in which each knows only those before it."""
    core = {name: text for name, text in MODULES.items() if room(name) == "core"}
    assert len(core) > 5
    assert cycle(core) == []


# -- the rule itself can fail


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("rolecall.core.x", "import asyncio", ["asyncio"]),
        ("rolecall.core.x", "import os.path as path", ["os.path"]),
        ("rolecall.core.x", "def f():\n    from time import monotonic", ["time.monotonic"]),
        ("rolecall.core.x", "from rolecall.backends import base", ["rolecall.backends.base"]),
        ("rolecall.core.x", "from rolecall import settings", ["rolecall.settings"]),
        ("rolecall.core.x", "from ..runtime.gpu import GpuProbe", ["rolecall.runtime.gpu.GpuProbe"]),
        ("rolecall.core.x", "from .. import gateway", ["rolecall.gateway"]),
        ("rolecall.errors", "import rolecall.core.models", ["rolecall.core.models"]),
        ("rolecall.backends.x", "from rolecall.settings import Settings", ["rolecall.settings.Settings"]),
        ("rolecall.runtime.x", "import rolecall.gateway.app", ["rolecall.gateway.app"]),
        ("rolecall.gateway.x", "if TYPE_CHECKING:\n    from rolecall.cli import main", ["rolecall.cli.main"]),
        ("rolecall.demo.x", "from rolecall.runtime import gpu", ["rolecall.runtime.gpu"]),
        ("rolecall", "from rolecall.cli import main", ["rolecall.cli.main"]),
        ("rolecall.core.x", "import re\nfrom rolecall import __version__, errors\nfrom . import models", []),
        ("rolecall.runtime.x", "import os, asyncio\nfrom rolecall.settings import Settings", []),
        ("rolecall.cli.x", "import rolecall.demo.gguf, rolecall.gateway.app", []),
    ],
)
def test_the_rule_can_fail(name: str, text: str, wrong: list[str]) -> None:
    """A bad import is found however it is written, and a good one is not."""
    assert wrong_imports(name, text) == wrong


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("rolecall.core.utils", "", ["utils"]),
        ("rolecall.core.x", "class ModelManager:\n    class Helper: ...", ["ModelManager", "Helper"]),
        ("rolecall.core.models", "class Registry: ...", []),
    ],
)
def test_the_rule_of_names_can_fail(name: str, text: str, wrong: list[str]) -> None:
    """A name that says nothing is found in files and classes."""
    assert wrong_names(name, text) == wrong


def test_a_cycle_is_found() -> None:
    """Modules that import each other are a cycle, whichever way the import is written."""
    sources = {"a.b": "from a import c", "a.c": "def f():\n    from a.d import x", "a.d": "import a.b"}
    assert sorted(set(cycle(sources))) == ["a.b", "a.c", "a.d"]
    assert cycle(sources | {"a.d": "import re"}) == []
