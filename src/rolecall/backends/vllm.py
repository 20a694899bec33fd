"""vLLM: ``vllm serve``, given a share of each GPU.

What is said here of vLLM was read in or measured with version 0.32.
"""

from __future__ import annotations

import os.path
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import floor, prod
from pathlib import Path

from rolecall.backends.base import (
    LOOPBACK,
    Call,
    Launch,
    Places,
    Reducible,
    SleepCalls,
    Spread,
    Upstream,
    command_launch,
    command_problem,
    loopback,
    model_path,
    with_key,
    without,
)
from rolecall.core.endpoints import EMBEDDINGS, RANKING, SPEECH, WRITING
from rolecall.core.models import ModelEntry, dashed, flag_value
from rolecall.core.vram import Placement

DEFAULT_PARALLEL = 32
"""vLLM's own default is 256 or 1024, for which it takes memory as it starts; few clients of one machine need that."""

TERM_GRACE_S = 5.0
"""It ends within a second or, with a request in flight or while it loads, often never."""

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # The model is a folder: nothing is to be looked up elsewhere.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
_CONTEXT = ("--max-model-len",)
_NAME = ("--served-model-name",)
_PARALLEL = ("--max-num-seqs",)
_SHARE = ("--gpu-memory-utilization",)
_TENSOR_PARALLEL = ("--tensor-parallel-size", "-tp")
_OVER_GPUS = (_TENSOR_PARALLEL, ("--pipeline-parallel-size", "-pp"), ("--data-parallel-size", "-dp"))
_ADDRESS = ("--host", "--port", "--uds")
_CONVERT = ("--convert", "--task")
KEY_VARIABLE = "VLLM_API_KEY"
"""By it vLLM takes a key, which everybody must show then below ``/v1``, ``/v2``, ``/inference`` and ``/cohere``.

``/health``, ``/tokenize``, ``/detokenize``, ``/sleep``, ``/wake_up``, ``/collective_rpc`` and ``/invocations``, which
answers as ``/v1`` does, stay open to whoever reaches the port (its `docs/usage/security.md`).
"""
_SLEEP_MODE = "--enable-sleep-mode"
_SLEEP_LEVEL = "sleep_level"
_SLEEP_LEVELS = (1, 2)


class VllmServer:
    """``command`` is the start of the command line up to ``serve``; None if there is no vLLM."""

    name = "vllm"
    managed = True
    has_port = True
    takes_share = True
    ports: range | None = range(24001, 24011)
    reducible = Reducible(context=True)
    """A vLLM for GPUs does not run without one."""
    keeps_roles = False

    def __init__(
        self, places: Places, command: Sequence[str] | None, start_timeout_s: float, stop_timeout_s: float
    ) -> None:
        self._places = places
        self._command = tuple(command or ())
        self._start_timeout_s = start_timeout_s
        self._term_grace_s = min(stop_timeout_s, TERM_GRACE_S)

    def unavailable(self, entry: ModelEntry) -> str | None:
        """Return what the entry lacks, or that there is no vLLM to serve it."""
        config = entry.backend_config
        if config.command:
            return command_problem(entry)
        if not (config.model_path or entry.download_location):
            return "backend_config.model_path is missing"
        level = entry.sleep_level
        if level is not None and level not in _SLEEP_LEVELS:
            return f"metadata.{_SLEEP_LEVEL} is {level!r}; 1 and 2 are possible"
        if not self._command:
            return (
                "no vLLM: pip install vllm into an environment of its own, "
                "and put its program vllm on the PATH or set vllm_command to it"
            )
        return None

    def files(self, entry: ModelEntry) -> tuple[Path, ...]:
        """Return the model's folder."""
        path = model_path(entry, self._places)
        return () if path is None else (path,)

    def parallel(self, entry: ModelEntry) -> int:
        """Return ``max_parallel``, else ``--max-num-seqs`` of the arguments, else ``DEFAULT_PARALLEL``."""
        return entry.max_parallel or _count(_arguments(entry), _PARALLEL) or DEFAULT_PARALLEL

    def served_id(self, entry: ModelEntry) -> str:
        """Return the name that vLLM is started with: any other one is answered with 404."""
        return flag_value(_arguments(entry), *_NAME) or entry.served_model_id or entry.name

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> Launch:
        """Return the command line; what ``extra_args`` say themselves is left to them, but for host and port.

        Of the memory share they set a ceiling.
        """
        config = entry.backend_config
        if config.command:
            own = with_key(command_launch(entry, self._places, port, sys.executable), KEY_VARIABLE)
            return replace(own, load_timeout_s=self._start_timeout_s, term_grace_s=self._term_grace_s)
        extra = without(_arguments(entry), _ADDRESS)
        ours = (
            (_NAME, self.served_id(entry)),
            (_CONTEXT, entry.context_tokens),
            (_PARALLEL, self.parallel(entry)),
            (_TENSOR_PARALLEL, len(placement) if len(placement) > 1 and not _asked(extra) else None),
        )
        argv = [*self._command, "serve", str(model_path(entry, self._places))]
        for flags, value in ours:
            if value is not None and flag_value(extra, *flags) is None:
                argv += [flags[0], str(value)]
        if _pools(entry) and flag_value(extra, "--runner", *_CONVERT) is None:
            argv += ["--runner", "pooling"]  # what becomes of the pooled states vLLM knows by the architecture
        argv += [*_within_share(extra, placement), "--host", LOOPBACK, "--port", str(port)]
        sleeps = _SLEEP_MODE in extra
        launch = Launch(
            tuple(argv),
            loopback(port).base_url,
            {**_ENVIRONMENT, **({"VLLM_SERVER_DEV_MODE": "1"} if sleeps else {}), **config.env},
            load_timeout_s=self._start_timeout_s,
            term_grace_s=self._term_grace_s,
            # It removes what the others leave in /dev/shm once they are gone.
            killed_last="multiprocessing.resource_tracker",
            sleeps=tuple(sleep_calls(port, level) for level in _levels(entry)) if sleeps else (),
            listens_itself=True,
        )
        return with_key(launch, KEY_VARIABLE)

    def spread(self, entry: ModelEntry) -> Spread:
        """Return the GPUs that the arguments ask for, else one, two, four or eight (tensor parallel)."""
        asked = _asked(_arguments(entry))
        return Spread(asked, (asked,) if asked else (1, 2, 4, 8))

    def build(self) -> str:
        """Return vLLM's version as its environment has it, else the program with the time it was made."""
        return _build(self._command)

    def upstream(self, entry: ModelEntry, port: int) -> Upstream:
        """Return the engine's address on loopback."""
        del entry
        return loopback(port)

    def lacks(self, entry: ModelEntry, endpoint: str) -> str | None:
        """Return what vLLM does not serve; of a command nothing is known."""
        if entry.backend_config.command:
            return None
        if endpoint in (WRITING if _pools(entry) else (EMBEDDINGS, *RANKING)):
            does, other = ("embeds", "text") if _pools(entry) else ("writes", "embedding or rerank")
            return (
                f"One vLLM engine either writes or embeds, and this one {does}; {endpoint} needs an entry of its own "
                f"with the capability {other} alone."
            )
        return _LACKING.get(endpoint)

    def shares_context(self, entry: ModelEntry) -> bool:
        """Return False."""
        del entry
        return False


