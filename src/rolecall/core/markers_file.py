"""What a ``markers.toml`` says; a module of its own, as a server reads it only once an answer is to be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from rolecall.core.markers import Markers, compared
from rolecall.errors import ConfigurationError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Phrase = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class Group(BaseModel):
    """Phrases that mean the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phrases: Annotated[tuple[Phrase, ...], Field(min_length=1, max_length=500)]


class MarkersConfig(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chars: Annotated[int, Field(ge=1, le=10_000)] = 400
    markers: Annotated[dict[Name, Group], Field(max_length=20)] = {}


def read_markers(data: Mapping[str, Any]) -> Markers:
    """Return the markers of a parsed ``markers.toml``; raises ``ConfigurationError`` with a line for each problem."""
    try:
        read = MarkersConfig.model_validate(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ConfigurationError("\n".join(problems)) from None
    return Markers(read.chars, {name: tuple(map(compared, group.phrases)) for name, group in read.markers.items()})
