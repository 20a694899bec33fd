"""What is kept of datasets, samples and jobs, and how tags come together. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from rolecall.errors import BadRequest

MAX_TAGS = 200
MAX_TAG_CHARACTERS = 100
MAX_NAME_CHARACTERS = 200

Status = Literal["idle", "running", "complete", "error"]

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A picture in a dataset's folder: its path below the folder, with slashes, its bytes and its time of change."""

    name: str
    size: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder of pictures. Times are seconds since the epoch, ``skipped`` are files that were left out by the scan."""

    id: int
    name: str
    folder: str
    created: float
    scanned: float
    samples: int = 0
    tagged: int = 0
    failed: int = 0
    missing: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Tags:
    """A sample's tags: ``shown`` are all in their order, ``own`` those of a person, ``given`` those of a model.

    Two that differ in their capitals alone are the same one; each stays as it was written first, or by a person.
    ``refused`` are tags of a model that a person took away; no model gives them again.
    """

    shown: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def merged(self, new: Iterable[str], *, instead: bool) -> Tags:
        """Return the tags with those that a model gives now, ``instead`` of the ones that it gave before."""
        settled = _alike((*self.refused, *self.own))
        fresh = _distinct(tag for tag in new if tag.casefold() not in settled)
        given = fresh if instead else _distinct((*self.given, *fresh))
        return self._ordered(replace(self, given=given))

    def edited(self, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Tags:
        """Return the tags as a person changes them; one that a model gave and the person adds is the person's."""
        gone = _alike(remove)
        own = _distinct((*_without(self.own, gone), *add))
        taken = tuple(tag for tag in self.given if tag.casefold() in gone)
        given = _without(self.given, gone | _alike(own))
        refused = _without(_distinct((*self.refused, *taken)), _alike(own))
        return self._ordered(Tags((), own, given, refused))

    def replaced(self, wanted: Iterable[str]) -> Tags:
        """Return the tags so that exactly the ones that a person wants are shown, all of them the person's."""
        return self.edited(wanted, self.shown)

    def _ordered(self, changed: Tags) -> Tags:
        """Return what changed with all tags in one list; those that stay keep their order."""
        every = {tag.casefold(): tag for tag in (*changed.given, *changed.own)}
        kept = (every[tag.casefold()] for tag in self.shown if tag.casefold() in every)
        return replace(changed, shown=_distinct((*kept, *changed.own, *changed.given)))


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture of a dataset; ``problem`` says why the last try to tag it failed, ``model`` who gave the tags."""

    id: int
    dataset_id: int
    file: FileFacts
    tags: Tags = Tags()
    task: str | None = None
    model: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a job is to do.

    ``task`` is ``id@version``, ``model`` the name or ``role:NAME`` that is asked instead of the task's role, ``again``
    whether samples that have tags of this task get new ones. ``key`` is the name of the API key that the job was
    started with, None where no key was needed.
    """

    task: str
    model: str | None = None
    again: bool = False
    key: str | None = None

    @property
    def task_id(self) -> str:
        """The task without its version."""
        return self.task.partition("@")[0]


@dataclass(frozen=True, slots=True)
class Job:
    """The tagging of a dataset, as it was asked for and as far as it is; ``failed`` are among the ``processed``."""

    id: int
    dataset_id: int
    wish: Wish
    status: Status
    total: int
    processed: int = 0
    failed: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one sample: the tags that ``model`` gave, or the ``problem`` for which there are none."""

    sample_id: int
    tags: tuple[str, ...] = ()
    model: str | None = None
    problem: str | None = None


def clean_tags(tags: Iterable[str], field: str = "tags") -> tuple[str, ...]:
    """Return what a person wrote as tags: trimmed, without repetitions; raises ``BadRequest`` for what is none."""
    found = _distinct(clean_text(tag, field, MAX_TAG_CHARACTERS) for tag in tags)
    if len(found) > MAX_TAGS:
        raise BadRequest(f"A sample may have {MAX_TAGS} tags; these are {len(found)}.", param=field)
    return found


def clean_text(text: str, field: str, most: int) -> str:
    """Return a text of one line without space around it; raises ``BadRequest`` if that is empty or too long."""
    words = " ".join(text.split())
    if not words or len(words) > most or _CONTROLS.search(words) or _has_surrogates(words):
        raise BadRequest(f"Each of {field} must be 1 to {most} characters of plain text.", param=field)
    return words


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _distinct(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags once each, as they are written first."""
    found: dict[str, str] = {}
    for tag in tags:
        found.setdefault(tag.casefold(), tag)
    return tuple(found.values())


def _alike(tags: Iterable[str]) -> frozenset[str]:
    """Return tags without their capitals, by which they are told apart."""
    return frozenset(tag.casefold() for tag in tags)


def _without(tags: Iterable[str], alike: frozenset[str]) -> tuple[str, ...]:
    return tuple(tag for tag in tags if tag.casefold() not in alike)