_LACKING = {
    SPEECH: f"vLLM has no {SPEECH}; a server that speaks can be reached by an entry of the backend openai.",
}


def find_vllm(program: str) -> tuple[str, ...] | None:
    """Return the command line's start for a name on the PATH or a path; None if there is no such program."""
    found = shutil.which(os.path.expanduser(program))  # noqa: PTH111 - a bare name is looked up on the PATH
    return None if found is None else (found,)


def _levels(entry: ModelEntry) -> tuple[int, ...]:
    """Return the levels that the model may sleep at: the one that its metadata names, else both."""
    level = entry.sleep_level
    return _SLEEP_LEVELS if level is None else (int(level),)


def sleep_calls(port: int, level: int) -> SleepCalls:
    """Return the calls of vLLM's development server (https://docs.vllm.ai/en/latest/features/sleep_mode/).

    After level 2 the weights are read again from the model's files, before there is a KV cache.
    """
    root = loopback(port).base_url.removesuffix("/v1")
    wake: tuple[Call, ...] = (Call("POST", f"{root}/wake_up"),)
    if level == 2:
        wake = (
            Call("POST", f"{root}/wake_up?tags=weights"),
            Call("POST", f"{root}/collective_rpc", {"method": "reload_weights"}),
            Call("POST", f"{root}/wake_up?tags=kv_cache"),
        )
    return SleepCalls(Call("POST", f"{root}/sleep?level={level}"), wake, Call("GET", f"{root}/is_sleeping"), level)


def _pools(entry: ModelEntry) -> bool:
    """Whether its engine embeds or ranks: each has one runner, even for a model that could do both."""
    extra = _arguments(entry)
    if runner := flag_value(extra, "--runner"):
        return runner == "pooling"
    if convert := flag_value(extra, *_CONVERT):
        return convert not in ("auto", "none", "generate")
    return "text" not in entry.started_for and bool(entry.started_for)


def _within_share(extra: tuple[str, ...], placement: Placement) -> tuple[str, ...]:
    """Return the arguments with the share of the card that the placement stands for, unless they ask for less.

    It is set beside ``--kv-cache-memory-bytes`` too: that gives the size, and yet vLLM does not start unless as much
    as the share is free. Without a GPU it is a share of the RAM.
    """
    if not placement:
        return extra
    # Rounded down, to a thousandth: 16 MB of a card with 16 GB.
    share = max(1, floor(min(1000 * each.mb / each.total_mb for each in placement))) / 1000
    ceiling = flag_value(extra, *_SHARE)
    with suppress(ValueError):
        if ceiling is not None and float(ceiling) <= share:
            return extra
    return (*without(extra, _SHARE), _SHARE[0], f"{share:g}")


def _asked(extra: tuple[str, ...]) -> int | None:
    """Return over how many GPUs the arguments lay the model; None if they leave that open."""
    sizes = [size for flags in _OVER_GPUS if (size := _count(extra, flags))]
    return prod(sizes) if sizes else None


def _count(extra: tuple[str, ...], flags: tuple[str, ...]) -> int | None:
    value = flag_value(extra, *flags)
    return int(value) if value and value.isdecimal() and int(value) else None


def _arguments(entry: ModelEntry) -> tuple[str, ...]:
    """Return ``extra_args`` with flags in one spelling: vLLM takes ``--max_model_len``, too."""
    return tuple(dashed(word) for word in entry.backend_config.extra_args)


def _build(command: tuple[str, ...]) -> str:
    if not command:
        return "none"
    program = Path(command[0])
    with suppress(OSError):
        program = program.resolve(strict=True)
        found = sorted(program.parents[1].glob("lib/python3*/*-packages/vllm-*.dist-info"))
        if found:
            return found[-1].name.removesuffix(".dist-info").replace("-", " ")
        return f"{program.name} {program.stat().st_mtime_ns}"
    return program.name
