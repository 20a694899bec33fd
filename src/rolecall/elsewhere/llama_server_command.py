"""The command line of llama-server as fields of an entry; what has none stays an argument."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from itertools import pairwise

from rolecall.core.models import flag_value
from rolecall.elsewhere.command import (
    OWN_KEY,
    PLAIN_HTTP,
    Command,
    as_number,
    leave_out,
    note_quantization,
    put_count,
    whole_path,
)

HUB = (
    *("-hf", "-hfr", "--hf-repo", "-mu", "--model-url", "-dr", "--docker-repo"),
    *("--models-dir", "--models-preset"),
)
_OURS = {
    "--host": "",
    "--port": "",
    "--api-key": OWN_KEY,
    "--api-key-file": OWN_KEY,
    "--api-prefix": "rolecall asks its engines under /v1",
    "--ssl-key-file": PLAIN_HTTP,
    "--ssl-cert-file": PLAIN_HTTP,
}
_SAMPLING = {
    "--temp": "temperature",
    "--temperature": "temperature",
    "--top-k": "top_k",
    "--top-p": "top_p",
    "--min-p": "min_p",
    "--presence-penalty": "presence_penalty",
    "--frequency-penalty": "frequency_penalty",
    "--repeat-penalty": "repeat_penalty",
}
_PATHS = (
    *("-md", "--model-draft", "--lora", "--chat-template-file", "--grammar-file", "--json-schema-file"),
    *("--control-vector", "--slot-save-path", "--model-vocoder", "-mv"),
)
_PROJECTOR = ("-mm", "--mmproj")
_FIELDS = (
    *("-m", "--model", "-mm", "--mmproj", "-c", "--ctx-size", "-a", "--alias"),
    *("-n", "--predict", "--n-predict"),
)
_COUNTS = (
    *("-c", "--ctx-size", "-n", "--predict", "--n-predict", "-b", "--batch-size", "-ub", "--ubatch-size"),
    *("-np", "--parallel"),
)
_DOES = {
    **dict.fromkeys(("--embedding", "--embeddings"), "embedding"),
    **dict.fromkeys(("--rerank", "--reranking"), "rerank"),
}


def llama_model(words: Sequence[str]) -> str | None:
    """Return the model's file; None if the program would fetch it, or chooses among several."""
    if any(word.partition("=")[0] in HUB for word in words):
        return None
    return flag_value(words, "-m", "--model")


def note_letters(words: Sequence[str], command: Command) -> None:
    """Say of numbers with a letter, such as ``32k``, that llama-server reads the digits alone (by ``std::stoi``)."""
    for flag, value in pairwise(words):
        if flag in _COUNTS and (found := re.fullmatch(r"(\d+)[a-zA-Z]+", value)):
            text = f"llama-server takes no letters after a number and reads {flag} {value} as {found[1]}"
            command.note(value, "todo", f"{text}: write the number out and import it again")


def read_llama_server(words: list[str], folder: str, command: Command) -> None:
    """Fill the fields from what follows ``llama-server``."""
    command.fields["backend"] = "llama_cpp"
    note_letters(words, command)
    model = whole_path(flag_value(words, "-m", "--model") or "", folder, command)
    command.config["model_path"] = model
    note_quantization(model, command)
    extra: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in _DOES:
            command.capabilities.append(_DOES[word])
            continue
        takes = (*_OURS, *_SAMPLING, *_PATHS, *_FIELDS)
        value = next(rest, None) if word in takes else None
        if value is not None and word in _PROJECTOR:
            value = whole_path(value, folder, command)
        if value is None:
            extra.append(word)
        elif word in _PATHS:
            extra += [word, whole_path(value, folder, command)]
        elif word in _OURS:
            leave_out(word, value, _OURS[word], command)
        elif not _put(word, value, model, command):
            extra += [word, value]
    if extra:
        command.config["extra_args"] = extra


def _put(flag: str, value: str, model: str, command: Command) -> bool:
    """Put an option's value into its field; whether there is one for it."""
    defaults = command.fields.setdefault("generation_defaults", {})
    if flag in ("-m", "--model"):
        return True
    if flag in ("-c", "--ctx-size"):
        return value == "0" or put_count(command.fields, "context_length", value)
    if flag in ("-a", "--alias"):
        command.fields["served_model_id"] = value.split(",", maxsplit=1)[0]
        return True
    if flag in ("-n", "--predict", "--n-predict"):
        return value in ("-1", "-2") or put_count(defaults, "max_tokens", value)
    if flag in _PROJECTOR:
        return _projector(value, model, command)
    number = as_number(value)
    if number is not None:
        defaults[_SAMPLING[flag]] = number
    return number is not None


def _projector(path: str, model: str, command: Command) -> bool:
    """Put the projector beside its model; False where it lies elsewhere, which an entry cannot say."""
    home = posixpath.dirname(model).rstrip("/") + "/"
    if not path.startswith(home) or ".." in path.split("/"):
        command.capabilities += ["text", "vision"]
        command.note(
            path, "changed", "the projector lies outside of the model's folder, so it stays an argument of the engine"
        )
        return False
    command.config["mmproj_path"] = path.removeprefix(home)
    return True
