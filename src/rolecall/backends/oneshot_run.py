"""One process of llama.cpp for one answer: its files, its command line, its words, its end."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rolecall.backends.oneshot_request import Order
from rolecall.backends.oneshot_template import join, layout
from rolecall.backends.oneshot_text import AnswerText, usage
from rolecall.errors import BadRequest, RolecallError, UnsupportedInput

SPOOL_PREFIX = "rolecall-oneshot-"
TAIL_LINES = 12
_KEPT_LINES = 200
_PIECE = 4096
_PR_SET_PDEATHSIG = 1
_TOO_LONG = "prompt is too long"
_FULL = "failed to decode token"
_NO_IMAGE = "failed to decode buffer as"
_MAX_ARGUMENT = 128 * 1024 - 1
"""Linux takes no longer argument (MAX_ARG_STRLEN)."""


@dataclass(frozen=True, slots=True)
class Programs:
    """How the programs are started; ``flags`` are passed on to each. ``mtmd`` is for requests with images."""

    text: str | None
    mtmd: str | None
    model: str
    mmproj: str | None
    template: str
    flags: tuple[str, ...] = ()


class Spool:
    """The folder of one server for what its programs read; ours alone, removed at its end.

    Its name carries the process that it belongs to and when that began: ``sweep`` knows by it what is left of others.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        me = psutil.Process()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{SPOOL_PREFIX}{me.pid}-{me.create_time():.2f}-", dir=parent))

    def write(self, name: str, data: bytes) -> Path:
        """Write a file that only this user can read."""
        path = self.folder / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        return path

    def clear(self) -> None:
        """Remove the files of a request."""
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def sweep(parent: Path) -> list[Path]:
    """Remove and return the folders of servers that are gone."""
    stale = [path for path in parent.glob(f"{SPOOL_PREFIX}*") if path.is_dir() and not _has_owner(path.name)]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return stale


def _has_owner(name: str) -> bool:
    pid, _, rest = name.removeprefix(SPOOL_PREFIX).partition("-")
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(rest.partition("-")[0])) < 1
    except (psutil.Error, ValueError):
        return False


class Run:
    """One answer: iterate over ``pieces`` once; ``finish_reason`` and the token counts are known after that."""

    def __init__(self, programs: Programs, order: Order, spool: Spool) -> None:
        self.finish_reason = "stop"
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self._programs = programs
        self._order = order
        self._spool = spool
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process: asyncio.subprocess.Process | None = None

    async def pieces(self) -> AsyncGenerator[str, None]:
        """Yield the answer as it comes; raises a ``RolecallError`` if there is none, or if it breaks off.

        However it ends, the program is killed and its files are removed before this returns, without a wait.
        """
        text = AnswerText(self._order.stop)
        if self._order.max_tokens == 0:
            self.finish_reason = "length"
            return
        try:
            process = self._process = await self._start()
            told = asyncio.create_task(self._listen(process))
            assert process.stdout is not None  # noqa: S101 - for the type checker
            while not text.stopped and (data := await process.stdout.read(_PIECE)):
                if piece := text.feed(data):
                    yield piece
            if not text.stopped:
                await process.wait()
                await told
                self._judge(process.returncode or 0, text)
            if piece := text.close():
                yield piece
            self._conclude(text)
        finally:
            self.kill()
            self._spool.clear()

    def kill(self) -> None:
        """End the program at once; the event loop reaps it."""
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def gone(self) -> None:
        """Wait until nothing of the program is left; its memory is free then."""
        if self._process:
            await self._process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            argv = self._argv()
            return await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=2**20,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise RolecallError(f"The program for an answer cannot be started: {error}") from None
        except RecursionError:
            raise BadRequest("The body is nested too deeply.") from None

    def _argv(self) -> list[str]:
        programs, order = self._programs, self._order
        program = programs.mtmd if order.images else programs.text
        if program is None or (order.images and not programs.mmproj):
            kind = "images" if order.images else "text alone"
            raise UnsupportedInput(f"This model has no program for requests with {kind}.", param="messages")
        argv = [program, "--model", programs.model]
        if order.images:
            argv += ["--mmproj", programs.mmproj or ""]
            for index, image in enumerate(order.images):
                argv += ["--image", str(self._spool.write(f"image-{index}", image))]
        else:
            argv += ["--single-turn", "--simple-io", "--no-display-prompt"]
        argv += [*programs.flags, "--no-escape", "--jinja", *self._conversation()]
        argv += order.options
        if order.max_tokens is not None:
            argv += ["-n", str(order.max_tokens)]
        if order.schema is not None:
            argv += ["--json-schema-file", str(self._spool.write("schema", json.dumps(order.schema).encode()))]
        return argv

    def _conversation(self) -> list[str]:
        """Write the texts to a file; the template, which holds none of them, is an argument like in llama-server."""
        order, separator = self._order, f"\x1e{secrets.token_hex(8)}\x1e"
        try:
            template = layout(self._programs.template, order.roles, order.variables, separator)
        except ValueError as error:
            raise BadRequest(f"{error}.", param="chat_template_kwargs") from None
        # JSON can hold half a character, an argument cannot.
        template = template.encode("utf-8", "replace").decode()
        if len(template.encode()) > _MAX_ARGUMENT:
            raise BadRequest("The conversation has too many turns for mode 'cli'.", param="messages")
        texts = join(order.texts, separator).encode("utf-8", "replace")
        return ["--chat-template", template, "--file", str(self._spool.write("conversation", texts))]

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Keep the program's last lines, and pass all on to our own log."""
        assert process.stderr is not None  # noqa: S101 - for the type checker
        rest = b""
        while data := await process.stderr.read(_PIECE):
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()
            *lines, rest = (rest + data).split(b"\n")
            self._lines.extend(line.decode("utf-8", "replace") for line in lines)
        if rest:
            self._lines.append(rest.decode("utf-8", "replace"))

    def _judge(self, code: int, text: AnswerText) -> None:
        """Raise for a program that failed, unless it only ran out of context within an answer."""
        if not code:
            return
        last = [line for line in self._lines if line.strip()][-TAIL_LINES:]
        if any(_TOO_LONG in line for line in last):
            raise BadRequest(f"The conversation does not fit the context: {last[-1].strip()}", param="messages")
        if any(_NO_IMAGE in line for line in last):
            raise BadRequest("An image is none that the model can read.", param="messages")
        if text.has_begun and any(_FULL in line for line in last):
            self.finish_reason = "length"
            return
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        raise RolecallError(f"The program for this answer ended with {how}. Its last lines:\n" + "\n".join(last))

    def _conclude(self, text: AnswerText) -> None:
        limit = self._order.max_tokens
        self.prompt_tokens, self.completion_tokens = usage(self._lines)
        if text.ended or text.stopped or limit is None:
            return
        if self.completion_tokens is None or self.completion_tokens >= limit:
            self.finish_reason = "length"


def _die_with_parent() -> None:
    """Runs in the child before it becomes the program: it is killed when this server dies in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def find_problem(programs: Programs, paths: Sequence[str | None]) -> str | None:
    """Return why no request could be answered: a file that is missing, a program that is none."""
    for path in filter(None, paths):
        if not Path(path).exists():
            return f"no such file: {path}"
    for program in filter(None, (programs.text, programs.mtmd)):
        if shutil.which(program) is None:
            return f"no such program: {program}"
    return None
