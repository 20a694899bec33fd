"""``rolecall pin``, ``unpin`` and ``cancel``: what the dashboard does at the push of a button."""

from __future__ import annotations

from typing import Annotated

import typer

from rolecall.cli.client import Url, connect
from rolecall.cli.common import AsJson, ConfigDir, print_json

_Name = Annotated[str, typer.Argument(help="Name or alias.")]


def pin(name: _Name, *, url: Url = None, as_json: AsJson = False, config_dir: ConfigDir = None) -> None:
    """Keep a model loaded whoever wants its place.

    Until the server ends, `rolecall unpin`, or a change of `pinned` in its entry.
    """
    _pin(name, url, config_dir, pinned=True, as_json=as_json)


def unpin(name: _Name, *, url: Url = None, as_json: AsJson = False, config_dir: ConfigDir = None) -> None:
    """Let a model make room for others again, also one that its entry pins."""
    _pin(name, url, config_dir, pinned=False, as_json=as_json)


def _pin(name: str, url: Url, config_dir: ConfigDir, *, pinned: bool, as_json: bool) -> None:
    with connect(url, config_dir) as client:
        client.health()
        row = client.pin(name, pinned=pinned)
    if as_json:
        print_json(row)
    else:
        typer.echo(f"{row['model']} is {'pinned' if row['pinned'] else 'not pinned'}, and {row['state']}")


def cancel(
    request_id: Annotated[str, typer.Argument(help="Its x-request-id, as the dashboard shows it.")],
    *,
    url: Url = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Stop a request that waits or is being answered; its client gets an error that says so."""
    with connect(url, config_dir) as client:
        client.health()
        told = client.cancel(request_id)
    if as_json:
        print_json(told)
    else:
        typer.echo(f"{request_id} is stopped")
