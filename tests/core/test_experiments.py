"""Experiments: what a file may say, who gets which variant, and what a variant changes in a request."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES
from rolecall.core.experiments import Asked, Assignment, Experiment, Experiments, Variant, read_experiments
from rolecall.errors import BadRequest, ConfigurationError

TWO: dict[str, Any] = {"a": {}, "b": {}}
NOW = 1_800_000_000.0
DAY_S = 86_400
weights = st.floats(0.1, 10)


def made(**fields: Any) -> Experiment:
    """Return an experiment on the role ``caption`` unless it says otherwise."""
    about = {} if "prompt" in fields else {"role": "caption"}
    return Experiment.model_validate({"name": "e", "variants": TWO, **about, **fields})


def weighted(**shares: float) -> Experiment:
    """Return an experiment with these weights."""
    return made(variants={name: {"weight": weight} for name, weight in shares.items()})


def asked(**fields: Any) -> Asked:
    """Return a chat request for the role ``caption`` unless it says otherwise."""
    return Asked(**{"endpoint": CHAT, "role": "caption", "request_id": "r1", **fields})


def given_to(experiment: Experiment, wish: str | None = None, now: float = NOW, **fields: Any) -> Assignment | None:
    """Return what a request gets of a file with one experiment."""
    return Experiments([experiment]).assign(asked(**fields), now, wish)


# -- assignment


@given(st.text(max_size=20), st.text(max_size=5))
def test_a_unit_always_gets_the_same_variant(unit: str, salt: str) -> None:
    """The variant follows from the file and the unit alone, whatever characters they hold."""
    first, again = made(salt=salt).assign(unit), made(salt=salt).assign(unit)
    assert first == again
    assert first in TWO


@pytest.mark.parametrize(
    "shares", [{"a": 1, "b": 1}, {"a": 9, "b": 1}, {"a": 0.2, "b": 0.3, "c": 0.5}, {"a": 0, "b": 2}]
)
def test_the_shares_are_those_of_the_weights(shares: dict[str, float]) -> None:
    """Of 20,000 units each variant gets its share, within five standard deviations; a weight of 0 gets none."""
    experiment, units = weighted(**shares), 20_000
    counts = Counter(experiment.assign(f"unit-{number}") for number in range(units))
    for name, weight in shares.items():
        share = weight / sum(shares.values())
        assert abs(counts[name] - units * share) <= 5 * math.sqrt(units * share * (1 - share))


def test_two_experiments_divide_units_independently() -> None:
    """Whom one experiment gives its second variant says nothing of the other one, nor does another salt."""
    experiments = [made(), made(name="f"), made(salt="x")]
    counts = Counter(tuple(each.assign(f"unit-{number}") for each in experiments) for number in range(8_000))
    assert len(counts) == 8
    assert all(abs(count - 1_000) < 5 * math.sqrt(1_000 * 7 / 8) for count in counts.values())


@given(weights, weights, weights, weights, st.integers())
def test_a_weight_moves_units_to_or_from_its_own_variant_alone(
    a: float, b: float, c: float, new: float, unit: int
) -> None:
    """When the weight of ``c`` changes, nobody moves between ``a`` and ``b``, and who moves moves in its direction."""
    before, after = (weighted(a=a, b=b, c=weight).assign(str(unit)) for weight in (c, new))
    if before != after:
        assert (after if new > c else before) == "c"


# -- who takes part


@pytest.mark.parametrize(
    ("fields", "request_", "takes"),
    [
        ({}, {}, True),
        ({"role": "Caption"}, {}, True),
        ({}, {"role": "ocr"}, False),
        ({}, {"role": None}, False),
        ({}, {"endpoint": EMBEDDINGS}, False),
        ({"enabled": False}, {}, False),
        ({"prompt": "p"}, {"prompt": "p", "role": None}, True),
        ({"prompt": "p"}, {"prompt": "q"}, False),
        ({"prompt": "p"}, {"prompt": "p", "endpoint": COMPLETIONS}, True),
        ({"prompt": "p", "variants": {"a": {}, "b": {"system": "x"}}}, {"prompt": "p", "endpoint": COMPLETIONS}, False),
        ({"prompt": "p", "variants": {"a": {}, "b": {"system": "x"}}}, {"prompt": "p", "endpoint": RESPONSES}, True),
        ({"prompt": "p", "variants": {"a": {}, "b": {"model": "m"}}}, {"prompt": "p", "role": None}, False),
        ({"prompt": "p", "variants": {"a": {}, "b": {"model": "m"}}}, {"prompt": "p"}, True),
        ({"sticky": "key"}, {"key": "k"}, True),
        ({"sticky": "key"}, {"session": "s"}, False),
        ({"sticky": "session"}, {"session": "s"}, True),
        ({"sticky": "session"}, {"key": "k"}, False),
    ],
)
def test_who_takes_part(fields: dict[str, Any], request_: dict[str, Any], *, takes: bool) -> None:
    """Role or prompt must be the experiment's; a named model is left alone, and who has no unit gets no variant."""
    assert (given_to(made(**fields), **request_) is not None) is takes


