"""What requests leave behind for the garbage collector.

Nothing is best: what goes with its last reference costs no collections, which stop everything, and its memory is free
at once. A connection leaves about 30 objects, most of them uvicorn's, when it is closed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import CHAT, Rolecall, eventually, fake_entry

PROBE = Path(__file__).parent / "garbage_probe"
REQUESTS = 100


def whole(rolecall: Rolecall) -> int:
    return rolecall.chat("one", max_tokens=5).status_code


def streamed(rolecall: Rolecall) -> int:
    with rolecall.stream("one", max_tokens=5) as answer:
        return len(answer.read()) and answer.status_code


def by_role(rolecall: Rolecall) -> int:
    return rolecall.chat("role:chat", max_tokens=5).status_code


def unknown(rolecall: Rolecall) -> int:
    return rolecall.chat("nobody").status_code


def wrong(rolecall: Rolecall) -> int:
    return rolecall.http.post(CHAT, json={"model": "one"}).status_code


def refused_by_the_engine(rolecall: Rolecall) -> int:
    return rolecall.chat("one", fake={"error_status": 422}).status_code


def listed(rolecall: Rolecall) -> int:
    return rolecall.http.get("/v1/models").status_code


def health(rolecall: Rolecall) -> int:
    return rolecall.http.get("/health").status_code


@pytest.mark.parametrize(
    ("ask", "status"),
    [
        (whole, 200),
        (streamed, 200),
        (by_role, 200),
        (unknown, 404),
        (wrong, 400),
        (refused_by_the_engine, 400),
        (listed, 200),
        (health, 200),
    ],
)
def test_a_request_leaves_no_garbage(
    ask: Callable[[Rolecall], int], status: int, garbage: Callable[[], int], rolecall: Rolecall
) -> None:
    """Once it is answered its objects are gone, without a collection: none of them refers back to another."""
    for _ in range(5):
        assert ask(rolecall) == status
    before = garbage()
    for _ in range(REQUESTS):
        assert ask(rolecall) == status
    assert garbage() - before < REQUESTS


@pytest.fixture
def garbage(rolecall: Rolecall) -> Callable[[], int]:
    """Return what was found in the server since its start."""
    target = rolecall.folder / "garbage"

    def ask() -> int:
        target.unlink(missing_ok=True)
        rolecall.process.send_signal(signal.SIGUSR2)
        eventually(target.exists)
        return int(target.read_text())

    return ask


@pytest.fixture(scope="module")
def rolecall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    folder = tmp_path_factory.mktemp("garbage")
    environ = {"PYTHONPATH": str(PROBE), "ROLECALL_GARBAGE_PROBE": str(folder / "garbage")}
    with Rolecall(folder, [fake_entry("one", roles=["chat"])], environ=environ) as made:
        yield made
