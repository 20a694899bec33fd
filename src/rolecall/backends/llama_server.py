"""llama.cpp: the ``llama-server`` binary, the same flags on the embedded server, or one process for each request.

Sizes of ``generation_defaults`` are given at the start. Its sampling defaults are filled into each request that is
silent about them (``core.parameters.adapt``), in either mode.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rolecall.backends.base import (
    LOOPBACK,
    Launch,
    Places,
    Reducible,
    Spread,
    Upstream,
    command_launch,
    command_problem,
    loopback,
    mmproj_path,
    model_path,
    with_key,
    without,
)
from rolecall.core.endpoints import CHAT, EMBEDDINGS, RANKING, RERANK, SCORE, SPEECH, TRANSLATIONS
from rolecall.core.models import ModelEntry, flag_value
from rolecall.core.vram import Placement

DEFAULT_PARALLEL = 4
"""Slots of llama-server unless told otherwise (its own default with a unified KV cache)."""

KEY_VARIABLE = "LLAMA_API_KEY"
"""By it llama-server takes a key, which everybody must show then, but for ``/health``."""

MOST_EMBEDDED_TOKENS = 8192
_EMBEDDED_TOKENS = 2048
"""llama.cpp's batch, where an entry that embeds tells no context."""

_ADDRESS_FLAGS = ("--host", "--port")
_EMBEDDING_FLAGS = ("--embedding", "--embeddings")
_RERANK_FLAGS = ("--rerank", "--reranking")
_PARALLEL_FLAGS = ("-np", "--parallel")
_SPLIT_FLAGS = ("-ts", "-sm", "--split-mode", "--tensor-split")
_SIZES = {
    ("-c", "--ctx-size"): ("ctx_size", "n_ctx"),
    ("-b", "--batch-size"): ("batch_size", "n_batch"),
    ("-ub", "--ubatch-size"): ("ubatch_size", "n_ubatch"),
}
"""llama.cpp's options for sizes, and what generation defaults call them."""

_TEXT_PROGRAMS = ("llama-completion", "llama-cli")
"""``llama-cli`` was renamed in December 2025; what is called so since then only talks to a person."""
_IMAGE_PROGRAM = "llama-mtmd-cli"
# -P: the folder that rolecall was started in must not shadow modules (Python 3.10 has no such option).
_ONESHOT = (sys.executable, *(("-P",) if sys.version_info >= (3, 11) else ()), "-m", "rolecall.backends.oneshot")


