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
from rolecall.settings import Settings

if TYPE_CHECKING:
    from rolecall.insight.tracing import Traces

_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = "OTEL_TRACES_EXPORTER"


def traces_wanted(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Whether traces are to be sent, by the setting and by OpenTelemetry's own variables.

    Raises ``ConfigurationError`` where they are, and cannot be.
    """
    is_off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = environ.get(_EXPORTER, "").strip().lower() or "otlp"
    if not settings.otel_enabled or is_off or exporter == "none":
        return False
    if exporter != "otlp":
        raise ConfigurationError(
            f"{_EXPORTER}: rolecall sends traces over otlp, not {exporter!r}; unset it, or set none"
        )
    given = next(((name, environ[name].strip()) for name in _PROTOCOLS if environ.get(name, "").strip()), None)
    if given is not None and given[1] != "http/protobuf":
        raise ConfigurationError(
            f"{given[0]}: rolecall sends traces over http/protobuf, not {given[1]!r}; unset it, and point "
            "OTEL_EXPORTER_OTLP_ENDPOINT to the collector's port for HTTP (4318 by default)"
        )
    if not all(map(_is_there, _NEEDED)):
        raise ConfigurationError(
            "otel_enabled: traces need OpenTelemetry, which is not installed: pip install 'rolecall[otel]', "
            "or set otel_enabled to false"
        )
    return True


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that it would be in
        return False


@contextlib.asynccontextmanager
async def tracing(gateway: Gateway) -> AsyncIterator[Addition]:
    """Tell of a gateway's requests, where that is switched on; the spans of the last ones are sent at the end."""
    services = gateway.services
    if not traces_wanted(services.settings, os.environ):
        yield Addition()
        return
    traces = await asyncio.to_thread(_traces)
    services.tracing.begin = traces.begin
    services.recorder.listeners.append(traces.hear)
    try:
        yield Addition()
    finally:
        services.tracing.begin = None
        await traces.aclose()


def _traces() -> Traces:
    from rolecall.insight.tracing import Traces  # noqa: PLC0415 - OpenTelemetry, where it is switched on
    from rolecall.insight.tracing_spans import Spans  # noqa: PLC0415

    return Traces(Spans())
