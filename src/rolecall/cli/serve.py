"""``rolecall serve``."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

import typer

from rolecall.cli.common import ConfigDir, StateDir
from rolecall.demo.gguf import make_demo_models
from rolecall.errors import ConfigurationError
from rolecall.gateway.server import Extension, serve
from rolecall.gateway.tidy import keep_pages
from rolecall.insight.dashboard_extension import dashboard
from rolecall.insight.feedback_extension import feedback
from rolecall.insight.metrics_extension import metrics
from rolecall.insight.tracing_extension import traces_wanted, tracing
from rolecall.pages.files import pages
from rolecall.runtime.api_keys import open_keys
from rolecall.runtime.overseer import Overseer
from rolecall.runtime.ports import check_guarded, listening_socket
from rolecall.runtime.roster import Roster, load_roster
from rolecall.settings import Settings, load_settings, located, prepare_config_dir, prepare_state_dir, unknown_variables
from rolecall.vision.datasets_extension import datasets
from rolecall.vision.decoding import Decoding
from rolecall.vision.single_extension import single_requests

log = logging.getLogger("rolecall")

_DEMO_FOLDER = "${STATE_DIR}/demo/"


def extensions() -> list[Extension]:
    """Return what rooms above the gateway add to the server; all of it together decodes two pictures at a time."""
    decoding = Decoding()
    pictures = [partial(datasets, decoding=decoding), partial(single_requests, decoding=decoding)]
    return [pages, metrics, dashboard, tracing, feedback, *pictures]


def command(  # noqa: PLR0913, PLR0917 - each is an option that people look for here
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[str | None, typer.Option(help="Port to listen on.", show_default="8100", metavar="PORT")] = None,
    log_path: Annotated[Path | None, typer.Option(help="The JSONL log.", show_default="logs/chat_proxy.jsonl")] = None,
    deployment_profile: Annotated[
        str | None, typer.Option("--profile", help="Profile to use instead of the detected one.", show_default=False)
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default="info")] = None,
) -> None:
    """Start the proxy; Ctrl-C or SIGTERM ends it and its engines, SIGHUP has a service read its configuration again."""
    settings = load_settings(
        {
            "config_dir": config_dir,
            "state_dir": state_dir,
            "host": host,
            "port": port,
            "log_path": log_path,
            "deployment_profile": deployment_profile,
            "log_level": log_level,
        }
    )
    overseer = Overseer.of_environment(os.environ)
    _log_to_terminal(settings.log_level)
    keep_pages()
    for warning in unknown_variables(os.environ):
        log.warning("%s", warning)
    prepare_config_dir(settings)
    roster = load_roster(settings)
    traces_wanted(settings, os.environ)  # else it would be refused when half of it runs
    keys = open_keys(settings)
    # Before anything is written: a second start leaves no traces.
    sock = _socket(settings, overseer, has_keys=bool(keys and keys.ring.keys))
    prepare_state_dir(settings)
    _provide_demo_models(roster)
    _run(serve(roster, sock, lambda url: _announce(url, roster), extensions(), overseer))


def _socket(settings: Settings, overseer: Overseer, *, has_keys: bool) -> socket.socket:
    given = overseer.listening_socket()
    if given is not None:
        check_guarded(given, has_keys=has_keys)
        return given
    try:
        return listening_socket(settings.host, settings.port, has_keys=has_keys)
    except ConfigurationError as error:
        raise located(settings, error) from None


def _run(main: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(main)
    else:
        import uvloop  # noqa: PLC0415 - not on Windows

        uvloop.run(main)


def _log_to_terminal(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    for name in ("httpx", "httpcore", "uvicorn", "gguf"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _provide_demo_models(roster: Roster) -> None:
    """Make the demo models if the registry names them and they are not there yet."""
    settings = roster.settings
    demo = [e for e in roster.registry.entries if (e.backend_config.model_path or "").startswith(_DEMO_FOLDER)]
    if not (demo and settings.demo_models):
        return
    try:
        make_demo_models(settings.state_dir / "demo", progress=log.info)
    except (RuntimeError, OSError) as error:
        log.warning("the demo models cannot be made: %s", error)
    roster.refresh()


def _announce(url: str, roster: Roster) -> None:
    settings: Settings = roster.settings
    listed = roster.catalog.listed()
    active = roster.active
    log.info("profile %s (%s), %d MB for models", active.profile.name, active.source, active.budget_mb)
    if roster.gpus.problem:
        log.info("%s", roster.gpus.problem)
    log.info("models: %s", ", ".join(entry.name for entry in listed) or "none is installed; see `rolecall models list`")
    log.info("log: %s", settings.log_path.absolute())
    log.info("ready at %s/v1 (Ctrl-C ends it)", url)
    if next((settings.config_dir / "tasks").glob("*.toml"), None) is not None:
        Thread(target=_warn_of_tasks, args=(settings,), daemon=True).start()


def _warn_of_tasks(settings: Settings) -> None:
    """Tell which files of tasks cannot be used. Tasks are read when they are needed, and others go on without them."""
    from rolecall.vision.tasks import tasks_of  # noqa: PLC0415 - which many servers never need

    for problem in tasks_of(settings).problems.values():
        for line in problem.splitlines():
            log.warning("a task cannot be used: %s", line)
