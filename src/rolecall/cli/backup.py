"""``rolecall backup`` and ``rolecall restore``: configuration and state in one file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from rolecall.cli.client import Url, connect
from rolecall.cli.common import AsJson, CommandError, ConfigDir, StateDir, print_json
from rolecall.cli.table import console_for, printable
from rolecall.core.wording import amount, counted, some
from rolecall.errors import ConfigurationError, RolecallError
from rolecall.runtime.interruption import ended_in_order
from rolecall.runtime.private_file import locked
from rolecall.runtime.state_archive import KINDS, Content, Manifest, Tell, unpack, write_archive
from rolecall.runtime.state_folder import alone, is_in_use
from rolecall.runtime.state_items import DATASETS, SNAPSHOT, Item, items_of, key_file_of
from rolecall.runtime.state_places import making_folders, places, put_all
from rolecall.settings import SETTINGS_FILE, Settings, load_settings
from rolecall.vision.datasets_store import DatasetStore, is_made

_NAMED = 3


def backup(  # noqa: PLR0913 - options
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write: .tar.gz, .tgz or .tar.zst.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Write configuration and state into one file, while rolecall runs or not.

    In it are the config folder, API keys (their hashes), what was learnt and used, and datasets. Models, demo models,
    engine logs and the request log are not. A running server is asked for a copy of the datasets, with the key of
    ROLECALL_API_KEY where keys are on.
    """
    _check_kind(file)
    settings = load_settings({"config_dir": config_dir, "state_dir": state_dir})
    if file.exists() and not force:
        raise CommandError(f"{file} is there already; choose another name, or --force writes over it")
    if not file.parent.is_dir():
        raise CommandError(f"{file.parent} is no folder that exists")
    for option, folder in (("--config-dir", settings.config_dir), ("--state-dir", settings.state_dir)):
        if not folder.is_dir():
            raise CommandError(f"{folder} is no folder that exists; {option} names the one to back up")
    with ended_in_order(), _datasets(settings, url) as datasets:
        items = [*items_of(settings), *datasets]
        with _progress("writing", sum(map(_size, items))) as tell:
            manifest, content = write_archive(file, items, _origin(settings), tell)
    size = file.stat().st_size
    if as_json:
        print_json({"file": str(file), "size": size, **asdict(manifest), **asdict(content)})
    else:
        typer.echo(printable(f"{file}: {counted(content.files, 'file')}, {amount(size)}"))


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `rolecall backup` wrote.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    state_dir: StateDir = None,
) -> None:
    """Put configuration and state back, into the folders of the settings or others.

    No rolecall may be running with the state folder. What is there already is left alone, and nothing is done at all,
    unless --force; files that the backup does not have stay in any case.
    """
    _check_kind(file)
    settings = load_settings({"config_dir": config_dir, "state_dir": state_dir}, may_be_absent=True)
    try:
        with ended_in_order():
            manifest, content = _restored(file, settings, force=force)
    except ConfigurationError as error:
        raise CommandError(str(error)) from None
    _tell(file, manifest, content, settings, as_json=as_json)


def _restored(file: Path, settings: Settings, *, force: bool) -> tuple[Manifest, Content]:
    config, state = settings.config_dir, settings.state_dir
    size = file.stat().st_size
    with making_folders() as make:
        make(state, 0o700)
        with alone(state), tempfile.TemporaryDirectory(prefix=".restore-", dir=state) as unpacked:
            with _progress("reading", size) as tell:
                found = unpack(file, Path(unpacked), tell)
            files = places(Path(unpacked), {"config": config, "state": state, "keys": config})
            _check_free(files, force=force)
            put_all(files, state / DATASETS, make)
    return found


def _check_kind(file: Path) -> None:
    if not file.name.endswith(KINDS):
        raise CommandError(f"{file}: a backup is a file whose name ends with {', '.join(KINDS[:-1])} or {KINDS[-1]}")


