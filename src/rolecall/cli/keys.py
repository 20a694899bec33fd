"""``rolecall keys add|list|revoke``: the API keys of the key file. No server is needed; a running one follows."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from rolecall.cli.common import AsJson, CommandError, ConfigDir, StateDir, print_json
from rolecall.cli.table import NOTHING, Column, Row, say, show, table
from rolecall.core.keys import ApiKey, hashed
from rolecall.errors import ConfigurationError
from rolecall.insight.log_reader import parse_since
from rolecall.runtime.api_keys import change_keys, load_keys, new_key
from rolecall.runtime.usage import USAGE, read_usage, used_today
from rolecall.settings import Settings, load_settings

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

_COLUMNS = (
    Column("name"),
    Column("fingerprint", below="fingerprint {}"),
    Column("scopes", below="scopes {}"),
    Column("may use", below="may use {}"),
    Column("requests today", right=True, below="{} requests today"),
    Column("tokens today", right=True, below="{} tokens today"),
    Column("expires", below="expires {}", style=lambda text: "red" if text == "expired" else ""),
)


@app.command()
def add(  # noqa: PLR0913 - each is a limit of its own
    name: Annotated[str, typer.Argument(help="What the log and the lists call it: letters, digits and . _ @ -")],
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="inference or admin; may be repeated.", show_default="inference", metavar="SCOPE"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only models of this name; * and ? are wildcards. May be repeated.", metavar="GLOB"),
    ] = None,
    role: Annotated[
        list[str] | None, typer.Option(help="Only this role, and no model by name. May be repeated.", metavar="ROLE")
    ] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute.", min=1, show_default="any")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Tokens a day (UTC).", min=1, show_default="any")] = None,
    expires: Annotated[
        str | None, typer.Option(help="30d, 12h from now, or an ISO time.", show_default="never", metavar="TIME")
    ] = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept.

    The key alone goes to stdout, what is said about it to stderr.
    """
    path = _key_file(load_settings({"config_dir": config_dir}))
    token, now = new_key(), datetime.now(timezone.utc).replace(microsecond=0)
    fields = {
        "name": name,
        "sha256": hashed(token.encode()),
        "scopes": scope or ["inference"],
        "models": model or [],
        "roles": role or [],
        "requests_per_minute": rpm,
        "tokens_per_day": tokens_per_day,
        "created": now,
        "expires": None if expires is None else _moment(expires, now),
    }
    try:
        key = ApiKey.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{first['loc'][0]}: {first['msg']}") from None
    change_keys(path, lambda keys: (*_without_twin(keys, key, path), key))
    if as_json:
        print_json({"key": token, **_row(key), "file": str(path)})
        return
    typer.echo(token)
    scopes = " and ".join(key.scopes)
    say(f"the key {name!r} ({scopes}) was added to {path}. It is shown this once; keep it safe")


def _without_twin(keys: tuple[ApiKey, ...], key: ApiKey, path: Path) -> tuple[ApiKey, ...]:
    if any(other.name == key.name for other in keys):
        raise CommandError(f"{path} has a key {key.name!r} already; revoke it, or take another name")
    return keys


def _moment(text: str, now: datetime) -> datetime:
    try:
        past = parse_since(text, now)
    except ValueError as error:
        raise typer.BadParameter(f"--expires: {error}") from None
    moment = now + (now - past) if re.fullmatch(r"(\d+[smhdw])+", text) else past
    if moment <= now:
        raise typer.BadParameter(f"--expires: {text!r} is over already")
    return moment.astimezone(timezone.utc).replace(microsecond=0)


@app.command("list")
def list_keys(*, as_json: AsJson = False, config_dir: ConfigDir = None, state_dir: StateDir = None) -> None:
    """List the keys with what they may and what they used today, as last written by the server."""
    settings = load_settings({"config_dir": config_dir, "state_dir": state_dir})
    path = _key_file(settings)
    keys = _loaded(path)
    used, now = read_usage(settings.state_dir / USAGE), time.time()
    rows = []
    for key in keys:
        today = used_today(used, key, now)
        rows.append({**_row(key), "requests_today": today.requests, "tokens_today": today.tokens})
    if as_json:
        print_json(rows)
    elif rows:
        show(lambda width: table(_COLUMNS, [_cells(row) for row in rows], width))
    else:
        say(f"{path} holds no key; `rolecall keys add NAME` makes one")


def _row(key: ApiKey) -> dict[str, Any]:
    """What is told of a key: all but the key, and of its hash the beginning."""
    fields = key.model_dump(mode="json", exclude={"sha256"})
    expired = key.is_expired(datetime.now(timezone.utc))
    return {"name": key.name, "fingerprint": key.fingerprint, **fields, "expired": expired}


def _cells(row: dict[str, Any]) -> Row:
    uses = [*row["models"], *(f"role:{role}" for role in row["roles"])]
    expires = "expired" if row["expired"] else (row["expires"] or NOTHING).removesuffix(":00Z").replace("T", " ")
    return Row(
        (
            row["name"],
            row["fingerprint"],
            ", ".join(row["scopes"]),
            ", ".join(uses) or "all",
            str(row["requests_today"]) + _of(row["requests_per_minute"], "a minute"),
            str(row["tokens_today"]) + _of(row["tokens_per_day"]),
            expires,
        )
    )


def _of(limit: int | None, per: str = "") -> str:
    return "" if limit is None else f" (at most {limit} {per})" if per else f" of {limit}"


@app.command()
def revoke(
    names: Annotated[list[str], typer.Argument(help="Names of keys, as in the list.", metavar="NAME...")],
    *,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Take keys away; a running server refuses them within a second. Answers in flight are finished."""
    path = _key_file(load_settings({"config_dir": config_dir}))

    def without(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        unknown = sorted(set(names) - {key.name for key in keys})
        if unknown:
            raise CommandError(f"{path} has no key {' or '.join(map(repr, unknown))}; nothing was revoked")
        return tuple(key for key in keys if key.name not in names)

    if not path.exists():
        raise CommandError(f"{path} does not exist, so there is no key")
    change_keys(path, without)
    if as_json:
        print_json({"revoked": sorted(set(names)), "file": str(path)})
    else:
        say(f"revoked: {', '.join(sorted(set(names)))}")


def _key_file(settings: Settings) -> Path:
    if settings.api_keys_file is None:
        raise ConfigurationError(
            'api_keys_file: names no file, so there are no keys. Put a line such as api_keys_file = "api_keys.json" '
            f"into {settings.config_dir / 'rolecall.toml'}, or set CHAT_PROXY_API_KEYS_FILE"
        )
    return settings.api_keys_file


def _loaded(path: Path) -> Sequence[ApiKey]:
    try:
        return load_keys(path)
    except ConfigurationError as error:
        raise CommandError(str(error)) from None
