"""The file of the markers: read when the first answer is looked at, and whenever the configuration is reloaded."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rolecall.core.markers import Markers
from rolecall.errors import ConfigurationError
from rolecall.settings import shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MARKERS = "markers.toml"

log = logging.getLogger(__name__)


def load_markers(config_dir: Path) -> Markers:
    """Return the markers of a config folder, or those that come with rolecall where it has no file of them.

    Raises ``ConfigurationError`` that names the file.
    """
    from rolecall.core.markers_file import read_markers  # noqa: PLC0415 - a server that never looks pays nothing

    path = config_dir / MARKERS
    try:
        text = path.read_bytes() if path.exists() else shipped(MARKERS).read_bytes()
        return read_markers(tomllib.loads(text.decode("utf-8-sig")))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: is no TOML: {error}") from None
    except ConfigurationError as error:
        raise ConfigurationError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


class MarkersFile:
    """The markers in force. A file that cannot be used keeps the last good ones, and ``problem`` says so."""

    def __init__(self, config_dir: Path | None = None) -> None:
        self.problem: str | None = None
        self._config_dir = config_dir
        self._is_read = config_dir is None
        self._markers: Markers | None = None

    @property
    def markers(self) -> Markers | None:
        """The markers, read now if they were not yet; None if there are none."""
        if not self._is_read:
            self.read()
        return self._markers

    def read(self) -> None:
        """Read the file, again or for the first time. It raises nothing."""
        self._is_read = True
        if self._config_dir is None:
            return
        try:
            found, self.problem = load_markers(self._config_dir), None
        except ConfigurationError as error:
            kept = "none are looked for" if self._markers is None else "the last good ones stay in force"
            self.problem = f"the markers cannot be read, {kept}: {error}"
            log.warning("%s", self.problem)
        else:
            self._markers = found if found.groups else None
