"""Counting finished requests: sums, histograms, and labels that stay few whatever is asked."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from insight.lines import CHAT, line
from rolecall.insight.metrics_families import request_families
from rolecall.insight.tally import BATCH, Histogram, RequestTally, summed


def tally(**options: Any) -> RequestTally:
    return RequestTally([CHAT, "/v1/embeddings"], ["queue_full", "client_gone"], **options)


def counts(made: RequestTally) -> dict[tuple[str, ...], int]:
    return {key: counted.requests for key, counted in made.counted().rows}


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_a_value_is_in_the_first_bucket_that_reaches_it(values: list[float]) -> None:
    """Up to each bound there are as many as are no larger than it, and the sum is theirs."""
    histogram = Histogram((0.5, 1.0, 100.0))
    for value in values:
        histogram.add(value)
    for number, bound in enumerate(histogram.bounds, 1):
        assert sum(histogram.counts[:number]) == sum(value <= bound for value in values)
    assert sum(histogram.counts) == len(values)
    assert histogram.total == sum(values)


def test_a_line_is_counted_with_what_it_says() -> None:
    """Tokens, images and times of a line are those of its series; what it does not know is not counted."""
    made = tally()
    made.hear(
        line(
            role="vision",
            prompt_tokens=10,
            completion_tokens=5,
            reasoning_tokens=2,
            images=3,
            queue_ms=20.0,
            load_ms=400.0,
            ttft_ms=500.0,
            duration_ms=1500.0,
            tokens_per_second=40.0,
        )
    )
    made.hear(line(role="vision", load_ms=0.0))
    ((key, counted),) = made.counted().rows
    assert key == ("a", "vision", CHAT, "2xx")
    assert (counted.requests, counted.input_tokens, counted.output_tokens) == (2, 10, 5)
    assert (counted.reasoning_tokens, counted.images) == (2, 3)
    times = {name: getattr(counted, name).total for name in ("duration", "first", "queue", "load", "rate")}
    assert times == {"duration": 1.6, "first": 0.5, "queue": 0.02, "load": 0.4, "rate": 40}
    assert [sum(getattr(counted, name).counts) for name in times] == [2, 1, 1, 1, 1]


def test_nothing_waits_to_be_counted_for_long() -> None:
    """Lines are counted with others; with the last of a batch all of them are, and before somebody looks."""
    made = tally()
    for _ in range(BATCH):
        made.hear(line())
    assert made._pending == []
    made.hear(line())
    assert counts(made) == {("a", "", CHAT, "2xx"): BATCH + 1}


def test_lines_with_prompts_are_not_kept() -> None:
    """A line that may hold megabytes is counted when it comes."""
    made = tally()
    made.hear(line() | {"prompt": "x" * 1000})
    assert made._pending == []
    assert counts(made) == {("a", "", CHAT, "2xx"): 1}


def test_what_clients_and_engines_write_is_no_label() -> None:
    """A model that nobody knows, a strange path, a code of an engine's own: each has one place, however many."""
    made = tally()
    for number in range(500):
        made.hear(line(model=None, requested_model=f"x{number}", status=404, error=f"code{number}: no"))
        made.hear(line(endpoint=f"/v1/x{number}", status=None))
    assert counts(made) == {("a", "", "other", "other"): 500, ("unknown", "", CHAT, "4xx"): 500}
    assert sorted(made.counted().errors) == [(("unknown", "", CHAT, "other"), 500)]


def test_a_model_that_nobody_asked_has_failures_of_0() -> None:
    """So that the first ones are seen as growth; those that were counted stay, and nothing else is told of it."""
    made = tally()
    made.hear(line(status=500))
    families = {family.name: family.rows for family in request_families(made.counted(), ["b", "a"])}
    assert families["rolecall_requests"] == [(("a", "", CHAT, "5xx"), 1), (("b", "", CHAT, "5xx"), 0)]
    assert [key for key, _ in families["rolecall_input_tokens"]] == [("a", "", CHAT)]


def test_failures_by_their_code() -> None:
    """A failure counts by its code, with an error in the middle of an answer too."""
    made = tally()
    made.hear(line(status=429, model=None, error="queue_full: The queue is full: 9 requests are waiting."))
    made.hear(line(status=200, error="client_gone: it left"))
    assert sorted(made.counted().errors) == [
        (("a", "", CHAT, "client_gone"), 1),
        (("unknown", "", CHAT, "queue_full"), 1),
    ]


def test_removed_models_are_counted_together_once_there_are_too_many() -> None:
    """Up to a limit they stay as they are; beyond it the sums are those of before, under ``other``."""
    made = tally(max_series=10)
    for number in range(9):
        made.hear(line(model=f"m{number}", role=f"r{number}", prompt_tokens=2))
    made.forget({"m8"}, {"r8"})
    assert len(counts(made)) == 9
    for number in range(9):
        made.hear(line(model=f"m{number}", role=f"r{number}", error="queue_full: no", status=429))
    made.forget({"m8"}, {"r8"})
    assert counts(made) == {
        ("m8", "r8", CHAT, "2xx"): 1,
        ("m8", "r8", CHAT, "4xx"): 1,
        ("other", "other", CHAT, "2xx"): 8,
        ("other", "other", CHAT, "4xx"): 8,
    }
    assert sorted(made.counted().errors) == [
        (("m8", "r8", CHAT, "queue_full"), 1),
        (("other", "other", CHAT, "queue_full"), 8),
    ]
    made.hear(line(model="m8", role="r8"))
    assert sum(counts(made).values()) == 19
    assert sum(counted.input_tokens for _, counted in made.counted().rows) == 18


def test_histograms_by_fewer_labels() -> None:
    """Those of a model are the sum of its series; who has no value has no histogram."""
    made = tally()
    for fields in ({"ttft_ms": 100.0}, {"ttft_ms": 300.0, "role": "r"}, {"model": "b"}):
        made.hear(line(**fields))
    rows = made.counted().rows
    found = summed(rows, "first", 1)
    assert {key: (histogram.total, sum(histogram.counts)) for key, histogram in found.items()} == {("a",): (0.4, 2)}
    assert rows[0][1].first.total == 0.1  # and it is a copy
