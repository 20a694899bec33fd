"""What `/api/config` holds: how llama.cpp runs, and numbers that stand in where neither request nor entry has any."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from rolecall.core.models import ModelEntry
from rolecall.errors import BadRequest

Mode = Literal["server", "cli"]
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]

LLAMA_CPP = "llama_cpp"
"""The backend whose engines this is about: the names are those of its options."""

DEFAULTS: Mapping[str, float] = MappingProxyType(
    {
        "ctx_size": 12192,
        "temp": 0.35,
        "top_p": 0.9,
        "top_k": 40,
        "presence_penalty": 0.2,
        "mirostat": 0,
        "batch_size": 8192,
        "ubatch_size": 1024,
    }
)
"""What is shown, and used by the endpoints of single pictures, where nobody has set anything."""

LEAST_BATCH = 32
"""Tokens. llama.cpp begins with less, and ends (SIGABRT) with the first picture."""

SIZES = ("ctx_size", "batch_size", "ubatch_size")
"""Those that an engine is started with; the others are fields of a request."""

_OTHER_NAMES = {"temp": ("temp", "temperature"), "batch_size": ("n_batch", "num_batch"), "ubatch_size": ("n_ubatch",)}


class LlmParams(BaseModel):
    """The numbers that somebody has set; None is not set. Sizes are in tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ctx_size: Annotated[Whole, Field(ge=256, le=2**24)] | None = None
    temp: Annotated[Number, Field(ge=0, le=10)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=0, le=2**20)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    mirostat: Annotated[Whole, Field(ge=0, le=2)] | None = None
    batch_size: Annotated[Whole, Field(ge=LEAST_BATCH, le=2**20)] | None = None
    ubatch_size: Annotated[Whole, Field(ge=LEAST_BATCH, le=2**20)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.batch_size is not None and self.ubatch_size is not None and self.ubatch_size > self.batch_size:
            raise ValueError(f"ubatch_size ({self.ubatch_size}) must not be above batch_size ({self.batch_size})")
        return self

    @property
    def given(self) -> dict[str, float]:
        """Those that were set."""
        return self.model_dump(exclude_none=True)


class ApiConfig(BaseModel):
    """What somebody has set. ``backend`` is how llama.cpp runs: a server that stays, or a process for each request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Mode | None = None
    llm_params: LlmParams = LlmParams()

    @property
    def sampling(self) -> dict[str, float]:
        """The numbers of a request, as its fields: what was set, else the defaults."""
        named = {**DEFAULTS, **self.llm_params.given}
        return {_field_of(name): value for name, value in named.items() if name not in SIZES}

    def changed(self, patch: object) -> ApiConfig:
        """Return it with what ``patch`` names in its place; null takes a value back. Raises ``BadRequest``."""
        if not isinstance(patch, Mapping):
            raise BadRequest("The body must be a JSON object with backend, llm_params or both.")
        params = patch.get("llm_params", {})
        if isinstance(params, Mapping):
            merged = {**self.llm_params.given, **params}
            params = {name: value for name, value in merged.items() if value is not None}
        return read_config({"backend": self.backend, **patch, "llm_params": {} if params is None else params})


def read_config(values: object) -> ApiConfig:
    """Return the configuration of a JSON object; raises ``BadRequest`` that names the field, and what is allowed."""
    try:
        return ApiConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or None
        if first["type"] == "extra_forbidden":
            known = LlmParams.model_fields if len(first["loc"]) > 1 else ApiConfig.model_fields
            raise BadRequest(f"There is no {place}; there are {', '.join(known)}.", param=place) from None
        message = first["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{place or 'The configuration'} is wrong: {message}.", param=place) from None


def configured_entry(entry: ModelEntry, config: ApiConfig, own_context: int | None = None) -> ModelEntry:
    """Return the entry with what was set where it says nothing itself; others than llama.cpp's stay as they are.

    Sizes and the mode are not for entries that bring a command of their own, nor for models that write no text.
    ``own_context`` (tokens) is what the model's files say: no context is made larger.
    """
    if entry.backend != LLAMA_CPP or config == ApiConfig():
        return entry
    known = {name for name, value in entry.generation_defaults.items() if value is not None}
    given = config.llm_params.given
    is_ours = not entry.backend_config.command and "text" in entry.started_for
    sizes = {name: given[name] for name in SIZES if name in given and is_ours}
    if entry.context_tokens is not None:
        sizes.pop("ctx_size", None)
    elif "ctx_size" in sizes and own_context is not None:
        sizes["ctx_size"] = min(sizes["ctx_size"], own_context)
    sampling = {name: value for name, value in given.items() if name not in SIZES}
    added = {name: value for name, value in {**sampling, **sizes}.items() if known.isdisjoint(_names(name))}
    mode = config.backend if is_ours and entry.started_for <= {"text"} else None
    if "mode" in entry.backend_config.model_fields_set:
        mode = None
    if not (added or mode):
        return entry
    defaults = {**entry.generation_defaults, **added}
    return entry.changed({"mode": mode} if mode else None, generation_defaults=defaults)


def _names(name: str) -> tuple[str, ...]:
    return (name, *_OTHER_NAMES.get(name, ()))


def _field_of(name: str) -> str:
    return "temperature" if name == "temp" else name
