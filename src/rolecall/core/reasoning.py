"""What a model thought before it answered, in one form for all engines.

Engines give it as ``reasoning_content`` (llama.cpp, SGLang, older vLLM), as ``reasoning`` (vLLM, Ollama), or leave it
in the content (`core.thoughts`). Only chat answers are shaped: Responses and Messages have a form of their own for it,
which the engines make. Tool calls, finish reasons and usage pass as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rolecall.core.models import ReasoningField
from rolecall.core.thoughts import CLOSE, OPEN, Said, ThoughtSplitter, split_whole

_FIELDS = ("reasoning_content", "reasoning")
_CALLS = ("tool_calls", "function_call")
_ENVELOPE = ("id", "object", "created", "model", "system_fingerprint")


class ReasoningStream:
    """Shapes the chunks of one streamed chat answer; a ``core.sse.Rewriter``.

    Each chunk that comes makes one that goes, also where all that it said is held back or dropped: whoever waits sees
    that something happens. Log probabilities stay with the chunk they came with; with ``drop`` those of a thought go.

    ``is_steady`` says that the last chunk changed nothing in what becomes of the next.
    """

    def __init__(self, form: ReasoningField, *, starts_in_thought: bool = False) -> None:
        self._form = form
        self._starts_in_thought = starts_in_thought
        self._voices: dict[int, _Voice] = {}
        self._last: Mapping[str, Any] = {}
        self._states: list[tuple[bool, bool]] = []
        self.is_steady = False

    def rewrite(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk in the chosen form; the same object if it has that form already."""
        choices = message.get("choices")
        if not isinstance(choices, list) or not choices:
            return message
        self._last = message
        shaped = [self._choice(choice) for choice in choices]
        before, self._states = self._states, [voice.state for voice in self._voices.values()]
        self.is_steady = before == self._states and all(is_settled for is_settled, _ in before)
        return message if shaped == choices else {**message, "choices": shaped}

    def flush(self) -> dict[str, Any] | None:
        """Return a chunk with what was held back of choices that never finished; None if nothing was."""
        said = ((index, voice.speak({}, ends=True)) for index, voice in self._voices.items())
        choices = [{"index": index, "delta": delta, "finish_reason": None} for index, delta in said if delta]
        if not choices:
            return None
        return {name: self._last[name] for name in _ENVELOPE if name in self._last} | {"choices": choices}

    def _choice(self, choice: Any) -> Any:
        if not isinstance(choice, dict) or not isinstance(choice.get("delta"), dict | None):
            return choice
        index = choice.get("index")
        index = index if isinstance(index, int) else 0
        voice = self._voices.get(index)
        if voice is None:
            voice = self._voices[index] = _Voice(self._form, starts_in_thought=self._starts_in_thought)
        delta = choice.get("delta") or {}
        spoken = voice.speak(delta, ends=bool(choice.get("finish_reason")))
        if spoken == delta:
            return choice
        shaped = {**choice, "delta": spoken}
        return shaped | {"logprobs": None} if voice.was_silent and choice.get("logprobs") else shaped


class _Voice:
    """One choice of a stream. ``was_silent`` says that what was last spoken leaves out a thought."""

    def __init__(self, form: ReasoningField, *, starts_in_thought: bool) -> None:
        self._form = form
        self._splitter = ThoughtSplitter(starts_in_thought=starts_in_thought)
        self._is_thinking = False
        self.was_silent = False

    @property
    def state(self) -> tuple[bool, bool]:
        """What decides, beside a delta itself, what becomes of it: whether tags may come, whether a thought is open."""
        return self._splitter.is_settled, self._is_thinking

    def speak(self, delta: Mapping[str, Any], *, ends: bool) -> dict[str, Any]:
        """Return a delta in the chosen form; with ``ends`` nothing is held back any longer."""
        told = _told(delta)
        if not told and self._splitter.is_settled and not self._is_thinking:  # most chunks of an answer
            self.was_silent = False
            return dict(delta)
        said = self._splitter.leave() + Said(thought=told) if told else Said()
        content = delta.get("content")
        if isinstance(content, str):
            said += self._splitter.feed(content)
        calls = any(delta.get(name) for name in _CALLS)
        if ends or calls:
            said += self._splitter.end()
        self.was_silent = self._form == "drop" and bool(said.thought)
        if self._form == "think":
            said = Said(answer=self._inline(said, calls=calls))
        return _write(delta, said, self._form)

    def _inline(self, said: Said, *, calls: bool) -> str:
        text = ""
        if said.thought:
            text = said.thought if self._is_thinking else f"{OPEN}\n{said.thought}"
            self._is_thinking = True
        if self._is_thinking and (said.answer or calls):
            text += f"\n{CLOSE}\n\n"
            self._is_thinking = False
        return text + said.answer


def shape_answer(answer: dict[str, Any], form: ReasoningField, *, starts_in_thought: bool = False) -> dict[str, Any]:
    """Return a whole chat answer in the chosen form; the same object if it has that form already."""
    choices = answer.get("choices")
    if not isinstance(choices, list):
        return answer
    shaped = [_whole_choice(choice, form, starts_in_thought=starts_in_thought) for choice in choices]
    return answer if shaped == choices else {**answer, "choices": shaped}


def _whole_choice(choice: Any, form: ReasoningField, *, starts_in_thought: bool) -> Any:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return choice
    told, content = _told(message), message.get("content")
    text = content if isinstance(content, str) else ""
    was_cut = choice.get("finish_reason") == "length"
    said = Said(told, text) if told else split_whole(text, starts_in_thought=starts_in_thought, was_cut=was_cut)
    if not said.thought and said.answer == text:
        return choice
    calls = any(message.get(name) for name in _CALLS)
    thought = said.thought
    if form == "think":
        ends = f"\n{CLOSE}\n\n" if said.answer or calls else ""
        said = Said(answer=f"{OPEN}\n{thought}{ends}{said.answer}" if thought else said.answer)
    written = _write(message, said, form)
    if isinstance(content, str):  # a whole message has a content, if an empty one
        written.setdefault("content", None if calls else "")
    shaped = {**choice, "message": written}
    return shaped | {"logprobs": None} if form == "drop" and thought and choice.get("logprobs") else shaped


def _told(said: Mapping[str, Any]) -> str:
    """Return the thought that an engine gives in a field; some versions of vLLM gave it in both."""
    told = (said.get(name) for name in _FIELDS)
    return next((text for text in told if isinstance(text, str) and text), "")


def _write(into: Mapping[str, Any], said: Said, form: ReasoningField) -> dict[str, Any]:
    """Return a delta or message with its thought and its content replaced; null and empty ones stay what they are."""
    written = {name: value for name, value in into.items() if name not in (*_FIELDS, "content") or not value}
    if isinstance(into.get("content"), list):  # parts: the engine tells them apart by itself
        written["content"] = into["content"]
    if said.thought and form in _FIELDS:
        written[form] = said.thought
    if said.answer:
        written["content"] = said.answer
    return written
