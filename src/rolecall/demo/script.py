"""What a demo model says: chains of tokens, and the chat template that picks one of them.

It all hangs on one idea: the *last token of the prompt decides the answer*. The template looks at the conversation
(an image in the last message, a tool on offer, a code word) and ends the prompt with one of some marker tokens; each
marker starts a chain in which every token has exactly one successor. `weights` writes the chains into a model.

Asked about an image by one of the shipped tasks, it answers with keywords, and with tags as real models say them: with
capitals and marks, synonyms, and a word that is not in the vocabulary. It is told by what the task's prompt holds.
One thing it really sees: whether a picture is brighter than a middle grey. There a chain forks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNKNOWN, BEGIN, STOP, MESSAGE, END = "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"
SAY, SEE, TOOL, LOOP, THINK = "<|say|>", "<|see|>", "<|tool|>", "<|loop|>", "<|think|>"

SPACE = "\u2581"
"""How SentencePiece writes a space."""

SHORTEST_PIECE = 3
"""Shorter pieces would be merged out of ordinary prompts, in which one byte is to be one token."""

LOOP_WORDS = 100

WEATHER_CALL = (
    "<tool_call>",
    '\n{"name": "get_weather"',
    ', "arguments": {"city": "',
    "Paris",
    '"}}\n',
    "</tool_call>",
)

TAGS = (
    '{"lighting": "bright", "clarity": "sharp", "setting": "outdoor", "weather": ["sunny", "day"], '
    '"density": "moderate"}'
)


@dataclass(frozen=True)
class Script:
    """The sentences of a demo model, each of three characters or more."""

    answer: str = "Hello! I am rolecall's demo model: a few MB of scripted weights. Put a real model in my place."
    caption: str = "A picture. I am a demo model and cannot really see it; put a real vision model in my place."
    sights: tuple[tuple[str, str], ...] = (
        ("- lighting:", TAGS),
        ("keywords", "picture, demo answer, scripted weights, placeholder, no real keywords"),
        ("dark, dim, bright, normal", "Brightly lit."),
        ("blurry, sharp, noisy", "**Sharp**"),
        ("indoor, outdoor", "It was taken outdoors."),
        ("sunny, cloudy, rainy", "Sunny, daytime"),
        ("empty, sparse, moderate", "Bustling"),
    )
    """What is said of an image instead of the caption, by words in the last message; of several the first."""
    in_the_dark: tuple[tuple[str, str], ...] = ((' "bright",', ' "dim",'), ("Brightly", "Dimly"))
    """Pieces of sights, and what is said in the place of each where the image is darker than a middle grey."""
    thought: str = "Whatever was asked, I have one sentence to answer with."
    always_thinks: bool = False
    """Reason before every plain answer, not only when the last message holds ``THINK``."""


@dataclass(frozen=True)
class Chain:
    """``start`` is followed by the first piece, each piece by the next one, the last piece by ``then``."""

    start: str
    pieces: tuple[str, ...]
    then: str = END


@dataclass(frozen=True)
class Fork:
    """After ``state`` comes ``bright`` or ``dark``, as the image is; after both comes ``then``."""

    state: str
    bright: str
    dark: str
    then: str


def forks(script: Script) -> tuple[Fork, ...]:
    """The forks of a script; raises ValueError for one at a piece that there is not."""
    found = []
    for bright, dark in script.in_the_dark:
        piece = bright.replace(" ", SPACE)
        chain = next((chain for chain in chains(script) if piece in chain.pieces), None)
        if chain is None:
            raise ValueError(f"a demo model never says {bright!r} as one piece")
        words = (chain.start, *chain.pieces, chain.then)
        at = words.index(piece)
        found.append(Fork(words[at - 1], piece, dark.replace(" ", SPACE), words[at + 1]))
    return tuple(found)


def chains(script: Script) -> tuple[Chain, ...]:
    """The chains of a script, the plain answer first. No piece occurs twice in all of them.

    Raises ValueError for a sentence that cannot be said: shorter than a piece, or part of another one.
    """
    taken: set[str] = set()
    answer = _pieces(script.answer, taken)
    caption = _pieces(script.caption, taken)
    thought = _pieces(script.thought, taken)
    call = tuple(piece.replace(" ", SPACE) for piece in WEATHER_CALL)
    sights = [_pieces(sentence, taken) for _, sentence in script.sights]
    loop = tuple(f"{SPACE}w{number:02d}" for number in range(LOOP_WORDS))
    return (
        Chain(SAY, answer),
        Chain(SEE, caption),
        Chain(THINK, ("<think>", *thought, "</think>\n\n"), then=answer[0]),
        Chain(TOOL, call),
        Chain(LOOP, loop, then=loop[0]),
        *(Chain(sight(number), pieces) for number, pieces in enumerate(sights)),
    )


def sight(number: int) -> str:
    """Return the marker of one of a script's sights."""
    return f"<|see-{number}|>"


def _pieces(text: str, taken: set[str]) -> tuple[str, ...]:
    """Cut `text` into words; one that is short, or a piece already, is joined to the next one.

    The model looks at one token only, so a token that occurred twice would need two successors.
    """
    pieces: list[str] = []
    piece = ""
    for word in re.findall(r"\s*\S+", text):
        piece += word.replace(" ", SPACE)
        if len(piece) >= SHORTEST_PIECE and piece not in taken:
            pieces.append(piece)
            taken.add(piece)
            piece = ""
    if piece and pieces:
        piece = pieces.pop() + piece
        pieces.append(piece)
        taken.add(piece)
    elif piece or not pieces:
        raise ValueError(f"a demo model cannot say {text!r}: too short, or part of another sentence")
    return tuple(pieces)


def chat_template(script: Script) -> str:
    """The chat template of a script, in Jinja."""
    sights = "".join(_SIGHT % (words, sight(number)) for number, (words, _) in enumerate(script.sights))
    return _TEMPLATE.replace("DEFAULT", THINK if script.always_thinks else SAY).replace("    SIGHTS\n", sights)


_SIGHT = """\
    {%%- elif '<__media' in last and '%s' in last -%%}
        %s
"""


# llama.cpp learns how a model marks reasoning and tool calls by rendering messages that have them: hence the parts
# about past ones. Of an image it leaves a text that begins with `<__media` in the content.
_TEMPLATE = r"""
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- elif message['content'] -%}
        {%- for part in message['content'] if part['type'] == 'text' -%}
            {{- part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
    {%- if message['reasoning_content'] -%}
        {{- '<think>' + message['reasoning_content'] + '</think>\n\n' -}}
    {%- endif -%}
    {%- for call in message['tool_calls'] or [] -%}
        {{- '<tool_call>\n{"name": "' + call['function']['name'] + '", "arguments": ' -}}
        {{- call['function']['arguments'] | tojson -}}
        {{- '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- set offered = tools | tojson if tools else '' -%}
{%- if tools -%}
    {{- '<|im_start|>tools\n' + offered + '<|im_end|>\n' -}}
{%- endif -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- set last = messages[-1]['content'] | string -%}
    {%- if messages[-1]['role'] == 'user' and '"get_weather"' in offered and '"city"' in offered -%}
        <|tool|>
    {%- elif 'LOOP' in last -%}
        <|loop|>
    SIGHTS
    {%- elif '<__media' in last -%}
        <|see|>
    {%- elif 'THINK' in last -%}
        <|think|>
    {%- else -%}
        DEFAULT
    {%- endif -%}
{%- endif -%}
"""