@pytest.mark.parametrize(("days", "runs"), [(-1, False), (0, True), (1, True), (2, False)])
def test_an_experiment_has_a_time(days: int, *, runs: bool) -> None:
    """It begins with the start of its first day, UTC, and is over with the start of its last."""
    (experiment,) = read_experiments(
        {"e": {"role": "r", "variants": TWO, "start": "2027-01-15", "end": "2027-01-17T00:00:00+00:00"}}
    ).all
    assert experiment.is_running(1_799_971_200 + days * DAY_S) is runs


def test_the_first_that_takes_a_request_has_it() -> None:
    """A request is part of one experiment at most: the first of the file."""
    both = Experiments([made(name="first", prompt="p"), made(name="second")])
    found = [both.assign(asked(prompt=prompt), NOW) for prompt in ("p", None)]
    assert [each and each.experiment.name for each in found] == ["first", "second"]


def test_sticky_units_are_hidden() -> None:
    """The log knows a key or session again by a hash, without its name; requests need none."""
    one, other = (given_to(made(sticky="session"), session=name) for name in ("alice", "bob"))
    again = given_to(made(sticky="session"), session="alice", request_id="r2")
    assert one is not None
    assert other is not None
    assert again is not None
    assert one == again
    assert one.unit != other.unit
    assert "alice" not in str(one.unit)
    alone = given_to(made())
    assert alone is not None
    assert alone.unit is None


# -- what a request may wish for


def test_off_is_off() -> None:
    """``off`` keeps a request out of all experiments."""
    assert given_to(made(), " OFF ") is None


@pytest.mark.parametrize("fields", [{}, {"enabled": False}, {"end": "2020-01-01"}, {"sticky": "key"}])
def test_a_variant_can_be_asked_for(fields: dict[str, Any]) -> None:
    """``NAME=VARIANT`` gives that one, also before and after the experiment's time; it is marked."""
    found = given_to(made(**fields), "e = b")
    assert found is not None
    assert (found.words, found.is_forced, found.unit) == ("e=b", True, None)
    assert (found.variant, found.control) == (found.experiment.variants["b"], found.experiment.variants["a"])


@pytest.mark.parametrize(
    ("wish", "fields", "complaint"),
    [
        ("e=c", {}, "e=a, e=b"),
        ("x=a", {}, "e=a, e=b"),
        ("nonsense", {}, "nonsense"),
        ("e=a", {"role": "ocr"}, "on the role caption"),
        ("e=a", {"endpoint": EMBEDDINGS}, "Requests to /v1/embeddings take no part in the experiment e"),
    ],
)
def test_a_wrong_wish_is_refused(wish: str, fields: dict[str, Any], complaint: str) -> None:
    """A variant that there is not, or not for such a request, is told with those that there are."""
    with pytest.raises(BadRequest, match=complaint):
        given_to(made(), wish, **fields)


