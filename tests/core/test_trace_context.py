"""The headers of a trace: taken as they are meant, dropped where they are not right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.trace_context import MAX_STATE, context_of, read_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_context_is_read_and_passed_on_as_it_came() -> None:
    """Ids and the flag of sampling are those of the header; several states are one list, in their order."""
    context = read_context(PARENT, ["a=1, b=2", " c=3 ", " "])
    assert context is not None
    assert (context.trace_id, context.span_id, context.is_sampled) == (TRACE, SPAN, True)
    assert context.headers() == {"traceparent": PARENT, "tracestate": "a=1, b=2,c=3"}


def test_without_a_state_there_is_none() -> None:
    """A trace that is not kept has its flag at 0, and no header is made up."""
    context = read_context(f" 00-{TRACE}-{SPAN}-00 ")
    assert context is not None
    assert not context.is_sampled
    assert context.headers() == {"traceparent": f"00-{TRACE}-{SPAN}-00"}


def test_a_later_version_may_say_more() -> None:
    """It is read as far as it is known, and passed on whole."""
    later = f"01-{TRACE}-{SPAN}-03-what.comes"
    context = read_context(later)
    assert context is not None
    assert context.is_sampled
    assert context.headers()["traceparent"] == later


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "x",
        PARENT.upper(),
        PARENT + "-more",
        PARENT[:-1],
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"01-{TRACE}-{SPAN}-01-\x00",
        PARENT.replace("4", "٤"),
    ],
)
def test_what_is_no_context_is_dropped(parent: str) -> None:
    """A header that the recommendation forbids is as good as none."""
    assert read_context(parent, ["a=1"]) is None


@pytest.mark.parametrize(
    "state",
    [
        "a=ü",
        "a=\x00",
        "a=" + "b" * (MAX_STATE + 1),
        "a=1\r\nx: y",
        "A=1",
        "=,x",
        "a=b=c",
        "a=1,a=2",
        ",,",
        ",".join(f"k{n}=1" for n in range(33)),
    ],
)
def test_a_state_that_cannot_be_sent_is_dropped_alone(state: str) -> None:
    """The trace goes on without it."""
    context = read_context(PARENT, [state])
    assert context is not None
    assert context.state == ""


def test_members_of_any_allowed_kind_are_passed_on() -> None:
    """Keys of several tenants, empty members, and space or tabulator between them."""
    context = read_context(PARENT, ["t1@v=a b,,x/y=!,\tz=1", ",".join(f"k{n}=1" for n in range(29))])
    assert context is not None
    assert context.state.startswith("t1@v=a b,,x/y=!, z=1,k0=1")


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_context_of_ours_is_read_as_it_was_made(trace: int, span: int, is_sampled: bool) -> None:  # noqa: FBT001
    """Whoever is asked next reads the same."""
    made = context_of(f"{trace:032x}", f"{span:016x}", is_sampled=is_sampled, state="k=v")
    assert read_context(made.text, ["k=v"]) == made


@given(st.text(), st.lists(st.text()))
def test_no_header_can_do_harm(parent: str, states: list[str]) -> None:
    """Whatever comes, what is passed on are headers that HTTP allows."""
    context = read_context(parent, states)
    assert context is None or all(value.isascii() and value.isprintable() for value in context.headers().values())
