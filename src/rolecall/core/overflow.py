"""What an engine says of a prompt that is longer than its context, as numbers.

llama.cpp has fields for them (``exceed_context_size_error``), vLLM has sentences, which changed often.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_READ = 4096
"""Characters of an engine's message that are searched.

What it says itself comes first. What it quotes is the request's, which may take long to search or look like another
error.
"""


@dataclass(frozen=True, slots=True)
class Overflow:
    """Tokens: of the context, of the prompt if the engine said so, and of the answer where it counted that too.

    ``is_floor``: the prompt has more tokens than that; the engine stopped counting.
    """

    context: int
    prompt: int | None = None
    answer: int = 0
    is_floor: bool = False


_CONTEXT = re.compile(r"(?:context length(?: is(?: only)?)? |maximum model length of |context size \()(\d{1,12})")
_PROMPT = (
    re.compile(r"\((\d{1,12}) in the messages"),
    re.compile(r"(\d{1,12}) input tokens"),
    re.compile(r"prompt \((?:total )?length (\d{1,12})\)"),
    re.compile(r"request \((\d{1,12}) tokens\)"),
    re.compile(r"resulted in (\d{1,12}) tokens"),
    re.compile(r"your (?:messages|input) needs? (\d{1,12})"),
)
_OTHER_LIMIT = "encoder prompt"
"""vLLM's, in the same sentence: one picture that is too large for the encoder, whatever the history is."""
_TOTAL = re.compile(r"you requested (\d{1,12}) tokens")
_ANSWER = (
    re.compile(r"(\d{1,12}) in the completion"),
    re.compile(r"requested (\d{1,12}) output tokens"),
    re.compile(r"is too large: (\d{1,12})"),
)


def read_overflow(said: Any) -> Overflow | None:
    """Return the numbers of an engine's error (its parsed JSON); None if it is about something else.

    llama.cpp: tools/server/server-context.cpp, ``n_prompt_tokens`` and ``n_ctx`` beside the message. vLLM:
    vllm/renderers/params.py ("You passed 5 input tokens and requested …"), before that
    vllm/entrypoints/openai/serving_engine.py ("However, you requested … tokens (… in the messages, …", "'max_tokens' …
    is too large"), and vllm/v1/engine for prompts with pictures ("The decoder prompt (length …) is longer").
    """
    error = said.get("error", said) if isinstance(said, Mapping) else None
    if not isinstance(error, Mapping):
        return None
    prompt, context = error.get("n_prompt_tokens"), error.get("n_ctx")
    if isinstance(prompt, int) and isinstance(context, int) and context > 0:
        return Overflow(context, prompt)
    message = error.get("message")
    return _read_sentence(message[:MAX_READ]) if isinstance(message, str) else None


def _read_sentence(message: str) -> Overflow | None:
    context = _number(message, _CONTEXT)
    if not context or _OTHER_LIMIT in message:
        return None
    answer = next(filter(None, (_number(message, pattern) for pattern in _ANSWER)), 0)
    prompt = next(filter(None, (_number(message, pattern) for pattern in _PROMPT)), None)
    if prompt is None:
        prompt = _number(message, _TOTAL)
    return Overflow(context, prompt, answer, is_floor="at least" in message)


def _number(message: str, pattern: re.Pattern[str]) -> int | None:
    found = pattern.search(message)
    return int(found[1]) if found else None
