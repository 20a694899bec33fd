"""What rolecall does when something goes wrong, put to the checks that ``make bench`` puts other proxies to as well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import rolecalls
from bench.behaviour import CHECKS, Check, Situation
from bench.programs import Mock, Programs, build
from bench.running import running
from c_compiler import NoCompiler

PATIENCE_MS = 2000.0
"""Tests run beside each other; ``make bench`` is stricter."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    try:
        return build(tmp_path_factory.mktemp("programs"))
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def situation(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Situation]:
    folder = tmp_path_factory.mktemp("rolecall")
    with Mock(programs) as mock, running(rolecalls.full(), folder, mock.port, quiet_s=0) as server:
        yield Situation(server.target(model=rolecalls.ROLE), mock, is_ours=True, within_ms=PATIENCE_MS)
        assert "Traceback" not in (folder / "terminal.txt").read_text()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name.replace(" ", "-"))
def test_behaviour(check: Check, situation: Situation) -> None:
    """Clients that leave, upstreams that break off, unusual requests and answers: each check says what is right."""
    finding = check.put(situation)
    assert finding.passed, finding.seen
