"""How far a load is said to be, and by what it is known to get on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import eventually
from rolecall.runtime.progress import Effort, Progress, Signs, efforts, progress

SECONDS = st.floats(0, 1e6)
MB = 2**20


# -- the fraction and the ETA


@pytest.mark.parametrize(
    ("elapsed_s", "expected_s", "fraction", "eta_s"),
    [(0, 12, 0.0, 12), (3, 12, 0.25, 9), (9, 12, 0.75, 3), (12, 12, 10 / 11, 1.2), (24, 12, 10 / 11, 2.4)],
)
def test_progress_by_history(elapsed_s: float, expected_s: float, fraction: float, eta_s: float) -> None:
    """It is the part of the learnt time that has passed; a load that is late stays below the end."""
    done = progress(elapsed_s, expected_s)
    assert done.fraction == pytest.approx(fraction)
    assert done.eta_s == pytest.approx(eta_s)


@given(SECONDS, st.floats(0.001, 1e6), SECONDS)
def test_progress_is_sensible_at_any_time(elapsed_s: float, expected_s: float, later_s: float) -> None:
    """It is never over 99 %, never goes back, and the ETA is never negative nor nothing while one waits."""
    now, then = progress(elapsed_s, expected_s), progress(elapsed_s + later_s, expected_s)
    assert now.fraction is not None
    assert then.fraction is not None
    assert now.eta_s is not None
    assert 0 <= now.fraction <= then.fraction + 1e-9 <= 0.99
    assert now.eta_s > 0


@pytest.mark.parametrize("expected_s", [None, 0, -1])
def test_progress_without_history(expected_s: float | None) -> None:
    """Nothing is known, unless it is seen how much of the files was read; when it will be ready is not known then."""
    assert progress(5, expected_s) == Progress(None, None)
    assert progress(5, expected_s, read_mb=0, files_mb=100) == Progress(None, None)
    assert progress(5, expected_s, read_mb=25, files_mb=100) == Progress(0.25, None)
    assert progress(5, expected_s, read_mb=250, files_mb=100) == Progress(0.99, None)
    assert progress(5, 10, read_mb=99, files_mb=100) == Progress(0.5, 5)


def test_a_clock_that_was_set_back() -> None:
    """Time that seems not to have passed counts as none."""
    assert progress(-3, 12) == Progress(0.0, 12)


# -- signs


def sign(before: dict[int, Effort], now: dict[int, Effort], *logs: list[str], span_s: float = 1.0) -> bool:
    """Return whether there is a sign so long after one."""
    first, second = logs or ([], [])
    signs = Signs(100.0)
    assert signs.look(101.0, [*first, "a sign"], before)
    return signs.look(101.0 + span_s, second, now)


def test_nothing_happened() -> None:
    """Standing still is no sign."""
    effort = {7: Effort(cpu_s=3, read_bytes=MB, moved_bytes=MB)}
    assert not sign(effort, effort, ["loading"], ["loading"])


@pytest.mark.parametrize(
    ("now", "is_sign"),
    [
        (Effort(cpu_s=3.5), True),
        (Effort(cpu_s=3.05), False),
        (Effort(cpu_s=3, moved_bytes=200_000), True),
        (Effort(cpu_s=3, moved_bytes=20_000), False),
    ],
)
def test_work_is_a_sign(now: Effort, is_sign: bool) -> None:  # noqa: FBT001 - a parameter
    """CPU time and bytes count from what no polled process would take."""
    assert sign({7: Effort(cpu_s=3)}, {7: now}) is is_sign


def test_work_of_children() -> None:
    """The family counts as a whole: a child that ended takes nothing away, a new one adds all that it did."""
    before = {7: Effort(cpu_s=3), 8: Effort(cpu_s=100, moved_bytes=9 * MB)}
    assert not sign(before, {7: Effort(cpu_s=3)})
    assert sign(before, {7: Effort(cpu_s=3.06), 9: Effort(cpu_s=0.06)})


def test_a_process_that_gets_little_of_a_busy_machine() -> None:
    """What it does adds up until the next sign; what little an idle process does never suffices."""
    for share, is_at_work in [(0.12, True), (0.05, False)]:
        signs = Signs(0.0)
        signs.look(0.0, ["a sign"], {7: Effort()})
        looks = [signs.look(0.1 * n, [], {7: Effort(cpu_s=0.1 * n * share)}) for n in range(1, 100)]
        assert any(looks) is is_at_work
        assert (signs.last > 9) is is_at_work


def test_a_short_span() -> None:
    """One tick of the kernel's clock is no sign, however short the time."""
    assert not sign({7: Effort(cpu_s=3)}, {7: Effort(cpu_s=3.01)}, span_s=0.01)
    assert not sign({7: Effort(moved_bytes=1)}, {7: Effort(moved_bytes=9)}, span_s=0.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Loading checkpoint shards:  12% Completed | 1/8", "Loading checkpoint shards:  25% Completed | 2/8"),
        ("....", "....."),
        ("0.00.006.168 I srv load_model: loading", "0.00.134.784 W llama_context: n_ctx_seq (4096)"),
    ],
)
def test_news_in_the_log(first: str, second: str) -> None:
    """A line that was not there is a sign, on whatever position."""
    assert sign({}, {}, [first], [first, second])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('INFO: 127.0.0.1:42310 - "GET /health" 503', 'INFO: 127.0.0.1:42318 - "GET /health" 503'),
        ("INFO 11-14 15:11:23 [core.py:69] waiting", "INFO 11-14 15:12:23 [core.py:69] waiting"),
        ("2026-01-02 03:04:05,678 waiting", "2026-01-03 13:14:15,016 waiting"),
        ("0.00.006.168 I srv waiting", "0.10.006.172 I srv waiting"),
    ],
)
def test_the_same_again_in_the_log(first: str, second: str) -> None:
    """A line that differs by its time or a port alone says nothing new; else our own polls would be progress."""
    assert not sign({}, {}, [first], [first, second])


