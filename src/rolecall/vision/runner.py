"""One task for one picture: the questions, their answers read, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread

from rolecall.vision import tagging
from rolecall.vision.answers import Answer, Discarded, Value, read_answer
from rolecall.vision.ask import Asker, AskError, Question, Reply, confidence
from rolecall.vision.colours import measure
from rolecall.vision.photos import Photo
from rolecall.vision.task import Task, filled
from rolecall.vision.tasks import variables_of

_NOT_BY_NAME = frozenset({403, 404})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task came to for one picture.

    ``value`` is a text, a list of keywords, JSON, or for tags the values by dimension; None, with the reason in
    ``problem``, if nothing of the answer can be used. ``tags`` are its words: the tags of all dimensions, or the
    keywords. ``discarded`` is what was said and not used, ``missing`` are the dimensions without an answer.
    ``text`` is the answer as it came. ``usage`` and ``cached_tokens`` are sums over ``requests``; ``ms`` is the time in
    all. ``model`` served last.
    """

    task_id: str
    version: str
    value: Value | None
    tags: tuple[str, ...]
    discarded: tuple[Discarded, ...]
    missing: tuple[str, ...]
    problem: str | None
    text: str
    model: str
    usage: Mapping[str, int]
    cached_tokens: int | None
    confidence: float | None
    requests: int
    ms: float
    request_ids: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


async def run_task(  # noqa: PLR0913 - the last two by name only
    asker: Asker,
    task: Task,
    photo: Photo,
    variables: Mapping[str, str] | None = None,
    *,
    model: str | None = None,
    wants_confidence: bool = False,
) -> Outcome:
    """Run a task on a picture. ``model``, a name or ``role:NAME``, takes the place of the task's role.

    Raises ``WrongVariable``, and ``AskError`` for a question that got no answer. Tags that are asked for one by one
    all come from the model that answered first.
    """
    started_at = time.monotonic()
    values = await _values(task, photo, variables or {})
    run = _Run(asker, task, photo, values, model or f"role:{task.role}", wants_confidence)
    if task.parser == "tags" and task.mode == "questions":
        answer = await run.questions()
    elif task.parser == "tags":
        listed = {**values, "dimensions": tagging.listed(task)}
        reply = await run.ask(filled(task.user, listed), response_format=tagging.response_format(task))
        answer = tagging.read_structured(task, reply.text)
    else:
        answer = read_answer(task, (await run.ask(filled(task.user, values))).text)
    return run.outcome(answer, round((time.monotonic() - started_at) * 1000, 3))


async def _values(task: Task, photo: Photo, given: Mapping[str, str]) -> dict[str, str]:
    values = variables_of(task, given)
    measured = [name for name, each in task.variables.items() if each.source == "colours" and name not in values]
    if measured:
        colours = await anyio.to_thread.run_sync(measure, photo)
        values |= dict.fromkeys(measured, colours.in_words())
    return values


@dataclass
class _Run:
    """The questions of one task about one picture."""

    asker: Asker
    task: Task
    photo: Photo
    values: Mapping[str, str]
    model: str
    wants_confidence: bool
    replies: list[Reply] = field(default_factory=list)

    async def ask(self, words: str, *, named: str | None = None, **fields: Any) -> Reply:
        reply = await self.asker.ask(self._question(named or self.model, words, fields))
        self.replies.append(reply)
        return reply

    async def questions(self) -> Answer:
        """Ask for each dimension; the picture and all before the question is the same, so the engine has it cached."""
        reads = {}
        for name, dimension in self.task.dimensions.items():
            own = {
                **self.values,
                "question": filled(dimension.question, self.values),
                "choices": ", ".join(dimension.choices),
                "limit": tagging.limit(dimension),
            }
            reply = await self._ask_same(filled(self.task.user_each, own))
            reads[name] = tagging.read_one(self.task, name, reply.text)
        return tagging.joined(self.task, reads)

    async def _ask_same(self, words: str) -> Reply:
        """Ask the model that answered before; a key that may not name models asks by the role again."""
        try:
            return await self.ask(words, named=self.replies[-1].model if self.replies else None)
        except AskError as error:
            if not self.replies or error.status not in _NOT_BY_NAME:
                raise
            return await self.ask(words)

    def _question(self, model: str, words: str, fields: Mapping[str, Any]) -> Question:
        task = self.task
        return Question(
            model=model,
            messages=messages(filled(task.system, self.values), self.photo, words),
            parameters={**task.parameters, **fields},
            prompt_id=task.id,
            prompt_version=task.version,
            wants_logprobs=self.wants_confidence,
        )

    def outcome(self, answer: Answer, ms: float) -> Outcome:
        replies, task = self.replies, self.task
        cached = [reply.cached_tokens for reply in replies if reply.cached_tokens is not None]
        logprobs = tuple(each for reply in replies for each in reply.logprobs or ())
        problem = answer.problem
        if problem is not None and replies[-1].is_cut:
            problem += "; it was cut off at max_tokens"
        return Outcome(
            task_id=task.id,
            version=task.version,
            value=answer.value,
            tags=answer.tags,
            discarded=answer.discarded,
            missing=answer.missing,
            problem=problem,
            text="\n".join(reply.text for reply in replies),
            model=replies[-1].model,
            usage=_sum(replies),
            cached_tokens=sum(cached) if cached else None,
            confidence=confidence(logprobs),
            requests=len(replies),
            ms=ms,
            request_ids=tuple(reply.request_id for reply in replies),
            headers=replies[-1].headers,
        )


def messages(system: str, photo: Photo, words: str) -> list[dict[str, Any]]:
    """Return a chat about a picture, which comes before the words: what is the same stands first."""
    parts = [
        {"type": "image_url", "image_url": {"url": photo.data_url}},
        {"type": "text", "text": words.strip()},
    ]
    start = [{"role": "system", "content": system.strip()}] if system.strip() else []
    return [*start, {"role": "user", "content": parts}]


def _sum(replies: list[Reply]) -> dict[str, int]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    sums: dict[str, int] = {}
    for name in names:
        found = [reply.usage[name] for reply in replies if isinstance(reply.usage.get(name), int)]
        if found:
            sums[name] = sum(found)
    return sums
