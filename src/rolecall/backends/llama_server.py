"""llama.cpp: the ``llama-server`` binary, or the same flags on the embedded server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rolecall.backends.base import (
    LOOPBACK,
    Launch,
    Places,
    Spread,
    Upstream,
    command_launch,
    command_problem,
    loopback,
    mmproj_path,
    model_path,
)
from rolecall.core.models import ModelEntry, flag_value
from rolecall.core.vram import Placement

DEFAULT_PARALLEL = 4
"""Slots of llama-server unless told otherwise (its own default with a unified KV cache)."""

_PARALLEL_FLAGS = ("-np", "--parallel")


class LlamaServer:
    """``engine`` starts the command line: a binary, or Python with the embedded server; None if there is neither."""

    name = "llama_cpp"
    managed = True
    has_port = True
    takes_share = False
    ports: range | None = None

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
            return "backend_config.mode 'cli' is not supported; use 'server'"
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
        """Return the slots: ``max_parallel``, else ``--parallel`` of the arguments, else four."""
        flag = flag_value(entry.backend_config.extra_args, *_PARALLEL_FLAGS)
        return entry.max_parallel or (int(flag) if flag and flag.isdecimal() and int(flag) else DEFAULT_PARALLEL)

    def served_id(self, entry: ModelEntry) -> str:
        """Return the alias that the engine is started with."""
        return entry.served_model_id or entry.name

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> Launch:
        """Return the command line; what ``extra_args`` say themselves is left to them, but for host and port."""
        del placement  # llama.cpp spreads a model evenly over the GPUs that it sees
        config = entry.backend_config
        if config.command:
            return command_launch(entry, self._places, port, sys.executable)
        extra = config.extra_args
        ours = (
            (("-m", "--model"), [str(model_path(entry, self._places))]),
            (("--mmproj",), [str(p)] if (p := mmproj_path(entry, self._places)) else None),
            (("-a", "--alias"), [self.served_id(entry)]),
            (("-c", "--ctx-size"), [str(entry.context_tokens)] if entry.context_tokens else None),
            # One KV cache for all slots: each request may use the whole context, not a part of it.
            (_PARALLEL_FLAGS, [str(self.parallel(entry)), "--kv-unified"]),
        )
        argv = [*self._engine]
        for flags, values in ours:
            if values is not None and not _has_flag(extra, flags):
                argv += [flags[-1], *values]
        argv += [*extra, "--host", LOOPBACK, "--port", str(port)]
        return Launch(tuple(argv), loopback(port).base_url, config.env)

    def spread(self, entry: ModelEntry) -> Spread:
        """Return any number of GPUs: layers are laid out over all that are visible."""
        del entry
        return Spread(possible=tuple(range(1, 17)))

    def build(self) -> str:
        """Return the binary with the time it was built, or the version of the embedded engine."""
        return engine_build(self._engine)

    def upstream(self, entry: ModelEntry, port: int) -> Upstream:
        """Return the engine's address on loopback."""
        del entry
        return loopback(port)


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


def _has_flag(argv: Sequence[str], flags: Sequence[str]) -> bool:
    return any(word.partition("=")[0] in flags for word in argv)
