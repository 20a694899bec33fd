"""Experiments: who gets which variant, and what that changes in a request. Nothing is kept: a hash decides."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timezone
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from rolecall.core.catalog import role_name
from rolecall.core.endpoints import CHAT, COMPLETIONS, MESSAGES, RESPONSES, SPEECH, TRANSCRIPTIONS, TRANSLATIONS
from rolecall.core.parameters import LIMITS, NOT_FOR_CLIENTS
from rolecall.core.ranges import check_ranges
from rolecall.errors import BadRequest, ConfigurationError

HEADER = "x-rolecall-experiment"
"""Of a request: ``off``, or ``NAME=VARIANT`` to be given that one. Of an answer: ``NAME=VARIANT``."""
SESSION = "x-session-id"
OFF = "off"

ENDPOINTS = frozenset({CHAT, COMPLETIONS, MESSAGES, RESPONSES, SPEECH, TRANSCRIPTIONS, TRANSLATIONS})
"""Where requests take part: vectors of two models do not belong together, and counting tokens is no answer."""
_INSTRUCTED = frozenset({CHAT, MESSAGES, RESPONSES})
"""Where there is a system message."""

Metric = Literal["success", "ttft_ms", "duration_ms", "tokens_per_second", "completion_tokens", "feedback"]
_LOWER = frozenset({"ttft_ms", "duration_ms"})
"""The metrics of which less is better; of the others more is, unless the experiment says otherwise."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_THINKING = "enable_thinking"
_TEMPLATE = "chat_template_kwargs"
_NOT_A_PARAMETER = NOT_FOR_CLIENTS | {
    "model",
    "messages",
    "prompt",
    "input",
    "instructions",
    "system",
    "stream",
    "stream_options",
    "metadata",
    "rolecall_defaults",
}
_SYSTEM_FIELDS = {MESSAGES: "system", RESPONSES: "instructions"}
_SYSTEM_ROLES = ("system", "developer")


def _moment(value: Any) -> datetime:
    """Return a day or time of TOML, or the same as a text, with its zone; without one it is UTC's."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", value))  # Python 3.10 does not read the Z
        except ValueError:
            value = None
    if not isinstance(value, date):  # a datetime is one
        raise ValueError("takes a day or a time, such as 2026-11-01 or 2026-11-01T08:00:00Z")  # noqa: TRY004 - pydantic's validators raise it
    moment = value if isinstance(value, datetime) else datetime.combine(value, time())
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


Moment = Annotated[datetime, BeforeValidator(_moment)]
Share = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


class Variant(BaseModel):
    """What a share of the requests gets. One that says nothing changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: Share = 1
    """Its share, against the other weights; 0 gives it to nobody new."""
    model: Annotated[str, Field(min_length=1)] | None = None
    """Name, alias or ``role:NAME``."""
    parameters: dict[str, Any] = {}
    """What the request leaves out is filled with these."""
    set: dict[str, Any] = {}
    """The same, and over what the request says itself."""
    system: str | None = None
    """Takes the place of the system message, or is one."""
    prompt_version: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """What the log calls the version of the prompt."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for table in (self.parameters, self.set):
            if refused := sorted(table.keys() & _NOT_A_PARAMETER):
                raise ValueError(f"{', '.join(refused)} is no parameter that an experiment may give")
            try:
                check_ranges(table, CHAT)
            except BadRequest as error:
                raise ValueError(error.message) from None
        return self

    def treated(self, body: Mapping[str, Any], endpoint: str) -> dict[str, Any]:
        """Return a request's body with what this changes in it, the model apart."""
        changed = dict(body)
        for name, value in self.parameters.items():
            if not _is_given(body, name):
                _put(changed, name, value)
        for name, value in self.set.items():
            for other in LIMITS if name in LIMITS else ():
                changed.pop(other, None)
            _put(changed, name, value)
        if self.system is not None:
            _instruct(changed, endpoint, self.system)
        return changed

    def kept(self, body: Mapping[str, Any]) -> list[str]:
        """Return the parameters that the request has a word of its own for, which goes first."""
        return [name for name in self.parameters if _is_given(body, name)]


