"""The decision log: what is written can be read back, and effects can be compared."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import configured, entry, spec
from rolecall.core.decisions import BrokenLogError, Decision, Header, Truncated, describe, encode, header, read
from rolecall.core.events import (
    Adopted,
    Arrived,
    BecameReady,
    Cancelled,
    Configured,
    Event,
    Exited,
    FellAsleep,
    Freed,
    Grant,
    Group,
    Measured,
    Observed,
    Purpose,
    Reject,
    Released,
    ShutdownRequested,
    Sleep,
    SleepCost,
    Spec,
    Start,
    Stop,
    Tick,
    UnloadRequested,
    Wake,
)
from rolecall.core.models import ModelEntry
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Demand, RolePolicy, Rules, Selection
from rolecall.core.vram import Device, Share
from rolecall.errors import TooManyRequests

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20)
mb = st.integers(0, 200_000)
seconds = st.floats(0, 1e9)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
by_device = st.dictionaries(names, mb, max_size=3)
placements = st.lists(st.builds(Share, names, mb, mb), max_size=3).map(tuple)
demands = st.builds(
    Demand,
    role=st.none() | names,
    needs=st.frozensets(st.sampled_from(["vision", "tools"])),
    exclude=st.frozensets(names),
    include_non_installed=st.booleans(),
)
entries = st.builds(
    entry,
    names,
    role_priority=st.dictionaries(st.sampled_from(["caption", "chat"]), st.floats(0, 100)),
    gpus=st.lists(st.integers(0, 7) | names, max_size=2),
    metadata=st.dictionaries(st.text(), values, max_size=3),
    pinned=st.booleans(),
    display_name=st.none() | st.text(),
    something_unknown=values,
    backend_config=st.fixed_dictionaries({"extra_args": st.lists(names), "env": st.dictionaries(names, st.text())}),
)
costs = st.builds(SleepCost, st.integers(1, 2), mb, mb, seconds)
specs = st.builds(
    Spec,
    entries,
    st.none() | mb,
    st.none() | st.text(),
    st.booleans(),
    st.integers(1, 4096),
    seconds,
    seconds,
    st.lists(names, max_size=2).map(tuple),
    st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple),
    st.lists(costs, max_size=2).map(tuple),
)
rules = st.builds(
    Rules,
    limit_mb=mb,
    preferred_quantizations=st.lists(names, max_size=2).map(tuple),
    tolerance=seconds,
    roles=st.dictionaries(names, st.builds(RolePolicy, st.sampled_from(["adaptive", "priority"]), seconds), max_size=2),
)
groups = st.builds(Group, names, st.lists(names, max_size=3).map(tuple), st.sampled_from(["parallel", "serial"]))
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        *(Arrived, st.integers(0), demands, st.lists(names, max_size=3).map(tuple)),
        st.sampled_from(get_args(Purpose)),
    ),
    st.builds(Cancelled, st.integers(0)),
    st.builds(Released, names),
    st.builds(BecameReady, names, st.none() | seconds),
    st.builds(Measured, names, by_device, st.none() | mb),
    st.builds(FellAsleep, names),
    st.builds(Exited, names, st.text(), st.booleans(), st.booleans()),
    st.builds(Freed, names),
    st.builds(Observed, by_device),
    st.builds(Adopted, names, placements),
    st.builds(UnloadRequested, names),
    st.builds(
        Configured,
        st.lists(specs, max_size=3).map(tuple),
        rules,
        st.lists(st.builds(Device, names, mb, mb, st.integers(0, 8)), max_size=2).map(tuple),
        mb,
        st.integers(0, 10),
        st.lists(groups, max_size=2).map(tuple),
        mb,
    ),
    st.just(ShutdownRequested()),
    st.just(Tick()),
)


def only(lines: list[bytes]) -> Any:
    (item,) = read(lines)
    return item


@given(event=events, now=seconds)
def test_every_event_is_read_back_as_it_was(event: Event, now: float) -> None:
    """Whatever an event holds, the line that is written for it gives an equal event and the same moment."""
    line = encode(event, now, ())
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert only([line]) == Decision(1, now, event, ())


@pytest.mark.parametrize("oddity", [2**70, {"a": [2**70, None, 1.5]}])
def test_what_a_fast_writer_refuses_is_written_nevertheless(oddity: Any) -> None:
    """Large integers, which a registry file may hold, are no reason to lose a line."""
    known = spec("alpha", sleep=(SleepCost(1, 10, 20, 0.5),), metadata={"odd": oddity})
    event = configured(known, groups=(Group("g", ("alpha",)),))
    assert only([encode(event, 1.0, ())]).event == event


def test_a_read_only_mapping_is_written() -> None:
    """A mapping that orjson does not know is written as an object."""
    event = Observed(MappingProxyType({"g0": 5}))
    assert only([encode(event, 1.0, ())]).event == Observed({"g0": 5})


def test_an_entry_keeps_its_raw_fields_only() -> None:
    """Of a registry entry those fields are written that it was given, not the defaults of this version."""
    told = orjson.loads(encode(configured(spec("alpha", role_priority={"chat": 80})), 0.0, ()))
    assert told["event"]["specs"][0]["entry"] == {
        "name": "alpha",
        "backend": "llama_cpp",
        "role_priority": {"chat": 80},
    }
    assert isinstance(only([orjson.dumps(told)]).event.specs[0].entry, ModelEntry)


def test_effects_are_described() -> None:
    """Each effect stands in the log with all that decides whether another scheduler did the same."""
    selection = Selection(Demand("chat"), (), (), "highest priority that fits")
    placement = (Share("g0", 500, 1000), Share("g1", 500, 1000))
    described = [
        describe(effect)
        for effect in (
            Start("a", placement),
            Stop("a"),
            Sleep("a", 2),
            Wake("a"),
            Grant(7, "a", selection),
            Reject(8, TooManyRequests("full", retry_after_s=5)),
        )
    ]
    assert described == [
        {"type": "Start", "model": "a", "placement": [["g0", 500], ["g1", 500]]},
        {"type": "Stop", "model": "a"},
        {"type": "Sleep", "model": "a", "level": 2},
        {"type": "Wake", "model": "a"},
        {"type": "Grant", "waiter": 7, "model": "a", "reason": "highest priority that fits"},
        {"type": "Reject", "waiter": 8, "code": "queue_full", "message": "full"},
    ]
    assert only([encode(Tick(), 0.0, [Stop("a")])]).effects == ({"type": "Stop", "model": "a"},)


def test_the_header_makes_a_scheduler_like_the_recorded_one() -> None:
    """The first line holds the parameters, so that a replay begins with the same ones."""
    recorded = Scheduler(max_overtake_s=7, max_queue=3, drain_limit_s=11, linger_share=0.5)
    item = only([header(recorded)])
    assert isinstance(item, Header)
    again = item.scheduler()
    assert (again.max_overtake_s, again.max_queue, again.drain_limit_s, again.linger_share) == (7, 3, 11, 0.5)


def test_a_parameter_of_another_version_is_an_error() -> None:
    """A log of a version whose scheduler had other parameters is refused with the parameter's name."""
    with pytest.raises(BrokenLogError, match="no parameter mood"):
        Header({"mood": 1}).scheduler()


