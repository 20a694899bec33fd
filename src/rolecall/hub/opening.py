"""The hub for a command, with the library behind it, which is imported only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rolecall.hub.failures import HubError

if TYPE_CHECKING:
    from rolecall.hub.client import Hub


def open_hub(wait: Callable[[float, str], None] | None = None) -> Hub:
    """Return the hub of the environment; raises `HubError` if its library is not installed."""
    try:
        from rolecall.hub.client import Hub, pause  # noqa: PLC0415 - huggingface_hub is an extra, and 0.15 s
    except ImportError as error:
        raise HubError(f"models are pulled with {error.name}, which is missing: pip install 'rolecall[hub]'") from error
    return Hub(wait=wait or pause)
