"""A model takes 100 s to load: no client fails, with its default time limits."""

from __future__ import annotations

import pytest

from clients.adapters import EVERY, PYTHON, Client, needs_curl
from clients.entries import ANSWER
from clients.slow_loads import LOAD_S, SlowLoads


@pytest.mark.parametrize("way", ["whole", "stream"])
@pytest.mark.parametrize("client", EVERY)
def test_a_client_waits(slow: SlowLoads, client: type[Client], way: str) -> None:
    """Whoever asked before the load began has its answer after it, streamed or not."""
    waited = slow.of(client.name, way)
    assert waited.text == ANSWER
    assert waited.after_s > LOAD_S - 5


@pytest.mark.parametrize("client", PYTHON)
def test_a_task_waits(slow: SlowLoads, client: type[Client]) -> None:
    """So has the asynchronous side of those that have one."""
    assert slow.of(client.name, "task").text == ANSWER


@pytest.mark.parametrize("way", ["whole", "stream"])
def test_a_client_of_anthropic_waits(slow: SlowLoads, way: str) -> None:
    """So has Anthropic's client."""
    waited = slow.of("anthropic", way)
    assert waited.text == ANSWER
    assert waited.after_s > LOAD_S - 5


@needs_curl
def test_a_stream_is_told_of_the_load(slow: SlowLoads) -> None:
    """The head and the first comment come at once; one connection was open all the time."""
    slow.of("curl", "stream")
    lines = [line for line in slow.server.log_lines() if line["client"].partition(" ")[2].startswith("curl/")]
    streamed, whole = sorted(lines, key=lambda line: not line["stream"])
    assert (streamed["status"], whole["status"]) == (200, 200)
    assert streamed["load_ms"] > (LOAD_S - 5) * 1000
    assert streamed["bytes_out"] > whole["bytes_out"] + 20 * LOAD_S
