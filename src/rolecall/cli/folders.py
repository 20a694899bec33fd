"""Folders with models as commands are given them: ``[DIR]...`` and ``--only``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rolecall.cli.common import CommandError
from rolecall.discovery.found import shown

Folders = Annotated[
    list[Path] | None, typer.Argument(metavar="[DIR]...", help="Folders to look at beside the known places.")
]
Only = Annotated[bool, typer.Option("--only", help="Look at these folders and nowhere else.")]


def named_folders(folders: Sequence[Path] | None, *, only: bool) -> list[Path]:
    """Return the folders with the home filled in; raises ``CommandError`` for what is none, or ``only`` without any."""
    if only and not folders:
        raise CommandError("--only says where not to look: name the folders to look at")
    return [_folder(path) for path in folders or ()]


def _folder(path: Path) -> Path:
    folder = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises without a home
    if not folder.is_dir():
        instead = f"the folder that it lies in, {shown(folder.parent)}" if folder.is_file() else "one that exists"
        raise CommandError(f"{shown(folder)} is no folder that can be looked at: name {instead}")
    return folder
