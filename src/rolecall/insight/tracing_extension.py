"""Adds traces over OTLP to the server, where `otel_enabled` switches them on; OpenTelemetry is imported only then."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rolecall.errors import ConfigurationError
from rolecall.gateway.server import Addition, Gateway
from rolecall.insight.tracing_environ import Sending, is_switched_off, sending_of
from rolecall.settings import Settings

if TYPE_CHECKING:
    from rolecall.insight.tracing import Traces

_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def traces_wanted(settings: Settings, environ: Mapping[str, str]) -> Sending | None:
    """Return how traces are to be sent, by the setting and by OpenTelemetry's own variables; None if they are not.

    Raises ``ConfigurationError`` where they are, and cannot be.
    """
    if not settings.otel_enabled or is_switched_off(environ):
        return None
    sending = sending_of(environ)
    if not all(map(_is_there, _NEEDED)):
        raise ConfigurationError(
            "otel_enabled: traces need OpenTelemetry, which is not installed: pip install 'rolecall[otel]', "
            "or set otel_enabled to false"
        )
    return sending


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that it would be in
        return False


@contextlib.asynccontextmanager
async def tracing(gateway: Gateway) -> AsyncIterator[Addition]:
    """Tell of a gateway's requests, where that is switched on; the spans of the last ones are sent at the end."""
    services = gateway.services
    sending = traces_wanted(services.settings, os.environ)
    if sending is None:
        yield Addition()
        return
    traces = await asyncio.to_thread(_traces, sending)
    services.tracing.begin, services.tracing.lost = traces.begin, traces.lost
    services.recorder.listeners.append(traces.hear)
    try:
        yield Addition()
    finally:
        services.tracing.begin = None
        await traces.aclose()


def _traces(sending: Sending) -> Traces:
    from rolecall.insight.tracing import Traces  # noqa: PLC0415 - OpenTelemetry, where it is switched on

    try:  # the import reads variables, too
        from rolecall.insight.tracing_spans import Spans  # noqa: PLC0415

        spans = Spans(sending=sending)
    except ValueError as error:
        raise ConfigurationError(f"OpenTelemetry's variables (OTEL_…) cannot be used: {error}") from None
    return Traces(spans, most_waiting=sending.most_waiting)
