"""What a simulation can be fed with: descriptions and request logs; and how wrong ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import ConfigurationError
from rolecall.gateway.recorder import RequestLine, encode
from rolecall.simulation.requests import LOAD_S, parse_log
from rolecall.simulation.spec import MAX_REQUESTS, parse_spec
from rolecall.simulation.traces import find_spec, read_spec, shipped_specs
from rolecall.simulation.workload import Machine, Model

MACHINE = Machine((1000,))
MODELS = {
    name: Model(name, 600, LOAD_S, roles=tuple(roles.items()))
    for name, roles in {"a": {"caption": 90}, "b": {"caption": 80}, "c": {}}.items()
}


def described(**more: Any) -> dict[str, Any]:
    clients = {"cycle": ["a"], "requests": 3, "answer_s": 1}
    return {"gpus_mb": [1000], "models": {"a": {"vram_mb": 10, "load_s": 1}}, "clients": [clients | more]}


# -- descriptions


@pytest.mark.parametrize("name", sorted(shipped_specs()))
def test_every_shipped_description_can_be_read(name: str) -> None:
    """Each says what it is about, and asks for something."""
    source = find_spec(name)
    assert source is not None
    workload = read_spec(source)
    assert workload.about
    assert workload.requests >= 100


def test_the_same_seed_draws_the_same_requests() -> None:
    """A workload is drawn again as it was; another seed draws another one."""
    data = described(count=3, start_s=[0, 9], answer_s={"mean": 2}, think_s=[1, 2], requests=[1, 9])
    assert parse_spec(data, "x") == parse_spec(data, "x") == parse_spec(data, "x", 1)
    assert parse_spec(data, "x").chains != parse_spec(data, "x", 2).chains


def test_clients_and_times() -> None:
    """Three clients with the models of their cycle in turn, and times for each of them."""
    data = described(count=3, cycle=["a", "role:r"], answer_s={"a": 1, "role:r": [2, 3]}, think_s={"a": 0, "role:r": 5})
    data["models"]["a"]["roles"] = {"r": 70}
    workload = parse_spec(data, "x")
    assert [[step.wanted for step in chain.steps] for chain in workload.chains] == [["a", "role:r", "a"]] * 3
    first, second, _ = workload.chains[0].steps
    assert (first.answer_s, first.think_s, second.think_s) == (1, 0, 5)
    assert 2 <= second.answer_s <= 3


def test_sessions_come_at_random_within_their_hours() -> None:
    """A hundred an hour over ten hours are about a thousand, all between the hours, in order."""
    starts = [chain.start_s for chain in parse_spec(described(per_hour=100, from_h=5, to_h=15), "x").chains]
    assert 850 < len(starts) < 1150
    assert starts == sorted(starts)
    assert 5 * 3600 < starts[0] < starts[-1] < 15 * 3600


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            described(answer_s="soon"),
            "x: clients.0.answer_s: a time is a number of seconds, [least, most], or {mean = ",
        ),
        (described(answer_s=[3, 2]), "x: clients.0.answer_s: a time is"),
        (described(answer_s={"mean": -1}), "x: clients.0.answer_s: a time is"),
        (described(cycle=["a", "b"]), "x: no model and no role is named b; there are a"),
        (described(answer_s={"b": 1}), "x: clients.0: answer_s lacks a"),
        (described(colour=1), "x: clients.0.colour: Extra inputs are not permitted"),
        (described() | {"gpus_mb": []}, "x: gpus_mb: Tuple should have at least 1 item"),
        ({}, "x: gpus_mb: Field required\nx: models: Field required\nx: clients: Field required"),
        (described(count=2, requests=MAX_REQUESTS), "x: more than 200000 requests"),
    ],
)
def test_a_wrong_description_is_named(data: dict[str, Any], message: str) -> None:
    """Every problem is a line with the file, the place and what is allowed."""
    with pytest.raises(ConfigurationError) as raised:
        parse_spec(data, "x")
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("x.toml", "gpus_mb = [1\n", "x.toml: "),
        ("x.toml", "a = 1\nb == 2\n", "x.toml: .*line 2"),
        ("x.json", "{\n,}", "x.json, line 2: "),
        ("x.json", "[]", "x.json: it is no JSON object"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    """A file that cannot be parsed is named with the line."""
    (tmp_path / file).write_text(text)
    source = find_spec(str(tmp_path / file))
    assert source is not None
    with pytest.raises(ConfigurationError, match=message):
        read_spec(source)


def test_a_description_may_be_json(tmp_path: Path) -> None:
    """JSON holds the same as TOML."""
    (tmp_path / "x.json").write_text(json.dumps(described()))
    source = find_spec(str(tmp_path / "x.json"))
    assert source is not None
    assert read_spec(source) == parse_spec(described(), "x.json")


def test_a_trace_that_is_not_there_is_answered_with_those_that_are() -> None:
    """A misspelt name is answered with the shipped ones."""
    with pytest.raises(ConfigurationError, match="no such trace is shipped: mixed-day-16gb, "):
        find_spec("two-models")


# -- request logs


def line(ts: str = "2026-01-31T12:00:00.000Z", model: str | None = "a", status: int = 200, **more: Any) -> bytes:
    fields = {"duration_ms": 3000.0, "queue_ms": 500.0, "load_ms": 1000.0} | more
    return encode(RequestLine(ts=ts, model=model, status=status, **fields).as_dict())


def test_a_request_log_is_a_workload() -> None:
    """Requests come when they came; an answer took what is left of its duration without queue and load."""
    lines = [line("2026-01-31T12:00:02.500Z"), line(), line("2026-01-31T12:00:01+00:00", "c", load_ms=None)]
    workload = parse_log(lines, "log", MODELS, MACHINE)
    assert [(chain.start_s, chain.steps[0].wanted) for chain in workload.chains] == [(0, "a"), (1, "c"), (2.5, "a")]
    assert [chain.steps[0].answer_s for chain in workload.chains] == [1.5, 2.5, 1.5]
    assert [(model.name, model.load_s) for model in workload.models] == [("a", 1.0), ("c", LOAD_S)]


def test_loads_that_were_shared_do_not_count() -> None:
    """A request that came while its model was loading saw a part of the load only."""
    loads = [4000.0, 12000.0, 11000.0, 500.0, 0.0]
    workload = parse_log([line(load_ms=load_ms) for load_ms in loads], "log", MODELS, MACHINE)
    assert workload.by_name["a"].load_s == 11.5


def test_a_role_in_the_log_may_go_to_any_model_that_plays_it() -> None:
    """A request for a role is one again; one whose model no longer plays the role is one for the model."""
    workload = parse_log([line(role="caption"), line(model="c", role="caption")], "log", MODELS, MACHINE)
    assert [chain.steps[0].wanted for chain in workload.chains] == ["role:caption", "c"]
    assert [model.name for model in workload.models] == ["a", "b", "c"]


def test_requests_without_an_answer_are_left_out() -> None:
    """Errors and requests that no model took are counted and left out, and so is a line that is cut off."""
    lines = [line(), line(status=503), line(model=None, status=404), line()[:-20]]
    workload = parse_log(lines, "log", MODELS, MACHINE)
    assert workload.requests == 1
    assert workload.notes == (
        "2 requests that no model answered were left out",
        "the last line is cut off and was left out",
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "log: there is no request in it"),
        ([line(), b"{\n", line()], "log, line 2 is no line of a request log: "),
        ([line(), b'{"a": 1}\n'], "log, line 2 is no line of a request log: misses 'ts'"),
        ([line(), b"[]\n", line()], "log, line 2 is no line of a request log: "),
        ([line(ts="yesterday")], "log, line 1 is no line of a request log: Invalid isoformat"),
        (
            [line(duration_ms="long"), line()],
            "log, line 1 is no line of .* duration_ms is 'long', no number",
        ),
        ([line(model="x")], "log: the registry has no model 'x'; --config-dir"),
        ([line(model=f"x{n}") for n in range(9)], "and 4 more; --config-dir"),
        ([line(), b"{", line()], "log, line 2 is no line of a request log: "),
    ],
)
def test_a_wrong_log_is_named(lines: list[bytes], message: str) -> None:
    """A line that is none is named with file and number, and models that are not known by name."""
    with pytest.raises(ConfigurationError, match=message):
        parse_log(lines, "log", MODELS, MACHINE)
