"""Memory is given back once there is much more of it than before."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from rolecall.gateway.tidy import Tidy, keep_pages

MB = 2**20


class Cycle:
    """What only the garbage collector frees."""

    alive = 0

    def __init__(self) -> None:
        Cycle.alive += 1
        self.me = self

    def __del__(self) -> None:
        Cycle.alive -= 1


async def test_memory_is_given_back_when_it_has_grown() -> None:
    """After the start, and at 32 MB more than the least that was held, then with garbage collected; not before."""
    held = [100 * MB]
    trimmed: list[int] = []

    def trim() -> None:
        trimmed.append(held[0])
        held[0] -= 30 * MB

    tidy = Tidy(trim, lambda: held[0])
    await tidy.look()
    assert held == [70 * MB]
    held[0] = 100 * MB
    for grown, times in ((101, 1), (103, 2), (100, 2), (104, 2), (106, 3)):
        held[0] = grown * MB
        await tidy.look()
        assert len(trimmed) == times
    held[0] = 60 * MB
    await tidy.look()
    held[0] = 93 * MB
    gc.disable()
    try:
        Cycle()
        await tidy.look()
    finally:
        gc.enable()
    assert (len(trimmed), Cycle.alive) == (4, 0)


async def test_the_real_allocator() -> None:
    """Asking it does no harm, wherever this runs."""
    tidy = Tidy()
    await tidy.look()
    kept = b"x" * 40 * MB
    await tidy.look()
    assert len(kept) == 40 * MB


FAULTS = """
import resource
from rolecall.gateway.tidy import keep_pages
if {kept}:
    keep_pages()
for _ in range(20):
    parts = [bytes(2**18) for _ in range(40)]
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not keep_pages(), reason="another allocator than glibc's")
def test_pages_are_kept_from_one_body_to_the_next() -> None:
    """Ten megabytes in parts, again and again, need new pages once, and not each time."""
    new, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(kept=kept)], capture_output=True, check=True).stdout)
        for kept in (False, True)
    )
    assert kept < new / 2
