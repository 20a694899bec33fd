"""What engines print, followed and made fit to be shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.insight.engine_output import LONGEST_LINE, MOST_LINES, OutputFile, plain


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain", "plain"),
        (b"\x1b[31mred\x1b[0m \x1b]0;title\x07text\x1b(B", "red text(B"),
        (b"10%\r50%\r100%", "100%"),
        (b"tab\there\x00\x08", "tab\there"),
        (b"bytes \xff\xfe", "bytes \ufffd\ufffd"),
        (b"x" * 5000, "x" * LONGEST_LINE + "…"),
        (b"key s3cr3t-key is asked for", "key [key] is asked for"),
        (b"--api-key abcdefgh --port 1", "--api-key [key] --port 1"),
        (
            b"args: {'api_key': ['abcdefgh'], 'port': 1}",
            "args: {'api_key': ['[key]'], 'port': 1}",
        ),
        (b"LLAMA_API_KEY=abcdefgh", "LLAMA_API_KEY=[key]"),
        (b"Authorization: Bearer abcdefgh", "Authorization: Bearer [key]"),
        (b"using hf_abcdefghijklmnopqrst now", "using [key] now"),
        (b"rc-abcdefghijklmnopqrstuvwxyz012345", "[key]"),
        (b"BOS token = 151643 '<|endoftext|>'", "BOS token = 151643 '<|endoftext|>'"),
        (b"n_tokens = 1234567, api_key: none", "n_tokens = 1234567, api_key: none"),
    ],
)
def test_lines_are_plain_text_without_secrets(line: bytes, shown: str) -> None:
    """Colours, progress bars and control characters go, keys are hidden; what is like one by its name alone stays."""
    assert plain(line, ["s3cr3t-key", ""]) == shown


@given(st.binary(max_size=300))
def test_any_bytes_become_one_line(data: bytes) -> None:
    """Whatever an engine prints can be shown."""
    text = plain(data)
    text.encode()
    assert not set(text) & set("\x00\x1b\r\n\u2028")


def test_a_log_is_followed(tmp_path: Path) -> None:
    """The last lines first, then what is added; half a line waits for its rest."""
    path = tmp_path / "a.log"
    path.write_text("1\n2\n3\n")
    file = OutputFile(path)
    assert file.last(2).lines == [b"2", b"3"]
    assert file.more().lines == []
    with path.open("a") as log:
        log.write("4\nhal")
        log.flush()
        assert file.more().lines == [b"4"]
        log.write("f\n")
    news = file.more()
    assert (news.lines, news.is_restart, news.skipped) == ([b"half"], False, 0)


def test_no_lines_may_be_asked_for(tmp_path: Path) -> None:
    """Then only what comes is told."""
    path = tmp_path / "a.log"
    path.write_text("1\n")
    file = OutputFile(path)
    assert file.last(0).lines == []
    path.write_text("1\n2\n")
    assert file.more().lines == [b"2"]


def test_a_new_start_and_an_emptied_file(tmp_path: Path) -> None:
    """Both begin anew, and say so."""
    path = tmp_path / "a.log"
    path.write_text("old 1\nold 2\n")
    file = OutputFile(path)
    file.last(10)
    path.replace(tmp_path / "a.previous.log")
    path.write_text("new\n")
    news = file.more()
    assert (news.lines, news.is_restart) == ([b"new"], True)
    os.truncate(path, 0)
    assert file.more().is_restart
    with path.open("a") as log:
        log.write("after\n")
    news = file.more()
    assert (news.lines, news.is_restart) == ([b"after"], False)


def test_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    """Its first lines are no new start."""
    file = OutputFile(tmp_path / "a.log")
    assert file.last(10).lines == []
    (tmp_path / "a.log").write_text("1\n")
    news = file.more()
    assert (news.lines, news.is_restart) == ([b"1"], False)


def test_what_is_too_much_is_left_out_and_counted(tmp_path: Path) -> None:
    """The newest lines are shown; of megabytes not even all is read."""
    path = tmp_path / "a.log"
    path.write_text("")
    file = OutputFile(path)
    file.last(1)
    path.write_text("".join(f"{number}\n" for number in range(MOST_LINES + 7)))
    news = file.more()
    assert (len(news.lines), news.skipped, news.lines[0]) == (MOST_LINES, 7, b"7")
    with path.open("a") as log:
        log.write("y" * 3_000_000 + "\nlast\n")
    news = file.more()
    assert news.lines == [b"last"]
    assert news.skipped > 0
