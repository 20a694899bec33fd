"""What an engine is to rolecall: a command line to start, an address to reach, a few facts. Values only."""

from __future__ import annotations

import os
import os.path
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rolecall.core.models import ModelEntry, flag_value
from rolecall.core.vram import Placement

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Places:
    """The folders that paths of the registry may refer to."""

    config_dir: Path
    state_dir: Path

    def expand(self, path: str, folder: Path | None = None) -> Path:
        """Return ``path`` with ``~``, ``${STATE_DIR}`` and ``${CONFIG_DIR}`` filled in, relative to ``folder``."""
        names = {"${STATE_DIR}": str(self.state_dir), "${CONFIG_DIR}": str(self.config_dir)}
        filled = re.sub(r"\$\{(?:STATE|CONFIG)_DIR\}", lambda found: names[found[0]], path)
        return (folder or self.config_dir) / os.path.expanduser(filled)  # noqa: PTH111 - Path.expanduser raises without a home


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP request to an engine's own interface; ``json`` None sends no body."""

    method: str
    url: str
    json: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SleepCalls:
    """How an engine is put to sleep and woken; ``level`` is vLLM's.

    At level 1 the weights move to host RAM, at level 2 they are dropped; both free the KV cache.
    """

    sleep: Call
    wake: tuple[Call, ...]
    """In this order; each answers 200 when it is done."""
    is_sleeping: Call
    """Answers ``{"is_sleeping": bool}``."""
    level: int = 1


@dataclass(frozen=True, slots=True)
class Launch:
    """How one engine process is started, recognised as ready, put to sleep and ended.

    ``health_path`` answers 200 once requests can be served; refused or 503 mean "not yet". ``load_timeout_s`` and
    ``term_grace_s`` (from SIGTERM to SIGKILL) are None where nothing special is known. ``killed_last`` is a part of the
    command line by which the processes are known that must outlive the rest of their group, to clean up after it.
    ``sleeps`` are the ways in which the engine can sleep. ``listens_itself`` says that the process that is started, or
    a child of it, listens on the port: whoever else answers there is a stranger. ``key_variable`` is the variable by
    which the engine takes a key that all its clients must then show; None for one that takes none, or has one already.
    ``key`` is that key: the entry's own, or the one that was made for this start.
    """

    argv: tuple[str, ...]
    base_url: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    health_path: str = "/health"
    load_timeout_s: float | None = None
    term_grace_s: float | None = None
    killed_last: str | None = None
    sleeps: tuple[SleepCalls, ...] = ()
    listens_itself: bool = False
    key_variable: str | None = None
    key: str | None = field(default=None, repr=False)

    def keyed(self, key: str) -> Launch:
        """Return the launch with a key given to the engine, unless it takes none or has one."""
        if self.key_variable is None or not key:
            return self
        return replace(self, env={**self.env, self.key_variable: key}, key=key)


@dataclass(frozen=True, slots=True)
class RemoteLoad:
    """How a daemon that somebody else runs is told to load and to unload one model, what it has and what it holds.

    The key that it wants stands in the variable ``api_key_env``. ``held_mb`` reads the answer to ``list_loaded``: the
    MB of this model, None if it is not loaded. ``has_model`` reads the answer to ``list_installed``, and ``missing``
    says in words how to get the model where that is False.
    """

    base_url: str
    load: Call
    unload: Call
    list_loaded: Call
    held_mb: Callable[[Any], int | None]
    load_timeout_s: float | None = None
    list_installed: Call | None = None
    has_model: Callable[[Any], bool] = lambda _: True
    missing: str = ""
    api_key_env: str | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers of calls to the daemon."""
        authorization = Upstream(self.base_url, self.api_key_env).authorization()
        return {} if authorization is None else {"Authorization": authorization}


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where requests go. ``base_url`` has no trailing slash and ends before ``/chat/completions``.

    Its key stands in the variable ``api_key_env``, or is ``key``, that of an engine of ours, which is shown to nobody.
    """

    base_url: str
    api_key_env: str | None = None
    key: str | None = field(default=None, repr=False)

    def authorization(self) -> str | None:
        """Return what the header ``Authorization`` of a request says; None for a server without a key."""
        key = self.key or (os.environ.get(self.api_key_env, "").strip() if self.api_key_env else None)
        return f"Bearer {key}" if key else None

    def url(self, endpoint: str) -> str:
        """Return the address of an endpoint such as ``/v1/chat/completions`` or ``/tokenize``."""
        if endpoint.startswith("/v1/"):
            return self.base_url + endpoint.removeprefix("/v1")
        return self.base_url.removesuffix("/v1") + endpoint


@dataclass(frozen=True, slots=True)
class Spread:
    """Over how many GPUs a model can lie: ``asked`` by the entry (None: one if it fits), and what is possible."""

    asked: int | None = None
    possible: tuple[int, ...] = (1,)

    def over(self, cards: int) -> tuple[int, ...]:
        """Return the numbers of cards, the first that does is taken, where there are so many."""
        if self.asked:
            return (self.asked,)
        return tuple(count for count in self.possible if count <= cards) or (1,)


