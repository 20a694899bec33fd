"""``rolecall report prompts`` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.invoke import call, environment, rolecall
from insight.written_lines import line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    answers = [
        line(n, prompt_id="caption", prompt_version="2", model="qwen3-vl", duration_ms=900.0, completion_tokens=40)
        for n in range(40)
    ]
    path.write_bytes(b"".join(answers) + line(99, prompt_id="tags", model="florence-2") + line(100) + b"half")
    return path


def test_tables_for_people(path: Path) -> None:
    """The recommendation comes first, with its reason; what of the log is left out is told on stderr."""
    result = call("report", "prompts", "--file", path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("41 requests with a prompt id")
    assert "succeeds in 100 % (91 to 100 %) of 40, takes 900 ms" in result.stdout
    assert "not enough data: florence-2 has 1 of 30 requests" in result.stdout
    assert "1 of 43 lines" in result.stderr


def test_a_name_of_two_lines_is_one_row(path: Path) -> None:
    """A line end in a name, which a client chose, does not begin a row of its own; nothing is cut."""
    path.write_bytes(line(1, prompt_id="a\nSuccess\x1b", model="m"))
    shown = call("report", "prompts", "--file", path).stdout.splitlines()
    assert shown.count("Success") == 1
    assert any(row.startswith("a Success\N{REPLACEMENT CHARACTER} ") for row in shown)


def test_json_and_markdown_and_a_page(path: Path, tmp_path: Path) -> None:
    """All forms come of one report; the page is a file that stands alone."""
    page = tmp_path / "report.html"
    found = json.loads(call("report", "prompts", "--file", path, "--json", "--html", page).stdout)
    assert [(each["prompt"], each["model"]) for each in found["pairings"]] == [("caption", "qwen3-vl"), ("tags", None)]
    assert found["figures"][0]["success"]["count"] == 40
    assert found["log"] == {"lines": 43, "broken": 1, "wrong_values": 0}
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "<svg" in text
    shown = call("report", "prompts", "--file", path, "--markdown").stdout
    assert shown.startswith("# Prompts\n")
    assert "| caption | 2 | qwen3\\-vl |" in shown


def test_less_and_more_data_is_asked_for(path: Path) -> None:
    """--least sets how many requests a model needs, --prompt and --since what the report is about."""
    low = json.loads(call("report", "prompts", "--file", path, "--json", "--least", "1").stdout)
    assert [each["model"] for each in low["pairings"]] == ["qwen3-vl", "florence-2"]
    tags = json.loads(call("report", "prompts", "--file", path, "--json", "--prompt", "t*").stdout)
    assert [each["prompt"] for each in tags["pairings"]] == ["tags"]


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--since", "1h"), 1, "rolecall: no request with a prompt id matches\n"),
        (("--prompt", "nobody"), 1, "rolecall: no request with a prompt id matches\n"),
        (("--since", "soon"), 2, "soon"),
        (("--json", "--markdown"), 2, "exclude"),
        (("--json", "--html", "-"), 2, "--json and --html - exclude each other"),
        (("--html", "/nowhere/at/all.html"), 1, "rolecall: cannot write /nowhere/at/all.html: No such file"),
        (("--html", "/"), 1, "rolecall: cannot write /: Is a directory"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], code: int, named: str, path: Path) -> None:
    """Nothing to tell, wrong options and a file that cannot be written end with a reason and no output."""
    result = call("report", "prompts", "--file", path, *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert named in result.stderr


def test_a_log_without_prompt_ids(path: Path) -> None:
    """Who sends none is told how they are named."""
    path.write_bytes(line(1))
    result = call("report", "prompts", "--file", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "header x-prompt-id" in result.stderr


def test_a_page_on_stdout(path: Path) -> None:
    """A dash is stdout, and no file of that name."""
    result = rolecall("report", "prompts", "--file", path, "--html", "-", cwd=path.parent)
    assert result.stdout.startswith("<!doctype html>")
    assert result.stdout.endswith("</html>\n")
    assert "1 of 43 lines" in result.stderr
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_page_that_cannot_be_written(path: Path) -> None:
    """A full disk behind --html is told, without a traceback; what is no file is not replaced by one."""
    result = rolecall("report", "prompts", "--file", path, "--html", "/dev/full")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "rolecall: cannot write /dev/full: No space left on device\n"
    assert Path("/dev/full").is_char_device()


def test_the_last_page_outlives_one_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    """The page of yesterday stays as it is when there is no room for that of today, and nothing is left beside it."""
    folder = tmp_path / "pages"
    folder.mkdir()
    page = folder / "report.html"
    page.write_text("yesterday")
    resource = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    argv = ["rolecall", "report", "prompts", "--file", str(path), "--html", str(page)]
    code = f"{resource}; import sys; sys.argv = {argv!r}; from rolecall.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, f"rolecall: cannot write {page}: File too large\n")
    assert [(each.name, each.read_text()) for each in folder.iterdir()] == [("report.html", "yesterday")]


def test_without_the_library_that_draws(path: Path, tmp_path: Path) -> None:
    """The page has all its tables and says what is missing."""
    argv = ["rolecall", "report", "prompts", "--file", str(path), "--html", str(tmp_path / "r.html")]
    code = f"import sys; sys.modules['pygal'] = None; sys.argv = {argv!r}; from rolecall.cli import main; main()"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "no plots: the plots need pygal" in text
    assert "Recommended pairings" in text
    assert "<svg" not in text


def test_a_server_imports_none_of_it() -> None:
    """Neither the database nor the library that draws is loaded by what serves."""
    code = "import sys; import rolecall.cli.serve; sys.exit(any(name in sys.modules for name in ('duckdb', 'pygal')))"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0
