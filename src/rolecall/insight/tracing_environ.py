"""OpenTelemetry's own variables, as far as rolecall has to understand them: what is wrong in them ends the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rolecall.errors import ConfigurationError

MOST_WAITING = 5000
_EXPORTER = "OTEL_TRACES_EXPORTER"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_FILES = tuple(
    f"OTEL_EXPORTER_OTLP_{signal}{kind}"
    for signal in ("TRACES_", "")
    for kind in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
)
_SAMPLER, _RATIO = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_KNOWN_SAMPLERS = (*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS))


@dataclass(frozen=True, slots=True)
class Sending:
    """How spans are sent: ``batch`` spans or more at once, no later than ``delay_s`` after they are made.

    ``most_waiting`` requests wait for that; one more drops the oldest.
    """

    batch: int = 512
    delay_s: float = 5.0
    most_waiting: int = MOST_WAITING


def is_switched_off(environ: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables want no traces."""
    return _given(environ, "OTEL_SDK_DISABLED").lower() == "true" or _given(environ, _EXPORTER).lower() == "none"


def sending_of(environ: Mapping[str, str]) -> Sending:
    """Return how spans are to be sent; raises ``ConfigurationError`` for what rolecall cannot do, or is no value."""
    exporter = _given(environ, _EXPORTER).lower() or "otlp"
    if exporter != "otlp":
        raise ConfigurationError(
            f"{_EXPORTER}: rolecall sends traces over otlp, not {exporter!r}; unset it, or set none"
        )
    _check_protocol(environ)
    _check_endpoints(environ)
    _check_sampler(environ)
    return Sending(
        batch=_number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
        delay_s=_number(environ, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000,
        most_waiting=_number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", MOST_WAITING),
    )


def _given(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip()


def _check_protocol(environ: Mapping[str, str]) -> None:
    name = next((name for name in _PROTOCOLS if _given(environ, name)), None)
    if name is not None and _given(environ, name) != "http/protobuf":
        raise ConfigurationError(
            f"{name}: rolecall sends traces over http/protobuf, not {_given(environ, name)!r}; unset it, and point "
            "OTEL_EXPORTER_OTLP_ENDPOINT to the collector's port for HTTP (4318 by default)"
        )


def _check_endpoints(environ: Mapping[str, str]) -> None:
    for name in _ENDPOINTS:
        if (given := _given(environ, name)) and not _is_url(given):
            raise ConfigurationError(f"{name}: it is no URL such as http://127.0.0.1:4318")
    for name in _FILES:
        if (given := _given(environ, name)) and not Path(given).is_file():
            raise ConfigurationError(f"{name}: there is no file {given}")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def _check_sampler(environ: Mapping[str, str]) -> None:
    sampler, ratio = _given(environ, _SAMPLER).lower(), _given(environ, _RATIO)
    if sampler and sampler not in _KNOWN_SAMPLERS:
        raise ConfigurationError(f"{_SAMPLER}: {sampler!r} is none of {', '.join(_KNOWN_SAMPLERS)}")
    if sampler.endswith("traceidratio") and ratio and not _is_ratio(ratio):
        raise ConfigurationError(f"{_RATIO}: {ratio!r} is no number from 0 to 1")


def _is_ratio(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    given = _given(environ, name)
    if not given:
        return default
    if not (given.isascii() and given.isdigit() and 0 < int(given) < 10**9):
        raise ConfigurationError(f"{name}: {given!r} is no whole number above 0")
    return int(given)
