"""Registries of ImageWorks, and rolecall's own of another machine, as entries of this one.

ImageWorks wrote the same fields and more: what its tools noted for themselves, every synonym of every capability, and
addresses inside of its containers (`docs/reference/architecture/layered-registry.md` of mrpid12org/imageworks).
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rolecall.core.models import CAPABILITIES, ModelEntry
from rolecall.elsewhere.outcome import Outcome
from rolecall.elsewhere.tree import Node

FORMAT = "registry"

_NOTED = {
    "artifacts": "hashes of files are not checked here",
    "version_lock": "hashes of files are not checked here",
    "performance": "what a model takes is learnt anew",
    "probes": "what a model takes is learnt anew",
    "profiles_placeholder": "was never used",
    "download_files": "the files are looked for in model_path",
    "download_path": "the files are looked for in model_path",
    "download_size_bytes": "the files tell their size",
    "download_directory_checksum": "hashes of files are not checked here",
    "downloaded_at": "was a note of its tools",
    "last_accessed": "was a note of its tools",
}
_DRIVEN = ("llama_cpp", "vllm", "ollama", "openai")


def read_rows(root: Node) -> Outcome:
    """Return the entries of a registry, a list or an object with one under ``models``."""
    outcome = Outcome(FORMAT)
    rows = root["models"] if isinstance(root.value, dict) else root
    noted: dict[str, list[int]] = {}
    for number, node in enumerate(rows.elements() if rows is not None else (), 1):
        subject = _subject(node, number)
        if not isinstance(node.value, dict):
            outcome.wrong(node.line, subject, f"must be an object, not {node.kind}")
            continue
        for key, each in node.members():
            if key in _NOTED:
                noted.setdefault(key, []).append(each.line)
        outcome.add(_entry(node, subject, outcome), node, subject)
    for key, lines in noted.items():
        more = f" (and of {len(lines) - 1} more)" if len(lines) > 1 else ""
        outcome.lost(lines[0], key, f"{_NOTED[key]}{more}")
    return outcome.finished()


def _subject(node: Node, number: int) -> str:
    name = node["name"]
    return f"entry {number}" if name is None else f"entry {number} {name.value!r}"


def _entry(node: Node, subject: str, outcome: Outcome) -> dict[str, Any]:
    entry = {key: each.plain for key, each in node.members() if key not in _NOTED}
    backend = _backend(entry)
    if entry.get("served_model_id") == "None":
        del entry["served_model_id"]
    _long_edge(entry, node, subject, outcome)
    if "capabilities" in entry:
        entry["capabilities"] = _capabilities(entry["capabilities"])
    defaults = entry.get("generation_defaults")
    if isinstance(defaults, dict) and (stop := defaults.pop("stop_sequences", None)):
        defaults["stop"] = stop
    _location(entry, node, subject, outcome)
    config = node["backend_config"]
    if config is not None and isinstance(config.value, dict):
        entry["backend_config"] = _config(backend, config, subject, outcome)
    if backend not in _DRIVEN and (config is None or config["command"] is None):
        text = f"rolecall does not drive {backend!r}: backend_config.command says how it is started"
        outcome.todo(node["backend"].line if node["backend"] else node.line, subject, text)
    return entry


def _backend(entry: dict[str, Any]) -> str:
    backend = entry.get("backend")
    folded = _folded(backend=backend if isinstance(backend, str) else "x")
    return folded.backend if folded is not None else str(backend)


def _capabilities(stated: Any) -> Any:
    """Return the capabilities under their own names; what ImageWorks called a language is text."""
    if not isinstance(stated, dict):
        return stated
    folded = _folded(capabilities={k: bool(v) for k, v in stated.items()})
    return stated if folded is None else [word for word in folded.capabilities if word in CAPABILITIES]


def _folded(**fields: Any) -> ModelEntry | None:
    """Return an entry with fields as the registry understands them; None where the whole entry will be refused."""
    try:
        return ModelEntry.model_validate({"name": "x", "backend": "x", **fields})
    except ValidationError:
        return None


def _long_edge(entry: dict[str, Any], node: Node, subject: str, outcome: Outcome) -> None:
    """Take the longest edge of an image over as a number of pixels."""
    stated = node["capabilities"]
    vision = stated["vision"] if stated is not None else None
    edge = vision["target_long_edge"] if vision is not None else None
    if edge is not None and isinstance(edge.value, int) and edge.value > 0 and "max_image_pixels" not in entry:
        entry["max_image_pixels"] = edge.value**2
        outcome.changed(
            edge.line, f"{subject}.capabilities.vision", "target_long_edge became max_image_pixels, its square"
        )


def _location(entry: dict[str, Any], node: Node, subject: str, outcome: Outcome) -> None:
    """Leave a location out that is the name of a machine, not a path."""
    place = entry.get("download_location")
    if isinstance(place, str) and not place.startswith(("/", "~", ".", "$")):
        del entry["download_location"]
        where = node["download_location"]
        outcome.lost(where.line if where else node.line, f"{subject}.download_location", f"{place!r} is no path")


def _config(backend: str, config: Node, subject: str, outcome: Outcome) -> dict[str, Any]:
    """Return how the engine is started, without what another machine's containers were called."""
    found = {key: each.plain for key, each in config.members()}
    subject = f"{subject}.backend_config"
    lines = {key: each.line for key, each in config.members()}
    if backend == "ollama":
        if str(found.get("model_path", "")).startswith("ollama:"):
            del found["model_path"]
        if found.get("extra_args"):
            text = "what Ollama loads a model with is set in Ollama: PARAMETER in its Modelfile"
            outcome.lost(lines["extra_args"], f"{subject}.extra_args", text)
        found.pop("extra_args", None)
        if "host" in found and found["host"] not in ("127.0.0.1", "localhost"):
            text = f"{found['host']} is asked for Ollama; without host and port it is the one of ollama_base_url"
            outcome.todo(lines["host"], f"{subject}.host", text)
    elif backend in ("vllm", "llama_cpp") and not found.get("command") and not found.get("base_url"):
        if "host" in found:
            outcome.lost(lines["host"], f"{subject}.host", "engines that rolecall starts listen on 127.0.0.1")
            del found["host"]
        if "port" in found:
            outcome.changed(
                lines["port"], f"{subject}.port", "was left out: each start of the engine takes a free port"
            )
            del found["port"]
    return {key: value for key, value in found.items() if value not in ([], {}, "")}
