"""What is done about a question that got no answer: ask again after a while, leave the picture out, or end the run."""

from __future__ import annotations

from dataclasses import dataclass

from rolecall.vision.ask import AskError, Unreachable

AWAY_S = 60.0
"""How long a server that went away is waited for in all: as long as a restart takes."""
BUSY_S = 1800.0
"""How long one question waits where the server says when to come back: large models load for many minutes."""
START_TRIES = 3
ENGINE_TRIES = 3
_LONGEST_PAUSE_S = 15.0


@dataclass(slots=True)
class Patience:
    """That of one question; told each failure, it says how long to wait before the next try."""

    away_s: float = 0.0
    busy_s: float = 0.0
    starts: int = 0
    engines: int = 0

    def pause_s(self, error: AskError) -> float | None:
        """Return the seconds until it is worth another try; None if it is not."""
        if isinstance(error, Unreachable):
            return self._away()
        if error.code == "model_start_failed":
            self.starts += 1
            return (error.retry_after_s or 1.0) if self.starts < START_TRIES else None
        if error.status in {429, 503} and error.retry_after_s is not None:
            self.busy_s += error.retry_after_s
            return error.retry_after_s if self.busy_s <= BUSY_S else None
        if error.status == 502:
            self.engines += 1
            return float(self.engines) if self.engines < ENGINE_TRIES else None
        return None

    def _away(self) -> float | None:
        if self.away_s >= AWAY_S:
            return None
        pause_s = min(1.0 + self.away_s, _LONGEST_PAUSE_S)
        self.away_s += pause_s
        return pause_s


def ends_all(error: AskError) -> str | None:
    """Return why no other picture would fare better, once a question was given up; None if it is that picture's."""
    if isinstance(error, Unreachable):
        return f"{error.message}; it was waited for {AWAY_S:g} s"
    if error.is_ours or error.code in {"model_start_failed", "model_not_loaded"}:
        return error.message
    return None
