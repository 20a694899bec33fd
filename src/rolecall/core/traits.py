"""How a model and its engine want to be spoken to, beyond what its registry entry says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_THOUGHT = re.compile(r"<think>|<thinking>|<seed:think>|◁think▷|\[THINK\]|<\|START_THINKING\|>|<\|channel\|>analysis")
"""How models of several makers begin a thought: Qwen and DeepSeek, Seed, Kimi, Mistral, Cohere, gpt-oss."""
_DEVELOPER = re.compile(r"""["']developer["']""")
_PROMPTS = "add_generation_prompt"
_NO_THOUGHT = re.compile(r"<think>(?:\s|\\n)*</think>")
"""A thought that is closed as soon as it is opened: so templates say that there is to be none."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of one model.

    ``knows_developer`` is whether the role ``developer`` reaches it as one; where it does not, ``system`` does.
    ``thinks`` is whether it may reason before it answers. ``starts_in_thought`` is whether its template opens the
    thought already, so that an answer whose engine leaves it in the content begins without ``<think>``.
    """

    knows_developer: bool = False
    thinks: bool = False
    starts_in_thought: bool = False


NOTHING_KNOWN = Traits()


def traits_of(
    templates: Iterable[str], *, developer_role: bool | None = None, reasons: bool = False, passes: bool = False
) -> Traits:
    """Return what the chat templates of a model say, with the entry's own word before theirs.

    ``developer_role`` is the field of the entry, ``reasons`` whether it lists the capability. ``passes`` stands for an
    engine of which nothing is known but that it is spoken to in OpenAI's words: these then pass as they come.
    """
    texts = tuple(templates)
    knows = passes or any(map(_DEVELOPER.search, texts))
    return Traits(
        knows_developer=knows if developer_role is None else developer_role,
        thinks=reasons or any(map(_THOUGHT.search, texts)),
        starts_in_thought=any(map(_starts_in_thought, texts)),
    )


def _starts_in_thought(template: str) -> bool:
    """Look at what stands before the answer; one that may close the thought as well leaves it to each request."""
    _, found, before_answer = template.rpartition(_PROMPTS)
    rest = _NO_THOUGHT.sub("", before_answer)
    return bool(found) and "<think>" in rest and "</think>" not in rest