class LlamaServer:
    """``engine`` starts the command line: a binary, or Python with the embedded server; None if there is neither."""

    name = "llama_cpp"
    managed = True
    has_port = True
    takes_share = False
    ports: range | None = None
    reducible = Reducible(context=True, cpu=True)
    keeps_roles = False

    def __init__(self, places: Places, engine: Sequence[str] | None) -> None:
        self._places = places
        self._engine = tuple(engine or ())

    def unavailable(self, entry: ModelEntry) -> str | None:
        """Return what the entry lacks, or that there is no engine to serve it."""
        config = entry.backend_config
        if config.command:
            return command_problem(entry)
        if not (config.model_path or entry.download_location):
            return "backend_config.model_path is missing"
        if config.mode == "cli":
            return self._missing_programs(entry)
        if not self._engine:
            return (
                "no llama.cpp engine: put llama-server on the PATH, set llama_server, or pip install 'rolecall[llama]'"
            )
        return None

    def files(self, entry: ModelEntry) -> tuple[Path, ...]:
        """Return the model and its projector."""
        paths = (model_path(entry, self._places), mmproj_path(entry, self._places))
        return tuple(path for path in paths if path is not None)

    def parallel(self, entry: ModelEntry) -> int:
        """Return the slots: ``max_parallel``, else ``--parallel`` of the arguments, else four; one in mode ``cli``."""
        if entry.backend_config.mode == "cli" and not entry.backend_config.command:
            return 1
        flag = flag_value(entry.backend_config.extra_args, *_PARALLEL_FLAGS)
        return entry.max_parallel or (int(flag) if flag and flag.isdecimal() and int(flag) else DEFAULT_PARALLEL)

    def shares_context(self, entry: ModelEntry) -> bool:
        """Whether the requests that are answered at the same time share one context, which is that of the engine."""
        config = entry.backend_config
        if config.command or self.parallel(entry) == 1:
            return False
        if _has_flag(config.extra_args, ("-no-kvu", "--no-kv-unified")):
            return False
        own_slots = _has_flag(config.extra_args, _PARALLEL_FLAGS)
        return not own_slots or _has_flag(config.extra_args, ("-kvu", "--kv-unified"))

    def served_id(self, entry: ModelEntry) -> str:
        """Return the alias that the engine is started with."""
        return entry.served_model_id or entry.name

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> Launch:
        """Return the command line; what ``extra_args`` say themselves is left to them, but for host and port."""
        config = entry.backend_config
        if config.command:
            return with_key(command_launch(entry, self._places, port, sys.executable), KEY_VARIABLE, separator=",")
        if config.mode == "cli":
            return self._launch_oneshot(entry, port, placement)
        extra = without(config.extra_args, _ADDRESS_FLAGS)
        ours = (
            (("-m", "--model"), [str(model_path(entry, self._places))]),
            (("--mmproj",), [str(p)] if (p := mmproj_path(entry, self._places)) else None),
            (("-a", "--alias"), [self.served_id(entry)]),
            *_sizes(entry),
            (_EMBEDDING_FLAGS, [] if "embedding" in entry.started_for else None),
            (_RERANK_FLAGS, [] if "rerank" in entry.started_for and _ranks(entry) else None),
            (_SPLIT_FLAGS, _even_split(placement)),
            # One KV cache for all slots: each request may use the whole context, not a part of it.
            (_PARALLEL_FLAGS, [str(self.parallel(entry)), "--kv-unified"]),
            (("--metrics",), []),  # it counts anyway, and only tells if it is told to
        )
        argv = (*self._engine, *_unless_given(extra, ours), *extra, "--host", LOOPBACK, "--port", str(port))
        launch = Launch(argv, loopback(port).base_url, config.env, listens_itself=True)
        return with_key(launch, KEY_VARIABLE, separator=",")

    def _launch_oneshot(self, entry: ModelEntry, port: int, placement: Placement) -> Launch:
        """Return the command line of the server that starts one process for each request."""
        extra = entry.backend_config.extra_args
        ours = {
            "--cli": self._program(*_TEXT_PROGRAMS),
            "--mtmd-cli": self._program(_IMAGE_PROGRAM),
            "--model": model_path(entry, self._places),
            "--mmproj": mmproj_path(entry, self._places),
            "--alias": self.served_id(entry),
            "--host": LOOPBACK,
            "--port": port,
            "--spool": self._places.state_dir / "oneshot",
        }
        # Joined, so that a name which begins with a dash is still a value.
        words = [f"{flag}={value}" for flag, value in ours.items() if value is not None]
        passed_on = _unless_given(extra, [*_sizes(entry), (_SPLIT_FLAGS, _even_split(placement))])
        argv = (*_ONESHOT, *words, "--", *passed_on, *extra)
        launch = Launch(argv, loopback(port).base_url, entry.backend_config.env)
        return replace(launch, key_variable=KEY_VARIABLE)

    def _program(self, *names: str) -> str | None:
        """Return the first of these programs that is beside llama-server or on the PATH."""
        server = Path(self._engine[0]) if len(self._engine) == 1 else None
        for name in names:
            beside = [path.with_name(name) for path in (server, server.resolve())] if server else []
            found = next(filter(None, map(shutil.which, [*map(str, beside), name])), None)
            if found:
                return found
        return None

    def _missing_programs(self, entry: ModelEntry) -> str | None:
        needed = [_TEXT_PROGRAMS] + ([(_IMAGE_PROGRAM,)] if mmproj_path(entry, self._places) else [])
        missing = [" or ".join(names) for names in needed if not self._program(*names)]
        if not missing:
            return None
        return (
            f"backend_config.mode 'cli' needs {' and '.join(missing)}, beside llama-server or on the PATH: "
            "llama.cpp's releases and packages hold all of them; mode 'server' does without"
        )

    def spread(self, entry: ModelEntry) -> Spread:
        """Return any number of GPUs: layers are laid out over all that are visible."""
        del entry
        return Spread(possible=tuple(range(1, 17)))

    def build(self) -> str:
        """Return the binary with the time it was built, or the version of the embedded engine."""
        return self._embedded_build if len(self._engine) > 1 else engine_build(self._engine)

    @cached_property
    def _embedded_build(self) -> str:
        """It is asked for with each model at each look, and a package stays what it is while we run."""
        return engine_build(self._engine)

    def upstream(self, entry: ModelEntry, port: int) -> Upstream:
        """Return the engine's address on loopback."""
        del entry
        return loopback(port)

    def lacks(self, entry: ModelEntry, endpoint: str) -> str | None:
        """Return what llama.cpp does not serve; of a command nothing is known."""
        if entry.backend_config.command:
            return None
        if entry.backend_config.mode == "cli":
            only = f"In mode 'cli' there are chat completions only ({CHAT}), not {endpoint}; mode 'server' has it."
            return None if endpoint == CHAT else only
        if {"embedding", "rerank"} <= entry.started_for and endpoint in ((EMBEDDINGS,) if _ranks(entry) else RANKING):
            does, other = ("reranks", "embedding") if _ranks(entry) else ("embeds", "rerank")
            return (
                f"One llama.cpp engine either embeds or reranks, and this one {does}; {endpoint} needs an entry of its "
                f"own with the capability {other} alone."
            )
        return _LACKING.get(endpoint)


