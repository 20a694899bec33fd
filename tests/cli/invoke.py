"""The command line called in this process or in one of its own, without the settings of whoever runs the tests."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from harness import CONFIGS, DEADLINE_S
from rolecall.cli import app

SHIPPED = ("rolecall.toml", "profiles.toml", "model_registry.curated.json")


def foreign_settings() -> list[str]:
    """Return the variables of this environment that would be settings."""
    return [name for name in os.environ if name.startswith(("CHAT_PROXY_", "IMAGEWORKS_"))]


def call(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    """Run a command in this process."""
    cleared: dict[str, str | None] = dict.fromkeys(foreign_settings())
    return CliRunner().invoke(app, [str(word) for word in arguments], env={**cleared, **(env or {})})


def answer(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Any:
    """Return the JSON that a command prints with --json; fails unless it succeeds."""
    result = call(*arguments, "--json", env=env)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process that inherits no settings."""
    dropped = foreign_settings()
    return {**{name: value for name, value in os.environ.items() if name not in dropped}, **more}


def rolecall(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    argv = [sys.executable, "-m", "rolecall", *map(str, arguments)]
    env = environment() if env is None else env
    return subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from rolecall.cli import main
main()
"""


def on_a_full_disk(*arguments: str | Path, room: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own whose files take no more than ``room`` bytes."""
    argv = [sys.executable, "-c", FULL, str(room), *map(str, arguments)]
    return subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def in_terminal(*arguments: str | Path, columns: int, kind: str = "dumb") -> list[str]:
    """Return the lines that a command prints on a terminal of that width; a ``dumb`` one knows no colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    argv = [sys.executable, "-m", "rolecall", *map(str, arguments)]
    variables = environment(TERM=kind)
    variables.pop("COLUMNS", None)
    process = subprocess.Popen(argv, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = _read_all(ours)
    os.close(ours)
    assert process.wait(DEADLINE_S) == 0, text
    return text.replace("\r\n", "\n").splitlines()


def _read_all(terminal: int) -> str:
    data = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            part = b""
        if not part:
            return data.decode()
        data += part


def configured(folder: Path, entries: Sequence[Mapping[str, Any]] | None = None, settings: str = "") -> tuple[str, ...]:
    """Write a configuration into ``folder`` and return the options that name it.

    Without ``entries`` it is the shipped one.
    """
    config, state = folder / "configs", folder / "state"
    config.mkdir(parents=True, exist_ok=True)
    state.mkdir(exist_ok=True)
    for name in SHIPPED:
        (config / name).write_bytes((CONFIGS / name).read_bytes())
    if entries is not None:
        (config / "model_registry.curated.json").write_text(json.dumps(entries))
    (config / "rolecall.toml").write_text(settings)
    return ("--config-dir", str(config), "--state-dir", str(state))