def test_an_older_log_has_requests_only() -> None:
    """A line of a version that told loads by hand from nothing is read as a request."""
    line = {"now": 1, "event": {"type": "Arrived", "waiter": 1, "demand": {}, "names": ["a"]}, "effects": []}
    assert only([orjson.dumps(line)]).event == Arrived(1, Demand(), ("a",), "request")


def test_a_cut_last_line_is_tolerated() -> None:
    """A process that was killed leaves half a line, at the end of the file or before the next run's header."""
    lines = [header(Scheduler()), encode(Tick(), 1.0, ()), encode(Tick(), 2.0, ())[:-9]]
    assert [type(item) for item in read(lines)] == [Header, Decision, Truncated]
    again = [*lines, b"\n", header(Scheduler()), encode(Tick(), 3.0, ())]
    assert [type(item) for item in read(again)] == [Header, Decision, Truncated, Header, Decision]
    assert [item.line for item in read(again) if isinstance(item, Truncated | Decision)] == [2, 3, 6]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "line 2 .*JSONDecodeError"),
        (b"5", "line 2 .*TypeError"),
        (b"[]", "line 2 .*TypeError"),
        (b'{"now": 1, "effects": []}', "line 2 .*KeyError: 'event'"),
        (b'{"now": 1, "event": {"type": "Nothing"}, "effects": []}', "line 2 .*KeyError: 'Nothing'"),
        (b'{"now": 1, "event": {"type": "Cancelled"}, "effects": []}', "line 2 .*ValidationError"),
        (b'{"version": 99, "scheduler": {}}', "version is 99, this rolecall reads 1"),
    ],
)
@pytest.mark.parametrize("after", [encode(Tick(), 1.0, ()), b"{"])
def test_a_broken_line_in_the_middle_is_an_error(line: bytes, why: str, after: bytes) -> None:
    """A line that is none, and not the last of its run, is named with its number."""
    with pytest.raises(BrokenLogError, match=why):
        list(read([header(Scheduler()), line, after]))
