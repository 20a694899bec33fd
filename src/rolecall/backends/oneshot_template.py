"""A conversation in the form in which llama.cpp's one-shot programs take it whole.

``llama-completion`` and ``llama-mtmd-cli`` take one user message and a chat template. The texts of all messages are
therefore written into one file, as that message, with a separator before each; in front of the model's own template
stand lines that cut them apart again and give them back their roles. So system messages, earlier turns and answers are
laid out as the model was trained for, of any length, and no word of a client stands on a command line.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rolecall.backends.oneshot_request import MEDIA_MARKER, UNMARKED

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For models that bring no template, as in llama.cpp."""

_KEY = "tokenizer.chat_template"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of GGUF's plain types, by number."""
_STRING, _ARRAY = 8, 9
_MAX_STRING = 64 * 2**20
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_KEYWORDS = re.compile(
    "and|as|block|break|call|continue|del|do|elif|else|extends|false|filter|for|from|generation|if|import|in|include|is|"
    "macro|none|not|or|pluralize|raw|recursive|set|trans|true|with|without|"
    "end(?:block|call|filter|for|generation|if|macro|raw|set|trans|with)",
    re.IGNORECASE,
)
"""Jinja's words, in any case; a template that sets one of them is broken for one or another build of llama.cpp."""
_OWN_NAMES = frozenset(("messages", "namespace", "rolecall", "said", "loop"))
"""What the lines in front of a template work with."""
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})


def layout(template: str, roles: Sequence[str], variables: Mapping[str, Any], separator: str) -> str:
    """Return a template that reads the conversation which `join` made of texts, whose ``roles`` these are.

    ``variables`` are set beside the messages. Raises ``ValueError`` for one whose name is none, is a word of Jinja or
    is taken here. llama.cpp tries out a template with messages of other forms; what it finds then does not matter here.
    """
    for name in variables:
        if not _NAME.fullmatch(name) or _KEYWORDS.fullmatch(name) or name in _OWN_NAMES:
            raise ValueError(f"{name!r} is no name of a template's variable")
    content = '[{"type": "text", "text": text}]' if _takes_parts_only(template) else "text"
    words = [f"{{% set {name} = {literal(value)} %}}" for name, value in variables.items()]
    words += [
        f"{{% set rolecall = namespace(roles={literal(roles)}, turns=[]) %}}",
        "{% set said = messages[0]['content'] %}",
        "{% if said is not string %}{% set said = said[0]['text'] %}{% endif %}",
        f"{{% for text in said.split({literal(separator)})[1:] %}}",
        "{% set rolecall.turns = rolecall.turns + [{'role': rolecall.roles[loop.index0], 'content': "
        + content
        + "}] %}",
        "{% endfor %}{% set messages = rolecall.turns %}",
    ]
    return "".join(words) + template


def join(texts: Iterable[str], separator: str) -> str:
    """Return the conversation as one text; the programs take off one line break at its end."""
    return "".join(separator + text.replace(separator, "").replace("\0", "") for text in texts) + "\n"


def literal(value: Any) -> str:
    """Return a JSON value as Jinja writes it; nothing in a string can end it, or stand for an image."""
    if isinstance(value, str):
        text = value.replace("\0", "").replace(MEDIA_MARKER, UNMARKED)
        return f'"{text.translate(_ESCAPES)}"'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(str(name))}: {literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(literal, value)) + "]"
    return repr(value)


def _takes_parts_only(template: str) -> bool:
    """Whether a template reads ``content`` as a list of parts and never as a string."""
    return re.search(r"\[['\"]type['\"]\]|\.type\b", template) is not None and "is string" not in template


# runtime/gguf_header.py reads such headers too, for sizes; backends import nothing of runtime, and core opens no files.
def template_of(model: Path) -> str:
    """Return the chat template that a GGUF file brings, else ChatML.

    Raises ``OSError`` for a file that cannot be read and ``ValueError`` for one that is no GGUF.
    """
    with model.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{model} is no GGUF file")
        try:
            version, _, entries = struct.unpack("<IQQ", file.read(20))
            if not 2 <= version <= 3:
                raise ValueError(f"{model} is a GGUF file of version {version}")
            for _ in range(entries):
                name, kind = _string(file), _number(file, 4)
                if name == _KEY and kind == _STRING:
                    return _string(file)
                _skip(file, kind)
        except (struct.error, KeyError, UnicodeDecodeError):
            raise ValueError(f"{model} is a GGUF file that is cut off or broken") from None
    return CHATML


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        file.seek(_number(file, 8), 1)
    elif kind == _ARRAY:
        item, count = _number(file, 4), _number(file, 8)
        if item in _SIZES:
            file.seek(_SIZES[item] * count, 1)
        else:
            for _ in range(count):
                _skip(file, item)
    else:
        file.seek(_SIZES[kind], 1)


def _number(file: BinaryIO, size: int) -> int:
    data = file.read(size)
    if len(data) < size:
        raise struct.error
    return int.from_bytes(data, "little")


def _string(file: BinaryIO) -> str:
    size = _number(file, 8)
    data = file.read(size) if size <= _MAX_STRING else b""
    if len(data) < size:
        raise struct.error
    return data.decode()