def _size(item: Item) -> int:
    try:
        return item.path.stat().st_size
    except FileNotFoundError:  # taken away meanwhile
        return 0


def _origin(settings: Settings) -> dict[str, Any]:
    keys = key_file_of(settings)
    return {
        "config_dir": str(settings.config_dir),
        "state_dir": str(settings.state_dir),
        "api_keys_file": str(keys) if keys else None,
    }


def _check_free(targets: Iterable[Path], *, force: bool) -> None:
    there = [str(target) for target in targets if target.exists()]
    if there and not force:
        raise CommandError(
            f"there already: {some(there, _NAMED)}; nothing was changed. --force writes over them; "
            "`rolecall backup` first keeps what is there"
        )


def _tell(file: Path, manifest: Manifest, content: Content, settings: Settings, *, as_json: bool) -> None:
    notes = list(_notes(manifest, settings))
    config, state = str(settings.config_dir), str(settings.state_dir)
    if as_json:
        folders = {"config_dir": config, "state_dir": state, "notes": notes}
        print_json({"file": str(file), **asdict(manifest), **asdict(content), **folders})
        return
    typer.echo(f"{counted(content.files, 'file')} of {manifest.created}, written by rolecall {manifest.rolecall}")
    for line in (f"config folder  {config}", f"state folder   {state}", *notes):
        typer.echo(printable(line))


def _notes(manifest: Manifest, settings: Settings) -> Iterator[str]:
    """Yield what is to be done by hand."""
    keys = manifest.api_keys_file
    lay_elsewhere = keys is not None and Path(manifest.config_dir) not in Path(keys).parents
    if keys and lay_elsewhere and (settings.config_dir / Path(keys).name).exists():
        yield f"the API keys, which lay in {keys}, are in {settings.config_dir}: move them there, or set api_keys_file"
    try:
        named = load_settings({"config_dir": settings.config_dir}).state_dir
    except ConfigurationError as error:
        yield f"the restored configuration is refused: {error}"
        return
    if named != settings.state_dir:
        instead = f"start it with --state-dir {settings.state_dir}, or set state_dir"
        yield f"{SETTINGS_FILE} or the default says {named}: {instead}"


@contextlib.contextmanager
def _datasets(settings: Settings, url: str | None) -> Iterator[list[Item]]:
    """Yield a copy of the datasets' file that nobody writes to, if there is one. It has lost its name already."""
    path = settings.state_dir / DATASETS
    if not is_made(path):
        yield []
        return
    copy = path.with_name(SNAPSHOT)
    with contextlib.ExitStack() as stack:
        with locked(path.parent):  # backups at the same time make their copies one after the other
            try:
                _copy_datasets(settings, path, copy, url)
                opened = stack.enter_context(copy.open("rb"))
            finally:
                copy.unlink(missing_ok=True)
        yield [Item(Path(f"/dev/fd/{opened.fileno()}"), f"state/{DATASETS}")]


def _copy_datasets(settings: Settings, path: Path, copy: Path, url: str | None) -> None:
    """Have the server copy them if one runs; else, or if it does not tell us and has closed them, do it here."""
    copy.unlink(missing_ok=True)
    asked = ""
    if is_in_use(settings.state_dir):
        problem = _ask_for_copy(settings, copy, url)
        if problem is None:
            return
        asked = f"\nthe server that runs was asked for a copy: {problem}"
    try:
        with contextlib.closing(DatasetStore(path)) as store:
            store.copy_to(copy)
    except RolecallError as error:
        raise CommandError(f"{error}{asked}") from None


def _ask_for_copy(settings: Settings, copy: Path, url: str | None) -> str | None:
    """Return what was in the way, None if the copy is there."""
    try:
        with connect(url, settings.config_dir) as client:
            made = client.snapshot()
    except CommandError as error:
        return str(error)
    return None if copy.exists() else f"it made {made}, so it has another state folder; --url names another server"


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Tell]:
    """Show a bar on a terminal's stderr; yields how to move it by bytes."""
    console = console_for(error=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