def test_a_wish_for_a_model_needs_a_role() -> None:
    """Who names a model cannot be given another one by the header either, and is told so."""
    with pytest.raises(BadRequest, match="must ask for a role"):
        given_to(made(prompt="p", variants={"a": {}, "b": {"model": "m"}}), "e=b", prompt="p", role=None)


def test_experiments_are_found_by_name() -> None:
    """An experiment is found by its name."""
    experiments = Experiments([made()])
    assert (experiments.find("e"), experiments.find("x")) == (experiments.all[0], None)


# -- what a variant changes

BODY = {"model": "role:caption", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("variant", "body", "changed"),
    [
        ({}, {}, {}),
        ({"parameters": {"temperature": 0.2}}, {}, {"temperature": 0.2}),
        ({"parameters": {"temperature": 0.2}}, {"temperature": None}, {"temperature": 0.2}),
        ({"parameters": {"temperature": 0.2}}, {"temperature": 1}, {}),
        ({"parameters": {"max_tokens": 5}}, {"max_completion_tokens": 9}, {}),
        ({"set": {"temperature": 0.2}}, {"temperature": 1}, {"temperature": 0.2}),
        ({"set": {"max_tokens": 5}}, {"max_completion_tokens": 9}, {"max_tokens": 5, "max_completion_tokens": None}),
        (
            {"parameters": {"enable_thinking": False}},
            {"chat_template_kwargs": {"x": 1}},
            {"chat_template_kwargs": {"x": 1, "enable_thinking": False}},
        ),
        ({"parameters": {"enable_thinking": False}}, {}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"parameters": {"enable_thinking": False}}, {"chat_template_kwargs": {"enable_thinking": True}}, {}),
        ({"parameters": {"enable_thinking": False}}, {"enable_thinking": True}, {}),
    ],
)
def test_parameters(variant: dict[str, Any], body: dict[str, Any], changed: dict[str, Any]) -> None:
    """``parameters`` fill what the request leaves out under any name, ``set`` goes over it; the rest stays."""
    sent = {**BODY, **body}
    before = dict(sent)
    result = Variant.model_validate(variant).treated(sent, CHAT)
    wanted = {name: value for name, value in {**sent, **changed}.items() if value is not None}
    assert result == wanted
    assert sent == before


def test_what_the_request_kept_is_known() -> None:
    """A parameter that the request has a word of its own for is named."""
    variant = Variant(parameters={"temperature": 0.2, "top_p": 0.5}, set={"seed": 1})
    assert variant.kept({"temperature": 1, "seed": 2}) == ["temperature"]


@pytest.mark.parametrize(
    ("endpoint", "body", "field", "value"),
    [
        (CHAT, BODY, "messages", [{"role": "system", "content": "new"}, {"role": "user", "content": "hi"}]),
        (
            CHAT,
            {"messages": [{"role": "developer", "content": "old"}, {"role": "user", "content": "hi"}]},
            "messages",
            [{"role": "system", "content": "new"}, {"role": "user", "content": "hi"}],
        ),
        (MESSAGES, {"system": "old"}, "system", "new"),
        (RESPONSES, {"input": "hi"}, "instructions", "new"),
        (
            RESPONSES,
            {"input": [{"role": "system", "content": "old"}, {"role": "user", "content": "hi"}, {"type": "x"}, 7]},
            "input",
            [{"role": "user", "content": "hi"}, {"type": "x"}, 7],
        ),
        (COMPLETIONS, {"prompt": "x"}, "prompt", "x"),
    ],
)
def test_a_system_text(endpoint: str, body: Mapping[str, Any], field: str, value: Any) -> None:
    """The system text takes the place of the request's own, wherever the endpoint has it."""
    assert Variant(system="new").treated(body, endpoint)[field] == value