@dataclass(frozen=True, slots=True)
class Reducible:
    """In which ways an engine can be started with less memory (``smaller.reduced``): a smaller context, no GPU."""

    context: bool = False
    cpu: bool = False


class Backend(Protocol):
    """One kind of engine."""

    name: str
    managed: bool
    """Whether we load and unload its models; one that somebody else manages takes no memory of ours."""
    has_port: bool
    """Whether an engine is a process of ours that listens on a port; False for a daemon that others run."""
    takes_share: bool
    """Whether the engine takes as much memory as it is given (vLLM's KV cache), not what the model needs."""
    ports: range | None
    """The ports that its engines are given; None for any free one."""
    reducible: Reducible
    """How it can be started with less memory than an entry says, but for one with a ``command`` of its own."""
    keeps_roles: bool
    """Whether the roles of messages reach the model as they come, so that rolecall need not look at its template."""

    def unavailable(self, entry: ModelEntry) -> str | None:
        """Return why the entry can never work as it stands, in words; None if it can."""
        ...

    def files(self, entry: ModelEntry) -> tuple[Path, ...]:
        """Return the files or folders that must exist for the entry to be installed."""
        ...

    def parallel(self, entry: ModelEntry) -> int:
        """Return how many requests the engine serves at once."""
        ...

    def served_id(self, entry: ModelEntry) -> str:
        """Return what the engine calls the model."""
        ...

    def launch(self, entry: ModelEntry, port: int, placement: Placement = ()) -> Launch | RemoteLoad:
        """Return how to start the engine on a port of loopback (managed engines only).

        ``placement`` is what the engine may take of which GPU; empty where nothing is known. The supervisor sets
        ``CUDA_VISIBLE_DEVICES`` from it. Raises ``ValueError`` for an entry that cannot be started that way.
        """
        ...

    def spread(self, entry: ModelEntry) -> Spread:
        """Return over how many GPUs the engine can lay the model."""
        ...

    def build(self) -> str:
        """Return which build of the engine this is, for what is learnt of its memory; it may look at the disk."""
        ...

    def upstream(self, entry: ModelEntry, port: int) -> Upstream:
        """Return where its requests go; ``port`` is that of ``launch``, 0 for an engine that is not managed."""
        ...

    def lacks(self, entry: ModelEntry, endpoint: str) -> str | None:
        """Return in words that the entry's engine has no such endpoint, and what to use; None if it may have it."""
        ...

    def shares_context(self, entry: ModelEntry) -> bool:
        """Whether the requests that are answered at the same time share one context, which is that of the engine."""
        ...


def model_path(entry: ModelEntry, places: Places) -> Path | None:
    """Return the entry's model file or folder; ``download_location`` stands in for a missing ``model_path``."""
    path = entry.backend_config.model_path or entry.download_location
    return places.expand(path) if path else None


def mmproj_path(entry: ModelEntry, places: Places) -> Path | None:
    """Return the entry's vision projector, relative to the model's folder."""
    path = entry.backend_config.mmproj_path or entry.backend_config.mmproj_id
    model = model_path(entry, places)
    return places.expand(path, model.parent if model else None) if path else None


def loopback(port: int) -> Upstream:
    """Return the address of an engine of ours."""
    return Upstream(f"http://{LOOPBACK}:{port}/v1")


def with_key(launch: Launch, variable: str, *, separator: str | None = None) -> Launch:
    """Return the launch with the key that its entry gives the engine, or with the variable by which it takes ours.

    Of several between ``separator`` the first is as good as any. An entry that sets the variable to nothing wants none.
    """
    own = flag_value(launch.argv, "--api-key") or launch.env.get(variable)
    if own is None:
        return replace(launch, key_variable=variable)
    first = own.split(separator)[0] if separator else own
    return replace(launch, key=first.strip() or None)


def without(argv: Sequence[str], flags: Collection[str]) -> tuple[str, ...]:
    """Return the arguments without these flags and their values."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in flags:
            next(words, None)
        elif word.partition("=")[0] not in flags:
            kept.append(word)
    return tuple(kept)


def command_launch(entry: ModelEntry, places: Places, port: int, python: str) -> Launch:
    """Return the launch of an entry that brings its own ``command``; placeholders are filled in word by word.

    Words are never joined or split again, so nothing in a path can become an option.
    """
    model, mmproj = model_path(entry, places), mmproj_path(entry, places)
    words = {
        "port": str(port),
        "host": LOOPBACK,
        "model": str(model or ""),
        "mmproj": str(mmproj or ""),
        "alias": entry.name,
        "python": python,
    }
    fill = re.compile(r"\$?\{(\w+)\}")
    argv = (fill.sub(lambda m: words.get(m[1].lower(), m[0]), word) for word in entry.backend_config.command)
    config = entry.backend_config
    return Launch(
        (*argv, *config.extra_args), loopback(port).base_url, config.env, health_path=config.health_path or "/health"
    )


def command_problem(entry: ModelEntry) -> str | None:
    """Return why the entry's own ``command`` cannot work: it would listen where nobody looks."""
    config = entry.backend_config
    if config.port or any("{port}" in word.lower() for word in config.command):
        return None
    return "backend_config.command holds no {port} and backend_config.port is not set"
