"""Any OpenAI-compatible server that somebody else runs, here or far away."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from rolecall.backends.base import LOOPBACK, Launch, Reducible, Spread, Upstream
from rolecall.core.models import ModelEntry
from rolecall.core.vram import Placement

DEFAULT_PARALLEL = 256


class OpenAIServer:
    """Reached under ``base_url``, with a key from the environment variable that ``api_key_env`` names."""

    name = "openai"
    managed = False
    has_port = False
    takes_share = False
    ports: range | None = None
    reducible = Reducible()
    keeps_roles = True

    def unavailable(self, entry: ModelEntry) -> str | None:
        """Return what the entry lacks."""
        config = entry.backend_config
        if not (config.base_url or config.port):
            return "backend_config.base_url is missing"
        base = _base_url(entry)
        return None if _is_address(base) else f"backend_config.base_url {base!r} is no address"

    def files(self, entry: ModelEntry) -> tuple[Path, ...]:
        """Return nothing: the files are the server's."""
        del entry
        return ()

    def parallel(self, entry: ModelEntry) -> int:
        """Return ``max_parallel``, else plenty: the server has its own queue."""
        return entry.max_parallel or DEFAULT_PARALLEL

    def served_id(self, entry: ModelEntry) -> str:
        """Return the server's name for the model."""
        return entry.served_model_id or entry.name

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> Launch:
        """Never called: ``managed`` is False."""
        del placement
        raise TypeError(f"{entry.name!r} on port {port} is run by somebody else")

    def spread(self, entry: ModelEntry) -> Spread:
        """Return one: it is nothing to us."""
        del entry
        return Spread()

    def build(self) -> str:
        """Return nothing: the engine is not ours."""
        return ""

    def upstream(self, entry: ModelEntry, port: int) -> Upstream:
        """Return the server's address; one without a path is completed with ``/v1``."""
        del port
        base = _base_url(entry)
        return Upstream(base if urlsplit(base).path else base + "/v1", entry.backend_config.api_key_env)

    def lacks(self, entry: ModelEntry, endpoint: str) -> None:
        """Return None: nothing is known of the server, which says itself what it has not."""
        del entry, endpoint

    def shares_context(self, entry: ModelEntry) -> bool:
        """Return False."""
        del entry
        return False


def _base_url(entry: ModelEntry) -> str:
    config = entry.backend_config
    return (config.base_url or f"http://{config.host or LOOPBACK}:{config.port}").rstrip("/")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
