"""Numbers and lists of a request, checked before an engine sees them.

Engines have crashed of numbers that no client means: llama-server of a negative ``n_discard`` (CVE-2026-21869), and of
a huge one. Others cost everybody the machine: ``repeat_last_n`` of 2³¹ - 1 with a penalty takes 8 GB and 18 s in
llama.cpp, ``dry_penalty_last_n`` more than 11 GB (measured with xllamacpp 2026.10, on a model of 1 MB); a negative
``top_n`` of a rerank, or token of ``/detokenize``, is a 500 there, which clients send again. So a field that an engine
counts with has a range here, the widest in which one of them makes sense of it: llama.cpp's
``tools/server/server-schema.cpp``, vLLM's ``sampling_params.py``, OpenAI's reference. Which of these numbers an engine
takes in the end it says itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rolecall.core.endpoints import CHAT, DETOKENIZE, EMBEDDINGS, RERANK
from rolecall.core.json_text import as_json
from rolecall.errors import BadRequest

_INT32 = 2**31 - 1
_FLOAT32 = 3.4e38
_WINDOW = 2**20
"""Tokens to look back at. llama.cpp takes memory for all of them at once, however long the conversation is."""
_CHOICES = 16384
"""vLLM's ``VLLM_MAX_N_SEQUENCES``."""


class Range(NamedTuple):
    """The numbers that a field takes, both ends included; whole ones alone, unless it is said otherwise."""

    least: float
    most: float
    whole: bool = True

    def takes(self, value: Any) -> bool:
        """Whether ``value`` is such a number; 5.0 is whole, true is none."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.least <= value <= self.most and (not self.whole or value == int(value))

    def __str__(self) -> str:
        """Return the range in words."""
        if self.whole:
            return f"a whole number from {int(self.least)} to {int(self.most)}"
        return f"a number from {self.least:g} to {self.most:g}"


_COUNT = Range(0, _INT32)
_COUNT_OR_ALL = Range(-1, _INT32)
_LOOK_BACK = Range(-1, _WINDOW)
_PROBABILITY = Range(0, 1, whole=False)
_ANY = Range(-_FLOAT32, _FLOAT32, whole=False)
_NOT_NEGATIVE = Range(0, _FLOAT32, whole=False)

_RANGES = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"), _COUNT_OR_ALL),
    **dict.fromkeys(("n", "n_cmpl", "best_of"), Range(1, _CHOICES)),
    **dict.fromkeys(("min_tokens", "n_indent", "n_cache_reuse", "min_keep", "dry_allowed_length"), _COUNT),
    **dict.fromkeys(("n_keep", "id_slot", "top_k", "sse_ping_interval", "truncate_prompt_tokens"), _COUNT_OR_ALL),
    **dict.fromkeys(("n_probs", "logprobs", "top_logprobs", "prompt_logprobs"), _COUNT_OR_ALL),
    **dict.fromkeys(("reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget"), _COUNT_OR_ALL),
    **dict.fromkeys(("repeat_last_n", "dry_penalty_last_n"), _LOOK_BACK),
    **dict.fromkeys(("t_max_prompt_ms", "t_max_predict_ms"), Range(-1, 2**63 - 1)),
    **dict.fromkeys(("top_p", "min_p", "xtc_probability", "xtc_threshold"), _PROBABILITY),
    **dict.fromkeys(("temperature", "repeat_penalty", "repetition_penalty"), _NOT_NEGATIVE),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "length_penalty", "typical_p", "top_n_sigma"), _ANY),
    **dict.fromkeys(("dynatemp_range", "dynatemp_exponent", "dry_multiplier", "dry_base"), _ANY),
    **dict.fromkeys(("mirostat_tau", "mirostat_eta", "adaptive_target", "adaptive_decay"), _ANY),
    "n_discard": Range(0, _WINDOW),
    "mirostat": Range(0, 2),
    "seed": Range(-(2**63), 2**64 - 1),
    "stream_interval": Range(1, _INT32),
}
NUMBERS = frozenset(_RANGES)
"""The fields that ``check_ranges`` lets hold a number and nothing else, but for ``logprobs``, which may be a truth."""
_OF_ENDPOINTS = {RERANK: {"top_n": _COUNT}, EMBEDDINGS: {"dimensions": Range(1, _INT32)}}
_TOKEN = Range(0, _INT32)
_LISTS = frozenset({"messages", "input", "prompt", "documents"})


def check_ranges(body: Mapping[str, Any], endpoint: str) -> None:
    """Raise ``BadRequest`` naming the field and its range for a number that no engine can make sense of.

    Null counts as not given. In chats ``logprobs`` is true or false, which is left to the engine.
    """
    ranges = _RANGES | _OF_ENDPOINTS[endpoint] if endpoint in _OF_ENDPOINTS else _RANGES
    for name in filter(ranges.__contains__, body):
        value = body[name]
        if value is None:
            continue
        if not (name == "logprobs" and isinstance(value, bool) and endpoint == CHAT):
            _check(name, value, ranges[name])
    thinking = body.get("thinking")
    if isinstance(thinking, dict) and thinking.get("budget_tokens") is not None:
        _check("thinking.budget_tokens", thinking["budget_tokens"], _COUNT_OR_ALL)
    if endpoint == DETOKENIZE and isinstance(tokens := body.get("tokens"), list):
        _check_tokens(tokens)


def check_counts(body: Mapping[str, Any], limit: int) -> None:
    """Raise ``BadRequest`` for more than ``limit`` messages, inputs, prompts or documents; tokens are no entries."""
    for name in filter(_LISTS.__contains__, body):
        entries = body[name]
        if isinstance(entries, list) and len(entries) > limit and not _are_whole_numbers(entries):
            raise BadRequest(
                f"The field {name!r} has {len(entries)} entries; the limit is {limit} (setting max_messages).",
                param=name,
            )


def _check_tokens(tokens: list[Any]) -> None:
    """Check a list that may be a million long, without a step in Python for each one that is right."""
    if tokens and _are_whole_numbers(tokens) and min(tokens) >= _TOKEN.least and max(tokens) <= _TOKEN.most:
        return
    index = next((index for index, token in enumerate(tokens) if not _TOKEN.takes(token)), None)
    if index is not None:
        _check(f"tokens[{index}]", tokens[index], _TOKEN)


def _are_whole_numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int}


def _check(name: str, value: Any, allowed: Range) -> None:
    if not allowed.takes(value):
        words = f"The field {name!r} must be {allowed}"
        error = BadRequest(f"{words}, not {as_json(value)}.", param=name)
        error.discreet = f"{words}."
        raise error
