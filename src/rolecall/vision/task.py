"""One task: what a model is asked about a picture, and how its answer is read. Data, from a TOML file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from rolecall.core.wording import meant

Parser = Literal["text", "keywords", "json", "tags"]
Mode = Literal["structured", "questions"]
Xmp = Literal["description", "keywords", "nothing"]

UNKNOWN = "unknown"
"""What a model may say of an optional dimension that a picture tells nothing of; it is no tag and no mistake."""

_ID = r"^[a-z][a-z0-9_-]{0,63}$"
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NOT_PARAMETERS = frozenset(
    {"model", "messages", "stream", "stream_options", "response_format", "n", "metadata", "logprobs", "tools"}
)
"""What a request is made of, or what would make its answer another one than is read."""
_WORDS_OF_TAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"user": ("dimensions",), "user_each": ("question", "choices", "limit")}
)

Text = Annotated[str, Field(min_length=1)]
Word = Annotated[str, Field(min_length=1, max_length=60)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Variable(_Part):
    """A word that is filled into the prompts at ``{name}``; without a default it has to be given.

    ``source = "colours"``: the colours that are measured in the picture, unless others are given.
    """

    default: str | None = None
    title: str = ""
    source: Literal["given", "colours"] = "given"

    @property
    def is_required(self) -> bool:
        """Whether somebody has to give a value."""
        return self.default is None and self.source == "given"


def _from_default(value: Any) -> Any:
    return {"default": value} if isinstance(value, str) else value


class Dimension(_Part):
    """One question of a task that tags, and the words that answer it: ``values``, and ``synonyms`` of these.

    At most ``at_most`` of them hold for one picture. Of an ``optional`` dimension a picture may tell nothing.
    """

    values: tuple[Word, ...] = Field(min_length=2, max_length=200)
    synonyms: Mapping[str, str] = {}
    question: Text
    at_most: int = Field(default=1, ge=1, le=50)
    optional: bool = False

    @field_validator("values")
    @classmethod
    def _normal_and_once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            _check_normal(value)
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(f"holds {twice[0]!r} more than once; take one of them out")
        if UNKNOWN in values:
            raise ValueError(f"holds {UNKNOWN!r}, which models may say anyway; write optional = true instead")
        return values

    @model_validator(mode="after")
    def _of_values(self) -> Self:
        for synonym, value in self.synonyms.items():
            _check_normal(synonym)
            if synonym in self.values or synonym == UNKNOWN:
                raise ValueError(f"synonyms: {synonym!r} is a value itself; take it out of one of the two")
            if value not in self.values:
                raise ValueError(
                    f"synonyms: {synonym} = {value!r} is none of the values{did_you_mean(value, self.values)}"
                )
        return self

    @property
    def choices(self) -> tuple[str, ...]:
        """What a model may answer."""
        return (*self.values, UNKNOWN) if self.optional else self.values


def normal(word: str) -> str:
    """Return a word as vocabularies have it: in small letters, with single spaces, without marks around it."""
    return " ".join(word.split()).strip(" .,;:!?\"'`*_#()[]{}<>«»“”‘’。、").casefold()


def _check_normal(word: str) -> None:
    if (better := normal(word)) != word:
        raise ValueError(f"holds {word!r}, to which no answer could be equal; write {better!r}")


class Image(_Part):
    """How a picture is prepared: its longer side in pixels at the most, and its quality as a JPEG."""

    max_side: int = Field(default=1024, ge=32, le=8192)
    jpeg_quality: int = Field(default=90, ge=30, le=100)


class Validation(_Part):
    """What makes an answer usable: lengths in characters, numbers of items and words in each, names in an object.

    An answer that begins with one of ``reject`` is none: models that cannot help say so in whole sentences. One of
    ``empty`` says that there is nothing, which is an answer: ``""``.
    """

    min_chars: int = Field(default=1, ge=1)
    max_chars: int = Field(default=20_000, ge=1)
    min_items: int = Field(default=1, ge=0)
    max_items: int = Field(default=100, ge=1)
    max_words: int = Field(default=4, ge=1)
    required: tuple[Word, ...] = ()
    reject: tuple[Text, ...] = ()
    empty: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for low, high in (("min_chars", "max_chars"), ("min_items", "max_items")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} is above {high}")
        return self


class Task(_Part):
    """What is asked of a model about a picture. ``id`` and ``version`` go into the request log.

    ``role`` is what the request asks for, ``parameters`` go into it as they are. ``{name}`` in ``system``, ``user`` and
    the questions of dimensions stands for a variable. The picture comes before the words, so that everything that is
    asked about it begins alike, and the engine's prompt cache serves it.

    A task that tags asks for all dimensions in one request (mode ``structured``; ``{dimensions}`` in ``user`` lists
    them), or for one after the other (``questions``): ``user_each`` then words the request, with ``{question}``,
    ``{choices}`` and ``{limit}``, how many of them may be chosen.

    ``xmp`` is what its answer becomes in an XMP sidecar: unless it is given, words become keywords and a text the
    description.
    """

    id: str = Field(pattern=_ID)
    version: Annotated[Text, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
    title: Text
    role: Annotated[str, Field(pattern=r"^[^\s:@]{1,64}$")]
    system: str = ""
    user: Text
    user_each: Text = "{question}\nAnswer with {limit} of: {choices}. Nothing else."
    parser: Parser = "text"
    mode: Mode = "structured"
    xmp: Xmp | None = None
    parameters: Mapping[str, bool | int | float | str | dict[str, Any] | list[Any]] = {}
    variables: Mapping[str, Annotated[Variable, BeforeValidator(_from_default)]] = {}
    dimensions: Mapping[str, Dimension] = {}
    image: Image = Image()
    validation: Validation = Validation()

    @field_validator("parameters")
    @classmethod
    def _of_the_model(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if wrong := sorted(_NOT_PARAMETERS & value.keys()):
            raise ValueError(f"holds {wrong[0]!r}, which the task itself decides; take it out")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.dimensions and self.parser != "tags":
            raise ValueError("parser: must be 'tags', because there are dimensions")
        if self.parser == "tags" and not self.dimensions:
            raise ValueError("dimensions: are missing; a task that tags needs some")
        if self.dimensions and self.mode == "structured" and "dimensions" not in placeholders(self.user):
            raise ValueError("user: must hold {dimensions}, where the dimensions and their words are listed")
        self._check_vocabulary()
        self._check_variables()
        return self

    def _check_vocabulary(self) -> None:
        owners: dict[str, str] = {}
        for name, dimension in self.dimensions.items():
            if not re.match(_ID, name):
                raise ValueError(f"dimensions: {name!r} is no name: small letters, digits, _ and - after a letter")
            for word in (*dimension.values, *dimension.synonyms):
                if word in owners:
                    raise ValueError(
                        f"dimensions.{name}: {word!r} is in dimensions.{owners[word]} too; a tag alone must tell what "
                        "it is of"
                    )
                owners[word] = name

    def _check_variables(self) -> None:
        for field, text in self._texts():
            for name in placeholders(text):
                if name not in self.variables and name not in self._own_words(field):
                    raise ValueError(
                        f"{field}: {{{name}}} names no variable{did_you_mean(name, self.variables)}; "
                        f"[variables] declares them"
                    )

    def _own_words(self, field: str) -> Collection[str]:
        return _WORDS_OF_TAGS.get(field, ()) if self.parser == "tags" else ()

    def _texts(self) -> Iterator[tuple[str, str]]:
        yield from (
            ("system", self.system),
            ("user", self.user),
            ("user_each", self.user_each if self.dimensions else ""),
        )
        yield from ((f"dimensions.{name}.question", each.question) for name, each in self.dimensions.items())

    @property
    def goes_to(self) -> Xmp:
        """What its answer becomes in a sidecar."""
        if self.xmp is not None:
            return self.xmp
        return "description" if self.parser == "text" else "nothing" if self.parser == "json" else "keywords"

    @property
    def wants_colours(self) -> bool:
        """Whether the picture's colours are to be measured for it."""
        return any(variable.source == "colours" for variable in self.variables.values())

    @property
    def tags(self) -> tuple[str, ...]:
        """Every tag that it can give."""
        return tuple(chain.from_iterable(dimension.values for dimension in self.dimensions.values()))


def placeholders(text: str) -> list[str]:
    """Return the names of variables in a text."""
    return _PLACEHOLDER.findall(text)


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a text with the variables' values in their places; what is filled in is not looked through again."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?``, or nothing where no known name is near."""
    hint = meant(name, known)
    return f"; {hint}" if hint else ""