class Experiment(BaseModel):
    """An experiment on a role or a prompt, with its variants in the order of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_NAME)
    role: Annotated[str, Field(min_length=1)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    sticky: Literal["key", "session"] | None = None
    window_h: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 24
    """How long after its first request a key or session is looked at (hours)."""
    salt: str = ""
    enabled: Annotated[bool, Field(strict=True)] = True
    start: Moment | None = None
    end: Moment | None = None
    metric: Metric = "success"
    better: Literal["higher", "lower"] | None = None
    control: str | None = None
    variants: dict[Annotated[str, Field(pattern=_NAME)], Variant] = Field(min_length=2, max_length=20)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.role is None) is (self.prompt is None):
            raise ValueError("needs either role or prompt")
        if self.control is not None and self.control not in self.variants:
            raise ValueError(f"control {self.control!r} is none of the variants {', '.join(self.variants)}")
        if not any(variant.weight for variant in self.variants.values()):
            raise ValueError("all weights are 0; enabled = false says that nobody takes part")
        if self.role is not None and self.instructs:
            raise ValueError("system belongs to an experiment on a prompt: a role answers many")
        start, end = self.span
        if start is not None and end is not None and start >= end:
            raise ValueError("it ends before it starts")
        return self

    @property
    def span(self) -> tuple[float | None, float | None]:
        """When it begins, and from when on it is over (s since the epoch)."""
        return self.start.timestamp() if self.start else None, self.end.timestamp() if self.end else None

    @property
    def control_name(self) -> str:
        """The variant that the others are compared with."""
        return self.control or next(iter(self.variants))

    @property
    def is_lower_better(self) -> bool:
        """Whether less of the metric is better."""
        return self.metric in _LOWER if self.better is None else self.better == "lower"

    @property
    def concerns(self) -> str:
        """What it is about, in words: ``role caption`` or ``prompt p1``."""
        return f"role {self.role}" if self.role is not None else f"prompt {self.prompt}"

    @property
    def chooses_models(self) -> bool:
        """Whether a variant names a model."""
        return any(variant.model is not None for variant in self.variants.values())

    @property
    def instructs(self) -> bool:
        """Whether a variant has a system text."""
        return any(variant.system is not None for variant in self.variants.values())

    def is_at(self, endpoint: str) -> bool:
        """Whether requests of an endpoint take part: with a system text those alone that have a system message."""
        return endpoint in (_INSTRUCTED if self.instructs else ENDPOINTS)

    def is_running(self, now: float) -> bool:
        """Whether requests take part at ``now`` (s since the epoch)."""
        start, end = self.span
        return self.enabled and (start is None or start <= now) and (end is None or now < end)

    def assign(self, unit: str) -> str:
        """Return the variant of a unit, always the same one.

        Each variant draws a time, exponential with its weight as the rate, from a hash of experiment, salt, variant and
        unit; the first wins. So the shares are the weights', and a weight that changes moves units only to or from its
        own variant (rendezvous hashing with weights: Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005).
        """
        rates = {name: variant.weight for name, variant in self.variants.items() if variant.weight}
        return min(rates, key=lambda name: self._drawn(name, unit) / rates[name])

    def _drawn(self, variant: str, unit: str) -> float:
        number = int.from_bytes(_hash(self.name, self.salt, variant, unit), "big")
        return -math.log((number + 1) / (2**64 + 1))


@dataclass(frozen=True, slots=True)
class Asked:
    """What an experiment looks at of a request; ``role`` only where one was asked for instead of a model."""

    endpoint: str
    role: str | None = None
    prompt: str | None = None
    key: str | None = None
    session: str | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The variant that a request gets. ``unit`` is a hash of the key or session, None where each request is its own."""

    experiment: Experiment
    name: str
    unit: str | None = None
    is_forced: bool = False

    @property
    def variant(self) -> Variant:
        """What the request gets."""
        return self.experiment.variants[self.name]

    @property
    def control(self) -> Variant:
        """What it gets where that cannot be."""
        return self.experiment.variants[self.experiment.control_name]

    @property
    def words(self) -> str:
        """``NAME=VARIANT``."""
        return f"{self.experiment.name}={self.name}"


