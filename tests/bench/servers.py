"""The programs that are compared, and how each is started."""

from __future__ import annotations

import os
import shutil
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PEERS = Path(__file__).with_name("peers")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """Where a server runs: a folder of its own, its port, and that of the upstream."""

    folder: Path
    port: int
    upstream: int

    def fill(self, text: str) -> str:
        """Return ``text`` with this place's values for ``${port}``, ``${upstream}`` and ``${folder}``."""
        return string.Template(text).safe_substitute(port=self.port, upstream=self.upstream, folder=self.folder)


@dataclass(frozen=True)
class Server:
    """A program. ``lay_out`` writes its configuration, ``advice`` says how one gets the program.

    ``is_slow`` gives it one round, and a shorter one: what it needs would be everybody's time. ``is_aside`` leaves it
    out where it would say nothing new.
    """

    name: str
    program: str
    arguments: tuple[str, ...]
    lay_out: Callable[[Place], None]
    advice: str
    environ: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_slow: bool = False
    is_aside: bool = False
    ready_s: float = 30.0

    @property
    def missing(self) -> str | None:
        """Say what it lacks; None if it can be started."""
        return None if shutil.which(self.program) else f"{self.name} is left out: {self.advice}"

    def argv(self, place: Place) -> list[str]:
        """Return the command line."""
        return [self.program, *(place.fill(word) for word in self.arguments)]


def _file(name: str) -> Callable[[Place], None]:
    """Have a file of ``peers/`` copied to the server's folder, filled in."""

    def lay_out(place: Place) -> None:
        (place.folder / name).write_text(place.fill((PEERS / name).read_text()))

    return lay_out


def nginx() -> Server:
    """Return nginx, one worker, no buffering."""
    return Server(
        "nginx",
        "nginx",
        ("-c", "${folder}/nginx.conf"),
        _file("nginx.conf"),
        "it is not on the PATH (Debian, Ubuntu: apt install nginx-light)",
    )


def haproxy() -> Server:
    """Return HAProxy, one thread."""
    return Server(
        "haproxy",
        "haproxy",
        ("-f", "${folder}/haproxy.cfg"),
        _file("haproxy.cfg"),
        "it is not on the PATH (Debian, Ubuntu: apt install haproxy)",
    )


def litellm() -> Server:
    """Return LiteLLM's proxy from the environment that `make bench-peers` makes, one worker."""
    key = "sk-bench-0123456789abcdef0123456789abcdef"
    return Server(
        "litellm",
        os.environ.get("LITELLM_BIN", str(ROOT / ".venv-litellm" / "bin" / "litellm")),
        ("--config", "${folder}/litellm.yaml", "--host", "127.0.0.1", "--port", "${port}"),
        _file("litellm.yaml"),
        "`make bench-peers` installs it into .venv-litellm/, or LITELLM_BIN names it",
        environ={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_MASTER_KEY": key,
            "NO_DOCS": "True",
        },
        headers={"authorization": f"Bearer {key}"},
        is_slow=True,
        ready_s=180,
    )


def llama_swap() -> Server:
    """Return llama-swap, with as many threads as it takes."""
    return Server(
        "llama-swap",
        os.environ.get("LLAMA_SWAP_BIN", "llama-swap"),
        ("-config", "${folder}/llama-swap.yaml", "-listen", "127.0.0.1:${port}"),
        _file("llama-swap.yaml"),
        "it is not on the PATH, and LLAMA_SWAP_BIN names none (a release of github.com/mostlygeek/llama-swap)",
    )
