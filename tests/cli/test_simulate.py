"""``rolecall simulate`` and ``rolecall replay``: tables, JSON, and what happens to wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import builders
from cli.invoke import answer, call, configured
from rolecall.core.decisions import encode, header
from rolecall.core.events import Exited, Stop, Tick
from rolecall.core.scheduler import Scheduler
from rolecall.gateway.recorder import RequestLine
from rolecall.gateway.recorder import encode as encode_line
from rolecall.simulation.traces import shipped_specs

SPEC = """
gpus_mb = [100]
[models.a]
vram_mb = 60
load_s = 10
roles = { r = 90 }
[models.b]
vram_mb = 60
load_s = 10
roles = { r = 80, s = 90 }
[[clients]]
cycle = ["role:r", "role:s"]
requests = 10
answer_s = 1
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "day.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    names = ["a", "b", "a", "b"]
    lines = [
        RequestLine(ts=f"2026-01-31T12:00:{at:02}Z", model=name, status=200, duration_ms=900.0)
        for at, name in enumerate(names)
    ]
    path.write_bytes(b"".join(encode_line(line.as_dict()) for line in lines))
    return path


# -- simulate


def test_the_shipped_traces_are_listed() -> None:
    """--list names the shipped traces and what they are about."""
    listed = answer("simulate", "--list")
    assert [item["name"] for item in listed] == list(shipped_specs())
    shown = call("simulate", "--list")
    assert shown.exit_code == 0
    assert all(item["name"] in shown.stdout and item["about"] in shown.stdout for item in listed)


def test_the_table_has_a_row_for_each_policy_and_bound() -> None:
    """The table compares the policies, and ends with what none can beat."""
    result = call("simulate", "two-models-a")
    assert result.exit_code == 0, result.output
    rows = [line.split()[0] for line in result.stdout.splitlines()[3:]]
    assert rows == ["policy", "rolecall", "fifo-swap", "lru-count", "clairvoyant", "clairvoyant,"]


def test_details_show_the_waits_for_each_model_and_role(spec: Path) -> None:
    """--details adds a row for each policy and what was asked for."""
    result = call("simulate", spec, "--policy", "priority", "--details")
    assert [line.split()[:2] for line in result.stdout.splitlines()[-2:]] == [
        ["priority", "role:r"],
        ["priority", "role:s"],
    ]


def test_json_has_all_figures(spec: Path) -> None:
    """--json has every measure of each policy asked for, and the bounds."""
    found = answer("simulate", spec, "--policy", "rolecall", "--policy", "lru-count")
    assert list(found["policies"]) == ["rolecall", "lru-count"]
    assert found["policies"]["rolecall"]["wait"]["served"] == found["requests"] == 10
    assert found["bounds"] == {
        "unlimited": {"loads": 10, "total_s": 110.0, "is_exact": True, "wait_limit_s": None},
        "limited": None,
    }


def test_options_take_the_place_of_what_the_trace_says(spec: Path) -> None:
    """GPUs, tolerance, bound and N are those of the command line."""
    assert answer("simulate", spec, "--policy", "rolecall")["policies"]["rolecall"]["loads"] == 10
    assert answer("simulate", spec, "--gpus", "100,100")["policies"]["rolecall"]["loads"] == 2
    assert answer("simulate", spec, "--tolerance", "10")["policies"]["rolecall"]["loads"] == 2
    assert answer("simulate", spec, "--max-overtake-s", "7")["max_overtake_s"] == 7
    roomy = ("simulate", spec, "--gpus", "1000", "--policy", "lru-count")
    assert answer(*roomy)["policies"]["lru-count"]["loads"] == 2
    assert answer(*roomy, "--models-max", "1")["policies"]["lru-count"]["loads"] == 10
    assert (
        answer("simulate", "two-models-a", "--seed", "2")["policies"] != answer("simulate", "two-models-a")["policies"]
    )


def test_a_profile_gives_the_gpus(spec: Path, tmp_path: Path) -> None:
    """--profile takes GPUs and the number of models from profiles.toml."""
    options = configured(tmp_path)[:2]
    found = answer("simulate", spec, "--profile", "multi_gpu_2x16gb", *options)
    assert found["gpus_mb"] == [14000, 14000]


