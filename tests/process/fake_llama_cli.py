"""A stand-in for ``llama-completion`` and ``llama-mtmd-cli``: their options, their output, faults by what is asked.

    python fake_llama_cli.py llama-completion --model M --file CONVERSATION --chat-template T -n 5

Output is as measured with llama.cpp build 11434: ``llama-completion`` writes `` [end of text]`` behind an answer that
the model ended, and its tokens to stderr; ``llama-mtmd-cli`` writes a line break before the answer, and one more behind
an answer that the model ended. The last message says what happens: ``ECHO text`` answers with it, ``LOOP`` goes on
until ``-n``, ``SLOW`` does so with pauses, ``HANG`` never answers, ``FAIL text`` fails with a last line, ``CUT``
fails within an answer, ``BYTES`` writes byte by byte. Each start is noted in the folder ``FAKE_CLI_JOURNAL``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

MARKER = "<__media__>"


def values(argv: list[str], *options: str) -> list[str]:
    """Return what follows any of these options."""
    return [argv[index + 1] for index, word in enumerate(argv[:-1]) if word in options]


def note(program: str, argv: list[str], conversation: str) -> None:
    """Write down how this process was started, and what it could read."""
    files = [*values(argv, "--file"), *values(argv, "--image")]
    entry = {
        "program": program,
        "pid": os.getpid(),
        "argv": argv,
        "conversation": conversation,
        "images": [Path(path).read_bytes().hex() for path in values(argv, "--image")],
        "modes": sorted({oct(Path(path).stat().st_mode & 0o777) for path in files}),
        "folder": str(Path(files[0]).parent),
    }
    journal = Path(os.environ["FAKE_CLI_JOURNAL"])
    draft = journal / f"{time.time_ns()}.draft"
    draft.write_text(json.dumps(entry), encoding="utf-8")
    draft.rename(draft.with_suffix(".json"))


def say(text: str | bytes) -> None:
    """Write to stdout at once."""
    os.write(1, text if isinstance(text, bytes) else text.encode())


def fail(message: str, code: int = 1) -> NoReturn:
    """End with a last line."""
    sys.stderr.write(f"loading\n{message}\n")
    sys.exit(code)


def words(ask: str, limit: int) -> tuple[list[str], bool]:
    """Return the tokens of an answer, and whether the model ended it."""
    if ask.startswith(("LOOP", "SLOW")):
        return [f" w{index:02d}" for index in range(limit)], False
    text = ask.removeprefix("ECHO ") if ask.startswith("ECHO ") else "Hello there."
    tokens = text.split(" ")
    tokens = [tokens[0], *(f" {token}" for token in tokens[1:])]
    return tokens[:limit], limit > len(tokens)


def main() -> None:
    """Answer as the program of this name would."""
    program, argv = Path(sys.argv[1]).name, sys.argv[2:]
    if "--help" in argv:
        say("usage\n" if os.environ.get("FAKE_CLI_CHATS") else "-cnv,  -no-cnv, --no-conversation\n")
        return
    conversation = Path(values(argv, "--file")[-1]).read_text(encoding="utf-8").removesuffix("\n")
    note(program, argv, conversation)
    if program == "llama-mtmd-cli" and conversation.count(MARKER) != len(values(argv, "--image")):
        fail("Number of media markers does not match number of loaded media")
    answer(
        conversation.rpartition("\x1e")[2].replace(MARKER, "").strip(),
        limit=int((values(argv, "-n") or ["1000"])[-1]),
        is_mtmd=program == "llama-mtmd-cli",
    )


def answer(ask: str, *, limit: int, is_mtmd: bool) -> None:
    """Do what the last message says."""
    if ask.startswith("FAIL "):
        fail(ask.removeprefix("FAIL "), 3)
    if ask.startswith("HANG"):
        time.sleep(60)
    tokens, ended = words(ask, limit)
    say("\n" if is_mtmd else "")
    if ask.startswith("BYTES"):
        for byte in " größer 🦙".encode():
            say(bytes([byte]))
            time.sleep(0.002)
        tokens = []
    for token in tokens:
        say(token)
        time.sleep(0.02 if ask.startswith("SLOW") else 0)
        if ask.startswith("CUT"):
            fail("ggml_abort: something broke", 134)
    if not is_mtmd:
        count_tokens(len(tokens) if ended else max(0, len(tokens) - 1))
    end = "\n" if is_mtmd else " [end of text]\n"
    say(f"{end if ended else ''}\n\n")


def count_tokens(runs: int) -> None:
    """Write llama-completion's figures, as far as anybody reads them."""
    sys.stderr.write("0.1 I common_perf_print: prompt eval time =  2.09 ms /   20 tokens (  0.02 ms per token)\n")
    sys.stderr.write(f"0.1 I common_perf_print:        eval time =  0.48 ms /  {runs} runs   (  0.07 ms)\n")


if __name__ == "__main__":
    main()
