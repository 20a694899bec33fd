"""``rolecall.toml`` changed by commands: one table at a time, checked before it is written, comments and order kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from rolecall.errors import ConfigurationError
from rolecall.runtime.private_file import locked, write_in_place
from rolecall.settings import SETTINGS_FILE, load_settings


def edit_role_table(
    config_dir: Path, role: str, values: Mapping[str, Any], *, dry_run: bool = False
) -> tuple[Path, str, str]:
    """Put values into ``[roles.ROLE]`` of ``rolecall.toml``, None takes one away; the table goes with its last value.

    Returns the file with its text before and after. Raises ``ConfigurationError`` for what the settings would refuse,
    and then nothing is written.
    """
    path = config_dir / SETTINGS_FILE
    with locked(path.resolve().parent):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = _changed(path, before, role, values)
        _check(config_dir, after)
        if after != before and not dry_run:
            write_in_place(path, after.encode())
    return path, before, after


def _changed(path: Path, text: str, role: str, values: Mapping[str, Any]) -> str:
    try:
        document = tomlkit.parse(text if text.endswith("\n") or not text else text + "\n")
    except TOMLKitError as error:
        raise ConfigurationError(f"{path}: is no TOML, so nothing was changed: {error}") from None
    roles = document.get("roles")
    if roles is None:
        roles = tomlkit.table(is_super_table=True)
    if not isinstance(roles, Table):
        raise ConfigurationError(f"{path}: roles is not written as tables [roles.NAME]; change it by hand")
    name = next((key for key in roles if key.strip().lower() == role), role)
    table = roles.get(name, tomlkit.table())
    for key, value in values.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
    if table:
        roles[name] = table
    else:
        roles.pop(name, None)
    if "roles" not in document and roles:
        document["roles"] = roles
    changed = tomlkit.dumps(document).rstrip("\n")
    return changed + "\n" if changed else ""


def _check(config_dir: Path, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SETTINGS_FILE).write_text(text, encoding="utf-8")
        try:
            load_settings({"config_dir": folder}, {})
        except ConfigurationError as error:
            told = str(error).replace(str(Path(folder).resolve()), str(config_dir))
            raise ConfigurationError(f"{told}\nnothing was written") from None
