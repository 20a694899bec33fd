"""What a model that was found on a disk is good for: rules from a data file, applied to what its files say.

The rules are data, so that a person can read and change them. They only suggest: priorities are low, and every field of
a curated entry goes before what was discovered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rolecall.core.models import CAPABILITIES, Priority
from rolecall.errors import ConfigurationError

Format = Literal["gguf", "safetensors", "ollama"]


@dataclass(frozen=True, slots=True)
class Found:
    """What the files of a model, or its daemon, say that rules go by.

    ``architecture`` is that of a GGUF, the ``model_type`` of a config.json, or Ollama's family; ``kinds`` are the
    classes of a config.json. ``pooling`` is empty where nothing is said of it. ``declares`` are capabilities that a
    daemon states. ``parameters_b`` are billions.
    """

    name: str
    format: Format
    architecture: str = ""
    kinds: tuple[str, ...] = ()
    pooling: str = ""
    template: str = ""
    sees: bool = False
    hears: bool = False
    declares: tuple[str, ...] = ()
    quantization: str = ""
    parameters_b: float | None = None


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _known(words: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [word for word in words if word not in CAPABILITIES]:
        raise ValueError(f"{unknown[0]!r} is no capability; known are {', '.join(CAPABILITIES)}")
    return words


Pattern = Annotated[str, AfterValidator(_pattern)]
Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Known = Annotated[Words, AfterValidator(_known)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class When(_Table):
    """Conditions, which must all hold; patterns are regular expressions that are searched for, in any case."""

    name: Pattern | None = None
    format: Words = ()
    architecture: Pattern | None = None
    kind: Pattern | None = None
    pooling: Words = ()
    quantization: Pattern | None = None
    template: Pattern | bool | None = None
    sees: bool | None = None
    hears: bool | None = None
    declares: Words = ()
    does: Known = ()
    lacks: Known = ()
    min_parameters_b: float | None = None
    max_parameters_b: float | None = None

    def holds(self, found: Found, does: Iterable[str]) -> bool:
        """Whether the conditions hold for a model that ``does`` so much by the rules before."""
        return all(
            (
                _has(self.name, found.name),
                not self.format or found.format in self.format,
                self.architecture is None
                or re.fullmatch(self.architecture, found.architecture, re.IGNORECASE) is not None,
                self.kind is None or any(_has(self.kind, kind) for kind in found.kinds),
                not self.pooling or found.pooling in self.pooling,
                _has(self.quantization, found.quantization),
                _has_template(self.template, found.template),
                self.sees in (None, found.sees),
                self.hears in (None, found.hears),
                set(self.declares) <= set(found.declares),
                set(self.does) <= set(does),
                not set(self.lacks) & set(does),
                _within(self.min_parameters_b, found.parameters_b, self.max_parameters_b),
            )
        )


def _has(pattern: str | None, text: str) -> bool:
    return pattern is None or re.search(pattern, text, re.IGNORECASE) is not None


def _has_template(wanted: Pattern | bool | None, template: str) -> bool:  # noqa: FBT001 - TOML's true
    if wanted is None or isinstance(wanted, bool):
        return wanted in (None, bool(template))
    return re.search(wanted, template) is not None


def _within(least: float | None, number: float | None, most: float | None) -> bool:
    """A model of unknown size is of none."""
    if least is None and most is None:
        return True
    return number is not None and (least is None or number >= least) and (most is None or number < most)


class Rule(_Table):
    """What follows from conditions: capabilities and roles, more or less priority, or that it is no model for us."""

    name: str
    why: str
    when: When = When()
    skip: bool = False
    capabilities: Known = ()
    roles: dict[str, Priority] = Field(default_factory=dict)
    shift: float = Field(0, ge=-100, le=100, description="Added to the priority of each role that has been given.")


class Rules(_Table):
    """The data file: rules, which are applied in their order, and what holds for all models."""

    context_length_at_most: Annotated[int, Field(gt=0)] = 32768
    highest_priority: Priority = 40
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """A rule that held, and what it did, in words."""

    rule: str
    why: str
    effect: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a model can do and which roles it is suggested for; ``refused`` says why it is no model for us."""

    capabilities: tuple[str, ...] = ()
    priorities: Mapping[str, float] = field(default_factory=dict)
    applied: tuple[Applied, ...] = ()
    refused: str | None = None


def read_rules(data: Any) -> Rules:
    """Return the rules of a parsed file; raises ``ConfigurationError``, one line a problem with rule and field."""
    try:
        return Rules.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_problem(detail, data) for detail in error.errors())) from None


def _problem(detail: Any, data: Any) -> str:
    path = detail["loc"]
    where = ""
    if path[:1] == ("rules",) and len(path) > 1:
        row = data["rules"][path[1]]
        name = row.get("name") if isinstance(row, Mapping) else None
        where, path = f"rule {path[1] + 1}{f' {name!r}' if isinstance(name, str) else ''}, ", path[2:]
    key = ".".join(map(str, path)) or "the whole"
    return f"{where}{key}: {detail['msg'].removeprefix('Value error, ')} (got {detail['input']!r:.80})"


def judge(found: Found, rules: Rules) -> Verdict:
    """Return what the rules make of a model; one that can do nothing by them is refused."""
    does: dict[str, None] = {}
    priorities: dict[str, float] = {}
    applied: list[Applied] = []
    for rule in rules.rules:
        if not rule.when.holds(found, does):
            continue
        if rule.skip:
            return Verdict(applied=(*applied, Applied(rule.name, rule.why, "left out")), refused=rule.why)
        does.update(dict.fromkeys(rule.capabilities))
        priorities.update(rule.roles)
        priorities = {role: priority + rule.shift for role, priority in priorities.items()}
        applied.append(Applied(rule.name, rule.why, _effect(rule, priorities)))
    if not does:
        return Verdict(applied=tuple(applied), refused="no rule of discovery.toml tells what it can do")
    capped = {role: min(max(0, priority), rules.highest_priority) for role, priority in priorities.items()}
    return Verdict(tuple(word for word in CAPABILITIES if word in does), capped, tuple(applied))


def _effect(rule: Rule, priorities: Mapping[str, float]) -> str:
    parts: Sequence[str] = [
        f"can {', '.join(rule.capabilities)}" if rule.capabilities else "",
        f"roles {', '.join(f'{role} {priorities[role]:g}' for role in rule.roles)}" if rule.roles else "",
        f"priorities {rule.shift:+g}" if rule.shift and priorities else "",
    ]
    return "; ".join(filter(None, parts)) or "nothing"
