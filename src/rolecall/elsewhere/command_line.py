"""The command line of an engine taken apart into the fields of an entry.

llama-server and ``vllm serve`` with a model on the disk become entries that rolecall starts itself; every other command
stays one, with ``{port}`` where it had its port.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence

from rolecall.core.models import flag_value
from rolecall.elsewhere.command import LOOPBACK, OWN_KEY, Command, is_path, note_quantization, whole_path
from rolecall.elsewhere.llama_server_command import HUB, llama_model, note_letters, read_llama_server
from rolecall.elsewhere.macros import PORT
from rolecall.elsewhere.vllm_command import read_vllm, vllm_model

LLAMA_SERVER, VLLM = "llama-server", "vllm"


def split_command(text: str) -> list[str]:
    """Return the words of a command of several lines; raises ``ValueError`` for a quote without an end.

    Lines that begin with ``#`` are comments, and a backslash at the end of one joins it to the next.
    """
    lines = []
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.startswith("#"):
            continue
        lines.append(stripped.removesuffix("\\") + " " if stripped.endswith("\\") else line)
    return shlex.split("\n".join(lines))


def without_env(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that stand before a program, as ``A=b program`` or ``env A=b program``, and the rest."""
    rest = list(words)
    if rest and posixpath.basename(rest[0]) == "env":
        rest.pop(0)
    found = {}
    while len(rest) > 1 and re.match(r"[A-Za-z_][A-Za-z0-9_]*=", rest[0]):
        name, _, value = rest.pop(0).partition("=")
        found[name] = value
    return found, rest


def program_of(words: Sequence[str]) -> tuple[str, str] | None:
    """Return the kind and the program of a command that rolecall could start itself, None for any other one."""
    if not words:
        return None
    name = posixpath.basename(words[0]).removesuffix(".exe")
    if name.startswith(LLAMA_SERVER) and llama_model(words) is not None:
        return LLAMA_SERVER, words[0]
    if name == VLLM and words[1:2] == ["serve"] and is_path(vllm_model(words) or ""):
        return VLLM, words[0]
    return None


def take_apart(words: Sequence[str], folder: str) -> Command:
    """Return the fields of a command for which ``program_of`` has an answer; relative paths begin in ``folder``."""
    found = program_of(words)
    assert found is not None  # noqa: S101 - see above
    kind, program = found
    command = Command(program=program)
    if kind == LLAMA_SERVER:
        read_llama_server(list(words[1:]), folder, command)
    else:
        read_vllm(list(words[2:]), folder, command)
    return command


def keep_whole(words: Sequence[str], folder: str) -> Command:
    """Return a command that stays one: its port and its address become rolecall's, and it is asked who it is."""
    command = Command()
    engine = _engine(words)
    command.fields["backend"] = engine
    if engine == "llama_cpp":
        note_letters(words, command)
    kept = _published(_at_home(_keyless(words, command), command), command)
    model = flag_value(words, "-m", "--model") if _is_file_on_disk(words) else None
    if model is not None and is_path(model):
        path = whole_path(model, folder, command)
        command.config["model_path"] = path
        kept = ["{model}" if word == model else word for word in kept]
        note_quantization(path, command)
    if engine in ("llama_cpp", "vllm") and _is_file_on_disk(words):
        kept = _any_port(kept)
        if any(word.partition("=")[0] in HUB for word in words):
            text = (
                "the engine fetches the model itself, so it stays a command, and its size is not known before it runs"
            )
            command.note("-h", "changed", text)
    command.config["command"] = [word.replace(PORT, "{port}") for word in kept]
    return command


_WRAPPERS = ("sh", "bash", "docker", "podman", "nerdctl", "uv", "uvx", "conda", "env", "nice", "numactl", "taskset")


def _engine(words: Sequence[str]) -> str:
    """Return the backend that a command is one of: by its program, or by what a container or a wrapper starts."""
    program = posixpath.basename(words[0]).lower().removesuffix(".exe")
    wraps = program in _WRAPPERS or program.startswith("python")
    said = " ".join(words if wraps else words[:1]).lower()
    if re.search(r"llama-server|llama\.cpp:|llama\.cpp/server", said):
        return "llama_cpp"
    if re.search(r"(^|[\s/])vllm($|[\s:.])|vllm-openai", said):
        return "vllm"
    name = re.sub(r"[^a-z0-9_.-]+", "", program)
    return "custom" if wraps or not name else name


def _is_file_on_disk(words: Sequence[str]) -> bool:
    """Whether the paths of a command are those of this machine, not of a container's."""
    return not any(posixpath.basename(word) in ("docker", "podman", "nerdctl") for word in words[:3])


def _keyless(words: Sequence[str], command: Command) -> list[str]:
    """Return the words without a key that the engine would ask for: rolecall gives it one, or it needs none."""
    for index, word in enumerate(words):
        if word.partition("=")[0] == "--api-key":
            command.note(word.partition("=")[0], "changed", f"--api-key was left out: {OWN_KEY}")
            return [*words[:index], *words[index + (1 if "=" in word else 2) :]]
    return list(words)


def _at_home(words: Sequence[str], command: Command) -> list[str]:
    """Return the words with an address of loopback: nobody is to reach an engine past rolecall."""
    kept = list(words)
    if not _is_file_on_disk(words):  # inside of a container all addresses are its own
        return kept
    for index, word in enumerate(kept):
        flag, equals, value = word.partition("=")
        if flag == "--host" and (equals or index + 1 < len(kept)):
            if not equals:
                value = kept[index + 1]
            if value not in LOOPBACK:
                command.note(
                    word,
                    "changed",
                    f"--host {value} became {{host}}, which is 127.0.0.1: requests come through rolecall",
                )
            kept[index if equals else index + 1] = "--host={host}" if equals else "{host}"
    return kept


def _published(words: list[str], command: Command) -> list[str]:
    """Return the words with the port of a container published on loopback alone."""
    kept = list(words)
    for index, word in enumerate(words):
        value = word.removeprefix("--publish=").removeprefix("-p=") if index else word
        if value.startswith(PORT + ":") and (value != word or words[index - 1] in ("-p", "--publish")):
            kept[index] = word.replace(value, f"127.0.0.1:{value}")
            command.note(
                word, "changed", "the container's port is published on 127.0.0.1 alone: requests come through rolecall"
            )
    return kept


def _any_port(words: list[str]) -> list[str]:
    """Return the words with ``{port}`` for a port of their own: two engines with one port cannot run together."""
    kept = list(words)
    for index, word in enumerate(words):
        if word.startswith("--port="):
            kept[index] = "--port={port}"
        elif word == "--port" and index + 1 < len(words):
            kept[index + 1] = "{port}"
    return kept


def fixed_port(words: Sequence[str]) -> int | None:
    """Return the port that a command names itself, as ``--port 9999`` or ``--listen-port 9999``."""
    for word in words:
        flag = word.partition("=")[0]
        value = flag_value(words, flag) if flag.startswith("--") and flag.endswith("port") else None
        if value and value.isdecimal() and 0 < int(value) < 2**16:
            return int(value)
    return None


def most_used(programs: Iterable[str]) -> str | None:
    """Return the program that most entries name, the first of several; None if there is none."""
    names = list(programs)
    return max(names, key=names.count) if names else None
