"""Settings that a command puts into rolecall.toml: everything else stays as somebody wrote it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rolecall.errors import ConfigurationError
from rolecall.runtime.settings_edit import check_settings, with_settings
from rolecall.settings import SETTINGS_FILE, shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_a_commented_default_comes_into_force_in_its_place() -> None:
    """The shipped file shows all defaults as comments: the line of the setting is replaced, the others stay."""
    before = shipped(SETTINGS_FILE).read_text(encoding="utf-8")
    after = with_settings(before, {"port": 8101, "llama_server": 'C:\\a "b"'})
    assert tomllib.loads(after) == {"port": 8101, "llama_server": 'C:\\a "b"'}
    changed = [(old, new) for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert [new for _, new in changed] == ["port = 8101", 'llama_server = "C:\\\\a \\"b\\""']
    assert with_settings(after, {"port": 8101}) == after


def test_a_setting_that_is_there_takes_the_new_value() -> None:
    """With its comment; tables at the end are no obstacle to one that is new."""
    before = "# mine\nport = 9000  # the old one\n\n[roles.caption]\npolicy = 'priority'\n"
    after = with_settings(before, {"port": 9001, "host": "127.0.0.1"})
    assert "# mine\nport = 9001  # the old one\n" in after
    assert tomllib.loads(after) == {"port": 9001, "host": "127.0.0.1", "roles": {"caption": {"policy": "priority"}}}


def test_new_lines_end_like_the_others() -> None:
    """A file of Windows has one kind of line ends after a change as well."""
    after = with_settings("# mine\r\nport = 9000\r\n# host = '::'\r\n", {"port": 1, "host": "h", "log_level": "debug"})
    assert after == 'log_level = "debug"\r\n# mine\r\nport = 1\r\nhost = "h"\r\n'


@pytest.mark.parametrize("value", [False, 7, 1.5, "é \x7f \n"])
def test_values_of_all_kinds_are_written_as_toml(value: object) -> None:
    """As they are read again."""
    assert tomllib.loads(with_settings("", {"x": value})) == {"x": value}


def test_what_is_no_toml_is_not_changed() -> None:
    """Nor is a result that would be refused."""
    with pytest.raises(ConfigurationError, match="is no TOML, so nothing was changed"):
        with_settings("port = = 3", {"port": 1})
    with pytest.raises(ConfigurationError, match=r"port: .*\nnothing was written"):
        check_settings(Path("/somewhere"), with_settings("", {"port": 99999}))