_LACKING = {
    SCORE: f"llama.cpp has no {SCORE}; {RERANK} gives the same numbers, by a model with the capability rerank.",
    TRANSLATIONS: f"llama.cpp has no {TRANSLATIONS}; vLLM has it, or ask a model that hears in {CHAT}.",
    SPEECH: f"llama.cpp has no {SPEECH}; a server that speaks can be reached by an entry of the backend openai.",
}


def engine_build(engine: Sequence[str]) -> str:
    """Return which build of llama.cpp the start of a command line stands for; "none" if there is none."""
    if not engine:
        return "none"
    if len(engine) > 1:
        with suppress(PackageNotFoundError):
            return f"xllamacpp {version('xllamacpp')}"
    with suppress(OSError):
        return f"{Path(engine[0]).name} {Path(engine[0]).stat().st_mtime_ns}"
    return Path(engine[0]).name


Ours = tuple[tuple[str, ...], list[str] | None]
"""An option's spellings, the long one last, and its values; None leaves it out."""


def _sizes(entry: ModelEntry) -> list[Ours]:
    """Return the options for the sizes that the entry gives; its context may stand in several places."""
    sizes: list[Ours] = []
    for flags, names in _SIZES.items():
        values = [entry.context_tokens] if "ctx_size" in names else []
        values += [entry.generation_defaults.get(name) for name in names]
        values += [] if "ctx_size" in names else [embedded_tokens(entry)]
        size = next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)
        sizes.append((flags, [str(size)] if size else None))
    return sizes


def embedded_tokens(entry: ModelEntry) -> int | None:
    """Return how long a text the engine of an entry must take in one piece, in tokens; None for any other.

    llama.cpp cannot cut a text that it embeds or ranks: one that is longer than its micro-batch (512 by default) ends
    in an error. A model that writes as well is left as it is, for a larger micro-batch takes memory from its context.
    """
    if "text" in entry.started_for or not entry.started_for:
        return None
    return min(entry.context_tokens or _EMBEDDED_TOKENS, MOST_EMBEDDED_TOKENS)


def _ranks(entry: ModelEntry) -> bool:
    """Whether an engine for a model that embeds or ranks is to rank: it pools in one way, and vectors are then zero."""
    return "embedding" not in entry.started_for or _has_flag(entry.backend_config.extra_args, _RERANK_FLAGS)


def _even_split(placement: Placement) -> list[str] | None:
    """Return equal parts for several GPUs: by itself llama.cpp splits by free memory, not by what was reserved."""
    return [",".join("1" * len(placement))] if len(placement) > 1 else None


def _unless_given(extra: Sequence[str], ours: Iterable[Ours]) -> Iterator[str]:
    """Yield our options and values, but for those that the entry's own arguments hold."""
    for flags, values in ours:
        if values is not None and not _has_flag(extra, flags):
            yield flags[-1]
            yield from values


def _has_flag(argv: Sequence[str], flags: Sequence[str]) -> bool:
    return any(word.partition("=")[0] in flags for word in argv)
