"""OpenTelemetry's own variables, as far as rolecall has to understand them: what is wrong in them ends the start."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from rolecall.errors import ConfigurationError

MOST_WAITING = 5000
_EXPORTER, _ATTRIBUTES = "OTEL_TRACES_EXPORTER", "OTEL_RESOURCE_ATTRIBUTES"
_OTLP = ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_")
"""What the exporter's variables begin with; the former goes before the latter."""

_COMPRESSIONS = ("none", "gzip", "deflate")
_PAIR = re.compile(r"[^\s\"(),/:;<=>?@\[\\\]{}]+[ \t]*=[ \t!#-+\--:<-\[\]-~]*", re.ASCII)
"""A header's name and value as the exporter takes them; what else there is it would leave out."""

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
    _check_exporter(environ)
    _check_sampler(environ)
    return Sending(
        batch=_number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
        delay_s=_number(environ, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000,
        most_waiting=_number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", MOST_WAITING),
    )


def _given(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip()


def _exporters(environ: Mapping[str, str], kind: str) -> Iterator[tuple[str, str]]:
    """Yield the exporter's variables of a kind that are set, with their values."""
    for name in (start + kind for start in _OTLP):
        if given := _given(environ, name):
            yield name, given


def _check_protocol(environ: Mapping[str, str]) -> None:
    for name, given in _exporters(environ, "PROTOCOL"):
        if given == "http/protobuf":
            return
        raise ConfigurationError(
            f"{name}: rolecall sends traces over http/protobuf, not {given!r}; unset it, and point "
            "OTEL_EXPORTER_OTLP_ENDPOINT to the collector's port for HTTP (4318 by default)"
        )


def _check_exporter(environ: Mapping[str, str]) -> None:
    for kind, is_right, why in _RULES:
        for name, given in _exporters(environ, kind):
            if not is_right(given):
                raise ConfigurationError(f"{name}: {why.format(given)}")
    if not all("=" in each for each in _given(environ, _ATTRIBUTES).split(",") if each.strip()):
        raise ConfigurationError(f"{_ATTRIBUTES}: {_NO_PAIRS}")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def _is_timeout(text: str) -> bool:
    return _is_between(text, 0.001, 86_400)


def _are_pairs(text: str) -> bool:
    return all(_PAIR.fullmatch(part) for each in text.split(",") if (part := each.strip()))


_NO_PAIRS = "it is no list of name=value, with commas between them"
_RULES: tuple[tuple[str, Callable[[str], bool], str], ...] = (
    ("ENDPOINT", _is_url, "it is no URL such as http://127.0.0.1:4318"),
    ("CERTIFICATE", os.path.isfile, "there is no file {}"),
    ("CLIENT_KEY", os.path.isfile, "there is no file {}"),
    ("CLIENT_CERTIFICATE", os.path.isfile, "there is no file {}"),
    ("TIMEOUT", _is_timeout, "{!r} is no number of seconds from 0.001 to 86400"),
    ("COMPRESSION", lambda text: text.lower() in _COMPRESSIONS, f"{{!r}} is none of {', '.join(_COMPRESSIONS)}"),
    ("HEADERS", _are_pairs, _NO_PAIRS),  # which may be a key, and is not repeated
)
"""The exporter's variables by the end of their names, what is right, and what is said of the others."""


def _check_sampler(environ: Mapping[str, str]) -> None:
    sampler, ratio = _given(environ, _SAMPLER).lower(), _given(environ, _RATIO)
    if sampler and sampler not in _KNOWN_SAMPLERS:
        raise ConfigurationError(f"{_SAMPLER}: {sampler!r} is none of {', '.join(_KNOWN_SAMPLERS)}")
    if sampler.endswith("traceidratio") and ratio and not _is_between(ratio, 0, 1):
        raise ConfigurationError(f"{_RATIO}: {ratio!r} is no number from 0 to 1")


def _is_between(text: str, least: float, most: float) -> bool:
    try:
        return least <= float(text) <= most
    except ValueError:
        return False


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    given = _given(environ, name)
    if not given:
        return default
    if not (given.isascii() and given.isdigit() and 0 < int(given) < 10**9):
        raise ConfigurationError(f"{name}: {given!r} is no whole number above 0")
    return int(given)
