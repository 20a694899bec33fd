"""Does an engine still answer as it did before it slept?

vLLM can wake with weights that are not its own, and answers ``!!!!!!!!`` with status 200 (vllm-project/vllm#29341,
#54235). So one prompt is asked twice before the first sleep, and once after each waking.

An engine that gave the same answer twice must give it again. One that did not (kernels whose sums depend on the order
of additions, say) is judged more leniently: the answer must be sane, and at least 0.8 times as like one of the recorded
ones as these are like each other. Embeddings are compared by the cosine, which may lie 0.01 below that of the recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import starmap
from operator import mul
from typing import Any, Literal

from rolecall.runtime.engine_calls import CallFailed, EngineCalls

Kind = Literal["chat", "completion", "embedding"]

PROMPT = "Count from one to ten: one, two, three,"
_SAMPLING = {"temperature": 0, "seed": 1, "max_tokens": 16}
_PATHS: dict[Kind, str] = {"chat": "/chat/completions", "completion": "/completions", "embedding": "/embeddings"}
_LENIENCY = 0.8
_COSINE_SLACK = 0.01
_REPETITIONS = 3


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its text with all reasoning, or its vector; why it ended."""

    text: str = ""
    vector: tuple[float, ...] = ()
    finish_reason: str | None = None


class Canary:
    """Asks one engine the prompt; ``kind`` is what its model can do, ``served_id`` how the engine calls it."""

    def __init__(self, calls: EngineCalls, served_id: str, kind: Kind, *, within_s: float) -> None:
        self._calls = calls
        self._model = {"model": served_id} if served_id else {}
        self._kind = kind
        self._within_s = within_s
        self._recorded: tuple[Said, ...] = ()

    async def record(self) -> None:
        """Ask twice and keep the answers, unless that was done before; raises ``CallFailed``."""
        if not self._recorded:
            self._recorded = (await self._ask_first(), await self._ask())

    async def check(self) -> str | None:
        """Ask again and return what is wrong with the answer, in words; raises ``CallFailed`` if there is none."""
        return judge(self._recorded, await self._ask())

    async def _ask_first(self) -> Said:
        try:
            return await self._ask()
        except CallFailed as error:
            if self._kind != "chat" or error.status is None or not 400 <= error.status < 500:
                raise
            self._kind = "completion"  # a base model without a chat template
            return await self._ask()

    async def _ask(self) -> Said:
        body: dict[str, Any] = {**self._model}
        if self._kind == "embedding":
            body |= {"input": PROMPT, "encoding_format": "float"}
        elif self._kind == "chat":
            body |= {"messages": [{"role": "user", "content": PROMPT}], **_SAMPLING}
        else:
            body |= {"prompt": PROMPT, **_SAMPLING}
        return read(await self._calls.post(_PATHS[self._kind], body, self._within_s))


def read(answer: Any) -> Said:
    """Return what an answer of one of the three kinds says; raises ``CallFailed`` for one that is none of them."""
    try:
        if "data" in answer:
            return Said(vector=tuple(float(number) for number in answer["data"][0]["embedding"]))
        choice = answer["choices"][0]
        return Said(_text(choice), finish_reason=choice.get("finish_reason"))
    except (LookupError, TypeError, ValueError, AttributeError):
        raise CallFailed(f"an answer of no known shape: {str(answer)[:200]}") from None


def _text(choice: Mapping[str, Any]) -> str:
    if "message" not in choice:
        return choice["text"] or ""
    fields = (choice["message"].get(name) for name in ("reasoning_content", "reasoning", "content"))
    return "".join(field for field in fields if isinstance(field, str))


def judge(recorded: Sequence[Said], said: Said) -> str | None:
    """Return what is wrong with an answer beside those recorded, in words; None if nothing is."""
    if any(each.vector for each in recorded):
        return _judge_vector([each.vector for each in recorded], said.vector)
    texts = [each.text for each in recorded]
    problem = f"{said.text!r} instead of {texts[0]!r}"
    if said.finish_reason not in {"stop", "length", *(each.finish_reason for each in recorded)}:
        return f"it ended with {said.finish_reason!r}"
    if len(set(texts)) == 1:
        return None if said.text == texts[0] else problem
    likeness = max(_likeness(text, said.text) for text in texts)
    is_sane = said.text.strip() and not any(sign(said.text) and not any(map(sign, texts)) for sign in _SIGNS)
    return None if is_sane and likeness >= _LENIENCY * _likeness(texts[0], texts[-1]) else problem


def _is_garbled(text: str) -> bool:
    # One may be a character that the token limit has cut.
    return text.count("\N{REPLACEMENT CHARACTER}") > 1


def _is_repetition(text: str) -> bool:
    """Whether it is one piece over and over, whatever the piece, the last time perhaps in part."""
    size = len(text)
    return any(text == (text[:piece] * (size // piece + 1))[:size] for piece in range(1, size // _REPETITIONS + 1))


_SIGNS = (_is_garbled, _is_repetition)


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _judge_vector(recorded: Sequence[tuple[float, ...]], said: tuple[float, ...]) -> str | None:
    expected = min(1.0, cosine(recorded[0], recorded[-1])) - _COSINE_SLACK
    found = cosine(recorded[0], said)
    # The way round in which a vector that is no number is wrong.
    return None if found >= expected else f"an embedding whose cosine to the one before is {found:.3f}"


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of two vectors; NaN if they differ in length, one is zero or holds what is no number."""
    norm = math.hypot(*one) * math.hypot(*other)
    if len(one) != len(other) or not norm or not math.isfinite(norm):
        return math.nan
    return math.fsum(starmap(mul, zip(one, other, strict=True))) / norm
