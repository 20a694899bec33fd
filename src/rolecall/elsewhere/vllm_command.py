"""The command line of vLLM as fields of an entry; what has none stays an argument."""

from __future__ import annotations

from collections.abc import Sequence

from rolecall.core.models import dashed, flag_value
from rolecall.elsewhere.command import OWN_KEY, PLAIN_HTTP, Command, leave_out, note_quantization, put_count, whole_path

_OURS = {
    "--host": "",
    "--port": "",
    "--uds": "",
    "--api-key": OWN_KEY,
    "--ssl-keyfile": PLAIN_HTTP,
    "--ssl-certfile": PLAIN_HTTP,
}
_SHOWS = {"--enable-auto-tool-choice": "tools", "--reasoning-parser": "reasoning"}
_FIELDS = ("--model", "--max-model-len", "--served-model-name", "--max-num-seqs")
_THOUSANDS = {"k": 1000, "K": 1024}
"""How vLLM reads ``32k`` and ``32K``; llama-server takes no such letters."""
_EMBEDS = {"embed": "embedding", "embedding": "embedding", "score": "rerank", "rerank": "rerank"}


def vllm_model(words: Sequence[str]) -> str | None:
    first = words[2] if len(words) > 2 and not words[2].startswith("-") else None
    return first or flag_value([dashed(word) for word in words], "--model")


def read_vllm(words: list[str], folder: str, command: Command) -> None:
    """Fill the fields from what follows ``vllm serve``."""
    command.fields["backend"] = "vllm"
    words = [dashed(word) for word in words]
    model = words.pop(0) if words and not words[0].startswith("-") else flag_value(words, "--model") or ""
    command.config["model_path"] = whole_path(model, folder, command)
    note_quantization(model, command)
    extra: list[str] = []
    while words:
        flag, equals, value = words[0].partition("=")
        option = [words.pop(0)]
        takes = flag in (*_OURS, *_FIELDS)
        if takes and not equals and words:
            value = words.pop(0)
            option.append(value)
        if flag == "--served-model-name":
            while words and not words[0].startswith("-"):  # it takes several, which all mean this model
                words.pop(0)
        if not takes or not _put(flag, value, command):
            extra += option
        if flag in _SHOWS:
            command.capabilities += ["text", _SHOWS[flag]]
    _note_pooling(extra, command)
    if extra:
        command.config["extra_args"] = extra


def _note_pooling(extra: Sequence[str], command: Command) -> None:
    task = flag_value(extra, "--task", "--convert")
    if task in _EMBEDS:
        command.capabilities.append(_EMBEDS[task])
    elif flag_value(extra, "--runner") == "pooling":
        command.capabilities.append("embedding")


def _put(flag: str, value: str, command: Command) -> bool:
    """Put an option's value into its field, or leave it to rolecall; whether it is done with."""
    if flag in _OURS:
        leave_out(flag, value, _OURS[flag], command)
    elif flag == "--served-model-name":
        command.fields["served_model_id"] = value
    elif flag == "--max-num-seqs":
        return put_count(command.fields, "max_parallel", value, _THOUSANDS)
    elif flag == "--max-model-len":
        return put_count(command.fields, "context_length", value, _THOUSANDS)
    return True