def test_a_request_log_with_models_that_are_told(log: Path) -> None:
    """A request log needs no registry if its models and the GPUs are told."""
    told = ("--gpus", "100", "--model", "a=60,10,2", "--model", "b=60")
    found = answer("simulate", log, *told)
    assert found["requests"] == 4
    assert found["policies"]["fifo-swap"]["loads"] == 4
    assert found["policies"]["rolecall"]["loads"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which trace? `rolecall simulate --list` names"),
        (["nowhere"], "nowhere: there is no such file, and no such trace is shipped"),
        (["two-models-a", "--policy", "magic"], "--policy: 'magic' is none"),
        (["two-models-a", "--gpus", "16GB"], "--gpus '16GB': MB of each GPU are whole numbers above 0"),
        (["two-models-a", "--gpus", "1", "--profile", "x"], "--gpus and --profile: name one of them"),
        (["two-models-a", "--profile", "huge"], "--profile 'huge' is none; there are development"),
        (["two-models-a", "--model", "a=1"], "--model is for request logs"),
        (["LOG", "--model", "a"], "--model 'a': it is NAME=VRAM_MB"),
        (["LOG", "--model", "a=1,2,0"], "--model 'a=1,2,0': it is NAME=VRAM_MB"),
        (["LOG", "--model", "a=1,2,3,4"], "--model 'a=1,2,3,4': it is NAME=VRAM_MB"),
        (["LOG", "--seed", "1"], "--seed is for descriptions"),
        (["LOG", "--gpus", "100", "--model", "a=60"], "requests.jsonl: the registry has no model 'b'"),
    ],
)
def test_wrong_usage_ends_with_two(arguments: list[str], message: str, log: Path) -> None:
    """What cannot be simulated is named on stderr, nothing is on stdout."""
    result = call("simulate", *(str(log) if word == "LOG" else word for word in arguments))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"rolecall: {message}")
    assert result.stdout == ""


def test_a_broken_trace_is_named_with_its_line(log: Path) -> None:
    """A line of a request log that is none is named with file and line."""
    log.write_bytes(b"nonsense\n" + log.read_bytes())
    result = call("simulate", log, "--gpus", "1", "--model", "a=1")
    assert result.exit_code == 2
    assert result.stderr.startswith("rolecall: requests.jsonl, line 1 is no line of a request log: ")


# -- replay


@pytest.fixture
def decisions(tmp_path: Path) -> Path:
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(header(Scheduler()) + encode(Tick(), 1.0, ()) + encode(Tick(), 2.0, ()))
    return path


def test_a_log_that_agrees(decisions: Path) -> None:
    """A log that agrees is told with its number of steps; exit code 0."""
    result = call("replay", decisions)
    assert (result.exit_code, result.stdout) == (0, "2 steps of 1 run: all agree\n")
    assert answer("replay", decisions) == {
        "agrees": True,
        "steps": 2,
        "runs": 1,
        "truncated_lines": [],
        "difference": None,
    }


def test_a_log_that_differs(decisions: Path) -> None:
    """The first step that differs is shown with its event and both decisions; exit code 1."""
    decisions.write_bytes(decisions.read_bytes() + encode(Tick(), 3.0, [Stop("a")]))
    result = call("replay", decisions)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "step 3 (line 4, at 3.0 s)",
        'event     {"type":"Tick"}',
        'recorded  {"type":"Stop","model":"a"}',
        "decided   nothing",
    ]
    assert result.stderr.endswith("the decisions differ from step 3 on\n")
    found = json.loads(call("replay", decisions, "--json").stdout)
    assert found["difference"]["recorded"] == [{"type": "Stop", "model": "a"}]


def test_an_event_that_cannot_be_handled(decisions: Path) -> None:
    """An event that the scheduler cannot take in is shown with the error."""
    decisions.write_bytes(header(Scheduler()) + b'{"now":1,"event":{"type":"Freed","model":"a"},"effects":[]}\n' * 2)
    assert call("replay", decisions).exit_code == 0
    begun = header(Scheduler()) + encode(builders.configured(builders.spec("a")), 0, [])
    decisions.write_bytes(begun + encode(Exited("a"), 1, []))
    said = call("replay", decisions).stdout.splitlines()[-1]
    assert said == "decided   IllegalTransitionError: a model that is stopped cannot exit"


def test_a_cut_last_line_is_noted(decisions: Path) -> None:
    """After a kill -9 the last line may be cut off; the rest counts."""
    decisions.write_bytes(decisions.read_bytes()[:-5])
    result = call("replay", decisions)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "note: line 3 is cut off and was left out; rolecall was killed while it was written",
        "1 step of 1 run: all agree",
    ]


@pytest.mark.parametrize("text", [b"nonsense\n\n{}\n", encode(Tick(), 1.0, ())])
def test_a_file_that_is_no_decision_log_ends_with_two(decisions: Path, text: bytes) -> None:
    """A file that is no decision log is wrong usage, with file and line."""
    decisions.write_bytes(text)
    result = call("replay", decisions)
    assert result.exit_code == 2
    assert "decisions.jsonl: line 1" in result.stderr


def test_replay_asks_for_a_log() -> None:
    """Without a log it says where there is one."""
    result = call("replay")
    assert result.exit_code == 2
    assert result.stderr.startswith("rolecall: which log? The setting record_decisions")


def test_a_log_that_is_not_there_ends_with_a_reason(tmp_path: Path) -> None:
    """A missing file is named."""
    result = call("replay", tmp_path / "none.jsonl")
    assert result.exit_code == 2
    assert "none.jsonl: No such file or directory" in result.stderr