class Experiments:
    """All experiments of a file, in its order: the first that takes a request has it."""

    def __init__(self, experiments: Iterable[Experiment]) -> None:
        self.all = tuple(experiments)
        self._by_name = {experiment.name: experiment for experiment in self.all}

    def find(self, name: str) -> Experiment | None:
        """Return the experiment of a name."""
        return self._by_name.get(name)

    def assign(self, asked: Asked, now: float, wish: str | None = None) -> Assignment | None:
        """Return what a request gets at ``now`` (s since the epoch), None if it takes part in nothing.

        ``wish`` is its header. Raises ``BadRequest`` for one that names no variant of an experiment on such requests.
        """
        if wish is not None:
            return None if wish.strip().lower() == OFF else self._forced(asked, wish.strip())
        for experiment in self.all:
            if experiment.is_at(asked.endpoint) and _takes(experiment, asked) and experiment.is_running(now):
                unit = _unit(experiment, asked)
                if unit is not None:
                    return Assignment(experiment, experiment.assign(unit), _hidden(experiment, unit))
        return None

    def _forced(self, asked: Asked, wish: str) -> Assignment:
        name, _, variant = (part.strip() for part in wish.partition("="))
        experiment = self._by_name.get(name)
        if experiment is None or variant not in experiment.variants:
            known = ", ".join(f"{e.name}={v}" for e in self.all for v in e.variants)
            raise BadRequest(f"The header {HEADER} takes off or one of {known}, not {wish[:200]!r}.", param=HEADER)
        if not experiment.is_at(asked.endpoint):
            raise BadRequest(f"Requests to {asked.endpoint} take no part in the experiment {name}.", param=HEADER)
        if not _takes(experiment, asked):
            named = "; where a variant has a model, the request must ask for a role" * experiment.chooses_models
            raise BadRequest(
                f"The experiment {name} is on the {experiment.concerns}, which this request is not{named}.",
                param=HEADER,
            )
        return Assignment(experiment, variant, is_forced=True)


def _takes(experiment: Experiment, asked: Asked) -> bool:
    """Whether it is about such a request: a model that was named is never changed for another one."""
    if experiment.role is not None:
        return asked.role == role_name(experiment.role)
    return asked.prompt == experiment.prompt and (asked.role is not None or not experiment.chooses_models)


def _unit(experiment: Experiment, asked: Asked) -> str | None:
    """Return who is given a variant; None where the request says nothing of whom."""
    if experiment.sticky is None:
        return asked.request_id
    return asked.key if experiment.sticky == "key" else asked.session


def _hidden(experiment: Experiment, unit: str) -> str | None:
    """Return what the log has of a key or session: enough to know it again, and no more."""
    if experiment.sticky is None:
        return None
    return _hash(experiment.name, experiment.salt, unit).hex()


def _hash(*words: str) -> bytes:
    """Return 8 bytes; no two lists of words are one text."""
    text = "".join(f"{len(word)}:{word}" for word in words)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _is_given(body: Mapping[str, Any], name: str) -> bool:
    if name in LIMITS:
        return any(body.get(other) is not None for other in LIMITS)
    if name == _THINKING:
        named = body.get(_TEMPLATE)
        return body.get(name) is not None or (isinstance(named, dict) and named.get(name) is not None)
    return body.get(name) is not None


def _put(body: dict[str, Any], name: str, value: Any) -> None:
    if name == _THINKING:  # llama.cpp and vLLM take it as a word for the template
        name, value = _TEMPLATE, {name: value}
    there = body.get(name)
    body[name] = {**there, **value} if isinstance(there, dict) and isinstance(value, dict) else value


def _instruct(body: dict[str, Any], endpoint: str, text: str) -> None:
    if endpoint in _SYSTEM_FIELDS:
        body[_SYSTEM_FIELDS[endpoint]] = text
    if endpoint == CHAT:
        body["messages"] = [{"role": "system", "content": text}, *_without_system(body["messages"])]
    elif endpoint == RESPONSES and isinstance(body.get("input"), list):
        body["input"] = _without_system(body["input"])


def _without_system(messages: list[Any]) -> list[Any]:
    return [each for each in messages if not isinstance(each, dict) or each.get("role") not in _SYSTEM_ROLES]


def read_experiments(data: Mapping[str, Any]) -> Experiments:
    """Return the experiments of a parsed file; raises ``ConfigurationError``, a line for each problem."""
    found: list[Experiment] = []
    problems: list[str] = []
    for name, table in data.items():
        if not isinstance(table, dict) or "name" in table:
            problems.append(f"{name}: must be a table such as [my-experiment], whose name is that of the experiment")
            continue
        try:
            found.append(Experiment.model_validate({**table, "name": name}))
        except ValidationError as error:
            problems += [f"{name}: {_problem(each)}" for each in error.errors()]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return Experiments(found)


def _problem(error: Any) -> str:
    where = ".".join(str(step) for step in error["loc"] if step != "[key]")
    what = "there is no such field" if error["type"] == "extra_forbidden" else error["msg"]
    return f"{where}: {what.removeprefix('Value error, ')}" if where else what.removeprefix("Value error, ")
