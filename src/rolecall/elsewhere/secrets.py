"""What is secret in a configuration, and is therefore named and never copied."""

from __future__ import annotations

import re

_ENDINGS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS")
"""Variables whose names end so are secret, as for the environment of engines."""

_NO_KEY = {
    *("", "none", "null", "nil", "na", "empty", "any", "anything", "dummy", "fake", "fakekey", "nokey", "noneeded"),
    *("notneeded", "notrequired", "notused", "unused", "placeholder", "ollama", "lmstudio", "lm", "local", "test"),
    *("sknone", "skdummy", "skfake", "skempty", "sknokey", "sknokeyrequired", "sknotneeded", "x", "xx", "xxx", "xxxx"),
}


def is_secret(variable: str) -> bool:
    """Whether the value of an environment variable, or of a field, of that name is to be kept to oneself."""
    return variable.upper().replace("-", "_").endswith(_ENDINGS)


def is_no_key(key: str) -> bool:
    """Whether a key is written for a server that asks for none: clients insist on some text."""
    return re.sub(r"[\W_]", "", key.lower()) in _NO_KEY


def variable_for(name: str) -> str:
    """Return the name of an environment variable for the key of what goes by ``name``."""
    words = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    return f"{'_' if words[:1].isdigit() else ''}{words or 'IMPORTED'}_API_KEY"
