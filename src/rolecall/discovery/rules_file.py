"""``discovery.toml``: the config folder's, else the one that comes with rolecall."""

from __future__ import annotations

import sys
from pathlib import Path

from rolecall.core.discovery import Rules, read_rules
from rolecall.errors import ConfigurationError
from rolecall.settings import shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RULES = "discovery.toml"


def load_rules(config_dir: Path) -> Rules:
    """Return the rules in force; raises ``ConfigurationError`` that names the file, the rule and the field."""
    path = config_dir / RULES
    if not path.exists():
        path = shipped(RULES)
    try:
        return read_rules(tomllib.loads(path.read_text(encoding="utf-8")))
    except ConfigurationError as error:
        raise ConfigurationError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