def test_a_log_that_was_trimmed() -> None:
    """What goes from the log is no news, and neither is what comes back."""
    signs = Signs(0)
    assert signs.look(1, ["a", "b"], {})
    assert not signs.look(2, ["b"], {})
    assert not signs.look(3, [], {})
    assert not signs.look(4, ["a"], {})
    assert signs.look(5, ["c"], {})


# -- real processes


@pytest.fixture
def child(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a Python process that runs the parameter, once it has printed a line; it is ended afterwards."""
    with subprocess.Popen([sys.executable, "-c", request.param], stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout
        assert process.stdout.readline()
        yield process
        process.kill()


def signs_of(process: subprocess.Popen[bytes], looks: int) -> int:
    """Return how many of some looks at a process, a fifth of a second apart, see a sign."""
    signs, count = Signs(0.0), 0
    signs.look(0.0, ["a sign"], efforts([process.pid]))
    for number in range(1, looks + 1):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        count += signs.look(number / 5, [], efforts([process.pid]))
    return count


@pytest.mark.parametrize("child", ["print(flush=True)\nimport time\ntime.sleep(99)"], indirect=True)
def test_a_process_that_sleeps(child: subprocess.Popen[bytes]) -> None:
    """It gives no sign."""
    assert signs_of(child, 3) == 0


@pytest.mark.parametrize("child", ["print(flush=True)\nimport time\nwhile True: time.sleep(0.02)"], indirect=True)
def test_a_process_that_polls(child: subprocess.Popen[bytes]) -> None:
    """Fifty times a second something small is no sign."""
    assert signs_of(child, 4) <= 1


@pytest.mark.parametrize("child", ["print(flush=True)\nwhile True: pass"], indirect=True)
def test_a_process_that_computes(child: subprocess.Popen[bytes]) -> None:
    """A core that is busy is a sign, as of a model that captures CUDA graphs."""
    eventually(lambda: signs_of(child, 1))


READS = """
import os, time
open("model", "wb").write(bytes(1 << 20))
print(flush=True)
while True:
    os.pread(os.open("model", os.O_RDONLY), 1 << 18, 0)
    time.sleep(0.1)
    os.closerange(3, 9)
"""


@pytest.mark.parametrize("child", [READS], indirect=True)
def test_a_process_that_reads(child: subprocess.Popen[bytes]) -> None:
    """Some megabytes per second are a sign, though hardly any CPU time goes by; all that was read is counted."""
    before = Effort.of(child.pid)
    eventually(lambda: signs_of(child, 1))
    after = Effort.of(child.pid)
    assert after.read_bytes - before.read_bytes >= 2**18
    assert after.cpu_s - before.cpu_s < 1


def test_a_process_that_is_gone() -> None:
    """It has done nothing, and raises nothing."""
    assert efforts([2**30, os.getpid()])[2**30] == Effort()
    assert Effort.of(os.getpid()).cpu_s > 0