# -- the file


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"variants": TWO}, "e: needs either role or prompt"),
        ({"role": "r", "prompt": "p", "variants": TWO}, "e: needs either role or prompt"),
        ({"role": "r", "variants": {"a": {}}}, "e: variants: "),
        ({"role": "r", "variants": TWO, "control": "c"}, "e: control 'c' is none of the variants a, b"),
        ({"role": "r", "variants": {"a": {"weight": 0}, "b": {"weight": 0}}}, "e: all weights are 0"),
        ({"role": "r", "variants": {"a": {"weight": -1}, "b": {}}}, "e: variants.a.weight: "),
        ({"role": "r", "variants": {"a": {"weight": True}, "b": {}}}, "e: variants.a.weight: .*valid number"),
        ({"role": "r", "variants": {"a": {"weight": "0.5"}, "b": {}}}, "e: variants.a.weight: .*valid number"),
        ({"role": "r", "variants": TWO, "window_h": "1"}, "e: window_h: .*valid number"),
        ({"role": "r", "variants": TWO, "enabled": "yes"}, "e: enabled: .*valid boolean"),
        ({"role": "r", "variants": TWO, "start": 20261101}, "e: start: takes a day or a time, such as 2026-11-01"),
        ({"role": "r", "variants": TWO, "end": "tomorrow"}, "e: end: takes a day or a time"),
        ({"role": "r", "variants": {"a": {"wieght": 1}, "b": {}}}, "e: variants.a.wieght: there is no such field"),
        ({"role": "r", "variants": {"a b": {}, "b": {}}}, "e: variants.a b: "),
        ({"role": "r", "variants": {"a": {"set": {"stream": True}}, "b": {}}}, "stream is no parameter"),
        ({"role": "r", "variants": {"a": {"parameters": {"id_slot": 1}}, "b": {}}}, "id_slot is no parameter"),
        (
            {"role": "r", "variants": {"a": {"parameters": {"temperature": "x"}}, "b": {}}},
            "e: variants.a: .*temperature",
        ),
        ({"role": "r", "variants": {"a": {"system": "x"}, "b": {}}}, "system belongs to an experiment on a prompt"),
        ({"role": "r", "variants": TWO, "start": "2027-01-02", "end": "2027-01-02"}, "e: it ends before it starts"),
        ({"role": "r", "variants": TWO, "name": "f"}, "e: must be a table"),
        (7, "e: must be a table"),
    ],
)
def test_a_wrong_file_is_refused(table: Any, complaint: str) -> None:
    """Each problem names the experiment and the field; the good ones beside it are none."""
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        read_experiments({"e": table, "good": {"role": "r", "variants": TWO}})
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("fields", "is_lower_better", "control"),
    [
        ({}, False, "a"),
        ({"metric": "ttft_ms"}, True, "a"),
        ({"metric": "completion_tokens", "better": "lower", "control": "b"}, True, "b"),
    ],
)
def test_what_a_file_leaves_out(fields: dict[str, Any], *, is_lower_better: bool, control: str) -> None:
    """Times are better when lower, all else when higher; the first variant is the control."""
    experiment = made(**fields)
    assert (experiment.is_lower_better, experiment.control_name) == (is_lower_better, control)
    assert (experiment.concerns, made(prompt="p").concerns) == ("role caption", "prompt p")


def test_days_and_times_without_a_zone_are_utcs() -> None:
    """As TOML can write them: a day is its first moment."""
    moments = (date(2027, 1, 15), datetime(2027, 1, 15, 8), "2027-01-15T08:00:00Z")  # noqa: DTZ001
    begin = [(1_799_971_200.0, None), (1_800_000_000.0, None), (1_800_000_000.0, None)]
    assert [made(start=moment).span for moment in moments] == begin
