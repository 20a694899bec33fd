"""What can go wrong with a hub and with what was fetched from it; each message says what to do."""

from __future__ import annotations


class HubError(Exception):
    """The hub, or the disk, does not give what was asked for; asking again at once would not help."""


class HubInterruption(HubError):
    """The hub, or the way to it, failed in a manner that may pass; ``retry_after_s`` is how long it asks to wait."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WrongContent(HubError):
    """What came is not what the repository lists: nothing of it is kept."""
