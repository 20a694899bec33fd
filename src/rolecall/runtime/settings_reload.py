"""Settings read again while rolecall runs: some take effect at once, the others with the next start."""

from __future__ import annotations

from dataclasses import dataclass

from rolecall.settings import Settings

LIVE = frozenset(
    {
        "backend_timeout_ms",
        "include_non_installed",
        "log_level",
        "log_prompts",
        "max_images",
        "max_messages",
        "max_wait_s",
        "quality_tolerance",
        "reasoning_field",
        "role_policy",
        "roles",
        "shutdown_grace_s",
        "stream_idle_timeout_ms",
        "stream_loading_comments",
    }
)
"""What is asked for with each request. All else was built into what runs: sockets, files, limits of connections."""


@dataclass(frozen=True, slots=True)
class Reread:
    """The settings that are in force from now on; ``applied`` is new, ``pending`` needs a restart. Names, sorted."""

    settings: Settings
    applied: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()

    def told(self) -> str:
        """Return what came of it in words, for a log."""
        parts = [f"in force: {', '.join(self.applied)}"] if self.applied else []
        parts += [f"after a restart: {', '.join(self.pending)}"] if self.pending else []
        return "; ".join(parts) or "no setting has changed"


def reread(now: Settings) -> Reread:
    """Read the settings as the start did: same command line, files and environment as they are now.

    Raises ``ConfigurationError`` for what is wrong.
    """
    new = now.read_again()
    changed = sorted(name for name in Settings.model_fields if getattr(new, name) != getattr(now, name))
    applied = tuple(name for name in changed if name in LIVE)
    pending = tuple(name for name in changed if name not in LIVE)
    return Reread(now.with_values_of(new, applied), applied, pending)
