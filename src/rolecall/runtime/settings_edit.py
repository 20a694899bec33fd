"""``rolecall.toml`` changed by commands: checked before it is written, comments and order kept."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from rolecall.errors import ConfigurationError, naming
from rolecall.runtime.private_file import locked, write_in_place
from rolecall.runtime.registry_edit import FileEdit
from rolecall.settings import SETTINGS_FILE, load_settings, standing


def edit_role_table(config_dir: Path, role: str, values: Mapping[str, Any], *, dry_run: bool = False) -> FileEdit:
    """Put values into ``[roles.ROLE]`` of ``rolecall.toml``, None takes one away; the table goes with its last value.

    Raises ``ConfigurationError`` for what the settings would refuse, and then nothing is written.
    """
    path = config_dir / SETTINGS_FILE
    with locked(path.resolve().parent):
        source = standing(path)
        before = _text(path, source.read_bytes() if source.exists() else b"")
        after = _with_line_ends_of(before, lambda text: _changed(path, text, role, values))
        check_settings(config_dir, after)
        edit = FileEdit(path=path, before=before, after=after)
        if dry_run or not edit.changed:
            return edit
        write_in_place(path, after.encode())
    return replace(edit, written=True)


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is no TOML, so nothing was changed: {error}") from None


def _with_line_ends_of(text: str, change: Callable[[str], str]) -> str:
    """Return a changed text that keeps its kind of line ends: whatever they are, tomlkit adds lines with Unix's."""
    if "\r\n" not in text:
        return change(text)
    return change(text.replace("\r\n", "\n")).replace("\n", "\r\n")


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


def with_settings(text: str, values: Mapping[str, Any]) -> str:
    """Return the text of a settings file with these values at its top level.

    A setting that is there takes the new value, one that stands there as a comment comes into force in its place, and
    any other goes to the top. Raises ``ConfigurationError`` for a text that is no TOML.
    """
    return _with_line_ends_of(text, lambda plain: _set(plain, values))


def _set(text: str, values: Mapping[str, Any]) -> str:
    try:
        document = tomlkit.parse(text)
        for name, value in values.items():
            if name in document:
                document[name] = value
        text = tomlkit.dumps(document)
    except TOMLKitError as error:
        raise ConfigurationError(f"is no TOML, so nothing was changed: {error}") from None
    for name, value in values.items():
        if name not in document:
            line = f"{name} = {tomlkit.item(value).as_string()}"
            shown = re.compile(rf"^#\s*{re.escape(name)}\s*=.*$", re.MULTILINE)
            text = shown.sub(lambda _found: line, text, count=1) if shown.search(text) else f"{line}\n{text}"  # noqa: B023
    return text


def check_settings(config_dir: Path, text: str) -> None:
    """Raise ``ConfigurationError`` for a settings file that ``rolecall serve`` would refuse."""
    with tempfile.TemporaryDirectory() as folder:
        with naming(path := Path(folder) / SETTINGS_FILE):
            path.write_bytes(text.encode())
        try:
            load_settings({"config_dir": folder}, {})
        except ConfigurationError as error:
            told = str(error).replace(str(Path(folder).resolve()), str(config_dir))
            raise ConfigurationError(f"{told}\nnothing was written") from None
