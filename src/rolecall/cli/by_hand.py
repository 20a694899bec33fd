"""``rolecall load``, ``unload``, ``pin``, ``unpin`` and ``cancel``: what the dashboard does at the push of a button."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from rolecall.cli.client import Client, Url, connect
from rolecall.cli.common import AsJson, ConfigDir, print_json
from rolecall.cli.spinner import spinning

_Name = Annotated[str, typer.Argument(help="Name or alias.")]


def load(
    name: Annotated[str, typer.Argument(help="Name, alias or role:x.")],
    *,
    url: Url = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Start a model and wait until it is ready."""
    with _server(url, config_dir) as client:
        row = _timed(f"starting {name}", lambda: client.load(name))
    was_there = (row["uptime_s"] or 0) > row["took_s"] + 1
    _tell(row, f"{row['model']} was loaded already" if was_there else _became(row), as_json=as_json)


def unload(name: _Name, *, url: Url = None, as_json: AsJson = False, config_dir: ConfigDir = None) -> None:
    """Stop a model once its answers are finished.

    Waits until its process is gone.
    """
    with _server(url, config_dir) as client:
        row = _timed(f"stopping {name}", lambda: client.unload(name))
    _tell(row, _became(row), as_json=as_json)


def pin(name: _Name, *, url: Url = None, as_json: AsJson = False, config_dir: ConfigDir = None) -> None:
    """Keep a model loaded whoever wants its place.

    Until the server ends, `rolecall unpin`, or a change of `pinned` in its entry.
    """
    _pin(name, url, config_dir, pinned=True, as_json=as_json)


def unpin(name: _Name, *, url: Url = None, as_json: AsJson = False, config_dir: ConfigDir = None) -> None:
    """Let a model make room for others again, also one that its entry pins."""
    _pin(name, url, config_dir, pinned=False, as_json=as_json)


def cancel(
    request_id: Annotated[str, typer.Argument(help="Its x-request-id, as the dashboard shows it.")],
    *,
    url: Url = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Stop a request that waits or is being answered; its client gets an error that says so."""
    with _server(url, config_dir) as client:
        told = client.cancel(request_id)
    _tell(told, f"{request_id} is stopped", as_json=as_json)


def _pin(name: str, url: Url, config_dir: ConfigDir, *, pinned: bool, as_json: bool) -> None:
    with _server(url, config_dir) as client:
        row = client.pin(name, pinned=pinned)
    _tell(row, f"{row['model']} is {'pinned' if row['pinned'] else 'not pinned'}, and {row['state']}", as_json=as_json)


@contextmanager
def _server(url: Url, config_dir: ConfigDir) -> Iterator[Client]:
    """Yield the client of a rolecall that answers and tells us how it is; raises ``CommandError``."""
    with connect(url, config_dir) as client:
        client.health()
        yield client


def _timed(what: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a model's row, and how long it was waited for (``took_s``, s)."""
    began = time.monotonic()
    with spinning(what):
        row = ask()
    return row | {"took_s": round(time.monotonic() - began, 3)}


def _became(row: dict[str, Any]) -> str:
    return f"{row['model']} is {row['state']} after {row['took_s']:.2f} s"


def _tell(found: dict[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        typer.echo(words)
