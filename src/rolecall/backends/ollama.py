"""Ollama: a daemon that others run, whose models we load and unload over its own interface.

What is relied on, by Ollama's documentation (api.md, faq.mdx) and its scheduler (server/sched.go, July 2026):

- ``keep_alive`` belongs to the loaded model. A request that brings none, as all under ``/v1`` do, leaves it as it is;
  ``OLLAMA_KEEP_ALIVE`` counts only for a model that such a request loads. Loaded with -1 it stays until somebody else
  sends another value, or Ollama needs its room.
- ``num_ctx`` belongs to the load as well, and a request whose options differ makes Ollama load the model again. Nothing
  under ``/v1`` carries it, so none may be sent with the load either. The context of a model is set in Ollama, by
  ``PARAMETER num_ctx`` in its Modelfile or ``OLLAMA_CONTEXT_LENGTH``.
- ``/api/ps`` names models with their tag, ``:latest`` included, and without the default registry and namespace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rolecall.backends.base import LOOPBACK, Call, Reducible, RemoteLoad, Spread, Upstream
from rolecall.core.endpoints import (
    COUNT_TOKENS,
    DETOKENIZE,
    RERANK,
    SCORE,
    TOKENIZE,
    TRANSLATIONS,
)
from rolecall.core.models import ModelEntry
from rolecall.core.vram import Placement

DEFAULT_PARALLEL = 1
"""``OLLAMA_NUM_PARALLEL`` unless told otherwise: further requests would wait in Ollama, where we cannot see them."""

_FOREVER = -1
_DEFAULT_REGISTRY, _DEFAULT_NAMESPACE = "registry.ollama.ai/", "library/"


class OllamaDaemon:
    """Reached under the entry's ``base_url``, or ``host`` and ``port``, else under ``base_url`` of the settings."""

    name = "ollama"
    managed = True
    has_port = False
    takes_share = False
    ports: range | None = None
    reducible = Reducible()
    keeps_roles = False

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    def unavailable(self, entry: ModelEntry) -> str | None:
        """Return that the address is none; what Ollama has, only Ollama can say."""
        base = self.address(entry)
        return None if _is_address(base) else f"the address of Ollama {base!r} is no address"

    def files(self, entry: ModelEntry) -> tuple[Path, ...]:
        """Return nothing: the files are Ollama's."""
        del entry
        return ()

    def parallel(self, entry: ModelEntry) -> int:
        """Return ``max_parallel``, which should be ``OLLAMA_NUM_PARALLEL`` where that is set, else one."""
        return entry.max_parallel or DEFAULT_PARALLEL

    def served_id(self, entry: ModelEntry) -> str:
        """Return the model's tag."""
        return entry.served_model_id or entry.name

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> RemoteLoad:
        """Return how the model is loaded for good and unloaded; Ollama lays it out over its GPUs itself."""
        del placement
        base, tag = self.address(entry), self.served_id(entry)
        return RemoteLoad(
            base_url=self.upstream(entry, port).base_url,
            load=_load(entry, base, tag),
            unload=Call("POST", f"{base}/api/generate", {"model": tag, "keep_alive": 0, "stream": False}),
            list_loaded=Call("GET", f"{base}/api/ps"),
            held_mb=lambda answer: held_mb(answer, tag),
            list_installed=Call("GET", f"{base}/api/tags"),
            has_model=lambda answer: _named(answer, tag) is not None,
            api_key_env=entry.backend_config.api_key_env,
            missing=f"Ollama has no model {tag!r}; run: ollama pull {tag}",
        )

    def spread(self, entry: ModelEntry) -> Spread:
        """Return one GPU or as many as it takes: that is how Ollama places a model."""
        del entry
        return Spread(possible=tuple(range(1, 17)))

    def build(self) -> str:
        """Return the backend's name: the version is known to the daemon alone."""
        return self.name

    def upstream(self, entry: ModelEntry, port: int) -> Upstream:
        """Return the address of Ollama's OpenAI-compatible interface."""
        del port
        return Upstream(f"{self.address(entry)}/v1", entry.backend_config.api_key_env)

    def lacks(self, entry: ModelEntry, endpoint: str) -> str | None:
        """Return what no version of Ollama serves so far; what came lately (audio) it answers itself."""
        del entry
        return _LACKING.get(endpoint)

    def shares_context(self, entry: ModelEntry) -> bool:
        """Return False."""
        del entry
        return False

    def address(self, entry: ModelEntry) -> str:
        """Return where the Ollama of an entry is asked."""
        config = entry.backend_config
        base = config.base_url
        if base is None and (config.host or config.port):
            own = urlsplit(self._base_url)
            base = f"http://{config.host or own.hostname or LOOPBACK}:{config.port or own.port or 11434}"
        return (base or self._base_url).rstrip("/").removesuffix("/v1").rstrip("/")


_ELSEWHERE = "the same model file under the backend llama_cpp does"
_LACKING = {
    **{path: f"Ollama has no {path}; {_ELSEWHERE}." for path in (RERANK, TOKENIZE, DETOKENIZE, COUNT_TOKENS)},
    SCORE: f"Ollama has no {SCORE}; vLLM has, and {RERANK} of llama.cpp gives the same numbers.",
    TRANSLATIONS: f"Ollama has no {TRANSLATIONS}; vLLM has.",
}


def _load(entry: ModelEntry, base: str, tag: str) -> Call:
    """An empty request loads; a model that only embeds refuses ``/api/generate``, but takes an empty list."""
    if "text" in entry.all_capabilities or "embedding" not in entry.all_capabilities:
        return Call("POST", f"{base}/api/generate", {"model": tag, "keep_alive": _FOREVER, "stream": False})
    return Call("POST", f"{base}/api/embed", {"model": tag, "input": [], "keep_alive": _FOREVER})


def held_mb(answer: Any, tag: str) -> int | None:
    """Return the MB that a model holds by an answer to ``/api/ps``, None if it is not loaded.

    ``size_vram`` counts, or ``size`` for a model that lies in host RAM alone.
    """
    if (model := _named(answer, tag)) is None:
        return None
    size = model.get("size_vram") or model.get("size")
    return int(size) >> 20 if isinstance(size, int | float) else 0


def _named(answer: Any, tag: str) -> dict[str, Any] | None:
    """Return a model from an answer to ``/api/ps`` or ``/api/tags``; None if it is not in there."""
    models = answer.get("models") if isinstance(answer, dict) else None
    for model in models if isinstance(models, list) else ():
        if isinstance(model, dict) and full_tag(str(model.get("model") or model.get("name"))) == full_tag(tag):
            return model
    return None


def full_tag(tag: str) -> str:
    """Return a model's name in one spelling: lower case, with its tag, without Ollama's own registry and namespace."""
    short = tag.lower().removeprefix(_DEFAULT_REGISTRY).removeprefix(_DEFAULT_NAMESPACE)
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
