"""The command line of ``make bench``: what it refuses before anything is measured, and what its exit code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.results import Results, machine
from bench.sampling import Sample

RUN = Path(__file__).with_name("run.py")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it, leaving the documentation as it is."""
    argv = [sys.executable, str(RUN), "--no-page", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def kept(folder: Path, *, passed: bool = True, cpu_s: float = 0.1, failed: tuple[str, ...] = ()) -> Path:
    """Return results with one figure and one check of rolecall's behaviour."""
    load = dict.fromkeys(("errors", "truncated", "bad_status", "no_done", "all_events", "events", "reads"), 0.0)
    load |= {"sent": 1000.0, "elapsed": 1.0, "rps": 1000.0}
    rounds = [{"rolecall": Sample(load, cpu_s, 0, 50), "nginx": Sample(load, 0.1, 0, 5)}]
    checks = {"rolecall": {"gzip": (passed, "200")}}
    found = Results(rounds={"ns32": rounds}, checks=checks, failed=list(failed), machine=machine())
    path = folder / "kept.json"
    path.write_text(found.to_json())
    return path


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--rounds", "0", "at least 1"),
        ("--rounds", "-1", "at least 1"),
        ("--rounds", "two", "a whole number"),
        ("--seconds", "1s", "more than 0"),
        ("--seconds", "0", "more than 0"),
        ("--seconds", "-1", "more than 0"),
        ("--seconds", "nan", "more than 0"),
        ("--seconds", "1e9", "at most 60"),
        ("--only", ",", "names nothing"),
        ("--scenarios", "", "names nothing"),
        ("--only", "apache", "choose from rolecall"),
        ("--out", "no-such-folder/x.json", "cannot be written"),
        ("--out", ".", "cannot be written"),
        ("--read", "no-such-file", "cannot be read: No such file"),
        ("--read", __file__, "holds no results"),
    ],
)
def test_options_that_make_no_sense_are_refused(option: str, value: str, why: str) -> None:
    """At once, with the reason and no traceback: nobody measures for minutes in vain."""
    done = run(f"{option}={value}")
    assert (done.returncode, done.stdout) == (2, "")
    assert option in done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["[]", "{}", '{"rounds": 1}', '{"rounds": {}, "one_core": [], "starts": 0}', "null"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    """JSON alone does not make results."""
    path = tmp_path / "other.json"
    path.write_text(text)
    done = run("--read", path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "holds no results" in done.stderr


@pytest.mark.parametrize(
    ("options", "found", "code"),
    [
        ((), {}, 0),
        ((), {"cpu_s": 9.0}, 1),
        (("--quick",), {"cpu_s": 9.0}, 0),
        (("--quick",), {"passed": False}, 1),
        (("--quick",), {"failed": ("nginx is not ready",)}, 1),
        ((), {"failed": ("nginx is not ready",)}, 1),
    ],
)
def test_the_exit_code(tmp_path: Path, options: tuple[str, ...], found: dict[str, object], code: int) -> None:
    """1 for a figure that was missed, a check that failed, or no measurement; --quick judges no figures and says so."""
    done = run("--read", kept(tmp_path, **found), *options)  # type: ignore[arg-type]
    assert done.returncode == code, done.stdout + done.stderr
    assert ("only the behaviour is judged" in done.stdout) == bool(options)
